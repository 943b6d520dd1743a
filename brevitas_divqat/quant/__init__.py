# SPDX-License-Identifier: BSD-3-Clause
"""Quantizers (Brevitas injectors) whose layers FINN can build without HLS."""

from __future__ import annotations

from brevitas_divqat.quant.activations import (
    INPUT_SCALE,
    Int8ActPerTensorFloat,
    SignedBinaryActPerTensorConst,
    Uint2ActPerTensorFloat,
    Uint3ActPerTensorFloat,
    Uint4ActPerTensorFloat,
    Uint8ActPerTensorFloat,
    Uint8ClippedActPerTensorFloat,
    Uint8InputPerTensorConst,
)
from brevitas_divqat.quant.weights import (
    Int2WeightPerChannelFloat,
    Int2WeightPerTensorFloat,
    Int3WeightPerChannelFloat,
    Int3WeightPerTensorFloat,
    Int4WeightPerChannelFloat,
    Int4WeightPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    SignedBinaryWeightPerChannelFloat,
    SignedBinaryWeightPerTensorFloat,
)

__all__ = [
    "INPUT_SCALE",
    "Int2WeightPerChannelFloat",
    "Int2WeightPerTensorFloat",
    "Int3WeightPerChannelFloat",
    "Int3WeightPerTensorFloat",
    "Int4WeightPerChannelFloat",
    "Int4WeightPerTensorFloat",
    "Int8ActPerTensorFloat",
    "Int8WeightPerChannelFloat",
    "Int8WeightPerTensorFloat",
    "SignedBinaryActPerTensorConst",
    "SignedBinaryWeightPerChannelFloat",
    "SignedBinaryWeightPerTensorFloat",
    "Uint2ActPerTensorFloat",
    "Uint3ActPerTensorFloat",
    "Uint4ActPerTensorFloat",
    "Uint8ActPerTensorFloat",
    "Uint8ClippedActPerTensorFloat",
    "Uint8InputPerTensorConst",
]
