# SPDX-License-Identifier: BSD-3-Clause
"""VGG-small, the network that the low-bit literature compares on CIFAR-10."""

from __future__ import annotations

from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models.layers import Layers, scaled

__all__ = ["VGGSmall"]

CHANNELS = (128, 128, 256, 256, 512, 512)
"""Output channels of each 3x3 convolution; a 2x2 max pool follows every second one."""
SMALLEST_SIDE = 8


class VGGSmall(nn.Module):
    """Six padded 3x3 convolutions and one fully connected layer.

    It is BinaryConnect's CIFAR-10 network (Courbariaux et al., NeurIPS 2015, arXiv:1511.00363,
    Sec. 3.3) without the two hidden fully connected layers, as LQ-Nets (Zhang et al., ECCV 2018,
    arXiv:1807.10029) and later work on few bits use it under the name VGG-Small.

    Deviations: the pool follows BatchNorm and activation where some put it before them, so that
    FINN can build it; 8-bit weights at the edges unless asked otherwise; no biases.

    Args:
        image_shape: (channels, height, width) of the images; 8x8 pixels or more.
        num_classes: number of logits.
        layers: full-precision or quantized layers.
        width: factor on the numbers of channels (128 to 512).

    Raises:
        ConfigError: if the images are too small, or 1-bit activations would have to be padded.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        layers: Layers,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        inputs, height, across = image_shape
        if min(height, across) < SMALLEST_SIDE:
            raise ConfigError(
                f"vgg_small needs images of {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels or more, got "
                f"{height}x{across}"
            )
        modules: list[nn.Module] = [layers.input()]
        for i, count in enumerate(CHANNELS):
            outputs = scaled(count, width)
            modules += [
                layers.conv(inputs, outputs, 3, padding=1, edge=i == 0),
                nn.BatchNorm2d(outputs),
                layers.relu(),
            ]
            if i % 2:
                modules.append(nn.MaxPool2d(2))
            inputs = outputs
        self.features = nn.Sequential(*modules, nn.Flatten())
        pixels = (height // 8) * (across // 8)
        self.classifier = layers.linear(inputs * pixels, num_classes, edge=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) pixels in [0, 1) to (N, num_classes) logits."""
        return self.classifier(self.features(x))
