# SPDX-License-Identifier: BSD-3-Clause
"""Speed of every attack on one graph, and of a battery: queries per second, share of the victim.

docs/bench.md tells how to read the record.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.attacks import ATTACKS, AttackConfig, Labels
from brevitas_divqat.attacks.battery import BATTERIES, VERSION, BatteryName, Entry
from brevitas_divqat.attacks.thief import Resources
from brevitas_divqat.data import DATASETS, DataConfig, load
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.evaluation.battery import run_battery
from brevitas_divqat.evaluation.battery_process import Setting
from brevitas_divqat.evaluation.bench import machine
from brevitas_divqat.evaluation.theft import check_fits, precision_of
from brevitas_divqat.executors import ExecutorConfig, GraphExecutor, open_executor, sample_images
from brevitas_divqat.export import tool_versions
from brevitas_divqat.progress import Progress, silent
from brevitas_divqat.victims import OutputInterface, Victim

__all__ = ["SCHEMA", "attacks_table", "bench_attacks"]

SCHEMA = 1
POOL_IMAGES = 4_096
LEARN_FROM_LABELS = ("copycat", "dfms-hl")
"""Attacks that are what they are with hard labels; the others learn from soft ones."""


def bench_attacks(
    graph: Path,
    *,
    budget: int = 2_000,
    epochs: int = 12,
    battery: BatteryName | None = None,
    entries: Sequence[Entry] | None = None,
    data_root: Path = Path("data"),
    jobs: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every attack at one budget, on one thread, and a battery as it is used.

    The single attacks ask about made-up images, since durations do not depend on values; a battery
    needs the data set that the graph was trained on.

    Args:
        graph: a deployed graph.
        budget: queries of each attack.
        epochs: of the surrogate's training.
        battery: that is timed too; none by default.
        entries: in place of that battery's own.
        data_root: where its data lie.
        jobs: entries of the battery at a time; by default the number of cores.
        progress: shows how far it is.

    Returns:
        A JSON-serialisable record, see docs/bench.md.

    Raises:
        ConfigError: if a number is out of its range, or the graph does not tell its data set.
        GraphError: if the file is no deployed graph, or does not fit its data set.
        DataError: if the battery's data are missing.
    """
    executor = open_executor(graph)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs is {jobs}: it must be 1 or more")
    if battery is not None and executor.metadata.data not in DATASETS:
        raise ConfigError(
            f"the graph was trained on {executor.metadata.data!r}, but a battery needs one of "
            f"{', '.join(DATASETS)}: leave --battery out"
        )
    if battery is not None:
        check_fits(executor, load(DataConfig(executor.metadata.data, data_root)))
    configs = [AttackConfig(attack=name, budget=budget) for name in ATTACKS]
    configs.insert(1, AttackConfig(policy="adaptive", budget=budget))
    metadata = executor.metadata
    configs = [
        replace(c, surrogate_epochs=epochs, surrogate_device="cpu").knowing(
            metadata.model, metadata.width
        )
        for c in configs
    ]
    with progress("attacks", len(configs)) as show:
        rows: list[dict[str, Any]] = []
        _row(executor, configs[0])  # what a process does once would count for the first attack
        for config in configs:
            rows.append(_row(executor, config))
            show(1, rows[-1]["attack"])
    return {
        "schema": SCHEMA,
        "kind": "bench-attacks",
        "model": {
            "name": graph.name,
            "sha256": executor.sha256,
            "model": metadata.model,
            "width": metadata.width,
            "bits": metadata.bits,
            "image_shape": list(metadata.image_shape),
        },
        "machine": machine(),
        "versions": tool_versions(),
        "settings": {
            "budget": budget,
            "epochs": epochs,
            "threads": 1,
            "pool_images": POOL_IMAGES,
            "executor": executor.name,
        },
        "rows": rows,
        "battery": None
        if battery is None
        else _battery(graph, metadata.data, battery, entries, data_root, jobs, progress),
    }


def _row(executor: GraphExecutor, config: AttackConfig) -> dict[str, Any]:
    """Measure one attack."""
    name = config.attack if config.policy == "random" else f"{config.attack}, {config.policy}"
    victim = Victim(executor, interface=OutputInterface())
    shape = executor.image_shape
    resources = Resources(
        config.budget,
        config.surrogate_factory(shape, executor.num_classes, precision_of(executor.metadata)),
        seed=0,
        pool=sample_images(shape, POOL_IMAGES) if config.strategy().needs_pool else None,
    )
    labels: Labels = "hard" if config.attack in LEARN_FROM_LABELS else "soft"
    attack = config.prepared(labels, "none")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        extraction = attack(victim, resources)
    except ConfigError as error:  # a budget below its seed set, say
        reason = " ".join(str(error).split())
        return {"attack": name, "labels": labels, "status": "not possible", "reason": reason}
    finally:
        torch.set_num_threads(threads)
    return {
        "attack": name,
        "labels": labels,
        "status": "measured",
        "queries": extraction.queries,
        "seconds": extraction.seconds,
        "victim_seconds": extraction.victim_seconds,
        "queries_per_second": extraction.queries / extraction.seconds,
        "victim_share": extraction.victim_seconds / extraction.seconds,
    }


def _battery(
    graph: Path,
    data: str,
    battery: BatteryName,
    entries: Sequence[Entry] | None,
    data_root: Path,
    jobs: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Time a battery from its start to its verdict."""
    with TemporaryDirectory() as folder:
        setting = Setting(
            graph=graph,
            hardware=None,
            executor=ExecutorConfig(),
            interface=OutputInterface(),
            data=DataConfig(data, data_root),
            reference=None,
            seed=0,
            folder=Path(folder),
            battery=battery,
            device="cpu",
        )
        started = time.perf_counter()
        file = run_battery(setting, entries=entries, jobs=jobs, progress=progress)
        seconds = time.perf_counter() - started
        record = json.loads(file.read_text())
    return {
        "name": battery,
        "version": VERSION,
        "jobs": jobs or machine()["cores"],
        "seconds": seconds,
        "entries_in_battery": len(entries or BATTERIES[battery]),
        "entry_seconds": record["seconds"],
        "victim_seconds": record["victim_seconds"],
        "queries": record["queries"],
        "entries": [
            {
                "entry": row["entry"]["name"],
                "status": row["status"],
                **{key: row.get(key) for key in ("queries", "seconds", "victim_seconds")},
            }
            for row in record["entries"]
        ],
    }


def attacks_table(record: dict[str, Any]) -> Table:
    """Build the table of a record of `bench_attacks`."""
    model, computer, settings = record["model"], record["machine"], record["settings"]
    battery = record["battery"]
    total = (
        ""
        if battery is None
        else f"\nBattery {battery['version']} ({battery['name']}): {battery['seconds']:,.0f} s, of "
        f"{battery['entry_seconds']:,.0f} s in its entries {battery['victim_seconds']:,.1f} s in "
        f"the victim, {battery['queries']:,} distinct queries."
    )
    table = Table(
        title=Text(
            f"Attacks on {model['model']} of {' × '.join(map(str, model['image_shape']))}: "
            f"{settings['budget']:,} queries, {settings['epochs']} epochs, one thread",
            style="bold",
        ),
        caption=Text(f"{computer['processor']}, {computer['cores']} cores.{total}", style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("attack")
    for name in ("seconds", "queries/s", "in the victim %"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        cells = [row["attack"]]
        if row["status"] == "measured":
            cells += [f"{row['seconds']:,.1f}", f"{row['queries_per_second']:,.0f}"]
            cells += [f"{100 * row['victim_share']:.1f}"]
        else:
            cells += [row["status"]]
        table.add_row(*(Text(cell) for cell in cells))
    return table
