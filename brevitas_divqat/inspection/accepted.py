# SPDX-License-Identifier: BSD-3-Clause
"""What the constructors of Brevitas' layers do with their keywords.

It is read from Brevitas' own code: the parameters of a constructor, those of the ones that it hands
``**kwargs`` on to, and the prefixes by which quantizers take theirs. Importing this module does not
import Brevitas.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from torch import nn

__all__ = [
    "LIKENESS",
    "Accepted",
    "accepted_keywords",
    "known_attributes",
    "layer_classes",
    "nearest_keyword",
    "read_by_proxies",
    "read_in",
    "takes_keywords",
]

LIKENESS = 0.6
"""Least similarity (difflib's ratio, 0 to 1) of a name that is suggested."""


@dataclass(frozen=True)
class Accepted:
    """The keywords that something with ``**kwargs`` makes use of.

    Attributes:
        names: of parameters.
        prefixes: beginnings of further keywords; with each, what takes the rest of the name: None
            for a quantizer, to which any attribute can be given.
        anything: True where it cannot be told, so that nothing is called swallowed.
    """

    names: frozenset[str] = frozenset()
    prefixes: tuple[tuple[str, Accepted | None], ...] = ()
    anything: bool = False

    def takes(self, keyword: str) -> bool:
        """Tell whether ``keyword`` goes anywhere."""
        return (
            self.anything
            or keyword in self.names
            or any(
                keyword.startswith(prefix) and (rest is None or rest.takes(keyword[len(prefix) :]))
                for prefix, rest in self.prefixes
            )
        )

    @property
    def quantizer_prefixes(self) -> list[str]:
        """Prefixes of keywords that reach a quantizer."""
        return [prefix for prefix, rest in self.prefixes if rest is None]


def takes_keywords(cls: object) -> bool:
    """Tell whether ``cls`` is a layer class of Brevitas, or of one derived from it."""
    if not inspect.isclass(cls):
        return False
    return any(owner in layer_classes() for owner in cls.__mro__)


def accepted_keywords(cls: type) -> Accepted:
    """Work out which keywords a Brevitas layer class makes use of, from its code.

    Args:
        cls: a layer class of ``brevitas.nn``, or one derived from it: what its own constructor
            takes counts too.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> taken = accepted_keywords(QuantConv2d)
        >>> taken.takes("weight_bit_width"), taken.takes("padding"), taken.takes("bit_width")
        (True, True, False)
    """
    return _accepted(cls, ())


@cache
def _accepted(cls: type, bound: tuple[tuple[str, Any], ...]) -> Accepted:
    found = _initialiser(cls.__mro__)
    if found is None:
        return Accepted(anything=True)
    return _Reading(cls.__mro__).of(*found, dict(bound))


def _initialiser(classes: tuple[type, ...]) -> tuple[FunctionType, type] | None:
    """Find the constructor that comes first, without what this module wrapped around it."""
    for owner in classes:
        function = owner.__dict__.get("__init__")
        if isinstance(function, FunctionType):
            plain = inspect.unwrap(function)
            return (plain, owner) if isinstance(plain, FunctionType) else None
    return None


class _Reading:
    """Follows ``**kwargs`` from a constructor to those that it calls.

    Args:
        mro: of the class that is built: what ``super()`` refers to.
    """

    def __init__(self, mro: tuple[type, ...]) -> None:
        self._mro = mro

    def of(self, function: FunctionType, owner: type, bound: Mapping[str, Any]) -> Accepted:
        """Read one constructor, of class ``owner``; ``bound`` holds arguments that are known."""
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        names = {
            p.name for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        if rest is None:
            return Accepted(frozenset(names))
        tree = _syntax(function)
        if tree is None:
            return Accepted(anything=True)
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        scope = {**function.__globals__, **defaults, **bound}
        handed_on = {name: value for name, value in bound.items() if name not in names}
        parts = []
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            starred = [k.value for k in call.keywords if k.arg is None]
            parts += [self._own_filter(call, rest, scope)]
            for value in starred:
                if isinstance(value, ast.Name) and value.id == rest:
                    parts.append(self._called(call, owner, scope, handed_on))
                elif isinstance(value, ast.Call) and _calls(value, "filter_kwargs", 1):
                    prefix = _constant(value.args[0], scope)
                    inner = self._called(call, owner, scope, {})
                    parts.append(Accepted(prefixes=((prefix, inner),)))
        return Accepted(
            frozenset(names).union(*(part.names for part in parts)),
            tuple(dict.fromkeys(p for part in parts for p in part.prefixes)),
            any(part.anything for part in parts),
        )

    def _own_filter(self, call: ast.Call, rest: str, scope: Mapping[str, Any]) -> Accepted:
        """Read ``filter_kwargs(prefix, kwargs)``, by which a quantizer takes its keywords."""
        if not _calls(call, "filter_kwargs", 2):
            return Accepted()
        prefix, mapping = call.args
        if not isinstance(mapping, ast.Name) or mapping.id != rest:
            return Accepted()
        value = _constant(prefix, scope)
        return Accepted(prefixes=((value, None),)) if isinstance(value, str) else Accepted()

    def _called(
        self, call: ast.Call, owner: type, scope: Mapping[str, Any], handed_on: Mapping[str, Any]
    ) -> Accepted:
        """Read what is called with ``**kwargs``, without the arguments that it is given anyway."""
        given = {k.arg: _constant(k.value, scope) for k in call.keywords if k.arg is not None}
        known = {name: v for name, v in given.items() if isinstance(v, (str, type))}
        bound = {**handed_on, **known}
        target = self._target(call.func, owner, scope)
        if target is None:
            return Accepted(anything=True)
        if isinstance(target, type):
            inner = _accepted(target, tuple(sorted(bound.items(), key=lambda item: item[0])))
        else:
            inner = self.of(*target, bound)
        return Accepted(inner.names.difference(given), inner.prefixes, inner.anything)

    def _target(
        self, func: ast.expr, owner: type, scope: Mapping[str, Any]
    ) -> type | tuple[FunctionType, type] | None:
        """Resolve ``Layer``, ``Layer.__init__`` or ``super().__init__``."""
        if not isinstance(func, ast.Attribute) or func.attr != "__init__":
            value = _constant(func, scope)
            return value if isinstance(value, type) else None
        if isinstance(func.value, ast.Call) and _calls(func.value, "super", 0, 2):
            place = self._mro.index(owner) if owner in self._mro else -1
            return _initialiser(self._mro[place + 1 :]) if place >= 0 else None
        base = _constant(func.value, scope)
        return _initialiser(base.__mro__) if isinstance(base, type) else None


def _calls(call: ast.Call, name: str, *numbers: int) -> bool:
    """Tell whether ``call`` calls ``name`` with one of these numbers of positional arguments."""
    named = isinstance(call.func, ast.Name) and call.func.id == name
    return named and len(call.args) in numbers


def _constant(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    """Return what a literal, a name or a dotted name stands for; None where it is unknown."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_constant(node.value, scope), node.attr, None)
    return None


def _syntax(function: object) -> ast.Module | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):  # no source, as in a zipped or compiled package
        return None


@cache
def layer_classes() -> frozenset[type]:
    """Find every class of ``brevitas.nn`` whose constructor has ``**kwargs``."""
    from brevitas.nn.mixin import QuantLayerMixin

    def is_layer(cls: Any) -> bool:
        if cls.__name__.startswith("_") or not issubclass(cls, (nn.Module, QuantLayerMixin)):
            return False
        found = vars(cls).get("__init__")
        parameters = inspect.signature(found).parameters.values() if found else ()
        return any(p.kind is p.VAR_KEYWORD for p in parameters)

    return frozenset(filter(is_layer, _classes_of("brevitas.nn")))


def _classes_of(package: str) -> Iterator[Any]:
    """Yield the classes that a package, as far as it loads itself, defines."""
    importlib.import_module(package)
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            for value in list(vars(module).values()):
                if inspect.isclass(value) and value.__module__ == name:
                    yield value


def nearest_keyword(cls: type, keyword: str) -> str | None:
    """Find the accepted keyword that is most like ``keyword``; None where none is similar.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> nearest_keyword(QuantConv2d, "bit_width")
        'weight_bit_width'
    """
    accepted = accepted_keywords(cls)
    prefixes = _quantized_first(cls, accepted)
    names = dict.fromkeys(
        [*sorted(accepted.names), *(p + v for p in prefixes for v in known_attributes())]
    )
    close = difflib.get_close_matches(keyword, names, n=1, cutoff=LIKENESS)
    bare = difflib.get_close_matches(keyword, known_attributes(), n=1, cutoff=LIKENESS)
    if not bare or not prefixes:
        return close[0] if close else None
    if close and _likeness(keyword, close[0]) > _likeness(keyword, bare[0]):
        return close[0]
    return prefixes[0] + bare[0]


def _likeness(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()


def _quantized_first(cls: type, accepted: Accepted) -> list[str]:
    """Sort the prefixes: first those of quantizers that the layer has unless told otherwise."""
    parameters = inspect.signature(cls).parameters

    def is_off(prefix: str) -> bool:
        parameter = parameters.get(f"{prefix}quant")
        return parameter is None or parameter.default is None

    return sorted(accepted.quantizer_prefixes, key=is_off)


@cache
def known_attributes() -> tuple[str, ...]:
    """List every attribute that a quantizer of Brevitas can make use of."""
    from brevitas.inject import BaseInjector

    names: set[str] = set(read_by_proxies())
    for cls in (*_classes_of("brevitas.quant"), *_classes_of("brevitas.core")):
        if issubclass(cls, BaseInjector):
            names |= cls.__dependencies__.keys() | read_in(cls)
        elif issubclass(cls, nn.Module):
            names |= inspect.signature(cls).parameters.keys()
    return tuple(sorted(n for n in names if not n.startswith("_") and n not in ("args", "kwargs")))


@cache
def read_by_proxies() -> tuple[str, ...]:
    """List the attributes that Brevitas reads from a quantizer as a whole."""
    import brevitas

    pattern = re.compile(r"quant_injector\.(\w+)|['\"](\w+)['\"] in (?:self\.)?quant_injector")
    names: set[str] = set()
    for folder in ("proxy", "export", "graph"):
        for path in sorted((Path(brevitas.__path__[0]) / folder).rglob("*.py")):
            names |= {a or b for a, b in pattern.findall(path.read_text(encoding="utf-8"))}
    return tuple(sorted(names - {"let"}))


def read_in(injector: Any) -> set[str]:
    """List the attributes that others of the same quantizer ask for."""
    return {name for spec in injector.__dependencies__.values() for name in spec[2]}
