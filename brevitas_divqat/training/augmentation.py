# SPDX-License-Identifier: BSD-3-Clause
"""Random shifts and flips of whole batches of 8-bit images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_divqat.data import Augmentation

__all__ = ["augment"]

SHIFT = 1 / 8
"""The furthest shift, as a fraction of the image's side: 4 pixels of 32, 3 of 28, 1 of 8."""


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side over black, and mirror half of them.

    Args:
        images: (N, C, H, W) uint8.
        kind: ``"none"``, ``"shift"``, or ``"shift-flip"`` (left to right).
        generator: source of randomness, on the CPU.

    Returns:
        (N, C, H, W) uint8, new images; the same tensor for ``"none"``.
    """
    if kind == "none":
        return images
    n, _, height, width = images.shape
    far_y, far_x = max(1, int(height * SHIFT)), max(1, int(width * SHIFT))
    padded = F.pad(images, (far_x, far_x, far_y, far_y))
    top = torch.randint(0, 2 * far_y + 1, (n, 1), generator=generator)
    left = torch.randint(0, 2 * far_x + 1, (n, 1), generator=generator)
    columns = torch.arange(width).expand(n, -1)
    if kind == "shift-flip":
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows = (top + torch.arange(height))[:, :, None].to(images.device)
    columns = (left + columns)[:, None, :].to(images.device)
    picked = padded[torch.arange(n, device=images.device)[:, None, None], :, rows, columns]
    return picked.permute(0, 3, 1, 2)
