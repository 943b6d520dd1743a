# SPDX-License-Identifier: BSD-3-Clause
"""CNV, the convolutional network of BNN-PYNQ, at any width."""

from __future__ import annotations

from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models.layers import Layers, scaled

__all__ = ["CNV"]

CONVOLUTIONS = ((64, False), (64, True), (128, False), (128, True), (256, False), (256, False))
"""Output channels of each 3x3 convolution, and whether a 2x2 max pool follows."""
FEATURES = (512, 512)
FIRST_PADDING = {32: 0, 28: 2}
"""Image side to the padding of the first convolution that leaves 30x30 pixels after it."""


class CNV(nn.Module):
    """Six unpadded 3x3 convolutions and three fully connected layers (Umuroglu et al., FPGA 2017).

    Deviations: ReLU activations where BNN-PYNQ has signed ones, 8-bit weights at the edges unless
    asked otherwise, and images of 28x28 pixels, whose first convolution is padded.

    Args:
        image_shape: (channels, height, width) of the images; 32x32 or 28x28 pixels.
        num_classes: number of logits.
        layers: full-precision or quantized layers.
        width: factor on the numbers of channels and features (64 to 512).

    Raises:
        ConfigError: if the images are of another size.
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
        if height != across or height not in FIRST_PADDING:
            raise ConfigError(f"cnv needs images of 32x32 or 28x28 pixels, got {height}x{across}")
        modules: list[nn.Module] = [layers.input()]
        inputs = channels
        for i, (count, pool) in enumerate(CONVOLUTIONS):
            outputs = scaled(count, width)
            padding = FIRST_PADDING[height] if i == 0 else 0
            modules += [
                layers.conv(inputs, outputs, 3, padding=padding, edge=i == 0),
                nn.BatchNorm2d(outputs),
                layers.relu(),
            ]
            if pool:
                modules.append(nn.MaxPool2d(2))
            inputs = outputs
        self.features = nn.Sequential(*modules, nn.Flatten())
        modules = []
        for count in FEATURES:
            outputs = scaled(count, width)
            modules += [layers.linear(inputs, outputs), nn.BatchNorm1d(outputs), layers.relu()]
            inputs = outputs
        self.classifier = nn.Sequential(*modules, layers.linear(inputs, num_classes, edge=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) pixels in [0, 1) to (N, num_classes) logits."""
        return self.classifier(self.features(x))
