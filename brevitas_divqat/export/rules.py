# SPDX-License-Identifier: BSD-3-Clause
"""What a QONNX graph must obey so that FINN builds hardware of it, one function per rule.

What each rule rests on (FINN's source, or a graph that was run through FINN) is in docs/check.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from brevitas_divqat.export.quantgraph import (
    JOINS,
    MATRIX_LAYERS,
    QUANTIZERS,
    SHAPING,
    QuantGraph,
    Quantizer,
)
from brevitas_divqat.quant import INPUT_SCALE

__all__ = ["RULES", "SEVERITIES", "Hit", "Rule", "Severity"]

Severity = Literal["breaks FINN", "falls back to HLS", "costs area"]
SEVERITIES: tuple[Severity, ...] = ("breaks FINN", "falls back to HLS", "costs area")

SELECTING = SHAPING | {"MaxPool"}
AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
SUPPORTED = (
    QUANTIZERS
    | MATRIX_LAYERS
    | SELECTING
    | JOINS
    | AVERAGES
    | {"BatchNormalization", "MultiThreshold", "Relu", "TopK"}
)
REFUSED = frozenset({"Erf", "Gelu", "Sigmoid", "Tanh"})
"""Operators that FINN turns into Versal's floating-point DSPs, and refuses on other parts even at
the end of a graph."""

MAX_THRESHOLD_BITS = 8
WIDE_ACTIVATION_BITS = 7
WIDE_WEIGHT_BITS = 8
RTL_BITS = 4


@dataclass(frozen=True)
class Hit:
    """One place that breaks a rule.

    Attributes:
        node: the graph's node; None for the whole graph.
        found: what was found there.
    """

    node: Any
    found: str


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: its stable identifier.
        severity: what breaking it leads to.
        remedy: what to do.
        find: yields every place of a graph that breaks it; None where modules are looked at.
    """

    name: str
    severity: Severity
    remedy: str
    find: Callable[[QuantGraph], Iterator[Hit]] | None = None


RULES: dict[str, Rule] = {}

Find = Callable[["QuantGraph"], Iterator[Hit]]


def _rule(name: str, severity: Severity, remedy: str) -> Callable[[Find], Find]:
    def register(find: Find) -> Find:
        RULES[name] = Rule(name, severity, remedy, find)
        return find

    return register


def _bits(quantizer: Quantizer) -> str:
    sign = "signed" if quantizer.signed else "unsigned"
    return f"{quantizer.bits:g} bits, {sign}{', narrow' if quantizer.narrow else ''}"


# --- what breaks FINN --------------------------------------------------------------------------

RULES["export"] = Rule(
    "export",
    "breaks FINN",
    "use layers and operators that Brevitas can export as QONNX, then check again",
)
RULES["no-quantizer"] = Rule(
    "no-quantizer", "breaks FINN", "build the network from brevitas.nn layers"
)


@_rule(
    "operator",
    "breaks FINN",
    "replace it by convolution, BatchNorm, ReLU, pooling or a quantizer, or move it to the host",
)
def _operator(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type in SUPPORTED or not graph.is_fed(node):
            continue
        if node.op_type in REFUSED or graph.feeds_hardware(node):
            yield Hit(node, f"operator {node.op_type}")


@_rule("zero-point", "breaks FINN", "use a symmetric quantizer, without a zero-point")
def _zero_point(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.quantizers:
        if q.zero_point is not None and (q.zero_point != 0).any():
            value = q.zero_point.flatten()[abs(q.zero_point).argmax()]
            yield Hit(q.node, f"zero-point {value:g}")


@_rule(
    "static-quantizer",
    "breaks FINN",
    "use a quantizer whose scale is a constant or learned, and one constant bit width",
)
def _static_quantizer(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.quantizers:
        if q.dynamic:
            yield Hit(q.node, f"{' and '.join(q.dynamic)} computed at run time")
        elif q.bits is None:
            yield Hit(q.node, "several bit widths in one tensor")


@_rule("activation-scale", "breaks FINN", "use a per-tensor scale for activations")
def _activation_scale(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        if q.scale is not None and q.scale.size > 1:
            yield Hit(q.node, f"{q.scale.size} activation scales")


@_rule("weight-scale", "breaks FINN", "use one weight scale per tensor or per output channel")
def _weight_scale(graph: QuantGraph) -> Iterator[Hit]:
    for layer, q in graph.weights:
        if q.scale is not None and not graph.is_per_output_channel(layer, q):
            yield Hit(layer, f"weight scales of shape {q.scale.shape}")


@_rule("relu-range", "breaks FINN", "quantize what follows a ReLU as unsigned over the full range")
def _relu_range(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        before = graph.producer(q.node.input[0])
        if before is None or before.op_type != "Relu" or q.node.op_type != "Quant":
            continue
        if q.signed or q.narrow:
            yield Hit(q.node, f"{_bits(q)} after a ReLU")


@_rule("activation-bits", "breaks FINN", f"use {MAX_THRESHOLD_BITS} bits or fewer for activations")
def _activation_bits(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        if q.bits is not None and q.bits > MAX_THRESHOLD_BITS:
            yield Hit(q.node, f"{q.bits:g}-bit activations")


@_rule(
    "rounding",
    "breaks FINN",
    "round to the nearest level (float_to_int_impl_type ROUND); FINN rounds so in any case",
)
def _rounding(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        if q.node.op_type == "Quant" and q.rounding != "ROUND":
            yield Hit(q.node, f"rounding mode {q.rounding}")


@_rule("bipolar-quantizer", "breaks FINN", "use 2 bits or more, or a 1-bit identity of scale 1")
def _bipolar_quantizer(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        if q.node.op_type != "BipolarQuant":
            continue
        before = graph.producer(q.node.input[0])
        if before is not None and before.op_type == "Relu":
            yield Hit(q.node, "1-bit activations after a ReLU")
        elif q.scale is not None and (q.scale.size > 1 or q.scale.flat[0] != 1):
            yield Hit(q.node, "1-bit activations of a scale other than 1")


@_rule(
    "bipolar-padding",
    "breaks FINN",
    "do not pad, or use activations of 2 bits or more: -1/+1 has no zero to pad with",
)
def _bipolar_padding(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.matrix_layers:
        source = graph.source(node.input[0], SHAPING)
        bipolar = source is not None and source.op_type == "BipolarQuant"
        if node.op_type == "Conv" and bipolar and any(graph.attribute(node, "pads", ())):
            yield Hit(node, "zero padding of 1-bit (-1/+1) activations")


@_rule("shared-weights", "breaks FINN", "give every layer a weight quantizer of its own")
def _shared_weights(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.quantizers:
        users = graph.consumers(q.node.output[0])
        if q.constant and len(users) > 1:
            names = ", ".join(graph.layer(user) for user in users)
            yield Hit(q.node, f"one weight quantizer for {names}")


@_rule("float-weights", "breaks FINN", "quantize the layer's weights to 2 to 8 bits")
def _float_weights(graph: QuantGraph) -> Iterator[Hit]:
    quantized = {id(layer) for layer, _ in graph.weights}
    for node in graph.matrix_layers:
        if id(node) not in quantized:
            static = graph.constant(node.input[1]) is not None
            yield Hit(node, f"{'full-precision' if static else 'run-time'} weights")


@_rule(
    "quantized-bias",
    "breaks FINN",
    "drop the bias, or leave it in full precision: a threshold absorbs it",
)
def _quantized_bias(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.matrix_layers:
        source = graph.producer(node.input[2]) if graph.has_bias(node) else None
        if node.op_type != "Conv" or source is None or source.op_type not in QUANTIZERS:
            continue
        q = graph.at(source)
        channels = graph.shape(node.output[0])[1]
        values = [value for value in (q.scale, q.zero_point) if value is not None]
        if any(value.shape != (1,) and value.size != channels for value in values):
            yield Hit(node, "quantized bias")


@_rule(
    "input-missing",
    "breaks FINN",
    "quantize the network's input to 8 bits (Uint8InputPerTensorConst)",
)
def _input_missing(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.matrix_layers:
        if graph.reads_input(node):
            yield Hit(node, "reads the network's input without a quantizer")


@_rule(
    "threshold-missing",
    "breaks FINN",
    "put an activation quantizer behind it: only thresholds absorb its arithmetic",
)
def _threshold_missing(graph: QuantGraph) -> Iterator[Hit]:
    def stuck(node: Any) -> str | None:
        """Name what FINN cannot move past the next layer."""
        if node.op_type in MATRIX_LAYERS:
            if graph.has_bias(node):
                return "bias"
            return None if graph.passes_scale(node) else "per-channel scale"
        if node.op_type == "MaxPool":
            source = graph.source(node.input[0], SELECTING)
            return "MaxPool" if source is not None and source.op_type in MATRIX_LAYERS else None
        if graph.is_arithmetic(node) and not graph.is_scalar_factor(node):
            return str(node.op_type)
        return None

    for node in graph.nodes:
        kind = stuck(node)
        if kind is None or not graph.is_fed(node):
            continue
        before = None if node.op_type in MATRIX_LAYERS else graph.source(node.input[0], SHAPING)
        if before is not None and stuck(before):
            continue  # the chain's first node is reported
        for sink in graph.sinks(node.output[0]):
            if sink.op_type not in MATRIX_LAYERS:
                continue
            if graph.is_scalar_term(node) and not any(graph.attribute(sink, "pads", ())):
                continue
            yield Hit(node, f"{kind} without a quantizer before {graph.layer(sink)}")
            break


@_rule("flatten-order", "breaks FINN", "flatten after the activation quantizer, not before it")
def _flatten_order(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.matrix_layers:
        quantized = any(sink.op_type in QUANTIZERS for sink in graph.sinks(node.output[0]))
        if quantized and graph.passes_scale(node) and graph.is_flattened(node):
            yield Hit(node, "sums that are flattened before they are quantized")


@_rule(
    "average-pool",
    "breaks FINN",
    "use TruncAvgPool2d with FLOOR, or a strided convolution to stay all-RTL",
)
def _average_pool(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type not in AVERAGES or graph.is_followed_by_trunc(node):
            continue
        # At the end, the host averages; but FINN takes a global average, and leaves its factor.
        if node.op_type != "AveragePool" or graph.feeds_hardware(node):
            yield Hit(node, f"{node.op_type} in floating point")


@_rule("average-pool-shape", "breaks FINN", "use square kernels and equal strides, without padding")
def _average_pool_shape(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type != "AveragePool" or not graph.is_followed_by_trunc(node):
            continue
        kernel, strides = (graph.attribute(node, n, (1, 1)) for n in ("kernel_shape", "strides"))
        padded = any(graph.attribute(node, "pads", ()))
        if len(set(kernel)) > 1 or len(set(strides)) > 1 or len(kernel) != 2 or padded:
            shape = f"kernel {tuple(kernel)}, stride {tuple(strides)}"
            yield Hit(node, f"{shape}{', padded' if padded else ''}")


@_rule("trunc-rounding", "breaks FINN", "set TruncAvgPool2d's float_to_int_impl_type to FLOOR")
def _trunc_rounding(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.quantizers:
        if q.node.op_type == "Trunc" and q.rounding != "FLOOR":
            yield Hit(q.node, f"truncation by {q.rounding}")


@_rule(
    "join-scale",
    "breaks FINN",
    "quantize all branches by one shared quantizer, called once per branch",
)
def _join_scale(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.joins:
        if node.op_type not in ("Add", "Concat", "Sub"):
            continue
        grids = [graph.grid(tensor) for tensor in node.input]
        if None in grids:
            yield Hit(node, f"{node.op_type} of a branch without a quantizer")
        elif len({grid and grid.scale for grid in grids}) > 1:
            yield Hit(node, f"{node.op_type} of branches of different scales")
        elif node.op_type != "Concat" and len({grid and grid.kind for grid in grids}) > 1:
            kinds = " and ".join(sorted({grid.kind for grid in grids if grid}))
            yield Hit(node, f"{node.op_type} of branches of {kinds}")


@_rule("max-pool-order", "breaks FINN", "pool after the activation quantizer, not before it")
def _max_pool_order(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type != "MaxPool" or not graph.feeds_hardware(node):
            continue
        source = graph.source(node.input[0], SELECTING)
        if source is not None and (graph.is_arithmetic(source) or graph.has_bias(source)):
            kind = "biased sums" if graph.has_bias(source) else source.op_type
            yield Hit(node, f"MaxPool of {kind}, before the quantizer")


@_rule(
    "max-pool-shape",
    "breaks FINN",
    "use a kernel no smaller than the stride, no padding of signed values, no ceil_mode",
)
def _max_pool_shape(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type != "MaxPool":
            continue
        kernel = tuple(graph.attribute(node, "kernel_shape", ()))
        strides = tuple(graph.attribute(node, "strides", (1,) * len(kernel)))
        source = graph.source(node.input[0], SELECTING)
        signed = source is not None and source.op_type in QUANTIZERS and graph.at(source).signed
        if len(kernel) != 2:
            yield Hit(node, f"{len(kernel)}-dimensional MaxPool")
        elif any(k < s for k, s in zip(kernel, strides, strict=True)):
            yield Hit(node, f"MaxPool of kernel {kernel} with stride {strides}")
        elif signed and any(graph.attribute(node, "pads", ())):
            yield Hit(node, "padded MaxPool of signed values")
        elif graph.attribute(node, "ceil_mode", 0) and graph.is_partial_pool(node):
            yield Hit(node, "MaxPool with ceil_mode over windows that the border cuts")


@_rule("grouped-conv", "breaks FINN", "use 1 group, or as many as input and output channels")
def _grouped_conv(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.matrix_layers:
        groups = graph.attribute(node, "group", 1)
        if groups > 1 and not graph.is_depthwise(node):
            yield Hit(node, f"{groups} groups")


@_rule("conv-shape", "breaks FINN", "use a 2-d convolution whose stride fits into its input")
def _conv_shape(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.matrix_layers:
        if node.op_type != "Conv":
            continue
        size = graph.shape(node.input[0])[2:]
        pads = tuple(graph.attribute(node, "pads", (0, 0) * len(size)))
        strides = tuple(graph.attribute(node, "strides", (1,) * len(size)))
        if len(size) != 2:
            yield Hit(node, f"{len(size)}-dimensional convolution")
        elif any(strides[i] > size[i] + pads[i] + pads[i + 2] for i in range(2)):
            yield Hit(node, f"stride {strides} on an input of {size[0]}x{size[1]}")


# --- what falls back to HLS --------------------------------------------------------------------


@_rule("weight-sign", "falls back to HLS", "use signed, narrow weights")
def _weight_sign(graph: QuantGraph) -> Iterator[Hit]:
    for layer, q in graph.weights:
        if q.node.op_type == "Quant" and not q.signed:
            yield Hit(layer, "unsigned weights")


@_rule(
    "weight-narrow",
    "falls back to HLS",
    "set narrow_range=True in the weight quantizer (7-series parts need it)",
)
def _weight_narrow(graph: QuantGraph) -> Iterator[Hit]:
    for layer, q in graph.weights:
        if q.node.op_type == "Quant" and q.signed and not q.narrow and not _is_binary(q):
            yield Hit(layer, "weights over the full range")


@_rule(
    "few-bits",
    "falls back to HLS",
    'give the layer preferred_impl_style "rtl" in FINN\'s specialize_layers configuration',
)
def _few_bits(graph: QuantGraph) -> Iterator[Hit]:
    for layer, q in graph.weights:
        source = graph.source(layer.input[0], SELECTING)
        widths = {"weights": q}
        if source is not None and source.op_type in QUANTIZERS:
            widths["activations"] = graph.at(source)
        few = [
            f"{width.bits:g}-bit {name}"
            for name, width in widths.items()
            if width.bits is not None and not _is_binary(width) and width.bits < RTL_BITS
        ]
        if few:
            yield Hit(layer, " and ".join(few))


@_rule("binary-weights", "falls back to HLS", "use weights of 2 bits or more: 1 bit has no RTL")
def _binary_weights(graph: QuantGraph) -> Iterator[Hit]:
    for layer, q in graph.weights:
        if _is_binary(q):
            yield Hit(layer, "1-bit weights")


@_rule("binary-activation", "falls back to HLS", "use activations of 2 bits or more")
def _binary_activation(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        if _is_binary(q):
            yield Hit(q.node, "1-bit activations")


def _is_binary(q: Quantizer) -> bool:
    return q.node.op_type == "BipolarQuant" or q.bits == 1


@_rule("accumulator-input", "falls back to HLS", "put an activation quantizer before the layer")
def _accumulator_input(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.matrix_layers:
        source = graph.source(node.input[0], SHAPING)
        if source is None:
            continue
        sums = source.op_type == "Add" and graph.is_join(source)
        if sums or (source.op_type in MATRIX_LAYERS and graph.passes_scale(source)):
            yield Hit(node, f"reads the sums of {graph.layer(source)} without a quantizer")


@_rule(
    "threshold-apart",
    "falls back to HLS",
    "put one quantizer right behind it, before the flattening or the fork",
)
def _threshold_apart(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        layer = node.op_type in MATRIX_LAYERS and not graph.passes_scale(node)
        arithmetic = graph.is_arithmetic(node) and not graph.is_scalar_factor(node)
        if not (layer or arithmetic) or not graph.is_fed(node):
            continue
        if not any(sink.op_type in QUANTIZERS for sink in graph.sinks(node.output[0])):
            continue
        if len(graph.consumers(node.output[0])) > 1:
            yield Hit(node, f"{node.op_type} that several nodes read before it is quantized")
        elif graph.is_flattened(node):
            yield Hit(node, f"{node.op_type} that is flattened before it is quantized")
        elif node.op_type == "Relu":
            (user,) = graph.consumers(node.output[0])
            if user.op_type not in QUANTIZERS | {"MaxPool"}:
                yield Hit(node, f"Relu with {user.op_type} before the quantizer")


@_rule(
    "join",
    "falls back to HLS",
    "keep it where HLS is at hand (finn's step_resnet_* steps); drop the branch to stay all-RTL",
)
def _join(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.joins:
        yield Hit(node, f"{node.op_type} of two branches")


@_rule("max-pool", "falls back to HLS", "use a strided convolution to stay all-RTL")
def _max_pool(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type == "MaxPool":
            source = graph.source(node.input[0], SELECTING)
            sums = source is not None and source.op_type in MATRIX_LAYERS
            yield Hit(node, "MaxPool of unquantized sums" if sums else "MaxPool")


@_rule("trunc-pool", "falls back to HLS", "use a strided convolution to stay all-RTL")
def _trunc_pool(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type == "AveragePool" and graph.is_followed_by_trunc(node):
            yield Hit(node, "average pooling")


@_rule(
    "depthwise", "falls back to HLS", "use an ordinary convolution, or a Versal part: VVAU is HLS"
)
def _depthwise(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.matrix_layers:
        if graph.is_depthwise(node):
            yield Hit(node, f"depthwise convolution of {graph.shape(node.input[0])[1]} channels")


@_rule(
    "output-arithmetic",
    "falls back to HLS",
    "drop it, or compute it on the host: no threshold follows that could absorb it",
)
def _output_arithmetic(graph: QuantGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if graph.feeds_hardware(node) or not graph.is_fed(node):
            continue
        if graph.has_bias(node):
            yield Hit(node, "bias of the last layer")
        elif (
            graph.is_arithmetic(node)
            or node.op_type == "AveragePool"
            or node.op_type not in SUPPORTED | REFUSED
        ):
            yield Hit(node, f"{node.op_type} after the last layer")


# --- what costs area ---------------------------------------------------------------------------


@_rule(
    "input-quantizer",
    "costs area",
    "use Uint8InputPerTensorConst on pixels / 256: the comparator at the input then falls away",
)
def _input_quantizer(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        if not graph.is_input_quantizer(q.node):
            continue
        if graph.source(q.node.input[0], SHAPING) is not None:
            yield Hit(q.node, "arithmetic before the input quantizer")
        elif q.bits != 8 or q.signed or q.narrow:
            yield Hit(q.node, f"input of {_bits(q)}" if q.bits is not None else "input")
        elif q.scale is not None and (q.scale.size > 1 or q.scale.flat[0] != INPUT_SCALE):
            yield Hit(q.node, "8-bit input of a scale other than 1/256")


@_rule(
    "wide-activation",
    "costs area",
    "use fewer bits: b bits need 2^b - 1 thresholds per channel (bit_width= in QuantReLU)",
)
def _wide_activation(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        if q.bits is None or not WIDE_ACTIVATION_BITS <= q.bits <= MAX_THRESHOLD_BITS:
            continue
        if q.node.op_type == "Quant" and not graph.is_input_quantizer(q.node):
            yield Hit(q.node, f"{q.bits:g}-bit activations")


@_rule(
    "wide-weight",
    "costs area",
    "use fewer bits; the keyword is weight_bit_width=, Brevitas drops a bare bit_width=",
)
def _wide_weight(graph: QuantGraph) -> Iterator[Hit]:
    for layer, q in graph.weights:
        if q.bits is None:
            continue
        inner = graph.feeds_layer(layer) and graph.follows_layer(layer)
        if q.bits > WIDE_WEIGHT_BITS or (inner and q.bits == WIDE_WEIGHT_BITS):
            yield Hit(layer, f"{q.bits:g}-bit weights")


@_rule("double-quantizer", "costs area", "drop one of the quantizers: each becomes thresholds")
def _double_quantizer(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        source = graph.origin(q.node.input[0])
        if source is not None and source.op_type in QUANTIZERS:
            yield Hit(q.node, f"quantizes what {graph.layer(source)} has quantized")


@_rule(
    "output-scale",
    "costs area",
    "give the last layer one weight scale: classes are then compared as integers",
)
def _output_scale(graph: QuantGraph) -> Iterator[Hit]:
    for layer, q in graph.weights:
        if not graph.feeds_hardware(layer) and q.scale is not None and q.scale.size > 1:
            yield Hit(layer, f"{q.scale.size} weight scales in the last layer")


@_rule("output-quantizer", "costs area", "drop the quantizer of the network's output")
def _output_quantizer(graph: QuantGraph) -> Iterator[Hit]:
    for q in graph.activations:
        if graph.reaches_only_output(q.node):
            yield Hit(q.node, "quantized output")
