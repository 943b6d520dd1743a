# SPDX-License-Identifier: BSD-3-Clause
"""Extraction attacks: one file each, all against the victim's protocol alone."""

from __future__ import annotations

from brevitas_divqat.attacks.base import (
    AttackConfig,
    Extraction,
    Labels,
    Policy,
    Transcript,
    training_targets,
)
from brevitas_divqat.attacks.knockoff import KnockoffNets

__all__ = [
    "AttackConfig",
    "Extraction",
    "KnockoffNets",
    "Labels",
    "Policy",
    "Transcript",
    "training_targets",
]
