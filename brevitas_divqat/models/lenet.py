# SPDX-License-Identifier: BSD-3-Clause
"""LeNet-5 with BatchNorm, for images from 8x8 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models.layers import Layers, scaled

__all__ = ["LeNet5"]

SMALLEST_SIDE = 8
UNPADDED_FROM = 20
"""From this image side the second convolution is unpadded, as in LeNet-5; smaller images would
leave nothing after it."""


class LeNet5(nn.Module):
    """Two 5x5 convolutions and three fully connected layers (LeCun et al., 1998, Fig. 2).

    Deviations: BatchNorm and ReLU after every layer but the last, max pooling after the activation,
    full connection of the second convolution, no biases.

    Args:
        image_shape: (channels, height, width) of the images; 8x8 pixels or more.
        num_classes: number of logits.
        layers: full-precision or quantized layers.
        width: factor on the numbers of channels and features (6, 16, 120, 84).

    Raises:
        ConfigError: if the images are too small.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        layers: Layers,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels, height, across = image_shape
        if min(height, across) < SMALLEST_SIDE:
            raise ConfigError(
                f"lenet5 needs images of {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels or more, got "
                f"{height}x{across}"
            )
        c1, c2, f1, f2 = (scaled(n, width) for n in (6, 16, 120, 84))
        padding = 0 if min(height, across) >= UNPADDED_FROM else 2
        h, w = ((side // 2 - 4 + 2 * padding) // 2 for side in (height, across))
        self.features = nn.Sequential(
            layers.input(),
            layers.conv(channels, c1, 5, padding=2, edge=True),
            nn.BatchNorm2d(c1),
            layers.relu(),
            nn.MaxPool2d(2),
            layers.conv(c1, c2, 5, padding=padding),
            nn.BatchNorm2d(c2),
            layers.relu(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            layers.linear(c2 * h * w, f1),
            nn.BatchNorm1d(f1),
            layers.relu(),
            layers.linear(f1, f2),
            nn.BatchNorm1d(f2),
            layers.relu(),
            layers.linear(f2, num_classes, edge=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) pixels in [0, 1) to (N, num_classes) logits."""
        return self.classifier(self.features(x))
