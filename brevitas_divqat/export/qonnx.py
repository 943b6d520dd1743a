# SPDX-License-Identifier: BSD-3-Clause
"""A Brevitas model as a cleaned-up QONNX graph that says how it is to be served."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from brevitas_divqat.errors import ExportError, GraphError
from brevitas_divqat.export.graph_files import check_finite
from brevitas_divqat.export.metadata import METADATA_KEY, GraphMetadata
from brevitas_divqat.export.quantgraph import QUANTIZERS
from brevitas_divqat.files import write_bytes
from brevitas_divqat.training import uncalibrated

__all__ = ["cleaned_graph", "export_qonnx", "on_cpu"]

OPSET = 13


def export_qonnx(model: nn.Module, path: Path, metadata: GraphMetadata) -> Path:
    """Export a Brevitas model as QONNX, batch size 1, cleaned up.

    A copy is exported: the model stays as it is, also on failure, and the file appears whole or not
    at all. The TorchScript exporter is used, since torch's newer one drops the quantized tensors at
    residual adds (Xilinx/brevitas#1608).

    Args:
        model: any model of Brevitas layers from (1, C, H, W) float32 images to (1, K) scores.
        path: the file to write.
        metadata: how the graph is to be served.

    Returns:
        The path.

    Raises:
        ExportError: if an activation quantizer has not been calibrated, a layer has no QONNX form,
            or the result is not a graph from one image to one score per class.
    """
    _check_calibrated(model)
    wrapper = cleaned_graph(on_cpu(model), metadata.image_shape)
    _check_graph(wrapper, metadata)
    _check_runs(wrapper)
    wrapper.set_metadata_prop(METADATA_KEY, metadata.to_json())
    path = Path(path)
    write_bytes(path, wrapper.model.SerializeToString())
    return path


def on_cpu(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU, in evaluation mode."""
    return copy.deepcopy(model).cpu().eval()


def _check_calibrated(model: nn.Module) -> None:
    """Refuse scales without any statistics yet: Brevitas would export its placeholder, 1."""
    names = [name for name in uncalibrated(model) if model.get_submodule(name).counter == 0]
    if names:
        raise ExportError(
            f"{len(names)} activation quantizers have no scale yet, the first is {names[0]}: "
            "calibrate or train the model before exporting it"
        )


def cleaned_graph(model: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """Run Brevitas' exporter and qonnx's cleanup; return a ``ModelWrapper``."""
    from brevitas.export import export_qonnx as brevitas_export
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    example = torch.zeros(1, *image_shape)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A layer without a handler is exported unquantized: that is an error, not a warning.
        warnings.filterwarnings("error", message=".*has no handler.*")
        file = Path(folder) / "model.onnx"
        try:
            brevitas_export(
                model,
                args=example,
                export_path=str(file),
                opset_version=OPSET,
                dynamo=False,
                disable_warnings=False,
            )
            wrapper = ModelWrapper(str(file))
            _name_layers(wrapper, model)
            return cleanup_model(wrapper)
        except Exception as error:
            # Whatever torch, Brevitas, onnx or qonnx raise, the cause is this model.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ExportError(
                f"the model cannot be exported as QONNX for images of shape "
                f"{image_shape}: {reason[:300]}"
            ) from error


def _name_layers(wrapper: Any, model: nn.Module) -> None:
    """Note in every node's ``doc_string`` which module it comes from.

    torch writes the modules into the nodes' names, which qonnx's cleanup replaces by numbers.
    Quantizers count as the layer that they belong to.
    """
    modules = {name for name, _ in model.named_modules()}
    for node in wrapper.graph.node:
        layer = ""
        for scope in node.name.strip("/").split("/")[:-1]:
            inner = f"{layer}.{scope.rpartition('.')[2]}" if layer else scope
            if inner not in modules or inner.endswith("_quant"):
                break
            layer = inner
        node.doc_string = layer


def _check_runs(wrapper: Any) -> None:
    """Refuse a graph that qonnx's executor cannot run, or whose numbers are no numbers."""
    from qonnx.core.onnx_exec import execute_onnx

    try:
        check_finite(wrapper, "the exported graph")
        (entry,) = wrapper.graph.input
        shape = wrapper.get_tensor_shape(entry.name)
        execute_onnx(wrapper, {entry.name: np.zeros(shape, np.float32)})
    except GraphError as error:
        raise ExportError(str(error)) from error
    except Exception as error:  # of any kind: the graph is what cannot be run
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(
            f"the exported graph cannot be run by execute_onnx ({reason}): replace the layer that "
            "it names"
        ) from error


def _check_graph(wrapper: Any, metadata: GraphMetadata) -> None:
    graph = wrapper.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise ExportError(
            f"the graph has {len(graph.input)} inputs and {len(graph.output)} outputs: a victim "
            "needs one of each"
        )
    shape = tuple(wrapper.get_tensor_shape(graph.output[0].name))
    expected = (1, len(metadata.class_names))
    if shape != expected:
        raise ExportError(
            f"the graph's output has shape {shape}, expected {expected}: one score for each of "
            f"{len(metadata.class_names)} class names"
        )
    made = {name for node in graph.node for name in node.output}
    made |= {tensor.name for tensor in (*graph.initializer, *graph.input)}
    for node in graph.node:
        dangling = [name for name in node.input if name and name not in made]
        if dangling:
            raise ExportError(
                f"layer {node.doc_string or node.name} ({node.op_type}) reads {dangling[0]}, which "
                "nothing makes: qonnx lost it, as where one tensor is added to itself"
            )
    if not any(node.op_type in QUANTIZERS for node in graph.node):
        raise ExportError("the graph holds no quantizer: was this built from Brevitas layers?")
