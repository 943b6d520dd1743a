# SPDX-License-Identifier: BSD-3-Clause
"""The DivQAT loss: a functional core and a module that keeps the full-precision original."""

from __future__ import annotations

from brevitas_divqat.loss.config import OF_PRESET, PRESETS, LossConfig, Preset
from brevitas_divqat.loss.divqat import DivQATLoss, LossReport
from brevitas_divqat.loss.functional import (
    Direction,
    LossTerms,
    Weighting,
    divergence,
    divqat_loss,
    per_sample_divergence,
)
from brevitas_divqat.loss.outliers import OutlierKind, Outliers, outliers_like

__all__ = [
    "OF_PRESET",
    "PRESETS",
    "Direction",
    "DivQATLoss",
    "LossConfig",
    "LossReport",
    "LossTerms",
    "OutlierKind",
    "Outliers",
    "Preset",
    "Weighting",
    "divergence",
    "divqat_loss",
    "outliers_like",
    "per_sample_divergence",
]
