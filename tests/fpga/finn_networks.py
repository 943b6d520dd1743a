# SPDX-License-Identifier: BSD-3-Clause
"""Small integer graphs with every operation that FINN builds: random weights and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.basic import qonnx_make_model

from brevitas_divqat.export.metadata import METADATA_KEY, GraphMetadata

CLASSES = 5


class Network:
    """An integer graph that grows layer by layer; weights are those of the seed."""

    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        self.shape = shape
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: dict[str, NDArray[np.float32]] = {}
        self.types = {"pixels": DataType["UINT8"]}
        self.largest = {"pixels": 255}
        self.channels = {"pixels": shape[0]}

    def add(self, kind: str, inputs: Sequence[str], datatype: str, **attributes: Any) -> str:
        index = len(self.nodes)
        result = f"t{index}"
        node = helper.make_node(kind, list(inputs), [result], f"{kind}_{index}", **attributes)
        node.doc_string = f"layers.{index}"
        self.nodes.append(node)
        self.types[result] = DataType[datatype]
        self.largest[result] = int(DataType[datatype].max())
        return result

    def weights(self, shape: Sequence[int], datatype: str) -> str:
        name = f"weights{len(self.initializers)}"
        if datatype == "BIPOLAR":
            values = self.random.choice([-1, 1], shape)
        else:
            top = int(DataType[datatype].max())
            values = self.random.integers(-top, top + 1, shape)  # narrow range
        self.initializers[name] = np.asarray(values, np.float32)
        self.types[name] = DataType[datatype]
        return name

    def convolution(
        self,
        source: str,
        outputs: int,
        kernel: int,
        *,
        pad: int = 0,
        stride: int = 1,
        group: int = 1,
        bits: int = 4,
    ) -> str:
        inputs = self.channels[source] // group
        weights = self.weights((outputs, inputs, kernel, kernel), f"INT{bits}")
        result = self.add(
            "Conv",
            [source, weights],
            self.sum_type(source, weights, inputs * kernel**2),
            kernel_shape=[kernel] * 2,
            pads=[pad] * 4,
            strides=[stride] * 2,
            dilations=[1, 1],
            group=group,
        )
        self.channels[result] = outputs
        return self.thresholds(result, inputs * kernel**2, self.largest[source] * 2**bits)

    def thresholds(self, source: str, terms: int, largest: int, bits: int = 4) -> str:
        """Quantize: thresholds where sums of random products are, and one out of their reach."""
        steps = 2**bits - 1
        spread = np.sqrt(terms) * largest / 6  # of uniform factors
        values = np.sort(
            np.round(self.random.normal(0, spread, (self.channels[source], steps))), axis=1
        )
        top = self.types[source].max()
        values = np.clip(values, self.types[source].min(), top)
        values[0, -1] = top + 1  # which no sum reaches
        return self.levels(source, values, bits)

    def levels(self, source: str, values: NDArray[Any], bits: int) -> str:
        name = f"thresholds{len(self.initializers)}"
        self.initializers[name] = np.asarray(values, np.float32)
        least = DataType.get_smallest_possible(values.min())
        most = DataType.get_smallest_possible(
            -values.max() - 1 if values.min() < 0 else values.max()
        )
        self.types[name] = max(least, most, key=lambda datatype: int(datatype.bitwidth()))
        result = self.add(
            "MultiThreshold",
            [source, name],
            f"UINT{bits}",
            domain="qonnx.custom_op.general",
            out_dtype=f"UINT{bits}",
            out_bias=0.0,
        )
        self.channels[result] = self.channels[source]
        return result

    def join(self, first: str, second: str) -> str:
        result = self.add("Add", [first, second], "UINT5")
        self.channels[result] = self.channels[first]
        return self.levels(result, 2 * np.arange(1, 16)[None, :], 4)

    def max_pool(self, source: str) -> str:
        result = self.add(
            "MaxPool",
            [source],
            self.types[source].name,
            kernel_shape=[2, 2],
            strides=[2, 2],
            pads=[0] * 4,
            dilations=[1, 1],
            ceil_mode=0,
        )
        self.channels[result] = self.channels[source]
        return result

    def average(self, source: str, kernel: int) -> str:
        bits = int(np.ceil(np.log2(15 * kernel**2 + 1)))
        result = self.add(
            "QuantAvgPool2d",
            [source],
            f"UINT{bits}",
            domain="qonnx.custom_op.general",
            kernel=kernel,
            stride=kernel,
            ibits=4,
            obits=bits,
            signed=0,
            data_layout="NCHW",
        )
        self.channels[result] = self.channels[source]
        return result

    def flatten(self, source: str, inputs: int) -> str:
        result = self.add("Flatten", [source], self.types[source].name, axis=1)
        self.channels[result] = inputs
        return result

    def product(self, source: str, outputs: int, datatype: str = "INT4") -> str:
        weights = self.weights((self.channels[source], outputs), datatype)
        sums = self.sum_type(source, weights, self.channels[source])
        result = self.add("MatMul", [source, weights], sums)
        self.channels[result] = outputs
        return result

    def sum_type(self, source: str, weights: str, terms: int) -> str:
        largest = terms * self.largest[source] * max(1, int(self.types[weights].max()))
        return str(DataType.get_smallest_possible(-2 * largest).name)

    def write(self, path: Path, scores: str) -> Path:
        channels, height, width = self.shape
        graph = helper.make_graph(
            self.nodes,
            "integer",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, *self.shape])],
            [helper.make_tensor_value_info(scores, TensorProto.FLOAT, [1, CLASSES])],
        )
        model = ModelWrapper(qonnx_make_model(graph))
        for name, values in self.initializers.items():
            model.set_initializer(name, values)
        model = model.transform(InferShapes())
        for name, datatype in self.types.items():
            model.set_tensor_datatype(name, datatype)
        metadata = GraphMetadata(
            image_shape=(channels, height, width),
            pixel_divisor=1.0,
            class_names=tuple("abcde"),
            form="integer",
            output_scale=0.25,
            data="noise",
            model="small",
        )
        model.set_metadata_prop(METADATA_KEY, metadata.to_json())
        model.save(str(path))
        return path


def chain(path: Path) -> Path:
    """Convolution, max pool, two products: what FINN's default steps build, too."""
    net = Network((1, 8, 8))
    x = net.max_pool(net.convolution("pixels", 4, 3, pad=1, bits=8))
    x = net.product(net.flatten(x, 64), 8)
    return net.write(path, net.product(net.thresholds(x, 64, 15 * 16), CLASSES, "INT8"))


def joined(path: Path) -> Path:
    """A residual block with a strided shortcut, a depthwise layer, an average."""
    net = Network((2, 8, 8))
    x = net.convolution("pixels", 4, 3, pad=1, bits=8)
    x = net.join(x, net.convolution(net.convolution(x, 4, 3, pad=1), 4, 3, pad=1, group=4))
    shortcut = net.convolution(x, 6, 1, stride=2)
    x = net.join(shortcut, net.convolution(x, 6, 3, pad=1, stride=2))
    x = net.average(x, 4)
    return net.write(path, net.product(net.flatten(x, 6), CLASSES, "INT8"))


def signs(path: Path) -> Path:
    """Two products with weights of one bit."""
    net = Network((1, 4, 4))
    x = net.product(net.flatten("pixels", 16), 6, "BIPOLAR")
    return net.write(path, net.product(net.thresholds(x, 16, 255 * 2), CLASSES, "BIPOLAR"))
