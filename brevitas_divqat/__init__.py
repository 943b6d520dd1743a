# SPDX-License-Identifier: BSD-3-Clause
"""Divergence-based quantization-aware training (DivQAT) for Brevitas.

Train 2-4-bit CNNs that resist model extraction, export them as QONNX, and attack the very graph
that is deployed. The parts, each a subpackage, in the order in which data flows through them:
``quant``, ``loss``, ``models``, ``data``, ``training``, ``export``, ``executors``, ``victims``,
``attacks``, ``evaluation``, ``report``; ``fpga`` leads from the graph to hardware.
"""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("brevitas-divqat")
