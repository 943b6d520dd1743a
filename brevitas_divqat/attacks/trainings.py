# SPDX-License-Identifier: BSD-3-Clause
"""How a surrogate learns from the thief's targets: one function per training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.attacks.answers import Labels
from brevitas_divqat.attacks.anti_nasty import train_against_nasty
from brevitas_divqat.attacks.consistency import train_with_consistency
from brevitas_divqat.attacks.features import History
from brevitas_divqat.attacks.rotation import check_rotation, train_with_rotation
from brevitas_divqat.attacks.skeptical import train_skeptically
from brevitas_divqat.attacks.smoothing import train_aware_of_smoothing
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.training import FitConfig, cross_entropy, fit
from brevitas_divqat.victims import QueryInterface

if TYPE_CHECKING:
    from brevitas_divqat.attacks.thief import Thief

__all__ = ["TRAININGS", "Training", "check_training"]

Training = Literal["plain", "smoothing-aware", "rotation", "consistency", "anti-nasty", "skeptical"]

NEED_SOFT: frozenset[Training] = frozenset({"smoothing-aware", "anti-nasty", "skeptical"})
"""Trainings that are about what an answer tells of the classes that it does not rank first."""

USE_POOL: frozenset[Training] = frozenset({"consistency"})
"""Trainings that take unlabelled images from a pool, where there is one."""


def check_training(
    training: Training, labels: Labels, victim: QueryInterface, *, copies: int
) -> None:
    """Check, before the first query, that surrogates can learn in this way.

    Args:
        training: how they are to learn.
        labels: what is made of an answer.
        victim: of which only the facts are used.
        copies: queries about each image; the mean of several answers is soft.

    Raises:
        ConfigError: if the labels or the interface show too little, or the images do not fit.
    """
    if training in NEED_SOFT:
        interface = victim.interface
        first_alone = interface.interface == "label" or interface.top_k == 1
        if labels == "hard" or (first_alone and copies == 1):
            what = "labels 'hard' keep" if labels == "hard" else "the interface shows"
            raise ConfigError(
                f"training {training!r} learns from more than the first class, but {what} nothing "
                "else: choose training 'plain', 'rotation' or 'consistency'"
            )
    if training == "rotation":
        check_rotation(victim.image_shape)


def _plain(
    model: nn.Module,
    images: NDArray[np.uint8],
    targets: NDArray[Any],
    *,
    config: FitConfig,
    seed: int,
    thief: Thief,
    name: str,
) -> History:
    """Minimise the cross-entropy -sum_k y_k log s_k to the targets y."""
    return fit(
        model,
        cross_entropy,
        images,
        targets,
        config=config,
        seed=seed,
        progress=thief.progress,
        name=name,
    ).history


TRAININGS: Mapping[Training, Callable[..., History]] = {
    "plain": _plain,
    "smoothing-aware": train_aware_of_smoothing,
    "rotation": train_with_rotation,
    "consistency": train_with_consistency,
    "anti-nasty": train_against_nasty,
    "skeptical": train_skeptically,
}
"""(model, images, targets, *, config, seed, thief, name) to one record per epoch; the model is
trained in place and left on the CPU in evaluation mode."""
