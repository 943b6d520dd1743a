# SPDX-License-Identifier: BSD-3-Clause
"""The first values of a quantized network's activation scales."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brevitas_divqat.inspection import collecting
from brevitas_divqat.quant import INPUT_SCALE

__all__ = ["calibrate", "to_input", "uncalibrated"]

CALIBRATION_BATCH = 256


def to_input(images: Tensor) -> Tensor:
    """Turn 8-bit pixels into the networks' input: float32 in [0, 255/256], exact."""
    return images.float() * INPUT_SCALE


@torch.no_grad()
def calibrate(model: nn.Module, images: NDArray[np.uint8]) -> None:
    """Set the activation scales of a quantized network, in place.

    The scales start from statistics of the full-precision activations, averaged over the batches;
    training learns them from there. The model's training mode stays as it is.

    Args:
        model: holds full-precision weights.
        images: (N, C, H, W) uint8, of the training images.
    """
    from brevitas.graph.calibrate import calibration_mode

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with calibration_mode(model):
        for start in range(0, len(images), CALIBRATION_BATCH):
            model(to_input(torch.from_numpy(images[start : start + CALIBRATION_BATCH])))
    for module, training in modes:
        module.training = training


def uncalibrated(model: nn.Module) -> list[str]:
    """Name the activation quantizers whose scales are no parameters yet.

    Until then Brevitas collects statistics of the training batches, 300 of them by default.
    """
    return [name for name, _ in collecting(model)]
