# SPDX-License-Identifier: BSD-3-Clause
"""Graphs in files, and what every reader of one needs."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from brevitas_divqat.errors import GraphError

__all__ = ["attributes_of", "check_finite", "layer_name", "read_graph", "with_batch_size"]


def read_graph(path: Path) -> tuple[Any, str]:
    """Read an ONNX file.

    Returns:
        The graph as a ``ModelWrapper``, the file's SHA-256.

    Raises:
        GraphError: if the file is missing, truncated or no ONNX graph, has no nodes, or keeps
            tensors outside its folder.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto
    from qonnx.core.modelwrapper import ModelWrapper

    try:
        content = path.read_bytes()
    except OSError as error:
        raise GraphError(
            f"cannot read the graph {path} ({error.strerror}): write it with `divqat export`"
        ) from error
    try:
        model = ModelProto.FromString(content)
    except DecodeError as error:
        raise GraphError(f"{path} is not an ONNX graph: write it with `divqat export`") from error
    if not model.graph.node:
        raise GraphError(f"{path} is an ONNX file without nodes: write it with `divqat export`")
    if not model.opset_import:
        raise GraphError(f"{path} does not say which operators it is made of: export it again")
    _load_external_tensors(model, path)
    return ModelWrapper(model), hashlib.sha256(content).hexdigest()


def _load_external_tensors(model: Any, path: Path) -> None:
    """Read tensors that are kept in other files of the graph's folder, and of no other."""
    from onnx.external_data_helper import (
        ExternalDataInfo,
        load_external_data_for_model,
        uses_external_data,
    )

    outside = [t for t in model.graph.initializer if uses_external_data(t)]
    folder = path.resolve().parent
    for tensor in outside:
        location = ExternalDataInfo(tensor).location
        target = (folder / location).resolve()
        if folder not in target.parents:
            raise GraphError(
                f"{path} keeps tensor {tensor.name} in {location}, outside its folder: save the "
                "graph with its tensors inside"
            )
        if not target.is_file():
            raise GraphError(
                f"{path} keeps tensor {tensor.name} in {location}, which is missing: put the file "
                "beside it, or save the graph with its tensors inside"
            )
    try:
        if outside:
            load_external_data_for_model(model, str(folder))
    except Exception as error:  # of several kinds, where the file is too short or no longer there
        raise GraphError(
            f"{path} keeps tensors in other files, which cannot be read ({error}): save the graph "
            "with its tensors inside"
        ) from error


def with_batch_size(wrapper: Any, batch_size: int) -> Any:
    """Return a copy of a graph for batches of another size."""
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_shapes import InferShapes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return wrapper.transform(ChangeBatchSize(batch_size)).transform(InferShapes())


def layer_name(node: Any) -> str:
    """Return the qualified module that a node comes from, or else the node's own name."""
    return str(node.doc_string or node.name or node.output[0])


def attributes_of(node: Any) -> dict[str, Any]:
    """Return a node's attributes by name; text as bytes."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def check_finite(graph: Any, source: str) -> None:
    """Raise GraphError if a constant of a graph, the bounds of a Clip excepted, is not finite.

    Args:
        graph: a ``ModelWrapper``.
        source: its name, for messages.
    """
    from onnx import numpy_helper

    for tensor in graph.graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except ValueError as error:
            raise GraphError(
                f"{source}: tensor {tensor.name} is damaged ({error}), export it again"
            ) from error
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        for node in graph.graph.node:
            if tensor.name in node.input and node.op_type != "Clip":
                raise GraphError(
                    f"{source}: layer {layer_name(node)} ({node.op_type}) has "
                    f"{int((~np.isfinite(values)).sum())} numbers in {tensor.name} that are NaN or "
                    "infinite: train the model again, with a smaller learning rate"
                )
