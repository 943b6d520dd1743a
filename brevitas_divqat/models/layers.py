# SPDX-License-Identifier: BSD-3-Clause
"""Layers in two precisions, so that one definition gives a network and its full-precision twin.

What a network of these layers obeys, so that FINN can build it: an 8-bit input of scale 1/256,
signed narrow weights, unsigned activations after BatchNorm and ReLU, no bias, zero padding of
unsigned tensors only, a weight quantizer of its own in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn

from brevitas_divqat.errors import ConfigError, check_choice

__all__ = [
    "MAX_BITS",
    "MIN_BITS",
    "FloatLayers",
    "Layers",
    "Precision",
    "QuantLayers",
    "WeightScale",
]

MIN_BITS, MAX_BITS = 2, 8
WeightScale = Literal["channel", "tensor"]


@dataclass(frozen=True)
class Precision:
    """Bit widths of a quantized network.

    Attributes:
        weight: bits of the weights, 2 to 8.
        activation: bits of the activations, 2 to 8.
        edge: bits of the first and last layers' weights, 2 to 8.
        weight_scale: one weight scale per output ``"channel"`` or per ``"tensor"``; the last layer
            has one per tensor in any case.

    Raises:
        ConfigError: if a bit width or the granularity is out of range.
    """

    weight: int = 4
    activation: int = 4
    edge: int = 8
    weight_scale: WeightScale = "channel"

    def __post_init__(self) -> None:
        for name in ("weight", "activation", "edge"):
            if not MIN_BITS <= getattr(self, name) <= MAX_BITS:
                raise ConfigError(
                    f"{name} bits are {getattr(self, name)}: choose {MIN_BITS} to {MAX_BITS} "
                    "(FINN has no RTL for 1-bit weights)"
                )
        check_choice("weight_scale", self.weight_scale, WeightScale)


class Layers(Protocol):
    """The layers that a network is built from."""

    def input(self) -> nn.Module:
        """Return what the pixels pass first."""

    def conv(
        self, inputs: int, outputs: int, kernel: int, *, padding: int = 0, edge: bool = False
    ) -> nn.Module:
        """Return a convolution without bias; ``edge`` marks the network's first layer."""

    def linear(self, inputs: int, outputs: int, *, edge: bool = False) -> nn.Module:
        """Return a fully connected layer without bias; ``edge`` marks the last layer."""

    def relu(self) -> nn.Module:
        """Return the activation."""


class FloatLayers:
    """Full precision."""

    def input(self) -> nn.Module:
        """Return a layer that does nothing, so that submodules have equal names in both twins."""
        return nn.Identity()

    def conv(
        self, inputs: int, outputs: int, kernel: int, *, padding: int = 0, edge: bool = False
    ) -> nn.Module:
        """Return ``nn.Conv2d`` without bias."""
        return nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False)

    def linear(self, inputs: int, outputs: int, *, edge: bool = False) -> nn.Module:
        """Return ``nn.Linear`` without bias."""
        return nn.Linear(inputs, outputs, bias=False)

    def relu(self) -> nn.Module:
        """Return ``nn.ReLU``."""
        return nn.ReLU()


class QuantLayers:
    """Brevitas layers with the quantizers of ``brevitas_divqat.quant``.

    Args:
        precision: bit widths and granularity.
    """

    def __init__(self, precision: Precision) -> None:
        # Brevitas is imported with the first quantized network, not with the package.
        from brevitas_divqat import quant

        self._precision = precision
        self._tensor_quant = quant.Int8WeightPerTensorFloat
        self._weight_quant = {
            "channel": quant.Int8WeightPerChannelFloat,
            "tensor": quant.Int8WeightPerTensorFloat,
        }[precision.weight_scale]
        self._act_quant = quant.Uint8ActPerTensorFloat
        self._input_quant = quant.Uint8InputPerTensorConst

    def _weight_bits(self, edge: bool) -> int:
        return self._precision.edge if edge else self._precision.weight

    def input(self) -> nn.Module:
        """Return the 8-bit input quantizer of scale 1/256."""
        from brevitas.nn import QuantIdentity

        return QuantIdentity(act_quant=self._input_quant)

    def conv(
        self, inputs: int, outputs: int, kernel: int, *, padding: int = 0, edge: bool = False
    ) -> nn.Module:
        """Return ``QuantConv2d`` without bias."""
        from brevitas.nn import QuantConv2d

        return QuantConv2d(
            inputs,
            outputs,
            kernel,
            padding=padding,
            bias=False,
            weight_quant=self._weight_quant,
            weight_bit_width=self._weight_bits(edge),
        )

    def linear(self, inputs: int, outputs: int, *, edge: bool = False) -> nn.Module:
        """Return ``QuantLinear`` without bias.

        The last layer has one scale whatever the others have: the accelerator then ranks the
        classes by comparing integers, and leaves one scale to the host.
        """
        from brevitas.nn import QuantLinear

        return QuantLinear(
            inputs,
            outputs,
            bias=False,
            weight_quant=self._tensor_quant if edge else self._weight_quant,
            weight_bit_width=self._weight_bits(edge),
        )

    def relu(self) -> nn.Module:
        """Return ``QuantReLU``."""
        from brevitas.nn import QuantReLU

        return QuantReLU(act_quant=self._act_quant, bit_width=self._precision.activation)
