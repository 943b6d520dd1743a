# SPDX-License-Identifier: BSD-3-Clause
"""What batteries must have in common to be averaged or compared, and what tells them apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brevitas_divqat.report.records import Record

__all__ = ["Setting", "apart", "differing", "setting_of", "text_of"]

Setting = Mapping[str, str]
"""Dotted key, such as ``bits.weight`` -> its value as JSON text."""
_DEPTH = 2
"""Dots in a key such as ``pools.ood.name``: what lies deeper is one value."""
_UNSEEN = ("method", "pools.in", "pools.ood.crc32", "surrogate_device", "entries")
"""What neither title nor caption of a battery says."""


def setting_of(record: Record, keys: Sequence[str]) -> Setting:
    """Collect these keys of a battery, and the settings of its entries by name."""
    entries = {row["entry"]["name"]: row["entry"] for row in record["entries"]}
    values = {**{key: record[key] for key in keys}, "entries": entries}
    return dict(pair for key, value in values.items() for pair in _flat(key, value))


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and key.count(".") < _DEPTH:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    else:
        yield key, json.dumps(value, sort_keys=True, ensure_ascii=False)


def differing(ours: Setting, theirs: Setting) -> list[str]:
    """Return the keys in which two batteries differ, or that one of them lacks."""
    return [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]


def text_of(setting: Setting, key: str) -> str:
    """Write a value for people; ``none`` where there is none."""
    text = setting.get(key, "null")
    return "none" if text == "null" else text.strip('"')


def apart(own: Setting, every: Sequence[Setting]) -> str:
    """Name what sets a battery apart from others against a victim of the same name.

    Args:
        own: of the battery.
        every: of all batteries that are shown, this one included.

    Returns:
        How its victim was trained where the others were trained in another way, and what titles do
        not say where these are alike; empty where there is nothing to add.
    """
    found: set[str] = set()
    for other in every:
        if other["victim"] == own["victim"]:
            keys = differing(own, other)
            alike = all(key.startswith(_UNSEEN) for key in keys)
            found.update(key for key in keys if key.startswith("method.") or alike)
    names = dict.fromkeys(key for setting in (own, *every) for key in setting)
    return ", ".join(
        f"{key.removeprefix('method.')} {text_of(own, key)}"
        for key in names
        if key in found and not key.startswith("entries.")
    )
