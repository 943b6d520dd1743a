# SPDX-License-Identifier: BSD-3-Clause
"""The integer graph on onnxruntime's 8-bit kernels.

Tensors are 8-bit unsigned, channels last, an offset beside them (value = byte - offset). A layer
and the thresholds after it become one kernel where `fit_rescaling` proves that they are the same
function; where the products would not fit the 16-bit sums of older processors, or no rescaling
exists, the layer runs in float32, exactly, since every sum is an integer below 2^24.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import GraphError
from brevitas_divqat.executors.rescaling import Part, fit_parts, fit_rescaling
from brevitas_divqat.export.graph_files import attributes_of, layer_name
from brevitas_divqat.export.ranges import dot_range, magnitude

__all__ = ["compile_int8"]

BATCH = "batch"
BYTE_MAX = 255
WEIGHT_MAX = 127
INT32_MAX = 2**31 - 1
PAIR_MAX = 2**15 - 1
"""Processors without VNNI add pairs of products of unsigned and signed bytes in 16 bits, and
saturate."""


@dataclass(frozen=True)
class _Tensor:
    """An integer tensor of the graph, as it is computed.

    Attributes:
        name: of what holds it.
        low: least integer.
        high: greatest integer.
        offset: byte = integer + offset; None where float32 holds the integer.
        channels_last: the layout of feature maps; None for vectors.
    """

    name: str
    low: int
    high: int
    offset: int | None
    channels_last: bool | None


@dataclass(frozen=True)
class _Layer:
    """A Conv or MatMul node and what is known of it.

    Attributes:
        node: the node.
        source: its input.
        weights: its integers, in the node's layout.
        rows: (O, K) the same, one row per output channel.
        low: (O,) least accumulators.
        high: (O,) greatest accumulators.
    """

    node: Any
    source: _Tensor
    weights: NDArray[np.int64]
    rows: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]


def compile_int8(graph: Any) -> Any:
    """Return an integer graph as a ``ModelProto`` from bytes to float32 integers, any batch size.

    Raises:
        GraphError: naming a node that is not of an integer graph.
    """
    return _Compiler(graph).run()


class _Compiler:
    """One walk over an integer graph."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._graph = graph
        self._weights = {
            tensor.name: numpy_helper.to_array(tensor).astype(np.int64)
            for tensor in graph.graph.initializer
        }
        self._tensors: dict[str, _Tensor] = {}
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._ranges: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def run(self) -> Any:
        """Return the compiled model."""
        from onnx import TensorProto, helper, numpy_helper

        (source,), (output,) = self._graph.graph.input, self._graph.graph.output
        shape = self._graph.get_tensor_shape(source.name)
        self._tensors[source.name] = _Tensor("pixels", 0, BYTE_MAX, 0, channels_last=False)
        rules: dict[str, Callable[[Any], None]] = {
            "Conv": self._layer,
            "MatMul": self._layer,
            "MultiThreshold": self._threshold,
            "MaxPool": self._max_pool,
            "Add": self._add,
            "QuantAvgPool2d": self._average_pool,
            "Flatten": self._flatten,
        }
        for node in self._graph.graph.node:
            if node.op_type not in rules:
                raise GraphError(
                    f"node {layer_name(node)} ({node.op_type}) is none of an integer graph: use "
                    "--executor reference"
                )
            if node.output[0] not in self._tensors:  # not fused with the layer before
                rules[node.op_type](node)
        result = self._as_float(self._channels_first(self._tensors[output.name]))
        self._emit("Identity", [result.name], output="integers")
        constants = [numpy_helper.from_array(v, name) for name, v in self._constants.items()]
        classes = self._graph.get_tensor_shape(output.name)[1:]
        model = helper.make_model(
            helper.make_graph(
                self._nodes,
                "int8",
                [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [BATCH, *shape[1:]])],
                [helper.make_tensor_value_info("integers", TensorProto.FLOAT, [BATCH, *classes])],
                constants,
            ),
            opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)],
        )
        model.ir_version = self._graph.model.ir_version
        return model

    # What every rule needs

    def _emit(
        self, op_type: str, inputs: list[str], *, output: str, domain: str = "", **attributes: Any
    ) -> str:
        from onnx import helper

        node = helper.make_node(op_type, inputs, [output], domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def _constant(self, value: Any, dtype: Any) -> str:
        name = f"constant{len(self._constants)}"
        self._constants[name] = np.asarray(value, dtype)
        return name

    def _attributes(self, node: Any) -> dict[str, Any]:

        return attributes_of(node)

    def _channels_first(self, tensor: _Tensor) -> _Tensor:
        if not tensor.channels_last:
            return tensor
        name = self._transposed(tensor, [0, 3, 1, 2], "nchw")
        return replace(tensor, name=name, channels_last=False)

    def _channels_last(self, tensor: _Tensor) -> _Tensor:
        if tensor.channels_last is not False:
            return tensor
        name = self._transposed(tensor, [0, 2, 3, 1], "nhwc")
        return replace(tensor, name=name, channels_last=True)

    def _transposed(self, tensor: _Tensor, order: list[int], layout: str) -> str:
        name = f"{tensor.name}_{layout}{len(self._nodes)}"
        return self._emit("Transpose", [tensor.name], output=name, perm=order)

    def _as_float(self, tensor: _Tensor) -> _Tensor:
        from onnx import TensorProto

        if tensor.offset is None:
            return tensor
        name = f"{tensor.name}_float{len(self._nodes)}"
        self._emit("Cast", [tensor.name], output=name, to=TensorProto.FLOAT)
        if tensor.offset:
            by = self._constant(tensor.offset, np.float32)
            name = self._emit("Sub", [name, by], output=f"{name}_signed")
        return replace(tensor, name=name, offset=None)

    # Layers and thresholds

    def _layer(self, node: Any) -> None:
        layer = self._layer_of(node)
        threshold = self._next_threshold(node)
        if threshold is not None and self._fuse(layer, threshold):
            return
        self._tensors[node.output[0]] = self._float_layer(layer)
        self._ranges[node.output[0]] = (layer.low, layer.high)

    def _layer_of(self, node: Any) -> _Layer:
        weights = self._weights[node.input[1]]
        rows = weights.T if node.op_type == "MatMul" else weights.reshape(len(weights), -1)
        source = self._tensors[node.input[0]]
        low, high = dot_range(rows, source.low, source.high)
        return _Layer(node, source, weights, rows, low, high)

    def _next_threshold(self, node: Any) -> Any | None:
        """Return the MultiThreshold that alone reads a layer's accumulators."""
        readers = self._graph.find_consumers(node.output[0]) or []
        return readers[0] if [r.op_type for r in readers] == ["MultiThreshold"] else None

    def _limits(
        self, node: Any, low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], int]:
        """Return a MultiThreshold's (C, L) thresholds that matter, and its least output."""
        thresholds = self._weights[node.input[1]]
        thresholds = np.broadcast_to(thresholds, (len(low), thresholds.shape[1]))
        least = int(self._attributes(node).get("out_bias", 0.0))
        always = int((thresholds <= low[:, None]).all(axis=0).sum())
        ever = int((thresholds <= high[:, None]).any(axis=0).sum())
        # At most as many levels are left out as make the least output 0, so that bytes hold it.
        first = min(always, thresholds.shape[1] - 1, max(0, -least))
        last = max(ever, first + 1)
        if last - first > BYTE_MAX:
            raise GraphError(
                f"node {layer_name(node)} has {last - first} thresholds per channel, more than "
                "8 bits: use --executor reference"
            )
        if not -BYTE_MAX <= least + first <= 0:
            raise GraphError(
                f"node {layer_name(node)} gives integers from {least + first}, which no byte with "
                "an offset holds: use --executor reference"
            )
        return thresholds[:, first:last], least + first

    def _fuse(self, layer: _Layer, threshold: Any) -> bool:
        """Emit a layer and its thresholds as one 8-bit kernel, if a rescaling equals them."""
        thresholds, least = self._limits(threshold, layer.low, layer.high)
        counts = self._byte_layer(layer, thresholds)
        if counts is None:
            return False
        name = self._at_most(counts.name, thresholds.shape[1])  # a rescaling is open above
        self._tensors[threshold.output[0]] = self._counted(
            replace(counts, name=name), thresholds, layer.low, layer.high, least
        )
        return True

    def _at_most(self, counts: str, most: int) -> str:
        limit = self._constant(most, np.uint8)
        return self._emit("Min", [counts, limit], output=f"{counts}_clipped")

    def _counted(
        self,
        counts: _Tensor,
        thresholds: NDArray[np.int64],
        low: NDArray[np.int64],
        high: NDArray[np.int64],
        least: int,
    ) -> _Tensor:
        """Return the outputs of a MultiThreshold, of which ``counts`` holds the bytes."""
        fewest = int((thresholds <= low[:, None]).sum(axis=1).min())
        most = int((thresholds <= high[:, None]).sum(axis=1).max())
        return self._channels_last(
            replace(counts, low=least + fewest, high=least + most, offset=-least)
        )

    def _byte_layer(self, layer: _Layer, thresholds: NDArray[np.int64]) -> _Tensor | None:
        """Emit an 8-bit kernel that gives counts of thresholds, if there is a rescaling."""
        source = layer.source
        if source.offset is None:
            return None
        largest = np.maximum(np.abs(layer.rows).max(axis=1), 1)
        byte_max = max(1, source.high + source.offset)
        room = np.minimum(WEIGHT_MAX // largest, PAIR_MAX // (2 * byte_max * largest))
        sums = magnitude(layer.rows, layer.source.low, layer.source.high)
        # The bias is no larger than the sums, where it matters: half of the 32 bits for each.
        room = np.minimum(room, INT32_MAX // (2 * np.maximum(sums, 1)))
        if (room < 1).any():
            return None
        fitted = fit_rescaling(thresholds, layer.low, layer.high, room)
        if fitted is None or (np.abs(fitted.offset) > INT32_MAX // 2).any():
            return None
        is_conv = layer.node.op_type == "Conv"
        spread = (-1, 1, 1, 1) if is_conv else (1, -1)
        weights = layer.weights * fitted.multiplier.reshape(spread)
        bias = fitted.offset.astype(np.int32)
        output = f"{layer.node.output[0]}_counts"
        return self._byte_kernel(layer, weights, fitted.factor, bias, 0, output)

    def _byte_kernel(
        self,
        layer: _Layer,
        weights: NDArray[np.int64],
        factor: NDArray[np.float32],
        bias: NDArray[np.int32],
        offset: int,
        output: str,
    ) -> _Tensor:
        """Emit bytes = round(factor * (weights . x + bias)) + offset, saturated at 0 and 255."""
        source = self._channels_last(layer.source)
        one, zero = self._constant(1, np.float32), self._constant(offset, np.uint8)
        inputs = [
            source.name,
            one,
            self._constant(source.offset, np.uint8),
            self._constant(weights, np.int8),
            self._constant(factor, np.float32),
            self._constant(np.zeros(len(factor)), np.int8),
        ]
        rest = self._constant(bias, np.int32)
        if layer.node.op_type == "MatMul":
            inputs += [rest, one, zero]
            self._emit("QGemm", inputs, output=output, domain="com.microsoft")
        else:
            inputs += [one, zero, rest]
            self._emit(
                "QLinearConv",
                inputs,
                output=output,
                domain="com.microsoft",
                channels_last=1,
                **self._attributes(layer.node),
            )
        return _Tensor(output, 0, BYTE_MAX, offset, source.channels_last)

    def _float_layer(self, layer: _Layer) -> _Tensor:
        node, source = layer.node, self._channels_first(layer.source)
        inputs = [self._as_float(source).name, self._constant(layer.weights, np.float32)]
        output = f"{node.output[0]}_sums"
        if node.op_type == "Conv":
            self._emit("Conv", inputs, output=output, **self._attributes(node))
        else:
            self._emit("MatMul", inputs, output=output)
        low, high = int(layer.low.min()), int(layer.high.max())
        return _Tensor(output, low, high, None, source.channels_last)

    def _threshold(self, node: Any) -> None:
        """Emit thresholds that follow no layer, or no 8-bit one, as a sum of rescalings."""
        source = self._tensors[node.input[0]]
        channels = self._graph.get_tensor_shape(node.input[0])[1]
        whole = (np.full(channels, source.low), np.full(channels, source.high))
        low, high = self._ranges.get(node.input[0], whole)
        thresholds, least = self._limits(node, low, high)
        values = self._as_float(self._channels_first(source))
        count, total = 0, ""
        for part in fit_parts(thresholds, low, high):
            name = f"{node.output[0]}_{count}"
            counts = self._quantized(values, part, name)
            counts = self._at_most(counts, part.levels)
            if total:
                counts = self._add_bytes((total, 0), (counts, 0), 0, f"{name}_total")
            total = counts
            count += part.levels
        done = _Tensor(total, 0, BYTE_MAX, 0, values.channels_last)
        self._tensors[node.output[0]] = self._counted(done, thresholds, low, high, least)

    def _quantized(self, values: _Tensor, part: Part, name: str) -> str:
        """Emit bytes = round((values + offset) / divisor), saturated at 0 and 255."""
        offset, divisor, zero = part.offset, part.divisor, np.zeros(len(part.divisor))
        attributes: dict[str, Any] = {"axis": 1}
        if np.ptp(offset) == 0 and np.ptp(divisor) == 0:
            offset, divisor, zero = offset[0], divisor[0], zero[0]
            attributes = {}
        elif values.channels_last is False:
            offset = offset.reshape(-1, 1, 1)
        by = self._constant(offset, np.float32)
        inputs = [
            self._emit("Add", [values.name, by], output=f"{name}_shifted"),
            self._constant(divisor, np.float32),
            self._constant(zero, np.uint8),
        ]
        return self._emit("QuantizeLinear", inputs, output=f"{name}_counts", **attributes)

    # Everything else

    def _max_pool(self, node: Any) -> None:
        source, output = self._tensors[node.input[0]], f"{node.output[0]}_pooled"
        attributes = self._attributes(node)
        attributes.pop("storage_order", None)
        if source.offset is None:
            source = self._channels_first(source)
            self._emit("MaxPool", [source.name], output=output, **attributes)
        else:
            source = self._channels_last(source)
            self._emit(
                "NhwcMaxPool", [source.name], output=output, domain="com.microsoft", **attributes
            )
        self._tensors[node.output[0]] = self._channels_last(replace(source, name=output))

    def _flatten(self, node: Any) -> None:
        source = self._channels_first(self._tensors[node.input[0]])
        name = self._emit("Flatten", [source.name], output=f"{node.output[0]}_flat", axis=1)
        self._tensors[node.output[0]] = replace(source, name=name, channels_last=None)

    def _add(self, node: Any) -> None:
        """Add two branches, or a last layer's integer bias."""
        output = f"{node.output[0]}_sum"
        first = self._tensors[node.input[0]]
        if node.input[1] in self._weights:
            bias = self._weights[node.input[1]]
            low, high = first.low + int(bias.min()), first.high + int(bias.max())
            other = self._constant(bias, np.float32)
        else:
            first, second = (self._channels_last(self._tensors[name]) for name in node.input)
            low, high = first.low + second.low, first.high + second.high
            offset = max(0, -low)
            fits = offset <= BYTE_MAX and high + offset <= BYTE_MAX
            if first.offset is not None and second.offset is not None and fits:
                operands = ((first.name, first.offset), (second.name, second.offset))
                self._add_bytes(*operands, offset, output)
                self._tensors[node.output[0]] = _Tensor(
                    output, low, high, offset, first.channels_last
                )
                return
            other = self._as_float(second).name
        self._emit("Add", [self._as_float(first).name, other], output=output)
        self._tensors[node.output[0]] = _Tensor(output, low, high, None, first.channels_last)

    def _add_bytes(
        self, first: tuple[str, int], second: tuple[str, int], offset: int, output: str
    ) -> str:
        """Emit the sum of two tensors of bytes, each a name and its offset."""
        one = self._constant(1, np.float32)
        inputs = []
        for name, own in (first, second):
            inputs += [name, one, self._constant(own, np.uint8)]
        inputs += [one, self._constant(offset, np.uint8)]
        return self._emit("QLinearAdd", inputs, output=output, domain="com.microsoft")

    def _average_pool(self, node: Any) -> None:
        """Emit sum >> shift as a depthwise convolution.

        (2 * sum - (2^shift - 1)) / 2^(shift + 1) is never half-way between two integers, and rounds
        to the floor of sum / 2^shift.
        """
        from qonnx.custom_op.registry import getCustomOp

        source = self._tensors[node.input[0]]
        operator = getCustomOp(node)
        shift, kernel = operator.get_shifts(), operator.get_nodeattr("kernel")
        stride = operator.get_nodeattr("stride")
        channels = self._graph.get_tensor_shape(node.input[0])[1]
        low, high = ((end * kernel * kernel) >> shift for end in (source.low, source.high))
        offset = max(0, -low)
        if source.offset is None or max(offset, high + offset) > BYTE_MAX:
            raise GraphError(
                f"node {layer_name(node)} averages integers {source.low} to {source.high}, more "
                "than 8 bits: use --executor reference"
            )
        from onnx import helper

        window = [kernel, kernel]
        conv = helper.make_node(
            "Conv", [], [], group=channels, kernel_shape=window, strides=[stride, stride]
        )
        weights = np.full((channels, 1, *window), 2)
        rows = weights.reshape(channels, -1)
        bounds = dot_range(rows, source.low, source.high)
        done = self._byte_kernel(
            _Layer(conv, source, weights, rows, *bounds),
            weights,
            np.full(channels, 0.5 ** (shift + 1), np.float32),
            np.full(channels, 1 - 2**shift, np.int32),
            offset,
            f"{node.output[0]}_mean",
        )
        self._tensors[node.output[0]] = replace(done, low=low, high=high)
