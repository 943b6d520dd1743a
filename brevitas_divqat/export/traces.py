# SPDX-License-Identifier: BSD-3-Clause
"""What a network computes at each of its quantized tensors, in any of the forms that it takes.

A form is the Brevitas model, the exported graph or the integer graph. It names its quantized
tensors once (`Site`), and tells for every batch of images the integers there and what the
quantizers made them from (`Trace`). Whatever else runs the network, such as a simulation of the
hardware, joins by offering the same.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.errors import GraphError
from brevitas_divqat.export.integer import ELEMENTWISE, layer_name, tensor_scales
from brevitas_divqat.export.metadata import METADATA_KEY, GraphMetadata
from brevitas_divqat.training import load_checkpoint

__all__ = [
    "Before",
    "Form",
    "GraphTracer",
    "ModelTracer",
    "Observation",
    "Quantizer",
    "Site",
    "SiteKind",
    "Trace",
    "Unit",
    "load_form",
]

Integers = NDArray[np.int64]
Where = tuple[NDArray[Any], ...]
SiteKind = Literal["activation", "trunc", "absorbed"]
Unit = Literal["step", "accumulator"]

ROUNDING_TOLERANCE = 1e-2
"""In steps: how far a quantized value may lie from an integer. 8 bits of float32 err by 2e-5."""

QUANTIZERS = ("Quant", "BipolarQuant")
DOT_OPERATORS = {"Conv": 0, "MatMul": 1, "Gemm": 1}
"""Axis of the outputs in the weights."""


@dataclass(frozen=True)
class Quantizer:
    """How a quantized tensor is to be read: real value = scale * (integer - zero_point).

    Attributes:
        bits: of the integers.
        signed: whether they are signed.
        scale: the step; several where it is one per channel.
        zero_point: the integer that stands for 0.
    """

    bits: int
    signed: bool
    scale: tuple[float, ...]
    zero_point: float = 0.0


@dataclass(frozen=True)
class Site:
    """A quantized tensor of a form.

    Attributes:
        layer: qualified name of the module whose quantizer made it; empty where the form does not
            tell, as where the integer graph has absorbed the quantizer.
        call: the module's how-many-th call, from 1.
        tensor: its name in the graph; empty in a Brevitas model.
        kind: ``"activation"``; ``"trunc"``, of an average pool; ``"absorbed"``, a quantizer that
            would give every integer back and which the integer graph does without.
        shape: of one image's tensor.
        quantizer: how to read it.
        path: (layer, operator) since the quantized tensors before it, in the order of computation.
        source: name of the tensor that it is computed from element by element.
    """

    layer: str
    call: int
    tensor: str
    kind: SiteKind
    shape: tuple[int, ...]
    quantizer: Quantizer
    path: tuple[tuple[str, str], ...] = ()
    source: str = ""


class Before(Protocol):
    """What a quantizer read, and the thresholds that it compared that with."""

    @property
    def unit(self) -> Unit:
        """``"step"`` of the quantizer, or ``"accumulator"``: an integer of the integer graph."""

    def at(self, where: Where, levels: Integers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the values at ``where``, and the least value that reaches each of ``levels``.

        A threshold that the quantizer lacks is NaN.
        """


@dataclass(frozen=True)
class _RealBefore:
    """Real numbers, quantized by rounding."""

    values: NDArray[np.float32]
    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    rounding: str = "ROUND"
    bipolar: bool = False
    unit: Unit = "step"

    def at(self, where: Where, levels: Integers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scale, zero_point = (
            np.broadcast_to(part, self.values.shape)[where]
            for part in (self.scale, self.zero_point)
        )
        return self.values[where] / scale + zero_point, self._thresholds(levels)

    def _thresholds(self, levels: Integers) -> NDArray[np.float64]:
        if self.bipolar:
            return np.zeros(levels.shape)
        below = {"FLOOR": 0.0, "CEIL": 1.0}.get(self.rounding.upper(), 0.5)
        return levels.astype(np.float64) - below


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


@dataclass(frozen=True)
class Observation:
    """A quantized tensor for one batch.

    Attributes:
        values: (B, …), equal to scale * (integer - zero_point).
        scale: that broadcasts to it.
        zero_point: that broadcasts to it.
        before: what the quantizer read; None where nothing is known of it.
    """

    values: NDArray[np.float32]
    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    before: Before | None

    def integers(self, site: Site) -> Integers:
        """Return the (B, …) integers.

        Raises:
            GraphError: if the values are none: rounding them would then hide a difference.
        """
        steps = self.values / self.scale + self.zero_point
        integers = np.rint(steps)
        harmless = np.abs(steps - integers) <= ROUNDING_TOLERANCE
        if not harmless.all():
            worst = float(steps[~harmless][0])
            raise GraphError(
                f"layer {site.layer or site.tensor} gives {worst:g} steps, where a quantizer gives "
                "a whole number: the graph is damaged, export it again"
            )
        return integers.astype(np.int64)


@dataclass(frozen=True)
class Trace:
    """One batch on its way through a form.

    Attributes:
        observations: one for each of the form's sites.
        scores: (B, K) float32, what the host sees.
    """

    observations: Sequence[Observation]
    scores: NDArray[np.float32]


class Form(Protocol):
    """A network in one of the forms that it takes.

    Attributes:
        name: to be shown, e.g. ``"integer graph model.onnx"``.
        image_shape: (channels, height, width).
        num_classes: number of scores.
        sites: its quantized tensors, in the order of computation.
        score_scale: every score is an integer times this; None in a form that sums real numbers.
    """

    @property
    def name(self) -> str: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def sites(self) -> tuple[Site, ...]: ...
    @property
    def score_scale(self) -> float | None: ...

    def weights(self) -> dict[str, Integers]:
        """Return the (outputs, inputs) integer weights of the layers whose weights are known."""

    def trace(self, images: NDArray[np.uint8]) -> Trace:
        """Run a batch of (B, C, H, W) 8-bit images."""


class ModelTracer:
    """A Brevitas model, observed where its activation and truncation quantizers are called.

    A copy is run: the model stays as it is.

    Args:
        model: from (N, C, H, W) float32 images to (N, K) scores.
        image_shape: (channels, height, width).
        pixel_divisor: its input is a pixel (0 … 255) divided by this.
        name: to be shown.

    Raises:
        GraphError: if the model has no quantized layer or takes no images of this shape.
    """

    score_scale = None

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        pixel_divisor: float = 256.0,
        name: str = "Brevitas model",
    ) -> None:
        self.name, self.image_shape = name, image_shape
        self._model = copy.deepcopy(model).cpu().eval()
        self._pixel_divisor = pixel_divisor
        self._layers: list[str] = []
        self._seen: list[tuple[Site, Observation]] = []
        self._observe()
        scores = self.trace(np.zeros((1, *image_shape), np.uint8)).scores
        if not self._seen:
            raise GraphError(f"{name} has no quantized layer: was it built from Brevitas layers?")
        self.num_classes = scores.shape[1]
        self.sites = _numbered([site for site, _ in self._seen])

    def weights(self) -> dict[str, Integers]:
        """Return the (outputs, inputs) integer weights of the quantized layers."""
        found = {}
        for name, module in self._model.named_modules():
            if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                continue
            if not getattr(getattr(module, "weight_quant", None), "is_quant_enabled", False):
                continue
            layer: Any = module
            quantized = layer.quant_weight()
            steps = quantized.value / quantized.scale + quantized.zero_point
            found[name] = _rows(steps.detach().numpy(), 0)
        return found

    @torch.no_grad()
    def trace(self, images: NDArray[np.uint8]) -> Trace:
        """Run a batch of (B, C, H, W) 8-bit images."""
        self._layers, self._seen = [], []
        pixels = torch.from_numpy(np.ascontiguousarray(images)).float() / self._pixel_divisor
        try:
            scores = self._model(pixels)
        except GraphError:
            raise
        except Exception as error:  # whatever torch and Brevitas raise, the cause is this model
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise GraphError(
                f"{self.name} cannot be run on images of shape {self.image_shape} ({reason})"
            ) from error
        scores = getattr(scores, "value", scores)
        return Trace([seen for _, seen in self._seen], scores.float().numpy())

    def _observe(self) -> None:
        """Hook the quantizers, and the other modules to know whose quantizer is called."""
        from brevitas.proxy.runtime_quant import (
            ActQuantProxyFromInjectorBase,
            TruncQuantProxyFromInjector,
        )

        kinds: dict[type[nn.Module], SiteKind] = {
            ActQuantProxyFromInjectorBase: "activation",
            TruncQuantProxyFromInjector: "trunc",
        }
        inside: set[nn.Module] = set()
        module: Any
        for name, module in self._model.named_modules():
            if module in inside:
                continue
            kind = next(
                (k for quantizer, k in kinds.items() if isinstance(module, quantizer)), None
            )
            if kind is not None or name.endswith("_quant"):
                inside |= set(module.modules())
            if kind is not None:
                module.skip_create_quant_tensor = False
                module.register_forward_hook(self._quantizer_hook(kind))
            elif module not in inside:
                module.register_forward_pre_hook(self._entrance_hook(name))
                module.register_forward_hook(self._leave)

    def _entrance_hook(self, name: str) -> Callable[..., None]:
        return lambda *_: self._layers.append(name)

    def _leave(self, *_: Any) -> None:
        self._layers.pop()

    def _quantizer_hook(self, kind: SiteKind) -> Callable[..., None]:
        def note(proxy: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if proxy.is_quant_enabled:
                self._note(proxy, kind, inputs[0], output)

        return note

    def _note(self, proxy: Any, kind: SiteKind, read: Any, output: Any) -> None:
        from brevitas.quant_tensor import IntQuantTensor

        layer = self._layers[-1]
        if not isinstance(output, IntQuantTensor):
            raise GraphError(f"layer {layer} quantizes to no integers: only integers are compared")
        read = getattr(read, "value", read)
        if kind == "activation":
            read = proxy.fused_activation_quant_proxy.activation_impl(read)
        scale, zero_point = (
            part.detach().double().numpy() for part in (output.scale, output.zero_point)
        )
        values = output.value.detach().float().numpy()
        bits, signed = int(output.bit_width), bool(output.signed)
        quantizer = _quantizer(bits, signed, scale, zero_point)
        before = _RealBefore(
            read.detach().float().numpy(),
            scale,
            zero_point,
            str(proxy.rounding_mode or "ROUND"),
            bipolar=bits == 1 and signed,
        )
        self._seen.append(
            (
                Site(layer, 1, "", kind, values.shape[1:], quantizer),
                Observation(values, scale, zero_point, before),
            )
        )


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
            self._graph = _with_batch_size(graph, batch_size)
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
        self.sites = _numbered(self._integer_sites() if self._integer else self._exported_sites())
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
            if node.op_type == "Gemm" and _attribute(node, "transB", 0):
                axis = 0
            name = node.input[1]
            if self._integer:
                found[layer_name(node)] = _rows(self._constants[name], axis)
                continue
            producer = self._graph.find_producer(name)
            if producer is not None and producer.op_type in QUANTIZERS:
                values, scale = (
                    self._constants[t] for t in (producer.output[0], producer.input[1])
                )
                offset = self._constants[producer.input[2]] if producer.op_type == "Quant" else 0.0
                found[layer_name(node)] = _rows(values / scale.astype(np.float64) + offset, axis)
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
            signed = bipolar or bool(_attribute(node, "signed", 1))
            self._readers.append(_exported_reader(node, scale, zero_point, bipolar))
            output = node.output[0]
            sites.append(
                Site(
                    layer_name(node),
                    1,
                    output,
                    "trunc" if node.op_type == "Trunc" else "activation",
                    self._constants[output].shape[1:],
                    _quantizer(int(np.ravel(bits)[0]), signed, scale, zero_point),
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
        least = int(_attribute(node, "out_bias", 0.0))
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
    from google.protobuf.message import DecodeError
    from onnx import ModelProto
    from qonnx.core.modelwrapper import ModelWrapper

    path = Path(path)
    if path.is_dir():
        model, info = load_checkpoint(path)
        return ModelTracer(model, info.image_shape, name=f"Brevitas model {path}")
    try:
        proto = ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise GraphError(
            f"cannot read {path} ({error.strerror}): give a checkpoint's folder or an ONNX graph"
        ) from error
    except DecodeError as error:
        raise GraphError(f"{path} is not an ONNX graph: write it with `divqat export`") from error
    if not proto.graph.node:
        raise GraphError(f"{path} is an ONNX file without nodes: write it with `divqat export`")
    return GraphTracer(ModelWrapper(proto), source=str(path), batch_size=batch_size)


def _exported_reader(
    node: Any, scale: NDArray[np.float64], zero_point: NDArray[np.float64], bipolar: bool
) -> Callable[[dict[str, Any]], Observation]:
    read, made = node.input[0], node.output[0]
    rounding = _attribute(node, "rounding_mode", b"FLOOR" if node.op_type == "Trunc" else b"ROUND")
    mode = rounding.decode()

    def observe(context: dict[str, Any]) -> Observation:
        before = _RealBefore(context[read], scale, zero_point, mode, bipolar)
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
    kernel, stride = (int(_attribute(node, key, 1)) for key in ("kernel", "stride"))
    shift = int(getCustomOp(node).get_shifts())
    return lambda context: _WindowBefore(context[name], kernel, stride, shift)


def _numbered(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Count the calls of every layer."""
    calls: Counter[str] = Counter()
    numbered = []
    for site in sites:
        calls[site.layer] += 1
        numbered.append(replace(site, call=calls[site.layer]))
    return tuple(numbered)


def _quantizer(bits: int, signed: bool, scale: Any, zero_point: Any) -> Quantizer:
    return Quantizer(
        bits, signed, tuple(float(s) for s in np.ravel(scale)), float(np.ravel(zero_point)[0])
    )


def _rows(weights: NDArray[Any], axis: int) -> Integers:
    rows = np.moveaxis(np.rint(weights), axis, 0)
    return rows.reshape(len(rows), -1).astype(np.int64)


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    found = {a.name: a for a in node.attribute}
    return helper.get_attribute_value(found[name]) if name in found else default


def _with_batch_size(graph: Any, batch_size: int) -> Any:
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_shapes import InferShapes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return graph.transform(ChangeBatchSize(batch_size)).transform(InferShapes())
