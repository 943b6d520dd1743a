# SPDX-License-Identifier: BSD-3-Clause
"""Weight quantizers that FINN turns into RTL.

Signed and narrow (``-(2^(b-1)-1) … 2^(b-1)-1``: the full range would make FINN fall back to HLS on
DSP48 parts), zero-point 0, static floating-point scale. At 1 bit they are the two signs, which FINN
builds through HLS. Names follow Brevitas' grammar, and so do
overrides: ``QuantConv2d(..., weight_quant=Int4WeightPerChannelFloat, weight_bit_width=3)``.
"""

from __future__ import annotations

from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import QuantType, ScalingImplType, StatsOp
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
    "SignedBinaryWeightPerChannelFloat",
    "SignedBinaryWeightPerTensorFloat",
]


class MeanStatsBinary(ExtendedInjector):
    """The sign, times the mean magnitude."""

    quant_type = QuantType.BINARY
    signed = True
    narrow_range = True
    scaling_impl_type = ScalingImplType.STATS
    scaling_stats_op = StatsOp.AVE
    scaling_min_val = 1e-10


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


class SignedBinaryWeightPerTensorFloat(
    MeanStatsBinary, PerTensorFloatScaling8bit, WeightQuantSolver
):
    """1-bit weights, -1 and +1 (the sign; of 0 it is +1), times their mean magnitude.

    That scale is the one of least squares (Rastegari et al., "XNOR-Net", ECCV 2016,
    arXiv:1603.05279, Sec. 3.1). The gradient passes the sign unchanged and also reaches the scale.

    Example:
        >>> from brevitas.nn import QuantLinear
        >>> layer = QuantLinear(4, 2, bias=False, weight_quant=SignedBinaryWeightPerTensorFloat)
        >>> layer.quant_weight().int().abs().unique().tolist()
        [1]
    """

    bit_width = 1


class SignedBinaryWeightPerChannelFloat(
    MeanStatsBinary, PerChannelFloatScaling8bit, WeightQuantSolver
):
    """1-bit weights, -1 and +1, times the mean magnitude of their output channel."""

    bit_width = 1
