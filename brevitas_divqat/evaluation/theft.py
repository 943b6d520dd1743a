# SPDX-License-Identifier: BSD-3-Clause
"""One attack on one deployed graph, measured: what single attacks and batteries share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_divqat.attacks import AttackConfig, Labels, Resources
from brevitas_divqat.attacks.shadows import NEED_SHADOWS
from brevitas_divqat.attacks.trainings import USE_POOL
from brevitas_divqat.data import Dataset
from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.evaluation.measure import PoolKind, extraction_record
from brevitas_divqat.executors import Executor, GraphExecutor, ModuleExecutor
from brevitas_divqat.export import GraphMetadata
from brevitas_divqat.loss import LossConfig
from brevitas_divqat.models import MODELS, Precision, build
from brevitas_divqat.progress import Progress, silent
from brevitas_divqat.training import CheckpointInfo, load_checkpoint, save_checkpoint
from brevitas_divqat.victims import OutputInterface, Victim

__all__ = [
    "check_fits",
    "check_no_file_in_the_way",
    "check_pool",
    "is_measured",
    "load_original",
    "precision_of",
    "published_defence",
    "resources_of",
    "steal",
]


BEFORE_SPLITS = {"split": "test"}
"""What measurements did not say before there was a choice."""


def steal(
    graph: GraphExecutor,
    config: AttackConfig,
    interface: OutputInterface,
    dataset: Dataset,
    *,
    pool: PoolKind,
    labels: Labels,
    reference: Executor | None,
    seed: int,
    transcript: Path,
    surrogate: Path,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Steal one victim once, keep transcript and surrogate, measure the surrogate.

    Args:
        graph: the deployed graph.
        config: the thief's choices, with the surrogate's architecture named, see
            `AttackConfig.knowing`.
        interface: what the victim shows.
        dataset: the thief's pools, and the images that judge the surrogate.
        pool: which pool the thief owns, if any.
        labels: what is made of an answer.
        reference: the full-precision original, if at hand.
        seed: of the attack.
        transcript: folder of what is asked and answered; one that holds the beginning of this very
            attack is gone on with.
        surrogate: folder of the stolen model.
        progress: shows queries and epochs.

    Returns:
        The measurement, see docs/measurements.md.

    Raises:
        ConfigError: if the attack does not fit the victim.
        AttackError: if the victim fails on the way; the transcript is kept.
    """
    victim = Victim(graph, interface=interface, budget=config.budget)
    prepared = config.prepared(labels, dataset.augmentation, published_defence(graph.metadata))
    extraction = prepared(
        victim,
        resources_of(graph, config, dataset, pool=pool, seed=seed),
        points=config.points,
        folder=transcript,
        graph_sha256=graph.sha256,
        progress=progress,
    )
    record = extraction_record(
        extraction,
        graph=graph,
        reference=reference,
        dataset=dataset,
        pool_kind=pool,
        labels=labels,
        interface=interface,
        attack=config,
        seed=seed,
    )
    info = CheckpointInfo(
        model=config.surrogate,
        width=config.width,
        precision=precision_of(graph.metadata) if config.surrogate_bits == "victim" else None,
        image_shape=graph.image_shape,
        class_names=graph.metadata.class_names,
        data=dataset.name,
        method={
            "name": config.attack,
            "policy": record["policy"],
            "pool": pool,
            "labels": labels,
            "training": config.training,
        },
        seed=seed,
        best_epoch=config.surrogate_epochs,
        validation_accuracy=None,
        history=extraction.history,
    )
    save_checkpoint(surrogate, extraction.surrogate, info)
    return record


def resources_of(
    graph: GraphExecutor, config: AttackConfig, dataset: Dataset, *, pool: PoolKind, seed: int
) -> Resources:
    """Gather what a thief owns who attacks ``graph``.

    Args:
        graph: the deployed graph, of which the thief knows architecture and bit widths.
        config: with the surrogate's architecture named, see `AttackConfig.knowing`.
        dataset: holds the pools.
        pool: which of them the thief owns, if any.
        seed: of the attack.
    """
    metadata = graph.metadata
    bits = precision_of(metadata)
    shape, classes = graph.image_shape, graph.num_classes

    def shadow(quantized: bool) -> nn.Module:
        precision = bits if quantized else None
        return build(metadata.model, shape, classes, precision=precision, width=metadata.width)

    return Resources(
        budget=config.budget,
        surrogate=config.surrogate_factory(shape, classes, bits),
        seed=seed,
        pool=None if pool == "none" else dataset.pools[pool].images,
        shadow=shadow if bits is not None and metadata.model in MODELS else None,
    )


def precision_of(metadata: GraphMetadata) -> Precision | None:
    """Return a graph's bit widths as its network is built with them; None where it tells none."""
    bits = metadata.bits
    if not {"weight", "activation", "edge"} <= bits.keys():
        return None
    return Precision(weight=bits["weight"], activation=bits["activation"], edge=bits["edge"])


def published_defence(metadata: GraphMetadata) -> LossConfig | None:
    """Return the settings of DivQAT that a victim was trained with; None for any other victim."""
    method = metadata.method
    if method.get("name") != "divqat":
        return None
    return LossConfig(**{f.name: method[f.name] for f in fields(LossConfig) if f.name in method})


def check_pool(config: AttackConfig, pool: PoolKind, labels: Labels) -> None:
    """Raise ConfigError if an attack lacks a pool that it needs, or has one that it does not."""
    asks = config.strategy().needs_pool
    if pool == "none" and asks:
        raise ConfigError(
            f"the attack {config.attack!r} asks about images of a pool: give --images in or ood"
        )
    uses = asks or config.training in USE_POOL or labels in NEED_SHADOWS
    if pool != "none" and not uses:
        raise ConfigError(
            f"the attack {config.attack!r} with labels {labels!r} and training "
            f"{config.training!r} uses no pool, so that --images {pool} is without effect: leave "
            "it out"
        )


def check_fits(graph: GraphExecutor, dataset: Dataset) -> None:
    """Check that a graph was made for a data set.

    Raises:
        GraphError: if the graph is of other data, images or classes.
    """
    if graph.metadata.data not in ("unknown", dataset.name):
        raise GraphError(
            f"the graph was trained on {graph.metadata.data}, but the data set is {dataset.name}: "
            f"give --data {graph.metadata.data}"
        )
    got, expected = (
        (graph.image_shape, graph.num_classes),
        (dataset.image_shape, dataset.num_classes),
    )
    if got != expected:
        raise GraphError(
            f"the graph takes images of shape {got[0]} and has {got[1]} classes, but "
            f"{dataset.name} has images of shape {expected[0]} and {expected[1]} classes: choose "
            "the data set that the graph was trained on"
        )


def load_original(folder: Path, graph: GraphExecutor) -> ModuleExecutor:
    """Load the full-precision original of ``graph``.

    Args:
        folder: of its checkpoint.
        graph: the deployed graph.

    Raises:
        ConfigError: if it is quantized, or of other images or classes.
        CheckpointError: if there is none.
    """
    model, info = load_checkpoint(folder)
    if info.precision is not None:
        raise ConfigError(f"{folder} is a quantized network: give the full-precision original's")
    if (info.image_shape, info.class_names) != (graph.image_shape, graph.metadata.class_names):
        raise ConfigError(f"{folder} has other images or classes than the graph: give its original")
    return ModuleExecutor(model, image_shape=info.image_shape, num_classes=graph.num_classes)


def is_measured(
    path: Path,
    expected: Mapping[str, Any],
    *,
    remedy: str = "delete it to measure again, or choose another --out",
) -> bool:
    """Tell whether a measurement is there, and refuse one that was made of something else.

    Args:
        path: of its file.
        expected: what it must hold.
        remedy: what to do if it holds something else.

    Raises:
        ConfigError: naming the file and what differs.
    """
    if not path.exists():
        return False
    try:
        record = BEFORE_SPLITS | json.loads(path.read_text())
        got = {key: record[key] for key in expected}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: delete it to measure again") from error
    different = [key for key in expected if got[key] != expected[key]]
    if different:
        key = different[0]
        raise ConfigError(
            f"{path} is of another run: {key} is {got[key]}, here {expected[key]}; {remedy}"
        )
    return True


def check_no_file_in_the_way(folder: Path) -> None:
    """Raise ConfigError if ``folder`` cannot be made, since a file has its name or a parent's."""
    if any(parent.is_file() for parent in (folder, *folder.parents)):
        raise ConfigError(
            f"{folder} cannot be a folder, a file is in the way: choose another --out"
        )
