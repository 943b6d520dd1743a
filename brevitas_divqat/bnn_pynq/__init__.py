# SPDX-License-Identifier: BSD-3-Clause
"""Brevitas' BNN-PYNQ trainer, with DivQAT: the console script `divqat-bnn-pynq-train`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brevitas_divqat.bnn_pynq.arguments import Settings
    from brevitas_divqat.bnn_pynq.criterion import DivQATCrossEntropyLoss, DivQATSqrHingeLoss
    from brevitas_divqat.bnn_pynq.networks import Network, read_network, zoo_names
    from brevitas_divqat.bnn_pynq.trainer import DivQATTrainer
    from brevitas_divqat.bnn_pynq.twins import float_twin

__all__ = [
    "DivQATCrossEntropyLoss",
    "DivQATSqrHingeLoss",
    "DivQATTrainer",
    "Network",
    "Settings",
    "float_twin",
    "read_network",
    "zoo_names",
]

HOMES = {
    "DivQATCrossEntropyLoss": "criterion",
    "DivQATSqrHingeLoss": "criterion",
    "DivQATTrainer": "trainer",
    "Network": "networks",
    "Settings": "arguments",
    "float_twin": "twins",
    "read_network": "networks",
    "zoo_names": "networks",
}
"""Where each name comes from; imported with its first use, so that the program can first keep the
notes that Brevitas and torch print in being imported off the terminal."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
