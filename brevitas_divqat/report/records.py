# SPDX-License-Identifier: BSD-3-Clause
"""Read the JSON files of a run and refuse those that cannot be rendered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import ConfigError

__all__ = ["SCHEMA", "Record", "read_json", "read_records", "require_equal"]

SCHEMA = 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True)
class _Type:
    words: str
    holds: Callable[[Any], bool]


_TEXT = _Type("a text", lambda value: isinstance(value, str))
_COUNT = _Type("an integer from 0", _is_count)
_NUMBER = _Type("a finite number", _is_number)
_FRACTION = _Type("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_OBJECT = _Type("an object", lambda value: isinstance(value, dict))

_COMMON = {
    "victim": _TEXT,
    "data": _TEXT,
    "model": _TEXT,
    "bits": _OBJECT,
    "bits.weight": _COUNT,
    "bits.activation": _COUNT,
    "seed": _COUNT,
    "images": _COUNT,
    "graph_sha256": _TEXT,
}
_REQUIRED = {
    "victim": {
        **_COMMON,
        "method": _OBJECT,
        "accuracy.float": _FRACTION,
        "accuracy.brevitas": _FRACTION,
        "accuracy.qonnx": _FRACTION,
        "brevitas_vs_qonnx.labels_differing": _COUNT,
        "brevitas_vs_qonnx.images_differing": _COUNT,
        "brevitas_vs_qonnx.max_abs_difference": _NUMBER,
        "calibration_error": _FRACTION,
        "parameters": _COUNT,
        "executor": _TEXT,
    },
    "extraction": {
        **_COMMON,
        "attack": _TEXT,
        "policy": _TEXT,
        "pool": _TEXT,
        "pool_name": _TEXT,
        "pool_images": _COUNT,
        "labels": _TEXT,
        "interface": _OBJECT,
        "queries": _COUNT,
        "budget": _COUNT,
        "surrogate": _OBJECT,
        "accuracy": _FRACTION,
        "fidelity": _FRACTION,
    },
}
# What cannot be computed for some label kinds: absent or null is allowed, nonsense is not.
_OPTIONAL = {"query_set.kl_to_float": _NUMBER, "query_set.entropy": _NUMBER}


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


def read_json(path: Path) -> Any:
    """Decode a JSON file.

    Raises:
        ConfigError: The file cannot be read or decoded.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: not readable as JSON ({error}); delete it and measure again"
        ) from error


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
    return [_checked(Record(path, read_json(path))) for path in paths]


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
    for key, expected in (_REQUIRED[kind] | _OPTIONAL).items():
        value = record[key]
        if value is None:
            if key in _OPTIONAL:
                continue
            raise ConfigError(f"{path}: lacks {key!r}, {expected.words}; measure again")
        if not expected.holds(value):
            raise ConfigError(
                f"{path}: {key} is {value!r}, expected {expected.words}; measure again"
            )
    return record


def require_equal(records: Sequence[Record], keys: Sequence[str]) -> None:
    """Refuse records that disagree in one of the keys.

    Raises:
        ConfigError: Two records hold different values; the message names the key and both files.
    """
    for record in records[1:]:
        for key in keys:
            ours, theirs = record[key], records[0][key]
            if ours != theirs:
                raise ConfigError(
                    f"{record.path}: {key} is {ours!r}, but {theirs!r} in {records[0].path}; "
                    "only runs that differ in seed can be averaged"
                )
