# SPDX-License-Identifier: BSD-3-Clause
"""Images of no class, made up while training: what a thief without the victim's data may ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss.seeker import LEAVE_OUT, Seeker
from brevitas_divqat.loss.watch import Ask

__all__ = ["MAKERS", "OutlierKind", "Outliers", "outliers_like"]

OutlierKind = Literal["textures", "patches", "shapes", "generated", "given"]
Draw = Callable[[int], Tensor]
"""Returns so many images of the defender's own, (count, C, H, W), as the network is given them."""

LEVELS = 255
"""Steps between the darkest and the brightest pixel: deployed graphs take 8-bit images."""
SPECTRA = 2.5
"""Largest exponent a of a texture, whose amplitude falls with the frequency f as 1/f^a: from white
noise to little more than a gradient. Natural images have about 1."""
CONTRASTS = (0.12, 0.47)
"""Range of a texture's standard deviation, as a share of the range of pixels; it is clipped."""
SHAPES = (1.5, 3.5)
"""Range of a for the fields that shapes are cut out of."""
BLACK = 0.6
"""Share of the shapes that lie before black."""
ROUNDED = 6
"""Decimals of a number of outliers before it is rounded down: 100 images times 0.29 is 29."""


class Outliers(nn.Module):
    """Makes the outliers of each batch of training images, see `outliers_like`.

    Args:
        kinds: one or more, or none for a module that is not called.
        share: how many to make per image, rounded down, but 1 or more.
        augment: varies the outliers as the images have been varied, see `DivQATLoss`; patches too,
            which come of varied images: the quarters of most have their borders inside, so that
            fewer patches than images would have a border at the edge.
        draw: draws those of the kind given.

    Attributes:
        seeker: of the kind generated, which is made for the first batch; None before, and where
            the kind is not asked for.
    """

    seeker: Seeker | None

    def __init__(
        self,
        kinds: Sequence[OutlierKind],
        share: float,
        augment: Callable[[Tensor], Tensor] | None = None,
        draw: Draw | None = None,
    ) -> None:
        super().__init__()
        self.kinds, self.share = tuple(kinds), share
        self.augment, self.draw = augment, draw
        self.register_module("seeker", None)

    def count(self, images: int) -> int:
        """Return how many outliers a batch of so many images gets."""
        return max(1, int(round(images * self.share, ROUNDED)))

    @torch.no_grad()
    def forward(self, images: Tensor, ask: Ask | None = None) -> Tensor:
        """Return the outliers of a batch.

        Args:
            images: (N, C, H, W), as the network is given them.
            ask: answers images in evaluation mode; needed for the kind generated.

        Raises:
            ConfigError: if the batch is not of floating-point images of 2x2 or more, there is
                nobody to ask, or what is drawn or augmented is something else than images of that
                shape and type.
        """
        large_enough = images.ndim == 4 and min(images.shape[2:]) >= 2 and len(images) > 0
        if not large_enough or not images.is_floating_point():
            raise ConfigError(
                f"outliers are asked for, but the inputs are {images.dtype} of shape "
                f"{tuple(images.shape)}: give one or more floating-point images (N, C, H, W) of "
                "2x2 or more, or choose preset F3, which makes none"
            )
        count = self.count(len(images))
        if "generated" not in self.kinds or ask is None:
            return self._augmented(outliers_like(images, self.kinds, count, draw=self.draw))
        if self.seeker is None:
            self.seeker = Seeker.like(images)
        seeker = self.seeker.to(images.device)  # a loaded state may be elsewhere
        seek = partial(seeker, ask=ask)
        return self._augmented(outliers_like(images, self.kinds, count, seek, self.draw))

    def _augmented(self, made: Tensor) -> Tensor:
        if self.augment is None:
            return made
        return _alike(self.augment(made), made, "augment")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Have a seeker exactly where the state has one, and the kind is asked for."""
        if "generated" in self.kinds:
            self.seeker = Seeker.of_state(state_dict, f"{prefix}seeker.")
        elif strict:  # torch knows the name of a part that is None, and would say nothing
            unexpected_keys += [key for key in state_dict if key.startswith(f"{prefix}seeker.")]
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


def outliers_like(
    images: Tensor,
    kinds: Sequence[OutlierKind],
    count: int,
    seek: Callable[[Tensor, int], Tensor] | None = None,
    draw: Draw | None = None,
) -> Tensor:
    """Make images of no class: half of them ``generated``, the others in equal parts of each kind.

    Without either all are of the other; fewer than kinds are of random ones. With fewer generated
    ones the network learns slower than the generator, which then ends beside the training images
    and costs accuracy.

    ``textures`` are random fields with a spectrum of 1/f^a, of random a, contrast, brightness and
    colour; ``patches`` are put together from quarters of four of the given images, each quarter in
    a random place; ``shapes`` are blobs and strokes of one level before black or another level, cut
    out of smooth fields; ``generated`` ones are what a `Seeker` has found, ``given`` ones are drawn
    from images that the defender owns.

    Random numbers are torch's own: seed them for the same outliers again.

    Args:
        images: (N, C, H, W) training images, as the network is given them, H and W of 2 or more.
        kinds: one or more.
        count: how many to make, 0 or more.
        seek: makes those of kind generated, in shares of the range of pixels.
        draw: draws those of kind given.

    Returns:
        (count, C, H, W) of the same type and device; where they are made, with pixels in the range
        of the images'.

    Raises:
        ConfigError: if there is nobody to seek those of kind generated or to draw those of kind
            given, or other images are drawn than asked for.
    """
    others = [kind for kind in kinds if kind != "generated"]
    made = images[:0]
    if len(others) < len(kinds):
        if seek is None:
            raise ConfigError(
                "outliers of kind generated are sought by asking the trained model, which is not "
                "known: call with_outliers(images, model), make the criterion with model=, or "
                f"{LEAVE_OUT}"
            )
        sought = (count + int(torch.randint(2, ()))) // 2 if others else count
        made = _in_range_of(images, seek(images, sought))
    counts = _parts(count - len(made), len(others), images.device)
    rest = [_of(kind, images, n, draw) for kind, n in zip(others, counts, strict=True) if n]
    return torch.cat([made, *rest])


def _of(kind: OutlierKind, images: Tensor, count: int, draw: Draw | None) -> Tensor:
    if kind != "given":
        return MAKERS[kind](images, count)
    if draw is None:
        raise ConfigError(
            "outliers of kind given are drawn from your own images, which are not there: make the "
            "criterion with outlier_images=, or leave given out of outliers"
        )
    drawn = draw(count)
    if isinstance(drawn, Tensor):
        drawn = drawn.to(images.device)
    return _alike(drawn, images[:1].expand(count, -1, -1, -1), "outlier_images")


def _alike(found: Tensor, expected: Tensor, name: str) -> Tensor:
    """Refuse what a caller's function returns in another shape, type or place than expected."""

    def described(images: Tensor) -> str:
        return f"{images.dtype} of shape {tuple(images.shape)} on {images.device}"

    what = described(found) if isinstance(found, Tensor) else f"a {type(found).__name__}"
    if what != described(expected):
        raise ConfigError(
            f"{name} returns {what}, expected {described(expected)}: give a function that keeps to "
            "the training images as the model is given them"
        )
    return found


def _parts(count: int, number: int, device: torch.device) -> list[int]:
    if count < number:  # or small batches would never meet the last kinds
        return [int(rank < count) for rank in torch.randperm(number, device=device)]
    return [count // number + (rank < count % number) for rank in range(number)]


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
    field = _field(images, count, (0, SPECTRA))
    contrast, brightness = (_uniform(images, count, *ends) for ends in (CONTRASTS, (0, 1)))
    return _in_range_of(images, contrast * field + brightness)


def _shapes(images: Tensor, count: int) -> Tensor:
    """Cut blobs, or strokes along level lines, out of a smooth field; most before black."""

    def uniform(low: float, high: float) -> Tensor:
        return _uniform(images, count, low, high)

    field = _field(images, count, SHAPES)
    strokes = uniform(0.1, 0.5) - (field - uniform(-1, 1)).abs()
    blobs = field - uniform(-0.5, 1.2)
    inside = torch.where(uniform(0, 1) < 0.5, strokes, blobs)
    cover = torch.sigmoid(inside * uniform(3, 20))
    ground = torch.where(uniform(0, 1) < BLACK, 0.0, uniform(0, 1))
    return _in_range_of(images, ground + (uniform(0, 1) - ground) * cover)


def _uniform(images: Tensor, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, device=images.device)


def _field(images: Tensor, count: int, exponents: tuple[float, float]) -> Tensor:
    """Make random fields (count, C, H, W) of mean 0 and standard deviation 1, grey to colourful."""
    _, channels, height, width = images.shape
    device = images.device
    noise = torch.randn(count, 1, height, width, device=device)
    own = torch.randn(count, channels, height, width, device=device)
    noise = noise + _uniform(images, count, 0, 1) * own
    frequency = torch.hypot(
        torch.fft.fftfreq(height, device=device)[:, None],
        torch.fft.rfftfreq(width, device=device)[None, :],
    ).clamp_min(1 / max(height, width))
    spectrum = torch.fft.rfft2(noise) * frequency.pow(-_uniform(images, count, *exponents))
    field = torch.fft.irfft2(spectrum, s=(height, width))
    field = field - field.mean(dim=(1, 2, 3), keepdim=True)
    return field / field.std(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(field.dtype).tiny)


def _in_range_of(images: Tensor, shares: Tensor) -> Tensor:
    """Turn shares of the range of pixels, clipped, into pixels of 256 levels."""
    shares = (shares.clamp(0, 1) * LEVELS).round() / LEVELS
    low = images.amin(dim=(0, 2, 3), keepdim=True)
    high = images.amax(dim=(0, 2, 3), keepdim=True)
    return (low + shares * (high - low)).to(images.dtype)


MAKERS: Mapping[OutlierKind, Callable[[Tensor, int], Tensor]] = {
    "textures": _textures,
    "patches": _patches,
    "shapes": _shapes,
}
"""One function of (images, count) per kind that needs no search."""
