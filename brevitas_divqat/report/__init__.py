# SPDX-License-Identifier: BSD-3-Clause
"""Tables, a verdict, a plot and an HTML page, rendered from the measurements of runs."""

from __future__ import annotations

from brevitas_divqat.report.figure import plot
from brevitas_divqat.report.measurements import (
    ExtractionRow,
    Measurements,
    VictimRow,
    load_measurements,
)
from brevitas_divqat.report.page import ReportFiles, write_report
from brevitas_divqat.report.sentences import verdict
from brevitas_divqat.report.stats import Stat
from brevitas_divqat.report.terminal import tables

__all__ = [
    "ExtractionRow",
    "Measurements",
    "ReportFiles",
    "Stat",
    "VictimRow",
    "load_measurements",
    "plot",
    "tables",
    "verdict",
    "write_report",
]
