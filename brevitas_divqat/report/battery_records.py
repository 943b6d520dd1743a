# SPDX-License-Identifier: BSD-3-Clause
"""Read attack batteries, refuse those that cannot be rendered, average those of several seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.evaluation.battery import BATTERY_FILE, SCHEMA
from brevitas_divqat.report.battery_settings import Setting, apart, setting_of
from brevitas_divqat.report.measurements import TITLES, bits_text
from brevitas_divqat.report.records import (
    BEFORE_SPLITS,
    COUNT,
    FRACTION,
    LIST,
    OBJECT,
    TEXT,
    Record,
    Type,
    check_fields,
    read_json,
)
from brevitas_divqat.report.stats import Stat, seeds_text

__all__ = ["BATTERY_FILE", "Battery", "BatteryRow", "load_batteries"]

FLOOR_SOURCE = "floor"
REMEDY = "delete it and go on with --battery --resume"
_STATUS = Type("'measured' or 'skipped'", lambda value: value in ("measured", "skipped"))
_SAME = {
    "victim": TEXT,
    "battery": OBJECT,
    "data": TEXT,
    "model": TEXT,
    "bits": OBJECT,
    "interface": OBJECT,
    "images": COUNT,
    "split": TEXT,
    "method": OBJECT,
    "executor": TEXT,
    "pools": OBJECT,
    "surrogate_device": TEXT,
}
"""What seeds of one battery have in common, beside the settings of their entries."""
_REQUIRED = {
    **_SAME,
    "battery.name": TEXT,
    "battery.version": COUNT,
    "interface.kind": TEXT,
    "pools.ood": OBJECT,
    "pools.ood.name": TEXT,
    "pools.ood.images": COUNT,
    "seed": COUNT,
    "graph_sha256": TEXT,
    "victim_accuracy": FRACTION,
    "queries": COUNT,
    "entries": LIST,
}
_ENTRY = {"status": _STATUS, "entry": OBJECT, "entry.name": TEXT, "entry.source": TEXT}
_OF_STATUS = {
    "measured": {"queries": COUNT, "accuracy": FRACTION, "fidelity": FRACTION},
    "skipped": {"reason": TEXT},
}
_OPTIONAL = {"renamed_accuracy": FRACTION}


@dataclass(frozen=True, kw_only=True)
class BatteryRow:
    """One entry, over the seeds at which it was carried out."""

    name: str
    source: str
    queries: int  # answers that the surrogate learned from
    accuracy: Stat  # of the surrogate on the images that judge
    fidelity: Stat  # agreement of surrogate and victim on them
    # Its accuracy once its classes are renamed by the true labels; None where a seed lacks it, as
    # files of earlier versions do.
    renamed: Stat | None

    @property
    def floor(self) -> bool:
        """Whether it needs neither images nor skill."""
        return self.source == FLOOR_SOURCE


@dataclass(frozen=True, kw_only=True)
class Battery:
    """All entries against one victim."""

    name: str
    version: int
    victim: str
    apart: str  # settings that tell it from others against such a victim, in words; or empty
    data: str
    model: str
    bits: str  # in words
    interface: str  # likewise
    executor: str
    foreign: str  # the thief's foreign images, in words
    seeds: tuple[int, ...]
    images: int
    split: str  # "test" or "validation": the images that judged
    queries: int  # distinct ones, of one seed
    own: Stat  # accuracy of the victim
    rows: tuple[BatteryRow, ...]
    skipped: Mapping[str, str]  # why entries were not carried out
    setting: Setting = field(repr=False, compare=False)  # what its seeds have in common

    @property
    def against(self) -> str:
        """The victim in words, and what tells it from others that are shown."""
        name = TITLES.get(self.victim, self.victim)
        return f"{name} ({self.apart})" if self.apart else name

    @property
    def attacked(self) -> str:
        """What was attacked, in words, without victim and seeds."""
        words = (self.data, self.model, self.bits, self.interface)
        return ", ".join(word for word in words if word)

    @property
    def title(self) -> str:
        """What was attacked, in words."""
        return (
            f"Battery {self.version} ({self.name}) against {self.against}: {self.attacked}, "
            f"{seeds_text(self.seeds)}"
        )

    def worst(self, key: str) -> BatteryRow | None:
        """Return the entry that gains most of ``accuracy`` or ``fidelity``."""
        return _highest(self.rows, key)

    def floor(self, key: str) -> BatteryRow | None:
        """Return the entry that gains most without images or skill."""
        return _highest([row for row in self.rows if row.floor], key)


def _highest(rows: Sequence[BatteryRow], key: str) -> BatteryRow | None:
    return max(rows, key=lambda row: getattr(row, key).mean, default=None)


def load_batteries(folders: Sequence[Path]) -> list[Battery]:
    """Read the batteries of those folders that hold one.

    Args:
        folders: of runs or batteries; batteries that differ only in seed are averaged.

    Returns:
        One battery per victim and setting.

    Raises:
        ConfigError: if a file is damaged, or an entry or a seed occurs twice.
    """
    groups: dict[frozenset[tuple[str, str]], list[Record]] = defaultdict(list)
    for folder in folders:
        path = Path(folder) / BATTERY_FILE
        if path.exists():
            record = _read(path)
            groups[frozenset(_setting(record).items())].append(record)
    settings = [_setting(group[0]) for group in groups.values()]
    return [_battery(group, settings) for group in groups.values()]


def _setting(record: Record) -> Setting:
    return setting_of(record, tuple(_SAME))


def _read(path: Path) -> Record:
    content = read_json(path, remedy=REMEDY)
    if not isinstance(content, dict) or content.get("kind") != "battery":
        raise ConfigError(f"{path}: is no battery; {REMEDY}")
    if content.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path}: schema is {content.get('schema')!r}, expected {SCHEMA}; use the version of "
            "brevitas-divqat that wrote it"
        )
    content = {"split": BEFORE_SPLITS} | content
    record = Record(path, content)
    check_fields(record, _REQUIRED, remedy=REMEDY)
    names: set[str] = set()
    for number, row in enumerate(record["entries"]):
        where = f"entry {number}: "
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: {where}is {row!r}, expected {OBJECT.words}; {REMEDY}")
        check_fields(Record(path, row), _ENTRY, where=where, remedy=REMEDY)
        required = _OF_STATUS[row["status"]]
        check_fields(Record(path, row), required, _OPTIONAL, where=where, remedy=REMEDY)
        name = row["entry"]["name"]
        if name in names:
            raise ConfigError(f"{path}: {where}{name!r} occurs a second time; {REMEDY}")
        names.add(name)
    return record


def _require_distinct_seeds(group: Sequence[Record]) -> None:
    seen: dict[int, Path] = {}
    for record in group:
        seed = record["seed"]
        if seed in seen:
            raise ConfigError(
                f"{record.path}: the battery against {record['victim']} with the seed {seed} was "
                f"already read from {seen[seed]}; name each folder once and give every battery its "
                "own seed"
            )
        seen[seed] = record.path


def _battery(group: Sequence[Record], settings: Sequence[Setting]) -> Battery:
    """Join the seeds of one battery; ``settings`` are those of all batteries that are shown."""
    _require_distinct_seeds(group)
    first = group[0]
    setting = _setting(first)
    seeds = [record["seed"] for record in group]
    measured: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    skipped: dict[str, dict[int, str]] = defaultdict(dict)
    for record in group:
        for row in record["entries"]:
            name = row["entry"]["name"]
            if row["status"] == "skipped":
                skipped[name][record["seed"]] = row["reason"]
            else:
                measured[name][record["seed"]] = row
    return Battery(
        name=first["battery.name"],
        version=first["battery.version"],
        victim=first["victim"],
        apart=apart(setting, settings),
        data=first["data"],
        model=first["model"],
        bits=bits_text(first["bits"]),
        interface=_interface(first),
        executor=first["executor"],
        foreign=f"{first['pools.ood.images']:,} of {first['pools.ood.name']}",
        seeds=tuple(sorted(seeds)),
        images=first["images"],
        split=first["split"],
        queries=first["queries"],
        own=Stat.of({record["seed"]: record["victim_accuracy"] for record in group}),
        rows=tuple(_row(name, rows) for name, rows in measured.items()),
        skipped={name: _reason(reasons, seeds) for name, reasons in skipped.items()},
        setting=setting,
    )


def _interface(record: Record) -> str:
    kind, k, decimals = (record[f"interface.{key}"] for key in ("kind", "k", "decimals"))
    shown = kind if k is None else f"{kind} {k}"
    if decimals is None:
        return shown
    return f"{shown} of {decimals} decimal{'' if decimals == 1 else 's'}"


def _reason(reasons: Mapping[int, str], seeds: Sequence[int]) -> str:
    """Say why an entry was skipped, and at which seeds if not for one reason at all of them."""
    if len(reasons) == len(seeds) and len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"seed {seed}: {reason}" for seed, reason in sorted(reasons.items()))


def _row(name: str, rows: Mapping[int, Mapping[str, Any]]) -> BatteryRow:
    first = next(iter(rows.values()))
    renamed: dict[int, Any] = {seed: row.get("renamed_accuracy") for seed, row in rows.items()}
    return BatteryRow(
        name=name,
        source=first["entry"]["source"],
        queries=first["queries"],
        accuracy=Stat.of({seed: row["accuracy"] for seed, row in rows.items()}),
        fidelity=Stat.of({seed: row["fidelity"] for seed, row in rows.items()}),
        renamed=None if None in renamed.values() else Stat.of(renamed),
    )
