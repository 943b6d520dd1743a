# SPDX-License-Identifier: BSD-3-Clause
"""Whether the forms of one network and its executors agree, counted on images.

What must be equal to the bit is counted as bits; what differs by rounding, and the labels that it
turns, are counted and not hidden in a tolerance.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import DataError, GraphError
from brevitas_divqat.evaluation import metrics
from brevitas_divqat.evaluation.run import GRAPH_FILE, check_integer_graph
from brevitas_divqat.executors import (
    Executor,
    FastExecutor,
    IntegerExecutor,
    ModuleExecutor,
    ReferenceExecutor,
)
from brevitas_divqat.executors.base import check_images
from brevitas_divqat.export import integer_path, to_integer_graph
from brevitas_divqat.progress import Progress, silent
from brevitas_divqat.training import load_checkpoint

__all__ = ["VERIFIED_EQUAL", "verify"]

SCHEMA = 1
VERIFIED_EQUAL = ("fast = reference", "integer = reference on the integer graph")
"""The comparisons in which a single differing bit is a defect of this package."""

Scores = NDArray[np.float32]


def verify(
    place: Path, images: NDArray[np.uint8], *, progress: Progress = silent
) -> dict[str, Any]:
    """Compare every form and executor of one network on images.

    Args:
        place: a checkpoint's folder that holds ``model.onnx``, or the file of an exported graph;
            the integer graph beside it is taken, or else made.
        images: (N, C, H, W) uint8.
        progress: shows the executors that have run.

    Returns:
        What ``--json`` writes: ``images``, ``graph_sha256``, ``output_scale`` and ``comparisons``,
        each with the images whose scores differ in any bit, by another multiple of the output
        scale, and in the label.

    Raises:
        GraphError: if there is no such graph, it has no integer form, or it is of another network
            than the checkpoint.
        DataError: if there are no images, or they have another type or shape.
        CheckpointError: if the folder holds no finished model.
    """
    file = place / GRAPH_FILE if place.is_dir() else place
    if not file.is_file():
        raise GraphError(f"there is no graph {file}: write it with `divqat export`")
    reference = ReferenceExecutor(file)
    if reference.metadata.form != "exported":
        raise GraphError(f"{file} is an integer graph: give the exported graph that it came from")
    check_images(images, reference.image_shape)
    if not len(images):
        raise DataError("there are no images: executors are compared on one image or more")
    executors: dict[str, Executor] = {
        "reference": reference,
        "fast": FastExecutor(file, verify=False),
    }
    with TemporaryDirectory() as folder:
        integer_file = integer_path(file)
        if integer_file.exists():
            check_integer_graph(integer_file, file)
        else:
            integer_file = Path(folder) / integer_file.name
            integer_file.write_bytes(to_integer_graph(file).model.SerializeToString())
        executors["integer reference"] = ReferenceExecutor(integer_file)
        executors["integer"] = (integer := IntegerExecutor(integer_file, verify=False))
    if place.is_dir():
        executors["brevitas"] = _brevitas(place, reference)
    scores = {}
    with progress("Comparing", len(executors)) as show:
        for name, executor in executors.items():
            scores[name] = executor(images)
            show(1, name)
    pairs = {
        VERIFIED_EQUAL[0]: ("fast", "reference"),
        VERIFIED_EQUAL[1]: ("integer", "integer reference"),
        "Brevitas against exported graph": ("brevitas", "reference"),
        "exported against integer graph": ("reference", "integer"),
        "Brevitas against integer graph": ("brevitas", "integer"),
    }
    step = integer.metadata.output_scale
    return {
        "schema": SCHEMA,
        "kind": "verify",
        "images": len(images),
        "graph_sha256": reference.sha256,
        "output_scale": step,
        "comparisons": {
            name: _compared(scores[a], scores[b], step)
            for name, (a, b) in pairs.items()
            if a in scores
        },
    }


def _brevitas(folder: Path, graph: ReferenceExecutor) -> ModuleExecutor:
    """Load the checkpoint that ``graph`` lies beside."""
    model, info = load_checkpoint(folder)
    if (info.image_shape, info.class_names) != (graph.image_shape, graph.metadata.class_names):
        raise GraphError(
            f"{folder} holds a checkpoint and a graph of other images or classes: write the graph "
            "again with `divqat export`"
        )
    return ModuleExecutor(
        model,
        image_shape=info.image_shape,
        num_classes=len(info.class_names),
        pixel_divisor=graph.metadata.pixel_divisor,
    )


def _compared(a: Scores, b: Scores, step: float) -> dict[str, float]:
    return {
        "bits_differing": int((a.view(np.uint32) != b.view(np.uint32)).any(axis=1).sum()),
        "multiples_differing": metrics.multiples_differing(a, b, step),
        "labels_differing": metrics.labels_differing(a, b),
        "max_abs_difference": float(np.abs(a - b).max(initial=0.0)),
    }
