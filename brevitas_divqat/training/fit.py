# SPDX-License-Identifier: BSD-3-Clause
"""The training loop, the same for full-precision networks, quantized ones and surrogates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from brevitas_divqat.data import Labelled
from brevitas_divqat.data.records import check_images, describe
from brevitas_divqat.errors import ConfigError, DataError, RunExists, TrainingDiverged
from brevitas_divqat.loss import DivQATLoss, LossConfig
from brevitas_divqat.progress import Progress, Show, silent
from brevitas_divqat.seeding import generator, seeded
from brevitas_divqat.training.augmentation import augment
from brevitas_divqat.training.calibration import to_input, uncalibrated
from brevitas_divqat.training.config import FitConfig
from brevitas_divqat.training.state import (
    State,
    load_state,
    read_tensors,
    save_state,
    write_tensors,
)

__all__ = [
    "Criterion",
    "FitResult",
    "check_fit",
    "check_warmup",
    "cross_entropy",
    "fit",
    "measure_accuracy",
]

Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, targets, inputs) to a scalar loss."""

EVALUATION_BATCH = 500
STATE_FILE, BEST_FILE = "last.safetensors", "best.safetensors"


@dataclass(frozen=True)
class FitResult:
    """What a training left behind.

    Attributes:
        history: one record per epoch: loss, its parts, validation accuracy, images per second.
        best_epoch: the epoch, from 1, whose weights the model has now.
        validation_accuracy: of that epoch; None without validation images.
    """

    history: tuple[Mapping[str, float], ...]
    best_epoch: int
    validation_accuracy: float | None


def cross_entropy(logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
    """Plain cross-entropy, from class indices (N,) or class probabilities (N, C)."""
    return F.cross_entropy(logits, targets)


@torch.no_grad()
def measure_accuracy(model: Callable[[Tensor], Tensor], data: Labelled, device: Any) -> float:
    """Return the fraction of ``data`` that ``model`` (in evaluation mode) classifies correctly."""
    correct = 0
    for start in range(0, len(data), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        logits = model(to_input(torch.from_numpy(data.images[part]).to(device)))
        labels = torch.from_numpy(data.labels[part]).to(device)
        correct += int((logits.argmax(dim=1) == labels).sum())
    return correct / len(data)


def fit(
    model: nn.Module,
    criterion: Criterion,
    images: NDArray[np.uint8],
    targets: NDArray[Any],
    *,
    config: FitConfig,
    seed: int,
    validation: Labelled | None = None,
    folder: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
    name: str = "training",
) -> FitResult:
    """Train ``model`` in place.

    Same seed, same machine, same number of threads: same weights, bit for bit, also when the
    training was interrupted and resumed. Global random state is left as it was.

    Args:
        model: from (N, C, H, W) inputs to (N, K) logits.
        criterion: the loss; a module keeps its state across a resumption.
        images: (N, C, H, W) uint8.
        targets: (N,) class indices, or (N, K) class probabilities.
        config: epochs, batch size, optimiser and so on.
        seed: of the order and the variation of the images.
        validation: selects the epoch whose weights are kept; without it the last one's are.
        folder: where the state is kept after each epoch.
        resume: go on from the state in ``folder``, if there is one; needs the folder.
        progress: shows the epochs.
        name: of this training, for the progress and for messages.

    Returns:
        The history. The model has the selected epoch's weights, on the CPU, in evaluation mode.

    Raises:
        TrainingDiverged: if the loss becomes NaN or infinite; the state of the last good epoch
            stays in ``folder``.
        DataError: if images or targets are of another type or shape, or there are fewer images
            than one batch needs.
        ConfigError: if the device is not there, an activation quantizer is still collecting
            statistics, which no state could hold, while a folder is given, the criterion's outliers
            are not augmented as the images are, or a training goes on with validation images that
            began without, or the other way round.
        RunExists: if the folder holds a training, and it is not to go on.
    """
    targets = _checked_targets(images, targets)
    if folder is None and resume:
        raise ConfigError("resume is given without a folder: name the one that has the state")
    if folder is not None:
        folder = Path(folder)
        _check_calibrated(model)
    _check_outliers(criterion, config)
    state_file = folder / STATE_FILE if folder else None
    state = _state_to_resume(state_file, resume, validation) if state_file else None
    if state:
        state.restore_model(model)
    run = _Run(model, criterion, config, seed, images, targets)
    history: list[dict[str, float]] = []
    if state:
        state.restore_training(run.optimizer, criterion)
        history = list(state.info["history"])
    elif state_file:
        run.save(state_file, history)
    with progress(name, config.epochs * run.steps_per_epoch) as show:
        show(len(history) * run.steps_per_epoch, "")
        while len(history) < config.epochs:
            epoch = len(history) + 1
            record = run.train_epoch(epoch, show, name, state_file, _accuracy_so_far(history))
            if validation is not None:
                record["validation_accuracy"] = run.evaluate(validation)
                rivals = history[config.unselected :]
                if epoch > config.unselected and record["validation_accuracy"] >= max(
                    (past["validation_accuracy"] for past in rivals), default=0.0
                ):
                    run.keep_best(folder, epoch)
            history.append(record)
            if state_file:
                run.save(state_file, history)
    best_epoch = run.restore_best(folder) if validation is not None else config.epochs
    model.cpu().eval()
    return FitResult(
        history=tuple(history),
        best_epoch=best_epoch,
        validation_accuracy=history[best_epoch - 1].get("validation_accuracy"),
    )


def _checked_targets(images: NDArray[np.uint8], targets: NDArray[Any]) -> NDArray[Any]:
    """Return class indices as 64-bit integers, or class probabilities as they are."""
    check_images(images, "images")
    indices = targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)
    probabilities = targets.ndim == 2 and np.issubdtype(targets.dtype, np.floating)
    if not (indices or probabilities) or len(targets) != len(images):
        raise DataError(
            f"targets: got {describe(targets)}, expected integers ({len(images)},) or floating-"
            f"point numbers ({len(images)}, K) for {len(images)} images"
        )
    return targets.astype(np.int64, copy=False) if indices else targets


def _state_to_resume(path: Path, resume: bool, validation: Labelled | None) -> State | None:
    if not path.exists():
        return None
    if not resume:
        raise RunExists(f"{path.parent} holds a training: resume it, or choose another folder")
    state = load_state(path)
    before = ["validation_accuracy" in record for record in state.info["history"]]
    if before and before != [validation is not None] * len(before):
        began, now = ("with", "without") if before[0] else ("without", "with")
        raise ConfigError(
            f"the training in {path.parent} began {began} validation images, and is to go on "
            f"{now}: go on as it began, or choose another folder"
        )
    return state


def _check_outliers(criterion: Criterion, config: FitConfig) -> None:
    if not isinstance(criterion, DivQATLoss) or not criterion.config.kinds:
        return
    if criterion.config.weight == 0:  # none are made
        return
    own = criterion.outliers.augment
    if config.augmentation == "none" and own is not None:
        raise ConfigError(
            "augmentation is none and the criterion augments its outliers, which the network would "
            "tell by it: leave augment= out of DivQATLoss"
        )
    kind = own.keywords["kind"] if isinstance(own, partial) and own.func is augment else None
    if kind not in (None, config.augmentation):  # of others' functions we know nothing
        raise ConfigError(
            f"augmentation is {config.augmentation} and the criterion augments its outliers by "
            f"{kind}, by which the network would tell them: make it with "
            f'DivQATLoss(…, augment=augmentation_of("{config.augmentation}"))'
        )
    if config.augmentation != "none" and own is None:
        raise ConfigError(
            f"augmentation is {config.augmentation} and the criterion does not augment its "
            "outliers, which the network would tell by their whole borders: make it with "
            f'DivQATLoss(…, augment=augmentation_of("{config.augmentation}"))'
        )


class _Run:
    """One training: model, optimiser and data on their device."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        config: FitConfig,
        seed: int,
        images: NDArray[np.uint8],
        targets: NDArray[Any],
    ) -> None:
        from lightning_fabric import Fabric

        check_fit(config, len(images))
        self.steps_per_epoch = len(images) // config.batch_size
        self.module = model
        self.criterion = criterion
        self.config = config
        self.seed = seed
        self.images = torch.from_numpy(images)
        self.targets = torch.from_numpy(targets)
        self.fabric = Fabric(accelerator=config.device, devices=1, precision=config.precision)
        self.wrapped, self.optimizer = self.fabric.setup(model, _optimizer(model, config))
        if isinstance(criterion, nn.Module):
            criterion.to(self.fabric.device).train()
        self.best: tuple[dict[str, Tensor], int] | None = None

    def train_epoch(
        self, epoch: int, show: Show, name: str, state_file: Path | None, accuracy: str
    ) -> dict[str, float]:
        """Take one pass over the images; return means over its steps."""
        order = torch.randperm(len(self.images), generator=generator(self.seed, "order", epoch))
        varied = generator(self.seed, "augmentation", epoch)
        sums: dict[str, Tensor] = {}
        self.wrapped.train()
        started = time.perf_counter()
        with seeded(self.seed, "layers", epoch):
            for step in range(self.steps_per_epoch):
                size = self.config.batch_size
                chosen = order[step * size : (step + 1) * size]
                batch = augment(self.images[chosen], self.config.augmentation, varied)
                loss = self._step(batch, self.targets[chosen], epoch, step)
                if not torch.isfinite(loss):
                    raise _diverged(f"the loss became {loss.item()}", name, epoch, step, state_file)
                for key, value in self._observed(loss).items():
                    sums[key] = sums.get(key, torch.zeros(())) + value.detach().cpu()
                done = (step + 1) * size
                speed = done / (time.perf_counter() - started)
                show(1, f"epoch {epoch} loss {loss.item():.3f} {accuracy}{speed:,.0f} images/s")
        # The last step's loss was finite, its weights need not be; they must not become the state.
        if not all(bool(torch.isfinite(p).all()) for p in self.module.parameters()):
            raise _diverged("weights became infinite", name, epoch, step, state_file)
        seconds = time.perf_counter() - started
        record = {key: value.item() / self.steps_per_epoch for key, value in sums.items()}
        record["images_per_second"] = self.steps_per_epoch * self.config.batch_size / seconds
        return record

    def _step(self, batch: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor:
        done = (epoch - 1) * self.steps_per_epoch + step
        total = self.config.epochs * self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * done / total))
        inputs = to_input(batch.to(self.fabric.device))
        if isinstance(self.criterion, DivQATLoss):
            with self.fabric.autocast():
                inputs = self.criterion.with_outliers(inputs, self.module)
        loss = self.criterion(self.wrapped(inputs), targets.to(self.fabric.device), inputs)
        if torch.isfinite(loss):
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.optimizer.step()
        return loss.detach()

    def _observed(self, loss: Tensor) -> dict[str, Tensor]:
        observed = {"loss": loss}
        if isinstance(self.criterion, DivQATLoss) and self.criterion.report is not None:
            report = self.criterion.report
            observed |= {
                "cross_entropy": report.cross_entropy,
                "divergence": report.divergence,
                "max_probability": report.max_probability,
                "entropy": report.entropy,
            }
        return observed

    def evaluate(self, validation: Labelled) -> float:
        self.wrapped.eval()
        return measure_accuracy(self.wrapped, validation, self.fabric.device)

    def save(self, path: Path, history: list[dict[str, float]]) -> None:
        save_state(
            path,
            model=self.module,
            optimizer=self.optimizer,
            criterion=self.criterion,
            info={"history": history},
        )

    def keep_best(self, folder: Path | None, epoch: int) -> None:
        weights = {k: v.detach().cpu().clone() for k, v in self.module.state_dict().items()}
        self.best = (weights, epoch)
        if folder:
            write_tensors(folder / BEST_FILE, weights, {"epoch": epoch})

    def restore_best(self, folder: Path | None) -> int:
        if self.best is None:  # resumed after the last improvement
            assert folder is not None
            weights, info = read_tensors(folder / BEST_FILE)
            self.best = (weights, info["epoch"])
        self.module.load_state_dict(self.best[0])
        return self.best[1]


def check_fit(config: FitConfig, images: int) -> None:
    """Check that a training can begin.

    Raises:
        DataError: if there are fewer images than one batch needs.
        ConfigError: if the device is not there.
    """
    if images < config.batch_size:
        raise DataError(
            f"{images} training images are fewer than one batch of {config.batch_size}: lower the "
            "batch size"
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no GPU: choose 'auto' or 'cpu'")


def check_warmup(loss: LossConfig, config: FitConfig, images: int) -> None:
    """Check that alpha reaches its value before a training ends.

    Raises:
        ConfigError: if the warm-up takes more steps than the training.
    """
    steps = config.epochs * (images // config.batch_size)
    if loss.weight > 0 and loss.warmup_steps > steps:
        raise ConfigError(
            f"warmup_steps is {loss.warmup_steps}, and the training has {steps} steps of "
            f"{config.batch_size} images: alpha would never reach {loss.weight:g}, lower it"
        )


def _check_calibrated(model: nn.Module) -> None:
    """Refuse scales that are still being collected: their statistics are in no ``state_dict``."""
    names = uncalibrated(model)
    if names:
        raise ConfigError(
            f"{len(names)} activation quantizers still collect statistics, first {names[0]}: "
            "call calibrate() before a training that is to be resumable"
        )


def _diverged(
    what: str, name: str, epoch: int, step: int, state_file: Path | None
) -> TrainingDiverged:
    kept = f"; the last good state is in {state_file}" if state_file else ""
    return TrainingDiverged(
        f"{name}: {what} at epoch {epoch}, step {step + 1}: lower the learning rate or alpha{kept}"
    )


def _accuracy_so_far(history: list[dict[str, float]]) -> str:
    if not history or "validation_accuracy" not in history[-1]:
        return ""
    return f"validation {100 * history[-1]['validation_accuracy']:.1f} % "


def _optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
    )
