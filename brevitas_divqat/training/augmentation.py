# SPDX-License-Identifier: BSD-3-Clause
"""Random shifts and flips of whole batches of 8-bit images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_divqat.data import Augmentation
from brevitas_divqat.errors import check_choice

__all__ = ["augment", "augmentation_of", "shifted_copies"]

SHIFT = 1 / 8
"""The furthest shift, as a fraction of the image's side: 4 pixels of 32, 3 of 28, 1 of 8."""


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator | None = None) -> Tensor:
    """Shift each image by up to an eighth of its side over black, and mirror half of them.

    Args:
        images: (N, C, H, W) of any type in which black is 0.
        kind: ``"none"``, ``"shift"``, or ``"shift-flip"`` (left to right).
        generator: source of randomness, on the CPU; torch's own by default.

    Returns:
        (N, C, H, W) of the same type, new images; the same tensor for ``"none"``.
    """
    if kind == "none":
        return images
    n = len(images)
    far_y, far_x = _furthest(images)
    top = torch.randint(0, 2 * far_y + 1, (n,), generator=generator)
    left = torch.randint(0, 2 * far_x + 1, (n,), generator=generator)
    mirrored = torch.zeros(n, dtype=torch.bool)
    if kind == "shift-flip":
        mirrored = torch.rand(n, generator=generator) < 0.5
    return _crop(images, top, left, mirrored)


def augmentation_of(kind: Augmentation) -> Callable[[Tensor], Tensor] | None:
    """Return what varies a batch as `augment` does, by torch's own random numbers.

    For `DivQATLoss`, whose outliers are to vary as the training images do.

    Args:
        kind: of variation; ``"shift"`` and ``"shift-flip"`` let in black, which must be 0.

    Returns:
        A function of (N, C, H, W) images of any type; None for ``"none"``.

    Raises:
        ConfigError: if there is no such kind.
    """
    check_choice("augmentation", kind, Augmentation)
    return None if kind == "none" else partial(augment, kind=kind)


def shifted_copies(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side, and never by nothing.

    Args:
        images: (N, C, H, W) uint8.
        generator: source of randomness, on the CPU.

    Returns:
        (N, C, H, W) uint8, new images.
    """
    n = len(images)
    far_y, far_x = _furthest(images)
    across = 2 * far_x + 1
    places = (2 * far_y + 1) * across  # the one in the middle is no shift
    place = torch.randint(0, places - 1, (n,), generator=generator)
    place += place >= places // 2
    return _crop(images, place // across, place % across, torch.zeros(n, dtype=torch.bool))


def _furthest(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[2:]
    return max(1, int(height * SHIFT)), max(1, int(width * SHIFT))


def _crop(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Cut each padded image at its own (N,) top and left; mirror the chosen ones."""
    n, _, height, width = images.shape
    far_y, far_x = _furthest(images)
    padded = F.pad(images, (far_x, far_x, far_y, far_y))
    columns = torch.arange(width).expand(n, -1)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows = (top[:, None] + torch.arange(height))[:, :, None].to(images.device)
    columns = (left[:, None] + columns)[:, None, :].to(images.device)
    picked = padded[torch.arange(n, device=images.device)[:, None, None], :, rows, columns]
    return picked.permute(0, 3, 1, 2)
