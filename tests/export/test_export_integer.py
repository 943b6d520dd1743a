# SPDX-License-Identifier: BSD-3-Clause
"""The integer graph computes what the exported graph says, in integers that fit their datatypes."""

from __future__ import annotations

import copy
import functools
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brevitas.quant import Int8ActPerTensorFloat, Int32Bias, ShiftedUint8ActPerTensorFloat
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.change_batchsize import ChangeBatchSize
from qonnx.transformation.infer_shapes import InferShapes
from torch import Tensor, nn

from brevitas_divqat.errors import GraphError
from brevitas_divqat.executors import ReferenceExecutor
from brevitas_divqat.export import (
    GraphMetadata,
    export_integer,
    export_qonnx,
    is_integer_graph_of,
    tensor_scales,
    to_integer_graph,
)
from brevitas_divqat.export.metadata import METADATA_KEY
from brevitas_divqat.export.ranges import dot_range, smallest_datatype
from brevitas_divqat.quant import Int4WeightPerChannelFloat, Int4WeightPerTensorFloat
from brevitas_divqat.seeding import seeded
from tests import networks

Tensors = dict[str, NDArray[Any]]
LAYERS = ("Conv", "MatMul")
SHAPE = (2, 8, 8)

ROUNDED_ACROSS = 1e-4
"""Share of elements that the exported graph's rounded sums may carry across a threshold, or that
follow from such an element."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@functools.cache
def exported_file(name: str, folder: Path) -> Path:
    return networks.export(name, folder / f"{name}.onnx")


def batched(graph: ModelWrapper, size: int) -> ModelWrapper:
    return graph.transform(ChangeBatchSize(size)).transform(InferShapes())


def run(graph: ModelWrapper, inputs: NDArray[np.float32]) -> Tensors:
    """Return every tensor of the graph."""
    source = graph.graph.input[0].name
    context: Tensors = execute_onnx(batched(graph, len(inputs)), {source: inputs}, True)
    return context


def aimed_images(name: str, graph: ModelWrapper) -> NDArray[np.uint8]:
    """Return images that drive each accumulator of a first convolution to its ends."""
    shape = networks.NETWORKS[name].image_shape
    layer = graph.graph.node[0]
    if layer.op_type != "Conv":
        return np.empty((0, *shape), np.uint8)
    weights = torch.from_numpy(np.array(graph.get_initializer(layer.input[1])))
    pixels = torch.zeros(1, *shape, requires_grad=True)
    sums = convolve(pixels, weights, layer)
    row, column = (size // 2 for size in sums.shape[2:])
    aimed = []
    for channel in range(sums.shape[1]):
        (slope,) = torch.autograd.grad(sums[0, channel, row, column], pixels, retain_graph=True)
        aimed += [(slope > 0)[0].numpy(), (slope < 0)[0].numpy()]
    return np.stack(aimed).astype(np.uint8) * np.uint8(255)


def all_images(name: str, graph: ModelWrapper, count: int = 12) -> NDArray[np.float32]:
    shape = networks.NETWORKS[name].image_shape
    return np.concatenate(
        [
            networks.images(shape, count, seed=1),
            networks.extreme_images(shape),
            aimed_images(name, graph),
        ]
    ).astype(np.float32)


def convolve(data: torch.Tensor, weights: torch.Tensor, node: Any) -> torch.Tensor:
    """Apply a Conv node without its bias; ``padding="same"`` is that of stride 1."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    dilations = found.get("dilations", (1, 1))
    top, left, bottom, right = found.get("pads", (0, 0, 0, 0))
    if found.get("auto_pad") == b"SAME_UPPER":
        assert tuple(found["strides"]) == (1, 1)
        spans = [d * (k - 1) for d, k in zip(dilations, weights.shape[2:], strict=True)]
        top, left = (span // 2 for span in spans)
        bottom, right = (span - span // 2 for span in spans)
    return F.conv2d(
        F.pad(data, (left, right, top, bottom)),
        weights,
        stride=tuple(found.get("strides", (1, 1))),
        dilation=tuple(dilations),
        groups=found.get("group", 1),
    )


# --- an oracle: the exported graph with exact sums ----------------------------------------------


class Oracle:
    """Runs an exported graph node by node through qonnx, but for the sums, which are exact.

    Attributes:
        integers: of the quantized tensors and of the layers' sums, by name.
    """

    def __init__(self, graph: ModelWrapper, inputs: NDArray[np.float32]) -> None:
        self._graph = graph
        self._opsets = graph.get_opset_imports()
        self.floats: Tensors = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer
        }
        self.floats[graph.graph.input[0].name] = inputs
        self.integers: Tensors = {}
        self._scales: Tensors = {}
        rules = {
            "Conv": self._conv,
            "MatMul": self._product,
            "Gemm": self._product,
            "Add": self._add,
            "AveragePool": self._average,
            "GlobalAveragePool": self._average,
            "Quant": self._quant,
            "BipolarQuant": self._quant,
            "Trunc": self._quant,
            "Flatten": self._move,
            "Reshape": self._move,
            "MaxPool": self._move,
            "Transpose": self._move,
        }
        for node in graph.graph.node:
            rules.get(node.op_type, self._run)(node)

    def _run(self, node: Any, first: NDArray[Any] | None = None) -> None:
        first = self.floats[node.input[0]] if first is None else first
        if node.op_type in ("Flatten", "Reshape"):  # the file says batch size 1
            self.floats[node.output[0]] = first.reshape(len(first), -1)
            return
        shape = None if node.op_type in ("MaxPool", "Transpose") else first.shape
        graph = helper.make_graph(
            [node],
            "node",
            [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, first.shape)],
            [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape)],
        )
        opsets = [helper.make_opsetid(*item) for item in self._opsets.items()]
        model = ModelWrapper(helper.make_model(graph, opset_imports=opsets))
        for name in node.input[1:]:
            if name and name != node.input[0]:
                model.set_initializer(name, self.floats[name])
        if shape is None:
            model = model.transform(InferShapes())
        self.floats[node.output[0]] = execute_onnx(model, {node.input[0]: first})[node.output[0]]

    def _set_sums(self, name: str, sums: NDArray[Any], scale: NDArray[Any]) -> None:
        assert (sums == np.rint(sums)).all()
        self.integers[name] = sums.astype(np.int64)
        self._scales[name] = scale
        wide = scale.reshape(1, -1, *(1,) * (sums.ndim - 2)) if scale.ndim else scale
        self.floats[name] = (sums * wide).astype(np.float32)

    def _operands(self, node: Any) -> tuple[torch.Tensor, torch.Tensor, NDArray[Any]]:
        data, weights = (torch.from_numpy(self.integers[n]).double() for n in node.input[:2])
        spread = self._scales[node.input[1]]
        scale = self._scales[node.input[0]] * (spread if spread.size == 1 else spread.ravel())
        return data, weights, scale.reshape(-1) if scale.size > 1 else scale.reshape(())

    def _bias(self, node: Any) -> None:
        if len(node.input) < 3:
            return
        name = node.output[0]
        bias = self.floats[node.input[2]]
        wide = bias.reshape(1, -1, *(1,) * (self.floats[name].ndim - 2))
        self.floats[name] = self.floats[name] + wide

    def _conv(self, node: Any) -> None:
        data, weights, scale = self._operands(node)
        sums = convolve(data, weights, node)
        self._set_sums(node.output[0], sums.numpy(), scale)
        self._bias(node)

    def _product(self, node: Any) -> None:
        data, weights, scale = self._operands(node)
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        sums = data @ (weights.T if options.get("transB") else weights)
        self._set_sums(node.output[0], sums.numpy(), scale)
        self._bias(node)

    def _add(self, node: Any) -> None:
        first, second = node.input
        if first in self.integers and second in self.integers:
            assert self._scales[first] == self._scales[second]
            sums = self.integers[first] + self.integers[second]
            self._set_sums(node.output[0], sums, self._scales[first])
        else:
            self._run(node)

    def _average(self, node: Any) -> None:
        data = torch.from_numpy(self.integers[node.input[0]]).double()
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kernel = options.get("kernel_shape", list(data.shape[2:]))
        sums = F.avg_pool2d(data, kernel, options.get("strides"), divisor_override=1)
        scale = self._scales[node.input[0]] / (kernel[0] * kernel[1])
        self._set_sums(node.output[0], sums.numpy(), scale)

    def _quant(self, node: Any) -> None:
        self._run(node)
        name = node.output[0]
        scale = self.floats[node.input[4 if node.op_type == "Trunc" else 1]].astype(np.float64)
        self._scales[name] = scale
        self.integers[name] = np.rint(self.floats[name] / scale).astype(np.int64)

    def _move(self, node: Any) -> None:
        self._run(node)
        source, target = node.input[0], node.output[0]
        if source not in self.integers:
            return
        kept = self.floats[target]
        self._run(node, self.integers[source].astype(np.float32))
        self.integers[target] = self.floats[target].astype(np.int64)
        self.floats[target] = kept
        scale = self._scales[source]
        if scale.ndim and node.op_type == "Transpose":
            scale = scale.transpose(node.attribute[0].ints)
        self._scales[target] = scale


@dataclass(frozen=True)
class Case:
    """A network of the zoo: its graphs and all tensors of both; read only.

    Attributes:
        file: the exported graph.
        graph: the integer graph.
        pixels: (N, C, H, W), random ones and extreme ones.
        found: tensors of the integer graph.
        oracle: tensors of the exported graph with exact sums.
    """

    file: Path
    graph: ModelWrapper
    pixels: NDArray[np.float32]
    found: Tensors
    oracle: Oracle

    @property
    def output_scale(self) -> float:
        text = self.graph.get_metadata_prop(METADATA_KEY)
        return GraphMetadata.from_json(text, "the integer graph").output_scale


@functools.cache
def make_case(name: str, folder: Path) -> Case:
    file = exported_file(name, folder)
    graph = to_integer_graph(file)
    pixels = all_images(name, graph)
    oracle = Oracle(ModelWrapper(str(file)), pixels / np.float32(256))
    return Case(file, graph, pixels, run(graph, pixels), oracle)


@pytest.fixture(params=networks.NETWORKS)
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    """A network of the zoo and what its two graphs compute of many images."""
    return make_case(request.param, folder)


@pytest.fixture
def plain(folder: Path) -> Case:
    """A network without anything special."""
    return make_case("plain", folder)


# --- what it computes --------------------------------------------------------------------------


def test_every_element_is_that_of_the_exported_graph_with_exact_sums(case: Case) -> None:
    compared = 0
    for node in case.graph.graph.node:
        tensor = node.output[0]
        if node.op_type not in (*LAYERS, "MultiThreshold", "QuantAvgPool2d"):
            continue
        if tensor == f"{case.graph.graph.output[0].name}_sums":  # before a bias
            continue
        found, expected = case.found[tensor], case.oracle.integers[tensor]
        if node.op_type in LAYERS:  # signs may have turned with the weights
            found, expected = np.abs(found), np.abs(expected)
        compared += 1
        differing = int((found != expected).sum())
        assert differing == 0, f"{tensor}: {differing} of {found.size}"
    assert compared > 1


def test_scores_are_the_output_times_one_scale(case: Case) -> None:
    output = case.graph.graph.output[0].name
    scores = case.found[output].astype(np.float64) * case.output_scale
    expected = case.oracle.floats[output]
    assert len(np.unique(expected)) > 1
    # Float32 rounds the products, and the sums with a bias.
    np.testing.assert_allclose(scores, expected, rtol=4e-7, atol=4e-7 * np.abs(expected).max())


def test_few_elements_differ_from_the_exported_graph_with_rounded_sums(case: Case) -> None:
    graph = ModelWrapper(str(case.file))
    expected = run(graph, case.pixels / np.float32(256))
    names = [
        node.output[0]
        for node in case.graph.graph.node
        if node.op_type in ("MultiThreshold", "QuantAvgPool2d")
    ]
    scales = tensor_scales(case.graph)
    differing = sum(
        int((np.rint(expected[n].astype(np.float64) / scales[n]) != case.found[n]).sum())
        for n in names
    )
    assert differing <= ROUNDED_ACROSS * sum(case.found[n].size for n in names)


def test_saved_and_loaded_it_computes_the_same(plain: Case, tmp_path: Path) -> None:
    path = tmp_path / "integer.onnx"
    plain.graph.save(str(path))
    loaded = ModelWrapper(str(path))
    again = run(loaded, plain.pixels)
    for tensor in plain.graph.get_all_tensor_names():
        assert (again[tensor] == plain.found[tensor]).all()
        assert loaded.get_tensor_datatype(tensor) == plain.graph.get_tensor_datatype(tensor)
    assert tensor_scales(loaded) == tensor_scales(plain.graph)


@pytest.mark.parametrize("name", ["plain", "quantized_bias", "average_pools", "residual"])
def test_the_reference_executor_serves_it(name: str, folder: Path, tmp_path: Path) -> None:
    case = make_case(name, folder)
    path = tmp_path / "integer.onnx"
    case.graph.save(str(path))
    executor = ReferenceExecutor(path, batch_size=16)
    assert executor.metadata.form == "integer"
    assert executor.image_shape == networks.NETWORKS[name].image_shape
    scores = executor(case.pixels.astype(np.uint8))
    output = case.graph.graph.output[0].name
    assert (scores == case.found[output] * np.float32(case.output_scale)).all()
    by_exported = ReferenceExecutor(case.file, batch_size=16)(case.pixels.astype(np.uint8))
    # An element that differs in a hidden layer moves a few scores, not all.
    assert np.median(np.abs(scores - by_exported)) < 1e-5 * np.abs(by_exported).max()


# --- integers and datatypes --------------------------------------------------------------------


def test_every_tensor_is_integer_and_stays_in_its_datatype(case: Case) -> None:
    names = case.graph.get_all_tensor_names()
    assert len(names) > 3
    for tensor in names:
        datatype = case.graph.get_tensor_datatype(tensor)
        values = case.found[tensor]
        assert datatype.is_integer(), tensor
        assert values.dtype == np.float32
        assert (values == np.rint(values)).all(), tensor
        assert datatype.min() <= values.min(), tensor
        assert values.max() <= datatype.max(), tensor


def test_first_accumulators_reach_the_ends_of_the_proven_range(case: Case) -> None:
    layer = case.graph.graph.node[0]
    if layer.op_type != "Conv":
        return
    weights = case.graph.get_initializer(layer.input[1])
    rows = weights.reshape(len(weights), -1).astype(np.int64)
    low, high = dot_range(rows, 0, 255)
    sums = case.found[layer.output[0]]
    assert (sums.min(axis=(0, 2, 3)) == low).all()
    assert (sums.max(axis=(0, 2, 3)) == high).all()
    datatype = smallest_datatype(int(low.min()), int(high.max()))
    assert case.graph.get_tensor_datatype(layer.output[0]) == datatype


def test_signs_turn_at_one_accumulator(folder: Path) -> None:
    case = make_case("signs", folder)
    for node in case.graph.get_nodes_by_op_type("MultiThreshold"):
        thresholds = case.graph.get_initializer(node.input[1])
        assert thresholds.shape[1] == 2
        assert (thresholds[:, 0] == thresholds[:, 1]).all()
        assert set(np.unique(case.found[node.output[0]])) == {-1, 1}


def test_levels_and_weights_have_the_datatypes_of_their_quantizers(folder: Path) -> None:
    graph = make_case("signed_activations", folder).graph
    kinds = [
        graph.get_tensor_datatype(node.output[0]).name
        for node in graph.get_nodes_by_op_type("MultiThreshold")
    ]
    assert kinds == ["INT3", "INT4", "INT2"]
    weights = [
        graph.get_tensor_datatype(node.input[1]).name
        for node in graph.graph.node
        if node.op_type in LAYERS
    ]
    assert weights == ["INT3"] * 3 + ["INT4"]


def test_only_known_operators_remain(case: Case) -> None:
    operators = {node.op_type for node in case.graph.graph.node}
    assert operators <= {
        *LAYERS,
        *("Add", "Flatten", "MaxPool", "MultiThreshold", "QuantAvgPool2d"),
    }
    for node in case.graph.get_nodes_by_op_type("Conv"):
        assert "auto_pad" not in {attribute.name for attribute in node.attribute}


def test_nodes_say_which_layer_they_come_from(plain: Case) -> None:
    assert [(node.op_type, node.doc_string) for node in plain.graph.graph.node] == [
        ("Conv", "1"),
        ("MultiThreshold", "3"),
        ("Conv", "4"),
        ("MultiThreshold", "6"),
        ("Flatten", "7"),
        ("MatMul", "8"),
    ]


def test_pixels_pass_their_quantizer_and_other_inputs_have_thresholds(folder: Path) -> None:
    plain = make_case("plain", folder).graph
    assert plain.graph.node[0].op_type == "Conv"
    assert tensor_scales(plain)[plain.graph.input[0].name] == 1 / 256
    other = make_case("normalised_input", folder).graph
    assert other.graph.node[0].op_type == "MultiThreshold"
    assert other.get_initializer(other.graph.node[0].input[1]).shape == (3, 15)
    assert other.get_tensor_datatype(other.graph.input[0].name).name == "UINT8"


def test_thresholds_are_shared_where_all_channels_agree(folder: Path) -> None:
    graph = make_case("per_tensor", folder).graph
    unnormalised = integer(
        nn.Sequential(
            networks.entry(),
            networks.conv(2, 4, weight_quant=Int4WeightPerTensorFloat),
            networks.relu(),
            *networks.head(4 * 36),
        )
    )
    for found, channels in ((graph, 4), (unnormalised, 1)):
        node = found.get_nodes_by_op_type("MultiThreshold")[0]
        assert len(found.get_initializer(node.input[1])) == channels


# --- the source and the metadata ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "forked", "quantized_bias"])
def test_the_source_stays_as_it_is(name: str, folder: Path) -> None:
    graph = ModelWrapper(str(exported_file(name, folder)))
    before = graph.model.SerializeToString(deterministic=True)
    first = to_integer_graph(graph)
    assert graph.model.SerializeToString(deterministic=True) == before
    second = to_integer_graph(ModelWrapper(str(exported_file(name, folder))))
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(
        deterministic=True
    )


def test_the_source_stays_as_it_is_on_failure(tmp_path: Path) -> None:
    path = export(between(nn.Sigmoid()), tmp_path)
    before = path.read_bytes()
    graph = ModelWrapper(str(path))
    serialized = graph.model.SerializeToString(deterministic=True)
    for source in (graph, path, str(path)):
        with pytest.raises(GraphError):
            to_integer_graph(source)
    assert graph.model.SerializeToString(deterministic=True) == serialized
    assert path.read_bytes() == before


def test_metadata_say_how_it_is_served(plain: Case) -> None:
    told = GraphMetadata.from_json(plain.graph.get_metadata_prop(METADATA_KEY), "graph")
    source = GraphMetadata.from_json(
        ModelWrapper(str(plain.file)).get_metadata_prop(METADATA_KEY), "graph"
    )
    changes: dict[str, Any] = {"form": "integer", "pixel_divisor": 1.0}
    changes["exported_sha256"] = hashlib.sha256(plain.file.read_bytes()).hexdigest()
    assert told == replace(source, output_scale=told.output_scale, **changes)
    assert told.output_scale > 0


def without_metadata(path: Path) -> ModelWrapper:
    graph = ModelWrapper(str(path))
    del graph.graph.metadata_props[:]
    return graph


def test_a_graph_without_metadata_needs_the_divisor(plain: Case) -> None:
    graph = without_metadata(plain.file)
    with pytest.raises(GraphError, match="give pixel_divisor"):
        to_integer_graph(graph)
    found = run(to_integer_graph(graph, pixel_divisor=256.0), plain.pixels)
    output = plain.graph.graph.output[0].name
    assert (found[output] == plain.found[output]).all()


def test_another_divisor_moves_the_thresholds_of_the_input(plain: Case) -> None:
    graph = to_integer_graph(plain.file, pixel_divisor=128.0)
    first = graph.graph.node[0]
    assert first.op_type == "MultiThreshold"
    # Pixels of twice the value: p / 128 is 2p steps of 1/256, up to 255 of them.
    odd = np.arange(1, 256)
    expected = np.minimum(-(-odd // 2), 256)
    by_rounding = np.array([next(p for p in range(257) if min(255, 2 * p) >= t) for t in odd])
    assert (expected == by_rounding).all()
    assert (graph.get_initializer(first.input[1]) == by_rounding).all()


# --- what has no integer form ------------------------------------------------------------------


def export(model: nn.Module, folder: Path) -> Path:
    """Export a network of 2x8x8 images after calibrating it."""
    with seeded(0, "refused"):
        networks.settle(model, SHAPE)
    return export_qonnx(model, folder / "model.onnx", networks.metadata(SHAPE))


def integer(model: nn.Module) -> ModelWrapper:
    with tempfile.TemporaryDirectory() as folder:
        return to_integer_graph(export(model, Path(folder)))


def quantized(act_quant: Any, **options: Any) -> nn.Module:
    """Return a network with a quantizer of one kind between its layers."""
    return nn.Sequential(
        networks.entry(),
        networks.conv(2, 3),
        nn.BatchNorm2d(3),
        qnn.QuantIdentity(act_quant=act_quant, **options),
        *networks.head(3 * 36),
    )


def between(*layers: nn.Module, features: int = 3 * 36) -> nn.Module:
    """Return a network with layers between its first block and its last layer."""
    return nn.Sequential(networks.entry(), *networks.block(2, 3), *layers, *networks.head(features))


def ending(*layers: nn.Module, **options: Any) -> nn.Module:
    return nn.Sequential(
        networks.entry(return_quant_tensor=True),
        networks.conv(2, 3),
        networks.relu(return_quant_tensor=True),
        *networks.head(3 * 36, **options),
        *layers,
    )


class Paths(nn.Module):
    """Two paths that end in quantizers of their own, and what brings them together."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.join = join
        self.entry = networks.entry()
        self.paths = nn.ModuleList(
            nn.Sequential(networks.conv(2, 3), networks.signed(4)) for _ in range(2)
        )
        self.last = networks.linear(features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        return self.last(self.join(*(path(x) for path in self.paths)).flatten(1))


def per_channel_scale() -> nn.Module:
    return quantized(
        Int8ActPerTensorFloat,
        scaling_per_output_channel=True,
        per_channel_broadcastable_shape=(1, 3, 1, 1),
        scaling_stats_permute_dims=(1, 0, 2, 3),
    )


def negative_gain_after_pool() -> nn.Module:
    return nn.Sequential(
        networks.entry(),
        networks.conv(2, 8),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(8),
        networks.relu(),
        *networks.head(8 * 9),
    )


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a scale per channel": (
        per_channel_scale,
        r"layer 3 \(Quant\) has an activation scale per channel: use one scale per tensor",
    ),
    "a zero-point": (
        lambda: quantized(ShiftedUint8ActPerTensorFloat, bit_width=3),
        r"layer 3 \(Quant\) has zero-point \d+: use a quantizer with 0",
    ),
    "1-bit activations after a ReLU": (
        lambda: between(networks.conv(3, 3, 1), networks.relu(1)),
        r"layer 5 \(BipolarQuant\) has 1-bit activations after a ReLU.*: use 2 bits or more",
    ),
    "17-bit activations": (
        lambda: quantized(Int8ActPerTensorFloat, bit_width=17),
        r"layer 3 \(Quant\) has 17-bit activations: use 16 bits or fewer",
    ),
    "float weights": (
        lambda: between(nn.Conv2d(3, 3, 1, bias=False), networks.relu()),
        r"layer 4 \(Conv\) has weights in full precision: give it a weight quantizer",
    ),
    "float activations": (
        lambda: between(networks.conv(3, 3, 1), nn.ReLU(), networks.conv(3, 3, 1)),
        r"layer 6 \(Conv\) reads what 5 \(Relu\) gives, which is not quantized: put an",
    ),
    "float activations, flattened": (
        lambda: between(networks.conv(3, 3, 1), nn.BatchNorm2d(3)),
        r"layer 6 \(Flatten\) flattens what is not quantized: put an activation quantizer",
    ),
    "no input quantizer": (
        lambda: nn.Sequential(*networks.block(2, 3), *networks.head(3 * 36)),
        r"layer 0 \(Conv\) reads what the input \(Div\) gives, which is not quantized: put an",
    ),
    "scales per channel in a sum": (
        lambda: between(networks.conv(3, 3, 1), networks.conv(3, 3, 1), networks.relu()),
        r"layer 5 \(Conv\) reads a tensor with a scale per channel: quantize its input",
    ),
    "an average": (
        lambda: between(nn.AvgPool2d(2), features=27),
        r"layer 4 \(AveragePool\) averages without truncation to integers: use TruncAvgPool2d",
    ),
    "a rounded average": (
        lambda: between(
            networks.relu(return_quant_tensor=True),
            qnn.TruncAvgPool2d(2, bit_width=4),
            features=27,
        ),
        r"layer 5 \(Trunc\) rounds by \w+: use FLOOR",
    ),
    "an average over the edge": (
        lambda: between(
            networks.relu(return_quant_tensor=True),
            networks.pool_by_shifting(4, 4, ceil_mode=True),
            features=12,
        ),
        r"layer 5 \(Trunc\) averages windows that reach over the edge: use ceil_mode=False",
    ),
    "an average of rectangles": (
        lambda: between(
            networks.relu(return_quant_tensor=True),
            networks.pool_by_shifting((2, 3), 4),  # type: ignore[arg-type]
            features=18,
        ),
        r"layer 5 \(Trunc\) averages windows of \[2, 3\].*: use square windows",
    ),
    "two scales in an addition": (
        lambda: Paths(torch.add, 3 * 36),
        r"layer Add_0 \(Add\) adds scales \S+ and \S+: quantize both branches with one shared",
    ),
    "a product of two tensors": (
        lambda: Paths(torch.mul, 3 * 36),
        r"layer Mul_0 \(Mul\) combines two tensors: only residual additions",
    ),
    "a concatenation": (
        lambda: Paths(lambda a, b: torch.cat([a, b], 1), 6 * 36),
        r"layer Concat_0 \(Concat\) has no integer form: use layers that FINN builds",
    ),
    "a matrix product of two tensors": (
        lambda: Paths(torch.matmul, 3 * 36),
        r"layer MatMul_0 \(MatMul\) multiplies two tensors: only constant weights",
    ),
    "a sigmoid": (
        lambda: between(nn.Sigmoid(), networks.signed()),
        r"layer 4 \(Sigmoid\) has no integer form: use layers that FINN builds",
    ),
    "explicit padding": (
        lambda: between(nn.ZeroPad2d(1), features=3 * 64),
        r"layer 4 \(Pad\) has no integer form: use layers that FINN builds",
    ),
    "a linear layer on a map": (
        lambda: between(networks.linear(6, 4), networks.relu(), features=3 * 24),
        r"layer 4 \(MatMul\) reads a tensor of shape \(1, 3, 6, 6\): flatten",
    ),
    "a negative gain after a pool": (
        negative_gain_after_pool,
        r"layer 4 \(Quant\) decreases in \d channels .* that is no layer's alone: put a conv",
    ),
    "a softmax": (
        lambda: ending(nn.Softmax(1)),
        r"layer 5 \(Softmax\) has no integer form: use layers that FINN builds",
    ),
    "scores with a scale each": (
        lambda: ending(weight_quant=Int4WeightPerChannelFloat),
        r"layer 4 \(the output\) has one scale per class, .*: give the last layer a weight",
    ),
    "scores with a scale each and a bias": (
        lambda: ending(weight_quant=Int4WeightPerChannelFloat, bias=True, bias_quant=Int32Bias),
        r"layer 4 \(the output\) has one scale per class, .*: give the last layer a weight",
    ),
    "a float bias of the scores": (
        lambda: ending(bias=True),
        r"layer 4 \(the output\) ends in a bias that is not quantized .*: use bias=False",
    ),
    "a ReLU of the scores": (
        lambda: ending(nn.ReLU()),
        r"layer 5 \(the output\) ends in Relu on float values, .*: leave it out, or quantize",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_layer_and_says_what_to_do(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    path = export(make(), tmp_path)
    with pytest.raises(GraphError, match=message):
        to_integer_graph(path)


def edited(case: Case) -> ModelWrapper:
    return copy.deepcopy(ModelWrapper(str(case.file)))


def test_a_scale_from_the_image_is_refused(plain: Case) -> None:
    graph = edited(plain)
    source = graph.graph.input[0].name
    quantizer = next(n for n in graph.graph.node if n.op_type == "Quant" and n.doc_string == "3")
    scale = helper.make_node("ReduceMax", [source], ["scale"], keepdims=0)
    quantizer.input[1] = "scale"
    graph.graph.node.insert(0, scale)
    with pytest.raises(GraphError, match=r"ReduceMax\) has no integer form"):
        to_integer_graph(graph)
    del graph.graph.node[0]
    quantizer.input[1] = source
    with pytest.raises(GraphError, match=r"3 \(Quant\) computes its scale from the image: use a s"):
        to_integer_graph(graph)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_second_end_is_refused(plain: Case, kind: str) -> None:
    graph = edited(plain)
    second = helper.make_tensor_value_info("second", TensorProto.FLOAT, (1, 2))
    getattr(graph.graph, kind).append(second)
    with pytest.raises(GraphError, match=rf"has 2 {kind}s \(global_\w+, second\): "):
        to_integer_graph(graph)


def test_an_integer_graph_is_refused(plain: Case) -> None:
    with pytest.raises(GraphError, match="is an integer graph already: give the exported one"):
        to_integer_graph(plain.graph)


def large(inputs: int, **options: Any) -> Any:
    """Return a linear layer whose weights are all at one end, so that sums reach 255 * 127 each."""
    layer: Any = networks.linear(inputs, bits=8, **options)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    return layer


def large_graph(inputs: int, folder: Path) -> Path:
    shape = (inputs // 4, 2, 2)
    model = nn.Sequential(nn.Flatten(), networks.entry(), large(inputs))
    return export_qonnx(model.eval(), folder / "large.onnx", networks.metadata(shape))


def test_sums_that_float32_cannot_hold_are_refused_with_the_layers_name(tmp_path: Path) -> None:
    # 2^24 / (255 * 127) is 518.05: 516 inputs are the most that are a multiple of 4.
    graph = to_integer_graph(large_graph(516, tmp_path))
    white = run(graph, np.full((1, 129, 2, 2), 255, np.float32))
    assert (white[graph.graph.output[0].name] == 516 * 255 * 127).all()
    with pytest.raises(GraphError, match=r"2 \(MatMul\) has sums of up to 16840200, .*fewer bits"):
        to_integer_graph(large_graph(520, tmp_path))


def test_a_last_bias_that_makes_the_sums_inexact_is_refused(tmp_path: Path) -> None:
    layer = large(512, bias=True, bias_quant=Int32Bias)
    model = nn.Sequential(nn.Flatten(), networks.entry(return_quant_tensor=True), layer)
    described = networks.metadata((128, 2, 2))
    step = 1 / 127 / 256
    for bias, fits in ((196_000, True), (197_000, False), (-197_000, True), (-(2**24), False)):
        with torch.no_grad():
            layer.bias.fill_(bias * step)
        path = export_qonnx(model.eval(), tmp_path / "biased.onnx", described)
        if not fits:
            with pytest.raises(GraphError, match=r"layer 2 .* has sums of up to \d+, "):
                to_integer_graph(path)
            continue
        graph = to_integer_graph(path)
        for pixel in (0, 255):
            found = run(graph, np.full((1, 128, 2, 2), pixel, np.float32))
            assert (found[graph.graph.output[0].name] == 512 * pixel * 127 + bias).all()


class Growing(nn.Module):
    """Additions of additions, each twice as large."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.entry = networks.entry()
        self.paths = nn.ModuleList(networks.conv(2, 3) for _ in range(2))
        self.shared = networks.signed(8, return_quant_tensor=True)
        self.last = networks.linear(3 * 36)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        first, second = (self.shared(path(x)) for path in self.paths)
        for _ in range(self.times):
            first, second = first + second, second + first
        return self.last((first + second).flatten(1))


def test_additions_that_make_sums_inexact_are_refused() -> None:
    # 128 * 2^4 times 108 weights of up to 7 stays below 2^24.
    assert len(integer(Growing(3)).get_nodes_by_op_type("Add")) == 7
    with pytest.raises(GraphError, match=r"layer last \(MatMul\) has sums of up to \d+"):
        integer(Growing(9))
    with pytest.raises(GraphError, match=r"layer Add_\d+ \(Add\) has sums of up to \d{8}, from"):
        integer(Growing(17))


def test_a_fork_whose_branches_disagree_about_the_sign_is_refused() -> None:
    class Disagreeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entry, self.stem = networks.entry(), networks.conv(2, 3)
            self.norms = nn.ModuleList([nn.BatchNorm2d(3) for _ in range(2)])
            self.shared = networks.signed(4, return_quant_tensor=True)
            self.last = networks.linear(3 * 36)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(self.entry(x))
            first, second = (self.shared(norm(x)) for norm in self.norms)
            return self.last((first + second).flatten(1))

    with pytest.raises(GraphError, match=r"shared \(Quant\) decreases in \d channels"):
        integer(Disagreeing())


def test_a_pruned_channel_is_constant() -> None:
    layer: Any = networks.conv(3, 4, 1)
    with torch.no_grad():
        layer.weight[1] = 0
    model = between(layer, nn.BatchNorm2d(4), networks.relu(), features=4 * 36)
    graph = integer(model)
    pixels = networks.images(SHAPE, 4).astype(np.float32)
    levels = run(graph, pixels)[graph.get_nodes_by_op_type("MultiThreshold")[1].output[0]]
    assert len(np.unique(levels[:, 1])) == 1
    assert np.isfinite(graph.get_initializer(graph.get_nodes_by_op_type("Conv")[1].input[1])).all()


def test_constant_nodes_are_folded(plain: Case) -> None:
    """qonnx's cleanup leaves none, but others may."""
    graph = edited(plain)
    quantizer = next(n for n in graph.graph.node if n.op_type == "Quant" and n.doc_string == "3")
    value = graph.get_initializer(quantizer.input[1])
    constant = helper.make_node(
        "Constant", [], ["constant"], value=numpy_helper.from_array(np.asarray(value))
    )
    graph.graph.node.insert(0, constant)
    quantizer.input[1] = "constant"
    found = run(to_integer_graph(graph), plain.pixels)
    output = plain.graph.graph.output[0].name
    assert (found[output] == plain.found[output]).all()


# What a reader tried to break it with


def rewritten(name: str, tmp_path: Path, edit: Callable[[ModelProto], None]) -> Path:
    path = networks.export(name, tmp_path / "edited.onnx")
    model = ModelProto.FromString(path.read_bytes())
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def constant_of(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def change(model: ModelProto, op_type: str, index: int, value: float, where: str) -> None:
    """Set one number of an operand of the first quantizer of weights or of activations."""
    constants = {tensor.name for tensor in model.graph.initializer}
    node = next(
        n
        for n in model.graph.node
        if n.op_type == op_type and (n.input[0] in constants) == (where == "weights")
    )
    tensor = constant_of(model, node.input[index])
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(
    ("index", "value", "where", "reason"),
    [
        pytest.param(0, np.nan, "weights", "NaN or infinite", id="weight-nan"),
        pytest.param(1, np.inf, "weights", "NaN or infinite", id="scale-inf"),
        pytest.param(1, -0.5, "activations", "has the scale -0.5", id="scale-negative"),
        pytest.param(1, 0.0, "activations", "has the scale 0", id="scale-0"),
        pytest.param(3, 2.5, "weights", "bit widths", id="bits-fraction"),
        pytest.param(3, 2.5, "activations", "bit widths", id="bits-fraction-act"),
    ],
)
def test_numbers_that_no_integer_tells_are_refused(
    tmp_path: Path, index: int, value: float, where: str, reason: str
) -> None:
    path = rewritten("plain", tmp_path, lambda m: change(m, "Quant", index, value, where))
    with pytest.raises(GraphError, match=reason):
        to_integer_graph(path)


def test_an_integer_graph_knows_the_file_that_it_was_made_from(tmp_path: Path) -> None:
    first = networks.export("plain", tmp_path / "first.onnx")
    second = networks.export("per_tensor", tmp_path / "second.onnx")
    integer = export_integer(first)
    assert is_integer_graph_of(integer, first)
    assert not is_integer_graph_of(integer, second)
