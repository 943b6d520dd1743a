# SPDX-License-Identifier: BSD-3-Clause
"""A QONNX graph as the rules look at it: quantizers, layers, and what leads to what."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.export.graph_files import attributes_of

__all__ = [
    "JOINS",
    "MATRIX_LAYERS",
    "QUANTIZERS",
    "SHAPING",
    "Grid",
    "QuantGraph",
    "Quantizer",
]

QUANTIZERS = frozenset({"Quant", "BipolarQuant", "Trunc"})
MATRIX_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
SHAPING = frozenset(
    {"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that pass values on as they are."""
JOINS = frozenset({"Add", "Concat", "Div", "Mul", "Sub"})
"""Operators that can join two branches."""

QUALIFIED_NAME = re.compile(r"[\w.]+")
CONSTANT_INPUTS = {
    "Quant": {"scale": 1, "zero-point": 2, "bit width": 3},
    "BipolarQuant": {"scale": 1},
}
TRUNC_INPUTS = {
    5: {"scale": 1, "zero-point": 2, "bit width": 4},
    6: {"scale": 4, "zero-point": 2, "bit width": 5},
}
"""By number of inputs, which differs between the versions of the operator: what it puts out."""


@dataclass(frozen=True)
class Quantizer:
    """A quantizer node and its constants.

    Attributes:
        node: the Quant, BipolarQuant or Trunc node.
        scale: None where it is computed at run time.
        zero_point: None where it is computed at run time.
        bits: None where it is computed at run time, or differs within the tensor.
        signed: whether it has negative levels.
        narrow: whether it leaves out the lowest level.
        rounding: the rounding mode, in capitals.
        constant: whether it quantizes a constant, such as a weight.
        dynamic: which of these are computed at run time.
    """

    node: Any
    scale: NDArray[np.float32] | None
    zero_point: NDArray[np.float32] | None
    bits: float | None
    signed: bool
    narrow: bool
    rounding: str
    constant: bool
    dynamic: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """The levels that a tensor's values lie on; without a kind where several are added up."""

    scale: tuple[float, ...]
    kind: str


class QuantGraph:
    """A QONNX graph as the rules look at it.

    Args:
        wrapper: a qonnx ``ModelWrapper`` with shapes and with constants folded.

    Attributes:
        nodes: in topological order.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self.nodes = list(wrapper.graph.node)
        self._constants = {tensor.name for tensor in wrapper.graph.initializer}
        self._inputs = {t.name for t in wrapper.graph.input} - self._constants
        self._outputs = {t.name for t in wrapper.graph.output}
        self._producers = {name: node for node in self.nodes for name in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._consumers.setdefault(name, []).append(node)

    # Tensors and nodes.

    def producer(self, tensor: str) -> Any:
        """Return the node that puts a tensor out; None for inputs and constants."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[Any]:
        """Return the nodes that read a tensor."""
        return self._consumers.get(tensor, [])

    def constant(self, tensor: str) -> NDArray[np.float32] | None:
        """Return a constant's value; None for computed tensors."""
        return self._wrapper.get_initializer(tensor) if tensor in self._constants else None

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._wrapper.get_tensor_shape(tensor) or ())

    def attribute(self, node: Any, name: str, default: Any) -> Any:
        """Return an attribute of a node, text as str."""
        value = attributes_of(node).get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def layer(self, node: Any) -> str:
        """Name the layer that a node comes from, else the node, else its output."""
        if QUALIFIED_NAME.fullmatch(node.doc_string):
            return str(node.doc_string)
        return str(node.name or node.output[0])

    def source(self, tensor: str, through: frozenset[str]) -> Any:
        """Follow a tensor upwards ``through`` operators; return the first other node, or None."""
        node = self.producer(tensor)
        while node is not None and node.op_type in through:
            tensor = node.input[0]
            node = self.producer(tensor)
        return node

    def sinks(self, tensor: str) -> Iterator[Any]:
        """Follow a tensor down, through all that is no quantizer, layer, join or average."""
        for node in self.consumers(tensor):
            if node.op_type in SHAPING | {"MaxPool"} or self.is_arithmetic(node):
                yield from self.sinks(node.output[0])
            else:
                yield node

    # Quantizers.

    @cached_property
    def quantizers(self) -> list[Quantizer]:
        """All quantizers, of weights too."""
        return [self.at(node) for node in self.nodes if node.op_type in QUANTIZERS]

    @cached_property
    def activations(self) -> list[Quantizer]:
        """The quantizers of what is computed at run time, without truncation."""
        return [q for q in self.quantizers if not q.constant and q.node.op_type != "Trunc"]

    @cached_property
    def matrix_layers(self) -> list[Any]:
        """The convolutions and fully connected layers."""
        return [node for node in self.nodes if node.op_type in MATRIX_LAYERS]

    @cached_property
    def weights(self) -> list[tuple[Any, Quantizer]]:
        """Each layer of quantized weights, with their quantizer."""
        pairs = [(node, self.source(node.input[1], SHAPING)) for node in self.matrix_layers]
        found = [(n, self.at(s)) for n, s in pairs if s is not None and s.op_type in QUANTIZERS]
        return [(node, quantizer) for node, quantizer in found if quantizer.constant]

    @cached_property
    def joins(self) -> list[Any]:
        """The nodes that join two computed branches."""
        return [node for node in self.nodes if self.is_join(node)]

    def at(self, node: Any) -> Quantizer:
        """Read a quantizer node."""
        where = CONSTANT_INPUTS.get(node.op_type) or TRUNC_INPUTS[len(node.input)]
        values = {name: self.constant(node.input[index]) for name, index in where.items()}
        bipolar = node.op_type == "BipolarQuant"
        widths = np.ones(1) if bipolar else values["bit width"]
        return Quantizer(
            node=node,
            scale=values["scale"],
            zero_point=values.get("zero-point"),
            bits=None if widths is None or np.unique(widths).size > 1 else float(widths.flat[0]),
            signed=bipolar or bool(self.attribute(node, "signed", 1)),
            narrow=bool(self.attribute(node, "narrow", 0)),
            rounding=str(self.attribute(node, "rounding_mode", "ROUND")).upper(),
            constant=node.input[0] in self._constants,
            dynamic=tuple(name for name, value in values.items() if value is None),
        )

    def grid(self, tensor: str) -> Grid | None:
        """Return the levels that a tensor's values lie on; None where there are none."""
        node = self.source(tensor, SHAPING | {"MaxPool"})
        if node is None:
            return None
        if node.op_type in QUANTIZERS:
            q = self.at(node)
            if q.scale is None or q.bits is None:
                return None
            kind = f"{q.bits:g} {'signed' if q.signed else 'unsigned'} bits"
            return Grid(tuple(map(float, q.scale.flat)), kind)
        if self.is_join(node) and node.op_type in ("Add", "Sub", "Concat"):
            grids = {self.grid(name) for name in node.input}
            if len(grids) == 1 and None not in grids:
                (grid,) = grids
                return grid and Grid(grid.scale, grid.kind if node.op_type == "Concat" else "sums")
        return None

    def is_per_output_channel(self, layer: Any, quantizer: Quantizer) -> bool:
        """Say whether a weight scale varies along the output channels only, if at all."""
        if quantizer.scale is None:
            return True
        rank = len(self.shape(layer.input[1]))
        shape = (1,) * (rank - quantizer.scale.ndim) + quantizer.scale.shape
        first = layer.op_type == "Conv" or self.attribute(layer, "transB", 0)
        return all(n == 1 for n in (shape[1:] if first else shape[:-1]))

    # Kinds of nodes.

    def is_join(self, node: Any) -> bool:
        """Say whether a node joins two or more computed branches."""
        computed = [name for name in node.input if name not in self._constants]
        return node.op_type in JOINS and len(computed) > 1

    def is_arithmetic(self, node: Any) -> bool:
        """Say whether a node is what thresholds absorb: constant factors and terms, and ReLU."""
        affine = node.op_type in JOINS - {"Concat"} and not self.is_join(node)
        return affine or node.op_type in ("BatchNormalization", "Relu")

    def _has_scalar(self, node: Any) -> bool:
        constants = [self.constant(name) for name in node.input]
        return any(value is not None and value.size == 1 for value in constants)

    def is_scalar_factor(self, node: Any) -> bool:
        """Say whether a node multiplies by one number, which moves past any layer."""
        return node.op_type in ("Mul", "Div") and self._has_scalar(node)

    def is_scalar_term(self, node: Any) -> bool:
        """Say whether a node adds one number, which moves past any layer without padding."""
        return node.op_type in ("Add", "Sub") and self._has_scalar(node)

    def has_bias(self, node: Any) -> bool:
        """Say whether a layer adds a bias."""
        return node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and bool(node.input[2])

    def passes_scale(self, layer: Any) -> bool:
        """Say whether a layer's output is integers times one scale."""
        scales = [q.scale for node, q in self.weights if node is layer]
        single = bool(scales) and scales[0] is not None and scales[0].size == 1
        return single and not self.has_bias(layer)

    def is_depthwise(self, node: Any) -> bool:
        """Say whether a convolution is depthwise, as FINN defines it."""
        if node.op_type != "Conv":
            return False
        groups = self.attribute(node, "group", 1)
        channels = self.shape(node.input[0])[1], self.shape(node.output[0])[1]
        return channels == (groups, groups)

    def is_followed_by_trunc(self, node: Any) -> bool:
        """Say whether truncation is all that follows an average, directly."""
        users = self.consumers(node.output[0])
        if len(users) == 1 and users[0].op_type == "Mul" and not self.is_join(users[0]):
            users = self.consumers(users[0].output[0])  # the older form of the operator
        truncated = len(users) == 1 and users[0].op_type == "Trunc"
        return node.op_type == "AveragePool" and truncated

    def is_flattened(self, node: Any) -> bool:
        """Say whether maps of more than one pixel are reshaped right behind a node."""
        shape = self.shape(node.output[0])
        users = {user.op_type for user in self.consumers(node.output[0])}
        return math.prod(shape[2:]) > 1 and bool(users & {"Flatten", "Reshape", "Squeeze"})

    def is_partial_pool(self, node: Any) -> bool:
        """Say whether a pool's last window reaches over the border."""
        kernel, strides = (self.attribute(node, n, (1, 1)) for n in ("kernel_shape", "strides"))
        pads = self.attribute(node, "pads", (0, 0, 0, 0))
        size = self.shape(node.input[0])[2:]
        return any(
            (size[i] + pads[i] + pads[i + 2] - kernel[i]) % strides[i] for i in range(len(size))
        )

    # Where nodes lie.

    def _origin(self, tensor: str) -> tuple[Any, str]:
        """Follow a tensor upwards through shaping, pooling and arithmetic."""
        node = self.producer(tensor)
        while node is not None and (
            node.op_type in SHAPING | {"MaxPool"} or self.is_arithmetic(node)
        ):
            tensor = next(name for name in node.input if name not in self._constants)
            node = self.producer(tensor)
        return node, tensor

    def origin(self, tensor: str) -> Any:
        """Return the quantizer, layer or join that a tensor comes from; None for the input."""
        return self._origin(tensor)[0]

    def reads_input(self, layer: Any) -> bool:
        """Say whether only arithmetic and shaping lie between the graph's input and a layer."""
        return self._origin(layer.input[0])[1] in self._inputs

    def is_input_quantizer(self, node: Any) -> bool:
        """Say whether a quantizer is what the graph's input meets first."""
        return self.reads_input(node)

    @cached_property
    def _fed(self) -> set[int]:
        """Nodes behind an activation quantizer or a layer."""
        fed: set[int] = set()
        tensors: set[str] = set()
        starts = {id(q.node) for q in self.activations} | {id(n) for n in self.matrix_layers}
        for node in self.nodes:
            if tensors & set(node.input):
                fed.add(id(node))
            if id(node) in starts | fed:
                tensors.update(node.output)
        return fed

    def is_fed(self, node: Any) -> bool:
        """Say whether a node lies behind a quantizer, so that the accelerator has to hold it."""
        return id(node) in self._fed or node.op_type in MATRIX_LAYERS

    def _before(self, ends: set[int]) -> set[int]:
        found: set[int] = set()
        tensors: set[str] = set()
        for node in reversed(self.nodes):
            if tensors & set(node.output):
                found.add(id(node))
            if id(node) in ends | found:
                tensors.update(node.input)
        return found

    @cached_property
    def _feeding(self) -> set[int]:
        activations = {id(q.node) for q in self.activations}
        return self._before({id(n) for n in self.matrix_layers} | activations)

    def feeds_hardware(self, node: Any) -> bool:
        """Say whether a layer or quantizer follows, so that the host cannot take over here."""
        return id(node) in self._feeding

    @cached_property
    def _feeding_layers(self) -> set[int]:
        return self._before({id(node) for node in self.matrix_layers})

    def feeds_layer(self, node: Any) -> bool:
        """Say whether a convolution or fully connected layer follows."""
        return id(node) in self._feeding_layers

    def follows_layer(self, node: Any) -> bool:
        """Say whether a convolution or fully connected layer comes before."""
        before = self._before({id(node)})
        return any(id(layer) in before for layer in self.matrix_layers)

    def reaches_only_output(self, node: Any) -> bool:
        """Say whether a node's output is the graph's, but for its shape."""
        sinks = list(self.sinks(node.output[0]))
        return not sinks and not self.feeds_hardware(node)
