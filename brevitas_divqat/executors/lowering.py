# SPDX-License-Identifier: BSD-3-Clause
"""The exported graph in standard ONNX operators, for batches of any size.

Every quantizer becomes the float32 operations that qonnx's executor does for it, in their order, so
that not a bit changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import GraphError
from brevitas_divqat.export.graph_files import attributes_of, layer_name

__all__ = ["lowered"]

BATCH = "batch"
ROUNDINGS: dict[str, tuple[str, ...]] = {
    "ROUND": ("Round",),
    "HALF_EVEN": ("Round",),
    "CEIL": ("Ceil",),
    "FLOOR": ("Floor",),
    "UP": ("Abs", "Ceil", "sign"),
    "DOWN": ("fix",),
    "HALF_UP": ("Abs", "+0.5", "Floor", "sign"),
    "HALF_DOWN": ("Abs", "-0.5", "Ceil", "sign"),
}
"""qonnx's rounding modes, as operators; ``sign`` multiplies by the sign of what is rounded, ``fix``
is numpy's, which keeps -0."""


def lowered(graph: Any) -> Any:
    """Return an exported graph as a ``ModelProto`` without custom operators.

    Args:
        graph: a ``ModelWrapper`` of batch size 1, static scales; it stays as it is.

    Raises:
        GraphError: naming a node that is neither a standard operator nor a known quantizer.
    """
    from qonnx.transformation.fold_constants import FoldConstants

    # qonnx's own executor quantizes the weights and biases.
    folded = graph.transform(FoldConstants(exclude_op_types=[]))
    return _Lowering(folded).run()


class _Lowering:
    """One walk over an exported graph."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._graph = graph
        self._constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer
        }
        self._nodes: list[Any] = []

    def run(self) -> Any:
        """Return the lowered model."""
        from onnx import TensorProto, helper, numpy_helper

        rules: dict[str, Callable[[Any], None]] = {
            "Quant": self._quant,
            "IntQuant": self._quant,
            "BipolarQuant": self._bipolar_quant,
            "Trunc": self._trunc,
            "Reshape": self._reshape,
        }
        for node in self._graph.graph.node:
            if node.op_type in rules:
                rules[node.op_type](node)
            elif node.domain in ("", "ai.onnx"):
                self._nodes.append(node)
            else:
                raise GraphError(
                    f"node {layer_name(node)} ({node.domain}.{node.op_type}) is no operator that "
                    "the fast executor knows: use --executor reference"
                )
        read = {name for node in self._nodes for name in node.input}
        constants = [
            numpy_helper.from_array(value, name)
            for name, value in self._constants.items()
            if name in read
        ]
        ends = []
        for (end,) in (self._graph.graph.input, self._graph.graph.output):
            shape = self._graph.get_tensor_shape(end.name)
            ends.append(
                helper.make_tensor_value_info(end.name, TensorProto.FLOAT, [BATCH, *shape[1:]])
            )
        opset = helper.make_opsetid("", self._graph.get_opset_imports()[""])
        model = helper.make_model(
            helper.make_graph(self._nodes, "lowered", ends[:1], ends[1:], constants),
            opset_imports=[opset],
        )
        model.ir_version = self._graph.model.ir_version
        return model

    def _constant(self, name: str, value: Any) -> str:
        self._constants[name] = np.asarray(value, np.float32)
        return name

    def _emit(self, op_type: str, *inputs: str, output: str) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node(op_type, list(inputs), [output]))
        return output

    def _attributes(self, node: Any) -> dict[str, Any]:

        return attributes_of(node)

    def _round(self, x: str, node: Any, default: bytes) -> str:
        mode = self._attributes(node).get("rounding_mode", default).decode().upper()
        if mode not in ROUNDINGS:
            raise GraphError(
                f"quantizer {layer_name(node)} rounds by {mode!r}: choose from {sorted(ROUNDINGS)}"
            )
        given = x
        for i, step in enumerate(ROUNDINGS[mode]):
            output = f"{x}_round{i}"
            if step == "sign":
                sign = self._emit("Sign", given, output=f"{x}_sign")
                x = self._emit("Mul", sign, x, output=output)
            elif step == "fix":
                floor = self._emit("Floor", x, output=f"{x}_floor")
                ceil = self._emit("Ceil", x, output=f"{x}_ceil")
                zero = self._constant(f"{output}_at", 0)
                # onnxruntime's Where keeps a -0 of its last operand alone.
                positive = self._emit("Greater", x, zero, output=f"{x}_sign")
                x = self._emit("Where", positive, floor, ceil, output=output)
            elif step[0] in "+-":
                x = self._emit("Add", x, self._constant(f"{output}_by", float(step)), output=output)
            else:
                x = self._emit(step, x, output=output)
        return x

    def _shifted(self, op_type: str, x: str, zero_point: NDArray[Any], output: str) -> str:
        """Add or subtract a zero-point; adding 0 turns -0 to 0, subtracting it does nothing."""
        if op_type == "Sub" and not zero_point.any() and not np.signbit(zero_point).any():
            return x
        return self._emit(op_type, x, self._constant(f"{output}_zero", zero_point), output=output)

    def _clipped(self, x: str, node: Any, bits: NDArray[Any]) -> str:
        from qonnx.custom_op.general.intquant import max_int, min_int

        found = self._attributes(node)
        signed, narrow = bool(found.get("signed", 1)), bool(found.get("narrow", 0))
        if bits.size != 1:
            raise GraphError(
                f"quantizer {layer_name(node)} has {bits.size} bit widths: use one per tensor"
            )
        low, high = (
            self._constant(f"{x}_{bound.__name__}", bound(signed, narrow, float(bits.reshape(()))))
            for bound in (min_int, max_int)
        )
        return self._emit("Clip", x, low, high, output=f"{x}_clipped")

    def _quant(self, node: Any) -> None:
        x, scale, zero_point, bits = node.input
        output = node.output[0]
        zero, width = self._constants[zero_point], self._constants[bits]
        y = self._emit("Div", x, scale, output=f"{output}_scaled")
        found = self._attributes(node)
        if (width == 1).all() and found.get("signed", 1):
            y = self._shifted("Add", y, zero, f"{output}_shifted")
            y = self._bipolar(y, f"{output}_bipolar")
        else:
            y = self._shifted("Add", y, zero, f"{output}_shifted")
            y = self._clipped(y, node, width)
            y = self._round(y, node, b"ROUND")
        y = self._shifted("Sub", y, zero, f"{output}_back")
        self._emit("Mul", y, scale, output=output)

    def _bipolar(self, x: str, output: str) -> str:
        names = (f"{output}_at", f"{output}_plus", f"{output}_minus")
        zero, plus, minus = (self._constant(n, v) for n, v in zip(names, (0, 1, -1), strict=True))
        at_least = self._emit("GreaterOrEqual", x, zero, output=f"{output}_sign")
        return self._emit("Where", at_least, plus, minus, output=output)

    def _bipolar_quant(self, node: Any) -> None:
        x, scale = node.input
        y = self._bipolar(x, f"{node.output[0]}_bipolar")
        self._emit("Mul", y, scale, output=node.output[0])

    def _trunc(self, node: Any) -> None:
        """Lower both versions of Trunc, which tell the shift by a scale or by a bit width."""
        x, scale, zero_point, bits, *target = node.input
        output = node.output[0]
        zero = self._constants[zero_point]
        y = self._emit("Div", x, scale, output=f"{output}_scaled")
        y = self._shifted("Add", y, zero, f"{output}_shifted")
        y = self._emit("Round", y, output=f"{output}_integer")
        if len(target) == 1:
            shift = 2.0 ** (self._constants[bits] - self._constants[target[0]])
            back, out_scale = zero, scale
        else:
            ratio = self._constants[target[0]] / self._constants[scale]
            shift = 2 ** np.round(np.log2(ratio))
            back, out_scale = zero / shift, target[0]
        y = self._emit("Div", y, self._constant(f"{output}_by", shift), output=f"{output}_divided")
        if len(target) == 2:
            y = self._clipped(y, node, self._constants[target[1]])
        y = self._round(y, node, b"FLOOR")
        y = self._shifted("Sub", y, back, f"{output}_back")
        self._emit("Mul", y, out_scale, output=output)

    def _reshape(self, node: Any) -> None:
        """Let a reshape that was traced with one image keep any number of them."""
        from onnx import helper

        shape = self._constants.get(node.input[1])
        if shape is None or shape[0] != 1:
            self._nodes.append(node)
            return
        name = f"{node.output[0]}_shape"
        self._constants[name] = np.concatenate([[0], shape[1:]]).astype(np.int64)
        self._nodes.append(helper.make_node("Reshape", [node.input[0], name], list(node.output)))
