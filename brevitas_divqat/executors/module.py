# SPDX-License-Identifier: BSD-3-Clause
"""A torch model behind the executors' protocol: the training model, or its full-precision twin."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.executors.base import check_batch_size, check_images

__all__ = ["ModuleExecutor"]


class ModuleExecutor:
    """Runs a copy of a torch model in evaluation mode.

    torch chooses its kernels by an image's place in the batch: the last bits of its scores depend
    on what it is asked together with. Deployed graphs have executors that exclude that.

    Args:
        model: from (N, C, H, W) float32 images to (N, K) scores; copied, and left as it is.
        image_shape: (channels, height, width).
        num_classes: K.
        pixel_divisor: the model's input is a pixel (0 … 255) divided by this.
        batch_size: images per pass.
        device: where to run it.

    Raises:
        ConfigError: if the batch size is below 1.
    """

    name = "module"

    def __init__(
        self,
        model: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        pixel_divisor: float = 256.0,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
    ) -> None:
        check_batch_size(batch_size)
        channels, height, across = image_shape
        self.image_shape = (channels, height, across)
        self.num_classes = num_classes
        self._model = copy.deepcopy(model).to(device).eval()
        self._pixel_divisor = pixel_divisor
        self._batch_size = batch_size
        self._device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, K) scores of (N, C, H, W) images."""
        check_images(images, self.image_shape)
        scores = np.empty((len(images), self.num_classes), np.float32)
        for start in range(0, len(images), self._batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self._batch_size]))
            output = self._model(batch.to(self._device).float() / self._pixel_divisor)
            scores[start : start + len(batch)] = output.float().cpu().numpy()
        return scores
