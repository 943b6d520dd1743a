# SPDX-License-Identifier: BSD-3-Clause
"""The tables for a terminal of 100 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.report.grids import Grid, grids
from brevitas_divqat.report.measurements import Measurements

__all__ = ["tables"]


def tables(m: Measurements) -> list[Table]:
    """Build the tables of victims, extractions and learning curves.

    Args:
        m: The measurements.

    Returns:
        Those tables that have rows.
    """
    return [_table(grid) for grid in grids(m)]


def _table(grid: Grid) -> Table:
    # Text rather than str: names in brackets are names, not markup.
    table = Table(
        title=Text(grid.title, style="bold"),
        caption=Text(grid.caption, style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for name, numeric in zip(grid.columns, grid.numeric, strict=True):
        table.add_column(
            name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
        )
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
