# SPDX-License-Identifier: BSD-3-Clause
"""Shadow pairs: what the thief's own undefended and defended networks answer to the same images."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING

import brevitas.config
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from brevitas_divqat.attacks.answers import Labels, shares
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.executors import ModuleExecutor
from brevitas_divqat.loss import PRESETS, DivQATLoss
from brevitas_divqat.models import load_float_weights
from brevitas_divqat.seeding import derive_seed, generator, seeded
from brevitas_divqat.training import TrainingConfig, augmentation_of, cross_entropy, fit
from brevitas_divqat.training.calibration import calibrate
from brevitas_divqat.training.speed import speed_up
from brevitas_divqat.victims import OutputInterface

if TYPE_CHECKING:
    from brevitas_divqat.attacks.thief import Resources, Thief

__all__ = ["ShadowPairs", "ShadowPlan", "check_adaptive", "shadow_pairs"]

ADAPTIVE: frozenset[Labels] = frozenset(("recovered", "bayes", "sharpened", "reranked", "dropped"))
"""Labels that undo what DivQAT does to probabilities."""
NEED_SHADOWS: frozenset[Labels] = frozenset(("recovered", "bayes"))
"""Those that learn from shadow models, which may be asked about images of a pool."""


def check_adaptive(labels: Labels, interface: OutputInterface, resources: Resources) -> None:
    """Check, before the first query, that what the thief wants to undo can be undone.

    Raises:
        ConfigError: if the interface shows no probabilities, or the labels need shadow models and
            the victim's architecture is not known.
    """
    if labels in ADAPTIVE and interface.interface == "label":
        raise ConfigError(
            f"labels are {labels!r}, which correct probabilities, but the interface 'label' shows "
            "none: choose labels 'hard', or another interface"
        )
    if labels in NEED_SHADOWS and resources.shadow is None:
        raise ConfigError(
            f"labels are {labels!r}, which need shadow models of the victim's architecture and bit "
            "widths, but these are not known: attack a graph that names them, or choose labels "
            "'soft'"
        )


@dataclass(frozen=True)
class ShadowPlan:
    """How much a thief spends on shadow models: for LeNet-5 half a minute on one core.

    Attributes:
        pairs: shadow pairs, 2 or more. Each is trained without one fold of the transcript and
            answers that fold, so that 2 make use of every image. D-DAE trains 20 models.
        train_images: answered images that one pair is trained on, at most: more cost time and
            change the map between the two networks' answers little.
        seen_float: images that the full-precision shadow is shown, over all epochs.
        seen_quantized: images that each of the two quantized shadows is shown.
        most_epochs: where there are few images; more would only learn them by heart.
        answered: images that one pair answers, at most.
    """

    pairs: int = 2
    train_images: int = 8_000
    seen_float: int = 32_000
    seen_quantized: int = 20_000
    most_epochs: int = 40
    answered: int = 4_000

    def training(self, images: int, thief: Thief) -> TrainingConfig:
        """Return the victim's own settings, as published, with the epochs that the plan allows."""
        return TrainingConfig(
            float_epochs=min(self.most_epochs, ceil(self.seen_float / images)),
            epochs=min(self.most_epochs, ceil(self.seen_quantized / images)),
            batch_size=min(TrainingConfig().batch_size, max(2, images // 8)),
            augmentation=thief.fit_config(images).augmentation,
            device="cuda" if thief.device.type == "cuda" else "cpu",
        )


PLAN = ShadowPlan()
LEAST_IMAGES = 2
"""Per fold: BatchNorm needs two."""


@dataclass(frozen=True, eq=False)
class ShadowPairs:
    """Answers of shadow models to images that they were not trained on.

    Attributes:
        clean: (M, K) float64 probabilities of the undefended network, all of them shown.
        defended: (M, K) float64 probabilities of the DivQAT-trained one, as `shares` reads them
            behind the victim's own output interface.
    """

    clean: NDArray[np.float64]
    defended: NDArray[np.float64]


def shadow_pairs(
    images: NDArray[np.uint8], answers: NDArray[np.float64], thief: Thief, plan: ShadowPlan = PLAN
) -> ShadowPairs:
    """Train shadow models on a transcript and let them answer held-out images.

    The transcript is split into folds. For each, a full-precision network learns the victim's
    top-1 classes of the other folds; from its weights start two networks of the victim's bit
    widths with the same batches: plain QAT, the *clean* one, and DivQAT with the published
    settings, save that other kinds of outliers stand for images of the defender's own. So the two
    differ by the defence alone. Against the full-precision shadow they would
    also differ by another training and by the rounding of weights, which is an accident of each
    network: no map learned from a shadow's carries over to the victim's.

    After D-DAE (Chen et al., IEEE S&P 2023). Deviations: its defences act on the output of one
    trained model, whose clean answers are read off before, while this one acts in training, so
    both answers come from models of their own; 2 pairs instead of 20 models; shadows learn the
    victim's labels, since the thief's images have none; with several copies of a question, the
    victim's answers are means over them and the shadows' are not.

    Args:
        images: (N, C, H, W) uint8, of the transcript, N of 1 or more.
        answers: (N, K), as the victim gave them.
        thief: owns the shadow factory, the pool, the seed and what it knows of the defence.
        plan: how much is spent.

    Returns:
        Pairs of answers to the held-out folds and, where these are short, to further images of the
        pool that the pair was not trained on.
    """
    labels = answers.argmax(axis=1)
    # So few that every fold holds each image: held out of nothing, but there is nothing else.
    enough = np.resize(np.arange(len(images)), max(len(images), LEAST_IMAGES * plan.pairs))
    order = torch.randperm(len(enough), generator=generator(thief.seed, "shadow folds")).numpy()
    clean, defended = [], []
    for fold in range(plan.pairs):
        held_out = enough[order[fold :: plan.pairs]]
        others = np.concatenate([order[f :: plan.pairs] for f in range(plan.pairs) if f != fold])
        trained = enough[others[: plan.train_images]]
        asked = _questions(images, trained, held_out[: plan.answered], thief, plan, fold)
        plain, divqat = _train_pair(images[trained], labels[trained], thief, plan, fold)
        clean.append(softmax(_scores(plain, asked, thief).astype(np.float64), axis=1))
        shown = thief.interface.answer(_scores(divqat, asked, thief))
        defended.append(shares(shown, thief.interface))
    return ShadowPairs(np.concatenate(clean), np.concatenate(defended))


def _questions(
    images: NDArray[np.uint8],
    trained: NDArray[np.int64],
    held_out: NDArray[np.int64],
    thief: Thief,
    plan: ShadowPlan,
    fold: int,
) -> NDArray[np.uint8]:
    """Return the held-out images, filled up with others of the pool that were not trained on."""
    missing = plan.answered - len(held_out)
    pool = thief.resources.pool
    if missing == 0 or pool is None:
        return images[held_out]
    known = {image.tobytes() for chosen in (trained, held_out) for image in images[chosen]}
    order = torch.randperm(len(pool), generator=generator(thief.seed, "shadow questions", fold))
    fresh: list[int] = []
    for index in order.tolist():
        if len(fresh) == missing:
            break
        if pool[index].tobytes() not in known:
            fresh.append(index)
    return np.concatenate([images[held_out], pool[fresh]])


def _train_pair(
    images: NDArray[np.uint8], labels: NDArray[np.int64], thief: Thief, plan: ShadowPlan, fold: int
) -> tuple[nn.Module, nn.Module]:
    """Train as `brevitas_divqat.training.recipe` does: full precision, then twice quantized."""
    make = thief.resources.shadow
    assert make is not None, "check_adaptive has made sure of it"
    training = plan.training(len(images), thief)
    with seeded(thief.seed, "shadow", fold):
        reference = make(False)
        plain = make(True)
    fit(
        reference,
        cross_entropy,
        images,
        labels,
        config=training.fit_config(quantized=False, augmentation="none"),
        seed=derive_seed(thief.seed, "shadow", fold, "float"),
        progress=thief.progress,
        name=f"shadow {fold + 1}, float",
    )
    load_float_weights(plain, reference.state_dict())
    calibrate(plain, images[: training.calibration_images])
    divqat = copy.deepcopy(plain)
    settings = training.fit_config(quantized=True, augmentation="none")
    defence = asdict(thief.config.defence)
    if thief.config.defence.kinds:
        # Of images that the defender owns the thief has none: others stand for them.
        own = tuple(kind for kind in thief.config.defence.kinds if kind != "given")
        defence["outliers"] = own or PRESETS["outliers"]["outliers"]
        defence["augment"] = augmentation_of(settings.augmentation)
    for model, name, options in (
        (plain, "qat", defence | {"alpha": 0.0}),
        (divqat, "divqat", defence),
    ):
        if not brevitas.config.JIT_ENABLED:  # whose compiled quantizers cannot be replaced
            speed_up(model)
        fit(
            model,
            DivQATLoss(reference, **options),
            images,
            labels,
            config=settings,
            seed=derive_seed(thief.seed, "shadow", fold, "quantized"),
            progress=thief.progress,
            name=f"shadow {fold + 1}, {name}",
        )
    return plain, divqat


def _scores(model: nn.Module, images: NDArray[np.uint8], thief: Thief) -> NDArray[np.float32]:
    executor = ModuleExecutor(
        model, image_shape=thief.image_shape, num_classes=thief.num_classes, device=thief.device
    )
    return executor(images)
