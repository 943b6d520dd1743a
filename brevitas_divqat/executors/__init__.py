# SPDX-License-Identifier: BSD-3-Clause
"""Executors: from 8-bit images to scores, through a deployed graph or a torch model."""

from __future__ import annotations

from brevitas_divqat.executors.base import Executor, check_images
from brevitas_divqat.executors.config import ExecutorConfig, ExecutorKind, open_executor
from brevitas_divqat.executors.fast import FastExecutor
from brevitas_divqat.executors.integer import IntegerExecutor
from brevitas_divqat.executors.loading import GraphExecutor, sample_images
from brevitas_divqat.executors.module import ModuleExecutor
from brevitas_divqat.executors.reference import ReferenceExecutor

__all__ = [
    "Executor",
    "ExecutorConfig",
    "ExecutorKind",
    "FastExecutor",
    "GraphExecutor",
    "IntegerExecutor",
    "ModuleExecutor",
    "ReferenceExecutor",
    "check_images",
    "open_executor",
    "sample_images",
]
