# SPDX-License-Identifier: BSD-3-Clause
"""What every extraction attack takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from brevitas_divqat.data import Augmentation
from brevitas_divqat.errors import ConfigError, DataError
from brevitas_divqat.executors import check_images
from brevitas_divqat.models.registry import check_model
from brevitas_divqat.progress import Show
from brevitas_divqat.training import FitConfig
from brevitas_divqat.training.config import Device, Optimizer
from brevitas_divqat.victims import OutputInterface, QueryInterface

__all__ = [
    "AttackConfig",
    "Extraction",
    "Labels",
    "Policy",
    "Transcript",
    "ask",
    "training_targets",
]

Policy = Literal["random", "adaptive"]
Labels = Literal["soft", "hard"]

QUERY_BATCH = 1000


@dataclass(frozen=True)
class AttackConfig:
    """The thief's resources and choices.

    Args:
        policy: KnockoffNets' way to choose images: random or adaptive.
        budget: queries that the thief may ask, 1 or more.
        surrogate: architecture of the surrogate, in full precision: lenet5 or cnv.
        surrogate_width: factor on its numbers of channels and features.
        surrogate_epochs: epochs on the answers.
        surrogate_batch: images per step.
        surrogate_optimizer: adam or sgd.
        surrogate_lr: first learning rate.
        surrogate_decay: L2 penalty.
        surrogate_augment: vary the images, but not the answers, as suits the data set.
        surrogate_device: auto, cpu or cuda.

    Raises:
        ConfigError: if a value is unknown or out of range.
    """

    policy: Policy = "random"
    budget: int = 20_000
    surrogate: str = "lenet5"
    surrogate_width: float = 1.0
    surrogate_epochs: int = 30
    surrogate_batch: int = 64
    surrogate_optimizer: Optimizer = "adam"
    surrogate_lr: float = 2e-3
    surrogate_decay: float = 0.0
    surrogate_augment: bool = True
    surrogate_device: Device = "auto"

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ConfigError(f"policy is {self.policy!r}: choose from {list(get_args(Policy))}")
        if self.budget < 1:
            raise ConfigError(f"the query budget is {self.budget}: it must be 1 or more")
        check_model(self.surrogate, self.surrogate_width)
        self.fit_config("none", self.budget)

    def fit_config(self, augmentation: Augmentation, images: int) -> FitConfig:
        """Return the settings of the surrogate's training on ``images`` answered images."""
        return FitConfig(
            epochs=self.surrogate_epochs,
            batch_size=min(self.surrogate_batch, max(2, images)),
            lr=self.surrogate_lr,
            optimizer=self.surrogate_optimizer,
            weight_decay=self.surrogate_decay,
            augmentation=augmentation if self.surrogate_augment else "none",
            device=self.surrogate_device,
        )


@dataclass(frozen=True, eq=False)
class Transcript:
    """What was asked and answered, in order.

    Attributes:
        images: (N, C, H, W) uint8.
        answers: (N, K) float64, as the output interface shaped them.
    """

    images: NDArray[np.uint8]
    answers: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Extraction:
    """What an attack returns.

    Attributes:
        surrogate: the trained model, on the CPU, in evaluation mode.
        transcript: the queries and their answers.
        history: one record per epoch of the surrogate's training.
    """

    surrogate: nn.Module
    transcript: Transcript
    history: list[dict[str, float]]


def ask(
    victim: QueryInterface, images: NDArray[np.uint8], show: Show | None = None
) -> NDArray[np.float64]:
    """Query ``images`` in batches, telling ``show`` how many were answered.

    Returns:
        (N, K) answers.
    """
    answers = [np.empty((0, victim.num_classes))]
    for start in range(0, len(images), QUERY_BATCH):
        answers.append(victim.query(images[start : start + QUERY_BATCH]))
        if show:
            show(len(answers[-1]), f"{start + len(answers[-1]):,} queries")
    return np.concatenate(answers)


def check_thief(
    victim: QueryInterface, pool: NDArray[np.uint8], config: AttackConfig, labels: Labels
) -> None:
    """Check once, before the first query, that an attack can be carried out.

    Raises:
        ConfigError: if the victim's budget is below the thief's, or soft labels are asked of an
            interface that shows none.
        DataError: if the pool is empty or its images do not fit the victim.
    """
    if labels not in get_args(Labels):
        raise ConfigError(f"labels are {labels!r}: choose from {list(get_args(Labels))}")
    if labels == "soft" and victim.interface.interface == "label":
        raise ConfigError(
            "labels are 'soft' but the interface 'label' shows none: choose labels 'hard' or "
            "another interface"
        )
    if victim.remaining is not None and victim.remaining < config.budget:
        raise ConfigError(
            f"the thief wants {config.budget} queries, the victim has {victim.remaining} left: "
            "lower --budget"
        )
    check_images(pool, victim.image_shape)
    if len(pool) == 0:
        raise DataError("the thief's pool is empty: it needs 1 image or more")


def training_targets(
    answers: NDArray[np.float64], interface: OutputInterface, labels: Labels
) -> NDArray[Any]:
    """Turn answers into what the surrogate is trained on.

    Args:
        answers: (N, K), as ``interface`` shaped them.
        interface: what the answers show.
        labels: ``"soft"`` or ``"hard"``.

    Returns:
        Hard: (N,) int64 class indices. Soft: (N, K) float32 probabilities that sum to 1; an answer
        that was rounded to nothing becomes uniform.
    """
    if labels == "hard":
        return answers.argmax(axis=1)
    if interface.interface == "logits":
        return softmax(answers, axis=1).astype(np.float32)
    total = answers.sum(axis=1, keepdims=True)
    uniform = np.full_like(answers, 1 / answers.shape[1])
    shares = np.divide(answers, total, out=uniform, where=total > 0)
    return shares.astype(np.float32)
