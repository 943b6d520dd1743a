# SPDX-License-Identifier: BSD-3-Clause
"""A QONNX graph in the making: nodes, integer tensors and their datatypes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Assembly"]

CUSTOM_DOMAIN = "qonnx.custom_op.general"
CUSTOM_OPERATORS = frozenset({"MultiThreshold", "QuantAvgPool2d"})


class Assembly:
    """Collects what an integer graph is made of.

    Attributes:
        nodes: in the order of computation.
        initializers: by name.
        datatypes: of qonnx, by tensor.
        shapes: by tensor, initializers excepted.
        layer: qualified name of the module that the next nodes come from.
    """

    def __init__(self) -> None:
        self.layer = ""
        self.nodes: list[Any] = []
        self.initializers: dict[str, NDArray[np.float32]] = {}
        self.datatypes: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def emit(
        self,
        op_type: str,
        inputs: list[str],
        output: str,
        shape: tuple[int, ...],
        datatype: Any,
        **attributes: Any,
    ) -> None:
        """Add a node of the present layer, and its output."""
        from onnx import helper

        node = helper.make_node(
            op_type,
            inputs,
            [output],
            name=f"{op_type}_{len(self.nodes)}",
            domain=CUSTOM_DOMAIN if op_type in CUSTOM_OPERATORS else "",
            **attributes,
        )
        node.doc_string = self.layer
        self.nodes.append(node)
        self.shapes[output] = shape
        self.datatypes[output] = datatype

    def initializer(self, name: str, value: NDArray[Any], datatype: Any) -> str:
        """Add a constant tensor of integers and return its name."""
        self.initializers[name] = np.asarray(value, np.float32)
        self.datatypes[name] = datatype
        return name

    def rename(self, old: str, new: str) -> None:
        """Give a computed tensor another name."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
        self.shapes[new] = self.shapes.pop(old)
        self.datatypes[new] = self.datatypes.pop(old)

    def model(self, source: Any) -> Any:
        """Return the ``ModelWrapper``, with the ends and versions of the graph ``source``."""
        from onnx import TensorProto, helper
        from qonnx.core.modelwrapper import ModelWrapper

        ends = [source.graph.input[0].name, source.graph.output[0].name]

        def info(name: str) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name])

        graph = helper.make_graph(
            self.nodes,
            "integer",
            [info(ends[0])],
            [info(ends[1])],
            value_info=[info(name) for name in self.shapes if name not in ends],
        )
        opsets = {CUSTOM_DOMAIN: 1, **source.get_opset_imports()}
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()]
        )
        model.ir_version = source.model.ir_version
        integer = ModelWrapper(model)
        for name, array in self.initializers.items():
            integer.set_initializer(name, array)
        for name, datatype in self.datatypes.items():
            integer.set_tensor_datatype(name, datatype)
        return integer
