# SPDX-License-Identifier: BSD-3-Clause
"""Speed and memory of the executors on one exported graph, and whether they agree.

Every measurement runs alone in a fresh process, so that its peak memory and its threads are its
own: this module, started as a program with a task. docs/bench.md tells how to read the record.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.executors import Executor, ReferenceExecutor
from brevitas_divqat.executors.base import filled_batches
from brevitas_divqat.executors.fast import FastExecutor
from brevitas_divqat.executors.integer import IntegerExecutor
from brevitas_divqat.executors.loading import load_graph
from brevitas_divqat.export import GraphMetadata, to_integer_graph, tool_versions
from brevitas_divqat.export.graph_files import layer_name, with_batch_size
from brevitas_divqat.progress import Progress, Show, silent

__all__ = ["SCHEMA", "bench_executors", "bench_table"]

SCHEMA = 1
THREADS = (1, 2)
REFERENCE_BATCHES = (1, 8, 64, 256)
QCDQ_BATCH = 64
PASSES = 3
"""At least, of each measurement."""
IMAGES = 256
"""That are asked again and again: a multiple of every batch size."""
COMPARED_ONE_BY_ONE = 64
"""Images whose scores are compared at batch size 1, where ``execute_onnx`` takes long."""
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni")
"""Of the processor, that decide which kernels onnxruntime takes."""

Kind = Literal["idle", "reference", "onnxruntime QCDQ", "fast", "integer"]


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
    chosen = _checked_threads(threads)
    if not seconds > 0:
        raise ConfigError(f"seconds is {seconds}: it must be more than 0")
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}: it must be 1 or more")
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
        "machine": _machine(),
        "versions": tool_versions(),
        "settings": {"seconds": seconds, "rounds": rounds},
        "idle_mib": idle,
        "rows": rows,
    }


def _checked_threads(threads: Sequence[int] | None) -> list[int]:
    cores = len(os.sched_getaffinity(0))
    if threads is None:
        return [number for number in THREADS if number <= cores]
    chosen = sorted(set(threads))
    if not chosen or chosen[0] < 1 or chosen[-1] > cores:
        raise ConfigError(
            f"threads is {list(threads)}: give numbers from 1 to {cores}, the cores at hand"
        )
    return chosen


def _machine() -> dict[str, Any]:
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
    from onnx import helper

    total = 0
    for node in graph.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        first, second = (graph.get_tensor_shape(name) for name in node.input[:2])
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            depth = int(np.prod(second[1:]))
        else:
            depth = first[-2 if attributes.get("transA") else -1]
        total += int(np.prod(graph.get_tensor_shape(node.output[0]))) * depth
    return total


# What is measured


@dataclass(frozen=True)
class _Task:
    """One measurement, as its process is told it.

    Attributes:
        kind: what runs.
        graph: its file.
        batch: images per pass of the executor.
        threads: of onnxruntime.
        image_shape: (channels, height, width).
        pixel_divisor: of the exported graph; a QCDQ graph does not tell it.
        seconds: to time for; None for no timing.
        compared: number of images whose scores are wanted.
    """

    kind: Kind
    graph: str
    batch: int
    threads: int
    image_shape: tuple[int, int, int]
    pixel_divisor: float
    seconds: float | None
    compared: int


@dataclass(frozen=True)
class _Answer:
    """What a process answers.

    Attributes:
        content: ``refused``, the reason why it cannot run; or else ``peak_mib`` and the times.
        scores: of the compared images; the integer graph's are integers.
    """

    content: dict[str, Any]
    scores: NDArray[Any] | None = None


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

    def tasks(self, threads: int) -> list[_Task]:
        """Return the measurements of one number of threads."""
        rows: list[tuple[Kind, Path, int]] = [
            *(("reference", self._model, batch) for batch in REFERENCE_BATCHES),
            ("onnxruntime QCDQ", self._qcdq, QCDQ_BATCH),
            ("fast", self._model, _default_batch(FastExecutor)),
            ("integer", self._integer, _default_batch(IntegerExecutor)),
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

    def _task(self, kind: Kind, graph: Path, batch: int, threads: int) -> _Task:
        return _Task(
            kind,
            str(graph),
            batch,
            threads,
            self._metadata.image_shape,
            self._metadata.pixel_divisor,
            self._seconds,
            COMPARED_ONE_BY_ONE if batch == 1 else IMAGES,
        )

    def _row(self, task: _Task) -> tuple[dict[str, Any], _Answer]:
        row = {"executor": task.kind, "batch": task.batch, "threads": task.threads}
        if task.kind in self._refused:
            reason = self._refused[task.kind]
            return {**row, "status": "not convertible", "reason": reason}, _Answer({})
        answer = self._ask(task)
        if "refused" in answer.content:
            reason = self._plain(answer.content["refused"])
            return {**row, "status": "not executable", "reason": reason}, answer
        return {**row, "status": "measured", **answer.content}, answer

    def _ask(self, task: _Task) -> _Answer:
        answer = _measure_apart(task, self._folder)
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
        self, task: _Task, scores: NDArray[Any], expected: dict[str, NDArray[Any] | None]
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


def _default_batch(executor: type) -> int:
    return int(inspect.signature(executor).parameters["batch_size"].default)


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


# In a process of its own


def _measure_apart(task: _Task, folder: Path) -> _Answer:
    """Measure in a fresh process."""
    result, scores = folder / "result.json", folder / "scores.npy"
    scores.unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, json.dumps(asdict(task)), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode < 0:
        return _Answer({"refused": f"ended by signal {-done.returncode}: not enough memory?"})
    if done.returncode:
        raise RuntimeError(f"measuring {task.kind} failed:\n{done.stderr[-4000:]}")
    return _Answer(json.loads(result.read_text()), np.load(scores) if scores.exists() else None)


def _measure(task: _Task) -> _Answer:
    """Measure in this process."""
    with _sessions_of(task.threads):
        _import_all()
        if task.kind == "idle":
            return _Answer({"peak_mib": _peak_mib()})
        try:
            executor = _open(task)
            images = _images(task.image_shape)
            executor(images[: task.batch])
            content = {} if task.seconds is None else _timed(executor, images, task)
        except GraphError as error:
            return _Answer({"refused": str(error)})
        content["peak_mib"] = _peak_mib()
        if not task.compared:
            return _Answer(content)
        asked = images[: task.compared]
        if isinstance(executor, IntegerExecutor):
            return _Answer(content, executor.integers(asked))
        return _Answer(content, executor(asked))


@contextmanager
def _sessions_of(threads: int) -> Iterator[None]:
    """Give every session that is opened without options a number of threads.

    ``execute_onnx`` opens a session for each node with onnxruntime's defaults, which take all
    cores, and has no parameter for that.
    """
    import onnxruntime

    opened = onnxruntime.InferenceSession

    def with_threads(model: Any, sess_options: Any = None, **rest: Any) -> Any:
        if sess_options is None:
            sess_options = onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = threads
        return opened(model, sess_options, **rest)

    onnxruntime.InferenceSession = with_threads
    try:
        yield
    finally:
        onnxruntime.InferenceSession = opened


def _import_all() -> None:
    """Import what any executor needs, so that an idle process tells what that alone takes."""
    import onnx  # noqa: F401
    import qonnx.core.modelwrapper
    import qonnx.core.onnx_exec
    import qonnx.custom_op.registry
    import qonnx.transformation.change_batchsize
    import qonnx.transformation.fold_constants
    import qonnx.transformation.infer_shapes  # noqa: F401


def _open(task: _Task) -> Executor:
    path = Path(task.graph)
    if task.kind == "fast":
        return FastExecutor(path, batch_size=task.batch, threads=task.threads, verify=False)
    if task.kind == "integer":
        return IntegerExecutor(path, batch_size=task.batch, threads=task.threads, verify=False)
    if task.kind == "onnxruntime QCDQ":
        return _QCDQ(task)
    reference = ReferenceExecutor(path, batch_size=task.batch)
    if reference.metadata.form == "integer":
        # Integers, as they leave the graph, are what the integer executor is compared with.
        reference.metadata = replace(reference.metadata, output_scale=1.0)
    return reference


class _QCDQ:
    """onnxruntime as it is, with all its optimisations, on the QCDQ graph of a fixed batch size."""

    name = "onnxruntime QCDQ"

    def __init__(self, task: _Task) -> None:
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(task.graph)
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise GraphError(f"onnxruntime refuses the QCDQ graph ({error})") from error
        self._input = self._session.get_inputs()[0].name
        self._divisor = np.float32(task.pixel_divisor)
        self._batch = task.batch
        self.image_shape = task.image_shape
        self.num_classes = int(self._session.get_outputs()[0].shape[1])

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = np.empty((len(images), self.num_classes), np.float32)
        for start, count, batch in filled_batches(images, self._batch):
            pixels = batch.astype(np.float32) / self._divisor
            scores[start : start + count] = self._session.run(None, {self._input: pixels})[0][
                :count
            ]
        return scores


def _images(image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Draw seeded images: half noise of every pixel, half coarse patches of a random contrast."""
    rng = np.random.default_rng(0)
    channels, height, width = image_shape
    noise = rng.integers(0, 256, (IMAGES // 2, *image_shape))
    coarse = rng.integers(0, 256, (IMAGES // 2, channels, -(-height // 4), -(-width // 4)))
    patches = coarse.repeat(4, axis=2).repeat(4, axis=3)[..., :height, :width]
    dimmed = patches * rng.uniform(0.1, 1.0, (len(patches), 1, 1, 1))
    mixed = np.stack([noise, dimmed], axis=1)  # taking turns, so that a few hold both
    return mixed.reshape(-1, *image_shape).astype(np.uint8)


def _timed(executor: Executor, images: NDArray[np.uint8], task: _Task) -> dict[str, Any]:
    """Time passes that each take about a third of the time; the executor is warm."""
    assert task.seconds is not None
    started = time.perf_counter()
    executor(images[: task.batch])
    once = time.perf_counter() - started
    count = max(1, round(task.seconds / PASSES / once)) * task.batch
    whole, rest = divmod(count, len(images))
    passes: list[float] = []
    while len(passes) < PASSES or sum(passes) < task.seconds:
        started = time.perf_counter()
        for _ in range(whole):
            executor(images)
        if rest:
            executor(images[:rest])
        passes.append(time.perf_counter() - started)
    return {
        # The machine only ever takes time away: the fastest pass is the least disturbed one.
        "images_per_second": count / min(passes),
        "median_images_per_second": count / statistics.median(passes),
        "images_per_pass": count,
        "passes": len(passes),
    }


def _peak_mib() -> float:
    """Return the most memory that this process has had resident, in MiB.

    Not ``ru_maxrss``: Linux counts into that what the process that started this one had.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system does not tell the peak of resident memory")


def _main(argv: Sequence[str]) -> None:
    content = json.loads(argv[0])
    content["image_shape"] = tuple(content["image_shape"])
    answer = _measure(_Task(**content))
    folder = Path(argv[1])
    if answer.scores is not None:
        np.save(folder / "scores.npy", answer.scores)
    (folder / "result.json").write_text(json.dumps(answer.content))


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


if __name__ == "__main__":
    _main(sys.argv[1:])
