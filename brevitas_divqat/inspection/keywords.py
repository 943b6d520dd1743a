# SPDX-License-Identifier: BSD-3-Clause
"""Keywords that Brevitas swallows: ``QuantConv2d(3, 8, 3, bit_width=4)`` stays at 8 bits.

A Brevitas layer hands its ``**kwargs`` on to mixins, of which each takes those with its prefix
(``weight_``, ``bias_``, ``input_``, ``output_``; none for activations) to its quantizer. What has
no such prefix is dropped, and what has one but is misspelt becomes an attribute that nothing reads;
neither raises an error.

Nothing is patched unless one of the two context managers is entered, and importing this module does
not import Brevitas.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.inspection.accepted import accepted_keywords, layer_classes, nearest_keyword
from brevitas_divqat.inspection.injectors import SwallowedKeyword, unused_keywords

__all__ = [
    "dropped_keyword",
    "recorded_keywords",
    "recorded_of",
    "strict_keywords",
]

_Sink = Callable[[nn.Module, SwallowedKeyword], None]

_SINK: ContextVar[_Sink | None] = ContextVar("swallowed_keywords", default=None)
_INSIDE: ContextVar[bool] = ContextVar("inside_a_layer", default=False)
_LOCK = threading.Lock()
_WATCHERS = 0
_PATCHED: dict[type, tuple[Any, Any]] = {}
_RECORDED: WeakKeyDictionary[nn.Module, tuple[SwallowedKeyword, ...]] = WeakKeyDictionary()


@contextmanager
def strict_keywords() -> Iterator[None]:
    """Raise where a Brevitas layer is built with a keyword that it would swallow.

    Inside the block the constructors of ``brevitas.nn`` are wrapped; after it, whatever happens,
    they are as before. Blocks can be nested, also with `recorded_keywords`: the innermost counts.
    The wrapping is visible to all threads, the check happens in those alone that entered a block
    (a thread that is started inside it has not).

    Raises:
        ConfigError: when such a layer is built; it names the layer's class, the keyword, its value
            and the keyword that was probably meant.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> with strict_keywords():
        ...     layer = QuantConv2d(3, 8, 3, weight_bit_width=4)
        ...     layer = QuantConv2d(3, 8, 3, bit_width=4)
        Traceback (most recent call last):
            ...
        brevitas_divqat.errors.ConfigError: QuantConv2d(bit_width=4) ... weight_bit_width=4?
    """

    def refuse(layer: nn.Module, keyword: SwallowedKeyword) -> None:
        raise ConfigError(str(keyword))

    with _watched(refuse):
        yield


@contextmanager
def recorded_keywords() -> Iterator[list[SwallowedKeyword]]:
    """Note every keyword that a Brevitas layer swallows, without raising.

    As `strict_keywords`, but layers are built as Brevitas builds them. The list that the block gets
    grows with them; `summary` of a model that was built inside names them by module. A copy of the
    model does not know of them.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> with recorded_keywords() as swallowed:
        ...     layer = QuantConv2d(3, 8, 3, bit_width=4)
        >>> swallowed[0].keyword, swallowed[0].nearest
        ('bit_width', 'weight_bit_width')
    """
    found: list[SwallowedKeyword] = []

    def record(layer: nn.Module, keyword: SwallowedKeyword) -> None:
        found.append(keyword)
        _RECORDED[layer] = (*_RECORDED.get(layer, ()), keyword)

    with _watched(record):
        yield found


def recorded_of(layer: nn.Module) -> tuple[SwallowedKeyword, ...]:
    """Return what `recorded_keywords` noted when ``layer`` was built."""
    return _RECORDED.get(layer, ())


@contextmanager
def _watched(sink: _Sink) -> Iterator[None]:
    global _WATCHERS
    with _LOCK:
        if _WATCHERS == 0:
            _patch()
        _WATCHERS += 1
    token = _SINK.set(sink)
    inside = _INSIDE.set(False)
    try:
        yield
    finally:
        _INSIDE.reset(inside)
        _SINK.reset(token)
        with _LOCK:
            _WATCHERS -= 1
            if _WATCHERS == 0:
                _restore()


def _patch() -> None:
    for cls in layer_classes():
        original = cls.__dict__["__init__"]
        wrapped = _checking(cls, original)
        _PATCHED[cls] = (original, wrapped)
        cls.__init__ = wrapped  # type: ignore[misc]


def _restore() -> None:
    for cls, (original, wrapped) in _PATCHED.items():
        if cls.__dict__["__init__"] is wrapped:  # else somebody wrapped it again since
            cls.__init__ = original  # type: ignore[misc]
    _PATCHED.clear()


def _checking(cls: type, original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        sink = _SINK.get()
        # A layer that is part of another one is given what the outer one was given.
        if sink is None or _INSIDE.get():
            original(self, *args, **kwargs)
            return
        token = _INSIDE.set(True)
        try:
            original(self, *args, **kwargs)
        finally:
            _INSIDE.reset(token)
        place = _caller()
        for keyword in (*_dropped(cls, kwargs), *unused_keywords(self)):
            sink(self, replace(keyword, layer=type(self).__name__, where=place))

    return build


def _dropped(cls: type, keywords: Mapping[str, Any]) -> Iterator[SwallowedKeyword]:
    accepted = accepted_keywords(cls)
    for keyword, value in keywords.items():
        if not accepted.takes(keyword):
            yield dropped_keyword(cls, keyword, repr(value))


def dropped_keyword(
    cls: type, keyword: str, value: str, *, where: str | None = None
) -> SwallowedKeyword:
    """Describe a keyword that a layer class drops."""
    return SwallowedKeyword(
        layer=cls.__name__,
        keyword=keyword,
        value=value,
        reason="is dropped by Brevitas",
        nearest=nearest_keyword(cls, keyword),
        where=where,
    )


def _caller() -> str | None:
    """Find the file and line, outside torch, Brevitas and this module, that builds a layer."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and name.partition(".")[0] not in ("brevitas", "torch"):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None
