# SPDX-License-Identifier: BSD-3-Clause
"""onnxruntime sessions of standard operators."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import ConfigError, GraphError

__all__ = ["open_session"]


def open_session(model: Any, threads: int | None, path: Path, *, optimised: bool) -> Any:
    """Open an onnxruntime session on the CPU.

    Args:
        model: a ``ModelProto`` of standard operators.
        threads: by default OMP_NUM_THREADS or the number of cores.
        path: the graph's file, for messages.
        optimised: let onnxruntime rewrite the graph, which rounds float sums in other places.

    Raises:
        ConfigError: if the number of threads is below 1.
        GraphError: if onnxruntime has no kernel for a node.
    """
    import onnxruntime

    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}: it must be 1 or more")
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _core_count() if threads is None else threads
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


def _core_count() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))
