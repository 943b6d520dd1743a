# SPDX-License-Identifier: BSD-3-Clause
"""Graph mode keeps the float network's function, names and modes, and builds or says why not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjectorBase
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from qonnx.core.onnx_exec import execute_onnx
from torch import Tensor, nn

from brevitas_divqat.conversion import ConversionReport, QuantizedGraph, quantize
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.export import (
    GraphMetadata,
    check,
    check_graph,
    export_qonnx,
    to_integer_graph,
)
from brevitas_divqat.loss import DivQATLoss
from brevitas_divqat.training import calibrate
from brevitas_divqat.training.calibration import to_input

SHAPE = (3, 16, 16)
CLASSES = 10
ALIKE = 0.97
"""Least correlation of 8-bit scores with float ones; less where a BatchNorm is missing (tested)."""
FIRE_ALIKE = 0.9
"""For the network whose scores are averages after a ReLU, half of them 0, which differ little."""

# Small networks, each in another style


class Functional(nn.Module):
    """The style of PyTorch's MNIST example: pool before ReLU, dropout, view, log_softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.fc1 = nn.Linear(12 * 2 * 2, 24)
        self.fc2 = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = torch.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.dropout(x.view(x.size(0), -1), 0.25, training=self.training)
        return F.log_softmax(self.fc2(self.fc1(x).relu_()), dim=1)


class Block(nn.Module):
    """Two convolutions with one ReLU module that is called twice, and an addition in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layers = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2))
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean([2, 3]))


class Bottleneck(nn.Module):
    """Linear bottlenecks with ReLU6 and a depthwise convolution; a chain of two additions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.blocks = nn.ModuleList(self._block() for _ in range(2))
        self.last = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.fc = nn.Linear(16, CLASSES, bias=False)

    def _block(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(inplace=True),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardtanh(0.0, 6.0),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.add(x, block(x))
        x = F.adaptive_avg_pool2d(self.last(x), 1)
        return self.fc(torch.flatten(x, 1))


class Dense(nn.Module):
    """Concatenations of all earlier maps, pre-activation, an average pool between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, 1, 1, bias=False) for i in range(2))
        self.transition = nn.Conv2d(14, 8, 1, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            maps.append(conv(F.relu(norm(torch.cat(maps, 1)))))
        x = self.transition(F.relu(self.norms[2](torch.cat(maps, 1)), inplace=True))
        return self.fc(self.pool(x).reshape(x.shape[0], -1))


class Fire(nn.Module):
    """Two rectified branches that are concatenated, and a classifier that is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 6, 3, 2)
        self.left, self.right = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 7, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(12, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        x = torch.cat([self.act(self.left(x)), self.act(self.right(x))], dim=1)
        return torch.flatten(self.classifier(x), 1)


class Normalised(nn.Module):
    """Pixels are normalised inside of the network."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.fc = nn.Linear(8 * 7 * 7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        return self.fc(self.conv(x).clamp(min=0).flatten(1))


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8 * 3 * 3, CLASSES),
    )


SMALL: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "sequential": sequential,
    "residual": Residual,
    "bottleneck": Bottleneck,
    "dense": Dense,
    "fire": Fire,
    "normalised": Normalised,
}
BUILDABLE = tuple(SMALL)


def pixels(count: int = 48, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Return smooth images of unlike contrast, (N, C, H, W) uint8."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator)
    contrast = 255 * torch.rand(count, shape[0], 1, 1, generator=generator)
    return (F.interpolate(coarse, size=shape[1:], mode="bilinear") * contrast).to(torch.uint8)


def settled(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    """Give BatchNorms the statistics of the images and gains of their own; leave in evaluation."""
    torch.manual_seed(5)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # type: ignore[assignment]
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.7)
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        model(to_input(pixels(shape=shape)))
    return model.eval()


def small(name: str) -> nn.Module:
    torch.manual_seed(7)
    return settled(SMALL[name]())


def without_quantizers(model: nn.Module) -> nn.Module:
    """Return a copy whose quantizers let all values through."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, ActQuantProxyFromInjectorBase | WeightQuantProxyFromInjectorBase):
            module.disable_quant = True
        elif isinstance(module, qnn.QuantReLU | qnn.QuantIdentity):
            module.return_quant_tensor = False
            if "limit" in module.act_quant.quant_injector:  # the highest level clips no more
                limit = module.act_quant.quant_injector.limit
                module.register_forward_hook(lambda m, x, y, limit=limit: y.clamp(max=limit))
    return twin


@torch.no_grad()
def scores(model: nn.Module, images: Tensor) -> Tensor:
    return model.eval()(to_input(images))


def likeness(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two networks' scores, each class about its mean."""
    centred = [(s - s.mean(0)).flatten().numpy() for s in (a, b)]
    return float(np.corrcoef(*centred)[0, 1])


# Function


@pytest.mark.parametrize("name", SMALL)
def test_without_quantizers_it_computes_what_the_float_network_computes(name: str) -> None:
    float_model, images = small(name), pixels()
    model = without_quantizers(quantize(float_model, SHAPE, bits=4))
    torch.testing.assert_close(scores(model, images), scores(float_model, images))


@pytest.mark.parametrize("name", SMALL)
def test_at_8_bits_its_scores_are_nearly_the_float_ones(name: str) -> None:
    float_model, images = small(name), pixels()
    model = quantize(float_model, SHAPE, bits=8)
    calibrate(model, images.numpy())
    least = FIRE_ALIKE if name == "fire" else ALIKE
    assert likeness(scores(model, images), scores(float_model, images)) > least


@pytest.mark.parametrize("part", ["layers.0.bn2", "layers.1.downsample.1", "bn1"])
def test_the_likeness_tells_when_a_batch_norm_is_lost(part: str) -> None:
    float_model, images = small("residual"), pixels()
    model = quantize(float_model, SHAPE, bits=8)
    model.set_submodule(part, nn.Identity())
    calibrate(model, images.numpy())
    assert likeness(scores(model, images), scores(float_model, images)) < ALIKE


@pytest.mark.parametrize("name", SMALL)
def test_fewer_bits_make_fewer_levels(name: str) -> None:
    model = quantize(small(name), SHAPE, bits=3)
    calibrate(model, pixels().numpy())
    seen: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        values = output if isinstance(output, Tensor) else output.value
        seen.append(len(values.unique()))

    for module_name, module in model.named_modules():
        if isinstance(module, qnn.QuantReLU) and "classifier" not in module_name:
            module.register_forward_hook(count)
    scores(model, pixels())
    assert seen
    assert max(seen) <= 8


# Names, modes, training


@pytest.mark.parametrize("name", SMALL)
def test_the_float_checkpoint_fits_but_for_activation_scales(name: str) -> None:
    float_model = small(name)
    other = SMALL[name]()
    model = quantize(other, SHAPE)
    result = model.load_state_dict(float_model.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(key.endswith("scaling_impl.value") for key in result.missing_keys)
    for key, value in float_model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize("training", [True, False])
def test_the_argument_stays_as_it_is_and_modes_are_followed(training: bool) -> None:
    float_model = Residual().train(training)
    float_model.bn1.eval()
    before = copy.deepcopy(float_model.state_dict())
    state = torch.get_rng_state()
    model = quantize(float_model, SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    assert float_model.training is model.training is training
    assert not model.get_submodule("bn1").training
    assert model.get_submodule("layers.0.bn2").training is training
    assert model.get_submodule("fc").training is training
    assert isinstance(float_model.fc, nn.Linear)
    for key, value in float_model.state_dict().items():
        assert torch.equal(value, before[key])
    with torch.no_grad():
        next(model.parameters()).fill_(0.0)
    assert torch.equal(float_model.conv1.weight, before["conv1.weight"])


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_trained(name: str) -> None:
    float_model = small(name)
    model = quantize(float_model, SHAPE, bits=4)
    calibrate(model, pixels().numpy())
    criterion = DivQATLoss(float_model, preset="F3", alpha=0.1)
    model.train()
    x = to_input(pixels())
    criterion(model(x), torch.arange(len(x)) % CLASSES, x).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_dropout_in_functional_form_follows_the_mode() -> None:
    model = quantize(Functional(), SHAPE)
    calibrate(model, pixels().numpy())
    x = to_input(pixels())
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_copy_keeps_its_report() -> None:
    model = quantize(Residual(), SHAPE)
    twin = copy.deepcopy(model)
    assert isinstance(twin, QuantizedGraph)
    assert twin.report == model.report


# Quantizers


def test_a_relu_that_is_called_twice_becomes_two_quantizers() -> None:
    model = quantize(Residual(), SHAPE)
    made = [name for name, m in model.named_modules() if isinstance(m, qnn.QuantReLU)]
    assert made == [
        "relu",
        "layers.0.relu",
        "layers.0.relu_1",
        "layers.1.relu",
        "layers.1.relu_1",
    ]


def test_bits_and_edges() -> None:
    model = quantize(Residual(), SHAPE, bits=3, act_bits=4, edge_bits=6, join_bits=5)
    widths = {
        name: int(module.weight_quant.bit_width())
        for name, module in model.named_modules()
        if isinstance(module, qnn.QuantConv2d | qnn.QuantLinear)
    }
    assert widths.pop("conv1") == widths.pop("fc") == 6
    assert set(widths.values()) == {3}
    assert model.get_submodule("relu").act_quant.bit_width() == 4
    joins = [m for m in model.modules() if isinstance(m, qnn.QuantIdentity)]
    assert [int(m.act_quant.bit_width()) for m in joins] == [8, 5, 5]
    fc: Any = model.get_submodule("fc")
    assert fc.quant_weight().scale.numel() == 1
    inner: Any = model.get_submodule("layers.0.conv1")
    assert inner.quant_weight().scale.numel() == 8
    tensor: Any = quantize(Residual(), SHAPE, weight_scale="tensor").get_submodule("layers.0.conv1")
    assert tensor.quant_weight().scale.numel() == 1


def test_rectified_branches_share_an_unsigned_quantizer() -> None:
    model = quantize(Fire(), SHAPE)
    relus = [name for name, m in model.named_modules() if isinstance(m, qnn.QuantReLU)]
    assert relus == ["act", "act_1", "classifier.2"]
    assert sum(node.target == "act_1" for node in model.graph.nodes) == 2
    assert "double-quantizer" not in {f.rule for f in check(model, SHAPE)}


def test_a_chain_of_additions_has_no_double_quantizer() -> None:
    assert "double-quantizer" not in {f.rule for f in check(quantize(Bottleneck(), SHAPE), SHAPE)}


def test_a_first_layer_without_norm_is_no_arithmetic_on_pixels() -> None:
    report = quantize(Dense(), SHAPE, bits=4).report
    assert {c.bits for c in report.changes if c.became.startswith("signed")} == {4}
    assert not any("pixels" in p.why for p in report.problems)


def test_channels_that_are_split_and_joined_again_and_again_take_no_time() -> None:
    model = quantize(torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES))
    assert any(p.layer.startswith("stage4.3.chunk") for p in model.report.problems)


def test_relu6_starts_with_six_as_its_highest_level() -> None:
    model = quantize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(64, 10)))
    with torch.no_grad():
        model.get_submodule("0").weight.mul_(1000)
    calibrate(model, pixels(shape=(3, 4, 4)).numpy())
    assert float(model.get_submodule("1").act_quant.scale()) * 15 == pytest.approx(6.0)


# What FINN builds


@pytest.mark.parametrize("name", BUILDABLE)
def test_nothing_in_it_breaks_finn(name: str) -> None:
    report = quantize(small(name), SHAPE, bits=4).report
    assert report.buildable, report
    assert report.checked


@pytest.mark.parametrize("name", ["sequential", "residual", "bottleneck"])
def test_the_integer_graph_computes_its_scores(name: str, tmp_path: Path) -> None:
    float_model, images = small(name), pixels()
    last = next(reversed([m for m in float_model.modules() if isinstance(m, nn.Linear)]))
    last.bias = None  # integer graphs end in integers
    model = quantize(float_model, SHAPE, bits=4)
    calibrate(model, images.numpy())
    metadata = GraphMetadata(SHAPE, 256.0, tuple(map(str, range(CLASSES))))
    path = export_qonnx(model, tmp_path / "model.onnx", metadata)
    assert [f for f in check_graph(path) if f.severity == "breaks FINN"] == []
    graph = to_integer_graph(path)
    output_scale = GraphMetadata.from_json(
        graph.get_metadata_prop("brevitas_divqat"), "the graph"
    ).output_scale
    expected = scores(model, images).numpy()
    entry, output = graph.graph.input[0].name, graph.graph.output[0].name
    computed = np.concatenate(
        [
            execute_onnx(graph, {entry: image[None].astype(np.float32)})[output]
            for image in images[:8].numpy()
        ]
    )
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(computed * output_scale, expected[:8], atol=0.02)


# Reports


def test_without_an_example_nothing_is_checked() -> None:
    report = quantize(Residual(), bits=4).report
    assert not report.checked
    assert not report.buildable
    assert "not checked" in str(report)
    (problem,) = (p for p in report.problems if p.severity == "breaks FINN")
    assert "example" in problem.remedy


def test_without_an_example_the_network_and_its_names_are_the_same() -> None:
    with_shape, without = quantize(Residual(), SHAPE), quantize(Residual())
    assert with_shape.state_dict().keys() == without.state_dict().keys()
    calibrate(without, pixels().numpy())
    assert scores(without, pixels()).shape == (48, CLASSES)


class Unbuildable(nn.Module):
    """SiLU, a product of two tensors, and channels that are split."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.silu = nn.SiLU()
        self.fc = nn.Linear(4 * 16 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.silu(self.conv(x)).chunk(2, dim=1)
        return self.fc((left * right).flatten(1))


def test_what_cannot_be_built_is_named_and_stays() -> None:
    float_model = Unbuildable()
    model = quantize(float_model, SHAPE)
    layers = {p.layer for p in model.report.problems if p.severity == "breaks FINN"}
    assert {"silu", "chunk", "mul"} <= layers
    assert not model.report.buildable
    assert isinstance(model.get_submodule("silu"), nn.SiLU)
    images = pixels()
    expected = scores(settled(float_model), images)
    torch.testing.assert_close(scores(without_quantizers(model), images), expected)


def test_other_activations_become_relu_on_request() -> None:
    model = quantize(Unbuildable(), SHAPE, replace_activations=True)
    assert isinstance(model.get_submodule("silu"), qnn.QuantReLU)
    assert "silu" not in {p.layer for p in model.report.problems}


def test_normalising_inside_is_reported_with_its_cost() -> None:
    problems = quantize(Normalised(), SHAPE).report.problems
    assert any("255 thresholds" in p.why and p.severity == "costs area" for p in problems)


def test_a_pool_that_cannot_be_built_is_named() -> None:
    model = quantize(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(100, 10)
        ),
        SHAPE,
    )
    (problem,) = (p for p in model.report.problems if p.severity == "breaks FINN")
    assert problem.layer == "2"
    assert not model.report.checked
    assert "14x14 to 5x5" in problem.why


def test_a_head_that_only_training_uses_is_reported() -> None:
    class Aided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 16), nn.Linear(4, CLASSES)
            self.aux = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu().flatten(1)
            return self.fc(x) + self.aux(x) if self.training else self.fc(x)

    model = quantize(Aided().train(), SHAPE)
    assert "aux" in {p.layer for p in model.report.problems}


def test_the_report_says_what_became_what() -> None:
    report = quantize(Residual(), SHAPE).report
    text = str(report)
    assert "conv1: Conv2d -> QuantConv2d, one weight scale per output channel, 8 bits" in text
    assert (
        "input_act: inserted -> QuantIdentity of scale 1/256 for pixels in [0, 1), 8 bits" in text
    )
    assert text.endswith("checked: nothing breaks FINN")
    assert isinstance(report, ConversionReport)
    assert {c.layer for c in report.changes} >= {"conv1", "fc", "layers.0.relu_1"}


# Bad input


class Controlled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branching()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.conv(x))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x) + y


class Noisy(nn.Module):
    """Draws a number in each call, which torch.fx notes once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.rand(1)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "control flow": (Controlled, {}, r"cannot trace inner \("),
    "two inputs": (TwoInputs, {}, r"2 inputs \(x, y\)"),
    "noise": (Noisy, {"example": SHAPE}, "draws random numbers"),
    "itself a layer": (lambda: nn.Conv2d(3, 4, 3), {}, r"itself a Conv2d: give nn.Sequential"),
    "compiled inside": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.ReLU())),
        {},
        "1 is compiled",
    ),
    "number": (Residual, {"example": 5}, r"the example is a int: give a tensor"),
    "NaN": (Residual, {"example": torch.full((1, *SHAPE), math.nan)}, "NaN or infinite"),
    "empty batch": (Residual, {"example": (0, *SHAPE)}, r"shape is \(0, 3, 16, 16\)"),
    "empty images": (Residual, {"example": torch.zeros(1, 3, 0, 16)}, r"shape \(1, 3, 0, 16\)"),
    "truth": (Residual, {"example": (True, 16, 16)}, r"shape is \(True, 16, 16\)"),
    "several results": (Listed, {}, "returns a"),
    "nothing to quantize": (nn.ReLU, {}, "no nn.Conv2d or nn.Linear"),
    "quantized": (lambda: quantize(Residual()), {}, "input_act is quantized already|quantized alr"),
    "double": (lambda: Residual().double(), {}, "conv1.weight is torch.float64"),
    "meta": (lambda: Residual().to("meta"), {}, "meta device"),
    "parallel": (lambda: nn.DataParallel(Residual()), {}, "DataParallel: give model.module"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), {}, "0.weight has no shape yet"),
    "no module": (lambda: torch.relu, {}, "give a torch.nn.Module"),
    "one bit": (Residual, {"bits": 1}, "bits is 1: graph mode makes 2 to 8"),
    "nine bits": (Residual, {"act_bits": 9}, "act_bits is 9"),
    "no bits": (Residual, {"edge_bits": 4.5}, "edge_bits is 4.5: give a whole number"),
    "granularity": (Residual, {"weight_scale": "row"}, "weight_scale is 'row'"),
    "shape": (Residual, {"example": (3, 16)}, "give \\(C, H, W\\)"),
    "channels": (Residual, {"example": (4, 16, 16)}, "fails on an input of shape \\(1, 4, 16, 16"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str) -> None:
    make, options, message = BAD[case]
    with pytest.raises(ConfigError, match=message) as caught:
        quantize(make(), **options)
    assert "\n" not in str(caught.value)


# torchvision


def vgg() -> nn.Module:
    """VGG-11 as it is trained on small images: without the pool to 7x7, a small classifier."""
    model = torchvision.models.vgg11_bn(num_classes=CLASSES)
    model.avgpool = nn.Identity()
    model.classifier = nn.Sequential(
        nn.Linear(512, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, CLASSES)
    )
    return model


TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "vgg11_bn": vgg,
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES),
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=CLASSES),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_are_buildable_and_keep_their_function(name: str) -> None:
    torch.manual_seed(0)
    shape = (3, 32, 32)
    float_model = settled(TORCHVISION[name](), shape)
    model = quantize(float_model, shape, bits=4)
    assert model.report.buildable, model.report
    images = pixels(4, shape)
    expected = scores(float_model, images)
    difference = scores(without_quantizers(model), images) - expected
    assert difference.abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.slow
def test_resnet18_at_8_bits_is_nearly_the_float_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = (3, 64, 64)
    float_model, images = settled(TORCHVISION["resnet18"](), shape), pixels(shape=shape)
    model = quantize(float_model, shape, bits=8)
    calibrate(model, images.numpy())
    assert likeness(scores(model, images), scores(float_model, images)) > 0.85
    metadata = GraphMetadata(shape, 256.0, tuple(map(str, range(CLASSES))))
    path = export_qonnx(model, tmp_path / "model.onnx", metadata)
    assert [f for f in check_graph(path) if f.severity == "breaks FINN"] == []
