# SPDX-License-Identifier: BSD-3-Clause
"""Number formats of weights and activations, and the accumulators that their products need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["UNKNOWN", "Format", "accumulator_bound", "accumulator_exact", "floating", "format_of"]

Scale = Literal["tensor", "channel", "group"]


@dataclass(frozen=True)
class Format:
    """How the elements of a tensor are represented.

    Attributes:
        name: e.g. ``"int4"``, ``"uint8"``, ``"bipolar"`` (-1 and 1), ``"float32"``, ``"e4m3"``.
        bits: of one element.
        signed: whether there are negative values.
        scale: what has one scale factor; None without a quantizer.
        low: least integer, the zero-point subtracted; None where elements are no integers.
        high: greatest integer; None where elements are no integers.
    """

    name: str
    bits: int
    signed: bool = True
    scale: Scale | None = None
    low: int | None = None
    high: int | None = None

    @property
    def quantized(self) -> bool:
        """Whether a quantizer gave it."""
        return self.scale is not None

    def __str__(self) -> str:
        """Return name and granularity, e.g. ``"int4/channel"``."""
        return f"{self.name}/{self.scale}" if self.scale else self.name


UNKNOWN = Format("?", 0)
"""Of what comes out of layers that are not looked into."""


def floating(dtype: torch.dtype) -> Format:
    """Describe elements that no quantizer touched."""
    bits = 8 * torch.empty(0, dtype=dtype).element_size()
    return Format(str(dtype).removeprefix("torch."), bits)


def format_of(tensor: Any, *, narrow: bool = False) -> Format:
    """Describe the elements of a tensor or of a QuantTensor of Brevitas.

    Args:
        tensor: a tensor is described by its type alone.
        narrow: whether the quantizer leaves out the lowest level.
    """
    from brevitas.quant_tensor import QuantTensor

    if not isinstance(tensor, QuantTensor):
        return floating(tensor.dtype)
    value: Any = tensor
    grouped = hasattr(value, "group_size")
    scale: Scale = "group" if grouped else "channel" if value.scale.numel() > 1 else "tensor"
    signed = bool(value.signed)
    if hasattr(value, "exponent_bit_width"):
        exponent, mantissa = (
            round(float(b)) for b in (value.exponent_bit_width, value.mantissa_bit_width)
        )
        return Format(f"e{exponent}m{mantissa}", exponent + mantissa + signed, signed, scale)
    bits = round(float(value.bit_width.max()))
    if grouped:
        return Format(_name(bits, signed), bits, signed, scale)
    low, high = _levels(bits, signed, narrow)
    zero = value.zero_point
    return Format(
        _name(bits, signed),
        bits,
        signed,
        scale,
        low - round(float(zero.max())),
        high - round(float(zero.min())),
    )


def _name(bits: int, signed: bool) -> str:
    if bits == 1 and signed:
        return "bipolar"
    return f"{'' if signed else 'u'}int{bits}"


def _levels(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    if not signed:
        return 0, 2**bits - 1 - narrow
    if bits == 1:
        return -1, 1
    return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1


def accumulator_bound(layer: nn.Module, weight: Format, inputs: Format) -> int | None:
    """Bound the bits of a layer's sums, before the bias, by the bit widths alone.

    Args:
        layer: a convolution or a linear layer.
        weight: of its weights.
        inputs: of what it multiplies them with.

    Returns:
        The bits that hold every sum that any weights and inputs of these formats can give; None
        where there are no integers.
    """
    if not _integers(weight, inputs):
        return None
    terms = _matrix(layer, layer.weight).shape[1]  # type: ignore[arg-type]
    products = [w * x for w in (weight.low, weight.high) for x in _inputs(inputs)]  # type: ignore[operator]
    return _bits(terms * min(products), terms * max(products))


def accumulator_exact(layer: nn.Module, weight: Any, inputs: Format) -> int | None:
    """Compute the bits of a layer's sums, before the bias, from its integer weights.

    Args:
        layer: a convolution or a linear layer.
        weight: its quantized weights, a QuantTensor.
        inputs: of what it multiplies them with; any inputs of this format are allowed for.

    Returns:
        The bits that the sums of the neediest output channel take (an upper bound for a transposed
        convolution with a stride, where not all weights meet); None where there are no integers.
    """
    if not _integers(format_of(weight), inputs):
        return None
    matrix = _matrix(layer, torch.round(weight.value.double() / weight.scale.double()))
    low, high = _inputs(inputs)
    ends = torch.stack((matrix * low, matrix * high))
    least, greatest = (e.sum(1) for e in (ends.amin(0), ends.amax(0)))
    return _bits(int(least.min()), int(greatest.max()))


def _integers(weight: Format, inputs: Format) -> bool:
    return None not in (weight.low, inputs.low) and inputs.scale == "tensor"


def _inputs(inputs: Format) -> tuple[int, int]:
    """Return the least and the greatest input, 0 included: padding, and sums that start there."""
    return min(0, inputs.low or 0), max(0, inputs.high or 0)


def _matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """Arrange weights as (output channels, terms of a sum)."""
    if not getattr(layer, "transposed", False):
        return weight.flatten(1)
    groups: Any = layer.groups
    split = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return split.flatten(0, 1).flatten(1)


def _bits(low: int, high: int) -> int:
    if low >= 0:
        return max(1, high.bit_length())
    return 1 + max((-low - 1).bit_length(), high.bit_length())
