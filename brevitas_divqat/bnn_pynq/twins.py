# SPDX-License-Identifier: BSD-3-Clause
"""The full-precision twins of Brevitas' BNN-PYNQ networks.

A twin is what the quantized network becomes as its bit widths grow: the same layers under the same
names, weights and activations unrounded. What quantizers do beyond rounding stays: those of FC and
CNV clamp to [-1, 1], which is these networks' only non-linearity, and those of ResNet-18 are its
ReLUs.
"""

from __future__ import annotations

from configparser import ConfigParser

from brevitas.nn import QuantIdentity
from brevitas_examples.bnn_pynq.models import model_impl  # type: ignore[import-untyped]
from torch import Tensor, nn

__all__ = ["FloatResNet18", "float_twin"]

WIDTHS = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2


def float_twin(config: ConfigParser) -> nn.Module:
    """Build the full-precision twin of the network that an ``.ini`` file describes.

    Args:
        config: the file's content; the section QUANT is not looked at.
    """
    arch = config.get("MODEL", "ARCH")
    if arch == "RESNET18":
        return FloatResNet18(config.getint("MODEL", "NUM_CLASSES"))
    model: nn.Module = model_impl[arch](_WithoutBitWidths(config))
    for layers in (m for m in model.modules() if isinstance(m, nn.ModuleList)):
        for index, layer in enumerate(layers):
            if isinstance(layer, QuantIdentity):
                # Without a bit width Brevitas' own layer neither rounds nor clamps: without this,
                # the whole network would be linear.
                layers[index] = nn.Hardtanh()
    return model


class _WithoutBitWidths:
    """A network's description in which every bit width is None, full precision to Brevitas."""

    def __init__(self, config: ConfigParser) -> None:
        self._config = config

    def get(self, section: str, option: str) -> str:
        return self._config.get(section, option)

    def getint(self, section: str, option: str) -> int | None:
        return None if section == "QUANT" else self._config.getint(section, option)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """Two convolutions and a shortcut; both summands are rectified, as FINN wants them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs), nn.ReLU()
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        return (out + self.downsample(x)).relu()


class FloatResNet18(nn.Module):
    """ResNet-18 for 32x32 images, with the additional ReLUs of BNN-PYNQ's quantized one.

    The names of weights and normalisations are those of Brevitas' network.

    Args:
        num_classes: number of logits.

    Shape:
        (N, 3, 32, 32) images in [0, 1] to (N, num_classes) logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = _convolution(3, WIDTHS[0], 3)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            blocks = []
            for block in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_Block(inputs, width, stride))
                inputs = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.bn1(self.conv1(x)).relu()
        for stage in range(len(WIDTHS)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(x.mean(dim=(2, 3)))
