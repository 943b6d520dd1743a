# SPDX-License-Identifier: BSD-3-Clause
"""Dataclasses from parsed JSON, which somebody may have damaged."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, TypeVar, get_type_hints

__all__ = ["record", "record_list", "table_of"]

Record = TypeVar("Record")
Value = TypeVar("Value")


def record(kind: type[Record], content: Any, *, zero: Collection[str] = ()) -> Record:
    """Make a dataclass of an object of parsed JSON, and look at its numbers and texts.

    Whole numbers are to be 1 or more, others above 0; what is neither number, text nor truth value
    is passed as it is.

    Args:
        kind: the dataclass.
        content: by the names of its attributes.
        zero: the whole numbers that may be 0.

    Raises:
        TypeError: if an attribute is missing, unknown, or of another type.
        ValueError: if a number is out of range.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{content!r} is no object")
    types = get_type_hints(kind)
    for name, value in content.items():
        wanted = types.get(name)
        if wanted in (str, bool, int) and type(value) is not wanted:
            raise TypeError(f"{name} is {value!r}")
        if wanted is float and type(value) not in (int, float):
            raise TypeError(f"{name} is {value!r}")
        if wanted is int and value < (0 if name in zero else 1):
            raise ValueError(f"{name} is {value}")
        if wanted is float and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}")
    return kind(**content)


def record_list(
    kind: type[Record], content: Any, *, zero: Collection[str] = ()
) -> tuple[Record, ...]:
    """Make a tuple of dataclasses of a list of objects; see `record`."""
    if not isinstance(content, list):
        raise TypeError(f"{content!r} is no list")
    return tuple(record(kind, one, zero=zero) for one in content)


def table_of(kind: type[Value], content: Any) -> dict[str, Value]:
    """Return an object of parsed JSON all of whose values are of one type; numbers 0 or more.

    Raises:
        TypeError: if it is none, or a value is of another type.
        ValueError: if a number is below 0 or none.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{content!r} is no object")
    for name, value in content.items():
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise TypeError(f"{name} is {value!r}")
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}")
    return content
