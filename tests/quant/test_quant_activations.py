# SPDX-License-Identifier: BSD-3-Clause
"""Activations are unsigned over the full range with one scale; pixels pass unchanged."""

from __future__ import annotations

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantReLU
from torch import Tensor

from brevitas_divqat import quant

QUANTIZERS = [
    pytest.param(getattr(quant, f"Uint{bits}ActPerTensorFloat"), bits, id=f"{bits}-bit")
    for bits in (2, 3, 4, 8)
]


@pytest.fixture
def activations() -> Tensor:
    """(8, 5, 4, 4), of both signs and with a different range in each channel."""
    values = torch.randn(8, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    return values * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])[None, :, None, None]


def calibrated_relu(act_quant: type, values: Tensor, **options: int) -> QuantReLU:
    relu = QuantReLU(act_quant=act_quant, return_quant_tensor=True, **options)
    relu.train()(values)
    return relu.eval()


@pytest.mark.parametrize(("act_quant", "bits"), QUANTIZERS)
def test_levels_are_unsigned_and_not_narrow(
    act_quant: type, bits: int, activations: Tensor
) -> None:
    output = calibrated_relu(act_quant, activations)(10 * activations)
    integers = output.int(float_datatype=False)
    assert not output.signed
    assert integers.min() == 0
    assert integers.max() == 2**bits - 1
    assert output.bit_width == bits


@pytest.mark.parametrize(("act_quant", "bits"), QUANTIZERS)
def test_there_is_one_positive_scale_and_zero_point_0(
    act_quant: type, bits: int, activations: Tensor
) -> None:
    output = calibrated_relu(act_quant, activations)(activations)
    assert output.scale.numel() == 1
    assert output.scale > 0
    assert output.zero_point == 0


@pytest.mark.parametrize(("act_quant", "bits"), QUANTIZERS)
def test_scale_is_the_percentile_over_the_highest_level(
    act_quant: type, bits: int, activations: Tensor
) -> None:
    output = calibrated_relu(act_quant, activations)(activations)
    values = activations.relu().flatten()
    top = values.kthvalue(round(0.999 * len(values))).values
    assert output.scale == top / (2**bits - 1)


@pytest.mark.parametrize(("act_quant", "bits"), QUANTIZERS)
def test_negative_values_become_zero(act_quant: type, bits: int, activations: Tensor) -> None:
    output = calibrated_relu(act_quant, activations)(activations)
    assert (output.value[activations <= 0] == 0).all()


@pytest.mark.parametrize(("act_quant", "bits"), QUANTIZERS)
def test_activations_that_are_all_zero_stay_finite(act_quant: type, bits: int) -> None:
    output = calibrated_relu(act_quant, torch.zeros(4, 3))(torch.zeros(4, 3))
    assert output.scale > 0
    assert (output.value == 0).all()


@pytest.mark.parametrize(("act_quant", "bits"), QUANTIZERS)
def test_bit_width_can_be_overridden(act_quant: type, bits: int, activations: Tensor) -> None:
    output = calibrated_relu(act_quant, activations, bit_width=5)(10 * activations)
    assert output.bit_width == 5
    assert output.int().max() == 31


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_pixel_passes_the_input_quantizer_bit_for_bit(training: bool) -> None:
    pixels = torch.arange(256, dtype=torch.float32) / 256
    layer = QuantIdentity(act_quant=quant.Uint8InputPerTensorConst).train(training)
    assert torch.equal(layer(pixels), pixels)


def test_input_quantizer_is_an_8_bit_constant() -> None:
    layer = QuantIdentity(act_quant=quant.Uint8InputPerTensorConst, return_quant_tensor=True)
    layer.train()(torch.full((2, 2), 100.0))  # not a statistic: the scale stays
    output = layer.eval()(torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0]))
    assert output.scale == quant.INPUT_SCALE == 1 / 256
    assert (output.bit_width, output.zero_point, output.signed) == (8, 0, False)
    assert output.int().tolist() == [0, 0, 128, 255, 255]
    assert list(layer.state_dict()) == []


def test_signs_have_scale_1_and_pass_gradients_between_their_levels() -> None:
    layer = QuantIdentity(act_quant=quant.SignedBinaryActPerTensorConst, return_quant_tensor=True)
    layer.train()(torch.full((2, 2), 100.0))  # not a statistic: the scale stays
    values = torch.tensor([-7.0, -1e-30, -0.0, 0.0, 0.5, 7.0], requires_grad=True)
    output = layer.eval()(values)
    assert output.value.tolist() == [-1, -1, 1, 1, 1, 1]
    assert (output.scale, output.bit_width, output.zero_point) == (1, 1, 0)
    output.value.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0]
    assert list(layer.state_dict()) == []
