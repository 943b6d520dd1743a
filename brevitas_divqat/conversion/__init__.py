# SPDX-License-Identifier: BSD-3-Clause
"""From a full-precision network to a quantized one, by its torch.fx graph."""

from __future__ import annotations

from brevitas_divqat.conversion.graph_mode import QuantizedGraph, quantize
from brevitas_divqat.conversion.report import Change, ConversionReport, Problem

__all__ = [
    "Change",
    "ConversionReport",
    "Problem",
    "QuantizedGraph",
    "quantize",
]
