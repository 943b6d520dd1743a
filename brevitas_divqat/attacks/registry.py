# SPDX-License-Identifier: BSD-3-Clause
"""Attacks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from brevitas_divqat.attacks.activethief import (
    ActiveThiefDeepFool,
    ActiveThiefDeepFoolKCenter,
    ActiveThiefKCenter,
    ActiveThiefUncertainty,
)
from brevitas_divqat.attacks.base import QueryStrategy
from brevitas_divqat.attacks.copycat import CopycatCNN
from brevitas_divqat.attacks.dfme import DFME
from brevitas_divqat.attacks.dfms import DFMSHL
from brevitas_divqat.attacks.jacobian import JBDA, JBTR, JBTopK
from brevitas_divqat.attacks.knockoff import KnockoffNets
from brevitas_divqat.attacks.maze import MAZE
from brevitas_divqat.attacks.random_images import RandomNoise, SyntheticImages
from brevitas_divqat.attacks.ripper import BlackBoxRipper

__all__ = ["ATTACKS", "AttackName"]

AttackName = Literal[
    "knockoff",
    "copycat",
    "activethief-uncertainty",
    "activethief-k-center",
    "activethief-deepfool",
    "activethief-deepfool-k-center",
    "jbda",
    "jb-topk",
    "jbtr",
    "dfme",
    "maze",
    "dfms-hl",
    "ripper",
    "noise",
    "synthetic",
]

ATTACKS: Mapping[AttackName, Callable[[], QueryStrategy]] = {
    "knockoff": KnockoffNets,
    "copycat": CopycatCNN,
    "activethief-uncertainty": ActiveThiefUncertainty,
    "activethief-k-center": ActiveThiefKCenter,
    "activethief-deepfool": ActiveThiefDeepFool,
    "activethief-deepfool-k-center": ActiveThiefDeepFoolKCenter,
    "jbda": JBDA,
    "jb-topk": JBTopK,
    "jbtr": JBTR,
    "dfme": DFME,
    "maze": MAZE,
    "dfms-hl": DFMSHL,
    "ripper": BlackBoxRipper,
    "noise": RandomNoise,
    "synthetic": SyntheticImages,
}
"""Each attack's query strategy, with its paper's parameters."""
