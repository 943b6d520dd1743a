# SPDX-License-Identifier: BSD-3-Clause
"""The integer graph as a graph of FINN's hardware layers.

An integer graph has seven operations. Each one becomes the layers that compute exactly that in
FINN's dialect, channels last, without a transformation that could move a threshold: what is built
is what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.util.basic import get_by_name, qonnx_make_model

from brevitas_divqat.errors import HardwareError

__all__ = ["DOMAIN", "to_dataflow"]

DOMAIN = "finn.custom_op.fpgadataflow"
LEAST_BITS = 2
MOST_BITS = 8


def to_dataflow(integer: ModelWrapper) -> ModelWrapper:
    """Translate an integer graph to FINN's hardware layers, folded to the utmost.

    Args:
        integer: what `to_integer_graph` gave; it is not changed.

    Returns:
        A graph whose input is (1, H, W, C) UINT8 pixels and whose output is (1, K) integers. Each
        node carries the qualified name of the model's layer as its ``doc_string``.

    Raises:
        HardwareError: if a layer has no hardware, by the layer's name.
    """
    return _Translation(integer).run()


class _Translation:
    """One integer graph on its way.

    Tensors keep their names. ``branches`` holds, for a tensor that several layers read, the copies
    that are not yet taken.
    """

    def __init__(self, integer: ModelWrapper) -> None:
        self.integer = integer
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, tuple[NDArray[np.float32], DataType]] = {}
        self.tensors: dict[str, tuple[list[int], DataType]] = {}
        self.branches: dict[str, list[str]] = {}
        self.flattened: dict[str, tuple[int, int, int]] = {}
        self.layer = ""

    def run(self) -> ModelWrapper:
        source, target = self.integer.graph.input[0].name, self.integer.graph.output[0].name
        self.add_tensor(source, self.channels_last(source), self.datatype(source))
        self.fork(source)
        for node in self.integer.graph.node:
            self.layer = node.doc_string or node.name
            translate = self.OPERATIONS.get(node.op_type)
            if translate is None:
                raise HardwareError(
                    f"{self.layer}: {node.op_type} has no hardware layer: expected one of "
                    f"{', '.join(self.OPERATIONS)}; export the network again"
                )
            translate(self, node)
            self.fork(node.output[0])
        return self.assemble(source, target)

    # Tensors

    def datatype(self, name: str) -> DataType:
        return self.integer.get_tensor_datatype(name)

    def channels_last(self, name: str) -> list[int]:
        shape = list(self.integer.get_tensor_shape(name))
        return [shape[0], *shape[2:], shape[1]] if len(shape) == 4 else shape

    def add_tensor(self, name: str, shape: Sequence[int], datatype: DataType) -> str:
        self.tensors[name] = (list(shape), datatype)
        return name

    def take(self, name: str) -> str:
        """Return the tensor to read for ``name``: itself, or a copy that nobody has taken."""
        copies = self.branches.get(name)
        return copies.pop(0) if copies else name

    def weights(self, node: NodeProto) -> tuple[NDArray[np.float32], DataType]:
        """Return a layer's weights and their type; signs become 2-bit integers."""
        values = self.integer.get_initializer(node.input[1])
        datatype = self.datatype(node.input[1])
        if datatype == DataType["BIPOLAR"]:
            datatype = DataType["INT2"]
        if not (datatype.signed() and LEAST_BITS <= datatype.bitwidth() <= MOST_BITS):
            raise HardwareError(
                f"{self.layer}: weights are {datatype.name}: expected INT{LEAST_BITS} to "
                f"INT{MOST_BITS}, or signs; choose --weight-bits accordingly"
            )
        return values, datatype

    def stream_order(self, flattened: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring rows that belong to a flattened map's numbers into the order of its stream.

        The graph flattens (channels, height, width), the stream is (height, width, channels).
        """
        if len(rows) == 1:
            return rows
        ordered = rows.reshape(*self.flattened[flattened], -1).transpose(1, 2, 0, 3)
        return ordered.reshape(len(rows), -1)

    # Nodes

    def add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> None:
        count = sum(node.op_type == kind for node in self.nodes)
        self.nodes.append(
            helper.make_node(
                kind,
                list(inputs),
                list(outputs),
                name=f"{kind}_{count}",
                doc_string=self.layer,
                domain=DOMAIN,
                backend="fpgadataflow",
                **attributes,
            )
        )

    def add_initializer(self, name: str, values: NDArray[np.float32], datatype: DataType) -> str:
        self.initializers[name] = (np.asarray(values, np.float32), datatype)
        return name

    def fork(self, name: str) -> None:
        """Copy a stream that several layers read."""
        readers = self.integer.find_consumers(name) or []
        copies = sum(list(reader.input).count(name) for reader in readers)
        if copies < 2:
            return
        source = self.take(name)
        shape, datatype = self.tensors[source]
        self.branches[name] = [
            self.add_tensor(f"{name}_copy{i}", shape, datatype) for i in range(copies)
        ]
        self.add(
            "DuplicateStreams",
            [source],
            self.branches[name],
            NumChannels=shape[-1],
            PE=1,
            NumOutputStreams=copies,
            inputDataType=datatype.name,
            numInputVectors=shape[:-1],
        )

    def window(
        self,
        source: str,
        result: str,
        *,
        kernel: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        pads: Sequence[int],
        depthwise: bool,
    ) -> str:
        """Slide a window over a feature map: (1, H, W, C) to (1, H', W', kernel * C)."""
        shape, datatype = self.tensors[source]
        _, height, width, channels = shape
        stem = result
        if any(pads):
            padded = [1, height + pads[0] + pads[2], width + pads[1] + pads[3], channels]
            self.add(
                "FMPadding",
                [source],
                [self.add_tensor(f"{stem}_padded", padded, datatype)],
                ImgDim=[height, width],
                Padding=list(pads),
                NumChannels=channels,
                SIMD=1,
                inputDataType=datatype.name,
            )
            source, (_, height, width, _) = f"{stem}_padded", padded
        if list(kernel) == [1, 1] and list(strides) == [1, 1]:
            return source
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        if extent[0] > height or extent[1] > width:
            raise HardwareError(
                f"{self.layer}: a window of {extent[0]}x{extent[1]} pixels in a map of "
                f"{height}x{width}: it must fit in"
            )
        out = [(height - extent[0]) // strides[0] + 1, (width - extent[1]) // strides[1] + 1]
        if list(kernel) == out == [1, 1]:
            raise HardwareError(
                f"{self.layer}: it takes one of {height}x{width} pixels, for which FINN has no RTL "
                "layer: pool the map instead"
            )
        words = [1, *out, channels * kernel[0] * kernel[1]]
        self.add(
            "ConvolutionInputGenerator",
            [source],
            [self.add_tensor(f"{stem}_windows", words, datatype)],
            ConvKernelDim=list(kernel),
            IFMChannels=channels,
            IFMDim=[height, width],
            OFMDim=out,
            SIMD=1,
            Stride=list(strides),
            Dilation=list(dilations),
            inputDataType=datatype.name,
            outputDataType=datatype.name,
            depthwise=int(depthwise),
            is1D=int(height == 1 or width == 1),
        )
        return f"{stem}_windows"

    def matrix(
        self,
        source: str,
        node: NodeProto,
        values: NDArray[np.float32],
        datatype: DataType,
        vectors: Sequence[int],
    ) -> None:
        """Multiply each vector by (inputs, outputs) weights."""
        inputs, outputs = values.shape
        result = self.add_tensor(node.output[0], [*vectors, outputs], self.datatype(node.output[0]))
        sums = self.tensors[result][1].name
        self.add(
            "MVAU",
            [source, self.add_initializer(f"{result}_matrix", values, datatype)],
            [result],
            MW=inputs,
            MH=outputs,
            SIMD=1,
            PE=1,
            inputDataType=self.tensors[source][1].name,
            weightDataType=datatype.name,
            outputDataType=sums,
            accDataType=sums,
            ActVal=0,
            noActivation=1,
            binaryXnorMode=0,
            numInputVectors=list(vectors),
            mem_mode="internal_decoupled",
            preferred_impl_style="rtl",
        )

    # Operations of an integer graph

    def convolution(self, node: NodeProto) -> None:
        values, datatype = self.weights(node)
        outputs, per_group, *kernel = values.shape
        groups, strides, dilations, pads = (
            _attribute(node, name) for name in ("group", "strides", "dilations", "pads")
        )
        source, result = self.take(node.input[0]), node.output[0]
        channels = self.tensors[source][0][-1]
        depthwise = groups == channels == outputs and groups > 1
        windows = self.window(
            source,
            result,
            kernel=kernel,
            strides=strides,
            dilations=dilations,
            pads=pads,
            depthwise=depthwise,
        )
        vectors = self.tensors[windows][0][:-1]
        # FINN folds a depthwise layer together with what feeds it: there must be something.
        if not depthwise or windows == self.integer.graph.input[0].name:
            dense = _dense(values, groups).transpose(2, 3, 1, 0).reshape(-1, outputs)
            self.matrix(windows, node, dense, datatype, vectors)
            return
        self.add_tensor(result, [*vectors, outputs], self.datatype(result))
        sums = self.tensors[result][1].name
        self.add(
            "VVAU",
            [windows, self.add_initializer(f"{result}_kernels", values, datatype)],
            [result],
            PE=1,
            SIMD=1,
            Dim=vectors[1:],
            Channels=channels,
            Kernel=kernel,
            inputDataType=self.tensors[windows][1].name,
            weightDataType=datatype.name,
            outputDataType=sums,
            accDataType=sums,
            ActVal=0,
            noActivation=1,
            mem_mode="internal_decoupled",
        )

    def product(self, node: NodeProto) -> None:
        values, datatype = self.weights(node)
        source = self.take(node.input[0])
        if node.input[0] in self.flattened:
            values = self.stream_order(node.input[0], values)
        self.matrix(source, node, values, datatype, [1])

    def thresholds(self, node: NodeProto) -> None:
        source, result = self.take(node.input[0]), node.output[0]
        shape, datatype = self.tensors[source]
        attributes = getCustomOp(node)
        bias, scale = (attributes.get_nodeattr(name) for name in ("out_bias", "out_scale"))
        if scale != 1 or bias != int(bias):
            raise HardwareError(
                f"{self.layer}: thresholds with scale {scale} and bias {bias}: expected 1 and a "
                "whole number; export the network again"
            )
        values = self.integer.get_initializer(node.input[1])
        if node.input[0] in self.flattened:
            values = self.stream_order(node.input[0], values)
            self.flattened[result] = self.flattened[node.input[0]]
        # A threshold that no number reaches is held as the greatest number plus 1.
        values = np.clip(values, datatype.min(), datatype.max() + 1)
        steps = _threshold_type(values, datatype)
        levels = self.datatype(result)
        self.add_tensor(result, shape, levels)
        self.add(
            "Thresholding",
            [source, self.add_initializer(f"{result}_steps", values, steps)],
            [result],
            NumChannels=shape[-1],
            PE=1,
            numSteps=values.shape[1],
            inputDataType=datatype.name,
            weightDataType=steps.name,
            outputDataType=levels.name,
            numInputVectors=shape[:-1],
            ActVal=int(bias),
            preferred_impl_style="rtl",
        )

    def pool(
        self, source: str, node: NodeProto, *, window: str, function: str, **sizes: Any
    ) -> None:
        """Reduce each channel of a window to one number."""
        result = node.output[0]
        shape = self.channels_last(result)
        given = self.tensors[source][1].name
        self.add_tensor(result, shape, self.datatype(result))
        self.add(
            "Pool",
            [window],
            [result],
            InputDataType=given,
            OutputDataType=self.datatype(result).name,
            Channels=shape[-1],
            PE=1,
            OutImgDims=shape[1:3],
            Function=function,
            BatchSize=1,
            **sizes,
        )

    def max_pool(self, node: NodeProto) -> None:
        kernel, strides, dilations, pads = (
            _attribute(node, name) for name in ("kernel_shape", "strides", "dilations", "pads")
        )
        source, result = self.take(node.input[0]), node.output[0]
        if any(pads) and self.tensors[source][1].signed():
            raise HardwareError(
                f"{self.layer}: max pooling pads signed numbers with zeros: pool without padding, "
                "or after a ReLU"
            )
        if kernel == strides == [1, 1]:
            raise HardwareError(
                f"{self.layer}: max pooling of single pixels has no hardware layer: leave it out"
            )
        window = self.window(
            source,
            result,
            kernel=kernel,
            strides=strides,
            dilations=dilations,
            pads=pads,
            depthwise=True,
        )
        if self.tensors[window][0][1:3] != self.channels_last(result)[1:3]:
            raise HardwareError(
                f"{self.layer}: max pooling with ceil_mode has no hardware layer: pad instead"
            )
        self.pool(source, node, window=window, function="MaxPool", KernelSize=kernel)

    def average_pool(self, node: NodeProto) -> None:
        attributes = getCustomOp(node)
        kernel, stride = (attributes.get_nodeattr(name) for name in ("kernel", "stride"))
        source = self.take(node.input[0])
        window = self.window(
            source,
            node.output[0],
            kernel=[kernel, kernel],
            strides=[stride, stride],
            dilations=[1, 1],
            pads=[0, 0, 0, 0],
            depthwise=True,
        )
        self.pool(
            source,
            node,
            window=window,
            function="QuantAvgPool",
            KernelSize=[kernel, kernel],
            AccumBits=attributes.get_accum_size(),
            Size=attributes.get_shifts(),
        )

    def sum(self, node: NodeProto) -> None:
        for name in node.input:
            if self.integer.get_initializer(name) is not None:
                raise HardwareError(
                    f"{self.layer}: a constant is added to the sums, which has no hardware layer: "
                    "leave out the last layer's bias"
                )
            if name in self.flattened:
                self.flattened[node.output[0]] = self.flattened[name]
        sources = [self.take(name) for name in node.input]
        result = node.output[0]
        shape = self.tensors[sources[0]][0]
        self.add_tensor(result, shape, self.datatype(result))
        self.add(
            "ElementwiseAdd",
            sources,
            [result],
            lhs_shape=shape,
            rhs_shape=shape,
            out_shape=shape,
            lhs_dtype=self.tensors[sources[0]][1].name,
            rhs_dtype=self.tensors[sources[1]][1].name,
            out_dtype=self.tensors[result][1].name,
            lhs_style="input",
            rhs_style="input",
            PE=1,
        )

    def flatten(self, node: NodeProto) -> None:
        """Name the stream anew: a frame's numbers stay in their order, channels last."""
        source, result = self.take(node.input[0]), node.output[0]
        shape, datatype = self.tensors[source]
        if len(shape) == 4:
            _, height, width, channels = shape
            self.flattened[result] = (channels, height, width)
        self.tensors[source] = ([1, math.prod(shape)], datatype)
        self.branches[result] = [source]

    OPERATIONS: dict[str, Callable[[_Translation, NodeProto], None]] = {
        "Conv": convolution,
        "MatMul": product,
        "MultiThreshold": thresholds,
        "MaxPool": max_pool,
        "QuantAvgPool2d": average_pool,
        "Add": sum,
        "Flatten": flatten,
    }

    # The graph

    def assemble(self, source: str, target: str) -> ModelWrapper:
        self.tensors[source] = (self.channels_last(source), self.datatype(source))
        infos = {
            name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, (shape, _) in self.tensors.items()
        }
        used = {name for node in self.nodes for name in (*node.input, *node.output)}
        graph = helper.make_graph(
            self.nodes,
            "accelerator",
            [infos[source]],
            [infos[target]],
            value_info=[info for name, info in infos.items() if name in used - {source, target}],
        )
        model = ModelWrapper(qonnx_make_model(graph))
        for name, (values, datatype) in self.initializers.items():
            model.set_initializer(name, values)
            model.set_tensor_datatype(name, datatype)
        for name in used & self.tensors.keys():
            model.set_tensor_datatype(name, self.tensors[name][1])
        return model


def _threshold_type(values: NDArray[np.float32], compared: DataType) -> DataType:
    """Return the narrowest type for thresholds of numbers of type ``compared``.

    The comparator takes thresholds narrower than the numbers and saturates these: a number below
    the least threshold may then become equal to the least representable one, which therefore must
    be no threshold.
    """
    low, high = int(values.min()), int(values.max())
    if not compared.signed():
        return DataType[f"UINT{max(1, high.bit_length())}"]
    for bits in range(2, compared.bitwidth()):
        if -(1 << (bits - 1)) < low and high < 1 << (bits - 1):
            return DataType[f"INT{bits}"]
    return compared if high <= compared.max() else DataType[f"INT{compared.bitwidth() + 1}"]


def _attribute(node: NodeProto, name: str) -> Any:
    """Return an attribute of an integer graph's node, which states them all."""
    found = get_by_name(node.attribute, name)
    return list(found.ints) if found.ints else found.i


def _dense(values: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """Write (outputs, inputs / groups, kh, kw) weights of groups as one matrix with zeros."""
    if groups == 1:
        return values
    outputs, per_group, *kernel = values.shape
    dense = np.zeros((outputs, per_group * groups, *kernel), np.float32)
    rows, columns = outputs // groups, per_group
    for group in range(groups):
        own = slice(group * rows, (group + 1) * rows)
        dense[own, group * columns : (group + 1) * columns] = values[own]
    return dense
