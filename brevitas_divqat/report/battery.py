# SPDX-License-Identifier: BSD-3-Clause
"""Table, verdict and plot of attack batteries, rendered from ``battery.json`` alone."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.files import write_bytes
from brevitas_divqat.report.battery_records import Battery, BatteryRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BATTERY_PLOT",
    "battery_plot",
    "battery_table",
    "battery_verdict",
    "write_battery_plot",
]

BATTERY_PLOT = "battery.png"
TITLE_WIDTH = 100
"""Characters of a line of the plot's title, which fits the figure."""
SOURCE_WIDTH = 24
"""Characters of a line of sources, few so that names of entries seldom need two lines."""


def battery_table(battery: Battery) -> Table:
    """Build the table of all entries, the strongest first, and of those that were skipped."""
    renamed = any(row.renamed is not None for row in battery.rows)
    meaning = (
        "renamed: the same once each class that it answers is read as the true class most frequent "
        "there (-: not measured at each seed); "
    )
    table = Table(
        title=Text(battery.title, style="bold"),
        caption=Text(
            f"Surrogate: accuracy of the stolen copy on {battery.images:,} {battery.split} images, "
            f"of which the victim has {battery.own.percent} %; {meaning if renamed else ''}"
            f"fidelity: how often copy and victim agree. {battery.queries:,} distinct queries. "
            f"Foreign images: {battery.foreign}. Executor: {battery.executor}.",
            style="dim",
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("entry", overflow="fold")
    for column in ("queries", "surrogate %", *(["renamed %"] if renamed else []), "fidelity %"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("source", max_width=SOURCE_WIDTH, overflow="fold")
    for row in sorted(battery.rows, key=lambda row: -row.accuracy.mean):
        cells = (
            f"{row.name}{_seeds_of(row, battery)}",
            f"{row.queries:,}",
            row.accuracy.percent,
            *([_renamed(row)] if renamed else []),
            row.fidelity.percent,
            row.source,
        )
        table.add_row(*(Text(cell) for cell in cells))
    for name, reason in battery.skipped.items():
        cells = (name, "", "skipped", *([""] if renamed else []), "", reason)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _renamed(row: BatteryRow) -> str:
    return "-" if row.renamed is None else row.renamed.percent


def _seeds_of(row: BatteryRow, battery: Battery) -> str:
    """Say at how many seeds an entry was measured, if not at all of them."""
    few = row.accuracy.n < len(battery.seeds)
    return f" ({row.accuracy.n} of {len(battery.seeds)} seeds)" if few else ""


def battery_verdict(battery: Battery) -> str:
    """Say what the defender must expect: the worst case over all entries, and how sure it is."""
    lines = []
    for key, word in (("accuracy", "accuracy"), ("fidelity", "fidelity")):
        worst, floor = battery.worst(key), battery.floor(key)
        if worst is None:
            return "Worst case: unknown, no entry could be carried out."
        beside = ""
        if floor is not None:
            beside = f"; random noise {getattr(floor, key).percent} % ({floor.name})"
        lines.append(
            f"Worst case, {word}: {getattr(worst, key).percent} % ({worst.name})"
            f"{_seeds_of(worst, battery)}{beside}."
        )
    if battery.skipped:
        count = len(battery.skipped)
        what = "1 entry was" if count == 1 else f"{count} entries were"
        lines.append(f"{what} skipped: the table says why.")
    lines.append(_trust(battery))
    return "\n".join(lines)


def _trust(battery: Battery) -> str:
    upward = f"the highest of {len(battery.rows)} noisy entries is biased upward"
    if len(battery.seeds) == 1:
        return f"One seed: small differences are not yet a claim, and {upward}."
    return f"Means over {len(battery.seeds)} seeds, with their standard deviation; {upward}."


def battery_plot(battery: Battery) -> Figure:
    """Draw accuracy and fidelity of each entry, the floor, and the victim's own accuracy.

    The figure is not registered anywhere: save it with its ``savefig``.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = sorted(battery.rows, key=lambda row: row.accuracy.mean)
    height = 1.8 + 0.22 * max(len(rows), 1)
    figure = Figure(
        figsize=(8.0, height), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    )
    axes = figure.add_subplot()
    for key, colour, marker in (("accuracy", "#D55E00", "o"), ("fidelity", "#0072B2", "s")):
        stats = [getattr(row, key) for row in rows]
        axes.errorbar(
            [100 * stat.mean for stat in stats],
            range(len(rows)),
            xerr=[100 * (stat.sd or 0.0) for stat in stats],
            fmt=marker,
            color=colour,
            markersize=4,
            capsize=2,
            label=f"surrogate's {key}",
        )
    axes.axvline(
        100 * battery.own.mean, color="0.3", linestyle="--", label="the victim's own accuracy"
    )
    floor = battery.floor("accuracy")
    if floor is not None:
        axes.axvline(
            100 * floor.accuracy.mean,
            color="#D55E00",
            linestyle=":",
            label=f"floor ({floor.name})",
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize="small")
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of the {battery.split} images")
    title = textwrap.fill(battery.title, TITLE_WIDTH, break_on_hyphens=False)
    axes.set_title(title.replace("$", r"\$"), fontsize="small", loc="right")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def write_battery_plot(battery: Battery, path: Path) -> None:
    """Write the plot as PNG; the same figures give the same bytes."""
    buffer = io.BytesIO()
    battery_plot(battery).savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
