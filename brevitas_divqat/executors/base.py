# SPDX-License-Identifier: BSD-3-Clause
"""What every executor of a deployed graph offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError, DataError

__all__ = ["DEFAULT_BATCH", "Executor", "check_batch_size", "check_images", "filled_batches"]


DEFAULT_BATCH = 32
"""Images per pass whose feature maps stay in a processor's caches."""


class Executor(Protocol):
    """Maps 8-bit images to scores.

    Where it runs a deployed graph, an image's scores do not depend on the rest of its batch.

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


def check_batch_size(batch_size: int) -> None:
    """Raise ConfigError unless ``batch_size`` is 1 or more."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: it must be 1 or more")


def filled_batches(
    images: NDArray[np.uint8], batch_size: int
) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Cut images into batches of one size, the last one filled up with black images.

    An image then meets the same kernels whatever it is asked together with, and so gets the same
    scores to the bit.

    Yields:
        Number of the batch's first image, how many of its images count, (batch_size, C, H, W).
    """
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        count = len(batch)
        if count < batch_size:
            filled = np.zeros((batch_size, *images.shape[1:]), np.uint8)
            filled[:count] = batch
            batch = filled
        yield start, count, batch
