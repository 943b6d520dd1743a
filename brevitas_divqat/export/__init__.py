# SPDX-License-Identifier: BSD-3-Clause
"""From a Brevitas model to a deployed graph."""

from __future__ import annotations

from brevitas_divqat.export.check import Finding, check, check_graph
from brevitas_divqat.export.differ import diff
from brevitas_divqat.export.differences import Diff
from brevitas_divqat.export.graph_traces import load_form
from brevitas_divqat.export.integer import (
    export_integer,
    integer_path,
    is_integer_graph_of,
    tensor_scales,
    to_integer_graph,
)
from brevitas_divqat.export.metadata import GraphMetadata, tool_versions
from brevitas_divqat.export.qonnx import export_qonnx
from brevitas_divqat.export.rules import SEVERITIES

__all__ = [
    "SEVERITIES",
    "Diff",
    "Finding",
    "GraphMetadata",
    "check",
    "check_graph",
    "diff",
    "export_integer",
    "export_qonnx",
    "integer_path",
    "is_integer_graph_of",
    "load_form",
    "tensor_scales",
    "to_integer_graph",
    "tool_versions",
]
