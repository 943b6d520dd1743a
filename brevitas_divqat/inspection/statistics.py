# SPDX-License-Identifier: BSD-3-Clause
"""Activation scales that still follow statistics of the training batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["collecting"]


def collecting(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each scale that is no parameter yet.

    Brevitas averages statistics over the first training steps, 300 by default; what such a module
    knows meanwhile (``counter`` of ``collect_stats_steps``) is in no ``state_dict``.
    """
    for name, module in model.named_modules():
        if hasattr(module, "collect_stats_steps") and module.counter <= module.collect_stats_steps:
            yield name, module
