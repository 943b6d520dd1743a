# SPDX-License-Identifier: BSD-3-Clause
"""The plot: how accurate the stolen copies are, next to the victims they were stolen from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brevitas_divqat.report.measurements import ExtractionRow, Measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plain", "plot"]

# Okabe and Ito, "Color Universal Design" (2008): fill, and a text colour that reads on it.
_COLOURS = {"qat": ("#E69F00", "black"), "divqat": ("#0072B2", "white")}
_OTHER_COLOURS = (("#009E73", "white"), ("#CC79A7", "black"), ("#56B4E9", "black"))
_LOWEST_WITH_TEXT_INSIDE = 9.0  # percent: a shorter bar has its value above it


def plot(m: Measurements) -> Figure:
    """Draw the surrogates' accuracy per attack, victims side by side.

    Error bars are the sample standard deviation over seeds; dashed lines are the victims' own
    accuracy. The figure is not registered anywhere: save it with its ``savefig``.

    Args:
        m: The measurements.

    Returns:
        A figure 4.5 inches high and 8 wide, or wider with many attacks.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    margins = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)  # inches
    victims = list(dict.fromkeys(row.victim for row in (*m.victims, *m.extractions)))
    colours = _colours(victims)
    attacks = list(dict.fromkeys(row.attack for row in m.extractions))
    figure = Figure(figsize=(max(8.0, 1.3 * len(attacks)), 4.5), dpi=150, layout=margins)
    axes = figure.add_subplot()
    handles = [
        *_draw_bars(axes, m, victims, attacks, colours),
        *_draw_lines(axes, m, colours),
    ]
    rows = {row.attack: row for row in m.extractions}
    ticks = [plain(_tick(rows[attack])) for attack in attacks]
    axes.set_xticks(range(len(attacks)), ticks)
    axes.set_xlim(-0.6, max(len(attacks), 1) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"accuracy on the {m.split} set, %")
    axes.set_title(
        plain(f"What the thief gets: {m.setting}"),
        fontsize="medium",
    )
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)
    if not attacks:
        axes.text(0, 50, "no extraction measured yet", ha="center", color="0.4")
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _tick(row: ExtractionRow) -> str:
    """Name an attack below its bars: the images, the labels, and what else sets it apart."""
    first, _, last = row.attack.partition(f"{row.pool}/{row.labels}")
    others = [part for part in (first.strip("/"), last.strip("/")) if part]
    return "\n".join([f"{row.pool} ({row.settings['pool_name']})", f"{row.labels} labels", *others])


def plain(text: str) -> str:
    """Keep matplotlib from reading a dollar sign as mathematics."""
    return text.replace("$", r"\$")


def _colours(victims: list[str]) -> dict[str, tuple[str, str]]:
    others = [victim for victim in victims if victim not in _COLOURS]
    spare = {v: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, v in enumerate(others)}
    return _COLOURS | spare


def _draw_bars(
    axes: Axes,
    m: Measurements,
    victims: list[str],
    attacks: list[str],
    colours: dict[str, tuple[str, str]],
) -> list[Any]:
    width = 0.8 / max(len(victims), 1)
    handles: dict[str, Any] = {}
    for row in m.extractions:
        offset = (victims.index(row.victim) - (len(victims) - 1) / 2) * width
        x = attacks.index(row.attack) + offset
        fill, ink = colours[row.victim]
        bar = axes.bar(
            x,
            100 * row.accuracy.mean,
            width=0.94 * width,
            yerr=None if row.accuracy.sd is None else 100 * row.accuracy.sd,
            color=fill,
            ecolor="black",
            capsize=3,
            zorder=2,
            label=plain(f"copy of {row.title}"),
        )
        handles.setdefault(row.victim, bar)
        _write_value(axes, row, x, ink)
    return list(handles.values())


def _write_value(axes: Axes, row: ExtractionRow, x: float, ink: str) -> None:
    """Write the mean inside the bar, below its error bar, or above a bar that is too short."""
    mean, sd = 100 * row.accuracy.mean, 100 * (row.accuracy.sd or 0.0)
    inside = mean - sd >= _LOWEST_WITH_TEXT_INSIDE
    axes.text(
        x,
        mean - sd - 1.2 if inside else mean + sd + 1.2,
        f"{mean:.1f}",
        ha="center",
        va="top" if inside else "bottom",
        color=ink if inside else "black",
        fontsize="small",
    )


def _draw_lines(axes: Axes, m: Measurements, colours: dict[str, tuple[str, str]]) -> list[Any]:
    return [
        axes.axhline(
            100 * row.qonnx_accuracy.mean,
            color=colours[row.victim][0],
            # Dashes of one line in the gaps of the other: equal accuracies hide neither.
            linestyle=(4 * index, (4, 4)),
            linewidth=1.5,
            zorder=1,
            label=plain(f"{row.title} itself, {row.qonnx_accuracy.percent} %"),
        )
        for index, row in enumerate(m.victims)
    ]
