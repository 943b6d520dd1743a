# SPDX-License-Identifier: BSD-3-Clause
"""What ``verify`` counts: bits, steps and labels, and which of them are a defect."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from brevitas_divqat.errors import CheckpointError, DataError, GraphError
from brevitas_divqat.evaluation import verify as module
from brevitas_divqat.evaluation.verify import VERIFIED_EQUAL, verify
from brevitas_divqat.executors import FastExecutor, IntegerExecutor
from brevitas_divqat.export import GraphMetadata, export_integer, export_qonnx, load_form
from brevitas_divqat.models import Precision, build
from brevitas_divqat.progress import Show
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import CheckpointInfo, save_checkpoint
from tests import networks

SHAPE = (1, 8, 8)
NAMES = tuple("0123456789")
PRECISION = Precision(3, 3)
WITH_CHECKPOINT = {
    *VERIFIED_EQUAL,
    "Brevitas against exported graph",
    "exported against integer graph",
    "Brevitas against integer graph",
}

Row = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder with its graph."""
    folder = tmp_path_factory.mktemp("made")
    with seeded(0):
        model = build("lenet5", SHAPE, len(NAMES), precision=PRECISION, width=0.5)
        networks.settle(model, SHAPE)
    info = CheckpointInfo(
        model="lenet5",
        width=0.5,
        precision=PRECISION,
        image_shape=SHAPE,
        class_names=NAMES,
        data="digits",
        method={"name": "qat"},
        seed=0,
        best_epoch=1,
        validation_accuracy=None,
    )
    save_checkpoint(folder, model, info)
    metadata = GraphMetadata(image_shape=SHAPE, pixel_divisor=256.0, class_names=NAMES)
    export_qonnx(model, folder / "model.onnx", metadata)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return networks.images(SHAPE, 70)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is reported


def test_a_checkpoint_is_compared_in_every_form(made: Path, images: NDArray[np.uint8]) -> None:
    before = files(made)
    record = verify(made, images)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["schema"], record["kind"], record["images"]) == (1, "verify", 70)
    graph = made / "model.onnx"
    assert record["graph_sha256"] == hashlib.sha256(graph.read_bytes()).hexdigest()
    assert set(record["comparisons"]) == WITH_CHECKPOINT
    assert files(made) == before


def test_the_output_scale_is_the_integer_graph_s(copied: Path, images: NDArray[np.uint8]) -> None:
    record = verify(copied, images[:1])
    integer = load_form(export_integer(copied / "model.onnx"))
    assert record["output_scale"] == integer.score_scale > 0


def test_a_graph_is_compared_without_a_checkpoint(made: Path, images: NDArray[np.uint8]) -> None:
    record = verify(made / "model.onnx", images)
    assert set(record["comparisons"]) == {*VERIFIED_EQUAL, "exported against integer graph"}
    whole = verify(made, images)
    for name, row in record["comparisons"].items():
        assert row == whole["comparisons"][name]


def test_tensors_may_lie_beside_the_graph(copied: Path, images: NDArray[np.uint8]) -> None:
    inner, outer = copied / "model.onnx", copied / "outer.onnx"
    options: dict[str, Any] = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(onnx.load(inner), outer, location="weights.bin", **options)
    assert verify(outer, images)["comparisons"] == verify(inner, images)["comparisons"]


ZOO = ("plain", "average_pools", "residual", "odd_channels", "quantized_scores", "float_bias")


@pytest.mark.parametrize("name", ZOO)
def test_executors_give_the_reference_s_bits(tmp_path: Path, name: str) -> None:
    graph = networks.export(name, tmp_path / "model.onnx")
    shape = networks.NETWORKS[name].image_shape
    pixels = np.concatenate([networks.images(shape, 37), networks.extreme_images(shape)])
    record = verify(graph, pixels)
    assert record["images"] == len(pixels)
    for equal in VERIFIED_EQUAL:
        assert set(record["comparisons"][equal].values()) == {0}


def test_progress_names_every_executor(made: Path, images: NDArray[np.uint8]) -> None:
    seen: list[Any] = []

    @contextmanager
    def recording(name: str, total: int) -> Iterator[Show]:
        seen.append(total)
        yield lambda steps, text: seen.append((steps, text))

    verify(made, images[:2], progress=recording)
    names = ["reference", "fast", "integer reference", "integer", "brevitas"]
    assert seen == [5, *((1, name) for name in names)]


# What is counted


def counts(row: Row) -> tuple[int, int, int]:
    return row["bits_differing"], row["multiples_differing"], row["labels_differing"]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([[1.0, 2.0]], [[1.0, 2.0]], (0, 0, 0), id="equal"),
        pytest.param([[0.0, 2.0]], [[-0.0, 2.0]], (1, 0, 0), id="sign-of-zero"),
        pytest.param([[1.0, 2.0]], [[1.0, 2.0000002]], (1, 0, 0), id="last-bit"),
        pytest.param([[1.0, 2.0]], [[1.0, 2.6]], (1, 1, 0), id="step"),
        pytest.param([[1.0, 2.0]], [[3.0, 2.0]], (1, 1, 1), id="label"),
        pytest.param([[1.0, 1.0000001]], [[1.0, 1.0]], (1, 0, 1), id="label-by-rounding"),
        pytest.param(
            [[1.0, 2.0], [5.0, 6.0], [0.0, 9.0]],
            [[2.0, 1.0], [5.0, 6.0], [0.0, 8.0]],
            (2, 2, 1),
            id="images",
        ),
        pytest.param(np.zeros((0, 2)), np.zeros((0, 2)), (0, 0, 0), id="none"),
    ],
)
def test_images_are_counted_not_elements(a: Any, b: Any, expected: tuple[int, int, int]) -> None:
    first, second = (np.asarray(scores, np.float32) for scores in (a, b))
    row = module._compared(first, second, 1.0)
    assert counts(row) == expected
    assert row["max_abs_difference"] == float(np.abs(first - second).max(initial=0.0))
    assert module._compared(second, first, 1.0) == row


def test_multiples_are_of_the_step() -> None:
    a = np.array([[0.50, 1.0]], np.float32)
    b = np.array([[0.58, 1.0]], np.float32)
    assert counts(module._compared(a, b, 0.25)) == (1, 0, 0)
    assert counts(module._compared(a, b, 0.125)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("executor", "name"), [(FastExecutor, VERIFIED_EQUAL[0]), (IntegerExecutor, VERIFIED_EQUAL[1])]
)
@pytest.mark.parametrize("sabotaged", [[0], [3, 69], list(range(70))])
def test_a_single_bit_is_counted(
    made: Path,
    images: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    executor: Any,
    name: str,
    sabotaged: list[int],
) -> None:
    honest = executor.__call__

    def flipped(self: Any, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = honest(self, batch).copy()
        scores.view(np.uint32)[sabotaged, 4] ^= 1
        return scores

    monkeypatch.setattr(executor, "__call__", flipped)
    rows = verify(made, images)["comparisons"]
    assert counts(rows[name])[:2] == (len(sabotaged), 0)
    (other,) = {*VERIFIED_EQUAL} - {name}
    assert set(rows[other].values()) == {0}


# What is refused


def test_a_folder_without_a_graph_is_refused(copied: Path, images: NDArray[np.uint8]) -> None:
    (copied / "model.onnx").unlink()
    with pytest.raises(GraphError, match=r"no graph .*model\.onnx: write it with `divqat export`"):
        verify(copied, images)


def test_a_folder_without_a_checkpoint_is_refused(copied: Path, images: NDArray[np.uint8]) -> None:
    (copied / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="no finished model"):
        verify(copied, images)


def test_a_graph_of_another_network_than_the_checkpoint_is_refused(
    copied: Path,
) -> None:
    networks.export("plain", copied / "model.onnx")
    with pytest.raises(GraphError, match=r"other images or classes.*divqat export"):
        verify(copied, networks.images((3, 8, 8), 2))


def test_an_integer_graph_is_refused_by_its_own_name(
    copied: Path, images: NDArray[np.uint8]
) -> None:
    integer = export_integer(copied / "model.onnx")
    with pytest.raises(GraphError, match="is an integer graph") as caught:
        verify(integer, images)
    assert str(integer) in str(caught.value)


def test_a_damaged_graph_is_refused_by_its_own_name(
    copied: Path, images: NDArray[np.uint8]
) -> None:
    graph = copied / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(GraphError) as caught:
        verify(copied, images)
    assert str(graph) in str(caught.value)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        pytest.param(np.zeros((0, *SHAPE), np.uint8), "there are no images", id="none"),
        pytest.param(np.zeros((2, *SHAPE)), "float64", id="float"),
        pytest.param(np.zeros((2, 3, 8, 8), np.uint8), "shape", id="colours"),
        pytest.param([[1]], "list", id="list"),
    ],
)
def test_other_images_are_refused_before_anything_runs(
    made: Path, monkeypatch: pytest.MonkeyPatch, pixels: Any, reason: str
) -> None:
    monkeypatch.setattr(module, "FastExecutor", None)
    with pytest.raises(DataError, match=reason):
        verify(made, pixels)
