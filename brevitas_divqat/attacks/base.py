# SPDX-License-Identifier: BSD-3-Clause
"""What every extraction attack takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from brevitas_divqat.data import Augmentation
from brevitas_divqat.errors import ConfigError, DataError, check_choice
from brevitas_divqat.executors import check_images
from brevitas_divqat.models import MODELS
from brevitas_divqat.models.registry import check_model
from brevitas_divqat.progress import Show
from brevitas_divqat.training import FitConfig, check_fit
from brevitas_divqat.training.config import (
    AugmentationChoice,
    Device,
    Optimizer,
    check_positive,
    renamed,
    suited,
)
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
VICTIMS_OWN = "victim"
SURROGATE_NAMES = {
    "epochs": "surrogate_epochs",
    "batch_size": "surrogate_batch",
    "lr": "surrogate_lr",
    "optimizer": "surrogate_optimizer",
    "weight_decay": "surrogate_decay",
    "device": "surrogate_device",
}


@dataclass(frozen=True)
class AttackConfig:
    """The thief's resources and choices.

    Args:
        policy: KnockoffNets' way to choose images: random or adaptive.
        budget: queries that the thief may ask, 1 or more.
        surrogate: architecture of the surrogate, in full precision: one of those of --model, or
            'victim' for the victim's own.
        surrogate_width: factor on its numbers of channels and features; by default the victim's
            for its own architecture, 1 for another.
        surrogate_epochs: epochs on the answers.
        surrogate_batch: images per step.
        surrogate_optimizer: adam or sgd.
        surrogate_lr: first learning rate.
        surrogate_decay: L2 penalty.
        surrogate_augmentation: variation of the images, but not of the answers, in training; auto
            is what suits the data set.
        surrogate_device: auto, cpu or cuda.

    Raises:
        ConfigError: if a value is unknown or out of range.
    """

    policy: Policy = "random"
    budget: int = 20_000
    surrogate: str = VICTIMS_OWN
    surrogate_width: float | None = None
    surrogate_epochs: int = 15
    surrogate_batch: int = 64
    surrogate_optimizer: Optimizer = "sgd"
    surrogate_lr: float = 0.05
    surrogate_decay: float = 5e-4
    surrogate_augmentation: AugmentationChoice = "auto"
    surrogate_device: Device = "auto"

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, Policy)
        if self.budget < 1:
            raise ConfigError(f"the query budget is {self.budget}: it must be 1 or more")
        if self.surrogate != VICTIMS_OWN:
            check_model(self.surrogate, self.width)
        elif self.surrogate_width is not None:
            check_positive("surrogate_width", self.surrogate_width)
        check_choice("surrogate_augmentation", self.surrogate_augmentation, AugmentationChoice)
        try:
            self.fit_config("none", self.surrogate_batch)
        except ConfigError as error:
            raise renamed(error, SURROGATE_NAMES) from error

    @property
    def width(self) -> float:
        """The surrogate's width factor."""
        return 1.0 if self.surrogate_width is None else self.surrogate_width

    def knowing(self, model: str, width: float) -> AttackConfig:
        """Return these settings with the victim's architecture in place of ``victim``.

        Raises:
            ConfigError: if that architecture is not one of ``MODELS``.
        """
        if self.surrogate != VICTIMS_OWN:
            return replace(self, surrogate_width=self.width)
        if model not in MODELS:
            raise ConfigError(
                f"the victim's architecture is {model!r}: choose the surrogate's with --surrogate "
                f"from {sorted(MODELS)}"
            )
        own = width if self.surrogate_width is None else self.surrogate_width
        return replace(self, surrogate=model, surrogate_width=own)

    def check_training(self) -> None:
        """Check that a surrogate can be trained on the whole budget's answers, before it is spent.

        Raises:
            ConfigError: if the device is not there.
        """
        answers = max(2, self.budget)  # a single answer is trained on twice
        check_fit(self.fit_config("none", answers), answers)

    def fit_config(self, augmentation: Augmentation, images: int) -> FitConfig:
        """Return the settings of the surrogate's training on ``images`` answered images."""
        return FitConfig(
            epochs=self.surrogate_epochs,
            batch_size=min(self.surrogate_batch, max(2, images)),
            lr=self.surrogate_lr,
            optimizer=self.surrogate_optimizer,
            weight_decay=self.surrogate_decay,
            augmentation=suited(self.surrogate_augmentation, augmentation),
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
        ConfigError: if the victim's budget is below the thief's, soft labels are asked of an
            interface that shows none, the surrogate is not named, or its device is not there.
        DataError: if the pool is empty or its images do not fit the victim.
    """
    check_choice("labels", labels, Labels)
    if config.surrogate == VICTIMS_OWN:
        raise ConfigError(
            "surrogate is 'victim', which only the evaluation can resolve: name an architecture, "
            f"one of {sorted(MODELS)}"
        )
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
    config.check_training()
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


def informative(answers: NDArray[np.float64], interface: OutputInterface) -> NDArray[np.bool_]:
    """Mark the answers that say anything: rounding may leave nothing of a probability.

    Returns:
        (N,) booleans; all True where no answer says anything, so that something remains.
    """
    told = (answers.max(axis=1) > 0) | (interface.interface == "logits")
    return told if told.any() else np.ones_like(told)
