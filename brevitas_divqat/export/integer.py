# SPDX-License-Identifier: BSD-3-Clause
"""From the exported graph to the integer graph, which is what the hardware computes.

Every tensor of the exported graph is told by integers: real value = arithmetic(integer * scale),
where the arithmetic is what the graph does elementwise since the last convolution (BatchNorm, bias,
ReLU). A quantizer turns it into thresholds on the integers; nothing else remains of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import GraphError
from brevitas_divqat.export.assembly import Assembly
from brevitas_divqat.export.constants import (
    Constant,
    Constants,
    bit_width,
    check_zero_point,
    quant_attributes,
)
from brevitas_divqat.export.graph_files import attributes_of, check_finite, layer_name, read_graph
from brevitas_divqat.export.metadata import METADATA_KEY, GraphMetadata
from brevitas_divqat.export.ranges import EXACT_FLOAT32, dot_range, magnitude, smallest_datatype
from brevitas_divqat.export.thresholds import Arithmetic, find_thresholds
from brevitas_divqat.files import write_bytes

__all__ = [
    "SCALES_KEY",
    "export_integer",
    "integer_path",
    "is_integer_graph_of",
    "tensor_scales",
    "to_integer_graph",
]

SCALES_KEY = "brevitas_divqat_scales"
"""Metadata property of the integer graph: name of each quantized tensor to its scale, as JSON."""

ELEMENTWISE = frozenset({"BatchNormalization", "Relu", "Add", "Sub", "Mul", "Div", "Clip"})
PIXEL_MAX = 255
MAX_BITS = 16
"""Of activations: the number of thresholds doubles with each."""


def tensor_scales(graph: Any) -> dict[str, float]:
    """Return the scale of each quantized tensor of an integer graph, by name."""
    text = graph.get_metadata_prop(SCALES_KEY)
    return {} if text is None else dict(json.loads(text))


def to_integer_graph(graph: Any, *, pixel_divisor: float | None = None) -> Any:
    """Translate an exported graph into integer weights, accumulators and thresholds.

    The result is QONNX: 8-bit pixels in; ``Conv`` and ``MatMul`` of annotated integer weights;
    ``MultiThreshold``, whose output tensors keep the names of the quantizers' outputs; integers
    out, which the host multiplies by one scale (``GraphMetadata.output_scale``). It differs from
    the exported graph only where that one's float32 sums are rounded across a threshold.

    Args:
        graph: an exported graph, ``ModelWrapper`` or file; it stays as it is.
        pixel_divisor: the exported graph's input is a pixel (0 … 255) divided by this; taken from
            the graph's metadata by default.

    Returns:
        The integer graph, a ``ModelWrapper`` of batch size 1.

    Raises:
        GraphError: naming the layer that has no integer form and what to change.
    """
    sha256 = ""
    if isinstance(graph, (str, Path)):
        graph, sha256 = read_graph(Path(graph))
    text = graph.get_metadata_prop(METADATA_KEY)
    metadata = None if text is None else GraphMetadata.from_json(text, "the graph")
    if pixel_divisor is None:
        if metadata is None:
            raise GraphError(
                "the graph does not say what its pixels are divided by: give pixel_divisor"
            )
        pixel_divisor = metadata.pixel_divisor
    if metadata is not None and metadata.form == "integer":
        raise GraphError("the graph is an integer graph already: give the exported one")
    _check_ends(graph)
    translation = _Translation(graph, pixel_divisor)
    try:
        check_finite(graph, "the graph")
        integer, output_scale = translation.run()
    except GraphError:
        raise
    except Exception as error:  # of any kind: an operator used as no rule here expects
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise GraphError(
            f"{translation.layer} cannot be translated to integers ({reason}): use layers that "
            "FINN builds, see `divqat check`"
        ) from error
    integer.set_metadata_prop(SCALES_KEY, json.dumps(translation.scales))
    if metadata is not None:
        served = replace(
            metadata,
            form="integer",
            pixel_divisor=1.0,
            output_scale=output_scale,
            exported_sha256=sha256,
        )
        integer.set_metadata_prop(METADATA_KEY, served.to_json())
    return integer


def _check_ends(graph: Any) -> None:
    for kind, ends in (("input", graph.graph.input), ("output", graph.graph.output)):
        names = [end.name for end in ends]
        if len(names) != 1:
            raise GraphError(
                f"the graph has {len(names)} {kind}s ({', '.join(names)}): the integer graph has "
                f"one, give the others a graph of their own"
            )


def integer_path(path: Path) -> Path:
    """Return where the integer graph of an exported graph's file lies: ``model-integer.onnx``."""
    return path.with_stem(f"{path.stem}-integer")


def is_integer_graph_of(integer: Path, exported: Path) -> bool:
    """Tell whether an integer graph's file was made from an exported graph's file.

    Raises:
        GraphError: if one of them is missing or damaged.
    """
    text = read_graph(integer)[0].get_metadata_prop(METADATA_KEY)
    source = GraphMetadata.from_json(text, str(integer)).exported_sha256
    return source == read_graph(exported)[1]


def export_integer(path: Path) -> Path:
    """Write the integer graph of an exported graph beside it.

    Args:
        path: the exported graph's file.

    Returns:
        The integer graph's file, see `integer_path`.

    Raises:
        GraphError: see `to_integer_graph`; nothing is written.
    """
    content = to_integer_graph(path).model.SerializeToString()
    target = integer_path(path)
    write_bytes(target, content)
    return target


@dataclass(frozen=True)
class _Value:
    """A tensor of the exported graph told by an integer tensor.

    Attributes:
        tensor: the integer tensor.
        shape: its shape.
        low: (C,) least integers, or () for all channels.
        high: greatest integers, likewise.
        scale: () or (C,): integer * scale is where the arithmetic starts.
        nodes: the arithmetic that follows.
        weights: name of the initializer whose sign decides the integers' sign, if there is one.
    """

    tensor: str
    shape: tuple[int, ...]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    scale: NDArray[np.float64]
    nodes: tuple[Any, ...] = ()
    weights: str | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        return int(self.low.min()), int(self.high.max())


class _Translation:
    """One walk over an exported graph."""

    def __init__(self, graph: Any, pixel_divisor: float) -> None:
        self._source = graph
        self._constants = Constants(graph)
        self._values: dict[str, _Value] = {}
        self._made = Assembly()
        self._pixel_divisor = pixel_divisor
        self.layer = "the input"
        self.scales: dict[str, float] = {}
        self._opsets = dict(graph.get_opset_imports())

    def run(self) -> tuple[Any, float]:
        """Return the integer graph and the scale of its output."""
        self._enter()
        rules: dict[str, Callable[[Any], None]] = {
            "Quant": self._quant,
            "BipolarQuant": self._quant,
            "Conv": self._conv,
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "MaxPool": self._max_pool,
            "AveragePool": self._average_pool,
            "GlobalAveragePool": self._average_pool,
            "Trunc": self._trunc,
            "Flatten": self._flatten,
            "Reshape": self._flatten,
            "Identity": self._same,
            "Dropout": self._same,
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
        }
        for node in self._source.graph.node:
            self.layer = f"layer {layer_name(node)} ({node.op_type})"
            self._made.layer = layer_name(node)
            if all(name in self._constants for name in node.input if name):
                self._constants.fold(node)
            elif node.op_type in rules:
                rules[node.op_type](node)
            else:
                self._refuse(
                    "has no integer form", "use layers that FINN builds, see `divqat check`"
                )
        return self._finish()

    # What every rule needs

    def _refuse(self, found: str, remedy: str) -> None:
        raise GraphError(f"{self.layer} {found}: {remedy}")

    def _value(self, name: str) -> _Value:
        if name not in self._values:
            self._refuse(
                f"reads {name}, which no integer describes", "average pools need a Trunc quantizer"
            )
        return self._values[name]

    def _quantized(self, name: str) -> _Value:
        """Return a value that is integer * one scale, as a layer's input has to be."""
        value = self._value(name)
        if value.nodes:
            last = value.nodes[-1]
            self._refuse(
                f"reads what {layer_name(last)} ({last.op_type}) gives, which is not quantized",
                "put an activation quantizer between them",
            )
        if value.scale.ndim:
            self._refuse(
                "reads a tensor with a scale per channel",
                "quantize its input with one scale per tensor",
            )
        return value

    def _check_exact(self, largest: int) -> None:
        if largest >= EXACT_FLOAT32:
            self._refuse(
                f"has sums of up to {largest}, from {EXACT_FLOAT32} on float32 is not exact",
                "use fewer bits or fewer inputs",
            )

    def _shape(self, tensor: str) -> tuple[int, ...]:
        return tuple(self._source.get_tensor_shape(tensor))

    # Entrance and exit

    def _enter(self) -> None:
        from onnx import helper
        from qonnx.core.datatype import DataType

        (source,) = self._source.graph.input
        divisor = "pixel_divisor"
        self._constants[divisor] = Constant(np.asarray(self._pixel_divisor, np.float32))
        shape = self._shape(source.name)
        divide = helper.make_node("Div", [source.name, divisor], ["pixels_divided"])
        divide.doc_string = self.layer
        self._values[source.name] = _Value(
            source.name,
            shape,
            np.array(0),
            np.array(PIXEL_MAX),
            np.array(1.0),
            (divide,),
        )
        self._made.shapes[source.name] = shape
        self._made.datatypes[source.name] = DataType["UINT8"]

    def _finish(self) -> tuple[Any, float]:
        (output,) = self._source.graph.output
        self.layer = f"layer {layer_name(self._source.find_producer(output.name))} (the output)"
        value = self._output_bias(self._value(output.name), output.name)
        if value.scale.ndim:
            self._refuse(
                "has one scale per class, but one is left to the host",
                "give the last layer a weight quantizer with one scale per tensor",
            )
        if value.nodes and value.nodes[-1].op_type == "Add":
            self._refuse(
                "ends in a bias that is not quantized with the scale of the sums",
                "use bias=False, bias_quant=Int32Bias, or quantize the scores",
            )
        if value.nodes:
            self._refuse(
                f"ends in {value.nodes[-1].op_type} on float values, and no threshold follows",
                "leave it out, or quantize the scores",
            )
        if value.tensor != output.name:
            self._rename(value.tensor, output.name)
        integer = self._made.model(self._source)
        return integer, float(value.scale)

    def _output_bias(self, value: _Value, output: str) -> _Value:
        """Keep a last bias that was quantized with the accumulator's scale as an integer sum."""
        if len(value.nodes) != 1 or value.nodes[0].op_type != "Add" or value.scale.ndim:
            return value
        bias = self._constants[value.nodes[0].input[1]]
        if bias.integers is None or bias.scale is None:
            return value
        if not np.allclose(bias.scale, value.scale, rtol=SCALE_TOLERANCE, atol=0):
            return value
        low, high = value.low + bias.integers.ravel(), value.high + bias.integers.ravel()
        least, greatest = int(low.min()), int(high.max())
        self._check_exact(max(abs(least), abs(greatest), int(np.abs(bias.integers).max())))
        sums = f"{output}_sums"
        self._rename(value.tensor, sums)
        name = self._made.initializer(
            f"{output}_bias",
            bias.integers,
            smallest_datatype(int(bias.integers.min()), int(bias.integers.max())),
        )
        self._made.emit(
            "Add", [sums, name], output, value.shape, smallest_datatype(least, greatest)
        )
        return replace(value, tensor=output, nodes=(), low=low, high=high)

    def _rename(self, old: str, new: str) -> None:
        self._made.rename(old, new)
        if old in self.scales:
            self.scales[new] = self.scales.pop(old)

    # Elementwise arithmetic and quantizers

    def _same(self, node: Any) -> None:
        self._values[node.output[0]] = self._value(node.input[0])

    def _elementwise(self, node: Any) -> None:
        variable = [name for name in node.input if name and name not in self._constants]
        if len(variable) == 2 and node.op_type == "Add":
            self._residual(node)
            return
        if len(variable) != 1:
            self._refuse("combines two tensors", "only residual additions have an integer form")
        if node.input[0] != variable[0]:
            if node.op_type not in ("Add", "Mul"):
                self._refuse("takes a constant as its first operand", "swap the operands")
            node = _swapped(node)
        value = self._value(variable[0])
        self._check_per_channel(node, value)
        self._values[node.output[0]] = replace(value, nodes=(*value.nodes, node))

    def _check_per_channel(self, node: Any, value: _Value) -> None:
        rank, channels = len(value.shape), value.shape[1]
        for name in node.input[1:]:
            if not name:
                continue
            shape = self._constants[name].value.shape
            if node.op_type == "BatchNormalization":
                continue
            padded = (1,) * (rank - len(shape)) + shape
            if (
                len(padded) > rank
                or padded[1] not in (1, channels)
                or padded[:1] + padded[2:] != (1,) * (rank - 1)
            ):
                self._refuse(
                    f"has a constant of shape {shape}", "use one value per channel or per tensor"
                )

    def _arithmetic(self, value: _Value, *more: Any) -> Arithmetic:
        constants = {name: constant.value for name, constant in self._constants.items()}
        return Arithmetic((*value.nodes, *more), constants, self._opsets, len(value.shape))

    def _ends(self, value: _Value) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        channels = (value.shape[1],)
        return np.broadcast_to(value.low, channels), np.broadcast_to(value.high, channels)

    def _increasing(self, value: _Value, *more: Any) -> _Value:
        """Turn the signs of a layer's output channels whose arithmetic decreases."""
        apply = self._arithmetic(value, *more)
        first, last = (apply(end[None], value.scale)[0] for end in self._ends(value))
        falling = first > last
        if not falling.any():
            return value
        name = value.weights
        told = {key: v for key, v in self._values.items() if name and v.weights == name}
        tensors = {v.tensor for v in told.values()}
        if (
            name is None
            or any(v.tensor in tensors and v.weights != name for v in self._values.values())
            or any(
                tensors.intersection(node.input) and node.output[0] not in tensors
                for node in self._made.nodes
            )
        ):
            self._refuse(
                f"decreases in {int(falling.sum())} channels (a BatchNorm with negative gain?) "
                "of a tensor that is no layer's alone",
                "put a convolution before it, or keep the gain positive",
            )
        assert name is not None
        sign = np.where(falling, -1, 1)
        weights = self._made.initializers[name]
        axis = 1 if weights.ndim == 2 else 0
        shape = [1] * weights.ndim
        shape[axis] = -1
        self._made.initializers[name] = weights * sign.reshape(shape).astype(np.float32)
        self._made.datatypes[name] = _symmetric(
            self._made.datatypes[name], self._made.initializers[name]
        )
        self._values.update({key: self._turned(v, sign) for key, v in told.items()})
        return self._turned(value, sign)

    def _turned(self, value: _Value, sign: NDArray[np.int64]) -> _Value:
        """Return what a value becomes when its layer's weights change signs."""
        low, high = self._ends(value)
        low, high = np.where(sign < 0, -high, low), np.where(sign < 0, -low, high)
        self._made.datatypes[value.tensor] = smallest_datatype(int(low.min()), int(high.max()))
        return replace(value, low=low, high=high, scale=value.scale * sign)

    def _quant(self, node: Any) -> None:
        value = self._value(node.input[0])
        missing = [name for name in node.input[1:] if name not in self._constants]
        if missing:
            self._refuse("computes its scale from the image", "use a static quantizer")
        scale = self._constants[node.input[1]].value
        if scale.size != 1:
            self._refuse("has an activation scale per channel", "use one scale per tensor")
        step = float(np.ravel(scale)[0])
        if not 0 < step < np.inf:
            self._refuse(f"has the scale {step:g}", "calibrate the model again")
        least, most = self._levels(node)
        if node.op_type == "BipolarQuant" and value.nodes and value.nodes[-1].op_type == "Relu":
            # Brevitas exports 0 and 1 as if they were -1 and +1.
            self._refuse(
                "has 1-bit activations after a ReLU, which QONNX makes +1 throughout",
                "use 2 bits or more, or the sign without a ReLU",
            )
        value = self._increasing(value, node)
        apply = self._arithmetic(value, node)

        def level(integers: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.rint(apply(integers, value.scale).astype(np.float64) / step).astype(np.int64)

        # One range for all channels: those of equal arithmetic then have equal thresholds.
        least_sums, most_sums = (np.full(value.shape[1], end) for end in value.bounds)
        levels = range(least + 1, most + 1)
        thresholds = find_thresholds(level, least_sums, most_sums, levels)
        output = node.output[0]
        if self._is_identity(value, thresholds, least):
            self._values[output] = replace(value, nodes=(), scale=np.array(step), weights=None)
            self.scales.setdefault(value.tensor, step)
            return
        reached = [level(end[None])[0] for end in self._ends(value)]
        low, high = int(reached[0].min()), int(reached[1].max())
        if (thresholds == thresholds[:1]).all() and len(thresholds) > 1:
            thresholds = thresholds[:1]
        name = self._made.initializer(
            f"{output}_thresholds",
            thresholds,
            smallest_datatype(int(thresholds.min()), int(thresholds.max())),
        )
        datatype = smallest_datatype(least, most)
        self._made.emit(
            "MultiThreshold",
            [value.tensor, name],
            output,
            value.shape,
            datatype,
            out_dtype=datatype.name,
            out_bias=float(least),
        )
        self.scales[output] = step
        self._values[output] = _Value(
            output, value.shape, np.array(low), np.array(high), np.array(step)
        )

    def _levels(self, node: Any) -> tuple[int, int]:
        """Return a quantizer's least and greatest level.

        Signs, -1 and +1, need no rule of their own: both thresholds, of 0 and of 1, are then where
        the sign turns, and no accumulator gives 0.
        """
        if node.op_type == "BipolarQuant":
            return -1, 1
        zero_point, bits = (self._constants[name].value for name in node.input[2:4])
        check_zero_point(node, zero_point)
        signed, narrow, _ = quant_attributes(node)
        width = bit_width(node, bits)
        if width > MAX_BITS:
            self._refuse(f"has {width}-bit activations", f"use {MAX_BITS} bits or fewer")
        if signed and width == 1:  # which QONNX also takes for the sign
            return -1, 1
        if signed:
            return -(2 ** (width - 1)) + narrow, 2 ** (width - 1) - 1
        return 0, 2**width - 1 - narrow

    def _is_identity(self, value: _Value, thresholds: NDArray[np.int64], least: int) -> bool:
        """Tell whether the quantizer gives each integer back, as 8-bit pixels of scale 1/256."""
        low, high = value.bounds
        return bool(
            least == low
            and thresholds.shape[1] >= high - low
            and (thresholds[:, : high - low] == np.arange(low + 1, high + 1)).all()
            and (thresholds[:, high - low :] > high).all()
        )

    # Layers

    def _weights(self, name: str) -> Constant:
        constant = self._constants.get(name)
        if constant is None:
            self._refuse("multiplies two tensors", "only constant weights have an integer form")
        assert constant is not None
        if constant.integers is None:
            self._refuse("has weights in full precision", "give it a weight quantizer")
        return constant

    def _output_scale(self, weights: Constant, axis: int) -> NDArray[np.float64]:
        assert weights.scale is not None
        rows = np.moveaxis(weights.scale, axis, 0).reshape(weights.scale.shape[axis], -1)
        if (rows != rows[:, :1]).any():
            self._refuse(
                "has weight scales that differ within an output channel",
                "use one scale per tensor or per output channel",
            )
        per_channel = rows[:, 0]
        return per_channel[:1].reshape(()) if (per_channel == per_channel[0]).all() else per_channel

    def _dot(
        self,
        node: Any,
        op_type: str,
        value: _Value,
        weights: Constant,
        axis: int,
        bias: str | None,
        **attributes: Any,
    ) -> None:
        """Emit a layer, prove its accumulators' range, note its scale and bias."""
        from onnx import helper

        assert weights.integers is not None
        output = node.output[0]
        integers = weights.integers
        if op_type == "MatMul" and len(value.shape) != 2:
            self._refuse(f"reads a tensor of shape {value.shape}", "flatten each image to a vector")
        rows = np.moveaxis(integers, axis, 0).reshape(integers.shape[axis], -1)
        self._check_exact(int(magnitude(rows, *value.bounds).max()))
        low, high = dot_range(rows, *value.bounds)
        name = self._made.initializer(f"{output}_weights", integers, weights.datatype)
        shape = self._shape(output)
        datatype = smallest_datatype(int(low.min()), int(high.max()))
        self._made.emit(op_type, [value.tensor, name], output, shape, datatype, **attributes)
        scale = value.scale * self._output_scale(weights, axis)
        nodes: tuple[Any, ...] = ()
        if bias:
            spread = f"{output}_bias_spread"
            constant = self._constants[bias]
            wide = (1, -1) + (1,) * (len(shape) - 2)
            self._constants[spread] = replace(
                constant,
                value=constant.value.reshape(wide),
                integers=None if constant.integers is None else constant.integers.reshape(wide),
                scale=None if constant.scale is None else constant.scale.reshape(wide),
            )
            nodes = (helper.make_node("Add", [output, spread], [f"{output}_plus_bias"]),)
            nodes[0].doc_string = node.doc_string
        self._values[output] = _Value(output, shape, low, high, scale, nodes, name)

    def _conv(self, node: Any) -> None:

        value = self._quantized(node.input[0])
        bias = node.input[2] if len(node.input) > 2 else None
        attributes = attributes_of(node)
        weights = self._weights(node.input[1])
        kernel = weights.value.shape[2:]
        attributes = _explicit_padding(attributes, kernel, value.shape, self._shape(node.output[0]))
        self._dot(node, "Conv", value, weights, 0, bias, **attributes)

    def _matmul(self, node: Any) -> None:
        value = self._quantized(node.input[0])
        self._dot(node, "MatMul", value, self._weights(node.input[1]), 1, None)

    def _gemm(self, node: Any) -> None:

        attributes = attributes_of(node)
        if attributes.get("transA", 0) or any(
            attributes.get(n, 1.0) != 1 for n in ("alpha", "beta")
        ):
            self._refuse("is a scaled or transposed product", "use a plain linear layer")
        weights = self._weights(node.input[1])
        if attributes.get("transB", 0):
            assert weights.integers is not None
            assert weights.scale is not None
            weights = replace(
                weights,
                value=weights.value.T,
                integers=weights.integers.T,
                scale=weights.scale.T,
            )
        bias = node.input[2] if len(node.input) > 2 else None
        self._dot(node, "MatMul", self._quantized(node.input[0]), weights, 1, bias)

    def _residual(self, node: Any) -> None:
        first, second = (self._quantized(name) for name in node.input)
        if first.scale != second.scale:
            self._refuse(
                f"adds scales {float(first.scale):g} and {float(second.scale):g}",
                "quantize both branches with one shared quantizer",
            )
        low, high = (a + b for a, b in zip(first.bounds, second.bounds, strict=True))
        self._check_exact(max(abs(low), abs(high)))
        output = node.output[0]
        shape = self._shape(output)
        if first.shape != second.shape:
            self._refuse(f"adds shapes {first.shape} and {second.shape}", "make them equal")
        self._made.emit(
            "Add", [first.tensor, second.tensor], output, shape, smallest_datatype(low, high)
        )
        self._values[output] = _Value(output, shape, np.array(low), np.array(high), first.scale)

    # Pools and shapes

    def _max_pool(self, node: Any) -> None:

        value = self._increasing(self._value(node.input[0]))
        output = node.output[0]
        shape = self._shape(output)
        attributes = attributes_of(node)
        attributes = _explicit_padding(attributes, attributes["kernel_shape"], value.shape, shape)
        datatype = self._made.datatypes[value.tensor]
        self._made.emit("MaxPool", [value.tensor], output, shape, datatype, **attributes)
        self._values[output] = replace(value, tensor=output, shape=shape, weights=None)

    def _average_pool(self, node: Any) -> None:
        """Wait for the Trunc that makes integers of the mean."""
        readers = self._source.find_consumers(node.output[0]) or []
        if [reader.op_type for reader in readers] != ["Trunc"]:
            self._refuse(
                "averages without truncation to integers",
                "use TruncAvgPool2d with FLOOR, a strided convolution, or a max pool",
            )
        self._quantized(node.input[0])

    def _trunc(self, node: Any) -> None:

        pool = self._source.find_producer(node.input[0])
        if pool is None or pool.op_type not in ("AveragePool", "GlobalAveragePool"):
            self._refuse("truncates something else than an average pool", "leave it out")
        value = self._quantized(pool.input[0])
        found = attributes_of(pool)
        height, width = value.shape[2:]
        kernel = list(found.get("kernel_shape", (height, width)))
        strides = list(found.get("strides", (1, 1) if "kernel_shape" in found else kernel))
        if len(set(kernel)) > 1 or len(set(strides)) > 1 or any(found.get("pads", ())):
            self._refuse(
                f"averages windows of {kernel}, strides {strides}, pads {found.get('pads')}",
                "use square windows without padding",
            )
        if found.get("ceil_mode") or found.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            self._refuse("averages windows that reach over the edge", "use ceil_mode=False")
        rounding = attributes_of(node)
        if rounding.get("rounding_mode", b"FLOOR").upper() != b"FLOOR":
            self._refuse(
                f"rounds by {rounding['rounding_mode'].decode()}",
                "use FLOOR (float_to_int_impl_type='floor')",
            )
        self._shift(node, value, kernel[0], strides[0])

    def _shift(self, node: Any, value: _Value, kernel: int, stride: int) -> None:
        """Emit the sum of a window and its shift, which is what Trunc makes of the mean."""
        constants = [self._constants[name].value for name in node.input[1:]]
        scale, zero_point, *_, bits = constants
        if len(constants) != 5:
            self._refuse("is of an older QONNX version", "export it with this version of Brevitas")
        check_zero_point(node, zero_point)
        step, out_step = (float(np.ravel(c)[0]) for c in (scale, constants[3]))
        datatype = self._made.datatypes[value.tensor]
        signed = datatype.signed()
        width = datatype.bitwidth()
        out_bits = int(np.ravel(bits)[0])
        largest = (2**width - 1) * kernel * kernel
        self._check_exact(largest)
        shift = max(0, largest.bit_length() - out_bits)
        if 2**shift != 2 ** round(np.log2(out_step / step)) or not np.isclose(
            step * kernel * kernel, float(value.scale), rtol=SCALE_TOLERANCE, atol=0
        ):
            self._refuse(
                f"scales the sum of {kernel * kernel} by {float(value.scale) / out_step:g}, "
                f"hardware shifts it by {shift} bits",
                "let TruncAvgPool2d choose its scale",
            )
        output = node.output[0]
        low, high = ((end * kernel * kernel) >> shift for end in value.bounds)
        result = smallest_datatype(
            *((-(2 ** (out_bits - 1)), 1) if signed else (0, 2**out_bits - 1))
        )
        shape = self._shape(output)
        self._made.emit(
            "QuantAvgPool2d",
            [value.tensor],
            output,
            shape,
            result,
            kernel=kernel,
            stride=stride,
            ibits=width,
            obits=out_bits,
            signed=int(signed),
            data_layout="NCHW",
        )
        self.scales[output] = out_step
        self._values[output] = _Value(
            output, shape, np.array(low), np.array(high), np.array(out_step)
        )

    def _flatten(self, node: Any) -> None:
        value = self._value(node.input[0])
        output = node.output[0]
        shape = self._shape(output)
        if len(shape) != 2 or shape[0] != value.shape[0]:
            self._refuse(f"reshapes {value.shape} to {shape}", "flatten each image to a vector")
        of_pixel = int(np.prod(value.shape[2:])) == 1
        if not of_pixel and self._differs_by_channel(value):
            self._refuse("flattens what is not quantized", "put an activation quantizer before it")
        if not of_pixel:
            low, high = (np.array(end) for end in value.bounds)
            value = replace(value, low=low, high=high, weights=None)
        self._made.emit(
            "Flatten", [value.tensor], output, shape, self._made.datatypes[value.tensor], axis=1
        )
        self._values[output] = replace(value, tensor=output, shape=shape)

    def _differs_by_channel(self, value: _Value) -> bool:
        return value.scale.ndim > 0 or any(
            self._constants[name].value.size > 1
            for node in value.nodes
            for name in node.input[1:]
            if name
        )


SCALE_TOLERANCE = 1e-5
"""Relative: products of two float32 scales, each rounded once, that should be equal."""


def _swapped(node: Any) -> Any:
    """Return a commutative node with its operands in the other order."""
    from onnx import helper

    swapped = helper.make_node(node.op_type, [node.input[1], node.input[0]], list(node.output))
    swapped.doc_string = node.doc_string
    return swapped


def _explicit_padding(
    attributes: dict[str, Any],
    kernel: Sequence[int],
    shape: tuple[int, ...],
    output_shape: tuple[int, ...],
) -> dict[str, Any]:
    """Replace ``auto_pad``, which torch writes for ``padding="same"``, by ``pads``."""
    mode = attributes.get("auto_pad", b"NOTSET")
    explicit = {name: value for name, value in attributes.items() if name != "auto_pad"}
    if mode == b"NOTSET":
        return explicit
    strides = attributes.get("strides", [1] * len(kernel))
    dilations = attributes.get("dilations", [1] * len(kernel))
    totals = [
        max(0, (out - 1) * stride + (size - 1) * dilation + 1 - of)
        for out, of, size, stride, dilation in zip(
            output_shape[2:], shape[2:], kernel, strides, dilations, strict=True
        )
    ]
    if mode == b"VALID":
        totals = [0] * len(totals)
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    explicit["pads"] = [*more, *less] if mode == b"SAME_LOWER" else [*less, *more]
    return explicit


def _symmetric(datatype: Any, weights: NDArray[np.float32]) -> Any:
    """Widen the datatype of weights that have changed sign where -(-8) does not fit it any more."""
    fits = datatype.min() <= weights.min() and weights.max() <= datatype.max()
    return datatype if fits else smallest_datatype(int(weights.min()), int(weights.max()))
