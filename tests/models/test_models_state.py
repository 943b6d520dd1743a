# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints are those of plain Brevitas: same keys, same shapes, loadable both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn

from brevitas_divqat.models import Precision, build
from brevitas_divqat.training import calibrate


class PlainBrevitas(nn.Module):
    """A LeNet-5 for 8x8 images of half the width, of nothing but Brevitas' own parts."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        weight_quant = {
            "channel": Int8WeightPerChannelFloat,
            "tensor": Int8WeightPerTensorFloat,
        }[precision.weight_scale]

        def options(bits: int) -> dict[str, Any]:
            return {"bias": False, "weight_quant": weight_quant, "weight_bit_width": bits}

        def relu() -> QuantReLU:
            return QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=precision.activation)

        self.features = nn.Sequential(
            QuantIdentity(
                act_quant=Uint8ActPerTensorFloat,
                scaling_impl_type="const",
                scaling_init=255 / 256,
            ),
            QuantConv2d(1, 3, 5, padding=2, **options(precision.edge)),
            nn.BatchNorm2d(3),
            relu(),
            nn.MaxPool2d(2),
            QuantConv2d(3, 8, 5, padding=2, **options(precision.weight)),
            nn.BatchNorm2d(8),
            relu(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            QuantLinear(32, 60, **options(precision.weight)),
            nn.BatchNorm1d(60),
            relu(),
            QuantLinear(60, 42, **options(precision.weight)),
            nn.BatchNorm1d(42),
            relu(),
            QuantLinear(
                42, 10, **(options(precision.edge) | {"weight_quant": Int8WeightPerTensorFloat})
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def ours(precision: Precision) -> nn.Module:
    return build("lenet5", (1, 8, 8), 10, precision=precision, width=0.5)


DIRECTIONS = {
    "from plain Brevitas": (PlainBrevitas, ours),
    "to plain Brevitas": (ours, PlainBrevitas),
}
PRECISIONS = [Precision(), Precision(2, 3, 5, "tensor")]
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)


def show(precision: Precision) -> str:
    return f"W{precision.weight}A{precision.activation}E{precision.edge}-{precision.weight_scale}"


def calibrated(
    make: Callable[[Precision], nn.Module], precision: Precision, seed: int
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(precision)
        calibrate(model, IMAGES)
        model.train()(torch.rand(16, 1, 8, 8))  # gives BatchNorm statistics to carry over
    return model.eval()


@pytest.mark.parametrize("precision", PRECISIONS, ids=show)
def test_keys_and_shapes_are_those_of_plain_brevitas(precision: Precision) -> None:
    plain = calibrated(PlainBrevitas, precision, 0).state_dict()
    found = calibrated(ours, precision, 0).state_dict()
    assert list(found) == list(plain)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in plain.items()
    }


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("precision", PRECISIONS, ids=show)
def test_checkpoint_loads_and_computes_the_same(precision: Precision, direction: str) -> None:
    make_source, make_target = DIRECTIONS[direction]
    source = calibrated(make_source, precision, 1)
    target = make_target(precision)
    target.load_state_dict(source.state_dict())
    inputs = torch.from_numpy(IMAGES).float() / 256
    with torch.no_grad():
        expected, found = source(inputs), target.eval()(inputs)
    assert torch.equal(found, expected)
    assert expected.std() > 0
