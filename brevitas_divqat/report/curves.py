# SPDX-License-Identifier: BSD-3-Clause
"""The plot of learning curves: how accurate the stolen copies are after how many queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brevitas_divqat.report.figure import plain
from brevitas_divqat.report.measurements import ExtractionRow, Measurements, VictimRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]

_MARKERS = "osv^D<>pP*Xh"
_COLOURS = "tab20"  # twenty colours of matplotlib's


def plot_curves(m: Measurements) -> Figure | None:
    """Draw the surrogates' accuracy over the number of queries, a panel per victim.

    Error bars are the sample standard deviation over seeds; a dashed line is the victim's own
    accuracy. The figure is not registered anywhere: save it with its ``savefig``.

    Args:
        m: The measurements.

    Returns:
        A figure, or None where no attack was measured after more than one number of queries.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = m.curved
    if not rows:
        return None
    victims = list(dict.fromkeys(row.victim for row in rows))
    attacks = list(dict.fromkeys(row.attack for row in rows))
    figure = Figure(
        figsize=(5.0 * len(victims) + 3.0, 4.8),
        dpi=150,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
    )
    panels = figure.subplots(1, len(victims), sharex=True, sharey=True, squeeze=False)[0]
    handles = {}
    for axes, victim in zip(panels, victims, strict=True):
        own = [row for row in m.victims if row.victim == victim]
        _prepare(axes, next(row.title for row in rows if row.victim == victim), own)
        for row in rows:
            if row.victim == victim:
                handles[row.attack] = _draw(axes, row, attacks.index(row.attack))
        axes.set_xscale("log")  # after the points, which set its limits
    panels[0].set_ylabel("accuracy of the stolen copy, %")
    panels[0].set_title(
        plain(f"{m.setting}\n"),
        loc="left",
        fontsize="medium",
    )
    figure.legend(
        handles=[handles[attack] for attack in attacks],
        loc="outside right upper",
        frameon=False,
        fontsize="small",
    )
    return figure


def _prepare(axes: Axes, title: str, own: list[VictimRow]) -> None:
    axes.set_ylim(0, 100)
    axes.set_xlabel("queries")
    axes.set_title(plain(title), fontsize="medium")  # the panel's; the left one is the figure's
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for row in own:
        axes.axhline(100 * row.qonnx_accuracy.mean, color="0.3", linestyle="--")


def _draw(axes: Axes, row: ExtractionRow, index: int) -> object:
    from matplotlib import colormaps

    return axes.errorbar(
        list(row.curve),
        [100 * stat.mean for stat in row.curve.values()],
        yerr=[100 * (stat.sd or 0.0) for stat in row.curve.values()],
        color=colormaps[_COLOURS](index % 20),
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=4,
        linewidth=1.2,
        capsize=2,
        label=plain(row.attack),
    )
