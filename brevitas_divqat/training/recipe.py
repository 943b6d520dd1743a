# SPDX-License-Identifier: BSD-3-Clause
"""The victim's training: full precision first, then quantized from those weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import brevitas.config
import torch
from torch import nn

from brevitas_divqat.data import Dataset, load_pool
from brevitas_divqat.errors import ConfigError, check_choice
from brevitas_divqat.loss import DivQATLoss, LossConfig
from brevitas_divqat.models import ModelConfig, build, load_float_weights
from brevitas_divqat.progress import Progress, silent
from brevitas_divqat.seeding import generator, seeded
from brevitas_divqat.training.augmentation import augmentation_of
from brevitas_divqat.training.calibration import calibrate
from brevitas_divqat.training.checkpoint import (
    CheckpointInfo,
    is_finished,
    load_checkpoint,
    save_checkpoint,
)
from brevitas_divqat.training.config import TrainingConfig
from brevitas_divqat.training.fit import Criterion, check_warmup, cross_entropy, fit
from brevitas_divqat.training.outlier_images import (
    check_outlier_images,
    drawn_from,
    keep_identity,
)
from brevitas_divqat.training.speed import speed_up

__all__ = ["Method", "start_quantized", "train_float", "train_quantized"]

Method = Literal["qat", "divqat"]


def train_float(
    model_config: ModelConfig,
    training: TrainingConfig,
    dataset: Dataset,
    folder: Path,
    *,
    seed: int,
    resume: bool = False,
    progress: Progress = silent,
) -> nn.Module:
    """Train the full-precision twin and write its checkpoint to ``folder``.

    With ``resume``, a finished model is loaded and an unfinished training goes on.

    Raises:
        RunExists: if there is one, and no ``resume``.
    """
    if resume and is_finished(folder):
        return load_checkpoint(folder)[0]
    with seeded(seed, "initialisation"):
        model = build(
            model_config.model,
            dataset.image_shape,
            dataset.num_classes,
            precision=None,
            width=model_config.width,
        )
    _fit_and_save(
        model,
        cross_entropy,
        "float",
        {"name": "float"},
        model_config,
        training,
        dataset,
        folder,
        seed=seed,
        resume=resume,
        progress=progress,
    )
    return model


def start_quantized(
    reference: nn.Module,
    model_config: ModelConfig,
    training: TrainingConfig,
    dataset: Dataset,
    *,
    seed: int,
) -> nn.Module:
    """Build the quantized network as it is before its training.

    Args:
        reference: the full-precision twin, whose weights it starts from; unchanged.
        model_config: architecture and bit widths.
        training: how many images activation scales start from.
        dataset: the training images are where these come from.
        seed: of the network and of the choice of these images.

    Returns:
        The network in full-precision weights, calibrated, with fast quantizers.
    """
    with seeded(seed, "initialisation"):
        model = build(
            model_config.model,
            dataset.image_shape,
            dataset.num_classes,
            precision=model_config.precision,
            width=model_config.width,
        )
    load_float_weights(model, reference.state_dict())
    order = torch.randperm(len(dataset.train), generator=generator(seed, "calibration"))
    calibrate(model, dataset.train.images[order[: training.calibration_images].numpy()])
    if not brevitas.config.JIT_ENABLED:  # whose compiled quantizers cannot be replaced
        speed_up(model)
    return model


def train_quantized(
    method: Method,
    reference: nn.Module,
    model_config: ModelConfig,
    training: TrainingConfig,
    loss: LossConfig,
    dataset: Dataset,
    folder: Path,
    *,
    seed: int,
    resume: bool = False,
    progress: Progress = silent,
) -> nn.Module:
    """Train the quantized network from the full-precision weights; write its checkpoint.

    Args:
        method: ``"qat"`` (cross-entropy) or ``"divqat"`` (`DivQATLoss`); nothing else differs.
        reference: the full-precision twin; unchanged.
        model_config: architecture and bit widths.
        training: epochs and so on.
        loss: settings of `DivQATLoss`; for ``"qat"`` only its label smoothing counts.
        dataset: training and validation images.
        folder: where the checkpoint goes.
        seed: the same for both methods, so that they see the same batches.
        resume: load a finished model, go on with an unfinished training.
        progress: shows the epochs.

    Returns:
        The quantized network, on the CPU, in evaluation mode.

    Raises:
        ConfigError: if there is no such method, outliers are to be drawn from images of one's own
            that are not named, or named in vain, alpha would still rise at the end, or the training
            in the folder had other settings of the loss or other images.
        DataError: if these images cannot be read.
        RunExists: if the folder holds a training, and no ``resume`` is given.
    """
    check_choice("method", method, Method)
    described: dict[str, object] = {"label_smoothing": loss.label_smoothing}
    outliers: dict[str, Any] = {}
    if method == "divqat":
        check_outlier_images(training.outlier_images, loss)
        described = asdict(loss)
        fit_config = training.fit_config(quantized=True, augmentation=dataset.augmentation)
        check_warmup(loss, fit_config, len(dataset.train))
        if loss.kinds:
            outliers["augment"] = augmentation_of(fit_config.augmentation)
        if training.outlier_images is not None:
            pool = load_pool(training.outlier_images, dataset.image_shape, "--outlier-images")
            described |= keep_identity(pool, folder)
            outliers["outlier_images"] = drawn_from(pool.images)
    if resume and is_finished(folder):
        model, info = load_checkpoint(folder)
        _check_same(info, {"name": method, **described}, folder)
        return model
    model = start_quantized(reference, model_config, training, dataset, seed=seed)
    options = asdict(loss) | ({"alpha": 0.0} if method == "qat" else {})
    criterion = DivQATLoss(reference, **options, **outliers)
    _fit_and_save(
        model,
        criterion,
        method,
        {"name": method, **described},
        model_config,
        training,
        dataset,
        folder,
        seed=seed,
        resume=resume,
        progress=progress,
    )
    return model


def _check_same(info: CheckpointInfo, method: dict[str, object], folder: Path) -> None:
    """Refuse a finished model of other settings, as far as its record has them."""
    changed = [
        f"{name} ({info.method[name]} -> {_plain(value)})"
        for name, value in method.items()
        if name in info.method and info.method[name] != _plain(value)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a finished training with other settings: {', '.join(changed)}; give "
            "the same, or choose another folder"
        )


def _plain(value: object) -> object:
    """Turn a setting into what JSON gives back."""
    return list(value) if isinstance(value, tuple) else value


def _fit_and_save(
    model: nn.Module,
    criterion: Criterion,
    name: str,
    method: dict[str, object],
    model_config: ModelConfig,
    training: TrainingConfig,
    dataset: Dataset,
    folder: Path,
    *,
    seed: int,
    resume: bool,
    progress: Progress,
) -> None:
    quantized = name != "float"
    result = fit(
        model,
        criterion,
        dataset.train.images,
        dataset.train.labels,
        config=training.fit_config(quantized=quantized, augmentation=dataset.augmentation),
        seed=seed,
        validation=dataset.validation,
        folder=folder,
        resume=resume,
        progress=progress,
        name=name,
    )
    info = CheckpointInfo(
        model=model_config.model,
        width=model_config.width,
        precision=model_config.precision if quantized else None,
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        data=dataset.name,
        method=method,
        seed=seed,
        best_epoch=result.best_epoch,
        validation_accuracy=result.validation_accuracy,
        history=[dict(record) for record in result.history],
    )
    save_checkpoint(folder, model, info)
