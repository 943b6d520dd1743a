# SPDX-License-Identifier: BSD-3-Clause
"""Bring 8-bit images to another size and number of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brevitas_divqat.data.records import Images, ImageShape, check_images
from brevitas_divqat.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = {1: "L", 3: "RGB"}


def conform(images: Images, image_shape: ImageShape) -> Images:
    """Convert images to a shape: grey from or to RGB, then a bilinear, antialiased resize.

    RGB becomes grey by the luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B; grey becomes RGB by
    replication. The aspect ratio is not kept. Pillow computes in integers, so that the result is
    the same on every machine.

    Args:
        images: uint8 (N, C, H, W), C = 1 or 3.
        image_shape: (C, H, W) of the result, C = 1 or 3.

    Returns:
        uint8 (N, *image_shape); ``images`` itself if it has that shape already.

    Raises:
        DataError: If the images or the shape are not as described.

    Example:
        >>> import numpy as np
        >>> conform(np.full((2, 1, 28, 28), 7, dtype=np.uint8), (3, 32, 32)).shape
        (2, 3, 32, 32)
    """
    check_images(images, "images")
    channels, height, width = image_shape
    if images.shape[1] not in _MODES or channels not in _MODES or min(height, width) < 1:
        raise DataError(
            f"cannot convert images of {images.shape[1:]} to {tuple(image_shape)}; expected "
            "(C, H, W) with 1 (grey) or 3 (RGB) channels on both sides"
        )
    if images.shape[1:] == tuple(image_shape):
        return images

    from PIL import Image

    result = np.empty((len(images), *image_shape), dtype=np.uint8)
    for index, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        result[index] = from_picture(Image.fromarray(np.ascontiguousarray(pixels)), image_shape)
    return result


def from_picture(picture: Image, image_shape: ImageShape) -> Images:
    """Return one Pillow image of mode ``L`` or ``RGB`` as uint8 of ``image_shape``."""
    from PIL.Image import Resampling

    channels, height, width = image_shape
    if channels == 1:
        picture = picture.convert("L")
    pixels = np.asarray(
        picture.resize((width, height), Resampling.BILINEAR).convert(_MODES[channels])
    )
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
