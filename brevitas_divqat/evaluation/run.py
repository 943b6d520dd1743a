# SPDX-License-Identifier: BSD-3-Clause
"""A run: from data to stolen surrogates, in one folder, each step resumable.

::

    RUN/config.yaml  environment.json
    RUN/float  RUN/qat  RUN/divqat         checkpoints; the last two with both graphs
    RUN/surrogates/VICTIM-POOL-LABELS      what the attacks returned
    RUN/transcripts/VICTIM-POOL-LABELS     what they asked and were answered
    RUN/measurements/*.json                one file per measurement
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brevitas_divqat.attacks import AttackConfig, Labels
from brevitas_divqat.data import Dataset, load_pool
from brevitas_divqat.errors import ConfigError, ExportError, GraphError, RunExists
from brevitas_divqat.evaluation.config import CONFIG_FILE, ENVIRONMENT_FILE, RunConfig, settings_of
from brevitas_divqat.evaluation.measure import (
    PoolKind,
    interface_record,
    victim_record,
)
from brevitas_divqat.evaluation.theft import (
    check_fits,
    check_no_file_in_the_way,
    check_pool,
    is_measured,
    steal,
)
from brevitas_divqat.executors import (
    Executor,
    ExecutorConfig,
    GraphExecutor,
    ModuleExecutor,
    open_executor,
)
from brevitas_divqat.export import (
    GraphMetadata,
    export_integer,
    export_qonnx,
    integer_path,
    is_integer_graph_of,
    tool_versions,
)
from brevitas_divqat.files import locked, make_folder, write_json
from brevitas_divqat.models import build
from brevitas_divqat.progress import Progress, silent
from brevitas_divqat.quant import INPUT_SCALE
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import (
    Method,
    check_fit,
    check_identity,
    check_warmup,
    load_checkpoint,
    train_float,
    train_quantized,
)
from brevitas_divqat.victims import OutputInterface

__all__ = [
    "METHODS",
    "POOLS",
    "Exported",
    "attack",
    "check_float",
    "check_folder",
    "check_integer_graph",
    "check_settings",
    "export",
    "measure_victim",
    "open_folder",
    "run",
    "take_float",
    "train",
]

METHODS: tuple[Method, ...] = ("qat", "divqat")
POOLS: tuple[PoolKind, ...] = ("in", "ood")
GRAPH_FILE = "model.onnx"
OF_FLOAT = (
    *("data", "model", "width", "seed", "float_epochs", "batch_size", "float_optimizer"),
    *("float_lr", "float_decay", "augmentation", "device", "precision"),
)
"""The settings that decide the weights of a run's full-precision network."""


def check_folder(config: RunConfig, folder: Path, *, resume: bool) -> None:
    """Check, without touching it, that a run may be written to ``folder``.

    Raises:
        RunExists: if it holds a run and ``resume`` is not given, or other files.
        ConfigError: if it holds a run with other settings, or cannot be a folder.
    """
    if (folder / CONFIG_FILE).exists():
        if not resume:
            raise RunExists(
                f"{folder} holds a run already: go on with --resume or choose another --out"
            )
        config.check_same(folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise RunExists(f"{folder} is not empty and holds no run: choose another --out")
    check_no_file_in_the_way(folder)


def check_settings(config: RunConfig, dataset: Dataset, folder: Path) -> None:
    """Check that the settings fit the data set, before time is spent on them.

    Args:
        config: of the run.
        dataset: of the run.
        folder: of the run, which may have begun.

    Raises:
        ConfigError: if the victim or the surrogate does not take such images, the interface shows
            more than there are classes, the device is not there, alpha would still rise at the end
            of the training, or the run began with other images to draw outliers from.
        DataError: if there are fewer training images than one batch, or outliers to be drawn that
            cannot be read.
    """
    attack_config = config.attack.knowing(config.model.model, config.model.width)
    with seeded(config.seed):
        for name, precision, width in (
            (config.model.model, config.model.precision, config.model.width),
            (attack_config.surrogate, None, attack_config.width),
        ):
            build(name, dataset.image_shape, dataset.num_classes, precision=precision, width=width)
    config.interface.check_classes(dataset.num_classes)
    if config.training.outlier_images is not None:
        path = config.training.outlier_images
        pool = load_pool(path, dataset.image_shape, "--outlier-images")
        check_identity(pool, folder / "divqat")
    for quantized in (False, True):
        fit_config = config.training.fit_config(quantized=quantized, augmentation="none")
        check_fit(fit_config, len(dataset.train))
    check_warmup(config.loss, fit_config, len(dataset.train))
    attack_config.check_training()


def open_folder(config: RunConfig, folder: Path, *, resume: bool) -> Path:
    """Make a run's folder with its resolved configuration and environment, or go on in one.

    Raises:
        RunExists, ConfigError: see `check_folder`.
    """
    check_folder(config, folder, resume=resume)
    make_folder(folder)
    config.write(folder)
    environment: dict[str, Any] = {
        "versions": tool_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    _record_environment(folder / ENVIRONMENT_FILE, environment)
    return folder


def _record_environment(path: Path, now: dict[str, Any]) -> None:
    """Keep the environment that the run began in, and list others that it went on in."""
    try:
        first = json.loads(path.read_text()) if path.exists() else now
        later = first.setdefault("resumed_in", []) if first != now else []
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: delete it to go on") from error
    began = {key: value for key, value in first.items() if key != "resumed_in"}
    if now != began and now not in later:
        later.append(now)
    write_json(path, first)


def check_float(config: RunConfig, source: Path) -> None:
    """Check that the run in ``source`` has the full-precision network that this one would train.

    Raises:
        ConfigError: naming the settings that differ.
        CheckpointError: if the run has none that is finished.
    """
    before = settings_of(source)
    now = config.flat()
    changed = [f"{n} ({before.get(n)} -> {now[n]})" for n in OF_FLOAT if before.get(n) != now[n]]
    if changed:
        raise ConfigError(
            f"the full-precision network of {source} has other settings: {', '.join(changed)}; "
            "leave --float-of out to train one"
        )
    load_checkpoint(source / "float")


def take_float(config: RunConfig, source: Path, folder: Path) -> None:
    """Copy the full-precision network of the run in ``source``, unless ``folder`` has begun one.

    Raises:
        ConfigError, CheckpointError: see `check_float`.
    """
    check_float(config, source)
    if not (folder / "float").exists():
        shutil.copytree(source / "float", folder / "float.part", dirs_exist_ok=True)
        (folder / "float.part").rename(folder / "float")


def train(
    config: RunConfig,
    dataset: Dataset,
    folder: Path,
    methods: Sequence[Method] = METHODS,
    *,
    progress: Progress = silent,
) -> None:
    """Train the full-precision network and, from its weights, one victim per method.

    What is finished in ``folder`` is kept, what is unfinished goes on.
    """
    reference = train_float(
        config.model,
        config.training,
        dataset,
        folder / "float",
        seed=config.seed,
        resume=True,
        progress=progress,
    )
    for method in methods:
        train_quantized(
            method,
            reference,
            config.model,
            config.training,
            config.loss,
            dataset,
            folder / method,
            seed=config.seed,
            resume=True,
            progress=progress,
        )


@dataclass(frozen=True)
class Exported:
    """What became of a quantized model.

    Attributes:
        graph: the exported graph's file.
        integer: the integer graph's file; None where there is no integer form.
        reason: why there is none, and what to change.
    """

    graph: Path
    integer: Path | None
    reason: str = ""


def export(checkpoint: Path, path: Path | None = None) -> Exported:
    """Export a finished quantized model, as the exported graph and as the integer graph.

    Args:
        checkpoint: its folder.
        path: the exported graph's file; ``model.onnx`` beside the checkpoint by default. The
            integer graph lies beside it, see `integer_path`.

    Returns:
        The files.

    Raises:
        ExportError: if it is not quantized, or has no QONNX form.
    """
    model, info = load_checkpoint(checkpoint)
    if info.precision is None:
        raise ExportError(
            f"{checkpoint} is in full precision, which no accelerator runs: export the "
            "quantized network beside it, qat or divqat"
        )
    metadata = GraphMetadata(
        image_shape=info.image_shape,
        pixel_divisor=1 / INPUT_SCALE,
        class_names=info.class_names,
        data=info.data,
        model=info.model,
        width=info.width,
        bits=info.bits,
        method=info.method,
    )
    file = export_qonnx(model, path or checkpoint / GRAPH_FILE, metadata)
    integer_path(file).unlink(missing_ok=True)
    return _with_integer(file)


def _with_integer(file: Path) -> Exported:
    """Find the integer graph beside an exported graph, or make it."""
    integer = integer_path(file)
    if integer.exists():
        check_integer_graph(integer, file)
        return Exported(file, integer)
    try:
        return Exported(file, export_integer(file))
    except GraphError as error:
        return Exported(file, None, str(error))


def check_integer_graph(integer: Path, exported: Path) -> None:
    """Raise GraphError unless an integer graph's file was made from an exported graph's file."""
    if not is_integer_graph_of(integer, exported):
        raise GraphError(
            f"{integer} was not made from {exported}: delete it and export the checkpoint again"
        )


def attack(
    graph: GraphExecutor,
    config: AttackConfig,
    interface: OutputInterface,
    dataset: Dataset,
    *,
    pool: PoolKind,
    labels: Labels,
    reference: Executor | None,
    seed: int,
    folder: Path,
    resume: bool = False,
    progress: Progress = silent,
) -> Path:
    """Steal one victim once, measure the surrogate, keep both and the transcript.

    Args:
        graph: the deployed graph.
        config: the thief's resources and choices.
        interface: what the victim shows.
        dataset: the thief's pools, and the images that judge the surrogate.
        pool: which pool the thief owns, if any.
        labels: what is made of an answer.
        reference: the full-precision original, if at hand.
        seed: of the attack.
        folder: of the run.
        resume: go on from the transcript of an attack that was interrupted.
        progress: shows queries and epochs.

    Returns:
        The measurement's file.

    Raises:
        GraphError: if the graph is of other images or classes than the data set.
        RunExists: if ``folder`` holds this attack already, or its beginning without ``resume``.
        ConfigError: if ``folder`` holds measurements of another graph of this victim, or another
            process is at work on this attack.
        AttackError: if the victim fails on the way; the transcript is kept.
    """
    victim_name = graph.metadata.method.get("name", "victim")
    name = _attack_name(victim_name, config, pool, labels)
    check_pool(config, pool, labels)
    check_fits(graph, dataset)
    config = config.knowing(graph.metadata.model, graph.metadata.width)
    path = _measurement(folder, f"extraction-{name}")
    if path.exists():
        raise RunExists(f"{path} holds this attack already: choose another --out")
    transcripts = folder / "transcripts" / name
    if transcripts.exists() and not resume:
        raise RunExists(
            f"{transcripts} holds the beginning of this attack: go on with --resume or choose "
            "another --out"
        )
    is_measured(
        _measurement(folder, f"victim-{victim_name}"),
        {"graph_sha256": graph.sha256, "split": dataset.judged_on},
    )
    check_no_file_in_the_way(path.parent)
    with locked(transcripts):
        record = steal(
            graph,
            config,
            interface,
            dataset,
            pool=pool,
            labels=labels,
            reference=reference,
            seed=seed,
            transcript=transcripts,
            surrogate=folder / "surrogates" / name,
            progress=lambda step, total: progress(f"{name}: {step}", total),
        )
        write_json(path, record)
    return path


def _attack_name(victim: str, config: AttackConfig, pool: PoolKind, labels: Labels) -> str:
    """Name an attack's files by what sets it apart from random KnockoffNets, plainly trained."""
    parts = [victim]
    if config.policy != "random":
        parts.append(f"{config.attack}-{config.policy}")
    elif config.attack != "knockoff":
        parts.append(config.attack)
    parts += [pool, labels]
    if config.training != "plain":
        parts.append(config.training)
    if config.copies > 1:
        parts.append(f"{config.copies}-{config.copy_kind}")
    return "-".join(parts)


def run(config: RunConfig, dataset: Dataset, folder: Path, *, progress: Progress = silent) -> None:
    """Train, export, measure and steal {plain QAT, DivQAT}; what is done in ``folder`` is kept.

    Each victim is attacked with both pools and with soft and hard labels, or with hard labels alone
    where the interface shows nothing else.
    """
    train(config, dataset, folder, progress=progress)
    reference = _executor(load_checkpoint(folder / "float")[0], dataset)
    labels: tuple[Labels, ...] = ("soft", "hard")
    if config.interface.interface == "label":
        labels = ("hard",)
    for method in METHODS:
        file = folder / method / GRAPH_FILE
        exported = _with_integer(file) if file.exists() else export(folder / method)
        graph = _deployed(exported, config.executor)
        measure_victim(folder / method, graph, reference, dataset, folder)
        expected = {
            "graph_sha256": graph.sha256,
            "executor": graph.name,
            "seed": config.seed,
            "budget": config.attack.budget,
            "policy": config.attack.policy,
            "interface": interface_record(config.interface),
            "split": dataset.judged_on,
        }
        for pool in POOLS:
            for kind in labels:
                name = _attack_name(method, config.attack, pool, kind)
                path = _measurement(folder, f"extraction-{name}")
                if not is_measured(path, expected):
                    attack(
                        graph,
                        config.attack,
                        config.interface,
                        dataset,
                        pool=pool,
                        labels=kind,
                        reference=reference,
                        seed=config.seed,
                        folder=folder,
                        resume=True,
                        progress=progress,
                    )


def _deployed(exported: Exported, config: ExecutorConfig) -> GraphExecutor:
    if config.executor != "integer":
        return open_executor(exported.graph, config)
    if exported.integer is None:
        raise GraphError(f"there is no integer graph to serve: {exported.reason}")
    return open_executor(exported.integer, config)


def measure_victim(
    checkpoint: Path,
    graph: GraphExecutor,
    reference: Executor,
    dataset: Dataset,
    folder: Path,
) -> None:
    """Measure a victim, unless ``folder`` holds that measurement already.

    Args:
        checkpoint: the folder of the model that the graph was exported from.
        graph: the deployed graph.
        reference: the full-precision original.
        dataset: holds the images that judge it.
        folder: of the run.
    """
    model, info = load_checkpoint(checkpoint)
    path = _measurement(folder, f"victim-{info.method['name']}")
    if is_measured(
        path, {"graph_sha256": graph.sha256, "seed": info.seed, "split": dataset.judged_on}
    ):
        return
    beside = integer_path(checkpoint / GRAPH_FILE)
    integer = None
    if graph.metadata.form == "exported" and beside.exists():
        check_integer_graph(beside, checkpoint / GRAPH_FILE)
        integer = open_executor(beside)
    record = victim_record(
        info,
        graph=graph,
        integer=integer,
        model=_executor(model, dataset),
        reference=reference,
        parameters=sum(p.numel() for p in model.parameters()),
        dataset=dataset,
    )
    write_json(path, record)


def _measurement(folder: Path, name: str) -> Path:
    return folder / "measurements" / f"{name}.json"


def _executor(model: nn.Module, dataset: Dataset) -> ModuleExecutor:
    return ModuleExecutor(model, image_shape=dataset.image_shape, num_classes=dataset.num_classes)
