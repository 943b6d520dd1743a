# SPDX-License-Identifier: BSD-3-Clause
"""Networks by name, quantized or as their full-precision twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models.cnv import CNV
from brevitas_divqat.models.fully_connected import FullyConnected
from brevitas_divqat.models.layers import FloatLayers, Layers, Precision, QuantLayers, WeightScale
from brevitas_divqat.models.lenet import LeNet5
from brevitas_divqat.models.mobilenet import MobileNetV1Tiny
from brevitas_divqat.models.resnet import ResNet
from brevitas_divqat.models.vgg import VGGSmall

__all__ = ["LEAST_BITS", "MODELS", "Builder", "LeastBits", "ModelConfig", "build", "register_model"]

Builder = Callable[[tuple[int, int, int], int, Layers, float], nn.Module]
"""(image_shape, num_classes, layers, width) to a network."""


@dataclass(frozen=True)
class LeastBits:
    """The fewest bits that make sense in a network.

    Attributes:
        weight: of the weights between the first and the last layer.
        activation: of the activations.
        reason: why it is not 1, as the end of "…, because".
    """

    weight: int = 1
    activation: int = 1
    reason: str = ""


MODELS: dict[str, Builder] = {}
LEAST_BITS: dict[str, LeastBits] = {}
ANY_BITS = LeastBits()


def register_model(
    name: str, builder: Builder, *, least_bits: LeastBits = ANY_BITS, force: bool = False
) -> None:
    """Make ``builder`` available under ``name``.

    Args:
        name: of the network.
        builder: makes it from layers of any precision.
        least_bits: the fewest bits with which ``build`` gives it.
        force: replace a network of that name.

    Raises:
        ConfigError: if the name is taken and ``force`` is not given.
    """
    if name in MODELS and not force:
        raise ConfigError(
            f"a model named {name!r} is registered already: pass force=True to replace"
        )
    MODELS[name] = builder
    LEAST_BITS[name] = least_bits


PADDED = LeastBits(
    activation=2,
    reason="it pads its activations, and 1-bit ones are -1 and +1, without a 0 to pad with",
)
register_model("lenet5", LeNet5)
register_model("cnv", CNV)
register_model("vgg_small", VGGSmall, least_bits=PADDED)
register_model("resnet8", partial(ResNet, blocks=1), least_bits=PADDED)
register_model("resnet20", partial(ResNet, blocks=3), least_bits=PADDED)
register_model(
    "mobilenet_v1_tiny",
    MobileNetV1Tiny,
    least_bits=LeastBits(
        weight=2,
        activation=2,
        reason="a depthwise convolution sums nine products, of which signs keep next to nothing, "
        "and it pads its activations",
    ),
)
register_model("tfc", partial(FullyConnected, features=64))
register_model("sfc", partial(FullyConnected, features=256))
register_model("lfc", partial(FullyConnected, features=1024))


@dataclass(frozen=True)
class ModelConfig:
    """The victim's architecture and bit widths.

    Args:
        model: name of the network: lenet5, cnv, vgg_small, resnet8, resnet20, mobilenet_v1_tiny,
            tfc, sfc or lfc.
        width: factor on the numbers of channels and features.
        bits: bits of weights and activations, 1 to 8; networks that pad their activations need
            --act-bits 2 or more, and mobilenet_v1_tiny also 2-bit weights.
        act_bits: bits of the activations, where they differ from --bits.
        edge_bits: bits of the first and last layers' weights, 1 to 8; of the last layer's alone in
            tfc, sfc and lfc.
        weight_scale: one weight scale per output 'channel' or per 'tensor'.

    Raises:
        ConfigError: if a value is unknown or out of range, or the network needs more bits.
    """

    model: str = "lenet5"
    width: float = 1.0
    bits: int = 4
    act_bits: int | None = None
    edge_bits: int = 8
    weight_scale: WeightScale = "channel"

    def __post_init__(self) -> None:
        check_model(self.model, self.width)
        check_precision(self.model, self.precision)

    @property
    def precision(self) -> Precision:
        """The bit widths of the quantized network."""
        return Precision(
            weight=self.bits,
            activation=self.bits if self.act_bits is None else self.act_bits,
            edge=self.edge_bits,
            weight_scale=self.weight_scale,
        )


def check_model(name: str, width: float) -> None:
    """Raise ConfigError unless ``name`` is registered and ``width`` is a sensible factor."""
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: choose from {sorted(MODELS)}")
    if not 0 < width <= 16:
        raise ConfigError(f"width is {width}: it must be more than 0 and at most 16")


def check_precision(name: str, precision: Precision) -> None:
    """Raise ConfigError if a registered network needs more bits."""
    least = LEAST_BITS.get(name, ANY_BITS)
    for place, option in (("weight", "bits"), ("activation", "act_bits")):
        bits, fewest = getattr(precision, place), getattr(least, place)
        if bits < fewest:
            raise ConfigError(
                f"{name} has no form with {bits}-bit {place}s, because {least.reason}: use "
                f"{option} of {fewest} or more"
            )


def build(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    precision: Precision | None,
    width: float = 1.0,
) -> nn.Module:
    """Build a network.

    Args:
        name: a key of ``MODELS``.
        image_shape: (channels, height, width) of the images.
        num_classes: number of logits, 2 or more.
        precision: bit widths; None for the full-precision twin, whose ``state_dict`` keys are a
            subset of the quantized network's.
        width: factor on the numbers of channels and features.

    Returns:
        A module from (N, C, H, W) pixels in [0, 1) to (N, num_classes) logits, freshly initialised
        from torch's global generator.

    Raises:
        ConfigError: if the name is unknown, the images do not fit the network, or it needs more
            bits.
    """
    check_model(name, width)
    if precision is not None:
        check_precision(name, precision)
    if num_classes < 2:
        raise ConfigError(f"{num_classes} classes: a classifier needs 2 or more")
    layers: Layers = FloatLayers() if precision is None else QuantLayers(precision)
    return MODELS[name](image_shape, num_classes, layers, width)
