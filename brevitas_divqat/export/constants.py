# SPDX-License-Identifier: BSD-3-Clause
"""What of an exported graph depends on no image: weights, biases, scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import GraphError
from brevitas_divqat.export.graph_files import attributes_of, layer_name

__all__ = ["Constant", "Constants", "bit_width", "check_zero_point", "quant_attributes"]


@dataclass(frozen=True)
class Constant:
    """A tensor that depends on no image; what a quantizer made carries its integers.

    Attributes:
        value: the float tensor.
        integers: None where no quantizer made it.
        scale: of the integers, broadcast to their shape.
        datatype: of the integers.
    """

    value: NDArray[Any]
    integers: NDArray[np.int64] | None = None
    scale: NDArray[np.float64] | None = None
    datatype: Any = None


class Constants(dict[str, Constant]):
    """The constant tensors of a graph, by name.

    Args:
        graph: a ``ModelWrapper``; its initializers are the first constants.
    """

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        super().__init__(
            (tensor.name, Constant(numpy_helper.to_array(tensor)))
            for tensor in graph.graph.initializer
        )
        self._opset = graph.get_opset_imports().get("", 13)

    def fold(self, node: Any) -> None:
        """Run a node that depends on no image."""
        if node.op_type in ("Quant", "BipolarQuant"):
            self[node.output[0]] = self._quantized_constant(node)
            return
        if not node.input:
            self[node.output[0]] = Constant(self._run_alone(node))
            return
        source = self[node.input[0]]
        value = self._run_alone(node, source.value)
        if node.op_type in ("Transpose", "Reshape", "Identity") and source.integers is not None:
            assert source.scale is not None
            self[node.output[0]] = Constant(
                value,
                self._run_alone(node, source.integers.astype(np.float32)).astype(np.int64),
                self._run_alone(node, source.scale.astype(np.float32)).astype(np.float64),
                source.datatype,
            )
        else:
            self[node.output[0]] = Constant(value)

    def _run_alone(self, node: Any, first: NDArray[Any] | None = None) -> NDArray[Any]:
        """Run one node on constants, ``first`` in place of its first input."""
        from onnx import helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        values = {name: self[name].value for name in node.input if name}
        if first is not None:
            values[node.input[0]] = first
        graph = helper.make_graph(
            [node],
            "constant",
            [],
            [helper.make_tensor_value_info(node.output[0], 1, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
        )
        opsets = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(graph, opset_imports=opsets)
        (result,) = ReferenceEvaluator(model).run(None, {})
        return np.asarray(result)

    def _quantized_constant(self, node: Any) -> Constant:
        from qonnx.core.datatype import DataType
        from qonnx.custom_op.general.bipolar_quant import binary_quant
        from qonnx.custom_op.general.intquant import int_quant

        value = self[node.input[0]].value
        scale = self[node.input[1]].value
        if node.op_type == "BipolarQuant":
            quantized, datatype = binary_quant(value, scale), DataType["BIPOLAR"]
        else:
            zero_point, bits = (self[name].value for name in node.input[2:4])
            check_zero_point(node, zero_point)
            signed, narrow, rounding = quant_attributes(node)
            quantized = int_quant(value, scale, zero_point, bits, signed, narrow, rounding)
            datatype = DataType[f"{'INT' if signed else 'UINT'}{bit_width(node, bits)}"]
            if bits == 1 and signed:
                datatype = DataType["BIPOLAR"]
        quantized = np.asarray(quantized, np.float32)
        wide = np.broadcast_to(scale, quantized.shape).astype(np.float64)
        integers = np.rint(quantized / wide).astype(np.int64)
        return Constant(quantized, integers, wide, datatype)


def bit_width(node: Any, bits: NDArray[Any]) -> int:
    """Return a quantizer's bit width.

    Raises:
        GraphError: unless it is one positive whole number.
    """
    width = float(np.ravel(bits)[0])
    if np.ptp(bits) or width != int(width) or width < 1:
        raise GraphError(
            f"layer {layer_name(node)} ({node.op_type}) has bit widths {np.unique(bits).tolist()}: "
            "use one whole number"
        )
    return int(width)


def check_zero_point(node: Any, zero_point: NDArray[Any]) -> None:
    """Raise GraphError unless a quantizer's zero-point is 0."""
    if (zero_point != 0).any():
        raise GraphError(
            f"layer {layer_name(node)} ({node.op_type}) has zero-point "
            f"{float(np.ravel(zero_point)[0]):g}: use a quantizer with 0"
        )


def quant_attributes(node: Any) -> tuple[bool, bool, str]:
    """Return whether a quantizer is signed, whether it is narrow, and how it rounds."""

    found = attributes_of(node)
    rounding = found.get("rounding_mode", b"ROUND")
    return bool(found.get("signed", 1)), bool(found.get("narrow", 1)), rounding.decode()
