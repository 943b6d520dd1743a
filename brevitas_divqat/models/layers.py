# SPDX-License-Identifier: BSD-3-Clause
"""Layers in two precisions, so that one definition gives a network and its full-precision twin.

What a network of these layers obeys, so that FINN can build it: an 8-bit input of scale 1/256,
signed narrow weights, unsigned activations after BatchNorm and ReLU, no bias, zero padding of
unsigned tensors only, a weight quantizer of its own in every layer, one quantizer for all branches
that are added. At 1 bit, weights and activations are signs; docs/models.md tells why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

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
    "scaled",
]

MIN_BITS, MAX_BITS = 1, 8
POOL_BITS = 8
"""Of the mean that an average pool leaves at most: the last layer's input, as the pixels are the
first's."""
WeightScale = Literal["channel", "tensor"]


def scaled(count: int, width: float) -> int:
    """Return a number of channels or features times a width factor, at least 1."""
    return max(1, round(count * width))


@dataclass(frozen=True)
class Precision:
    """Bit widths of a quantized network.

    Attributes:
        weight: bits of the weights, 1 to 8; at 1 bit they are -1 and +1 times a scale.
        activation: bits of the activations, 1 to 8; at 1 bit they are -1 and +1.
        edge: bits of the first and last layers' weights, 1 to 8.
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
                    f"{name} bits are {getattr(self, name)}: choose {MIN_BITS} to {MAX_BITS}"
                )
        check_choice("weight_scale", self.weight_scale, WeightScale)


class Layers(Protocol):
    """The layers that a network is built from."""

    def input(self) -> nn.Module:
        """Return what the pixels pass first."""

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        edge: bool = False,
    ) -> nn.Module:
        """Return a convolution without bias; ``edge`` marks the network's first layer."""

    def linear(self, inputs: int, outputs: int, *, edge: bool = False) -> nn.Module:
        """Return a fully connected layer without bias; ``edge`` marks the last layer."""

    def relu(self, *, keep_scale: bool = False) -> nn.Module:
        """Return the activation.

        ``keep_scale`` is for what is added to another branch or averaged: these need to know the
        scale. Branches that are added share one activation, called once for each.
        """

    def average_pool(self, kernel: int) -> nn.Module:
        """Return an average pool of square windows, for activations that keep their scale."""


class FloatLayers:
    """Full precision."""

    def input(self) -> nn.Module:
        """Return a layer that does nothing, so that submodules have equal names in both twins."""
        return nn.Identity()

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        edge: bool = False,
    ) -> nn.Module:
        """Return ``nn.Conv2d`` without bias."""
        return nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False
        )

    def linear(self, inputs: int, outputs: int, *, edge: bool = False) -> nn.Module:
        """Return ``nn.Linear`` without bias."""
        return nn.Linear(inputs, outputs, bias=False)

    def relu(self, *, keep_scale: bool = False) -> nn.Module:
        """Return ``nn.ReLU``."""
        return nn.ReLU()

    def average_pool(self, kernel: int) -> nn.Module:
        """Return ``nn.AvgPool2d``."""
        return nn.AvgPool2d(kernel)


class QuantLayers:
    """Brevitas layers with the quantizers of ``brevitas_divqat.quant``.

    Args:
        precision: bit widths and granularity.
    """

    def __init__(self, precision: Precision) -> None:
        # Brevitas is imported with the first quantized network, not with the package.
        from brevitas_divqat import quant

        self._precision = precision
        self._weight_quant = {
            ("channel", False): quant.Int8WeightPerChannelFloat,
            ("channel", True): quant.SignedBinaryWeightPerChannelFloat,
            ("tensor", False): quant.Int8WeightPerTensorFloat,
            ("tensor", True): quant.SignedBinaryWeightPerTensorFloat,
        }
        self._act_quant = quant.Uint8ActPerTensorFloat
        self._sign_quant = quant.SignedBinaryActPerTensorConst
        self._input_quant = quant.Uint8InputPerTensorConst

    @property
    def _signs(self) -> bool:
        """Whether the activations are -1 and +1."""
        return self._precision.activation == 1

    def _weights(self, scale: WeightScale, edge: bool) -> dict[str, Any]:
        bits = self._precision.edge if edge else self._precision.weight
        return {
            "bias": False,
            "weight_quant": self._weight_quant[scale, bits == 1],
            "weight_bit_width": bits,
        }

    def input(self) -> nn.Module:
        """Return the 8-bit input quantizer of scale 1/256."""
        from brevitas.nn import QuantIdentity

        return QuantIdentity(act_quant=self._input_quant)

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        edge: bool = False,
    ) -> nn.Module:
        """Return ``QuantConv2d`` without bias.

        Raises:
            ConfigError: if 1-bit activations were to be padded.
        """
        from brevitas.nn import QuantConv2d

        if padding and not edge:  # the pixels before the first layer have a 0
            self._refuse_signs("padded")
        return QuantConv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            **self._weights(self._precision.weight_scale, edge),
        )

    def linear(self, inputs: int, outputs: int, *, edge: bool = False) -> nn.Module:
        """Return ``QuantLinear`` without bias.

        The last layer has one scale whatever the others have: the accelerator then ranks the
        classes by comparing integers, and leaves one scale to the host.
        """
        from brevitas.nn import QuantLinear

        scale: WeightScale = "tensor" if edge else self._precision.weight_scale
        return QuantLinear(inputs, outputs, **self._weights(scale, edge))

    def relu(self, *, keep_scale: bool = False) -> nn.Module:
        """Return ``QuantReLU``; at 1 bit ``QuantIdentity``, whose values are -1 and +1.

        Raises:
            ConfigError: if 1-bit activations were to be added or averaged.
        """
        from brevitas.nn import QuantIdentity, QuantReLU

        if keep_scale:
            self._refuse_signs("added or averaged")
        if self._signs:
            return QuantIdentity(act_quant=self._sign_quant)
        return QuantReLU(
            act_quant=self._act_quant,
            bit_width=self._precision.activation,
            return_quant_tensor=keep_scale,
        )

    def average_pool(self, kernel: int) -> nn.Module:
        """Return ``TruncAvgPool2d``: the sum of a window, shifted to 8 bits where it has more."""
        from brevitas.nn import TruncAvgPool2d

        largest = (2**self._precision.activation - 1) * kernel**2
        return TruncAvgPool2d(
            kernel_size=kernel,
            bit_width=min(POOL_BITS, largest.bit_length()),
            float_to_int_impl_type="floor",
        )

    def _refuse_signs(self, done: str) -> None:
        if self._signs:
            raise ConfigError(
                f"1-bit activations cannot be {done}: they are -1 and +1, without a 0; use "
                "act_bits of 2 or more, or a network and images that need none of it"
            )
