# SPDX-License-Identifier: BSD-3-Clause
"""The reference executor: execute_onnx's own bits, whatever an image is asked together with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.change_batchsize import ChangeBatchSize
from qonnx.transformation.infer_shapes import InferShapes

from brevitas_divqat.errors import ConfigError, DataError, GraphError
from brevitas_divqat.executors import ReferenceExecutor
from brevitas_divqat.export.metadata import METADATA_KEY

BATCH = 16
GOOD = {
    "schema": 1,
    "image_shape": [1, 8, 8],
    "pixel_divisor": 256.0,
    "class_names": [*"abcdefghij"],
}


@pytest.fixture(scope="module")
def executor(graph_file: Path) -> ReferenceExecutor:
    return ReferenceExecutor(graph_file, batch_size=BATCH)


@pytest.fixture(scope="module")
def scores(executor: ReferenceExecutor, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return executor(images)


def refused(path: Path, *parts: str) -> None:
    """Assert that the graph is refused with one line that names it and holds ``parts``."""
    with pytest.raises(GraphError) as caught:
        ReferenceExecutor(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for part in parts:
        assert part in message


def test_scores_are_those_of_execute_onnx_bit_for_bit(
    graph_file: Path, images: NDArray[np.uint8]
) -> None:
    wrapper = ModelWrapper(str(graph_file))
    wrapper = wrapper.transform(ChangeBatchSize(len(images))).transform(InferShapes())
    feed = {wrapper.graph.input[0].name: images.astype(np.float32) / np.float32(256)}
    direct = execute_onnx(wrapper, feed)[wrapper.graph.output[0].name]
    ours = ReferenceExecutor(graph_file, batch_size=len(images))(images)
    assert ours.dtype == np.float32
    assert ours.shape == (len(images), 10)
    assert ours.tobytes() == direct.tobytes()
    assert len(np.unique(ours, axis=0)) > 1, "a constant network would prove nothing"


@settings(max_examples=4, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=4))
@example(cuts=[])
@example(cuts=[1, 2, 17, 33])
@example(cuts=[15, 16, 17])
def test_scores_do_not_depend_on_the_split_into_calls(
    executor: ReferenceExecutor,
    images: NDArray[np.uint8],
    scores: NDArray[np.float32],
    cuts: list[int],
) -> None:
    parts = [executor(part) for part in np.split(images, sorted(cuts))]
    assert np.concatenate(parts).tobytes() == scores.tobytes()


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(40)), count=st.integers(1, 40))
def test_scores_do_not_depend_on_the_neighbours_or_the_place_in_the_batch(
    executor: ReferenceExecutor,
    images: NDArray[np.uint8],
    scores: NDArray[np.float32],
    order: list[int],
    count: int,
) -> None:
    chosen = order[:count]
    assert executor(images[chosen]).tobytes() == scores[chosen].tobytes()


def test_no_images_have_no_scores(executor: ReferenceExecutor, images: NDArray[np.uint8]) -> None:
    assert executor(images[:0]).shape == (0, 10)


def test_the_executor_says_what_it_serves(executor: ReferenceExecutor, graph_file: Path) -> None:
    assert executor.name == "reference"
    assert executor.image_shape == (1, 8, 8)
    assert executor.num_classes == 10
    assert executor.sha256 == hashlib.sha256(graph_file.read_bytes()).hexdigest()


def test_the_images_are_left_as_they_are(
    executor: ReferenceExecutor, images: NDArray[np.uint8]
) -> None:
    before = images.copy()
    executor(images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: x.astype(np.float32), id="float32"),
        pytest.param(lambda x: x.astype(np.int64), id="int64"),
        pytest.param(lambda x: x.tolist(), id="list"),
        pytest.param(lambda x: x[0], id="three-dimensions"),
        pytest.param(lambda x: x[None], id="five-dimensions"),
        pytest.param(lambda x: x[..., :7], id="narrow"),
        pytest.param(lambda x: x.repeat(3, axis=1), id="rgb"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(
    executor: ReferenceExecutor,
    images: NDArray[np.uint8],
    spoil: Callable[[NDArray[np.uint8]], Any],
) -> None:
    with pytest.raises(DataError, match="expected") as caught:
        executor(spoil(images))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_is_refused(graph_file: Path, batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size}"):
        ReferenceExecutor(graph_file, batch_size=batch_size)


@pytest.mark.parametrize("make", ["nothing", "folder"])
def test_a_graph_that_cannot_be_read_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "model.onnx"
    if make == "folder":
        path.mkdir()
    refused(path, "cannot read", "divqat export")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"These are the words of a text file.\n", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n\x00\x00", id="picture"),
        pytest.param(b'{"graph": 1}', id="json"),
    ],
)
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, "divqat export")


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "model.onnx"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("percent", [1, 25, 50, 75, 90, 99])
def test_a_truncated_graph_is_refused(graph_file: Path, tmp_path: Path, percent: int) -> None:
    content = graph_file.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: len(content) * percent // 100])
    refused(path)


def test_a_graph_without_metadata_is_refused(graph_file: Path, tmp_path: Path) -> None:
    foreign = onnx.load(graph_file)
    del foreign.graph.metadata_props[:]
    onnx.save(foreign, tmp_path / "model.onnx")
    refused(tmp_path / "model.onnx", "export_qonnx")


@pytest.mark.parametrize("schema", [2, 0, "1"])
def test_metadata_of_another_schema_are_refused(
    graph_file: Path, tmp_path: Path, schema: Any
) -> None:
    wrapper = ModelWrapper(str(graph_file))
    wrapper.set_metadata_prop(METADATA_KEY, json.dumps(GOOD | {"schema": schema}))
    wrapper.save(str(tmp_path / "model.onnx"))
    refused(tmp_path / "model.onnx", f"schema {schema}", "export it again")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="no-json"),
        pytest.param("null", id="null"),
        pytest.param("[1]", id="list"),
        pytest.param('"schema"', id="text"),
        pytest.param("{}", id="no-schema"),
        pytest.param('{"schema": 1}', id="no-fields"),
        pytest.param(json.dumps(GOOD | {"colour": "red"}), id="unknown-field"),
        pytest.param(json.dumps(GOOD | {"image_shape": "1x8x8"}), id="shape-is-text"),
        pytest.param(json.dumps(GOOD | {"image_shape": [8, 8]}), id="shape-of-two"),
        pytest.param(json.dumps(GOOD | {"image_shape": [3, 8, 8]}), id="shape-of-another-graph"),
        pytest.param(json.dumps(GOOD | {"class_names": ["a", "b"]}), id="classes-of-another-graph"),
        pytest.param(json.dumps(GOOD | {"pixel_divisor": 0}), id="divisor-0"),
        pytest.param(json.dumps(GOOD | {"pixel_divisor": "much"}), id="divisor-is-text"),
        pytest.param(json.dumps(GOOD | {"method": "qat"}), id="method-is-text"),
    ],
)
def test_damaged_metadata_are_refused(graph_file: Path, tmp_path: Path, text: str) -> None:
    wrapper = ModelWrapper(str(graph_file))
    wrapper.set_metadata_prop(METADATA_KEY, text)
    wrapper.save(str(tmp_path / "model.onnx"))
    refused(tmp_path / "model.onnx")


def test_good_metadata_in_the_same_place_are_served(graph_file: Path, tmp_path: Path) -> None:
    wrapper = ModelWrapper(str(graph_file))
    wrapper.set_metadata_prop(METADATA_KEY, json.dumps(GOOD))
    wrapper.save(str(tmp_path / "model.onnx"))
    assert ReferenceExecutor(tmp_path / "model.onnx").num_classes == 10


def test_a_graph_that_cannot_run_is_refused_at_once(graph_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(graph_file.read_bytes().replace(b"MaxPool", b"MaxPooo"))
    with pytest.raises(GraphError, match="export it again") as caught:
        ReferenceExecutor(broken)
    assert "\n" not in str(caught.value)
