# SPDX-License-Identifier: BSD-3-Clause
"""Activation quantizers that only converted networks need.

Networks that are designed for hardware have a ReLU wherever integers are needed. A converted one
also has linear bottlenecks and residual branches, whose values have either sign, and ReLU6.
"""

from __future__ import annotations

import torch
from brevitas.core.stats import AbsPercentile
from brevitas.quant.base import (
    IntQuant,
    ParamFromRuntimePercentileScaling,
    PerTensorFloatScaling8bit,
)
from brevitas.quant.solver import ActQuantSolver
from torch import Tensor, nn

from brevitas_divqat.quant import Uint8ActPerTensorFloat

__all__ = ["ClippedPercentile", "Int8ActPerTensorFloat", "Uint8ClippedActPerTensorFloat"]


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


class Int8ActPerTensorFloat(
    IntQuant, ParamFromRuntimePercentileScaling, PerTensorFloatScaling8bit, ActQuantSolver
):
    """8-bit signed activations, -128 … 127, one learned scale that starts from a percentile.

    Brevitas' quantizer of that name starts from the 99.999th percentile; this one from the 99.9th,
    like ``quant.Uint8ActPerTensorFloat`` and for its reason.

    Example:
        >>> from brevitas.nn import QuantIdentity
        >>> branch = QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=4)
        >>> branch.act_quant.bit_width().item()
        4.0
    """

    high_percentile_q = 99.9


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
