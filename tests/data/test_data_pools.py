# SPDX-License-Identifier: BSD-3-Clause
"""The thief's images: array files, folders of pictures, photographs, and their conversion."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from brevitas_divqat.data import DataConfig, conform, load, load_pool
from brevitas_divqat.data.photographs import photographs
from brevitas_divqat.errors import DataError

GREY, RGB = (1, 8, 8), (3, 8, 8)


def pixels(*shape: int) -> np.ndarray:
    """Return random 8-bit pixels, the same for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def one_line(error: pytest.ExceptionInfo[DataError], *parts: str) -> None:
    """Assert that the message is one line that holds all ``parts``."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# conform

channels = st.sampled_from([1, 3])
sides = st.integers(1, 12)


@given(channels, sides, sides, channels, sides, sides)
def test_conform_gives_the_shape_and_keeps_constants(
    c: int, h: int, w: int, to_c: int, to_h: int, to_w: int
) -> None:
    images = np.full((2, c, h, w), 77, dtype=np.uint8)
    result = conform(images, (to_c, to_h, to_w))
    assert (result.shape, result.dtype) == ((2, to_c, to_h, to_w), np.uint8)
    assert np.all(result == 77)


def test_conform_to_the_same_shape_is_the_identity() -> None:
    images = pixels(4, 3, 9, 7)
    assert conform(images, (3, 9, 7)) is images


def test_conform_replicates_grey() -> None:
    images = pixels(4, 1, 8, 8)
    assert np.array_equal(conform(images, RGB), np.repeat(images, 3, axis=1))


def test_conform_weighs_colours_as_the_eye_does() -> None:
    images = pixels(4, 3, 8, 8)
    luma = np.einsum("nchw,c->nhw", images.astype(float), [0.299, 0.587, 0.114])
    # Pillow's weights have 16 fractional bits: next to a half, a level either way.
    assert np.abs(conform(images, GREY)[:, 0] - luma).max() <= 0.51


def test_conform_averages_when_it_reduces() -> None:
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    reduced = conform(checkerboard[None, None], GREY)
    assert np.abs(reduced.astype(int) - 127).max() <= 2  # without antialiasing: 0 or 255


def test_conform_does_not_mix_images() -> None:
    images = pixels(5, 1, 10, 10)
    alone = np.concatenate([conform(image[None], RGB) for image in images])
    assert np.array_equal(conform(images, RGB), alone)


@pytest.mark.parametrize(
    ("images", "image_shape", "part"),
    [
        pytest.param(pixels(2, 4, 8, 8), GREY, "(4, 8, 8)", id="four-channels"),
        pytest.param(pixels(2, 1, 8, 8), (2, 8, 8), "(2, 8, 8)", id="to-two-channels"),
        pytest.param(pixels(2, 1, 8, 8), (1, 0, 8), "(1, 0, 8)", id="to-no-height"),
        pytest.param(pixels(2, 8, 8), GREY, "(N, C, H, W)", id="three-dimensions"),
        pytest.param(pixels(2, 1, 8, 8) / 255, GREY, "uint8", id="float"),
    ],
)
def test_conform_refuses(images: Any, image_shape: tuple[int, int, int], part: str) -> None:
    with pytest.raises(DataError) as error:
        conform(images, image_shape)
    one_line(error, part, "expected")


# Array files


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(pixels(5, 8, 8), lambda a: a[:, None], id="NHW"),
        pytest.param(pixels(5, 8, 8, 1), lambda a: a.transpose(0, 3, 1, 2), id="NHWC-grey"),
        pytest.param(pixels(5, 1, 8, 8), lambda a: a, id="NCHW-grey"),
    ],
)
def test_layouts(
    tmp_path: Path, array: np.ndarray, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    np.save(tmp_path / "own.npy", array)
    pool = load_pool(tmp_path / "own.npy", GREY)
    assert pool.name == "own.npy"
    assert np.array_equal(pool.images, expected(array))


@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [((5, 8, 8, 3), True), ((5, 3, 8, 8), False), ((5, 3, 8, 3), True), ((5, 1, 8, 3), True)],
    ids=str,
)
def test_last_axis_decides_first(
    tmp_path: Path, shape: tuple[int, ...], channels_last: bool
) -> None:
    array = pixels(*shape)
    np.save(tmp_path / "own.npy", array)
    images = array.transpose(0, 3, 1, 2) if channels_last else array
    expected = conform(images, RGB)
    assert np.array_equal(load_pool(tmp_path / "own.npy", RGB).images, expected)


@pytest.mark.parametrize(
    "arrays",
    [{"anything": pixels(5, 8, 8)}, {"labels": np.zeros(5), "images": pixels(5, 8, 8)}],
    ids=["one-array", "named-images"],
)
def test_npz(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(tmp_path / "own.npz", **arrays)
    assert np.array_equal(load_pool(tmp_path / "own.npz", GREY).images[:, 0], pixels(5, 8, 8))


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        pytest.param("a.npy", npy(pixels(5, 8, 8) / 255), ("float64", "uint8"), id="float"),
        pytest.param("a.npy", npy(np.zeros((5, 8, 8), bool)), ("bool", "uint8"), id="bool"),
        pytest.param("a.npy", npy(pixels(8, 8)), ("2 dimensions", "(N, H, W)"), id="matrix"),
        pytest.param("a.npy", npy(pixels(1, 5, 1, 8, 8)), ("5 dimensions",), id="five-dimensions"),
        pytest.param("a.npy", npy(np.uint8(3)), ("0 dimensions",), id="scalar"),
        pytest.param("a.npy", npy(pixels(5, 8, 8, 4)), ("(5, 8, 8, 4)", "RGB"), id="rgba"),
        pytest.param("a.npy", npy(pixels(0, 8, 8)), ("empty", "at least one"), id="empty"),
        pytest.param("a.npy", npy([{"a": 1}]), ("numpy.save", "without pickle"), id="pickled"),
        pytest.param("a.npy", npy(pixels(5, 8, 8))[:-9], ("numpy.save",), id="truncated"),
        pytest.param("a.npy", npy(pixels(5, 8, 8))[:20], ("numpy.save",), id="half-header"),
        pytest.param("a.npy", b"", ("numpy.save",), id="no-bytes"),
        pytest.param("a.npy", b"hello, world", ("numpy.save",), id="text"),
        pytest.param("a.npz", npz(a=pixels(5, 8, 8))[:-9], ("numpy.save",), id="truncated-npz"),
        pytest.param("a.npz", npz(a=[{"a": 1}]), ("without pickle",), id="pickled-npz"),
        pytest.param("a.npz", npz(), ("(none)", "'images'"), id="npz-without-arrays"),
        pytest.param("a.npz", npz(x=[1], y=[2]), ("x, y", "images=..."), id="npz-of-two"),
        pytest.param("a.csv", b"1,2,3", ("'.csv'", ".npy", "folder"), id="other-type"),
    ],
)
def test_bad_array_file(tmp_path: Path, name: str, content: bytes, parts: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        load_pool(tmp_path / name, GREY)
    one_line(error, str(tmp_path / name), *parts)


def test_missing_pool(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_pool(tmp_path / "nowhere", GREY)
    one_line(error, str(tmp_path / "nowhere"), "--pool")


# Folders


def test_folder_is_read_in_order_with_mixed_sizes_and_modes(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    Image.new("RGB", (20, 10), (30, 30, 30)).save(tmp_path / "c.PNG")
    Image.new("L", (8, 8), 10).save(tmp_path / "a.bmp")
    Image.new("RGBA", (5, 9), (20, 20, 20, 0)).save(tmp_path / "b" / "x.webp", lossless=True)
    Image.new("P", (8, 8)).save(tmp_path / "d.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "e.png")
    Image.new("LA", (8, 8), (50, 9)).save(tmp_path / "f.png")
    (tmp_path / "notes.txt").write_text("not an image")
    for shape in (GREY, RGB):
        pool = load_pool(tmp_path, shape)
        assert pool.name == tmp_path.name
        assert pool.images.shape == (6, *shape)
        assert pool.images[[0, 2, 4, 5], 0, 0, 0].tolist() == [10, 30, 255, 50]


def test_folder_keeps_pixels(tmp_path: Path) -> None:
    images = pixels(3, 3, 8, 8)
    for index, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    assert np.array_equal(load_pool(tmp_path, RGB).images, images)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(64, 64)).save(buffer, "png")
    return buffer.getvalue()


def deep_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        pytest.param(b"", "remove", id="no-bytes"),
        pytest.param(b"hello, world", "remove", id="text"),
        pytest.param(png()[:-900], "remove", id="truncated"),
        pytest.param(png()[:40], "remove", id="half-header"),
        pytest.param(png()[:60] + b"\0" * 9 + png()[69:], "remove", id="damaged"),
        pytest.param(deep_png(), "8 bits", id="16-bits"),
    ],
)
def test_bad_picture_is_named(tmp_path: Path, content: bytes, remedy: str) -> None:
    Image.new("L", (8, 8), 10).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(DataError) as error:
        load_pool(tmp_path, GREY)
    one_line(error, str(tmp_path / "b.png"), remedy)


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DataError) as error:
        load_pool(tmp_path, GREY)
    one_line(error, str(tmp_path), ".png", "--pool")


# Photographs


@pytest.mark.parametrize("image_shape", [GREY, (3, 16, 12)], ids=str)
def test_photographs(image_shape: tuple[int, int, int]) -> None:
    images = photographs(image_shape).images
    assert images.shape == (4_000, *image_shape)
    flat = images.reshape(4_000, -1)
    assert np.all(flat.min(axis=1) == 0)
    assert np.all(flat.max(axis=1) == 255)
    assert len(np.unique(flat, axis=0)) > 3_900


# The pool of a data set


def test_pool_replaces_the_foreign_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", pixels(7, 20, 20, 3))
    dataset = load(DataConfig(pool=tmp_path / "own.npy", pool_images=5))
    assert dataset.pools["ood"].name == "own.npy"
    assert np.array_equal(
        dataset.pools["ood"].images, conform(pixels(7, 20, 20, 3)[:5].transpose(0, 3, 1, 2), GREY)
    )


def test_pool_images_takes_the_first() -> None:
    everything = load(DataConfig()).pools["ood"].images
    assert np.array_equal(load(DataConfig(pool_images=9)).pools["ood"].images, everything[:9])


@pytest.mark.data
def test_real_pool(data_root: Path) -> None:
    pool = load_pool(data_root / "cifar100-pool.npy", (3, 32, 32))
    original = np.load(data_root / "cifar100-pool.npy")
    assert np.array_equal(pool.images.transpose(0, 2, 3, 1), original)
