# SPDX-License-Identifier: BSD-3-Clause
"""From a Brevitas model to a deployed graph."""

from __future__ import annotations

from brevitas_divqat.export.check import Finding, check, check_graph
from brevitas_divqat.export.differ import Diff, diff
from brevitas_divqat.export.integer import (
    export_integer,
    integer_path,
    layer_name,
    tensor_scales,
    to_integer_graph,
)
from brevitas_divqat.export.metadata import GraphMetadata, tool_versions
from brevitas_divqat.export.qonnx import export_qonnx
from brevitas_divqat.export.rules import SEVERITIES
from brevitas_divqat.export.traces import load_form

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
    "layer_name",
    "load_form",
    "tensor_scales",
    "to_integer_graph",
    "tool_versions",
]
