# SPDX-License-Identifier: BSD-3-Clause
"""Duration of a training step: full precision, plain Brevitas, DivQAT, and what makes it faster.

docs/bench.md tells how to read the record.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.errors import ConfigError, check_choice
from brevitas_divqat.evaluation.bench import check_durations, checked_threads, machine
from brevitas_divqat.evaluation.bench_process import run_apart
from brevitas_divqat.evaluation.training_process import (
    BASE,
    CLASSES,
    LEARNING_RATE,
    VARIANTS,
    TrainingTask,
    image_shape_of,
)
from brevitas_divqat.export import tool_versions
from brevitas_divqat.models import ModelConfig, build
from brevitas_divqat.progress import Progress, silent
from brevitas_divqat.seeding import seeded

__all__ = ["SCHEMA", "TrainingDevice", "bench_training", "training_table"]

SCHEMA = 1
PROCESS = "brevitas_divqat.evaluation.training_process"
TrainingDevice = Literal["cpu", "cuda"]


def bench_training(
    model: str = "lenet5",
    *,
    width: float = 1.0,
    bits: int = 4,
    batch_size: int = 128,
    device: TrainingDevice = "cpu",
    threads: Sequence[int] | None = None,
    seconds: float = 3.0,
    rounds: int = 3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure one training step of every variant: forward, loss, backward, optimizer.

    Args:
        model: name of the network.
        width: factor on its numbers of channels and features.
        bits: of weights and activations.
        batch_size: images per step.
        device: ``"cpu"`` or ``"cuda"``.
        threads: numbers of threads to measure with; 1 and 2 by default, as far as there are cores.
        seconds: least time that the steps of plain QAT take in each round; the other variants take
            as many steps.
        rounds: how many fresh processes measure, for each number of threads.
        progress: shows how far it is.

    Returns:
        A JSON-serialisable record, see docs/bench.md.

    Raises:
        ConfigError: if a setting is unknown or out of its range, or there is no such device.
    """
    config = ModelConfig(model=model, width=width, bits=bits)
    check_choice("device", device, TrainingDevice)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no GPU: choose 'cpu'")
    if batch_size < 2:
        raise ConfigError(f"batch_size is {batch_size}: BatchNorm needs 2 or more")
    chosen = checked_threads(threads)
    check_durations(seconds, rounds)
    shape = image_shape_of(model)
    with seeded(0):
        network = build(model, shape, CLASSES, precision=None, width=width)
    tasks = [
        TrainingTask(model, width, bits, batch_size, device, count, seconds) for count in chosen
    ]
    with TemporaryDirectory() as name, progress("benchmark", rounds * len(tasks)) as show:
        answers: dict[int, list[dict[str, Any]]] = {count: [] for count in chosen}
        for _ in range(rounds):
            for task in tasks:
                answer = run_apart(PROCESS, asdict(task), Path(name), threads=task.threads)
                answers[task.threads].append(answer)
                ms = 1e3 * statistics.median(answer["seconds"][BASE])
                show(1, f"threads {task.threads}: {BASE} {ms:.1f} ms")
    return {
        "schema": SCHEMA,
        "kind": "bench-training",
        "model": {
            "model": model,
            "width": width,
            "bits": config.bits,
            "image_shape": list(shape),
            "float_parameters": sum(p.numel() for p in network.parameters()),
        },
        "machine": machine() | {"gpu": torch.cuda.get_device_name() if device == "cuda" else None},
        "versions": tool_versions(),
        "settings": {
            "batch_size": batch_size,
            "device": device,
            "optimizer": "Adam",
            "lr": LEARNING_RATE,
            "seconds": seconds,
            "rounds": rounds,
        },
        "rows": [row for count in chosen for row in _rows(count, answers[count])],
    }


def _rows(threads: int, rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the rounds of one number of threads together."""
    base = [time for answer in rounds for time in answer["seconds"][BASE]]
    rows = []
    for variant in VARIANTS:
        row: dict[str, Any] = {**asdict(variant), "variant": variant.name, "threads": threads}
        row["outliers"] = list(variant.outliers)  # as it is read back from JSON
        del row["name"]
        if variant.name in rounds[0]["refused"]:
            reason = rounds[0]["refused"][variant.name]
            rows.append({**row, "status": "not available", "reason": reason})
            continue
        times = [time for answer in rounds for time in answer["seconds"][variant.name]]
        ratios = [time / other for time, other in zip(times, base, strict=True)]
        rows.append(
            {
                **row,
                "status": "measured",
                "median_ms": 1e3 * statistics.median(times),
                "fastest_ms": 1e3 * min(times),
                "steps": len(times),
                # Neighbours in time are disturbed alike: their ratio is steadier than each is.
                "ratio_to_qat": statistics.median(ratios),
                "ratios_of_rounds": [_ratio(answer["seconds"], variant.name) for answer in rounds],
            }
        )
    return rows


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    pairs = zip(seconds[name], seconds[BASE], strict=True)
    return statistics.median(time / other for time, other in pairs)


def training_table(record: dict[str, Any]) -> Table:
    """Build the table of a record of `bench_training`."""
    model, computer, settings = record["model"], record["machine"], record["settings"]
    table = Table(
        title=Text(
            f"A training step of {model['model']}, width {model['width']:g}, {model['bits']} bits, "
            f"{settings['batch_size']} images of {' × '.join(map(str, model['image_shape']))}",
            style="bold",
        ),
        caption=Text(
            f"{computer['gpu'] or computer['processor']}, {computer['cores']} cores, "
            f"{', '.join(computer['flags']) or 'no AVX2'}.\n"
            f"× {BASE}: of steps taken one after the other, the median; in brackets the least and "
            "the most of the rounds.",
            style="dim",
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("step")
    for name in ("threads", "ms", f"× {BASE}", "rounds"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        cells = [row["variant"], str(row["threads"])]
        if row["status"] == "measured":
            least, most = min(row["ratios_of_rounds"]), max(row["ratios_of_rounds"])
            cells += [f"{row['median_ms']:,.1f}", f"{row['ratio_to_qat']:.2f}"]
            cells.append(f"[{least:.2f}, {most:.2f}]")
        else:
            cells += [row["status"]]
        table.add_row(*(Text(cell) for cell in cells))
    return table
