# SPDX-License-Identifier: BSD-3-Clause
"""The integer graph as FINN's hardware layers: every integer is kept, or the layer is named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from brevitas_divqat.fpga.build.dataflow import _threshold_type, to_dataflow
from brevitas_divqat.fpga.build.folding import fold
from brevitas_divqat.fpga.finn_environment import prepare, quiet
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.executors import IntegerExecutor
from brevitas_divqat.export import export_integer
from tests import networks
from tests.fpga import finn_networks

PART = "xc7z020clg400-1"
REFUSED = {
    "quantized_bias": "leave out the last layer's bias",
    "pool_before_quantizer": "pads signed numbers with zeros",
}
BUILDABLE = [name for name in networks.NETWORKS if name not in REFUSED]
Graphs = Callable[[str], Path]


@pytest.fixture(scope="module")
def integer(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Return a function that gives the integer graph of a network of the zoo, each one once."""
    pytest.importorskip("finn")
    folder = tmp_path_factory.mktemp("zoo")
    prepare(folder / "finn")
    return functools.cache(
        lambda name: export_integer(networks.export(name, folder / f"{name}.onnx"))
    )


def run(model: ModelWrapper, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Execute one (C, H, W) image in Python; return every tensor, channels first."""
    from finn.core.onnx_exec import execute_onnx

    source = model.graph.input[0].name
    words = image[None].astype(np.float32)
    if model.get_tensor_shape(source) != list(words.shape):
        words = words.transpose(0, 2, 3, 1)
    found = execute_onnx(model, {source: words}, return_full_exec_context=True)
    names = [name for node in model.graph.node for name in node.output]
    if "MVAU" not in {node.op_type for node in model.graph.node}:
        return {name: found[name] for name in names}
    last_first = {4: (0, 3, 1, 2), 2: (0, 1)}
    return {name: found[name].transpose(last_first[found[name].ndim]) for name in names}


def scores(model: ModelWrapper, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    target = model.graph.output[0].name
    return np.stack([run(model, image)[target].reshape(-1) for image in images]).astype(np.int64)


@pytest.mark.parametrize("name", BUILDABLE)
def test_every_network_of_the_zoo_keeps_its_integers(name: str, integer: Graphs) -> None:
    file = integer(name)
    shape = networks.NETWORKS[name].image_shape
    images = np.concatenate([networks.images(shape, 3), networks.extreme_images(shape)[:7]])
    expected = IntegerExecutor(file, verify=False).integers(images)
    graph = ModelWrapper(str(file))
    before = graph.model.SerializeToString()
    with quiet():
        dataflow = to_dataflow(graph)
        assert np.array_equal(scores(dataflow, images), expected)
    assert graph.model.SerializeToString() == before


@pytest.mark.parametrize("name", BUILDABLE)
def test_every_tensor_of_the_zoo_keeps_its_integers(name: str, integer: Graphs) -> None:
    """Scores alone could hide what later thresholds swallow."""
    graph = ModelWrapper(str(integer(name)))
    dataflow = to_dataflow(graph)
    shape = networks.NETWORKS[name].image_shape
    images = np.concatenate(
        [networks.images(shape, 1, seed=9), networks.extreme_images(shape)[1:2]]
    )
    with quiet():
        contexts = [(run(graph, image), run(dataflow, image)) for image in images]
    shared = contexts[0][0].keys() & contexts[0][1].keys()
    flat = {node.output[0] for node in graph.get_nodes_by_op_type("Flatten")}
    computed = {node.output[0] for node in graph.graph.node} - flat
    assert computed == shared  # a flattened tensor is the one before, under its name
    for asked, made in contexts:
        for tensor in shared:
            a, b = asked[tensor], made[tensor]
            if a.ndim > b.ndim:  # what the next layer flattens
                a = a.transpose(0, 2, 3, 1).reshape(b.shape)
            if flat_before(graph, tensor):  # (C, H, W) there, (H, W, C) here
                a, b = np.sort(a), np.sort(b)
            assert np.array_equal(a, b), tensor
    first, second = contexts[0][0], contexts[1][0]
    assert sum(not np.array_equal(first[tensor], second[tensor]) for tensor in shared) > 1


def flat_before(graph: ModelWrapper, tensor: str) -> bool:
    """Whether a tensor has the order of a flattened map."""
    node = graph.find_producer(tensor)
    while node is not None and node.op_type in ("MultiThreshold", "Add"):
        node = graph.find_producer(node.input[0])
    return node is not None and node.op_type == "Flatten"


@pytest.mark.parametrize("name", BUILDABLE)
def test_layers_keep_their_names_and_types_that_rtl_takes(name: str, integer: Graphs) -> None:
    graph = ModelWrapper(str(integer(name)))
    named = {node.doc_string or node.name for node in graph.graph.node if node.op_type != "Flatten"}
    dataflow = to_dataflow(graph)
    assert {node.doc_string for node in dataflow.graph.node} == named
    with quiet():
        folded = fold(dataflow, part=PART, fps=10_000.0, clock_ns=10.0)
    by_output = {node.output[0]: node.doc_string for node in dataflow.graph.node}
    assert {node.output[0]: node.doc_string for node in folded.graph.node} == by_output
    for node in folded.get_nodes_by_op_type("Thresholding_rtl"):
        layer = getCustomOp(node)
        # One stage of FINN's comparator tree for each bit of the result, no more and no fewer.
        bits = layer.get_output_datatype().bitwidth()
        assert int(layer.get_nodeattr("numSteps")).bit_length() == bits
        assert (np.diff(folded.get_initializer(node.input[1]), axis=1) >= 0).all()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_has_no_hardware_is_refused_by_the_layers_name(name: str, integer: Graphs) -> None:
    graph = ModelWrapper(str(integer(name)))
    with pytest.raises(HardwareError, match=REFUSED[name]) as caught:
        to_dataflow(graph)
    message = str(caught.value)
    assert "\n" not in message
    assert message.partition(":")[0] in {n.doc_string or n.name for n in graph.graph.node}


# --- what an integer graph of another version might hold ----------------------------------------


@pytest.fixture
def chain(tmp_path: Path) -> ModelWrapper:
    pytest.importorskip("finn")
    prepare(tmp_path / "finn")
    return ModelWrapper(str(finn_networks.chain(tmp_path / "chain.onnx")))


def refused(model: ModelWrapper, *parts: str) -> None:
    with pytest.raises(HardwareError) as caught:
        to_dataflow(model)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_an_operation_without_a_layer_is_refused(chain: ModelWrapper) -> None:
    node = chain.graph.node[0]
    node.op_type, node.domain = "Gelu", ""
    refused(chain, "layers.0", "Gelu", "Conv, MatMul")


@pytest.mark.parametrize("datatype", ["UINT4", "INT9", "BINARY", "FLOAT32"])
def test_weights_that_no_multiplier_takes_are_refused(datatype: str, chain: ModelWrapper) -> None:
    chain.set_tensor_datatype(chain.graph.node[0].input[1], DataType[datatype])
    refused(chain, "layers.0", datatype, "INT2 to INT8")


@pytest.mark.parametrize(("attribute", "value"), [("out_scale", 0.5), ("out_bias", 0.5)])
def test_thresholds_that_give_no_integers_are_refused(
    attribute: str, value: float, chain: ModelWrapper
) -> None:
    node = chain.get_nodes_by_op_type("MultiThreshold")[0]
    getCustomOp(node).set_nodeattr(attribute, value)
    refused(chain, "layers.1", str(value))


def change(model: ModelWrapper, kind: str, **attributes: object) -> None:
    """Give the first node of a kind other attributes."""
    node = model.get_nodes_by_op_type(kind)[0]
    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())


def test_a_window_larger_than_its_map_is_refused(chain: ModelWrapper) -> None:
    change(chain, "MaxPool", kernel_shape=[9, 2])
    refused(chain, "layers.2", "9x2", "8x8")


def test_a_pool_of_single_pixels_is_refused(chain: ModelWrapper) -> None:
    change(chain, "MaxPool", kernel_shape=[1, 1], strides=[1, 1])
    refused(chain, "layers.2", "leave it out")


def test_a_pool_that_rounds_up_is_refused(chain: ModelWrapper) -> None:
    change(chain, "MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    refused(chain, "layers.2", "ceil_mode")


def test_a_layer_that_takes_one_of_many_pixels_is_refused(tmp_path: Path) -> None:
    net = finn_networks.Network((2, 2, 2))
    x = net.convolution("pixels", 4, 1, stride=2)
    file = net.write(tmp_path / "model.onnx", net.product(net.flatten(x, 4), finn_networks.CLASSES))
    refused(ModelWrapper(str(file)), "layers.0", "2x2 pixels")


def test_a_depthwise_layer_of_single_pixels_may_come_first(tmp_path: Path) -> None:
    pytest.importorskip("finn")
    prepare(tmp_path / "finn")
    net = finn_networks.Network((3, 4, 4))
    x = net.convolution("pixels", 3, 1, group=3, bits=8)
    x = net.product(net.flatten(x, 48), finn_networks.CLASSES)
    file = net.write(tmp_path / "model.onnx", x)
    images = networks.images((3, 4, 4), 4)
    with quiet():
        dataflow = to_dataflow(ModelWrapper(str(file)))
        fold(dataflow, part=PART, fps=10_000.0, clock_ns=10.0)
        assert np.array_equal(scores(dataflow, images), IntegerExecutor(file).integers(images))


# --- thresholds as the comparator of finn-rtllib holds them -------------------------------------


def saturated(numbers: NDArray[np.int64], bits: int, *, signed: bool) -> NDArray[np.int64]:
    """Return numbers as `thresholding_axi.sv` hands them to comparators of ``bits``."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return np.clip(numbers, low, high)


def compared(
    numbers: NDArray[np.int64], thresholds: list[int], bits: int, *, signed: bool
) -> NDArray[np.bool_]:
    """Compare as hardware of ``bits`` does; thresholds lose what does not fit."""
    held = np.array(thresholds, np.int64) & ((1 << bits) - 1)
    if signed:
        held = np.where(held >> (bits - 1), held - (1 << bits), held)
    return saturated(numbers, bits, signed=signed)[:, None] >= held


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[DataType, list[int]]:
    """Draw a type of sums and thresholds within it, the unreachable one above it included."""
    bits = draw(st.integers(2, 9))
    datatype = DataType[draw(st.sampled_from(["INT", "UINT"])) + str(bits)]
    low, high = int(datatype.min()), int(datatype.max()) + 1
    ends = st.sampled_from([low, low + 1, high - 1, high, 0, 1])
    near = st.integers(max(low, -5), min(high, 5))
    number = st.one_of(ends, near, st.integers(low, high))
    return datatype, sorted(draw(st.lists(number, min_size=1, max_size=15)))


@settings(deadline=None, max_examples=400)
@given(comparisons())
def test_narrow_thresholds_compare_as_wide_ones_do(found: tuple[DataType, list[int]]) -> None:
    datatype, thresholds = found
    held = _threshold_type(np.array([thresholds], np.float32), datatype)
    assert held.signed() == datatype.signed()
    assert all(held.allowed(threshold) for threshold in thresholds)
    numbers = np.arange(int(datatype.min()), int(datatype.max()) + 1)
    expected = numbers[:, None] >= np.array(thresholds)
    bits, signed = held.bitwidth(), held.signed()
    assert np.array_equal(compared(numbers, thresholds, bits, signed=signed), expected)
    least = 2 if signed else 1
    if bits > least:  # there is no narrower one
        narrower = compared(numbers, thresholds, bits - 1, signed=signed)
        assert not np.array_equal(narrower, expected)


def test_the_saturating_comparator_would_err_at_its_own_least_number() -> None:
    """Why -8 of thresholds takes 5 bits where sums go below -8."""
    numbers = np.arange(-16, 16)
    wrong = compared(numbers, [-8], 4, signed=True)[:, 0] != (numbers >= -8)
    assert numbers[wrong].tolist() == list(range(-16, -8))
    assert _threshold_type(np.array([[-8.0]]), DataType["INT5"]) == DataType["INT5"]
    assert _threshold_type(np.array([[-7.0]]), DataType["INT5"]) == DataType["INT4"]
