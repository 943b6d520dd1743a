# SPDX-License-Identifier: BSD-3-Clause
"""The QAT loop: full precision, calibration, quantized training, checkpoints, resumption."""

from __future__ import annotations

from brevitas_divqat.training.augmentation import augmentation_of
from brevitas_divqat.training.calibration import calibrate, uncalibrated
from brevitas_divqat.training.checkpoint import (
    CheckpointInfo,
    is_finished,
    load_checkpoint,
    save_checkpoint,
)
from brevitas_divqat.training.config import FitConfig, TrainingConfig
from brevitas_divqat.training.fit import (
    Criterion,
    FitResult,
    check_fit,
    check_warmup,
    cross_entropy,
    fit,
    measure_accuracy,
)
from brevitas_divqat.training.outlier_images import (
    check_identity,
    check_outlier_images,
    drawn_from,
)
from brevitas_divqat.training.recipe import (
    Method,
    start_quantized,
    train_float,
    train_quantized,
)
from brevitas_divqat.training.speed import speed_up

__all__ = [
    "CheckpointInfo",
    "Criterion",
    "FitConfig",
    "FitResult",
    "Method",
    "TrainingConfig",
    "augmentation_of",
    "calibrate",
    "check_fit",
    "check_identity",
    "check_outlier_images",
    "check_warmup",
    "cross_entropy",
    "drawn_from",
    "fit",
    "is_finished",
    "load_checkpoint",
    "measure_accuracy",
    "save_checkpoint",
    "speed_up",
    "start_quantized",
    "train_float",
    "train_quantized",
    "uncalibrated",
]
