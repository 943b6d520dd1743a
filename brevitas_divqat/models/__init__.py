# SPDX-License-Identifier: BSD-3-Clause
"""Networks that reach hardware, each defined once for full precision and every bit width."""

from __future__ import annotations

from brevitas_divqat.models.cnv import CNV
from brevitas_divqat.models.fully_connected import FullyConnected
from brevitas_divqat.models.layers import FloatLayers, Layers, Precision, QuantLayers
from brevitas_divqat.models.lenet import LeNet5
from brevitas_divqat.models.mobilenet import MobileNetV1Tiny
from brevitas_divqat.models.registry import (
    LEAST_BITS,
    MODELS,
    LeastBits,
    ModelConfig,
    build,
    register_model,
)
from brevitas_divqat.models.resnet import ResNet
from brevitas_divqat.models.vgg import VGGSmall
from brevitas_divqat.models.weights import LoadReport, load_float_weights

__all__ = [
    "CNV",
    "LEAST_BITS",
    "MODELS",
    "FloatLayers",
    "FullyConnected",
    "Layers",
    "LeNet5",
    "LeastBits",
    "LoadReport",
    "MobileNetV1Tiny",
    "ModelConfig",
    "Precision",
    "QuantLayers",
    "ResNet",
    "VGGSmall",
    "build",
    "load_float_weights",
    "register_model",
]
