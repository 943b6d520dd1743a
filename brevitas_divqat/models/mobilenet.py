# SPDX-License-Identifier: BSD-3-Clause
"""A small MobileNet of depthwise separable convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models.layers import Layers, scaled

__all__ = ["MobileNetV1Tiny"]

STEM = 8
BLOCKS = (
    (16, 1),
    (32, 2),
    (32, 1),
    (64, 2),
    (64, 1),
    (128, 2),
    (128, 1),
    (128, 1),
    (128, 1),
    (128, 1),
    (128, 1),
    (256, 2),
    (256, 1),
)
"""Output channels of each separable convolution and the stride of its depthwise part."""
SMALLEST_SIDE = 16


class MobileNetV1Tiny(nn.Module):
    """A 3x3 convolution and thirteen depthwise separable ones, a quarter as wide as MobileNet.

    Howard et al., "MobileNets", 2017, arXiv:1704.04861, Table 1, at the width multiplier 0.25 of
    MLPerf Tiny's visual wake words (Banbury et al., 2021, arXiv:2106.07597).

    Deviations: the first convolution has stride 1, since these images have 28 or 32 pixels a side
    where those have 96; the average is truncated to 8 bits; 8-bit weights in the first and last
    layer unless asked otherwise; no biases.

    Args:
        image_shape: (channels, height, width) of the images; square, 16x16 pixels or more.
        num_classes: number of logits.
        layers: full-precision or quantized layers.
        width: further factor on the numbers of channels (8 to 256).

    Raises:
        ConfigError: if the images are too small or not square, or activations have 1 bit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        layers: Layers,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels, side, across = image_shape
        if side != across or side < SMALLEST_SIDE:
            raise ConfigError(
                f"mobilenet_v1_tiny needs images of {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels or "
                f"more, as high as wide, got {side}x{across}"
            )
        inputs = scaled(STEM, width)
        modules = [
            layers.input(),
            layers.conv(channels, inputs, 3, padding=1, edge=True),
            nn.BatchNorm2d(inputs),
            layers.relu(),
        ]
        for i, (count, stride) in enumerate(BLOCKS):
            outputs = scaled(count, width)
            modules += [
                layers.conv(inputs, inputs, 3, stride=stride, padding=1, groups=inputs),
                nn.BatchNorm2d(inputs),
                layers.relu(),
                layers.conv(inputs, outputs, 1),
                nn.BatchNorm2d(outputs),
                layers.relu(keep_scale=i == len(BLOCKS) - 1),
            ]
            inputs, side = outputs, -(-side // stride)
        self.features = nn.Sequential(*modules, layers.average_pool(side), nn.Flatten())
        self.classifier = layers.linear(inputs, num_classes, edge=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) pixels in [0, 1) to (N, num_classes) logits."""
        return self.classifier(self.features(x))
