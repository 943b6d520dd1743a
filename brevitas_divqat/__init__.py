# SPDX-License-Identifier: BSD-3-Clause
"""Divergence-based quantization-aware training (DivQAT) for Brevitas.

Train 2-4-bit CNNs that resist model extraction, export them as QONNX, and attack the very graph
that is deployed. The parts, each a subpackage, in the order in which data flows through them:
``quant``, ``loss``, ``inspection``, ``models``, ``data``, ``training``, ``export``, ``conversion``,
``bnn_pynq``, ``executors``, ``victims``, ``attacks``, ``evaluation``, ``report``; ``fpga`` leads
from the graph to hardware. What a training script needs is here as well: ``DivQATLoss``,
``quantize``, ``load_float_weights``, ``summary``.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brevitas_divqat.conversion import quantize
    from brevitas_divqat.inspection import summary
    from brevitas_divqat.loss import DivQATLoss
    from brevitas_divqat.models import load_float_weights

__all__ = ["DivQATLoss", "__version__", "load_float_weights", "quantize", "summary"]

__version__ = version("brevitas-divqat")

HOMES = {
    "DivQATLoss": "loss",
    "load_float_weights": "models",
    "quantize": "conversion",
    "summary": "inspection",
}
"""Where each name comes from; imported with its first use, so that the command line starts fast."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
