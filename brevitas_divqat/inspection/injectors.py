# SPDX-License-Identifier: BSD-3-Clause
"""What reached a layer's quantizers: who chose the bits, and what nothing reads.

Brevitas keeps a quantizer's settings in a class (an injector), from which `Injector.let` derives
another one with each keyword as an attribute. A misspelt one stays there unread.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from brevitas_divqat.inspection.accepted import (
    LIKENESS,
    accepted_keywords,
    known_attributes,
    read_by_proxies,
    read_in,
)

__all__ = ["SwallowedKeyword", "bits_origin", "unused_keywords"]

ADDED_BY_BREVITAS = {"proxy_module", "module", "tracked_parameter_list"}


@dataclass(frozen=True)
class SwallowedKeyword:
    """A keyword argument that a layer was given and that has no effect.

    Attributes:
        layer: the layer's class.
        keyword: as it was written.
        value: its ``repr``.
        reason: what became of it.
        nearest: the keyword that was probably meant; None where nothing is similar.
        where: file and line of the call; None where it is not known.
    """

    layer: str
    keyword: str
    value: str
    reason: str
    nearest: str | None = None
    where: str | None = None

    @property
    def found(self) -> str:
        """What was written, where, and what became of it."""
        place = f" ({self.where})" if self.where else ""
        return f"{self.layer}({self.keyword}={self.value}){place} {self.reason}"

    @property
    def remedy(self) -> str:
        """What to write instead."""
        if self.nearest is None:
            return f"remove {self.keyword}"
        return f"did you mean {self.nearest}={self.value}?"

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.found}: {self.remedy}"


def unused_keywords(layer: nn.Module) -> tuple[SwallowedKeyword, ...]:
    """List what reached the quantizers of a Brevitas layer and is read by nothing.

    These are keywords with a right prefix and a misspelt rest (``weight_bitwidth=4``,
    ``weight_narow_range=True``), keywords for a quantizer that is switched off, bit widths that a
    quantizer ignores (a binary one has 1 bit), and misspelt attributes of a quantizer class of
    your own. They are found in the finished layer, however it was built.
    """
    from brevitas.proxy.quant_proxy import QuantProxyFromInjector

    proxies = {
        name: child
        for name, child in layer.named_children()
        if isinstance(child, QuantProxyFromInjector)
    }
    found: list[SwallowedKeyword] = []
    for name, proxy in proxies.items():
        siblings = {
            other.removesuffix("quant"): _from_keywords(sibling.quant_injector)
            for other, sibling in proxies.items()
            if other != name
        }
        found += _unused(layer, name, proxy, siblings)
    return tuple(found)


def _unused(
    layer: nn.Module, name: str, proxy: Any, siblings: Mapping[str, set[str]]
) -> Iterator[SwallowedKeyword]:
    injector = proxy.quant_injector
    own = name.removesuffix("quant")
    prefix = own if own in accepted_keywords(type(layer)).quantizer_prefixes else ""
    if len(proxy.tracked_module_list) > 1 and proxy.tracked_module_list[0] is not layer:
        return  # a shared quantizer: it was made, and its keywords given, by the first layer
    used: set[str] | None = None
    for attribute, quantizer in _given(injector).items():
        # Activations take keywords without a prefix, so they also get those of their neighbours.
        others = [s for s in siblings if attribute.startswith(s)]
        if any(attribute[len(s) :] in siblings[s] for s in others):
            continue
        used = _used(injector) if used is None else used
        if attribute in used:
            continue
        reason = _why_unused(attribute, proxy, quantizer is None)
        if reason is None:
            continue
        nearest = None
        if attribute not in known_attributes():
            close = difflib.get_close_matches(attribute, known_attributes(), n=1, cutoff=LIKENESS)
            nearest = (prefix if quantizer is None else "") + close[0] if close else None
        yield SwallowedKeyword(
            layer=type(layer).__name__ if quantizer is None else f"{name}={quantizer}",
            keyword=(prefix if quantizer is None else "") + attribute,
            value=_shown(injector, attribute),
            reason=reason,
            nearest=nearest,
        )


def _why_unused(attribute: str, proxy: Any, from_keyword: bool) -> str | None:
    """Say why an attribute that is not read has no effect; None where that is no mistake.

    A quantizer need not read all that is known, e.g. because its scale is a constant.
    """
    if attribute not in known_attributes():
        return "reaches the quantizer, where nothing reads it"
    if not from_keyword:
        return None
    if not proxy.is_quant_enabled and getattr(proxy.quant_injector, attribute) is not None:
        return "has no effect: that quantizer is switched off"
    if attribute == "bit_width" and _bits_differ(proxy):
        return "has no effect: that quantizer's bit width is fixed"
    return None


def _bits_differ(proxy: Any) -> bool:
    asked = proxy.quant_injector.bit_width
    implementations = [m for m in proxy.modules() if hasattr(m, "bit_width") and m is not proxy]
    bits = [m.bit_width() for m in implementations if callable(m.bit_width)]
    return isinstance(asked, int) and any(float(b) != asked for b in bits)


def _shown(injector: Any, attribute: str) -> str:
    try:
        return repr(getattr(injector, attribute))
    except Exception:  # whatever a user's class raises when it is made
        return "…"


def _given(injector: Any) -> dict[str, str | None]:
    """Map what users gave to a quantizer to the class whose body it stands in; None: a keyword."""
    given: dict[str, str | None] = {}
    for cls in injector.__mro__:
        by_keyword = _is_derived_by_let(cls)
        if not by_keyword and cls.__module__.partition(".")[0] == "brevitas":
            continue
        for attribute in _defined_in(cls) - ADDED_BY_BREVITAS:
            given.setdefault(attribute, None if by_keyword else cls.__name__)
    return given


def _from_keywords(injector: Any) -> set[str]:
    return {attribute for attribute, quantizer in _given(injector).items() if quantizer is None}


def _is_derived_by_let(cls: type) -> bool:
    """Tell a class that ``Injector.let`` made from one that somebody wrote.

    The former carries the name of the module that makes classes, which defines no quantizer.
    """
    return cls.__module__ == "brevitas.inject" and bool(cls.__bases__[0].__bases__)


def _defined_in(cls: Any) -> set[str]:
    inherited = [base.__dependencies__ for base in cls.__bases__ if base is not object]
    return {
        name
        for name, spec in getattr(cls, "__dependencies__", {}).items()
        if not any(base.get(name) is spec for base in inherited)
    }


class _Watched(dict[str, Any]):
    """Dependencies of a quantizer that note which of them are looked up."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.seen: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)


def _used(injector: Any) -> set[str]:
    """Build the parts of a quantizer once more and note what that reads."""
    probe = injector.let()
    watched = _Watched(probe.__dependencies__)
    type.__setattr__(probe, "__dependencies__", watched)  # an injector refuses it otherwise
    for name in read_by_proxies():
        if name not in watched:
            continue
        try:
            getattr(probe, name)
        except Exception:  # what it needs is missing, as for the groups of a scale per tensor
            continue
    return watched.seen | read_in(injector)


def bits_origin(layer: nn.Module, proxy_name: str) -> Literal["asked for", "default", "unknown"]:
    """Tell who chose the bit width of one of a layer's quantizers.

    Args:
        layer: a Brevitas layer.
        proxy_name: e.g. ``"weight_quant"``.

    Returns:
        ``"asked for"``: a keyword, or a quantizer class that sets it or has it in its name;
        ``"default"``: nobody, it comes from Brevitas' base classes;
        ``"unknown"``: nothing sets one, e.g. because the quantizer is switched off.
    """
    injector = getattr(layer, proxy_name).quant_injector
    setter = next((c for c in injector.__mro__ if "bit_width" in _defined_in(c)), None)
    if setter is None:
        return "unknown"
    if _is_derived_by_let(setter) or setter.__module__.partition(".")[0] != "brevitas":
        return "asked for"
    chosen = next(c for c in injector.__mro__ if not _is_derived_by_let(c))
    parameter = inspect.signature(type(layer)).parameters.get(proxy_name)
    usual = parameter is not None and parameter.default is chosen
    return "asked for" if "8" in chosen.__name__ and not usual else "default"
