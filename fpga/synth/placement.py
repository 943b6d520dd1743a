# SPDX-License-Identifier: BSD-3-Clause
"""What place-and-route reached: clock, utilisation, and where the longest path lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from brevitas_divqat.errors import HardwareError, ToolError
from brevitas_divqat.files import write_json

from ..rtl.layout import Layout
from .devices import device_of

__all__ = [
    "PLACEMENT_FILE",
    "Attempt",
    "Clock",
    "CriticalPath",
    "PlacementReport",
    "no_timing",
    "read_timing",
    "render_placement",
]

SCHEMA = 1
PLACEMENT_FILE = "placement.json"
BOARD_LOGIC = "the board's own logic"
ASYNCHRONOUS = "<async>"


@dataclass(frozen=True)
class Clock:
    """A clock of a placed design.

    Attributes:
        net: its name in the netlist.
        achieved_mhz: the fastest that it may run.
        constraint_mhz: how fast it runs on the board.
    """

    net: str
    achieved_mhz: float
    constraint_mhz: float

    @property
    def met(self) -> bool:
        """Whether it may run as fast as it does."""
        return self.achieved_mhz >= self.constraint_mhz


@dataclass(frozen=True)
class CriticalPath:
    """The longest path between two registers.

    Attributes:
        start: cell that it starts at.
        end: cell that it ends at.
        start_layer: where that is: a layer, a FIFO, or the board's own logic.
        end_layer: where the end is.
        delay_ns: its length.
        routing_ns: the part of it that is wires.
    """

    start: str
    end: str
    start_layer: str
    end_layer: str
    delay_ns: float
    routing_ns: float


@dataclass(frozen=True)
class Attempt:
    """One run of place-and-route.

    Attributes:
        seed: of the placer.
        clocks: what it reached.
        path: the longest one; None where no register drives another.
        utilisation: of each kind of cell, (used, available).
        seconds: that it took.
    """

    seed: int
    clocks: tuple[Clock, ...]
    path: CriticalPath | None
    utilisation: dict[str, tuple[int, int]]
    seconds: float

    @property
    def met(self) -> bool:
        """Whether every clock may run as fast as it does."""
        return all(clock.met for clock in self.clocks)


@dataclass(frozen=True)
class PlacementReport:
    """How a bitstream came about.

    Attributes:
        part: the device.
        model_sha256: of the integer graph's file that is on it.
        netlist_sha256: of the accelerator's netlist, as its synthesis report has it.
        bitstream: name of the file beside the report.
        bitstream_sha256: of its content.
        bitstream_bytes: its size.
        attempts: in the order of the seeds; the last one met the timing.
        tools: versions.
    """

    part: str
    model_sha256: str
    netlist_sha256: str
    bitstream: str
    bitstream_sha256: str
    bitstream_bytes: int
    attempts: tuple[Attempt, ...]
    tools: dict[str, str]

    @property
    def placed(self) -> Attempt:
        """The attempt that became the bitstream."""
        return self.attempts[-1]

    def write(self, folder: Path) -> None:
        """Write the report into ``folder``."""
        write_json(folder / PLACEMENT_FILE, {"schema": SCHEMA, **asdict(self)})


def read_timing(file: Path, seed: int, seconds: float, layout: Layout) -> Attempt:
    """Read nextpnr's report.

    Args:
        file: that nextpnr wrote with ``--report``.
        seed: of the run.
        seconds: that it took.
        layout: names of the layers and FIFOs.

    Raises:
        ToolError: if the report is not as expected.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        clocks = tuple(
            Clock(net, float(c["achieved"]), float(c["constraint"]))
            for net, c in sorted(content["fmax"].items())
        )
        utilisation = {
            cell: (int(u["used"]), int(u["available"]))
            for cell, u in sorted(content["utilization"].items())
            if u["used"]
        }
        path = _longest(content["critical_paths"], layout)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"nextpnr's report {file} is not as expected: {error!r}") from error
    if not clocks:
        raise ToolError(f"nextpnr's report {file} names no clock: is one constrained?")
    return Attempt(seed, clocks, path, utilisation, round(seconds, 1))


def _longest(paths: list[dict[str, Any]], layout: Layout) -> CriticalPath | None:
    found = [p["path"] for p in paths if p["path"] and ASYNCHRONOUS not in (p["from"], p["to"])]
    if not found:
        return None
    longest = max(found, key=_length)
    start, end = longest[0]["from"]["cell"], longest[-1]["to"]["cell"]
    wires = [step for step in longest if step["type"] == "routing"]
    return CriticalPath(
        start,
        end,
        _place(start, layout),
        _place(end, layout),
        round(_length(longest), 3),
        round(_length(wires), 3),
    )


def _length(path: list[dict[str, Any]]) -> float:
    return float(sum(step["delay"] for step in path))


def _place(cell: str, layout: Layout) -> str:
    """Say which layer or FIFO a cell belongs to."""
    words = set(cell.split("."))
    for layer in layout.layers:
        if layer.instance in words:
            return f"{layer.name} ({layer.layer})" if layer.layer else layer.name
    for channel in layout.channels:
        if channel.fifo in words:
            return f"the FIFO {channel.name}"
    return BOARD_LOGIC


def no_timing(part: str, attempts: tuple[Attempt, ...]) -> HardwareError:
    """Make the error that says how far the clock was missed, and where."""
    best = max(attempts, key=lambda a: min(c.achieved_mhz / c.constraint_mhz for c in a.clocks))
    worst = min(best.clocks, key=lambda c: c.achieved_mhz / c.constraint_mhz)
    seeds, where = ", ".join(str(a.seed) for a in attempts), ""
    if best.path is not None:
        ends = dict.fromkeys((best.path.start_layer, best.path.end_layer))
        where = f"; the longest path ({best.path.delay_ns:.1f} ns) is in {' to '.join(ends)}"
    return HardwareError(
        f"{part} reaches {worst.achieved_mhz:.1f} MHz with this network, its clock is "
        f"{worst.constraint_mhz:.1f} MHz (seeds {seeds}){where}: "
        "lower the board's clock, ask for fewer fps so that the layer folds more, or try more seeds"
    )


def render_placement(report: PlacementReport) -> RenderableType:
    """Return the table of clocks and utilisation."""
    placed = report.placed
    names: Mapping[str, str] = dict(device_of(report.part).cells)
    table = Table(
        title=f"{report.part}: {report.bitstream}, {report.bitstream_bytes:,} bytes",
        caption=_caption(placed),
    )
    table.add_column("")
    table.add_column("used", justify="right")
    table.add_column("of", justify="right")
    table.add_column("", justify="right")
    for cell, name in names.items():
        if cell in placed.utilisation:
            used, available = placed.utilisation[cell]
            table.add_row(name, f"{used:,}", f"{available:,}", f"{used / available:.0%}")
    table.add_section()
    for clock in placed.clocks:
        table.add_row(
            "clock", f"{clock.constraint_mhz:.2f} MHz", f"{clock.achieved_mhz:.2f} MHz", "met"
        )
    return table


def _caption(attempt: Attempt) -> str:
    seeds = f"seed {attempt.seed}"
    if attempt.path is None:
        return seeds
    path = attempt.path
    ends = " to ".join(dict.fromkeys((path.start_layer, path.end_layer)))
    share = path.routing_ns / path.delay_ns
    return f"{seeds}; longest path {path.delay_ns:.1f} ns ({share:.0%} wires) in {ends}"
