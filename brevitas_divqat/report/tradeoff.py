# SPDX-License-Identifier: BSD-3-Clause
"""The trade-off: what the victim loses and what its thief loses, over alpha, per bit width."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.files import write_bytes
from brevitas_divqat.report.figure import plain
from brevitas_divqat.report.measurements import Measurements, VictimRow, load_measurements
from brevitas_divqat.report.records import Record, read_records
from brevitas_divqat.report.stats import Stat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Point", "Tradeoff", "load_tradeoff", "tradeoff_plot", "tradeoff_tables", "write_plot"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito, "Color Universal Design" (2008)."""
_MARKERS = "osv^D<"
_PANELS = 3
"""Attacks side by side."""
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
        folders: each with victims of one bit width and one alpha, and with plain QAT or without;
            folders of the same two are averaged over their seeds.

    Raises:
        ConfigError: if there is no victim, or two victims differ in more than that.
    """
    groups: dict[tuple[Bits, float | None], list[Path]] = defaultdict(list)
    methods: dict[str, Any] = {}
    for folder in folders:
        victims = [record for record in read_records(folder) if record["kind"] == "victim"]
        if not victims:
            raise ConfigError(f"{folder}: holds no measurement of a victim; measure it first")
        hardened = [record for record in victims if record["victim"] == "divqat"]
        for record in hardened:
            _require_same_but_alpha(record, methods)
        bits = (victims[0]["bits.weight"], victims[0]["bits.activation"])
        groups[bits, _alpha(hardened[0]) if hardened else None].append(folder)
    measured = {key: load_measurements(group) for key, group in groups.items()}
    for m in measured.values():
        first = next(iter(measured.values()))
        if (m.data, m.model, m.split) != (first.data, first.model, first.split):
            raise ConfigError(
                f"the folders are of {first.data}, {first.model}, judged on {first.split} images, "
                f"and of {m.data}, {m.model}, judged on {m.split} images: give those of one network"
            )
    points: dict[tuple[Bits, float], Point] = {}
    for (bits, alpha), m in measured.items():
        for row in m.victims:
            at = 0.0 if row.victim == "qat" or alpha is None else alpha
            points.setdefault((bits, at), _point(bits, at, row, m))
    ordered = sorted(points.values(), key=lambda p: (-p.bits[0], -p.bits[1], p.alpha))
    return Tradeoff(first.data, first.model, first.split, tuple(ordered))


def _alpha(record: Record) -> float:
    return float(record["method"]["alpha"])


def _require_same_but_alpha(record: Record, seen: dict[str, Any]) -> None:
    if not isinstance(record["method"].get("alpha"), int | float):
        raise ConfigError(f"{record.path}: method lacks an alpha; measure again")
    own = {key: value for key, value in record["method"].items() if key != "alpha"}
    for key, value in seen.setdefault("method", own).items():
        if own.get(key) != value:
            raise ConfigError(
                f"{record.path}: {key} is {own.get(key)}, but {value} in another folder; a "
                "trade-off is over alpha alone"
            )


def _point(bits: Bits, alpha: float, row: VictimRow, m: Measurements) -> Point:
    return Point(
        bits=bits,
        alpha=alpha,
        victim=row.qonnx_accuracy,
        calibration_error=row.calibration_error,
        thefts={
            f"{theft.attack}\n({theft.settings['pool_name']})": theft.accuracy
            for theft in m.extractions
            if theft.victim == row.victim
        },
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

    Bars are 95 % intervals (Student's t) over seeds; the hollow point is plain QAT. The figure is
    not registered anywhere: save it with its ``savefig``.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    attacks = tradeoff.attacks
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
