# SPDX-License-Identifier: BSD-3-Clause
"""Executors: from 8-bit images to scores, through a deployed graph or a torch model."""

from __future__ import annotations

from brevitas_divqat.executors.base import Executor, check_images
from brevitas_divqat.executors.module import ModuleExecutor
from brevitas_divqat.executors.reference import ReferenceExecutor

__all__ = ["Executor", "ModuleExecutor", "ReferenceExecutor", "check_images"]
