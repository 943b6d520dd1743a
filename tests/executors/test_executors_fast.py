# SPDX-License-Identifier: BSD-3-Clause
"""The fast executor: the reference's bits, however the images are asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.executors import FastExecutor, ReferenceExecutor, lowering
from brevitas_divqat.executors.loading import check_same_answers, sample_images
from brevitas_divqat.export import GraphMetadata, export_qonnx
from brevitas_divqat.models import Precision, build
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import calibrate
from tests import networks

COUNTS = (0, 1, 2, 31, 32, 33, 257)
DIGITS = tuple("0123456789")


def same_bits(got: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Assert equality to the last bit, signs of zeros included."""
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def everything(shape: tuple[int, int, int], count: int = 257) -> NDArray[np.uint8]:
    return np.concatenate([networks.images(shape, count, seed=3), networks.extreme_images(shape)])


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_gets_the_reference_s_bits(
    exported: Callable[[str], Path], name: str
) -> None:
    path = exported(name)
    images = everything(networks.NETWORKS[name].image_shape)
    expected = ReferenceExecutor(path)(images)
    for options in ({}, {"batch_size": 7}):
        fast = FastExecutor(path, threads=1, verify=False, **options)
        same_bits(fast(images), expected)
    for count in COUNTS:
        same_bits(fast(images[:count]), expected[:count])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 300])
@pytest.mark.parametrize("name", ["plain", "odd_channels", "residual", "fully_connected"])
def test_neither_the_batch_size_nor_the_threads_change_a_bit(
    exported: Callable[[str], Path], name: str, batch_size: int, threads: int
) -> None:
    path = exported(name)
    images = everything(networks.NETWORKS[name].image_shape, 66)
    expected = ReferenceExecutor(path)(images)
    fast = FastExecutor(path, batch_size=batch_size, threads=threads, verify=False)
    same_bits(fast(images), expected)
    for count in (0, 1, 2, 33):
        same_bits(fast(images[:count]), expected[:count])


def deployed(folder: Path, name: str, shape: tuple[int, int, int], bits: int, width: float) -> Path:
    """Export an architecture of the package, calibrated on noise."""
    precision = Precision(weight=bits, activation=bits)
    with seeded(0, "tests", name, bits):
        model = build(name, shape, len(DIGITS), precision=precision, width=width)
    calibrate(model, networks.images(shape, 32))
    metadata = GraphMetadata(image_shape=shape, pixel_divisor=256.0, class_names=DIGITS)
    return export_qonnx(model, folder / "model.onnx", metadata)


@pytest.mark.parametrize(
    ("name", "shape", "bits", "width"),
    [
        pytest.param("lenet5", (1, 28, 28), 2, 1.0, id="lenet5-2-bits"),
        pytest.param("lenet5", (1, 28, 28), 3, 1.0, id="lenet5-3-bits"),
        pytest.param("lenet5", (1, 28, 28), 4, 1.0, id="lenet5-4-bits"),
        pytest.param("cnv", (3, 32, 32), 2, 0.25, id="cnv-2-bits"),
    ],
)
def test_the_package_s_architectures_get_the_reference_s_bits(
    tmp_path: Path, name: str, shape: tuple[int, int, int], bits: int, width: float
) -> None:
    path = deployed(tmp_path, name, shape, bits, width)
    images = everything(shape, 33)
    expected = ReferenceExecutor(path, batch_size=len(images) // 4 * 4 + 4)(images)
    for threads in (1, 2):
        fast = FastExecutor(path, threads=threads, verify=False)
        same_bits(fast(images), expected)
        same_bits(fast(images[:1]), expected[:1])


@pytest.fixture(scope="module")
def executors(exported: Callable[[str], Path]) -> list[tuple[FastExecutor, Any, Any]]:
    """Return executors, images, the images' scores."""
    found = []
    for name in ("plain", "odd_channels", "average_pools"):
        fast = FastExecutor(exported(name))
        images = networks.images(fast.image_shape, 70, seed=5)
        found.append((fast, images, fast(images)))
    return found


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(70)), count=st.integers(0, 70))
@example(order=list(range(69, -1, -1)), count=1)
@example(order=list(range(70)), count=33)
@example(order=list(range(70)), count=35)
def test_scores_do_not_depend_on_the_neighbours_or_the_place_in_the_batch(
    executors: list[tuple[FastExecutor, Any, Any]], order: list[int], count: int
) -> None:
    chosen = order[:count]
    for fast, images, scores in executors:
        same_bits(fast(images[chosen]), scores[chosen])


@pytest.mark.parametrize("view", ["reversed", "strided", "fortran", "read-only"])
def test_images_may_lie_in_memory_as_they_like(
    executors: list[tuple[FastExecutor, Any, Any]], view: str
) -> None:
    fast, images, scores = executors[0]
    if view == "reversed":
        images, scores = images[::-1], scores[::-1]
    elif view == "strided":
        images = images.repeat(2, axis=3)[..., ::2]
    elif view == "fortran":
        images = np.asfortranarray(images)
    else:
        images = images.copy()
        images.flags.writeable = False
    same_bits(fast(images), np.ascontiguousarray(scores))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -5}, "batch_size is -5"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": -1}, "threads is -1"),
    ],
)
def test_batch_sizes_and_threads_below_1_are_refused(
    graph_file: Path, options: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        FastExecutor(graph_file, **options)


@pytest.mark.parametrize("asked", ["", "0", "2", "2,1", "many", "-1"])
def test_any_number_of_threads_in_the_environment_is_survived(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert FastExecutor(graph_file).num_classes == 10


# The executor checks itself


class Liar:
    """The reference, but for one bit of one score."""

    name = "lying"

    def __init__(self, path: Path, image: int, score: int, bit: int) -> None:
        self._honest = ReferenceExecutor(path)
        self._where = (image, score)
        self._bit = np.uint32(1 << bit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = self._honest(images)
        scores.view(np.uint32)[self._where] ^= self._bit
        return scores


@pytest.mark.parametrize("bit", [0, 12, 23, 31])
@pytest.mark.parametrize("where", [(0, 0), (66, 9), (33, 4)])
def test_one_wrong_bit_in_one_score_is_found(
    graph_file: Path, where: tuple[int, int], bit: int
) -> None:
    with pytest.raises(GraphError, match="1 of 67 sample images") as caught:
        check_same_answers(Liar(graph_file, *where, bit), ReferenceExecutor(graph_file))
    assert "the lying executor" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_truth_passes(graph_file: Path) -> None:
    check_same_answers(ReferenceExecutor(graph_file, batch_size=8), ReferenceExecutor(graph_file))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (1, 28, 28)])
def test_sample_images_are_the_same_each_time_and_reach_the_ends(
    shape: tuple[int, int, int],
) -> None:
    images = sample_images(shape)
    assert images.shape == (67, *shape)
    assert images.dtype == np.uint8
    assert len(images) % 32
    np.testing.assert_array_equal(images, sample_images(shape))
    assert not images[0].any()
    assert (images[1] == 255).all()


@pytest.mark.parametrize(
    ("rounding", "steps"),
    [("ROUND", ("Floor",)), ("ROUND", ("Ceil",)), ("FLOOR", ("Round",))],
)
def test_a_wrong_rounding_is_found_when_the_executor_is_made(
    exported: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    rounding: str,
    steps: tuple[str, ...],
) -> None:
    path = exported("average_pools")
    monkeypatch.setitem(lowering.ROUNDINGS, rounding, steps)
    with pytest.raises(GraphError, match="other scores than execute_onnx"):
        FastExecutor(path)
    assert FastExecutor(path, verify=False).num_classes == networks.CLASSES


def test_a_constant_one_unit_off_is_found_when_the_executor_is_made(
    exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported("plain")
    honest = lowering.lowered

    def spoiled(graph: Any) -> Any:
        from onnx import numpy_helper

        model = honest(graph)
        (weights,) = (t for t in model.graph.initializer if t.dims == [36, 5] or t.dims == [5, 36])
        values = numpy_helper.to_array(weights).copy()
        values[values != 0] = np.nextafter(values[values != 0], np.float32(np.inf))
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        return model

    monkeypatch.setattr("brevitas_divqat.executors.fast.lowered", spoiled)
    with pytest.raises(GraphError, match="--executor reference"):
        FastExecutor(path)


def test_an_integer_graph_is_refused(integer_file: Path) -> None:
    with pytest.raises(GraphError, match="integer graph: use --executor integer") as caught:
        FastExecutor(integer_file)
    assert str(integer_file) in str(caught.value)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [3, 32, 256])
def test_bits_depend_on_no_number_of_threads(
    wide_layer: Path, threads: int, batch_size: int
) -> None:
    """A wide matrix product is where onnxruntime's blocks follow the number of threads."""
    images = networks.images((1, 32, 32), 70)
    expected = ReferenceExecutor(wide_layer)(images)
    fast = FastExecutor(wide_layer, threads=threads, batch_size=batch_size)
    assert (fast(images).view(np.uint32) == expected.view(np.uint32)).all()
    small = ReferenceExecutor(wide_layer, batch_size=32)(images)
    assert (small.view(np.uint32) == expected.view(np.uint32)).all()


@pytest.fixture(scope="module")
def wide_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with seeded(0):
        model = nn.Sequential(networks.entry(), nn.Flatten(), networks.linear(1024, 100))
    path = tmp_path_factory.mktemp("wide") / "model.onnx"
    metadata = networks.metadata((1, 32, 32), 100)
    return export_qonnx(networks.settle(model, (1, 32, 32)), path, metadata)
