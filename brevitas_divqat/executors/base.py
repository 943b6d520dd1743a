# SPDX-License-Identifier: BSD-3-Clause
"""What every executor of a deployed graph offers."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import DataError

__all__ = ["Executor", "check_images"]


class Executor(Protocol):
    """Maps 8-bit images to scores. An image's scores do not depend on the rest of its batch.

    Attributes:
        name: kind of executor, recorded with every result.
        image_shape: (channels, height, width).
        num_classes: number of scores.
    """

    @property
    def name(self) -> str: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def num_classes(self) -> int: ...

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores of ``images``.

        Args:
            images: (N, C, H, W) uint8, any N.

        Returns:
            (N, K) float32 pre-softmax scores.

        Raises:
            DataError: if the images have another type or shape.
        """


def check_images(images: NDArray[Any], image_shape: tuple[int, int, int]) -> None:
    """Raise DataError unless ``images`` are (N, *image_shape) uint8."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"images are {got}: expected a numpy array of 8-bit pixels (uint8)")
    if images.ndim != 4 or images.shape[1:] != image_shape:
        raise DataError(f"images have shape {images.shape}: expected (N, *{image_shape})")
