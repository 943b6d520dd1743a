# SPDX-License-Identifier: BSD-3-Clause
"""One measurement of an executor, in a process of its own.

So its threads are its own, and its peak of memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import DivQATError, GraphError
from brevitas_divqat.executors import (
    Executor,
    FastExecutor,
    IntegerExecutor,
    ReferenceExecutor,
    sample_images,
)
from brevitas_divqat.executors.base import filled_batches
from brevitas_divqat.executors.sessions import sessions_of

__all__ = ["IMAGES", "Answer", "Kind", "ProcessEnded", "Task", "measure_apart", "run_apart"]

PASSES = 3
"""At least, of each measurement."""
IMAGES = 256
"""That are asked again and again: a multiple of every batch size."""


class ProcessEnded(DivQATError, RuntimeError):
    """The system ended a measurement, as it does where memory runs out."""


Kind = Literal["idle", "reference", "onnxruntime QCDQ", "fast", "integer"]


@dataclass(frozen=True)
class Task:
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
class Answer:
    """What a process answers.

    Attributes:
        content: ``refused``, the reason why it cannot run; or else ``peak_mib`` and the times.
        scores: of the compared images; the integer graph's are integers.
    """

    content: dict[str, Any]
    scores: NDArray[Any] | None = None


def run_apart(module: str, task: dict[str, Any], folder: Path, *, threads: int) -> dict[str, Any]:
    """Run a module as a program in a fresh process: it takes a task and a folder.

    Returns:
        What it wrote to ``result.json`` in the folder.

    Raises:
        ProcessEnded: if the system ended it.
        RuntimeError: if it failed, with its last words.
    """
    command = [sys.executable, "-m", module, json.dumps(task), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode < 0:
        raise ProcessEnded(f"ended by signal {-done.returncode}: not enough memory?")
    if done.returncode:
        raise RuntimeError(f"measuring {task} failed:\n{done.stderr[-4000:]}")
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def measure_apart(task: Task, folder: Path) -> Answer:
    """Measure in a fresh process."""
    scores = folder / "scores.npy"
    scores.unlink(missing_ok=True)
    try:
        content = run_apart(__name__, asdict(task), folder, threads=task.threads)
    except ProcessEnded as error:
        return Answer({"refused": str(error)})
    return Answer(content, np.load(scores) if scores.exists() else None)


def _measure(task: Task) -> Answer:
    """Measure in this process."""
    with sessions_of(task.threads):
        _import_all()
        if task.kind == "idle":
            return Answer({"peak_mib": _peak_mib()})
        try:
            executor = _open(task)
            images = sample_images(task.image_shape, IMAGES)
            executor(images[: task.batch])
            content = {} if task.seconds is None else _timed(executor, images, task)
        except GraphError as error:
            return Answer({"refused": str(error)})
        content["peak_mib"] = _peak_mib()
        if not task.compared:
            return Answer(content)
        asked = images[: task.compared]
        if isinstance(executor, IntegerExecutor):
            return Answer(content, executor.integers(asked))
        return Answer(content, executor(asked))


def _import_all() -> None:
    """Import what any executor needs, so that an idle process tells what that alone takes."""
    import onnx  # noqa: F401
    import qonnx.core.modelwrapper
    import qonnx.core.onnx_exec
    import qonnx.custom_op.registry
    import qonnx.transformation.change_batchsize
    import qonnx.transformation.fold_constants
    import qonnx.transformation.infer_shapes  # noqa: F401


def _open(task: Task) -> Executor:
    path = Path(task.graph)
    if task.kind == "fast":
        return FastExecutor(path, batch_size=task.batch, threads=task.threads, verify=False)
    if task.kind == "integer":
        return IntegerExecutor(path, batch_size=task.batch, threads=task.threads, verify=False)
    if task.kind == "onnxruntime QCDQ":
        return _QCDQ(task)
    reference = ReferenceExecutor(path, batch_size=task.batch, threads=task.threads)
    if reference.metadata.form == "integer":
        # Integers, as they leave the graph, are what the integer executor is compared with.
        reference.metadata = replace(reference.metadata, output_scale=1.0)
    return reference


class _QCDQ:
    """onnxruntime as it is, with all its optimisations, on the QCDQ graph of a fixed batch size."""

    name = "onnxruntime QCDQ"

    def __init__(self, task: Task) -> None:
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


def _timed(executor: Executor, images: NDArray[np.uint8], task: Task) -> dict[str, Any]:
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
    answer = _measure(Task(**content))
    folder = Path(argv[1])
    if answer.scores is not None:
        np.save(folder / "scores.npy", answer.scores)
    (folder / "result.json").write_text(json.dumps(answer.content))


if __name__ == "__main__":
    _main(sys.argv[1:])
