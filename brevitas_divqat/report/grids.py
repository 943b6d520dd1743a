# SPDX-License-Identifier: BSD-3-Clause
"""The tables as plain text cells, from which the terminal and the HTML page draw theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brevitas_divqat.report.measurements import ExtractionRow, Measurements, VictimRow
from brevitas_divqat.report.stats import Stat

__all__ = ["Grid", "grids"]

_NONE = "-"
_NEARBY = 1.1
"""Attacks that ask in batches pass a point of their curve by less than this factor."""
_POINTS = 6
"""The most points of a learning curve in one table, which fit a terminal."""


@dataclass(frozen=True)
class Grid:
    """A table: what it shows, its columns and its rows, and what its words mean."""

    title: str
    columns: tuple[str, ...]  # a heading may have two lines
    numeric: tuple[bool, ...]  # whether a column is right-aligned
    rows: tuple[tuple[str, ...], ...]
    caption: str


def grids(m: Measurements) -> list[Grid]:
    """Build the tables of victims, extractions and learning curves, without those that lack rows.

    Args:
        m: The measurements.

    Returns:
        The tables in this order; learning curves of many points are several.
    """
    every = [_victims(m), _extractions(m), *_curves(m)]
    return [grid for grid in every if grid.rows]


def _victims(m: Measurements) -> Grid:
    images = m.victims[0].images if m.victims else 0
    over = f" over {len(m.seeds)} seeds" if len(m.seeds) > 1 else ""
    return Grid(
        title=f"Victims: {m.setting}, executor {', '.join(m.executors)}",
        columns=(
            "victim", "bits\nW/A", "float %", "Brevitas %", "QONNX %", "labels\ndiffer",
            "scores\ndiffer", "ECE %", "parameters",
        ),
        numeric=(False, False, True, True, True, True, True, True, True),
        rows=tuple(_victim_cells(row, m) for row in m.victims),
        caption=(
            f"Accuracy on {images:,} {m.split} images; ECE: calibration error; labels, scores "
            f"differ: images{over} on which Brevitas and QONNX disagree."
        ),
    )  # fmt: skip


def _victim_cells(row: VictimRow, m: Measurements) -> tuple[str, ...]:
    return (
        row.title,
        f"{m.bits['weight']}/{m.bits['activation']}",
        row.float_accuracy.percent,
        row.brevitas_accuracy.percent,
        row.qonnx_accuracy.percent,
        f"{row.labels_differing:,}",
        f"{row.images_differing:,}",
        row.calibration_error.percent,
        f"{row.parameters:,}",
    )


def _extractions(m: Measurements) -> Grid:
    return Grid(
        title=f"Extractions: {m.setting}",
        columns=(
            "victim", "thief's images", "labels", "queries", "surrogate %", "fidelity %",
            "KL(Q‖P)", "H(Q)",
        ),
        numeric=(False, False, False, True, True, True, True, True),
        rows=tuple(_extraction_cells(row) for row in m.extractions),
        caption=(
            "In, ood: images like the victim's, or of another data set; surrogate: accuracy of the "
            "stolen copy; fidelity: how often it agrees with the "
            "victim; KL, H: divergence of the victim Q from the float network P and entropy of Q, "
            "in nats, on the queries."
        ),
    )  # fmt: skip


def _extraction_cells(row: ExtractionRow) -> tuple[str, ...]:
    return (
        row.title,
        f"{row.pool} ({row.settings['pool_name']})",
        row.attack.replace(f"{row.pool}/", ""),
        f"{row.settings['queries']:,}",
        row.accuracy.percent,
        row.fidelity.percent,
        _text(row.kl),
        _text(row.entropy),
    )


def _curves(m: Measurements) -> list[Grid]:
    rows = m.curved
    columns = _columns(rows)
    return [
        Grid(
            title=f"Learning curves: {m.setting}",
            columns=("victim", "attack", *(f"{column[0]:,}" for column in part)),
            numeric=(False, False, *(True for _ in part)),
            rows=tuple(
                (row.title, row.attack, *(_point(row, column, m) for column in part))
                for row in rows
            ),
            caption=(
                "Accuracy of the stolen copy in % after so many queries, or up to "
                f"{_NEARBY - 1:.0%} more; in brackets over how many seeds, where not over all."
            ),
        )
        for part in (columns[i : i + _POINTS] for i in range(0, len(columns), _POINTS))
    ]


def _columns(rows: Sequence[ExtractionRow]) -> list[tuple[int, ...]]:
    """Put numbers of queries that are nearly the same into one column, unless of one curve."""
    columns: list[tuple[int, ...]] = []
    taken: set[tuple[int, int]] = set()
    for count in sorted({queries for row in rows for queries in row.curve}):
        here = {
            (number, seed)
            for number, row in enumerate(rows)
            if count in row.curve
            for seed in row.curve[count].seeds
        }
        if columns and count < _NEARBY * columns[-1][0] and not here & taken:
            columns[-1] += (count,)
            taken |= here
        else:
            columns.append((count,))
            taken = here
    return columns


def _point(row: ExtractionRow, column: Sequence[int], m: Measurements) -> str:
    curves = [row.curve[queries] for queries in column if queries in row.curve]
    if not curves:
        return _NONE
    stat = Stat.of(dict(pair for curve in curves for pair in curve.by_seed))
    few = f" ({stat.n})" if stat.n < len(m.seeds) else ""
    return f"{stat.percent}{few}"


def _text(stat: Stat | None) -> str:
    return _NONE if stat is None else stat.text()
