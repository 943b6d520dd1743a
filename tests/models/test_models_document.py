# SPDX-License-Identifier: BSD-3-Clause
"""The table of docs/models.md is that of the networks as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from brevitas_divqat.export import check
from brevitas_divqat.models import LEAST_BITS, MODELS, Precision, build

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
THIN = 0.25
"""Width of a network that stands for a wide one: two channels or more in each layer, where one
would be a depthwise convolution."""
NUMBER = r"([\d,.]+)"
ROW = re.compile(
    rf"^\| `(\w+)` \| (\d+)x(\d+)x(\d+) \| {NUMBER} \| {NUMBER} \| {NUMBER} \| (.+) \|$",
    re.MULTILINE,
)
BITS = re.compile(r"^\| `(\w+)` \| (W\d) \| (A\d) \|", re.MULTILINE)


class Row(NamedTuple):
    """One row of the table."""

    name: str
    image_shape: tuple[int, int, int]
    parameters: str
    macs: str
    weight_kib: str
    all_rtl: str


def documented() -> list[Row]:
    return [
        Row(name, (int(channels), int(height), int(across)), *others)
        for name, height, across, channels, *others in ROW.findall(DOCUMENT.read_text())
    ]


def computed(name: str, image_shape: tuple[int, int, int]) -> Row:
    with torch.device("meta"):  # shapes without numbers
        model = build(name, image_shape, 10, precision=None).eval()
    macs = 0

    def count(layer: nn.Conv2d | nn.Linear, _: tuple[Tensor], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * layer.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(count)
    model(torch.zeros(1, *image_shape, device="meta"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Row(
        name,
        image_shape,
        f"{parameters:,}",
        f"{macs / 1e6:,.2f}",
        f"{weight_bits(name, image_shape) / 8 / 1024:,.1f}",
        all_rtl(name, image_shape),
    )


def weight_bits(name: str, image_shape: tuple[int, int, int]) -> int:
    """Count the bits of all weights; the widths are those of a thin network of the same layers."""
    thin = build(name, image_shape, 10, precision=Precision(), width=THIN)
    widths = [int(m.quant_weight().bit_width) for m in thin.modules() if hasattr(m, "quant_weight")]
    with torch.device("meta"):
        model = build(name, image_shape, 10, precision=None)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    pairs = zip(layers, widths, strict=True)
    return sum(layer.weight.numel() * bits for layer, bits in pairs)


def all_rtl(name: str, image_shape: tuple[int, int, int]) -> str:
    model = build(name, image_shape, 10, precision=Precision(), width=THIN)
    findings = check(model, image_shape)
    assert not [f for f in findings if f.severity == "breaks FINN"]
    rules = sorted({f.rule for f in findings if f.severity == "falls back to HLS"})
    return f"no: {', '.join(f'`{rule}`' for rule in rules)}" if rules else "yes"


@pytest.mark.parametrize("row", documented(), ids=lambda row: f"{row.name}-{row.image_shape}")
def test_row_is_that_of_the_network(row: Row) -> None:
    assert row == computed(row.name, row.image_shape)


def test_every_network_has_two_rows() -> None:
    names = [row.name for row in documented()]
    assert sorted(names) == sorted([*MODELS] * 2)


def test_fewest_bits_are_those_of_the_registry() -> None:
    found = {name: (weight, act) for name, weight, act in BITS.findall(DOCUMENT.read_text())}
    expected = {name: (f"W{b.weight}", f"A{b.activation}") for name, b in LEAST_BITS.items()}
    assert found == expected
