# SPDX-License-Identifier: BSD-3-Clause
"""Speed and memory of the executors on one exported graph, and whether they agree.

Every measurement runs alone in a fresh process, so that its peak memory and its threads are its
own: this module, started as a program with a task. docs/bench.md tells how to read the record.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.evaluation.bench_process import IMAGES, Answer, Kind, Task, measure_apart
from brevitas_divqat.executors.base import DEFAULT_BATCH
from brevitas_divqat.executors.loading import load_graph
from brevitas_divqat.export import GraphMetadata, to_integer_graph, tool_versions
from brevitas_divqat.export.graph_files import attributes_of, layer_name, with_batch_size
from brevitas_divqat.progress import Progress, Show, silent

__all__ = [
    "SCHEMA",
    "bench_executors",
    "bench_table",
    "check_durations",
    "checked_threads",
    "machine",
]

SCHEMA = 1
THREADS = (1, 2)
REFERENCE_BATCHES = (1, 8, 64, 256)
QCDQ_BATCH = 64
LARGE_BATCH = 256
COMPARED_ONE_BY_ONE = 64
"""Images whose scores are compared at batch size 1, where ``execute_onnx`` takes long."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16")
"""Of the processor, that decide which kernels onnxruntime and torch take."""


def bench_executors(
    model: Path,
    *,
    threads: Sequence[int] | None = None,
    seconds: float = 3.0,
    rounds: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every executor on an exported graph: images per second, peak memory, agreement.

    Args:
        model: a graph that `export_qonnx` wrote.
        threads: numbers of threads to measure with; 1 and 2 by default, as far as there are cores.
        seconds: least time that each measurement takes, beside the start of its process.
        rounds: how often all is measured; the fastest round of each row counts.
        progress: shows how far it is.

    Returns:
        A JSON-serialisable record, see docs/bench.md.

    Raises:
        GraphError: if the file is no exported graph, or ``execute_onnx`` cannot run it.
        ConfigError: if a number is out of its range.
    """
    model = Path(model)
    chosen = checked_threads(threads)
    check_durations(seconds, rounds)
    wrapper, sha256, metadata = load_graph(model)
    if metadata.form != "exported":
        raise GraphError(
            f"{model} is an integer graph: give the exported graph that it was made from"
        )
    with TemporaryDirectory() as name:
        run = _Run(model, wrapper, metadata, Path(name), seconds)
        total = 2 + rounds * len(chosen) * len(run.tasks(1))
        with progress("benchmark", total) as show:
            rows, idle = run.measure(chosen, rounds, show)
    for row in rows:
        _add_ratios(row, rows)
    return {
        "schema": SCHEMA,
        "kind": "bench-executor",
        "model": {
            "name": model.name,
            "sha256": sha256,
            "model": metadata.model,
            "width": metadata.width,
            "bits": metadata.bits,
            "image_shape": list(metadata.image_shape),
            "macs": _count_macs(wrapper),
        },
        "machine": machine(),
        "versions": tool_versions(),
        "settings": {"seconds": seconds, "rounds": rounds},
        "idle_mib": idle,
        "rows": rows,
    }


def check_durations(seconds: float, rounds: int) -> None:
    """Raise ConfigError unless there is time to measure."""
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"seconds is {seconds}: it must be more than 0, and finite")
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}: it must be 1 or more")


def checked_threads(threads: Sequence[int] | None) -> list[int]:
    """Return the numbers of threads to measure with, without repetition, from the least.

    Raises:
        ConfigError: if there are not so many cores.
    """
    cores = len(os.sched_getaffinity(0))
    if threads is None:
        return [number for number in THREADS if number <= cores]
    chosen = sorted(set(threads))
    if not chosen or chosen[0] < 1 or chosen[-1] > cores:
        raise ConfigError(
            f"threads is {list(threads)}: give numbers from 1 to {cores}, the cores at hand"
        )
    return chosen


def machine() -> dict[str, Any]:
    """Describe the processor: its name, the cores at hand, its vector instructions."""
    info = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    flags = set(found.get("flags", "").split())
    return {
        "processor": found.get("model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def _count_macs(graph: Any) -> int:
    """Return the multiplications of one image in convolutions and matrix products."""

    total = 0
    for node in graph.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        first, second = (graph.get_tensor_shape(name) for name in node.input[:2])
        attributes = attributes_of(node)
        if node.op_type == "Conv":
            depth = int(np.prod(second[1:]))
        else:
            depth = first[-2 if attributes.get("transA") else -1]
        total += int(np.prod(graph.get_tensor_shape(node.output[0]))) * depth
    return total


# What is measured


class _Run:
    """All measurements of one graph, and the graphs that are made for them."""

    def __init__(
        self, model: Path, wrapper: Any, metadata: GraphMetadata, folder: Path, seconds: float
    ) -> None:
        self._model = model
        self._metadata = metadata
        self._folder = folder
        self._seconds = seconds
        self._refused: dict[Kind, str] = {}
        self._integer, self._qcdq = folder / "integer.onnx", folder / "qcdq.onnx"
        self._step = 1.0
        try:
            integer = to_integer_graph(wrapper)
            integer.save(str(self._integer))
            self._step = load_graph(self._integer)[2].output_scale
        except GraphError as error:
            self._refused["integer"] = self._plain(error)
        try:
            _to_qcdq(wrapper).save(str(self._qcdq))
        except GraphError as error:
            self._refused["onnxruntime QCDQ"] = self._plain(error)

    def tasks(self, threads: int) -> list[Task]:
        """Return the measurements of one number of threads."""
        rows: list[tuple[Kind, Path, int]] = [
            *(("reference", self._model, batch) for batch in REFERENCE_BATCHES),
            ("onnxruntime QCDQ", self._qcdq, QCDQ_BATCH),
            *(("fast", self._model, batch) for batch in (DEFAULT_BATCH, LARGE_BATCH)),
            *(("integer", self._integer, batch) for batch in (DEFAULT_BATCH, LARGE_BATCH)),
        ]
        return [self._task(kind, graph, batch, threads) for kind, graph, batch in rows]

    def measure(
        self, threads: Sequence[int], rounds: int, show: Show
    ) -> tuple[list[dict[str, Any]], float]:
        """Return the rows, without ratios, and the memory of an idle process in MiB."""
        compared = IMAGES
        first = self._task("idle", self._model, 1, threads[0])
        idle = self._ask(replace(first, compared=0)).content["peak_mib"]
        show(1, "idle process")
        # The largest batch is the common measure of all threads: what the scores should be.
        exact = replace(first, kind="reference", batch=compared, seconds=None, compared=compared)
        expected = {"reference": self._ask(exact).scores}
        if "integer" not in self._refused:
            on_integers = replace(exact, graph=str(self._integer))
            expected["integer"] = self._ask(on_integers).scores
        show(1, "expected scores")
        rows: dict[tuple[str, int, int], dict[str, Any]] = {}
        for number in range(rounds):
            for task in (task for count in threads for task in self.tasks(count)):
                if number:
                    task = replace(task, compared=0)
                row, answer = self._row(task)
                if answer.scores is not None:
                    row |= self._comparison(task, answer.scores, expected)
                key = (task.kind, task.batch, task.threads)
                rows[key] = _faster(rows.get(key), row)
                rate = row.get("images_per_second")
                said = row["status"] if rate is None else f"{rate:.0f} images/s"
                show(1, f"{task.kind}, batch {task.batch}, threads {task.threads}: {said}")
        return list(rows.values()), idle

    def _task(self, kind: Kind, graph: Path, batch: int, threads: int) -> Task:
        return Task(
            kind,
            str(graph),
            batch,
            threads,
            self._metadata.image_shape,
            self._metadata.pixel_divisor,
            self._seconds,
            COMPARED_ONE_BY_ONE if batch == 1 else IMAGES,
        )

    def _row(self, task: Task) -> tuple[dict[str, Any], Answer]:
        row = {"executor": task.kind, "batch": task.batch, "threads": task.threads}
        if task.kind in self._refused:
            reason = self._refused[task.kind]
            return {**row, "status": "not convertible", "reason": reason}, Answer({})
        answer = self._ask(task)
        if "refused" in answer.content:
            reason = self._plain(answer.content["refused"])
            return {**row, "status": "not executable", "reason": reason}, answer
        return {**row, "status": "measured", **answer.content}, answer

    def _ask(self, task: Task) -> Answer:
        answer = measure_apart(task, self._folder)
        if "refused" in answer.content and task.kind in ("idle", "reference"):
            raise GraphError(
                f"{self._model} cannot be measured by execute_onnx at batch size {task.batch}: "
                + answer.content["refused"]
            )
        return answer

    def _plain(self, reason: object) -> str:
        """Return a reason on one line that names no folder of this machine."""
        text = " ".join(str(reason).split())
        for path in (self._model, self._integer, self._qcdq):
            text = text.replace(str(path), path.name)
        return text

    def _comparison(
        self, task: Task, scores: NDArray[Any], expected: dict[str, NDArray[Any] | None]
    ) -> dict[str, Any]:
        exported = expected["reference"]
        assert exported is not None
        exported = exported[: len(scores)]
        compared: dict[str, Any] = {"images": len(scores)}
        if task.kind == "integer":
            integers = expected["integer"]
            assert integers is not None
            differing = (scores != integers).any(axis=1)
            scores = scores.astype(np.float32) * np.float32(self._step)
            beyond = (np.abs(scores - exported) > self._step / 2).any(axis=1)
            compared |= {"output_step": self._step, "beyond_half_step": int(beyond.sum())}
        else:
            differing = (scores.view(np.uint32) != exported.view(np.uint32)).any(axis=1)
        compared |= {
            "differing": int(differing.sum()),
            "labels_differing": int((scores.argmax(1) != exported.argmax(1)).sum()),
            "max_abs_difference": float(np.abs(scores - exported).max()),
        }
        return {"identical": not differing.any(), "compared": compared}


def _faster(before: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    """Return the faster of two rounds, with the comparison, which the first one alone makes."""
    if before is None:
        return row
    best = max(before, row, key=lambda one: one.get("images_per_second", 0.0))
    return before | best


def _add_ratios(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if row["status"] != "measured":
        return
    rates = {
        other["batch"]: other["images_per_second"]
        for other in rows
        if (other["executor"], other["threads"]) == ("reference", row["threads"])
    }
    row["ratio_to_batch_1"] = row["images_per_second"] / rates[1]
    row["ratio_to_best_reference"] = row["images_per_second"] / max(rates.values())


def _to_qcdq(wrapper: Any) -> Any:
    """Return an exported graph in QuantizeLinear, Clip, DequantizeLinear, by qonnx.

    Raises:
        GraphError: naming a quantizer that qonnx has left as it was.
    """
    from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ

    try:
        graph = with_batch_size(wrapper, QCDQ_BATCH).transform(QuantToQCDQ())
    except Exception as error:  # whatever qonnx and onnxscript raise: there is no such graph
        raise GraphError(f"QuantToQCDQ fails ({type(error).__name__}: {error})") from error
    left = [node for node in graph.graph.node if node.domain not in ("", "ai.onnx")]
    if left:
        node = left[0]
        bits = graph.get_initializer(node.input[3]) if node.op_type == "Quant" else None
        width = "" if bits is None else f" of {float(np.ravel(bits)[0]):g} bits"
        raise GraphError(
            f"QuantToQCDQ has no rule for {node.op_type}{width} in {layer_name(node)}"
            + (f", and leaves {len(left) - 1} more" if len(left) > 1 else "")
        )
    return graph


# The table


def bench_table(record: dict[str, Any]) -> Table:
    """Build the table of a record of `bench_executors`."""
    model, machine = record["model"], record["machine"]
    rows = record["rows"]
    table = Table(
        title=Text(
            f"{model['name']}: {model['macs']:,} multiplications per image of "
            f"{' × '.join(map(str, model['image_shape']))}",
            style="bold",
        ),
        caption=Text(
            "\n".join(
                [
                    f"{machine['processor']}, {machine['cores']} cores, "
                    f"{', '.join(machine['flags']) or 'no AVX2'}.",
                    f"Peak MiB: of the process, of which {record['idle_mib']:.0f} are imports.",
                    *dict.fromkeys(note for row in rows for note in _notes(row)),
                ]
            ),
            style="dim",
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    names = ("batch", "threads", "images/s", "× batch 1", "× best reference", "peak MiB")
    table.add_column("executor")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("identical")
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["executor"], str(row["batch"]), str(row["threads"])]
    if row["status"] != "measured":
        return [*cells, "", "", "", "", row["status"]]
    compared = row["compared"]
    rate = row["images_per_second"]
    return [
        *cells,
        f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}",
        f"{row['ratio_to_batch_1']:,.1f}",
        f"{row['ratio_to_best_reference']:.2f}",
        f"{row['peak_mib']:.0f}",
        f"yes ({compared['images']})"
        if row["identical"]
        else f"no: {compared['differing']} of {compared['images']}",
    ]


def _notes(row: dict[str, Any]) -> list[str]:
    if row["status"] != "measured":
        return [f"{row['executor']}: {row['status']}, {row['reason']}."]
    compared = row["compared"]
    of = f"of {compared['images']} images"
    if row["executor"] == "integer":
        return [
            "integer: compared with execute_onnx on the integer graph. From the exported graph "
            f"{compared['beyond_half_step']} {of} differ by more than half an output step, "
            f"{compared['labels_differing']} in their label."
        ]
    if not row["identical"]:
        return [
            f"{row['executor']}, batch {row['batch']}: up to {compared['max_abs_difference']:.2g} "
            f"apart, {compared['labels_differing']} {of} in their label."
        ]
    return []
