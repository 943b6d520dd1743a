# SPDX-License-Identifier: BSD-3-Clause
"""What in a network's layers is probably not meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from brevitas_divqat.inspection.formats import UNKNOWN, Format
from brevitas_divqat.inspection.injectors import SwallowedKeyword, bits_origin, unused_keywords
from brevitas_divqat.inspection.keywords import recorded_of
from brevitas_divqat.inspection.rows import LayerSummary
from brevitas_divqat.inspection.sources import swallowed_in_sources
from brevitas_divqat.inspection.statistics import collecting
from brevitas_divqat.inspection.tracing import OUTPUT_QUANTIZERS, Visit, recurrent_layers

__all__ = ["SummaryWarning", "warnings_of"]

DEFAULT_BITS = 8
KEYWORD_OF = {"weight_quant": "weight_bit_width", "output_quant": "output_bit_width"}

Kind = Literal[
    "swallowed keyword",
    "default bits",
    "8 bits",
    "float",
    "collecting statistics",
    "no quantizer",
    "not looked into",
]


@dataclass(frozen=True)
class SummaryWarning:
    """Something that is probably not meant.

    Attributes:
        kind: what sort of thing.
        module: qualified name; empty for the model itself.
        found: what there is, with its value.
        remedy: what to do.
    """

    kind: Kind
    module: str
    found: str
    remedy: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.module or 'the model'}: {self.found}: {self.remedy}"


def warnings_of(
    model: nn.Module, visits: list[Visit], rows: tuple[LayerSummary, ...]
) -> Iterator[SummaryWarning]:
    """Yield what is probably not meant in a model.

    Args:
        model: as the user built it: copies do not know what was recorded of their layers.
        visits: of a copy's layers.
        rows: made of them, in the same order.
    """
    yield from _keyword_warnings(model)
    yield from _recurrent_warnings(model)
    if not any(_has_quantizer(visit.layer) for visit in visits):
        yield SummaryWarning(
            "no quantizer",
            "",
            f"{type(model).__name__} has no quantizer, all its {len(rows)} layers are in float",
            "build it from brevitas.nn layers, or convert it with brevitas_divqat.quantize",
        )
        return
    followed = [pair for pair in zip(rows, visits, strict=True) if not pair[1].recurrent]
    yield from _bits_warnings(followed)
    yield from _float_warnings(followed)
    yield from _collecting_warnings(visits)


def _has_quantizer(layer: nn.Module) -> bool:
    from brevitas.proxy.quant_proxy import QuantProxyFromInjector

    proxies = [m for m in layer.children() if isinstance(m, QuantProxyFromInjector)]
    return any(proxy.is_quant_enabled for proxy in proxies)


def _keyword_warnings(model: nn.Module) -> Iterator[SummaryWarning]:
    seen: set[tuple[str, str]] = set()

    def warning(name: str, keyword: SwallowedKeyword) -> SummaryWarning:
        seen.add((keyword.layer, keyword.keyword))
        return SummaryWarning("swallowed keyword", name, keyword.found, keyword.remedy)

    for name, module in model.named_modules():
        recorded = recorded_of(module)
        known = {keyword.keyword for keyword in recorded}
        unread = [k for k in unused_keywords(module) if k.keyword not in known]
        for keyword in (*recorded, *unread):
            yield warning(name, keyword)
    for name, keyword in swallowed_in_sources(model):
        if (keyword.layer, keyword.keyword) not in seen:
            yield SummaryWarning("swallowed keyword", name, keyword.found, keyword.remedy)


def _recurrent_warnings(model: nn.Module) -> Iterator[SummaryWarning]:
    for name, layer in recurrent_layers(model):
        own = type(layer).__name__
        remedy = "give all its bit widths by keyword, also where 8 is meant, and check its parts"
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
            remedy = f"it computes in float, use {_quantized_class(layer)} for a quantized one"
        yield SummaryWarning(
            "not looked into",
            name,
            f"{own} is recurrent: who chose its bits, its sums and its MACs are not looked into",
            remedy,
        )


def _bits_warnings(layers: list[tuple[LayerSummary, Visit]]) -> Iterator[SummaryWarning]:
    """Name quantizers of 8 bits: by default anywhere, asked for where the others have fewer."""
    weighted = [r.name for r, _ in layers if r.weight is not None and r.weight.quantized]
    edges = {*weighted[:1], *weighted[-1:]}
    inner_bits = [
        fmt.bits
        for row, visit in layers
        for fmt in (row.weight, row.activation)
        if fmt is not None and fmt.quantized and row.name not in edges and not visit.reads_image
    ]
    mixed = any(bits < DEFAULT_BITS for bits in inner_bits)
    for row, visit in layers:
        for what, quantizer, fmt in _eight_bit(row, visit):
            asked = bits_origin(visit.layer, quantizer) != "default"
            keyword = KEYWORD_OF.get(quantizer, "bit_width")
            if not asked and not (row.weight is None and visit.reads_image):
                yield SummaryWarning(
                    "default bits",
                    row.name,
                    f"{what} {fmt.bits} bits, which is Brevitas' default: nobody set it (a "
                    "misspelt or unprefixed keyword is dropped)",
                    f"write {keyword}= in {row.layer}, also where 8 is meant",
                )
            elif asked and mixed and row.name not in edges and not visit.reads_image:
                yield SummaryWarning(
                    "8 bits",
                    row.name,
                    f"{what} {fmt.bits} bits, as was asked for, where others have fewer",
                    f"lower {keyword} of {row.layer} unless that is meant",
                )


def _eight_bit(row: LayerSummary, visit: Visit) -> Iterator[tuple[str, str, Format]]:
    if row.weight is not None and row.weight.quantized and row.weight.bits == DEFAULT_BITS:
        yield "weights have", "weight_quant", row.weight
    for name in OUTPUT_QUANTIZERS:
        fmt = visit.formats.get(name)
        if fmt is not None and fmt.bits == DEFAULT_BITS:
            yield "the output has", name, fmt


def _float_warnings(layers: list[tuple[LayerSummary, Visit]]) -> Iterator[SummaryWarning]:
    first = next((row.name for row, _ in layers if row.weight is not None), None)
    for row, visit in layers:
        if row.weight is not None and not row.weight.quantized:
            yield SummaryWarning(
                "float",
                row.name,
                f"{row.layer} computes with {row.weight.name} weights",
                f"use {_quantized_class(visit.layer)} with a weight_quant and weight_bit_width=",
            )
        elif row.weight is not None and row.name != first and _is_float(row.input):
            yield SummaryWarning(
                "float",
                row.name,
                f"the input arrives as {row.input and row.input.name}, without a quantizer",
                "put a QuantReLU or QuantIdentity before it",
            )
        elif _should_quantize(visit) and row.activation is None:
            yield SummaryWarning(
                "float",
                row.name,
                f"{row.layer} gives its output in float, without quantizing it",
                _remedy_of_output(visit),
            )


def _is_float(fmt: Format | None) -> bool:
    return fmt is not None and fmt is not UNKNOWN and not fmt.quantized


def _quantized_class(layer: nn.Module) -> str:
    import brevitas.nn

    name = type(layer).__name__.removeprefix("Quant")
    return f"Quant{name}" if hasattr(brevitas.nn, f"Quant{name}") else "a layer of brevitas.nn"


def _should_quantize(visit: Visit) -> bool:
    """Tell whether a layer is there to quantize its output."""
    names = ("act_quant", "trunc_quant", "clamp_quant")
    return any(name in visit.layer._modules for name in names) and (
        visit.calls > 0 or "act_quant" in visit.layer._modules
    )


def _remedy_of_output(visit: Visit) -> str:
    if "act_quant" in visit.layer._modules:
        return "give it an act_quant and bit_width="
    return "set return_quant_tensor=True in the layer before it, or give it a trunc_quant"


def _collecting_warnings(visits: list[Visit]) -> Iterator[SummaryWarning]:
    reported: set[int] = set()
    for visit in visits:
        for _, module in collecting(visit.layer):
            if id(module) in reported:
                continue
            reported.add(id(module))
            yield SummaryWarning(
                "collecting statistics",
                visit.name,
                "the activation scale follows statistics of the training batches, "
                f"{module.counter} of {module.collect_stats_steps} steps so far",
                "brevitas_divqat.training.calibrate sets it at once, or train on",
            )
            break  # a zero-point of the same quantizer collects as many
