# SPDX-License-Identifier: BSD-3-Clause
"""Foreign images that need no download: patches of the two photographs in scikit-learn."""

from __future__ import annotations

import numpy as np

from brevitas_divqat.data.catalogue import PHOTOGRAPHS
from brevitas_divqat.data.images import from_picture
from brevitas_divqat.data.records import Images, ImageShape, Pool

PATCHES = 4_000
"""How many patches there are."""
PATCH_SEED = 2025
"""Seed of the positions, so that every run and every machine cuts the same patches."""
_SIDES = (32, 64, 128, 256)  # pixels of photographs that measure 427 x 640
_LEAST_CONTRAST = 32  # grey levels; stretching less would show little but compression noise


def photographs(image_shape: ImageShape) -> Pool:
    """Cut square patches at random places and scales and stretch each to full contrast.

    Args:
        image_shape: (C, H, W) of the patches, C = 1 or 3.

    Returns:
        The pool ``photographs`` with uint8 images (4000, *image_shape), each using 0 and 255.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    rng = np.random.default_rng(PATCH_SEED)
    patches = np.empty((PATCHES, *image_shape), dtype=np.uint8)
    count = 0
    while count < PATCHES:
        picture = pictures[rng.integers(len(pictures))]
        side = int(rng.choice(_SIDES))
        left = int(rng.integers(picture.width - side + 1))
        top = int(rng.integers(picture.height - side + 1))
        patch = from_picture(picture.crop((left, top, left + side, top + side)), image_shape)
        # Within a channel: a patch of one plain colour has contrast between its channels only.
        if np.ptp(patch, axis=(1, 2)).max() < _LEAST_CONTRAST:
            continue  # sky or a blurred background: draw another
        patches[count] = _stretch(patch)
        count += 1
    return Pool(PHOTOGRAPHS, patches)


def _stretch(patch: Images) -> Images:
    """Map the darkest value to 0 and the brightest to 255, all channels alike to keep the hue."""
    low, high = int(patch.min()), int(patch.max())
    stretched = np.rint((patch.astype(np.float64) - low) * (255 / (high - low)))
    return stretched.astype(np.uint8)
