# SPDX-License-Identifier: BSD-3-Clause
"""Which executor serves a deployed graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brevitas_divqat.errors import ConfigError, check_choice
from brevitas_divqat.executors.fast import FastExecutor
from brevitas_divqat.executors.integer import IntegerExecutor
from brevitas_divqat.executors.loading import GraphExecutor, load_graph
from brevitas_divqat.executors.reference import ReferenceExecutor

__all__ = ["ExecutorConfig", "ExecutorKind", "open_executor"]

ExecutorKind = Literal["reference", "fast", "integer"]
ExecutorDevice = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class ExecutorConfig:
    """What answers for the victim.

    Args:
        executor: 'fast' or 'reference' for the exported graph, which give the same bits; 'integer'
            for the integer graph; by default the graph's own, fast or integer.
        executor_device: where the integer executor computes: 'cpu' or 'cuda'.

    Raises:
        ConfigError: if a value is unknown, or there is no CUDA.
    """

    executor: ExecutorKind | None = None
    executor_device: ExecutorDevice = "cpu"

    def __post_init__(self) -> None:
        if self.executor is not None:
            check_choice("executor", self.executor, ExecutorKind)
        check_choice("executor_device", self.executor_device, ExecutorDevice)


def open_executor(path: Path, config: ExecutorConfig | None = None) -> GraphExecutor:
    """Open a deployed graph with an executor.

    Args:
        path: an exported or an integer graph.
        config: which one; by default the graph's own.

    Raises:
        GraphError: if the file is no deployed graph, or not one for this executor.
        ConfigError: if another than the integer executor is asked for CUDA, or there is none.
    """
    config = ExecutorConfig() if config is None else config
    kind, device = config.executor, config.executor_device
    if kind is None:
        kind = "integer" if load_graph(path)[2].form == "integer" else "fast"
    if kind == "integer":
        return IntegerExecutor(path, device=device)
    if device != "cpu":
        raise ConfigError(
            f"executor_device is {device!r}, but the {kind} executor runs on the CPU: leave it "
            "out, or use --executor integer"
        )
    return FastExecutor(path) if kind == "fast" else ReferenceExecutor(path)
