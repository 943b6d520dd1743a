# SPDX-License-Identifier: BSD-3-Clause
"""TFC, SFC and LFC, the fully connected networks of BNN-PYNQ."""

from __future__ import annotations

from torch import Tensor, nn

from brevitas_divqat.models.layers import Layers, scaled

__all__ = ["FullyConnected"]

HIDDEN = 3


class FullyConnected(nn.Module):
    """Three hidden layers of equal size (Umuroglu et al., FPGA 2017).

    The first layer has the bits of the hidden ones: it holds most of the weights, and so it is in
    BNN-PYNQ. ``edge`` bits are the last layer's alone.

    Deviations: ReLU activations from 2 bits on where BNN-PYNQ has signed ones; pixels in [0, 1)
    where those are in [-1, 1); a scale instead of BNN-PYNQ's norm behind the last layer; no
    dropout; 8-bit weights in the last layer unless asked otherwise.

    Args:
        image_shape: (channels, height, width) of the images, of any size.
        num_classes: number of logits.
        layers: full-precision or quantized layers.
        width: factor on the number of features.
        features: of each hidden layer: 64 in tfc, 256 in sfc, 1024 in lfc.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        layers: Layers,
        width: float = 1.0,
        *,
        features: int,
    ) -> None:
        super().__init__()
        channels, height, across = image_shape
        inputs, outputs = channels * height * across, scaled(features, width)
        modules = [layers.input(), nn.Flatten()]
        for _ in range(HIDDEN):
            modules += [layers.linear(inputs, outputs), nn.BatchNorm1d(outputs), layers.relu()]
            inputs = outputs
        self.features = nn.Sequential(*modules)
        self.classifier = layers.linear(inputs, num_classes, edge=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) pixels in [0, 1) to (N, num_classes) logits."""
        return self.classifier(self.features(x))
