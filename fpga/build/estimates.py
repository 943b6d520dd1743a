# SPDX-License-Identifier: BSD-3-Clause
"""What FINN expects of an accelerator before anything is synthesised: cycles and resources."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.files import write_bytes, write_json, write_text

from ..records import record, record_list, table_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from qonnx.core.modelwrapper import ModelWrapper

    from ..boards.table import Resources

__all__ = ["RESOURCES", "SCHEMA", "Estimates", "LayerEstimate", "estimate", "plot", "table"]

SCHEMA = 1
ESTIMATES_FILE = "estimates.json"
RESOURCES = ("LUT", "BRAM_18K", "URAM", "DSP")
"""The resources that FINN estimates, in FINN's names."""

NANOSECONDS = 1e9
TABLE_COLUMNS = 100
# Okabe and Ito, "Color Universal Design" (2008).
RTL_COLOUR, HLS_COLOUR, LIMIT_COLOUR = "#0072B2", "#E69F00", "#D55E00"
LOG_FROM_RATIO = 50
"""Bars that differ by more are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class LayerEstimate:
    """FINN's estimate of one hardware layer.

    Attributes:
        name: of the node in the hardware graph.
        kind: its operation, without backend: ``"MVAU"``.
        layer: qualified name of the model's layer that it comes from; empty where it has none.
        backend: which of FINN's implementations the resources are those of. The RTL that this
            package generates has modules of its own where FINN has only ``"hls"``.
        cycles: per image.
        LUT: look-up tables.
        BRAM_18K: block RAMs of 18 kbit.
        URAM: UltraRAMs.
        DSP: multiplier blocks.
    """

    name: str
    kind: str
    layer: str
    backend: Literal["rtl", "hls"]
    cycles: int
    LUT: int
    BRAM_18K: int
    URAM: int
    DSP: int


@dataclass(frozen=True)
class Estimates:
    """FINN's estimates of an accelerator.

    Attributes:
        part: the device that they are for.
        clock_ns: clock period.
        layers: in the order of the graph; FIFOs between layers are not among them.
        latency_cycles: sum over the longest path, as if no two layers worked at a time: an upper
            bound of what one image takes.
        available: what the part has, by resource; empty where that is not known.
    """

    part: str
    clock_ns: float
    layers: tuple[LayerEstimate, ...]
    latency_cycles: int
    available: dict[str, int]

    def __post_init__(self) -> None:
        if not self.layers:
            raise HardwareError("the hardware graph has no layers: expected FINN's _rtl and _hls")
        if not self.clock_ns > 0:
            raise HardwareError(f"the clock period is {self.clock_ns} ns: expected more than 0")

    @property
    def limiting(self) -> LayerEstimate:
        """The slowest layer, which sets the frame rate."""
        return max(self.layers, key=lambda layer: layer.cycles)

    @property
    def cycles_per_frame(self) -> int:
        """Clock cycles from one image to the next."""
        return self.limiting.cycles

    @property
    def fps(self) -> float:
        """Images per second."""
        return NANOSECONDS / (self.clock_ns * self.cycles_per_frame)

    @property
    def latency_us(self) -> float:
        """Upper bound of the time that one image takes, in microseconds."""
        return self.latency_cycles * self.clock_ns / 1e3

    @property
    def totals(self) -> dict[str, int]:
        """Sum over the layers, by resource."""
        return {name: sum(getattr(layer, name) for layer in self.layers) for name in RESOURCES}

    def percent(self, resource: str) -> float | None:
        """Return a total in percent of what the part has; None where it has none or is unknown."""
        available = self.available.get(resource, 0)
        return 100 * self.totals[resource] / available if available else None

    def to_json(self) -> dict[str, Any]:
        """Return what `estimates.json` holds; what can be computed is there for readers."""
        return {
            "schema": SCHEMA,
            "part": self.part,
            "clock_ns": self.clock_ns,
            "fps": self.fps,
            "cycles_per_frame": self.cycles_per_frame,
            "limiting_layer": self.limiting.name,
            "latency_cycles": self.latency_cycles,
            "latency_us": self.latency_us,
            "total": self.totals,
            "available": self.available,
            "percent": {name: self.percent(name) for name in RESOURCES},
            "layers": [asdict(layer) for layer in self.layers],
        }

    def write(self, folder: Path) -> None:
        """Write `estimates.json`, `estimates.txt` and `estimates.png` into ``folder``."""
        picture = io.BytesIO()
        plot(self).savefig(picture, format="png")
        write_text(folder / "estimates.txt", table(self))
        write_bytes(folder / "estimates.png", picture.getvalue())
        write_json(folder / ESTIMATES_FILE, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Estimates:
        """Read `estimates.json` of ``folder``.

        Raises:
            HardwareError: if there is none, it is damaged, or another version wrote it.
        """
        file = folder / ESTIMATES_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            schema = content["schema"]
            if schema == SCHEMA:
                zero = ("cycles", *RESOURCES)
                layers = record_list(LayerEstimate, content["layers"], zero=zero)
                if not any(layer.cycles for layer in layers):
                    raise ValueError("no layer takes a cycle")
                if {layer.backend for layer in layers} - {"rtl", "hls"}:
                    raise ValueError("a layer has another backend")
                found = {name: content[name] for name in ("part", "clock_ns", "latency_cycles")}
                available = table_of(int, content["available"])
                found |= {"layers": layers, "available": available}
                return record(cls, found, zero=("latency_cycles",))
        except OSError as error:
            raise HardwareError(
                f"{folder} holds no estimates ({ESTIMATES_FILE}: {error.strerror}): make them with "
                "`divqat build`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise HardwareError(f"{file} is damaged: build the folder again") from error
        raise HardwareError(
            f"{file} has schema {schema}, this version reads {SCHEMA}: build the folder again"
        )


def estimate(
    dataflow: ModelWrapper, part: str, clock_ns: float, *, resources: Resources | None = None
) -> Estimates:
    """Estimate cycles and resources with FINN's own analyses.

    Args:
        dataflow: FINN's hardware graph, specialized and folded; not changed. Its nodes carry the
            qualified name of the model's layer as their ``doc_string``.
        part: the device; one that FINN knows.
        clock_ns: clock period in ns.
        resources: what the part has, for percentages.

    Raises:
        HardwareError: if the graph has no hardware layer, or one that FINN cannot estimate.
    """
    from finn.analysis.fpgadataflow.dataflow_performance import dataflow_performance
    from finn.analysis.fpgadataflow.exp_cycles_per_layer import exp_cycles_per_layer
    from finn.analysis.fpgadataflow.res_estimation import res_estimation
    from finn.transformation.fpgadataflow.annotate_cycles import AnnotateCycles

    cycles = dataflow.analysis(exp_cycles_per_layer)
    used = dataflow.analysis(lambda model: res_estimation(model, part))
    missing = [node.name for node in dataflow.graph.node if node.name not in cycles]
    if missing:
        raise HardwareError(
            f"FINN cannot estimate {', '.join(missing)}: expected a specialized graph of layers "
            "that end in _rtl or _hls"
        )
    layers = tuple(
        LayerEstimate(
            name=node.name,
            kind=node.op_type[:-4],
            layer=node.doc_string,
            backend="rtl" if node.op_type.endswith("_rtl") else "hls",
            cycles=cycles[node.name],
            **{name: math.ceil(used[node.name].get(name, 0)) for name in RESOURCES},
        )
        for node in dataflow.graph.node
    )
    speed = dataflow.transform(AnnotateCycles()).analysis(dataflow_performance) if layers else {}
    return Estimates(
        part=part,
        clock_ns=clock_ns,
        layers=layers,
        latency_cycles=int(speed.get("critical_path_cycles", 0)),
        available=_available(resources),
    )


def _available(resources: Resources | None) -> dict[str, int]:
    if resources is None:
        return {}
    return {
        "LUT": resources.LUT,
        "BRAM_18K": resources.BRAM18,
        "URAM": resources.URAM,
        "DSP": resources.DSP,
    }


def table(estimates: Estimates) -> str:
    """Write the estimates as a table of text, one row per layer, with totals."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=Text(f"FINN's estimates: {estimates.part}, {1e3 / estimates.clock_ns:g} MHz"),
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        show_footer=True,
    )
    percents = {name: estimates.percent(name) for name in RESOURCES}
    shown.add_column("layer", "total", overflow="fold")
    shown.add_column("hardware", "of the part", overflow="fold")
    shown.add_column("cycles", f"{estimates.cycles_per_frame:,}\n", justify="right")
    for name, total in estimates.totals.items():
        percent = percents[name]
        share = "-" if percent is None else f"{percent:.1f} %"
        shown.add_column(name.removesuffix("_18K"), f"{total:,}\n{share}", justify="right")
    for layer in estimates.layers:
        shown.add_row(
            Text(layer.layer or "-"),  # names in brackets are names, not markup
            Text(layer.name + (" *" if layer is estimates.limiting else "")),
            f"{layer.cycles:,}",
            *(f"{getattr(layer, name):,}" for name in RESOURCES),
        )
    stream = io.StringIO()
    console = Console(file=stream, width=TABLE_COLUMNS, color_system=None)
    console.print(shown)
    console.print(_summary(estimates), soft_wrap=True, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _summary(estimates: Estimates) -> str:
    slowest = estimates.limiting
    lines = [
        f"{estimates.fps:,.0f} images/s: one every {estimates.cycles_per_frame:,} cycles, limited "
        f"by {slowest.name} (*){f', {slowest.layer}' if slowest.layer else ''}.",
        f"Latency at most {estimates.latency_us:,.0f} µs ({estimates.latency_cycles:,} cycles, as "
        "if layers did not overlap).",
        "FIFOs and the shell are not counted. BRAM: blocks of 18 kbit.",
    ]
    if any(layer.backend == "hls" for layer in estimates.layers):
        lines.append(
            "Layers in _hls: the estimate is of FINN's HLS layer, also where the generated RTL has "
            "a module of its own."
        )
    return "\n".join(lines)


def plot(estimates: Estimates) -> Figure:
    """Draw cycles and resources per layer as bars, side by side.

    Resources that no layer needs have no panel. The figure is not registered anywhere: save it
    with its ``savefig``.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch

    panels = ["cycles", *(name for name, total in estimates.totals.items() if total)]
    height = 1.6 + 0.2 * len(estimates.layers)
    margins = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches
    figure = Figure(figsize=(3.0 + 2.2 * len(panels), height), dpi=150, layout=margins)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, name in zip(axes, panels, strict=True):
        _draw_panel(panel, estimates, name)
    names = [_plain(f"{layer.layer}  {layer.name}".strip()) for layer in estimates.layers]
    axes[0].set_yticks(range(len(names)), names, fontsize="x-small")
    axes[0].set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
    figure.suptitle(
        _plain(
            f"FINN's estimates: {estimates.part}, {1e3 / estimates.clock_ns:g} MHz, "
            f"{estimates.fps:,.0f} images/s"
        ),
        fontsize="medium",
    )
    handles = [Patch(color=RTL_COLOUR, label="RTL layer")]
    if any(layer.backend == "hls" for layer in estimates.layers):
        handles.append(Patch(color=HLS_COLOUR, label="FINN's HLS layer"))
    handles.append(Patch(color=LIMIT_COLOUR, label="limits the frame rate"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_panel(axes: Axes, estimates: Estimates, name: str) -> None:
    values = [getattr(layer, name) for layer in estimates.layers]
    colours = [
        LIMIT_COLOUR
        if name == "cycles" and layer is estimates.limiting
        else RTL_COLOUR
        if layer.backend == "rtl"
        else HLS_COLOUR
        for layer in estimates.layers
    ]
    axes.barh(range(len(values)), values, height=0.75, color=colours, zorder=2)
    present = [value for value in values if value > 0]
    if present and max(present) > LOG_FROM_RATIO * min(present):
        # Zero has no place on such an axis: no bar. The least bar is still to be seen.
        axes.set_xscale("log")
        axes.set_xlim(left=min(present) / 2)
    axes.set_xlabel("cycles per image" if name == "cycles" else _title(estimates, name))
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize="x-small")
    axes.spines[["top", "right"]].set_visible(False)


def _title(estimates: Estimates, name: str) -> str:
    percent = estimates.percent(name)
    share = "" if percent is None else f", {percent:.1f} %"
    return f"{name.removesuffix('_18K')} ({estimates.totals[name]:,}{share})"


def _plain(text: str) -> str:
    """Keep matplotlib from reading a dollar sign as mathematics."""
    return text.replace("$", r"\$")
