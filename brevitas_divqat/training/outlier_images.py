# SPDX-License-Identifier: BSD-3-Clause
"""Outliers that are drawn from a defender's own images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brevitas_divqat.training.calibration import to_input

__all__ = ["drawn_from"]


def drawn_from(images: NDArray[np.uint8]) -> Callable[[int], Tensor]:
    """Return what draws from images by torch's own random numbers, for `DivQATLoss`.

    Args:
        images: (N, C, H, W) uint8, of no class.

    Returns:
        A function of a count: (count, C, H, W) float32 in [0, 255/256], drawn with replacement.
    """

    def draw(count: int) -> Tensor:
        chosen = torch.randint(len(images), (count,)).numpy()
        return to_input(torch.from_numpy(images[chosen]))

    return draw
