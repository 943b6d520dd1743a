# SPDX-License-Identifier: BSD-3-Clause
"""Integer executors, on 8-bit kernels and in torch, against execute_onnx on the integer graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.infer_shapes import InferShapes

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.executors import IntegerExecutor, ReferenceExecutor
from brevitas_divqat.executors import integer as integer_module
from brevitas_divqat.executors.loading import sample_images
from brevitas_divqat.export import GraphMetadata
from brevitas_divqat.export.metadata import METADATA_KEY
from tests import networks

COUNTS = (0, 1, 2, 33)
SCALE = 0.125

DEVICES = [
    "cpu",
    pytest.param("cpu:0", id="torch"),
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    ),
]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def everything(shape: tuple[int, int, int], count: int = 40) -> NDArray[np.uint8]:
    """Return noise, extremes and the executors' own samples."""
    images = (networks.images(shape, count, seed=7), networks.extreme_images(shape))
    return np.concatenate([*images, sample_images(shape)])


class Graph:
    """An integer graph, built node by node.

    Args:
        shape: of the images.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.last = "x"

    def add(
        self, op_type: str, *constants: Any, source: str | None = None, **attributes: Any
    ) -> str:
        """Add a node that reads the last tensor, or another, and return its output's name."""
        names = [source or self.last]
        for constant in constants:
            if isinstance(constant, str):
                names.append(constant)
            else:
                names.append(f"c{len(self.constants)}")
                self.constants[names[-1]] = np.asarray(constant, np.float32)
        custom = op_type in ("MultiThreshold", "QuantAvgPool2d")
        domain = "qonnx.custom_op.general" if custom else ""
        self.last = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, names, [self.last], domain=domain, **attributes)
        )
        return self.last

    def threshold(self, thresholds: Any, bias: float = 0.0, source: str | None = None) -> str:
        """Add thresholds (C, L), or (1, L) for all channels."""
        thresholds = np.asarray(thresholds)
        most = int(bias) + thresholds.shape[1]
        datatype = DataType[f"INT{2 + max(most, -int(bias)).bit_length()}"].name
        return self.add(
            "MultiThreshold", thresholds, source=source, out_bias=float(bias), out_dtype=datatype
        )

    def save(self, path: Path, classes: int, scale: float = SCALE) -> Path:
        """Write it with metadata."""
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "integer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, *self.shape))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, classes))],
        )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("qonnx.custom_op.general", 1)]
        proto = helper.make_model(graph, opset_imports=opsets)
        proto.ir_version = 8
        model = ModelWrapper(proto)
        for name, value in self.constants.items():
            model.set_initializer(name, value)
        model = model.transform(InferShapes())
        metadata = GraphMetadata(
            image_shape=self.shape,
            pixel_divisor=1.0,
            class_names=tuple(map(str, range(classes))),
            form="integer",
            output_scale=scale,
        )
        model.set_metadata_prop(METADATA_KEY, metadata.to_json())
        model.save(str(path))
        return path


def assert_same(path: Path, device: str, images: NDArray[np.uint8] | None = None) -> NDArray[Any]:
    """Compare the executors' scores and integers, whatever the batch; return the integers."""
    reference = ReferenceExecutor(path, batch_size=132)
    if images is None:
        images = everything(reference.image_shape)
    expected = reference(images)
    executor = IntegerExecutor(path, device=device, verify=False)
    got = executor(images)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)
    integers = executor.integers(images)
    assert integers.dtype == np.int32
    np.testing.assert_array_equal(integers * np.float32(reference.metadata.output_scale), expected)
    for count in COUNTS:
        np.testing.assert_array_equal(executor(images[:count]), expected[:count])
    ragged = IntegerExecutor(path, device=device, batch_size=5, verify=False)
    np.testing.assert_array_equal(ragged(images), expected)
    return integers


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def weights(seed: int, *shape: int, low: int = -7, high: int = 7) -> NDArray[np.int64]:
    return rng_of(seed).integers(low, high + 1, shape)


def uneven(seed: int, channels: int, levels: int, reach: float) -> NDArray[np.int64]:
    """Return sorted thresholds at random."""
    return np.sort(rng_of(seed).integers(-reach, reach, (channels, levels)), axis=1)


def even(channels: int, levels: int, step: float, first: float) -> NDArray[np.int64]:
    """Return thresholds at equal distances, which differ by channel."""
    steps = step * np.linspace(1, 1.7, channels)[:, None]
    return np.ceil(first + steps * np.arange(levels)).astype(np.int64)


# The zoo


@on_every_device
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_gets_the_reference_s_integers(
    integer: Callable[[str], Path], name: str, device: str
) -> None:
    path = integer(name)
    images = everything(networks.NETWORKS[name].image_shape, 190)
    expected = ReferenceExecutor(path)(images)
    executor = IntegerExecutor(path, device=device, verify=False)
    np.testing.assert_array_equal(executor(images), expected)
    for count in COUNTS:
        np.testing.assert_array_equal(executor(images[:count]), expected[:count])


@on_every_device
@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_neither_the_batch_size_nor_the_threads_matter(
    integer: Callable[[str], Path], batch_size: int, device: str
) -> None:
    for name in ("plain", "residual"):
        images = everything(networks.NETWORKS[name].image_shape)
        expected = ReferenceExecutor(integer(name))(images)
        for threads in (1, 2):
            executor = IntegerExecutor(
                integer(name), batch_size=batch_size, threads=threads, device=device, verify=False
            )
            np.testing.assert_array_equal(executor(images), expected)
            np.testing.assert_array_equal(executor(images[::-1]), expected[::-1])


# Graphs by hand


def mlp(shape: tuple[int, int, int]) -> Graph:
    graph = Graph(shape)
    graph.add("Flatten", axis=1)
    return graph


@on_every_device
@pytest.mark.parametrize("rows", ["per-channel", "one"])
@pytest.mark.parametrize(
    "kind", ["uneven", "even", "equal", "outside", "all-below", "all-above", "mixed"]
)
def test_thresholds_of_any_kind(tmp_path: Path, kind: str, rows: str, device: str) -> None:
    channels, reach = 4, 6000
    thresholds = {
        "uneven": uneven(1, channels, 7, reach),
        "even": even(channels, 7, 900, -2500),
        "equal": np.repeat(uneven(2, channels, 2, reach), 3, axis=1),
        "outside": np.sort(
            np.concatenate([even(channels, 5, 900, -2500), [[-(10**7), 10**7]] * channels], axis=1),
            axis=1,
        ),
        "all-below": even(channels, 7, 900, -(10**6)),
        "all-above": even(channels, 7, 900, 10**6),
        "mixed": np.stack(
            [even(1, 7, s, f)[0] for s, f in ((900, -2500), (0, 0), (1, 9), (1, -(10**6)))]
        ),
    }[kind]
    if rows == "one":
        thresholds = thresholds[:1]
    for bias in (0, -3, -4):
        graph = Graph((2, 6, 6))
        graph.add("Conv", weights(3, channels, 2, 3, 3), kernel_shape=[3, 3])
        graph.threshold(thresholds, bias)
        graph.add("Conv", weights(4, 3, channels, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        graph.threshold(even(3, 7, 10, -30), -3)
        graph.add("Flatten", axis=1)
        graph.add("MatMul", weights(5, 48, 5))
        assert_same(graph.save(tmp_path / f"{bias}.onnx", 5), device)


@on_every_device
def test_a_tensor_whose_least_integer_is_above_0(tmp_path: Path, device: str) -> None:
    """All channels pass the first thresholds, whatever the image."""
    graph = Graph((1, 6, 6))
    graph.add("Conv", weights(3, 1, 1, 3, 3), kernel_shape=[3, 3])
    first = graph.threshold([[-(10**6), -(10**6), 10, 200, 1000]])
    graph.add("Conv", weights(4, 1, 1, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    second = graph.threshold([[-(10**6), -3, 5, 9]])
    graph.add("Add", first, source=second)
    graph.threshold([[-5, 1, 2, 3, 4, 5, 6]])
    graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    graph.add("Flatten", axis=1)
    graph.add("MatMul", weights(5, 4, 3))
    assert_same(graph.save(tmp_path / "model.onnx", 3), device)


@on_every_device
@pytest.mark.parametrize("bias", [3.0, -200.0, -300.0])
def test_output_biases_beyond_the_levels(tmp_path: Path, bias: float, device: str) -> None:
    graph = Graph((2, 6, 6))
    graph.add("Conv", weights(3, 4, 2, 3, 3), kernel_shape=[3, 3])
    graph.threshold(even(4, 7, 900, -2500), bias)
    graph.add("Conv", weights(4, 3, 4, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    graph.add("Flatten", axis=1)
    path = graph.save(tmp_path / "model.onnx", 48)
    if device == "cpu" and bias != -200:
        refused(path, device, "no byte", "--executor reference")
    else:
        assert_same(path, device)


@on_every_device
@pytest.mark.parametrize("op_type", ["Conv", "MatMul"])
@pytest.mark.parametrize("largest", [1, 63, 64, 127, 128])
def test_full_range_weights_and_pixels_do_not_saturate_in_pairs(
    tmp_path: Path, largest: int, op_type: str, device: str
) -> None:
    """Pairs of 255 x 127 leave the 16 bits that older processors add them in."""
    signs = np.where(np.arange(64) % 4 < 2, 1, -1)
    rows = np.stack([np.ones(64, int), -np.ones(64, int), signs, -signs]) * largest
    rows[:2, -1] = [-largest, largest - 1]
    for kind in (even(4, 15, 200 * largest, -2000 * largest), uneven(1, 4, 9, 9000 * largest)):
        if op_type == "Conv":
            graph = Graph((16, 4, 4))
            graph.add("Conv", rows.reshape(4, 16, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
            graph.threshold(kind, -7)
            graph.add("Flatten", axis=1)
            graph.add("MatMul", weights(5, 16, 5))
        else:
            graph = mlp((4, 4, 4))
            graph.add("MatMul", rows.T)
            graph.threshold(kind, -7)
            graph.add("MatMul", weights(5, 4, 5))
        assert_same(graph.save(tmp_path / "model.onnx", 5), device)


@on_every_device
@pytest.mark.parametrize("size", [65_000, 65_792])
@pytest.mark.parametrize("thresholds", ["even", "uneven"])
def test_sums_close_to_the_end_of_float32_s_integers(
    tmp_path: Path, thresholds: str, size: int, device: str
) -> None:
    """255 x 65 792 = 2^24 - 256."""
    rows = np.ones((size, 3))
    rows[:, 1] = -1
    rows[::2, 2] = -1
    graph = mlp((1, 1, size))
    graph.add("MatMul", rows)
    graph.threshold(
        even(3, 15, 2.1e6, -(2**24) + 5) if thresholds == "even" else uneven(1, 3, 6, 2**24 - 1), -3
    )
    graph.add("MatMul", weights(5, 3, 2))
    path = graph.save(tmp_path / "model.onnx", 2)
    images = np.stack([np.full((1, 1, size), v, np.uint8) for v in (0, 1, 128, 254, 255)])
    images = np.concatenate([images, networks.images((1, 1, size), 8)])
    images[-1, ..., ::2], images[-1, ..., 1::2] = 0, 255
    images[-2, ..., ::2], images[-2, ..., 1::2] = 255, 0
    reference = ReferenceExecutor(path, batch_size=len(images))
    executor = IntegerExecutor(path, device=device, verify=False)
    np.testing.assert_array_equal(executor(images), reference(images))


@on_every_device
def test_scores_close_to_the_end_of_float32_s_integers(tmp_path: Path, device: str) -> None:
    graph = mlp((1, 8, 64))
    rows = weights(1, 512, 3, low=120, high=127)
    rows[:, 1] *= -1
    graph.add("MatMul", rows)
    assert np.abs(assert_same(graph.save(tmp_path / "model.onnx", 3), device)).max() > 2**23.9


@on_every_device
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", [0, -2, -128])
def test_thresholds_directly_on_the_pixels(
    tmp_path: Path, rows: int, bias: int, device: str
) -> None:
    levels = 255 if bias == -128 else 5
    for thresholds in (
        uneven(1, rows, levels, 255) + 20,
        np.tile(np.arange(1, levels + 1), (rows, 1)),
    ):
        graph = Graph((3, 5, 5))
        graph.threshold(thresholds, bias)
        graph.add("Conv", weights(2, 4, 3, 3, 3), kernel_shape=[3, 3], pads=[0, 1, 2, 0])
        graph.threshold(even(4, 3, 20, -30), -1)
        graph.add("Flatten", axis=1)
        graph.add("MatMul", weights(5, 4 * 5 * 4, 5))
        assert_same(graph.save(tmp_path / "model.onnx", 5), device)


@on_every_device
@pytest.mark.parametrize(
    "pool",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [0, 1, 2, 0]},
        {"kernel_shape": [2, 2], "dilations": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ],
    ids=["plain", "padded", "uneven", "dilated", "ceil", "padded-ceil"],
)
@pytest.mark.parametrize("place", ["pixels", "sums", "levels"])
def test_max_pools(tmp_path: Path, place: str, pool: dict[str, Any], device: str) -> None:
    """Of negative integers too: zero padding would win."""
    graph = Graph((2, 8, 8))
    if place == "pixels":
        graph.add("MaxPool", **pool)
        graph.add("Conv", weights(1, 4, 2, 1, 1), kernel_shape=[1, 1])
    else:
        graph.add("Conv", weights(1, 4, 2, 3, 3, low=-9, high=2), kernel_shape=[3, 3])
        if place == "sums":
            graph.add("MaxPool", **pool)
    graph.threshold(uneven(2, 4, 6, 3000), -6)
    if place == "levels":
        graph.add("MaxPool", **pool)
    graph.add("Conv", weights(3, 3, 4, 1, 1), kernel_shape=[1, 1])
    graph.threshold(even(3, 3, 5, -9), -1)
    graph.add("Flatten", axis=1)
    model = ModelWrapper(str(graph.save(tmp_path / "draft.onnx", 1)))
    features = model.get_tensor_shape(model.graph.node[-1].input[0])
    graph.nodes[-1].output[0] = graph.last
    graph.add("MatMul", weights(5, int(np.prod(features[1:])), 5))
    assert_same(graph.save(tmp_path / "model.onnx", 5), device)


@on_every_device
@pytest.mark.parametrize("kind", ["even", "uneven"])
@pytest.mark.parametrize("levels", [3, 127, 200])
def test_residual_additions(tmp_path: Path, levels: int, kind: str, device: str) -> None:
    """127 + 127 levels fit a byte, 200 + 200 do not."""
    bias = -(levels // 2)
    graph = Graph((2, 6, 6))
    graph.add("Conv", weights(1, 4, 2, 3, 3), kernel_shape=[3, 3])
    first = graph.threshold(even(4, levels, 8000 / levels, -4000), bias)
    graph.add("Conv", weights(2, 4, 4, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    second = graph.threshold(even(4, levels, 20, -10 * levels), bias)
    total = graph.add("Add", second, source=first)
    graph.add("Conv", weights(3, 4, 4, 1, 1), kernel_shape=[1, 1])
    graph.threshold(even(4, 15, 20, -90) if kind == "even" else uneven(4, 4, 15, levels * 9), -7)
    skip = graph.threshold(uneven(5, 4, 15, levels), -7, source=total)
    graph.add("Add", skip, source=graph.nodes[-2].output[0])
    graph.add("Add", skip)
    graph.add("Flatten", axis=1)
    graph.add("MatMul", weights(6, 64, 5))
    assert_same(graph.save(tmp_path / "model.onnx", 5), device)


@on_every_device
def test_a_tensor_added_to_itself_and_to_pixels(tmp_path: Path, device: str) -> None:
    graph = Graph((2, 6, 6))
    graph.add("Add", "x")
    graph.add("Add", "x")
    graph.threshold([[1, 100, 300, 765]], -2)
    graph.add("Flatten", axis=1)
    graph.add("MatMul", weights(6, 72, 5))
    assert_same(graph.save(tmp_path / "model.onnx", 5), device)


@on_every_device
@pytest.mark.parametrize("bias", [0, -8])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_average_pools_of_unsigned_and_signed_integers(
    tmp_path: Path, bits: int, kernel: int, bias: int, device: str
) -> None:
    for stride in (1, kernel):
        graph = Graph((2, 6, 6))
        graph.add("Conv", weights(1, 4, 2, 3, 3), kernel_shape=[3, 3])
        graph.threshold(even(4, 15, 500, -4000), bias)
        graph.add(
            "QuantAvgPool2d",
            kernel=kernel,
            stride=stride,
            ibits=4,
            obits=bits,
            signed=int(bias < 0),
            data_layout="NCHW",
        )
        graph.add("Flatten", axis=1)
        side = (4 - kernel) // stride + 1
        graph.add("MatMul", weights(6, 4 * side * side, 5))
        assert_same(graph.save(tmp_path / "model.onnx", 5), device)


@on_every_device
def test_an_average_pool_of_pixels(tmp_path: Path, device: str) -> None:
    graph = Graph((2, 6, 6))
    graph.add("QuantAvgPool2d", kernel=2, stride=2, ibits=8, obits=8, signed=0)
    graph.add("Flatten", axis=1)
    graph.add("MatMul", weights(6, 18, 5))
    assert_same(graph.save(tmp_path / "model.onnx", 5), device)


@on_every_device
@pytest.mark.parametrize("largest", [10, 2**22])
def test_an_integer_bias_at_the_end(tmp_path: Path, largest: int, device: str) -> None:
    graph = mlp((1, 4, 4))
    graph.add("MatMul", weights(1, 16, 5))
    graph.add("Add", weights(2, 5, low=-largest, high=largest))
    assert_same(graph.save(tmp_path / "vector.onnx", 5), device)
    graph = mlp((1, 4, 4))
    graph.add("MatMul", weights(1, 16, 5))
    graph.add("Add", weights(2, 1, 5, low=-largest, high=largest))
    assert_same(graph.save(tmp_path / "row.onnx", 5), device)


@on_every_device
@pytest.mark.parametrize(
    ("outputs", "group", "attributes"),
    [
        (4, 1, {"pads": [1, 0, 2, 1]}),
        (4, 1, {"strides": [2, 1], "pads": [0, 1, 1, 0]}),
        (4, 1, {"dilations": [2, 2]}),
        (4, 1, {"dilations": [1, 2], "strides": [2, 2], "pads": [2, 2, 1, 0]}),
        (4, 2, {}),
        (4, 4, {"pads": [1, 1, 1, 1]}),
        (8, 4, {"strides": [2, 2]}),
        (1, 1, {"pads": [2, 2, 2, 2]}),
    ],
    ids=["pads", "strides", "dilations", "all", "groups", "depthwise", "two-each", "one-channel"],
)
@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_convolutions(
    tmp_path: Path,
    outputs: int,
    group: int,
    attributes: dict[str, Any],
    kind: str,
    device: str,
) -> None:
    graph = Graph((1, 8, 8))
    graph.add("Conv", weights(1, 4, 1, 1, 1), kernel_shape=[1, 1])
    graph.threshold(even(4, 7, 500, -1700), -3)  # signed: padding is not the least byte
    shape = (outputs, 4 // group, 3, 3)
    graph.add("Conv", weights(2, *shape), kernel_shape=[3, 3], group=group, **attributes)
    graph.threshold(even(outputs, 15, 9, -70) if kind == "even" else uneven(3, outputs, 15, 90), -8)
    graph.add("Flatten", axis=1)
    model = ModelWrapper(str(graph.save(tmp_path / "draft.onnx", 1)))
    features = model.get_tensor_shape(model.graph.node[-1].input[0])
    graph.nodes[-1].output[0] = graph.last
    graph.add("MatMul", weights(5, int(np.prod(features[1:])), 5))
    assert_same(graph.save(tmp_path / "model.onnx", 5), device)


@st.composite
def vectors(draw: st.DrawFn) -> tuple[Graph, int]:
    """Draw two layers of any weights and thresholds."""
    inputs, hidden, classes = (draw(st.integers(1, n)) for n in (20, 9, 6))
    seed = draw(st.integers(0, 2**31))
    top = draw(st.sampled_from([1, 2, 7, 8, 31, 64, 127]))
    levels = draw(st.sampled_from([1, 2, 3, 15, 100]))
    first = weights(seed, inputs, hidden, low=-top, high=top)
    reach = draw(st.sampled_from([3, 100, 255 * top, 255 * top * inputs]))
    rows = draw(st.sampled_from([1, hidden]))
    kind = draw(st.sampled_from(["even", "uneven"]))
    graph = mlp((1, 1, inputs))
    graph.add("MatMul", first)
    graph.threshold(
        uneven(seed, rows, levels, reach)
        if kind == "uneven"
        else even(rows, levels, max(0.1, 2 * reach / levels), -reach),
        -draw(st.integers(0, levels)),
    )
    graph.add("MatMul", weights(seed + 1, hidden, classes))
    if draw(st.booleans()):
        graph.threshold(uneven(seed, 1, 9, 200), -4)
    return graph, classes


@settings(max_examples=25, deadline=None)
@given(drawn=vectors())
def test_any_two_layers(tmp_path_factory: pytest.TempPathFactory, drawn: Any) -> None:
    graph, classes = drawn
    path = graph.save(tmp_path_factory.mktemp("any") / "model.onnx", classes)
    images = everything(graph.shape, 40)
    expected = ReferenceExecutor(path)(images)
    for device in ("cpu", "cpu:0"):
        executor = IntegerExecutor(path, device=device, verify=False)
        np.testing.assert_array_equal(executor(images), expected)


# What is refused


def simple() -> Graph:
    graph = Graph((1, 4, 4))
    graph.add("Conv", weights(1, 2, 1, 3, 3), kernel_shape=[3, 3])
    graph.threshold(even(2, 3, 500, -700), -1)
    graph.add("Flatten", axis=1)
    graph.add("MatMul", weights(2, 8, 3))
    return graph


def refused(path: Path, device: str, *words: str) -> None:
    with pytest.raises(GraphError) as caught:
        IntegerExecutor(path, device=device)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@on_every_device
def test_a_node_of_no_integer_graph_is_refused_by_its_layer_s_name(
    tmp_path: Path, device: str
) -> None:
    graph = simple()
    graph.add("Softmax")
    graph.nodes[-1].doc_string = "head.softmax"
    refused(graph.save(tmp_path / "model.onnx", 3), device, "head.softmax", "Softmax", "reference")


def test_more_levels_than_a_byte_are_refused_by_the_8_bit_kernels_alone(tmp_path: Path) -> None:
    graph = Graph((1, 4, 4))
    graph.add("Conv", weights(1, 2, 1, 3, 3), kernel_shape=[3, 3])
    graph.threshold([np.arange(-400, 600)] * 2, -500)
    graph.add("Flatten", axis=1)
    graph.add("MatMul", weights(2, 8, 3))
    path = graph.save(tmp_path / "model.onnx", 3)
    refused(path, "cpu", "8 bits", "--executor reference")
    assert_same(path, "cpu:0")


def test_levels_that_are_never_reached_do_not_count(tmp_path: Path) -> None:
    graph = Graph((1, 4, 4))
    graph.add("Conv", weights(1, 2, 1, 3, 3), kernel_shape=[3, 3])
    graph.threshold(
        [[*range(-(10**6), -(10**6) + 900), 0, 50, 60, *range(10**6, 10**6 + 900)]], -900
    )
    graph.add("Flatten", axis=1)
    graph.add("MatMul", weights(2, 8, 3))
    assert_same(graph.save(tmp_path / "model.onnx", 3), "cpu")


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("what", ["thresholds", "weights", "bias"])
def test_fractions_are_refused_or_right(tmp_path: Path, what: str, device: str) -> None:
    graph = simple()
    graph.add("Add", [1, 2, 3])
    name = {"weights": "c0", "thresholds": "c1", "bias": "c3"}[what]
    graph.constants[name] = graph.constants[name] + np.float32(0.5)
    path = graph.save(tmp_path / "model.onnx", 3)
    images = everything((1, 4, 4))
    with contextlib.suppress(GraphError):
        executor = IntegerExecutor(path, device=device)
        np.testing.assert_array_equal(executor(images), ReferenceExecutor(path)(images))


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("constant", ["weights", "thresholds"])
def test_one_wrong_constant_is_found_when_the_executor_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, device: str
) -> None:
    path = simple().save(tmp_path / "model.onnx", 3)
    name = {"weights": "c2", "thresholds": "c1"}[constant]
    honest = integer_module.load_graph

    def spoiled(path: Path) -> Any:
        wrapper, sha256, metadata = honest(path)
        value = wrapper.get_initializer(name).copy()
        value[0, 0] += 400 if constant == "thresholds" else 1
        wrapper.set_initializer(name, np.sort(value, axis=1) if constant == "thresholds" else value)
        return wrapper, sha256, metadata

    monkeypatch.setattr(integer_module, "load_graph", spoiled)
    refused(path, device, "other scores than execute_onnx", "--executor reference")


def test_an_exported_graph_is_refused(graph_file: Path) -> None:
    refused(graph_file, "cpu", str(graph_file), "exported graph", "--executor fast")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch_size": 0}, "batch_size is 0"), ({"threads": 0}, "threads is 0")],
)
def test_batch_sizes_and_threads_below_1_are_refused(
    integer_file: Path, options: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        IntegerExecutor(integer_file, **options)


@pytest.mark.parametrize("device", ["abacus", "cuda:77", "", "cpu:x"])
def test_an_unknown_device_is_refused_in_one_line(integer_file: Path, device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        IntegerExecutor(integer_file, device=device)
    assert "\n" not in str(caught.value)


@on_every_device
def test_images_may_lie_in_memory_as_they_like(integer_file: Path, device: str) -> None:
    executor = IntegerExecutor(integer_file, device=device)
    images = networks.images(executor.image_shape, 40)
    expected = executor(images)
    np.testing.assert_array_equal(executor(images[::-1]), expected[::-1])
    np.testing.assert_array_equal(executor(np.asfortranarray(images)), expected)
    images.flags.writeable = False
    np.testing.assert_array_equal(executor(images), expected)
