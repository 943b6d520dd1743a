# SPDX-License-Identifier: BSD-3-Clause
"""CNN families that reach hardware, each defined once for full precision and every bit width."""

from __future__ import annotations

from brevitas_divqat.models.cnv import CNV
from brevitas_divqat.models.layers import FloatLayers, Layers, Precision, QuantLayers
from brevitas_divqat.models.lenet import LeNet5
from brevitas_divqat.models.registry import MODELS, ModelConfig, build, register_model

__all__ = [
    "CNV",
    "MODELS",
    "FloatLayers",
    "Layers",
    "LeNet5",
    "ModelConfig",
    "Precision",
    "QuantLayers",
    "build",
    "register_model",
]
