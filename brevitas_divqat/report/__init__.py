# SPDX-License-Identifier: BSD-3-Clause
"""Tables, a verdict, a plot and an HTML page, rendered from the measurements of runs."""

from __future__ import annotations

from brevitas_divqat.report.battery import (
    BATTERY_PLOT,
    battery_plot,
    battery_table,
    battery_verdict,
    write_battery_plot,
)
from brevitas_divqat.report.battery_comparison import (
    Comparison,
    compare_batteries,
    comparison_table,
    not_compared,
)
from brevitas_divqat.report.battery_records import (
    BATTERY_FILE,
    Battery,
    BatteryRow,
    load_batteries,
)
from brevitas_divqat.report.curves import plot_curves
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
from brevitas_divqat.report.tradeoff import (
    Point,
    Tradeoff,
    load_tradeoff,
    tradeoff_plot,
    tradeoff_tables,
    write_plot,
)

__all__ = [
    "BATTERY_FILE",
    "BATTERY_PLOT",
    "Battery",
    "BatteryRow",
    "Comparison",
    "ExtractionRow",
    "Measurements",
    "Point",
    "ReportFiles",
    "Stat",
    "Tradeoff",
    "VictimRow",
    "battery_plot",
    "battery_table",
    "battery_verdict",
    "compare_batteries",
    "comparison_table",
    "load_batteries",
    "load_measurements",
    "load_tradeoff",
    "not_compared",
    "plot",
    "plot_curves",
    "tables",
    "tradeoff_plot",
    "tradeoff_tables",
    "verdict",
    "write_battery_plot",
    "write_plot",
    "write_report",
]
