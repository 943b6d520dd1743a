# SPDX-License-Identifier: BSD-3-Clause
"""Networks by name, quantized or as their full-precision twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models.cnv import CNV
from brevitas_divqat.models.layers import FloatLayers, Layers, Precision, QuantLayers, WeightScale
from brevitas_divqat.models.lenet import LeNet5

__all__ = ["MODELS", "Builder", "ModelConfig", "build", "register_model"]

Builder = Callable[[tuple[int, int, int], int, Layers, float], nn.Module]
"""(image_shape, num_classes, layers, width) to a network."""

MODELS: dict[str, Builder] = {}


def register_model(name: str, builder: Builder, *, force: bool = False) -> None:
    """Make ``builder`` available under ``name``.

    Raises:
        ConfigError: if the name is taken and ``force`` is not given.
    """
    if name in MODELS and not force:
        raise ConfigError(
            f"a model named {name!r} is registered already: pass force=True to replace"
        )
    MODELS[name] = builder


register_model("lenet5", LeNet5)
register_model("cnv", CNV)


@dataclass(frozen=True)
class ModelConfig:
    """The victim's architecture and bit widths.

    Args:
        model: name of the network: lenet5 or cnv.
        width: factor on the numbers of channels and features.
        bits: bits of weights and activations, 2 to 8.
        act_bits: bits of the activations, where they differ from --bits.
        edge_bits: bits of the first and last layers' weights, 2 to 8.
        weight_scale: one weight scale per output 'channel' or per 'tensor'.

    Raises:
        ConfigError: if a value is unknown or out of range.
    """

    model: str = "lenet5"
    width: float = 1.0
    bits: int = 4
    act_bits: int | None = None
    edge_bits: int = 8
    weight_scale: WeightScale = "channel"

    def __post_init__(self) -> None:
        check_model(self.model, self.width)
        self.precision  # noqa: B018  (raises where a bit width is out of range)

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
        ConfigError: if the name is unknown or the images do not fit the network.
    """
    check_model(name, width)
    if num_classes < 2:
        raise ConfigError(f"{num_classes} classes: a classifier needs 2 or more")
    layers: Layers = FloatLayers() if precision is None else QuantLayers(precision)
    return MODELS[name](image_shape, num_classes, layers, width)
