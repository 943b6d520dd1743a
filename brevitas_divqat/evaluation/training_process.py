# SPDX-License-Identifier: BSD-3-Clause
"""The training steps that are measured, in a process of their own.

All variants live in one process and take turns, so that whatever else the machine does falls on all
of them alike.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import PRESETS, DivQATLoss, OutlierKind
from brevitas_divqat.models import ModelConfig, build, load_float_weights
from brevitas_divqat.seeding import generator, seeded
from brevitas_divqat.training import calibrate
from brevitas_divqat.training.calibration import to_input
from brevitas_divqat.training.speed import speed_up

__all__ = ["BASE", "CLASSES", "VARIANTS", "TrainingTask", "Variant", "image_shape_of", "measure"]

CLASSES = 10
WARM_UP = 3
"""Steps of each variant before the first that counts."""
LEAST_CYCLES = 3
LEARNING_RATE = 1e-5
"""So small that the networks stay what they were: no step becomes cheaper by having converged."""
NEVER = 2**31
MADE: tuple[OutlierKind, ...] = PRESETS["outliers"]["outliers"]
SOUGHT: tuple[OutlierKind, ...] = (*MADE, "generated")

Reference = Literal["none", "each step", "cached"]


@dataclass(frozen=True)
class Variant:
    """A way to take a training step.

    Attributes:
        name: in the record and the table.
        quantized: Brevitas layers, else the full-precision twin.
        reference: logits of the full-precision original: DivQAT computes or keeps them.
        calibrated: activation scales are parameters from the first step on.
        fast: `speed_up`.
        channels_last: weights and images with the channels innermost in memory.
        bfloat16: under autocast.
        outliers: kinds of them, which DivQAT makes in each step and diverges on alone.
    """

    name: str
    quantized: bool = True
    reference: Reference = "none"
    calibrated: bool = True
    fast: bool = False
    channels_last: bool = False
    bfloat16: bool = False
    outliers: tuple[OutlierKind, ...] = ()


BASE = "QAT"
"""What the ratios are to: plain Brevitas, calibrated."""
VARIANTS = (
    Variant("float", quantized=False),
    Variant(BASE),
    Variant("QAT, not calibrated", calibrated=False),
    Variant("DivQAT", reference="each step"),
    Variant("DivQAT, outliers", reference="each step", outliers=MADE),
    Variant("DivQAT, outliers, generated too", reference="each step", outliers=SOUGHT),
    Variant("DivQAT, cached", reference="cached"),
    Variant("QAT, fast", fast=True),
    Variant("DivQAT, fast", reference="each step", fast=True),
    Variant("DivQAT, outliers, fast", reference="each step", outliers=MADE, fast=True),
    Variant(
        "DivQAT, outliers, generated too, fast", reference="each step", outliers=SOUGHT, fast=True
    ),
    Variant("DivQAT, cached, fast", reference="cached", fast=True),
    Variant("DivQAT, cached, fast, channels_last", True, "cached", True, True, True),
    Variant("DivQAT, cached, fast, bfloat16", True, "cached", True, True, False, True),
    Variant(
        "DivQAT, cached, fast, channels_last, bfloat16", True, "cached", True, True, True, True
    ),
)


@dataclass(frozen=True)
class TrainingTask:
    """One process of measurements, as it is told it.

    Attributes:
        model: name of the network.
        width: its width factor.
        bits: of weights and activations.
        batch_size: images per step.
        device: ``"cpu"`` or ``"cuda"``.
        threads: of torch.
        seconds: least time that the steps of each variant take together.
    """

    model: str
    width: float
    bits: int
    batch_size: int
    device: str
    threads: int
    seconds: float


def image_shape_of(model: str) -> tuple[int, int, int]:
    """Return the (channels, height, width) that a network is measured on."""
    return (1, 28, 28) if model in ("lenet5", "tfc", "sfc", "lfc") else (3, 32, 32)


def measure(task: TrainingTask) -> dict[str, Any]:
    """Measure all variants in this process, in turns.

    Returns:
        ``seconds``: per variant the durations of its steps, equally many of each, in order;
        ``refused``: per variant that cannot run here, the reason.
    """
    torch.set_num_threads(task.threads)
    seconds: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    steps: dict[str, Callable[[], None]] = {}
    for variant in VARIANTS:
        try:
            steps[variant.name] = _step_of(variant, task)
        except ConfigError as error:
            refused[variant.name] = str(error)
            continue
        seconds[variant.name] = []
        for _ in range(WARM_UP):
            steps[variant.name]()
    names = list(steps)
    while len(seconds[BASE]) < LEAST_CYCLES or sum(seconds[BASE]) < task.seconds:
        # Each cycle begins with another variant, so that none always follows the same one.
        first = len(seconds[BASE]) % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_timed(steps[name], task.device))
    return {"seconds": seconds, "refused": refused}


def _timed(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _step_of(variant: Variant, task: TrainingTask) -> Callable[[], None]:
    """Return a training step: forward, loss, backward, Adam."""
    shape = image_shape_of(task.model)
    source = generator(0, "bench")
    pixels = torch.randint(256, (task.batch_size, *shape), generator=source, dtype=torch.uint8)
    targets = torch.randint(CLASSES, (task.batch_size,), generator=source).to(task.device)
    original = _network(task, quantized=False)
    model = original
    if variant.quantized:
        model = _quantized(variant, task, original, pixels)
    model = model.to(task.device).train()
    images = to_input(pixels).to(task.device)
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loss_of = _criterion(variant, task, original, images, targets)

    def step() -> None:
        optimizer.zero_grad()
        with _precision(variant, task.device):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()

    return step


def _network(task: TrainingTask, *, quantized: bool) -> nn.Module:
    config = ModelConfig(model=task.model, width=task.width, bits=task.bits)
    precision = config.precision if quantized else None
    with seeded(0, "bench"):
        return build(
            task.model, image_shape_of(task.model), CLASSES, precision=precision, width=task.width
        )


def _quantized(
    variant: Variant, task: TrainingTask, original: nn.Module, pixels: Tensor
) -> nn.Module:
    model = _network(task, quantized=True)
    load_float_weights(model, original.state_dict())
    if variant.calibrated:
        calibrate(model, pixels.numpy())
    else:
        # Brevitas collects during its first 300 steps; here every step is one of these.
        collecting: list[Any] = [m for m in model.modules() if hasattr(m, "collect_stats_steps")]
        for module in collecting:
            module.collect_stats_steps = NEVER
    if variant.fast:
        speed_up(model)
    return model


def _criterion(
    variant: Variant, task: TrainingTask, original: nn.Module, images: Tensor, targets: Tensor
) -> Callable[[nn.Module], Tensor]:
    """Return what runs a model on the images and gives its loss."""
    if variant.reference == "none":
        return lambda model: F.cross_entropy(model(images), targets)
    criterion = DivQATLoss(copy.deepcopy(original), preset="F3", outliers=variant.outliers)
    criterion.to(task.device).train()
    if variant.channels_last:
        criterion.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if variant.reference == "each step":

        def asking(model: nn.Module) -> Tensor:
            inputs = criterion.with_outliers(images, model)
            loss: Tensor = criterion(model(inputs), targets, inputs)
            return loss

        return asking
    with torch.no_grad():
        kept = criterion.reference(images)
    return lambda model: criterion(model(images), targets, reference_logits=kept)


def _precision(variant: Variant, device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if variant.bfloat16 else nullcontext()


def _main(argv: Sequence[str]) -> None:
    answer = measure(TrainingTask(**json.loads(argv[0])))
    (Path(argv[1]) / "result.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    _main(sys.argv[1:])
