# SPDX-License-Identifier: BSD-3-Clause
"""Weights are signed, narrow, of zero-point 0 and of the granularity that the name promises."""

from __future__ import annotations

import pytest
import torch
from brevitas.nn import QuantConv2d, QuantLinear
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brevitas_divqat import quant

LAW = settings(deadline=None, max_examples=25, database=None)
QUANTIZERS = [
    pytest.param(
        getattr(quant, f"Int{bits}WeightPer{scale}Float"), bits, scale, id=f"{bits}-bit-{scale}"
    )
    for bits in (2, 3, 4, 8)
    for scale in ("Channel", "Tensor")
]
LAYERS = ["conv", "linear"]


def make_layer(kind: str, weight_quant: type, seed: int = 0, **options: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "conv":
            return QuantConv2d(3, 5, 3, bias=False, weight_quant=weight_quant, **options)
        return QuantLinear(7, 4, bias=False, weight_quant=weight_quant, **options)


def narrow_limit(bits: int) -> int:
    return 2 ** (bits - 1) - 1


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("weight_quant", "bits", "scale"), QUANTIZERS)
def test_integers_fill_the_narrow_signed_range(
    weight_quant: type, bits: int, scale: str, kind: str
) -> None:
    integers = make_layer(kind, weight_quant).quant_weight().int(float_datatype=False)
    # The scale comes from the largest weight, which therefore takes the last level.
    assert integers.abs().max() == narrow_limit(bits)
    if scale == "Channel":
        assert (integers.flatten(1).abs().amax(dim=1) == narrow_limit(bits)).all()


@LAW
@given(
    case=st.sampled_from(QUANTIZERS),
    seed=st.integers(0, 2**16),
    magnitude=st.floats(1e-6, 1e6),
    skew=st.floats(-5, 5),
)
def test_integers_never_leave_the_narrow_range(
    case: object, seed: int, magnitude: float, skew: float
) -> None:
    weight_quant, bits, _ = case.values  # type: ignore[attr-defined]
    layer = make_layer("conv", weight_quant, seed)
    with torch.no_grad():
        layer.weight.add_(skew).mul_(magnitude)
    assert layer.quant_weight().int().abs().max() <= narrow_limit(bits)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("weight_quant", "bits", "scale"), QUANTIZERS)
def test_scale_has_the_shape_that_the_name_promises(
    weight_quant: type, bits: int, scale: str, kind: str
) -> None:
    found = make_layer(kind, weight_quant).quant_weight().scale
    if scale == "Tensor":
        assert found.numel() == 1
    else:
        assert tuple(found.shape) == ((5, 1, 1, 1) if kind == "conv" else (4, 1))
    assert (found > 0).all()


@pytest.mark.parametrize(("weight_quant", "bits", "scale"), QUANTIZERS)
def test_bit_width_sign_and_zero_point(weight_quant: type, bits: int, scale: str) -> None:
    weight = make_layer("conv", weight_quant).quant_weight()
    assert weight.bit_width == bits
    assert weight.signed
    assert (weight.zero_point == 0).all()


@pytest.mark.parametrize(("weight_quant", "bits", "scale"), QUANTIZERS)
def test_value_is_the_integer_times_the_scale(weight_quant: type, bits: int, scale: str) -> None:
    weight = make_layer("linear", weight_quant).quant_weight()
    assert torch.equal(weight.value, weight.int() * weight.scale)


@pytest.mark.parametrize(("weight_quant", "bits", "scale"), QUANTIZERS)
def test_dead_channel_keeps_a_positive_scale(weight_quant: type, bits: int, scale: str) -> None:
    layer = make_layer("conv", weight_quant)
    with torch.no_grad():
        layer.weight[0].zero_()
    weight = layer.quant_weight()
    assert (weight.scale > 0).all()
    assert (weight.value[0] == 0).all()


@pytest.mark.parametrize(("weight_quant", "bits", "scale"), QUANTIZERS)
def test_bit_width_can_be_overridden(weight_quant: type, bits: int, scale: str) -> None:
    weight = make_layer("conv", weight_quant, weight_bit_width=3).quant_weight()
    assert weight.bit_width == 3
    assert weight.int().abs().max() == 3


@pytest.mark.parametrize(("weight_quant", "bits", "scale"), QUANTIZERS)
def test_two_layers_share_no_quantizer(weight_quant: type, bits: int, scale: str) -> None:
    first, second = make_layer("conv", weight_quant), make_layer("conv", weight_quant)
    before = second.quant_weight().scale.clone()
    with torch.no_grad():
        first.weight.mul_(10)
    assert not set(first.weight_quant.modules()) & set(second.weight_quant.modules())
    assert torch.equal(second.quant_weight().scale, before)
    assert torch.allclose(first.quant_weight().scale, 10 * before)


@pytest.mark.parametrize(("weight_quant", "bits", "scale"), QUANTIZERS)
def test_weight_quantizer_adds_nothing_to_the_state(
    weight_quant: type, bits: int, scale: str
) -> None:
    assert list(make_layer("conv", weight_quant).state_dict()) == ["weight"]


# --- 1 bit -------------------------------------------------------------------------------------

BINARY = [
    pytest.param(getattr(quant, f"SignedBinaryWeightPer{scale}Float"), scale, id=scale)
    for scale in ("Channel", "Tensor")
]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("weight_quant", "scale"), BINARY)
def test_binary_weights_are_signs_times_their_mean_magnitude(
    weight_quant: type, scale: str, kind: str
) -> None:
    layer = make_layer(kind, weight_quant)
    with torch.no_grad():
        layer.weight[1, 0].zero_()  # whose sign is +1
    weight = layer.quant_weight()
    assert torch.equal(weight.int(), torch.where(layer.weight >= 0, 1.0, -1.0))
    assert torch.equal(weight.value, weight.int() * weight.scale)
    rows = layer.weight.abs().flatten(1)
    means = rows.mean(1) if scale == "Channel" else rows.mean().reshape(1)
    torch.testing.assert_close(weight.scale.flatten(), means)
    assert (weight.bit_width, bool(weight.signed)) == (1, True)
    assert "".join(layer.state_dict()) == "weight"


@pytest.mark.parametrize(("weight_quant", "scale"), BINARY)
def test_dead_binary_channel_keeps_a_positive_scale(weight_quant: type, scale: str) -> None:
    layer = make_layer("conv", weight_quant)
    with torch.no_grad():
        layer.weight[0].zero_()
    weight = layer.quant_weight()
    assert (weight.scale > 0).all()
    assert weight.value.isfinite().all()


@pytest.mark.parametrize(("weight_quant", "scale"), BINARY)
def test_every_binary_weight_gets_a_gradient(weight_quant: type, scale: str) -> None:
    layer = make_layer("linear", weight_quant)
    with torch.no_grad():
        layer.weight.mul_(5)  # far beyond -1 and 1
    layer.quant_weight().value.square().sum().backward()
    assert (layer.weight.grad != 0).all()
