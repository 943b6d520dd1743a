# SPDX-License-Identifier: BSD-3-Clause
"""Weight quantizers that FINN turns into RTL.

Signed and narrow (``-(2^(b-1)-1) … 2^(b-1)-1``: the full range would make FINN fall back to HLS on
DSP48 parts), zero-point 0, static floating-point scale. Names follow Brevitas' grammar, and so do
overrides: ``QuantConv2d(..., weight_quant=Int4WeightPerChannelFloat, weight_bit_width=3)``.
"""

from __future__ import annotations

from brevitas.quant.base import (
    MaxStatsScaling,
    NarrowIntQuant,
    PerChannelFloatScaling8bit,
    PerTensorFloatScaling8bit,
)
from brevitas.quant.solver import WeightQuantSolver

__all__ = [
    "Int2WeightPerChannelFloat",
    "Int2WeightPerTensorFloat",
    "Int3WeightPerChannelFloat",
    "Int3WeightPerTensorFloat",
    "Int4WeightPerChannelFloat",
    "Int4WeightPerTensorFloat",
    "Int8WeightPerChannelFloat",
    "Int8WeightPerTensorFloat",
]


class Int8WeightPerTensorFloat(
    NarrowIntQuant, MaxStatsScaling, PerTensorFloatScaling8bit, WeightQuantSolver
):
    """8-bit weights, -127 … 127, one scale per tensor, from the backpropagated maximum.

    Example:
        >>> from brevitas.nn import QuantLinear
        >>> layer = QuantLinear(4, 2, bias=False, weight_quant=Int8WeightPerTensorFloat)
        >>> layer.quant_weight().bit_width.item()
        8.0
    """


class Int4WeightPerTensorFloat(Int8WeightPerTensorFloat):
    """4-bit weights, -7 … 7, one scale per tensor."""

    bit_width = 4


class Int3WeightPerTensorFloat(Int8WeightPerTensorFloat):
    """3-bit weights, -3 … 3, one scale per tensor."""

    bit_width = 3


class Int2WeightPerTensorFloat(Int8WeightPerTensorFloat):
    """2-bit (ternary) weights, -1 … 1, one scale per tensor."""

    bit_width = 2


class Int8WeightPerChannelFloat(
    NarrowIntQuant, MaxStatsScaling, PerChannelFloatScaling8bit, WeightQuantSolver
):
    """8-bit weights, -127 … 127, one scale per output channel, from the backpropagated maximum.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> layer = QuantConv2d(3, 6, 5, bias=False, weight_quant=Int8WeightPerChannelFloat)
        >>> tuple(layer.quant_weight().scale.shape)
        (6, 1, 1, 1)
    """


class Int4WeightPerChannelFloat(Int8WeightPerChannelFloat):
    """4-bit weights, -7 … 7, one scale per output channel."""

    bit_width = 4


class Int3WeightPerChannelFloat(Int8WeightPerChannelFloat):
    """3-bit weights, -3 … 3, one scale per output channel."""

    bit_width = 3


class Int2WeightPerChannelFloat(Int8WeightPerChannelFloat):
    """2-bit (ternary) weights, -1 … 1, one scale per output channel."""

    bit_width = 2
