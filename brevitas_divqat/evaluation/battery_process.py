# SPDX-License-Identifier: BSD-3-Clause
"""What an entry of a battery does, in whatever process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from brevitas_divqat.attacks import AttackConfig
from brevitas_divqat.attacks.battery import VERSION, BatteryName, Entry
from brevitas_divqat.data import DataConfig, Dataset, checksum, conform, load
from brevitas_divqat.data.catalogue import CATALOGUE, PHOTOGRAPHS
from brevitas_divqat.errors import DataError, DivQATError
from brevitas_divqat.evaluation.measure import interface_record
from brevitas_divqat.evaluation.theft import load_original, steal
from brevitas_divqat.executors import Executor, ExecutorConfig, GraphExecutor, open_executor
from brevitas_divqat.files import write_json, write_text
from brevitas_divqat.models import build
from brevitas_divqat.progress import Progress, Show
from brevitas_divqat.seeding import derive_seed, seeded
from brevitas_divqat.training import (
    CheckpointInfo,
    cross_entropy,
    fit,
    is_finished,
    save_checkpoint,
)
from brevitas_divqat.training.config import Device
from brevitas_divqat.victims import OutputInterface, open_hardware

__all__ = [
    "Job",
    "Opened",
    "Report",
    "Setting",
    "attempt",
    "foreign_labelled",
    "identity",
    "open_setting",
]

PRETRAINING_IMAGES = 20_000
PRETRAINING_EPOCHS = 5

Report = Callable[[str, str, int, str], None]
"""(what happened: asked, done or failed; entry; queries; reason)."""


@dataclass(frozen=True)
class Setting:
    """What all entries of a battery have in common.

    Attributes:
        graph: the deployed graph's file, or None for hardware.
        hardware: what `open_hardware` takes, or None for a graph.
        executor: which executor answers for the graph.
        interface: what the victim shows.
        data: the victim's data set and the thief's pools.
        reference: folder of the full-precision original, if at hand.
        seed: of all attacks.
        folder: of the battery.
        battery: its name.
        device: where surrogates are trained.
    """

    graph: Path | None
    hardware: str | None
    executor: ExecutorConfig
    interface: OutputInterface
    data: DataConfig
    reference: Path | None
    seed: int
    folder: Path
    battery: BatteryName
    device: Device = "auto"

    def place(self, entry: str) -> Path:
        """Return an entry's folder."""
        return self.folder / "battery" / entry

    def measurement(self, entry: str) -> Path:
        """Return the file of an entry's measurement, which is written last."""
        return self.place(entry) / "measurement.json"

    def config(self, entry: Entry, graph: GraphExecutor) -> AttackConfig:
        """Return the thief's choices of an entry, with the surrogate's architecture named."""
        config = AttackConfig(
            attack=entry.attack,
            policy=entry.policy,
            budget=entry.budget,
            training=entry.training,
            copies=entry.copies,
            copy_kind=entry.copy_kind,
            surrogate=entry.surrogate,
            surrogate_bits=entry.surrogate_bits,
            surrogate_epochs=entry.epochs,
            surrogate_device=self.device,
        ).knowing(graph.metadata.model, graph.metadata.width)
        if not entry.pretrained:
            return config
        return replace(config, surrogate_weights=self.place(f"pretrained-{config.surrogate}"))


@dataclass(frozen=True, eq=False)
class Opened:
    """A setting with its files read.

    Attributes:
        graph: answers for the victim.
        dataset: holds the thief's pools and the images that judge.
        reference: the full-precision original, if at hand.
    """

    graph: GraphExecutor
    dataset: Dataset
    reference: Executor | None

    @cached_property
    def pools(self) -> dict[str, dict[str, Any]]:
        """What tells the thief's pools from others."""
        return {
            key: {
                "name": pool.name,
                "images": len(pool),
                "crc32": checksum(pool.images),
            }
            for key, pool in self.dataset.pools.items()
        }


@dataclass(frozen=True)
class Job:
    """One entry to work on.

    Attributes:
        entry: what to do; its labels are those that the interface allows.
        transcript: name of the entry in whose folder its questions and answers are kept.
        after: entries that write what this one reads, which must have ended before it begins.
    """

    entry: Entry
    transcript: str
    after: frozenset[str] = frozenset()


def open_setting(setting: Setting) -> Opened:
    """Open the victim and read data and original.

    Raises:
        DivQATError: if one of them is missing, damaged, or does not fit.
    """
    if setting.hardware is not None:
        graph: GraphExecutor = open_hardware(setting.hardware)
    else:
        assert setting.graph is not None
        graph = open_executor(setting.graph, setting.executor)
    return Opened(
        graph,
        load(setting.data),
        None if setting.reference is None else load_original(setting.reference, graph),
    )


def identity(setting: Setting, opened: Opened) -> dict[str, Any]:
    """Name all that decides a battery's numbers, as its measurements do."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "battery": {"version": VERSION, "name": setting.battery},
        "graph_sha256": opened.graph.sha256,
        "executor": opened.graph.name,
        "data": opened.dataset.name,
        "split": opened.dataset.judged_on,
        "pools": opened.pools,
        "interface": interface_record(setting.interface),
        "seed": setting.seed,
        "surrogate_device": device if setting.device == "auto" else setting.device,
    }


def attempt(setting: Setting, opened: Opened, job: Job, report: Report) -> str:
    """Work on a job in this process; return why it failed, or nothing."""
    try:
        _do_job(setting, opened, job, report)
    except DivQATError as error:
        return " ".join(str(error).split())
    except Exception as error:  # a defect, of which the other entries need not know
        path = setting.place(job.entry.name) / "error.txt"
        write_text(path, traceback.format_exc())
        reason = " ".join(str(error).split())
        return f"{type(error).__name__}: {reason}; {path} tells where"
    return ""


def _do_job(setting: Setting, opened: Opened, job: Job, report: Report) -> None:
    entry, graph, dataset = job.entry, opened.graph, opened.dataset
    config = setting.config(entry, graph)
    progress = _reporting(entry.name, report)
    if entry.pretrained:
        _pretrain(setting, config, dataset)
    record = steal(
        graph,
        config,
        setting.interface,
        dataset,
        pool=entry.pool,
        labels=entry.labels,
        reference=opened.reference,
        seed=setting.seed,
        transcript=setting.place(job.transcript) / "transcript",
        surrogate=setting.place(entry.name) / "surrogate",
        progress=progress,
    )
    record |= {
        **identity(setting, opened),
        "entry": entry.record(),
        "transcript": job.transcript,
    }
    if entry.pretrained:  # not where this machine keeps them
        record["surrogate"]["weights"] = foreign_name(setting.data)
    write_json(setting.measurement(entry.name), record)


def _reporting(entry: str, report: Report) -> Progress:
    @contextmanager
    def progress(name: str, total: int) -> Iterator[Show]:
        asked = name == "queries"
        yield lambda steps, text: report("asked", entry, steps, "") if asked else None

    return progress


# Weights from another data set


def foreign_name(data: DataConfig) -> str:
    """Name the labelled data set that surrogates learn from before they learn from answers."""
    return data.ood or CATALOGUE[data.data].ood


def foreign_labelled(data: DataConfig) -> Dataset:
    """Load that data set.

    Raises:
        DataError: if it has no labels, or is missing.
    """
    name = foreign_name(data)
    if name == PHOTOGRAPHS:
        raise DataError(f"{name} have no labels to learn from")
    return load(DataConfig(name, data.data_root, data.download), foreign=False)


def _pretrain(setting: Setting, config: AttackConfig, dataset: Dataset) -> None:
    """Train the surrogate's architecture on another data set, unless that was done already."""
    place = setting.place(f"pretrained-{config.surrogate}")
    if is_finished(place):
        return
    foreign = foreign_labelled(setting.data)
    images = conform(foreign.train.images[:PRETRAINING_IMAGES], dataset.image_shape)
    with seeded(setting.seed, "pretrained weights"):
        model = build(
            config.surrogate,
            dataset.image_shape,
            foreign.num_classes,
            precision=None,
            width=config.width,
        )
    fit_config = replace(config.fit_config(dataset.augmentation), epochs=PRETRAINING_EPOCHS)
    result = fit(
        model,
        cross_entropy,
        images,
        foreign.train.labels[:PRETRAINING_IMAGES],
        config=fit_config,
        seed=derive_seed(setting.seed, "pretraining"),
    )
    info = CheckpointInfo(
        model=config.surrogate,
        width=config.width,
        precision=None,
        image_shape=dataset.image_shape,
        class_names=foreign.class_names,
        data=foreign.name,
        method={"name": "float"},
        seed=setting.seed,
        best_epoch=PRETRAINING_EPOCHS,
        validation_accuracy=None,
        history=[dict(record) for record in result.history],
    )
    save_checkpoint(place, model, info)
