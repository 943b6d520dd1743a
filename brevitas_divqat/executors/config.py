# SPDX-License-Identifier: BSD-3-Clause
"""Which executor serves a deployed graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brevitas_divqat.errors import check_choice
from brevitas_divqat.executors.fast import FastExecutor
from brevitas_divqat.executors.integer import IntegerExecutor
from brevitas_divqat.executors.loading import GraphExecutor, load_graph
from brevitas_divqat.executors.reference import ReferenceExecutor

__all__ = ["ExecutorConfig", "ExecutorKind", "open_executor"]

ExecutorKind = Literal["reference", "fast", "integer"]


@dataclass(frozen=True)
class ExecutorConfig:
    """What answers for the victim.

    Args:
        executor: 'fast' or 'reference' for the exported graph, which give the same bits; 'integer'
            for the integer graph; by default the graph's own, fast or integer.

    Raises:
        ConfigError: if it is unknown.
    """

    executor: ExecutorKind | None = None

    def __post_init__(self) -> None:
        if self.executor is not None:
            check_choice("executor", self.executor, ExecutorKind)


def open_executor(path: Path, kind: ExecutorKind | None = None) -> GraphExecutor:
    """Open a deployed graph with an executor.

    Args:
        path: an exported or an integer graph.
        kind: by default ``"fast"`` for an exported graph, ``"integer"`` for an integer graph.

    Raises:
        GraphError: if the file is no deployed graph, or not one for this executor.
    """
    if kind is None:
        kind = "integer" if load_graph(path)[2].form == "integer" else "fast"
    if kind == "integer":
        return IntegerExecutor(path)
    return FastExecutor(path) if kind == "fast" else ReferenceExecutor(path)
