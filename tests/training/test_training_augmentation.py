# SPDX-License-Identifier: BSD-3-Clause
"""Augmentation moves whole images by a little, over black, and mirrors half of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brevitas_divqat.training.augmentation import augment, augmentation_of

LAW = settings(deadline=None, max_examples=25, database=None)
KINDS = ["shift", "shift-flip"]
FURTHEST = {8: 1, 28: 3, 32: 4}


def random_images(n: int, channels: int, side: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=random)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white_pixel(n: int, side: int, row: int, column: int) -> Tensor:
    images = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    images[:, :, row, column] = 255
    return images


@pytest.mark.parametrize("kind", ["none", *KINDS])
@LAW
@given(n=st.integers(1, 5), channels=st.integers(1, 3), side=st.integers(4, 33))
def test_type_and_shape_stay(kind: str, n: int, channels: int, side: int) -> None:
    images = random_images(n, channels, side)
    found = augment(images, kind, source())
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)


def test_none_changes_nothing() -> None:
    images = random_images(4, 3, 8)
    assert torch.equal(augment(images, "none", source()), random_images(4, 3, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_the_given_images_stay_as_they_are(kind: str) -> None:
    images = random_images(4, 3, 8)
    augment(images, kind, source())
    assert torch.equal(images, random_images(4, 3, 8))


@pytest.mark.parametrize("side", FURTHEST)
def test_white_pixel_moves_to_every_place_within_the_bound(side: int) -> None:
    row, column, far = side // 2, side // 2 + 1, FURTHEST[side]
    found = augment(white_pixel(2000, side, row, column), "shift", source())
    places = found[:, 0].nonzero()
    assert len(places) == 2000
    moves = {(int(y) - row, int(x) - column) for _, y, x in places}
    bound = range(-far, far + 1)
    assert moves == {(y, x) for y in bound for x in bound}
    assert set(found.unique().tolist()) == {0, 255}


def test_channels_of_an_image_move_together() -> None:
    images = white_pixel(50, 8, 3, 4).expand(-1, 3, -1, -1)
    found = augment(images, "shift-flip", source())
    assert torch.equal(found[:, :1].expand(-1, 3, -1, -1), found)


def test_image_without_a_shift_comes_through_whole() -> None:
    images = random_images(1, 3, 8).expand(200, -1, -1, -1)
    found = augment(images, "shift", source())
    assert (found == images).flatten(1).all(dim=1).any()


def test_uncovered_border_is_black() -> None:
    found = augment(torch.full((200, 1, 8, 8), 255, dtype=torch.uint8), "shift", source())
    black = (found == 0).flatten(1).sum(dim=1)
    assert set(black.tolist()) == {0, 8, 15}  # no border, one of 8 pixels, two of 8 that cross


def test_about_half_are_mirrored() -> None:
    # Far off centre, so that a shift cannot be taken for a mirror image.
    found = augment(white_pixel(2000, 32, 16, 6), "shift-flip", source())
    columns = found[:, 0].nonzero()[:, 2]
    mirrored = columns > 16
    # 2000 fair coins: six standard deviations are 134.
    assert abs(int(mirrored.sum()) - 1000) < 134
    assert ((columns - torch.where(mirrored, 25, 6)).abs() <= 4).all()


def test_shift_alone_mirrors_nothing() -> None:
    columns = augment(white_pixel(500, 32, 16, 6), "shift", source())[:, 0].nonzero()[:, 2]
    assert (columns <= 10).all()


@pytest.mark.parametrize("kind", KINDS)
def test_generator_decides_everything(kind: str) -> None:
    images = random_images(16, 1, 8)
    before = torch.get_rng_state()
    first, second = (augment(images, kind, source(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(images, kind, source(8)))
    assert torch.equal(before, torch.get_rng_state())


def test_as_a_function_of_images_alone_it_takes_torchs_random_numbers() -> None:
    images = random_images(20, 3, 8).float() / 256
    assert augmentation_of("none") is None
    vary = augmentation_of("shift-flip")
    assert vary is not None
    torch.manual_seed(3)
    found = vary(images)
    assert found.dtype == images.dtype
    assert torch.equal(found, augment(images, "shift-flip", source(3)))
    assert not torch.equal(found, vary(images))
