# SPDX-License-Identifier: BSD-3-Clause
"""Images of no class, made up while training: what a thief without the victim's data may ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["MAKERS", "OutlierKind", "outliers_like"]

OutlierKind = Literal["textures", "patches"]

LEVELS = 255
"""Steps between the darkest and the brightest pixel: deployed graphs take 8-bit images."""
SPECTRA = 2.5
"""Largest exponent a of a texture, whose amplitude falls with the frequency f as 1/f^a: from white
noise to little more than a gradient. Natural images have about 1."""
CONTRASTS = (0.12, 0.47)
"""Range of a texture's standard deviation, as a share of the range of pixels; it is clipped."""


def outliers_like(images: Tensor, kinds: Sequence[OutlierKind], count: int) -> Tensor:
    """Make images of no class, in equal parts of each kind.

    ``textures`` are random fields with a spectrum of 1/f^a, of random a, contrast, brightness and
    colour; ``patches`` are put together from quarters of four of the given images, each quarter in
    a random place.

    Random numbers are torch's own, of the images' device: seed them for the same outliers again.

    Args:
        images: (N, C, H, W) training images, as the network is given them, H and W of 2 or more.
        kinds: one or more.
        count: how many to make, 0 or more.

    Returns:
        (count, C, H, W) of the same type and device, with pixels in the range of the images'.
    """
    counts = [len(part) for part in torch.arange(count).tensor_split(len(kinds))]
    made = [MAKERS[kind](images, n) for kind, n in zip(kinds, counts, strict=True) if n]
    return torch.cat([images[:0], *made])


def _patches(images: Tensor, count: int) -> Tensor:
    """Exchange quarters; with odd sides the last row or column is one image's own."""
    number, _, height, width = images.shape
    h, w = height // 2, width // 2
    corners = ((0, 0), (0, w), (h, 0), (h, w))
    quarters = torch.stack([images[:, :, y : y + h, x : x + w] for y, x in corners])
    made = images[torch.randint(number, (count,), device=images.device)]
    for y, x in corners:
        place = torch.randint(len(corners), (count,), device=images.device)
        chosen = torch.randint(number, (count,), device=images.device)
        made[:, :, y : y + h, x : x + w] = quarters[place, chosen]
    return made


def _textures(images: Tensor, count: int) -> Tensor:
    _, channels, height, width = images.shape
    device = images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, device=device)

    noise = torch.randn(count, 1, height, width, device=device)
    own = torch.randn(count, channels, height, width, device=device)
    noise = noise + uniform(0, 1) * own  # grey to colourful
    frequency = torch.hypot(
        torch.fft.fftfreq(height, device=device)[:, None],
        torch.fft.rfftfreq(width, device=device)[None, :],
    ).clamp_min(1 / max(height, width))
    spectrum = torch.fft.rfft2(noise) * frequency.pow(-uniform(0, SPECTRA))
    field = torch.fft.irfft2(spectrum, s=(height, width))
    field = field - field.mean(dim=(1, 2, 3), keepdim=True)
    field = field / field.std(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(field.dtype).tiny)
    field = (uniform(*CONTRASTS) * field + uniform(0, 1)).clamp(0, 1)
    field = (field * LEVELS).round() / LEVELS
    low = images.amin(dim=(0, 2, 3), keepdim=True)
    high = images.amax(dim=(0, 2, 3), keepdim=True)
    return (low + field * (high - low)).to(images.dtype)


MAKERS: Mapping[OutlierKind, Callable[[Tensor, int], Tensor]] = {
    "textures": _textures,
    "patches": _patches,
}
"""One function of (images, count) per kind."""
