# SPDX-License-Identifier: BSD-3-Clause
"""A simulation report as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .compare import Check, SimulationReport

__all__ = ["render"]

TOLERANCE_PERCENT = 1.0
"""How much slower than estimated an accelerator may be without a warning."""


def render(report: SimulationReport, *, channels: bool = False) -> RenderableType:
    """Return the report's simulations as a table, its mismatches, and the verdict.

    Args:
        report: what `simulate_folder` gave.
        channels: also list the FIFOs, with the most words that each held.
    """
    parts: list[RenderableType] = [_checks(report)]
    parts += [
        Text(
            f"{check.name}: image {found.image}, score {found.score}: got {found.got}, "
            f"expected {found.expected}"
        )
        for check in report.checks
        for found in check.mismatches
    ]
    if channels:
        parts.append(_channels(report))
    deviation = report.deviation_percent
    if deviation is not None and deviation > TOLERANCE_PERCENT:
        parts.append(
            Text(
                f"Slower than estimated by {deviation:.1f} %: a FIFO may be too shallow; measure "
                "the FIFOs (divqat build --fifos measured).",
                style="yellow",
            )
        )
    parts.append(_verdict(report))
    return Group(*parts)


def _table(title: str, first: str, columns: tuple[str, ...], caption: str = "") -> Table:
    table = Table(
        title=Text(title, style="bold"),
        caption=Text(caption, style="dim") if caption else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _checks(report: SimulationReport) -> Table:
    table = _table(
        f"RTL for {report.part} against the integer graph {report.model_sha256[:12]}",
        "run",
        ("images", "wrong images", "wrong scores", "cycles per frame", "latency", "images/s"),
        f"Cycles per frame: estimated {report.estimated_cycles:,}{_deviation(report)}; least and "
        "most in brackets where they differ.\n"
        f"Simulation built in {report.build_seconds:.0f} s by Verilator {report.verilator}.",
    )
    for check in report.checks:
        table.add_row(
            check.name,
            f"{check.images:,}",
            f"{check.wrong_images:,}",
            f"{check.wrong_scores:,}",
            _pace(check),
            f"{check.latency:,}",
            f"{check.images / check.seconds:,.1f}",
        )
    return table


def _pace(check: Check) -> str:
    if check.cycles_per_frame is None:
        return "-"
    text = f"{check.cycles_per_frame:,.0f}"
    if check.least_cycles != check.most_cycles:
        text += f" ({check.least_cycles:,} … {check.most_cycles:,})"
    return text


def _deviation(report: SimulationReport) -> str:
    deviation = report.deviation_percent
    return "" if deviation is None else f", measured without stalls {deviation:+.2f} %"


def _channels(report: SimulationReport) -> Table:
    table = _table("FIFOs", "between", ("bits", "depth", "most words"))
    for channel in report.channels:
        table.add_row(channel.name, str(channel.bits), str(channel.depth), str(channel.most))
    return table


def _verdict(report: SimulationReport) -> Text:
    if report.exact:
        text = "Bit-exact: every score of every run equals the integer executor's"
        if report.reference_images:
            text += f", and those of the first {report.reference_images} images execute_onnx's"
        return Text(f"{text}.", style="green")
    wrong = sum(check.wrong_scores for check in report.checks)
    text = f"NOT bit-exact: {wrong:,} scores differ from the integer executor's"
    if report.reference_images:
        text += (
            f"; of the first {report.reference_images} images, {report.wrong_reference_scores:,} "
            "from execute_onnx's"
        )
    return Text(f"{text}.", style="red")
