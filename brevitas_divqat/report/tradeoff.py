# SPDX-License-Identifier: BSD-3-Clause
"""The trade-off: what the victim loses and what its thief loses, over alpha, per bit width."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.files import write_bytes
from brevitas_divqat.report.figure import plain
from brevitas_divqat.report.measurements import (
    ATTACK_KIND,
    ExtractionRow,
    Measurements,
    aggregate,
    value_of,
)
from brevitas_divqat.report.records import NUMBER, Record, read_records, require_equal
from brevitas_divqat.report.stats import Stat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Point", "Tradeoff", "load_tradeoff", "tradeoff_plot", "tradeoff_tables", "write_plot"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito, "Color Universal Design" (2008)."""
_MARKERS = "osv^D<"
_PANELS = 3
"""Attacks side by side."""
_COMPARED = (
    "a trade-off compares victims that differ in alpha, seed, and bits of weights and activations "
    "alone"
)
_IN_COMMON = ("data", "model", "parameters", "bits.edge", "bits.input", "split", "images")
Bits = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A victim at one alpha and one bit width, over its seeds.

    Attributes:
        bits: of weights and activations.
        alpha: weight of the divergence; 0 is plain QAT.
        victim: accuracy of the deployed graph.
        calibration_error: of it.
        thefts: attack -> accuracy of the stolen copy.
    """

    bits: Bits
    alpha: float
    victim: Stat
    calibration_error: Stat
    thefts: Mapping[str, Stat]


@dataclass(frozen=True)
class Tradeoff:
    """Points of one data set and network, by bit width from wide to narrow, then by alpha."""

    data: str
    model: str
    split: str
    points: tuple[Point, ...]

    @property
    def attacks(self) -> tuple[str, ...]:
        """Every attack that was carried out on some victim."""
        return tuple(dict.fromkeys(name for point in self.points for name in point.thefts))


def load_tradeoff(folders: Sequence[Path]) -> Tradeoff:
    """Read folders of measurements, of victims that differ in alpha, bits and seed.

    Args:
        folders: each with victims, of plain QAT or not, and attacks on them. A victim of one bit
            width, alpha and seed, and an attack on it, may lie in several, if they are the same.

    Returns:
        A point for each bit width and alpha, over its seeds.

    Raises:
        ConfigError: if there is no folder, one holds no victim, two victims differ in more than
            alpha, bits and seed, or two attacks of one kind in a setting.
    """
    if not folders:
        raise ConfigError("no folder of measurements is given: name one or more")
    points: dict[tuple[Bits, float], dict[object, Record]] = defaultdict(dict)
    hardened: list[Record] = []
    victims: list[Record] = []
    for folder in folders:
        records = read_records(folder)
        own = {r["graph_sha256"]: r for r in records if r["kind"] == "victim"}
        if not own:
            raise ConfigError(f"{folder}: holds no measurement of a victim; measure it first")
        victims += own.values()
        require_equal(victims, _IN_COMMON, _COMPARED)
        hardened += [record for record in own.values() if record["victim"] != "qat"]
        for record in records:
            victim = own.get(record["graph_sha256"])
            if victim is None:
                raise ConfigError(
                    f"{record.path}: an attack on a victim that was not measured in {folder}; "
                    "measure it first"
                )
            _add(points[_bits(victim), _alpha(victim)], record)
    for record in hardened:
        _require_same_but_alpha(record, hardened[0])
    ordered = sorted(points, key=lambda key: (-key[0][0], -key[0][1], key[1]))
    joined = [(key, _by_pool(points[key].values())) for key in ordered]
    _require_same_attacks([m for _, measured in joined for m in measured])
    return Tradeoff(
        victims[0]["data"],
        victims[0]["model"],
        victims[0]["split"],
        tuple(_point(*key, measured) for key, measured in joined),
    )


def _bits(victim: Record) -> Bits:
    return victim["bits.weight"], victim["bits.activation"]


def _alpha(victim: Record) -> float:
    if victim["victim"] == "qat":
        return 0.0
    alpha = victim["method.alpha"]
    if not NUMBER.holds(alpha) or alpha <= 0:
        raise ConfigError(
            f"{victim.path}: alpha is {alpha!r}, expected a number above 0 for a victim that is "
            "not plain QAT; measure again"
        )
    return float(alpha)


def _add(point: dict[object, Record], record: Record) -> None:
    """Add a measurement, once where several folders hold the same one."""
    what = ("budget", "pool_name", "labels", *ATTACK_KIND) if record["kind"] != "victim" else ()
    key = (record["kind"], record["seed"], *(value_of(record, name) for name in what))
    require_equal([point.setdefault(key, record), record], ("graph_sha256", "accuracy"), _COMPARED)


def _by_pool(records: Collection[Record]) -> list[Measurements]:
    """Aggregate a point's victim, and the attacks on it for each of the thief's data sets."""
    victims = [record for record in records if record["kind"] == "victim"]
    pools: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] != "victim":
            pools[record["pool_name"]].append(record)
    return [aggregate([*victims, *thefts]) for thefts in pools.values()] or [aggregate(victims)]


def _require_same_but_alpha(record: Record, first: Record) -> None:
    own, other = _settings(record), _settings(first)
    for key in own.keys() | other.keys():
        if own.get(key) != other.get(key):
            raise ConfigError(
                f"{record.path}: {key} is {own.get(key)}, but {other.get(key)} in {first.path}; "
                f"{_COMPARED}"
            )


def _settings(record: Record) -> dict[str, Any]:
    """Return what decides a hardened training beside alpha, whatever preset it came from."""
    return {
        key: value
        for key, value in record["method"].items()
        if key not in ("alpha", "preset") and value not in (None, [])
    }


def _require_same_attacks(measured: Sequence[Measurements]) -> None:
    first: dict[str, ExtractionRow] = {}
    for row in (row for m in measured for row in m.extractions):
        seen = first.setdefault(_name(row), row)
        for key, value in row.settings.items():
            if value != seen.settings[key]:
                raise ConfigError(
                    f"the attack {row.attack} has {key} {value} at one alpha or bit width, and "
                    f"{seen.settings[key]} at another; give folders of attacks with one {key}, "
                    f"since {_COMPARED}"
                )


def _name(row: ExtractionRow) -> str:
    return f"{row.attack}\n({row.settings['pool_name']})"


def _point(bits: Bits, alpha: float, measured: Sequence[Measurements]) -> Point:
    (victim,) = measured[0].victims
    return Point(
        bits=bits,
        alpha=alpha,
        victim=victim.qonnx_accuracy,
        calibration_error=victim.calibration_error,
        thefts={_name(theft): theft.accuracy for m in measured for theft in m.extractions},
    )


def tradeoff_tables(tradeoff: Tradeoff) -> list[Table]:
    """Build a table per bit width: a column per alpha, a row for the victim and for each attack."""
    return [_table(tradeoff, bits) for bits in dict.fromkeys(p.bits for p in tradeoff.points)]


def _table(tradeoff: Tradeoff, bits: Bits) -> Table:
    points = [point for point in tradeoff.points if point.bits == bits]
    table = Table(
        title=Text(f"{_title(tradeoff)}, W{bits[0]}A{bits[1]}", style="bold"),
        caption=Text(
            f"Accuracy in % on the {tradeoff.split} images, mean ± half of the 95 % interval "
            "(Student's t) over seeds, in brackets how many where not as many as the victim's; "
            "alpha 0 is plain QAT.",
            style="dim",
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("alpha")
    for point in points:
        table.add_column(f"{point.alpha:g}", justify="right", no_wrap=True)
    table.add_row("seeds", *(str(point.victim.n) for point in points))
    table.add_row("victim", *(point.victim.interval_percent for point in points))
    table.add_row("ECE", *(point.calibration_error.interval_percent for point in points))
    for attack in tradeoff.attacks:
        if any(attack in point.thefts for point in points):
            table.add_row(
                Text(attack.replace("\n", " ")), *(_cell(point, attack) for point in points)
            )
    return table


def _cell(point: Point, attack: str) -> str:
    stat = point.thefts.get(attack)
    if stat is None:
        return "-"
    few = f" ({stat.n})" if stat.n != point.victim.n else ""
    return f"{stat.interval_percent}{few}"


def tradeoff_plot(tradeoff: Tradeoff) -> Figure:
    """Draw the copy's error over the victim's, a panel per attack, a line per bit width.

    Attacks that nowhere were carried out at two alphas have no panel, unless none was.
    Bars are 95 % intervals (Student's t) over seeds; the hollow point is plain QAT. The figure is
    not registered anywhere: save it with its ``savefig``.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    attacks = _compared(tradeoff) or tradeoff.attacks
    columns = min(_PANELS, max(len(attacks), 1))
    rows = -(-max(len(attacks), 1) // columns)
    figure = Figure(
        figsize=(4.2 * columns, 3.6 * rows + 0.6),
        dpi=150,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
    )
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    handles = {}
    for axes, attack in zip(panels, attacks, strict=False):
        axes.set_title(plain(attack), fontsize="medium")
        axes.set_ylim(0, 100)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for index, bits in enumerate(dict.fromkeys(point.bits for point in tradeoff.points)):
            line = [p for p in tradeoff.points if p.bits == bits and attack in p.thefts]
            if line:
                handles[bits] = _draw(axes, line, attack, index % len(_COLOURS))
    for axes in panels[len(attacks) :]:
        axes.set_visible(False)
    figure.supxlabel(f"error of the victim on the {tradeoff.split} images, %", fontsize="medium")
    figure.supylabel("error of the stolen copy, %", fontsize="medium")
    figure.suptitle(plain(_title(tradeoff)), fontsize="medium")
    figure.legend(handles=list(handles.values()), loc="outside right upper", frameon=False)
    return figure


def _compared(tradeoff: Tradeoff) -> tuple[str, ...]:
    """Return the attacks that were carried out at several alphas of one bit width."""
    counts = Counter((p.bits, attack) for p in tradeoff.points for attack in p.thefts)
    several = {attack for (_, attack), count in counts.items() if count > 1}
    return tuple(attack for attack in tradeoff.attacks if attack in several)


def _draw(axes: Any, line: Sequence[Point], attack: str, index: int) -> object:
    errors = [100 * (1 - point.victim.mean) for point in line]
    copies = [100 * (1 - point.thefts[attack].mean) for point in line]
    colour = _COLOURS[index]
    handle = axes.errorbar(
        errors,
        copies,
        xerr=[100 * (point.victim.reach or 0.0) for point in line],
        yerr=[100 * (point.thefts[attack].reach or 0.0) for point in line],
        color=colour,
        marker=_MARKERS[index],
        markersize=5,
        capsize=2,
        linewidth=1.2,
        elinewidth=0.7,
        label=f"W{line[0].bits[0]}A{line[0].bits[1]}",
    )
    for point, x, y in zip(line, errors, copies, strict=True):
        if point.alpha == 0:
            axes.plot([x], [y], _MARKERS[index], color=colour, markerfacecolor="white", zorder=5)
        axes.annotate(
            f"{point.alpha:g}",
            (x, y),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize="x-small",
            color=colour,
        )
    return handle


def _title(tradeoff: Tradeoff) -> str:
    return f"Trade-off over alpha: {tradeoff.data}, {tradeoff.model}"


def write_plot(tradeoff: Tradeoff, path: Path) -> None:
    """Write the plot as PNG; the same figures give the same bytes."""
    buffer = io.BytesIO()
    tradeoff_plot(tradeoff).savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
