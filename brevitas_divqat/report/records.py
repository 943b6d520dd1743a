# SPDX-License-Identifier: BSD-3-Clause
"""Read the JSON files of a run and refuse those that cannot be rendered."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.evaluation.measure import SCHEMA

__all__ = [
    "BEFORE_SPLITS",
    "COUNT",
    "CURVE",
    "FRACTION",
    "LIST",
    "NUMBER",
    "OBJECT",
    "TEXT",
    "Record",
    "Type",
    "check_fields",
    "read_json",
    "read_records",
    "require_equal",
]

LARGEST = 2**53
"""The largest number of anything: up to here a float holds every integer."""


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -LARGEST <= value <= LARGEST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_curve(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(point, dict) for point in value):
        return False
    asked = [point.get("queries") for point in value]
    return (
        all(_is_count(queries) for queries in asked)
        and all(before < after for before, after in itertools.pairwise([0, *asked]))
        and all(FRACTION.holds(point.get("accuracy")) for point in value)
    )


def _check_curve(record: Record) -> None:
    """Refuse a curve with a point beyond the queries that were asked."""
    for point in record["curve"] or []:
        if point["queries"] > record["queries"]:
            raise ConfigError(
                f"{record.path}: curve has a point at {point['queries']} queries, but "
                f"{record['queries']} were asked; measure again"
            )


@dataclass(frozen=True)
class Type:
    """What a field must be.

    Args:
        words: for messages.
        holds: whether a value is one.
    """

    words: str
    holds: Callable[[Any], bool]


TEXT = Type("a text", lambda value: isinstance(value, str))
COUNT = Type(f"an integer from 0 to {LARGEST}", _is_count)
NUMBER = Type(f"a number from {-LARGEST} to {LARGEST}", _is_number)
FRACTION = Type("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
OBJECT = Type("an object", lambda value: isinstance(value, dict))
LIST = Type("a list", lambda value: isinstance(value, list))
CURVE = Type("a list of objects with ascending queries from 1, and accuracy", _is_curve)

BEFORE_SPLITS = "test"
"""The images that judged before measurements said which."""

_COMMON = {
    "victim": TEXT,
    "data": TEXT,
    "model": TEXT,
    "bits": OBJECT,
    "bits.weight": COUNT,
    "bits.activation": COUNT,
    "seed": COUNT,
    "images": COUNT,
    "split": TEXT,
    "graph_sha256": TEXT,
}
_REQUIRED = {
    "victim": {
        **_COMMON,
        "method": OBJECT,
        "accuracy.float": FRACTION,
        "accuracy.brevitas": FRACTION,
        "accuracy.qonnx": FRACTION,
        "brevitas_vs_qonnx.labels_differing": COUNT,
        "brevitas_vs_qonnx.images_differing": COUNT,
        "brevitas_vs_qonnx.max_abs_difference": NUMBER,
        "calibration_error": FRACTION,
        "parameters": COUNT,
        "executor": TEXT,
    },
    "extraction": {
        **_COMMON,
        "attack": TEXT,
        "policy": TEXT,
        "pool": TEXT,
        "pool_name": TEXT,
        "pool_images": COUNT,
        "labels": TEXT,
        "interface": OBJECT,
        "queries": COUNT,
        "budget": COUNT,
        "surrogate": OBJECT,
        "accuracy": FRACTION,
        "fidelity": FRACTION,
    },
}
# What cannot be computed for some label kinds, or is not in files of earlier versions: absent or
# null is allowed, nonsense is not.
_OPTIONAL = {
    "query_set.kl_to_float": NUMBER,
    "query_set.entropy": NUMBER,
    "curve": CURVE,
    "renamed_accuracy": FRACTION,
}


@dataclass(frozen=True)
class Record:
    """One measurement as it was read.

    Args:
        path: The file, for messages.
        fields: The decoded JSON object.
    """

    path: Path
    fields: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        """Look up a dotted key such as ``accuracy.float``; None where it is absent."""
        value: Any = self.fields
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read_json(path: Path, *, remedy: str = "delete it and measure again") -> Any:
    """Decode a JSON file.

    Args:
        path: of the file.
        remedy: what to do if it is damaged.

    Raises:
        ConfigError: The file cannot be read or decoded.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # RecursionError: brackets in brackets, deeper than any measurement.
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}); {remedy}") from error


def read_records(run: Path) -> list[Record]:
    """Read and check every measurement of a run.

    Raises:
        ConfigError: There is no measurement, or one of them is damaged.
    """
    folder = run / "measurements"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name a run whose victims were measured")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ConfigError(f"{folder}: holds no measurement (*.json); measure the victims first")
    return [_checked(Record(path, _read(path))) for path in paths]


def _read(path: Path) -> Any:
    content = read_json(path)
    return {"split": BEFORE_SPLITS} | content if isinstance(content, dict) else content


def _checked(record: Record) -> Record:
    path, schema, kind = record.path, record["schema"], record["kind"]
    if _is_count(schema) and schema > SCHEMA:
        raise ConfigError(
            f"{path}: schema {schema} was made by a newer version of brevitas-divqat, this one "
            f"reads schema {SCHEMA}; update brevitas-divqat"
        )
    if schema != SCHEMA:
        raise ConfigError(f"{path}: schema is {schema!r}, expected {SCHEMA}; measure again")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise ConfigError(
            f"{path}: kind is {kind!r}, expected {' or '.join(_REQUIRED)}; "
            "move files that are no measurements out of the folder"
        )
    check_fields(record, _REQUIRED[kind], _OPTIONAL)
    if kind == "extraction":
        _check_curve(record)
    return record


def check_fields(
    record: Record,
    required: Mapping[str, Type],
    optional: Mapping[str, Type] | None = None,
    *,
    where: str = "",
    remedy: str = "measure again",
) -> None:
    """Refuse a record that lacks a field, or holds another type of it.

    Args:
        record: what was read.
        required: type of each field, by dotted key.
        optional: likewise, of fields that may be absent or null.
        where: of the record in its file, for messages.
        remedy: what to do.

    Raises:
        ConfigError: naming file, field and remedy.
    """
    optional = optional or {}
    for key, expected in {**required, **optional}.items():
        value = record[key]
        if value is None:
            if key in optional:
                continue
            raise ConfigError(f"{record.path}: {where}lacks {key!r}, {expected.words}; {remedy}")
        if not expected.holds(value):
            raise ConfigError(
                f"{record.path}: {where}{key} is {value!r}, expected {expected.words}; {remedy}"
            )


def require_equal(
    records: Sequence[Record],
    keys: Sequence[str],
    why: str = "only runs that differ in seed can be averaged",
) -> None:
    """Refuse records that disagree in one of the keys.

    Raises:
        ConfigError: Two records hold different values; the message names the key and both files.
    """
    for record in records[1:]:
        for key in keys:
            ours, theirs = record[key], records[0][key]
            if ours != theirs:
                raise ConfigError(
                    f"{record.path}: {key} is {ours!r}, but {theirs!r} in {records[0].path}; {why}"
                )
