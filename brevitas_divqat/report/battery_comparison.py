# SPDX-License-Identifier: BSD-3-Clause
"""The same battery against plain QAT and against a defended victim, entry by entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.report.battery_records import Battery
from brevitas_divqat.report.battery_settings import differing, text_of
from brevitas_divqat.report.measurements import TITLES
from brevitas_divqat.report.stats import Stat, points, seeds_text

__all__ = ["Comparison", "compare_batteries", "comparison_table", "not_compared"]

PLAIN = "qat"


@dataclass(frozen=True)
class Compared:
    """One entry against both victims, over the seeds that both have."""

    name: str
    plain: Stat  # accuracy of the copy of plain QAT
    other: Stat  # of the defended victim
    change: Stat  # paired by seed


@dataclass(frozen=True)
class Comparison:
    """All entries that were carried out against both victims, the largest loss first."""

    plain: Battery
    other: Battery
    rows: tuple[Compared, ...]
    left_out: Mapping[str, str]  # why other entries are not among the rows

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that both batteries have."""
        return tuple(seed for seed in self.plain.seeds if seed in self.other.seeds)


def compare_batteries(batteries: Sequence[Battery]) -> list[Comparison]:
    """Pair each battery against plain QAT with those of equal settings against other victims.

    Returns:
        The comparisons that have rows; `not_compared` says what is missing.
    """
    comparisons = [
        _comparison(plain, other)
        for plain in batteries
        for other in batteries
        if plain.victim == PLAIN and other.victim != PLAIN and not _differing(plain, other)
    ]
    return [comparison for comparison in comparisons if comparison.rows]


def not_compared(batteries: Sequence[Battery]) -> list[str]:
    """Say in a line why a battery against a defended victim is compared with none of plain QAT.

    Returns:
        A line for each such battery; none where no battery against plain QAT is given.
    """
    plains = [battery for battery in batteries if battery.victim == PLAIN]
    compared = [comparison.other for comparison in compare_batteries(batteries)]
    return [
        _why_not(other, plains)
        for other in batteries
        if plains and other.victim != PLAIN and not any(other is one for one in compared)
    ]


def _why_not(other: Battery, plains: Sequence[Battery]) -> str:
    """Name what keeps a battery from the nearest one: that which differs in the fewest settings."""
    plain = min(plains, key=lambda p: len({key.split(".")[0] for key in _differing(p, other)}))
    keys = _differing(plain, other)
    comparison = _comparison(plain, other)
    if keys:
        ours, theirs = text_of(other.setting, keys[0]), text_of(plain.setting, keys[0])
        reason = f"{keys[0]} is {ours}, but {theirs} against plain QAT"
    elif not comparison.seeds:
        reason = "they have no seed in common"
    else:
        reason = f"no entry was carried out against both{_list(comparison)}"
    return (
        f"Not compared: {other.against}, {seeds_text(other.seeds)}, with {plain.against}, "
        f"{seeds_text(plain.seeds)}: {reason}."
    )


def _differing(plain: Battery, other: Battery) -> list[str]:
    """Return the settings that two batteries must share to be compared, and do not."""
    keys = differing(plain.setting, other.setting)
    return [key for key in keys if key.split(".")[0] not in ("victim", "method")]


def _comparison(plain: Battery, other: Battery) -> Comparison:
    undefended = {row.name: row.accuracy for row in plain.rows}
    defended = {row.name: row.accuracy for row in other.rows}
    rows = []
    left_out = {}
    for name in dict.fromkeys([*undefended, *defended, *plain.skipped, *other.skipped]):
        if name not in undefended and name not in defended:
            left_out[name] = "skipped against both"
        elif name not in undefended or name not in defended:
            victim = plain if name in defended else other
            left_out[name] = f"skipped against {_name(victim)}"
        elif seeds := set(undefended[name].seeds) & set(defended[name].seeds):
            before, after = undefended[name].at(seeds), defended[name].at(seeds)
            rows.append(Compared(name, before, after, after.minus(before)))
        else:
            left_out[name] = "no seed in common"
    ordered = sorted(rows, key=lambda row: row.change.mean)
    return Comparison(plain, other, tuple(ordered), left_out)


def _name(battery: Battery) -> str:
    return TITLES.get(battery.victim, battery.victim)


def _list(comparison: Comparison) -> str:
    """List the entries that were left out after a colon; nothing where there is none."""
    entries = ", ".join(f"{name} ({reason})" for name, reason in comparison.left_out.items())
    return f": {entries}" if entries else ""


def comparison_table(comparison: Comparison) -> Table:
    """Build the table of all entries, those that the defence stops best first."""
    plain, other, seeds = comparison.plain, comparison.other, comparison.seeds
    own = [battery.own.at(seeds).interval_percent for battery in (plain, other)]
    how = ", mean and half of the 95 % interval (Student's t), differences paired by seed"
    left_out = f" Not compared{_list(comparison)}." if comparison.left_out else ""
    table = Table(
        title=Text(
            f"{other.against} beside {plain.against}, battery {plain.version} ({plain.name}): "
            f"{plain.attacked}, {seeds_text(seeds)}",
            style="bold",
        ),
        caption=Text(
            f"Accuracy of the stolen copy in % on {plain.images:,} {plain.split} images"
            f"{how if len(seeds) > 1 else ''}. The victims have {own[0]} and {own[1]} %. "
            f"Foreign images: {plain.foreign}. Executor: {plain.executor}.{left_out}",
            style="dim",
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("entry", overflow="fold")
    for column in (_name(plain), _name(other), "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in comparison.rows:
        few = "" if row.change.n == len(seeds) else f" ({row.change.n} of {len(seeds)} seeds)"
        cells = (f"{row.name}{few}", *(s.interval_percent for s in (row.plain, row.other)))
        table.add_row(*(Text(cell) for cell in (*cells, _signed(row.change))))
    return table


def _signed(change: Stat) -> str:
    mean = points(change.mean)
    return mean if change.reach is None else f"{mean} ± {100 * change.reach:.1f}"
