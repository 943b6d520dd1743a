# SPDX-License-Identifier: BSD-3-Clause
"""From a Brevitas model to a deployed graph."""

from __future__ import annotations

from brevitas_divqat.export.integer import (
    export_integer,
    integer_path,
    layer_name,
    tensor_scales,
    to_integer_graph,
)
from brevitas_divqat.export.metadata import GraphMetadata, tool_versions
from brevitas_divqat.export.qonnx import export_qonnx

__all__ = [
    "GraphMetadata",
    "export_integer",
    "export_qonnx",
    "integer_path",
    "layer_name",
    "tensor_scales",
    "to_integer_graph",
    "tool_versions",
]
