# SPDX-License-Identifier: BSD-3-Clause
"""onnxruntime sessions, each of one thread, and batches that run at the same time.

A session that shares a matrix product among threads adds up in blocks that depend on their number,
and so rounds differently with every number of threads. Sessions here have one thread where bits
matter, and cores are used by running several batches at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError, GraphError

__all__ = ["in_batches", "open_session", "sessions_of", "thread_count"]


def open_session(model: Any, path: Path, *, optimised: bool) -> Any:
    """Open an onnxruntime session of one thread on the CPU.

    Args:
        model: a ``ModelProto`` of standard operators.
        path: the graph's file, for messages.
        optimised: let onnxruntime rewrite the graph, which rounds float sums in other places.

    Raises:
        GraphError: if onnxruntime has no kernel for a node.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = (
        levels.ORT_ENABLE_EXTENDED if optimised else levels.ORT_DISABLE_ALL
    )
    if not optimised:
        # Weights packed beforehand are summed in blocks of another length.
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options)
    except Exception as error:  # onnxruntime's errors have no common base but this
        reason = " ".join(str(error).split())[:300]
        raise GraphError(f"{path} cannot be executed ({reason}): export it again") from error


@contextmanager
def sessions_of(threads: int) -> Iterator[None]:
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


def thread_count(threads: int | None) -> int:
    """Return ``threads``; by default OMP_NUM_THREADS, or else the number of cores at hand.

    Raises:
        ConfigError: if it is below 1.
    """
    if threads is None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))
    if threads < 1:
        raise ConfigError(f"threads is {threads}: it must be 1 or more")
    return threads


def in_batches(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    images: NDArray[np.uint8],
    outputs: NDArray[np.float32],
    batch_size: int,
    threads: int,
) -> None:
    """Fill ``outputs`` with what ``run`` answers, batch by batch, ``threads`` batches at a time.

    Batches are smaller than ``batch_size`` where some of the threads would have none.
    """
    batch_size = min(batch_size, max(1, -(-len(images) // threads)))

    def answer(start: int) -> None:
        part = slice(start, start + batch_size)
        outputs[part] = run(np.ascontiguousarray(images[part]))

    starts = range(0, len(images), batch_size)
    if threads == 1 or len(starts) < 2:
        for start in starts:
            answer(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(answer, start) for start in starts]:
            done.result()
