# SPDX-License-Identifier: BSD-3-Clause
"""The residual networks for CIFAR-10, whose branches share one quantizer."""

from __future__ import annotations

from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models.layers import Layers, scaled

__all__ = ["ResNet"]

CHANNELS = (16, 32, 64)
"""Of each stage; the second and third halve the side of their maps."""
SMALLEST_SIDE = 8


class Block(nn.Module):
    """Two 3x3 convolutions whose result is added to what enters, or to a 1x1 convolution of it.

    It starts with the activation of the block before, so that what enters and what is added to it
    pass one quantizer, which has one name in the ``state_dict``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.entry = layers.relu(keep_scale=True)
        self.branch = nn.Sequential(
            layers.conv(inputs, outputs, 3, stride=stride, padding=1),
            nn.BatchNorm2d(outputs),
            layers.relu(),
            layers.conv(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                layers.conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs)
            )
            self.join = layers.relu(keep_scale=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) sums to the sums of the next block."""
        x = self.entry(x)
        if self.shortcut is None:
            return x + self.entry(self.branch(x))
        return self.join(self.shortcut(x)) + self.join(self.branch(x))


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of blocks, an average and a fully connected layer.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, Sec.
    4.2; ``blocks`` is their n, the depth 6n + 2: 1 for resnet8, which is as large as MLPerf Tiny's
    (Banbury et al., 2021, arXiv:2106.07597), and 3 for resnet20.

    Deviations: a ReLU on both branches before they are added, so that all are unsigned and FINN
    adds one data type, as BNN-PYNQ's ResNet-18 has it; projection shortcuts (their option B) with
    BatchNorm instead of option A's padding, for which MLPerf Tiny's has 1x1 convolutions alone; the
    average is truncated to 8 bits; 8-bit weights in the first and last layer unless asked
    otherwise; no biases.

    Args:
        image_shape: (channels, height, width) of the images; square, 8x8 pixels or more.
        num_classes: number of logits.
        layers: full-precision or quantized layers.
        width: factor on the numbers of channels (16, 32, 64).
        blocks: in each stage.

    Raises:
        ConfigError: if the images are too small or not square, or activations have 1 bit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        layers: Layers,
        width: float = 1.0,
        *,
        blocks: int,
    ) -> None:
        super().__init__()
        channels, height, across = image_shape
        if height != across or height < SMALLEST_SIDE:
            raise ConfigError(
                f"resnet{6 * blocks + 2} needs images of {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels or "
                f"more, as high as wide, got {height}x{across}"
            )
        counts = [scaled(count, width) for count in CHANNELS]
        inputs, side = counts[0], height
        self.stem = nn.Sequential(
            layers.input(),
            layers.conv(channels, inputs, 3, padding=1, edge=True),
            nn.BatchNorm2d(inputs),
        )
        modules: list[nn.Module] = []
        for stage, outputs in enumerate(counts):
            for position in range(blocks):
                stride = 2 if stage and not position else 1
                modules.append(Block(inputs, outputs, stride, layers))
                inputs, side = outputs, -(-side // stride)
        self.blocks = nn.Sequential(*modules)
        self.head = nn.Sequential(
            layers.relu(keep_scale=True), layers.average_pool(side), nn.Flatten()
        )
        self.classifier = layers.linear(inputs, num_classes, edge=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) pixels in [0, 1) to (N, num_classes) logits."""
        return self.classifier(self.head(self.blocks(self.stem(x))))
