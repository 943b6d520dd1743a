# SPDX-License-Identifier: BSD-3-Clause
"""Outliers that are drawn from a defender's own images."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brevitas_divqat.data import Pool, checksum
from brevitas_divqat.data.records import check_images
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.files import make_folder, write_json
from brevitas_divqat.loss import LossConfig
from brevitas_divqat.training.calibration import to_input

__all__ = ["check_identity", "check_outlier_images", "drawn_from", "keep_identity"]

IDENTITY_FILE = "outlier-images.json"


def check_outlier_images(path: Path | None, loss: LossConfig) -> None:
    """Check that there are images of one's own exactly where outliers are drawn from them.

    Args:
        path: of the images.
        loss: names the kinds of outliers; at alpha 0 none are drawn.

    Raises:
        ConfigError: if either is there without the other.
    """
    given = "given" in loss.kinds
    if given and path is None and loss.weight > 0:
        raise ConfigError(
            "outliers of kind given are asked for, and no images to draw them from: give "
            "--outlier-images, or leave given out of --outliers"
        )
    if path is not None and not given:
        raise ConfigError(
            f"outlier_images is {path}, but outliers is {list(loss.kinds)}: name given among "
            "--outliers, or leave --outlier-images out (null)"
        )


def drawn_from(images: NDArray[np.uint8]) -> Callable[[int], Tensor]:
    """Return what draws from images by torch's own random numbers, for `DivQATLoss`.

    For models that are given pixels as `divqat train` gives them, which are 1/256 of 8-bit levels.

    Args:
        images: (N, C, H, W) uint8, N of 1 or more, of no class.

    Returns:
        A function of a count: (count, C, H, W) float32 in [0, 255/256], drawn with replacement.

    Raises:
        DataError: if the images are of another type or shape, or there are none.
    """
    check_images(images, "outlier_images")
    return partial(_draw, images)


def _draw(images: NDArray[np.uint8], count: int) -> Tensor:
    chosen = torch.randint(len(images), (count,)).numpy()
    return to_input(torch.from_numpy(images[chosen]))


def check_identity(pool: Pool, folder: Path) -> None:
    """Check that the training in a folder, if there is one, draws from these images.

    Raises:
        ConfigError: if it began with others.
    """
    path = folder / IDENTITY_FILE
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: train anew in another --out") from error
    if before != _identity(pool):
        raise ConfigError(
            f"--outlier-images holds {_identity(pool)}, but the training in {folder} began with "
            f"{before}: give the same images to go on, or another --out"
        )


def keep_identity(pool: Pool, folder: Path) -> dict[str, object]:
    """Note in a training's folder which images it draws from.

    Returns:
        How many there are, and what tells them from others, for the record of the method.

    Raises:
        ConfigError: see `check_identity`.
    """
    check_identity(pool, folder)
    make_folder(folder)
    identity = _identity(pool)
    write_json(folder / IDENTITY_FILE, identity)
    return {"outlier_images": len(pool), "outlier_images_crc32": identity["crc32"]}


def _identity(pool: Pool) -> dict[str, object]:
    return {"outlier_images": len(pool), "crc32": checksum(pool.images)}
