# SPDX-License-Identifier: BSD-3-Clause
"""Every layer obeys what FINN needs to build it from RTL."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import nn

from brevitas_divqat.models import Precision, build

SHAPES = {
    "lenet5": (1, 8, 8),
    "cnv": (3, 32, 32),
    "vgg_small": (3, 8, 8),
    "resnet8": (3, 8, 8),
    "mobilenet_v1_tiny": (3, 16, 16),
    "tfc": (1, 8, 8),
}
LAYERS = {
    "lenet5": 5,
    "cnv": 9,
    "vgg_small": 7,
    "resnet8": 10,
    "mobilenet_v1_tiny": 28,
    "tfc": 4,
}
RELUS = {**{name: count - 1 for name, count in LAYERS.items()}, "resnet8": 9}
"""One behind each layer but the last; in resnet8 two layers share one, twice, and another stands
behind each of three additions."""
PADDED = {"lenet5": 2, "cnv": 0, "vgg_small": 6, "resnet8": 7, "mobilenet_v1_tiny": 14, "tfc": 0}
NETWORKS = [
    pytest.param(name, Precision(weight, activation, edge, scale), id=f"{name}-{tag}")
    for name, (tag, weight, activation, edge, scale) in itertools.product(
        SHAPES,
        [
            ("W4A4E8", 4, 4, 8, "channel"),
            ("W2A3E5", 2, 3, 5, "channel"),
            ("W3A2E8 per tensor", 3, 2, 8, "tensor"),
        ],
    )
]


@functools.cache
def make(name: str, precision: Precision) -> nn.Module:
    """A network whose activations have seen one batch, so that they have scales."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name, SHAPES[name], 10, precision=precision, width=0.05)
        model.train()(torch.rand(4, *SHAPES[name]))
    return model.eval()


def weighted_layers(model: nn.Module) -> list[QuantWeightBiasInputOutputLayer]:
    return [m for m in model.modules() if isinstance(m, QuantWeightBiasInputOutputLayer)]


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_weights_are_signed_narrow_and_without_bias(name: str, precision: Precision) -> None:
    layers = weighted_layers(make(name, precision))
    assert len(layers) == LAYERS[name]
    for layer in layers:
        weight = layer.quant_weight()
        assert isinstance(layer, QuantConv2d | QuantLinear)
        assert layer.bias is None
        assert layer.weight_quant.is_signed
        assert layer.weight_quant.is_narrow_range
        assert (weight.zero_point == 0).all()
        # The last layer has one scale in any case, which is left to the host.
        per_channel = precision.weight_scale == "channel" and layer is not layers[-1]
        assert weight.scale.numel() == (layer.weight.shape[0] if per_channel else 1)


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_first_and_last_layer_have_the_edge_bits(name: str, precision: Precision) -> None:
    first, *inner, last = weighted_layers(make(name, precision))
    widths = [int(layer.quant_weight().bit_width) for layer in (first, last)]
    # The first layer of tfc holds most of its weights, and has no more bits than the others.
    assert widths == [precision.weight if name == "tfc" else precision.edge, precision.edge]
    assert {int(layer.quant_weight().bit_width) for layer in inner} == {precision.weight}


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_activations_are_unsigned_with_one_scale(name: str, precision: Precision) -> None:
    relus = [m for m in make(name, precision).modules() if isinstance(m, QuantReLU)]
    assert len(relus) == RELUS[name]
    for relu in relus:
        assert not relu.act_quant.is_signed
        assert not relu.act_quant.is_narrow_range
        assert relu.act_quant.bit_width() == precision.activation
        assert relu.act_quant.scale().numel() == 1
        assert relu.act_quant.zero_point() == 0


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_pixels_enter_as_8_bit_integers_of_scale_1_256(name: str, precision: Precision) -> None:
    (entry,) = [m for m in make(name, precision).modules() if isinstance(m, QuantIdentity)]
    assert (entry.act_quant.scale(), entry.act_quant.bit_width()) == (1 / 256, 8)
    assert not entry.act_quant.is_signed


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_no_quantizer_is_shared(name: str, precision: Precision) -> None:
    model = make(name, precision)
    quantizers = [layer.weight_quant for layer in weighted_layers(model)]
    quantizers += [m.act_quant for m in model.modules() if isinstance(m, QuantReLU)]
    scales = [
        module
        for quantizer in quantizers
        for part, module in quantizer.named_modules()
        if part.endswith("tensor_quant.scaling_impl")
    ]
    assert len({id(quantizer) for quantizer in quantizers}) == len(quantizers)
    assert len({id(scale) for scale in scales}) == len(scales) == len(quantizers)


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_a_threshold_follows_every_batch_norm(name: str, precision: Precision) -> None:
    blocks = [m for m in make(name, precision).modules() if isinstance(m, nn.Sequential)]
    for block in blocks:
        for layer, following in itertools.pairwise(block):
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                assert isinstance(following, QuantReLU)
            if isinstance(layer, nn.MaxPool2d | nn.Flatten):
                assert not isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d)


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_only_unsigned_tensors_are_padded(name: str, precision: Precision) -> None:
    inputs: list[bool] = []

    def look(layer: QuantConv2d, args: tuple[torch.Tensor], _: torch.Tensor) -> None:
        if any(layer.padding):
            pixels = getattr(args[0], "value", args[0])  # of a QuantTensor
            inputs.append(bool((pixels >= 0).all()))

    model = copy.deepcopy(make(name, precision))
    for module in model.modules():
        if isinstance(module, QuantConv2d):
            module.register_forward_hook(look)
    model(torch.rand(2, *SHAPES[name]))
    assert all(inputs)
    assert len(inputs) == PADDED[name]


@pytest.mark.parametrize("name", ["lenet5", "cnv", "tfc"])
def test_one_bit_is_the_sign(name: str) -> None:
    shape = (1, 20, 20) if name == "lenet5" else SHAPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name, shape, 10, precision=Precision(1, 1, 1), width=0.05)
        entry, *signs = [m for m in model.modules() if isinstance(m, QuantIdentity)]
        found: list[torch.Tensor] = []
        for module in signs:
            module.register_forward_hook(lambda _, __, output: found.append(output.detach()))
        model(torch.rand(4, *shape))
    assert not [m for m in model.modules() if isinstance(m, QuantReLU)]
    assert len(signs) == len(found) == RELUS[name]
    for output in found:
        assert set(output.unique().tolist()) <= {-1.0, 1.0}
    for layer in weighted_layers(model):
        assert (layer.quant_weight().int().abs() == 1).all()
        assert layer.quant_weight().bit_width == 1


@pytest.mark.parametrize("precision", [Precision(1, 2), Precision(), Precision(8, 8)], ids=str)
def test_branches_that_are_added_have_one_quantizer(precision: Precision) -> None:
    scales: list[tuple[torch.Tensor, torch.Tensor]] = []
    model = copy.deepcopy(make("resnet8", precision))
    for block in model.blocks:
        joined = block.entry if block.shortcut is None else block.join
        outputs: list[torch.Tensor] = []
        joined.register_forward_hook(lambda _, __, output, kept=outputs: kept.append(output))
        model(torch.rand(2, *SHAPES["resnet8"]))
        assert len(outputs) == 2
        scales.append((outputs[0].scale, outputs[1].scale))  # type: ignore[attr-defined]
        assert not outputs[0].signed  # type: ignore[attr-defined]
    assert all(torch.equal(*pair) for pair in scales)
