# SPDX-License-Identifier: BSD-3-Clause
"""Extraction attacks: a query strategy each, all against the victim's protocol alone."""

from __future__ import annotations

from brevitas_divqat.attacks.activethief import (
    ActiveThiefDeepFool,
    ActiveThiefDeepFoolKCenter,
    ActiveThiefKCenter,
    ActiveThiefUncertainty,
)
from brevitas_divqat.attacks.answers import Labels
from brevitas_divqat.attacks.base import Attack, CurvePoint, Extraction, QueryStrategy
from brevitas_divqat.attacks.config import AttackConfig
from brevitas_divqat.attacks.copycat import CopycatCNN
from brevitas_divqat.attacks.dfme import DFME
from brevitas_divqat.attacks.dfms import DFMSHL
from brevitas_divqat.attacks.jacobian import JBDA, JBTR, JBTopK
from brevitas_divqat.attacks.knockoff import KnockoffNets, Policy
from brevitas_divqat.attacks.maze import MAZE
from brevitas_divqat.attacks.random_images import RandomNoise, SyntheticImages
from brevitas_divqat.attacks.registry import ATTACKS, AttackName
from brevitas_divqat.attacks.ripper import BlackBoxRipper
from brevitas_divqat.attacks.thief import Resources, ThiefConfig
from brevitas_divqat.attacks.trainings import Training
from brevitas_divqat.attacks.transcript import Transcript, read_transcript

__all__ = [
    "ATTACKS",
    "DFME",
    "DFMSHL",
    "JBDA",
    "JBTR",
    "MAZE",
    "ActiveThiefDeepFool",
    "ActiveThiefDeepFoolKCenter",
    "ActiveThiefKCenter",
    "ActiveThiefUncertainty",
    "Attack",
    "AttackConfig",
    "AttackName",
    "BlackBoxRipper",
    "CopycatCNN",
    "CurvePoint",
    "Extraction",
    "JBTopK",
    "KnockoffNets",
    "Labels",
    "Policy",
    "QueryStrategy",
    "RandomNoise",
    "Resources",
    "SyntheticImages",
    "ThiefConfig",
    "Training",
    "Transcript",
    "read_transcript",
]
