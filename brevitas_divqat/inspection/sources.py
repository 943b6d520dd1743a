# SPDX-License-Identifier: BSD-3-Clause
"""Swallowed keywords in the source code of a finished model's classes.

A layer does not remember a keyword that Brevitas dropped, but the class that built it says which
one it was. Where there is no source, as in an interactive session, nothing is said.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_divqat.inspection.accepted import accepted_keywords, takes_keywords
from brevitas_divqat.inspection.injectors import SwallowedKeyword
from brevitas_divqat.inspection.keywords import dropped_keyword

__all__ = ["swallowed_in_sources"]

LIBRARIES = {"brevitas", "torch", "torchvision"}


def swallowed_in_sources(model: nn.Module) -> list[tuple[str, SwallowedKeyword]]:
    """Find calls of Brevitas layers, with keywords that are dropped, in a model's own classes.

    The classes of all modules of the model are read, with those they derive from; names are
    resolved as in the module that defines the class. Keywords that come in ``**kwargs``, and
    layers that a function outside the classes builds, are not seen.

    Returns:
        Pairs of the qualified name of the first module of that class and what was found, with file
        and line.
    """
    found = []
    read: set[type] = set()
    for name, module in model.named_modules():
        for cls in type(module).__mro__:
            if cls in read or cls.__module__.partition(".")[0] in LIBRARIES | {"builtins"}:
                continue
            read.add(cls)
            found += [(name, keyword) for keyword in _in_class(cls)]
    return found


def _in_class(cls: type) -> Iterator[SwallowedKeyword]:
    try:
        lines, first = inspect.getsourcelines(cls)
        file = inspect.getsourcefile(cls)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return
    defining = sys.modules.get(cls.__module__)
    local = _assigned(tree)
    scope = {k: v for k, v in vars(defining).items() if k not in local} if defining else {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        layer = _resolve(call.func, scope)
        if layer is partial and call.args:
            layer = _resolve(call.args[0], scope)
        if not takes_keywords(layer):
            continue
        for keyword in call.keywords:
            if keyword.arg is None or accepted_keywords(layer).takes(keyword.arg):
                continue
            where = f"{Path(file or '').name}:{first + keyword.lineno - 1}"
            yield dropped_keyword(layer, keyword.arg, ast.unparse(keyword.value), where=where)


def _assigned(tree: ast.Module) -> set[str]:
    """Name what the class itself gives a meaning, which may differ from the module's."""
    nodes = list(ast.walk(tree))
    names = [n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return {n.id for n in names} | {n.arg for n in nodes if isinstance(n, ast.arg)}


def _resolve(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_resolve(node.value, scope), node.attr, None)
    return None
