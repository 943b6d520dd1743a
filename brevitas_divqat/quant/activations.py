# SPDX-License-Identifier: BSD-3-Clause
"""Activation quantizers that FINN turns into RTL.

Unsigned over the full range (``0 … 2^b-1``, what follows a ReLU) or signed over it (what needs no
ReLU), zero-point 0, one static scale per tensor: FINN rejects per-channel activation scales. At 1
bit they are signs instead of 0 and 1: FINN multiplies -1 and +1, and refuses single bits of any
other meaning. Names follow Brevitas' grammar.
"""

from __future__ import annotations

import torch
from brevitas.core.stats import AbsPercentile
from brevitas.inject.enum import RestrictValueType, ScalingImplType, ScalingPerOutputType
from brevitas.quant.base import (
    IntQuant,
    ParamFromRuntimePercentileScaling,
    PerTensorFloatScaling8bit,
    UintQuant,
)
from brevitas.quant.binary import SignedBinaryActPerTensorConst as BrevitasSignedBinary
from brevitas.quant.solver import ActQuantSolver
from torch import Tensor, nn

__all__ = [
    "INPUT_SCALE",
    "ClippedPercentile",
    "Int8ActPerTensorFloat",
    "SignedBinaryActPerTensorConst",
    "Uint2ActPerTensorFloat",
    "Uint3ActPerTensorFloat",
    "Uint4ActPerTensorFloat",
    "Uint8ActPerTensorFloat",
    "Uint8ClippedActPerTensorFloat",
    "Uint8InputPerTensorConst",
]

INPUT_SCALE = 1 / 256
"""Value of one step of an 8-bit pixel at the network's input: a power of two, so that pixels pass
the input quantizer unchanged and FINN needs no comparator there."""


class Uint8ActPerTensorFloat(
    UintQuant, ParamFromRuntimePercentileScaling, PerTensorFloatScaling8bit, ActQuantSolver
):
    """8-bit activations, 0 … 255, one learned scale that starts from a percentile.

    The start is the 99.9th percentile of the calibration images rather than Brevitas' 99.999th:
    with 16 levels or fewer, one outlier in a thousand is cheaper clipped than represented.

    Example:
        >>> from brevitas.nn import QuantReLU
        >>> relu = QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=4)
        >>> relu.act_quant.bit_width().item()
        4.0
    """

    high_percentile_q = 99.9


class Uint4ActPerTensorFloat(Uint8ActPerTensorFloat):
    """4-bit activations, 0 … 15, one learned scale per tensor."""

    bit_width = 4


class Uint3ActPerTensorFloat(Uint8ActPerTensorFloat):
    """3-bit activations, 0 … 7, one learned scale per tensor."""

    bit_width = 3


class Uint2ActPerTensorFloat(Uint8ActPerTensorFloat):
    """2-bit activations, 0 … 3, one learned scale per tensor."""

    bit_width = 2


class Int8ActPerTensorFloat(
    IntQuant, ParamFromRuntimePercentileScaling, PerTensorFloatScaling8bit, ActQuantSolver
):
    """8-bit signed activations, -128 … 127, one learned scale that starts from a percentile.

    For linear bottlenecks and residual branches, whose values have either sign. The start is the
    99.9th percentile, as in ``Uint8ActPerTensorFloat`` and for its reason.

    Example:
        >>> from brevitas.nn import QuantIdentity
        >>> branch = QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=4)
        >>> branch.act_quant.bit_width().item()
        4.0
    """

    high_percentile_q = 99.9


class ClippedPercentile(nn.Module):
    """A percentile of absolute values, at most some limit.

    Args:
        high_percentile_q: percent, 0 to 100.
        limit: the greatest value that it returns.
    """

    def __init__(self, high_percentile_q: float, limit: float) -> None:
        super().__init__()
        self._percentile = AbsPercentile(high_percentile_q, None)
        self._limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """Map values of any shape to a scalar."""
        return torch.clamp(self._percentile(x), max=self._limit)


class Uint8ClippedActPerTensorFloat(Uint8ActPerTensorFloat):
    """8-bit activations, 0 … 255, whose scale starts so that no level lies above ``limit``.

    It stands for ReLU6 and its kin: the highest level does the clipping, and FINN sees a ReLU.

    Example:
        >>> from brevitas.nn import QuantReLU
        >>> relu6 = QuantReLU(act_quant=Uint8ClippedActPerTensorFloat, bit_width=4, limit=6.0)
        >>> round(relu6(torch.full((1000,), 9.0)).max().item(), 4)
        6.0
    """

    scaling_stats_impl = ClippedPercentile
    limit = 6.0


class Uint8InputPerTensorConst(UintQuant, ActQuantSolver):
    """8-bit pixels, 0 … 255, at the constant scale ``INPUT_SCALE`` = 1/256.

    Example:
        >>> import torch
        >>> from brevitas.nn import QuantIdentity
        >>> pixels = torch.tensor([0.0, 1 / 256, 255 / 256])
        >>> torch.equal(QuantIdentity(act_quant=Uint8InputPerTensorConst)(pixels), pixels)
        True
    """

    bit_width = 8
    scaling_impl_type = ScalingImplType.CONST
    scaling_init = 255 * INPUT_SCALE  # Brevitas gives the scale as the value of the highest level
    restrict_scaling_type = RestrictValueType.FP
    scaling_per_output_type = ScalingPerOutputType.TENSOR


class SignedBinaryActPerTensorConst(BrevitasSignedBinary):
    """1-bit activations: -1 below 0, +1 from 0 on, at the scale 1, as FINN requires.

    The gradient passes between -1 and +1. Unlike ``QuantReLU``'s, these activations need no ReLU
    before them and cannot be padded: no level is 0.

    Example:
        >>> import torch
        >>> from brevitas.nn import QuantIdentity
        >>> sign = QuantIdentity(act_quant=SignedBinaryActPerTensorConst)
        >>> sign(torch.tensor([-3.0, -0.1, 0.0, 0.1])).tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """
