# SPDX-License-Identifier: BSD-3-Clause
"""What a deployed graph of either form computes at each of its quantized tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import GraphError
from brevitas_divqat.export.graph_files import (
    attributes_of,
    layer_name,
    read_graph,
    with_batch_size,
)
from brevitas_divqat.export.integer import ELEMENTWISE, tensor_scales
from brevitas_divqat.export.metadata import METADATA_KEY, GraphMetadata
from brevitas_divqat.export.traces import (
    Before,
    Integers,
    ModelTracer,
    Observation,
    Quantizer,
    RealBefore,
    Site,
    SiteKind,
    Trace,
    Unit,
    Where,
    integer_rows,
    make_quantizer,
    numbered,
)
from brevitas_divqat.training import load_checkpoint

__all__ = ["GraphTracer", "load_form"]

QUANTIZERS = ("Quant", "BipolarQuant")
DOT_OPERATORS = {"Conv": 0, "MatMul": 1, "Gemm": 1}
"""Axis of the outputs in the weights."""


@dataclass(frozen=True)
class _AccumulatorBefore:
    """Integers, quantized by comparison with thresholds per channel: (C or 1, L)."""

    values: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    least: int
    unit: Unit = "accumulator"

    def at(self, where: Where, levels: Integers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = where[1] if len(self.thresholds) > 1 else np.zeros_like(where[1])
        number = levels - self.least - 1
        known = (number >= 0) & (number < self.thresholds.shape[1])
        found = self.thresholds[rows, np.where(known, number, 0)].astype(np.float64)
        return self.values[where].astype(np.float64), np.where(known, found, np.nan)


@dataclass(frozen=True)
class _WindowBefore:
    """Integers of which an average pool sums a window and shifts the sum."""

    values: NDArray[np.float32]
    kernel: int
    stride: int
    shift: int
    unit: Unit = "accumulator"

    def at(self, where: Where, levels: Integers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        windows = np.lib.stride_tricks.sliding_window_view(
            self.values, (self.kernel, self.kernel), axis=(2, 3)
        )[:, :, :: self.stride, :: self.stride]
        sums = windows[where].sum(axis=(-2, -1), dtype=np.float64)
        return sums, levels.astype(np.float64) * 2**self.shift


class GraphTracer:
    """An exported or integer graph, run node by node by qonnx.

    Args:
        graph: a ``ModelWrapper`` with `GraphMetadata`; it stays as it is.
        source: its file, for messages.
        batch_size: images per pass; smaller batches are filled up.

    Raises:
        GraphError: if the graph does not say how it is to be served, or cannot be run.
    """

    def __init__(self, graph: Any, *, source: str = "", batch_size: int = 64) -> None:
        metadata = GraphMetadata.from_json(
            graph.get_metadata_prop(METADATA_KEY), source or "the graph"
        )
        self._integer = metadata.form == "integer"
        self.name = f"{metadata.form} graph {source}".rstrip()
        self.image_shape = metadata.image_shape
        self.num_classes = len(metadata.class_names)
        self.score_scale = metadata.output_scale if self._integer else None
        self._metadata, self._batch_size = metadata, batch_size
        try:
            self._graph = with_batch_size(graph, batch_size)
            self._input = self._graph.graph.input[0].name
            self._output = self._graph.graph.output[0].name
            self._constants = self._run(np.zeros((1, *self.image_shape), np.uint8))
            shape = self._constants[self._output].shape
        except Exception as error:  # whatever qonnx and onnx raise, the cause is this graph
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise GraphError(f"{self.name} cannot be run ({reason}): export it again") from error
        if shape != (batch_size, self.num_classes):
            raise GraphError(
                f"{self.name} carries damaged metadata: it gives {shape[1:]} scores for "
                f"{self.num_classes} class names; export it again"
            )
        self._dynamic = self._tensors_of_the_image()
        self._readers: list[Callable[[dict[str, Any]], Observation]] = []
        self.sites = numbered(self._integer_sites() if self._integer else self._exported_sites())
        if not self.sites:
            raise GraphError(f"{self.name} holds no activation quantizer: export it again")
        # What depends on the image is not needed any more.
        self._constants = {k: v for k, v in self._constants.items() if k not in self._dynamic}

    def weights(self) -> dict[str, Integers]:
        """Return the (outputs, inputs) integer weights of convolutions and linear layers."""
        found = {}
        for node in self._graph.graph.node:
            if node.op_type not in DOT_OPERATORS or node.input[1] in self._dynamic:
                continue
            axis = DOT_OPERATORS[node.op_type]
            if node.op_type == "Gemm" and attributes_of(node).get("transB", 0):
                axis = 0
            name = node.input[1]
            if self._integer:
                found[layer_name(node)] = integer_rows(self._constants[name], axis)
                continue
            producer = self._graph.find_producer(name)
            if producer is not None and producer.op_type in QUANTIZERS:
                values, scale = (
                    self._constants[t] for t in (producer.output[0], producer.input[1])
                )
                offset = self._constants[producer.input[2]] if producer.op_type == "Quant" else 0.0
                found[layer_name(node)] = integer_rows(
                    values / scale.astype(np.float64) + offset, axis
                )
        return found

    def trace(self, images: NDArray[np.uint8]) -> Trace:
        """Run a batch of (B, C, H, W) 8-bit images; B may not exceed the batch size."""
        context = self._run(images)
        scores = context[self._output] * np.float32(self._metadata.output_scale)
        return Trace([read(context) for read in self._readers], scores.astype(np.float32))

    def _run(self, images: NDArray[np.uint8]) -> dict[str, Any]:
        from qonnx.core.onnx_exec import execute_onnx

        filled = np.zeros((self._batch_size, *self.image_shape), np.uint8)
        filled[: len(images)] = images
        pixels = filled.astype(np.float32) / np.float32(self._metadata.pixel_divisor)
        context: dict[str, Any] = execute_onnx(
            self._graph, {self._input: pixels}, return_full_exec_context=True
        )
        return context

    def _tensors_of_the_image(self) -> set[str]:
        found = {self._input}
        for node in self._graph.graph.node:
            if any(name in found for name in node.input):
                found |= set(node.output)
        return found

    def _exported_sites(self) -> list[Site]:
        sites: list[Site] = []
        known: set[str] = set()
        for node in self._graph.graph.node:
            if node.op_type not in (*QUANTIZERS, "Trunc"):
                continue
            if node.input[0] not in self._dynamic:
                continue
            bipolar = node.op_type == "BipolarQuant"
            if any(name in self._dynamic for name in node.input[1:]):
                raise GraphError(
                    f"layer {layer_name(node)} computes its scale from the image: no two forms can "
                    "be compared there, use a static quantizer"
                )
            scale, zero_point, bits = self._parameters(node)
            signed = bipolar or bool(attributes_of(node).get("signed", 1))
            self._readers.append(_exported_reader(node, scale, zero_point, bipolar))
            output = node.output[0]
            sites.append(
                Site(
                    layer_name(node),
                    1,
                    output,
                    "trunc" if node.op_type == "Trunc" else "activation",
                    self._constants[output].shape[1:],
                    make_quantizer(int(np.ravel(bits)[0]), signed, scale, zero_point),
                    self._path(node, known),
                    self._source(node.input[0]),
                )
            )
            known.add(output)
        return sites

    def _parameters(self, node: Any) -> tuple[NDArray[np.float64], ...]:
        """Return scale, zero-point and bits of what a quantizer of the exported graph makes."""
        parts = [self._constants[name].astype(np.float64) for name in node.input[1:]]
        if node.op_type == "BipolarQuant":
            return parts[0], np.zeros(()), np.ones(())
        if node.op_type == "Quant":
            return parts[0], parts[1], parts[2]
        if len(parts) < 5:
            raise GraphError(
                f"layer {layer_name(node)} is of an older QONNX version: export it with this "
                "version of Brevitas"
            )
        scale, zero_point, _, out_scale, bits = parts
        return out_scale, zero_point / 2 ** np.rint(np.log2(out_scale / scale)), bits

    def _integer_sites(self) -> list[Site]:
        scales = tensor_scales(self._graph)
        made = {node.output[0]: node for node in self._graph.graph.node}
        sites: list[Site] = []
        known: set[str] = set()
        for name in (self._input, *made):
            node = made.get(name)
            quantizes = node is not None and node.op_type in ("MultiThreshold", "QuantAvgPool2d")
            if name not in scales:
                if quantizes:
                    raise GraphError(
                        f"{self.name} does not tell the scale of {name}: write it with "
                        "brevitas_divqat.export.to_integer_graph"
                    )
                continue
            datatype = self._graph.get_tensor_datatype(name)
            kind: SiteKind = "absorbed"
            before: Callable[[dict[str, Any]], Before] | None = None
            if quantizes and node is not None:
                pools = node.op_type == "QuantAvgPool2d"
                kind = "trunc" if pools else "activation"
                before = _window_reader(node) if pools else self._threshold_reader(node)
            self._readers.append(_integer_reader(name, before))
            sites.append(
                Site(
                    layer_name(node) if quantizes else "",
                    1,
                    name,
                    kind,
                    self._constants[name].shape[1:],
                    Quantizer(datatype.bitwidth(), bool(datatype.signed()), (scales[name],)),
                    () if node is None else self._path(node, known),
                )
            )
            known.add(name)
        return sites

    def _threshold_reader(self, node: Any) -> Callable[[dict[str, Any]], Before]:
        thresholds = self._constants[node.input[1]]
        least = int(attributes_of(node).get("out_bias", 0.0))
        name = node.input[0]
        return lambda context: _AccumulatorBefore(context[name], thresholds, least)

    def _path(self, node: Any, known: set[str]) -> tuple[tuple[str, str], ...]:
        """Name what lies between a quantizer and the quantized tensors before it."""
        waiting = [name for name in node.input if name in self._dynamic]
        found = set()
        while waiting:
            name = waiting.pop()
            producer = None if name in known else self._graph.find_producer(name)
            if producer is not None and producer.output[0] not in found:
                found.add(producer.output[0])
                waiting += [n for n in producer.input if n in self._dynamic]
        return tuple(
            (layer_name(other), other.op_type)
            for other in self._graph.graph.node
            if other.output[0] in found
        )

    def _source(self, name: str) -> str:
        """Go up from a quantizer's input to what it is computed from element by element."""
        while True:
            producer = self._graph.find_producer(name)
            if producer is None or producer.op_type not in ELEMENTWISE | {"Identity", "Dropout"}:
                return name
            dynamic = [n for n in producer.input if n in self._dynamic]
            if len(dynamic) != 1:
                return name
            name = dynamic[0]


def load_form(path: str | Path, *, batch_size: int = 64) -> ModelTracer | GraphTracer:
    """Load a network to compare: a checkpoint's folder, or the file of a graph of either form.

    Raises:
        CheckpointError: if the folder holds no finished model.
        GraphError: if the file is missing or damaged, or is no graph of this package.
    """
    path = Path(path)
    if path.is_dir():
        model, info = load_checkpoint(path)
        return ModelTracer(model, info.image_shape, name=f"Brevitas model {path}")
    return GraphTracer(read_graph(path)[0], source=str(path), batch_size=batch_size)


def _exported_reader(
    node: Any, scale: NDArray[np.float64], zero_point: NDArray[np.float64], bipolar: bool
) -> Callable[[dict[str, Any]], Observation]:
    read, made = node.input[0], node.output[0]
    default = b"FLOOR" if node.op_type == "Trunc" else b"ROUND"
    rounding = attributes_of(node).get("rounding_mode", default)
    mode = rounding.decode()

    def observe(context: dict[str, Any]) -> Observation:
        before = RealBefore(context[read], scale, zero_point, mode, bipolar)
        return Observation(context[made], scale, zero_point, before)

    return observe


def _integer_reader(
    name: str, before: Callable[[dict[str, Any]], Before] | None
) -> Callable[[dict[str, Any]], Observation]:
    one, zero = np.ones(()), np.zeros(())

    def observe(context: dict[str, Any]) -> Observation:
        return Observation(context[name], one, zero, before and before(context))

    return observe


def _window_reader(node: Any) -> Callable[[dict[str, Any]], Before]:
    from qonnx.custom_op.registry import getCustomOp

    name = node.input[0]
    kernel, stride = (int(attributes_of(node).get(key, 1)) for key in ("kernel", "stride"))
    shift = int(getCustomOp(node).get_shifts())
    return lambda context: _WindowBefore(context[name], kernel, stride, shift)
