# SPDX-License-Identifier: BSD-3-Clause
"""One layer of a summary: the formats it computes with, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from brevitas_divqat.inspection.formats import (
    Format,
    accumulator_bound,
    accumulator_exact,
    floating,
    format_of,
)
from brevitas_divqat.inspection.tracing import OUTPUT_QUANTIZERS, Visit

__all__ = ["LayerSummary", "row_of"]


@dataclass(frozen=True)
class LayerSummary:
    """One layer; quantities are of one image.

    Attributes:
        name: qualified name.
        layer: its class.
        calls: how often it runs; 0 where it does not, or the model was not run.
        weight: format of its weights; None without any.
        input: format of what it computes with; None where it did not run.
        activation: format of its output quantizer's values; None without one.
        accumulator_bound: bits of the sums, before the bias, that the formats allow; None where
            they are no integers.
        accumulator_exact: bits of the sums that these weights can give with any inputs.
        parameters: weights, biases and BatchNorm's; without the quantizers' scales.
        macs: multiply-accumulates of all calls; None where they are not known.
        bytes: of the weights at their bit width.
        shape: of the output, without the batch; None where it is not known.
    """

    name: str
    layer: str
    calls: int
    weight: Format | None
    input: Format | None
    activation: Format | None
    accumulator_bound: int | None
    accumulator_exact: int | None
    parameters: int
    macs: int | None
    bytes: int
    shape: tuple[int, ...] | None


def row_of(visit: Visit) -> LayerSummary:
    """Describe one layer."""
    layer = visit.layer
    weight = _weight_format(visit)
    bound = exact = None
    if _multiplies(layer) and weight is not None and visit.inputs is not None:
        bound = accumulator_bound(layer, weight, visit.inputs)
        exact = None if bound is None else accumulator_exact(layer, visit.weight, visit.inputs)
    elements = _weight_of(layer).numel() if weight is not None else 0
    return LayerSummary(
        name=visit.name,
        layer=type(layer).__name__,
        calls=visit.calls,
        weight=weight,
        input=visit.inputs,
        activation=_activation_format(visit),
        accumulator_bound=bound,
        accumulator_exact=exact,
        parameters=sum(p.numel() for p in layer._parameters.values() if p is not None),
        macs=visit.macs,
        bytes=math.ceil(elements * weight.bits / 8) if weight is not None else 0,
        shape=visit.output_shape,
    )


def _multiplies(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))


def _weight_of(layer: nn.Module) -> Any:
    return layer._parameters.get("weight")


def _weight_format(visit: Visit) -> Format | None:
    """Describe the weights; BatchNorm's factors are none."""
    weight = _weight_of(visit.layer)
    if weight is None or (weight.dim() < 2 and not hasattr(visit.layer, "weight_quant")):
        return None
    if visit.weight is None:
        return floating(weight.dtype)
    proxy: Any = visit.layer.weight_quant
    return format_of(visit.weight, narrow=bool(proxy.is_narrow_range))


def _activation_format(visit: Visit) -> Format | None:
    names = [name for name in OUTPUT_QUANTIZERS if name in visit.formats]
    return visit.formats[names[-1]] if names else None
