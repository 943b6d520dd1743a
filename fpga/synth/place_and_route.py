# SPDX-License-Identifier: BSD-3-Clause
"""From generated RTL and a board's top to a bitstream, with Yosys and nextpnr.

The accelerator's netlist is the one that `synthesise` counted and that `gate_netlist` lets one
simulate: the board's top is synthesised around it, and it is put in unchanged.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from brevitas_divqat.errors import ConfigError, HardwareError, ToolError
from brevitas_divqat.files import make_folder, write_text
from brevitas_divqat.progress import Progress, Show, silent

from ..boards.files import BoardSources
from ..rtl.layout import Layout
from ..tools import EXTRA, find_program
from .devices import CONSTRAINTS, NETLIST, PLACED, TIMING, Device, device_of
from .families import Usage, family_named
from .placement import PLACEMENT_FILE, Attempt, PlacementReport, no_timing, read_timing
from .steps import Steps, step_key
from .watching import file_hash, run_step
from .yosys import (
    NETLIST_FILE,
    PACKAGE,
    READ,
    run_yosys,
    synthesise,
    version_of_yosys,
    write_mended,
)

__all__ = ["SEEDS", "SYNTHESIS", "place_and_route"]

SEEDS = (1, 2, 3, 4)
"""Seeds of the placer, tried in this order until the timing is met."""

SYNTHESIS = "synthesis"
"""Folder of the accelerator's own synthesis, where none is named."""

STAT_FILE = "board_stat.json"
STUB = "accelerator_stub.sv"
BITSTREAM = "accelerator"
HERTZ = 1e6

INFO = re.compile(r"^Info: +(\S.*)$", re.MULTILINE)
"""How nextpnr says what it is at."""

LINE = re.compile(r"^(\S.*)$", re.MULTILINE)


def place_and_route(
    rtl: Path,
    folder: Path,
    part: str,
    sources: BoardSources,
    *,
    synthesis: Path | None = None,
    seeds: Sequence[int] = SEEDS,
    progress: Progress = silent,
) -> PlacementReport:
    """Make a bitstream of an accelerator and a board's top around it.

    Each step whose inputs and results are unchanged since an earlier run is taken from there.

    Args:
        rtl: folder that holds ``files.f`` and ``rtl.json``.
        folder: receives ``accelerator.bit`` (or ``.fs``), ``placement.json``, the board's netlist,
            the placed designs, and a log of each step.
        part: the device's full name.
        sources: the board's top, its files, constraints and clock (`board_sources`).
        synthesis: folder of the accelerator's synthesis; by default below ``folder``.
        seeds: of the placer, tried in this order until the timing is met.
        progress: shows the steps; place-and-route takes minutes for each seed.

    Returns:
        What was reached.

    Raises:
        HardwareError: if the part is unknown, the network does not fit it, or no seed meets the
            timing.
        ConfigError: if there are no seeds.
        ToolError: if a program is missing or fails.
    """
    device = device_of(part)
    if not seeds:
        raise ConfigError("seeds is empty: give at least one")
    versions = {PACKAGE: version_of_yosys(), **_versions(device)}
    layout = Layout.read(rtl)
    make_folder(folder)
    synthesis = folder / SYNTHESIS if synthesis is None else synthesis
    report = synthesise(rtl, synthesis, device.family, progress=progress)
    (folder / PLACEMENT_FILE).unlink(missing_ok=True)
    steps = Steps(folder)
    with progress(f"bitstream for {part}", 3) as show:
        _join(steps, synthesis / NETLIST_FILE, layout, device, sources, show)
        show(1, "placing and routing")
        attempts = _place(steps, layout, device, sources, seeds, versions, show)
        show(1, "packing the bitstream")
        bitstream = _pack(steps, device, attempts[-1].seed, versions, show)
        show(1, bitstream.name)
    placement = PlacementReport(
        part=part,
        model_sha256=layout.model_sha256,
        netlist_sha256=report.netlist_sha256,
        bitstream=bitstream.name,
        bitstream_sha256=file_hash(bitstream),
        bitstream_bytes=bitstream.stat().st_size,
        attempts=attempts,
        tools=versions,
    )
    placement.write(folder)
    return placement


def _versions(device: Device) -> dict[str, str]:
    try:
        return {package: version(package) for package in device.packages}
    except PackageNotFoundError as error:
        raise ToolError(f"{error.name} is needed and was not found: {EXTRA}") from error


def _join(
    steps: Steps,
    netlist: Path,
    layout: Layout,
    device: Device,
    sources: BoardSources,
    show: Show,
) -> None:
    """Synthesise the board's top and put the accelerator's netlist into it."""
    family, folder = family_named(device.family), steps.folder
    names = [f"{i:02d}_{file.name}" for i, file in enumerate(sources.files)]
    script = "\n".join(
        (
            f"{READ} --top {sources.top} {STUB} {' '.join(names)}",
            f"scratchpad -set abc9.D {family.delay_ps}",
            *(command.format(top=sources.top) for command in family.board_commands),
            f"delete ={layout.top}",
            f"read_json {NETLIST_FILE}",
            f"hierarchy -check -top {sources.top}",
            f"setattr -unset keep_hierarchy {layout.top}/c:*",
            "flatten -noscopeinfo",
            "opt_clean -purge",
            f"tee -q -o {STAT_FILE} stat -json",
            f"write_json {NETLIST}",
            "",
        )
    )
    stub = _stub(layout)
    key = step_key(version_of_yosys(), script, str(family.mended), stub, netlist, *sources.files)
    if steps.finished("netlist", key) is None:

        def prepare(work: Path) -> None:
            for name, file in zip(names, sources.files, strict=True):
                shutil.copyfile(file, work / name)
            shutil.copyfile(netlist, work / NETLIST_FILE)
            write_text(work / STUB, stub)
            write_mended(family, work)

        run_yosys(
            script,
            (NETLIST, STAT_FILE),
            folder,
            "board_yosys.log",
            what="Yosys synthesises the board's top",
            prepare=prepare,
            show=show,
        )
        steps.finish("netlist", key, (NETLIST, STAT_FILE))
    _check_fit(folder / STAT_FILE, device)


def _stub(layout: Layout) -> str:
    """Declare the accelerator's ports without its contents."""
    pixels, scores = layout.input.word_bits, layout.output.word_bits
    return (
        "(* blackbox *)\n"
        f"module {layout.top} (\n"
        "  input wire clk, input wire rst_n,\n"
        f"  input wire [{pixels - 1}:0] s_axis_tdata, input wire s_axis_tvalid,\n"
        "  output wire s_axis_tready,\n"
        f"  output wire [{scores - 1}:0] m_axis_tdata, output wire m_axis_tvalid,\n"
        "  output wire m_axis_tlast, input wire m_axis_tready);\n"
        "endmodule\n"
    )


def _check_fit(stat: Path, device: Device) -> None:
    text = stat.read_text(encoding="utf-8")
    counts = json.loads(text[text.index("{") :])["design"]["num_cells_by_type"]
    usage = family_named(device.family).usage(counts)
    over = [
        f"{getattr(usage, f.name)} {f.name} of {getattr(device.capacity, f.name)}"
        for f in fields(Usage)
        if getattr(usage, f.name) > getattr(device.capacity, f.name)
    ]
    if over:
        raise HardwareError(
            f"the network does not fit {device.part}: it takes {', '.join(over)}; ask for fewer "
            "fps, or choose a larger board"
        )


def _place(
    steps: Steps,
    layout: Layout,
    device: Device,
    sources: BoardSources,
    seeds: Sequence[int],
    versions: dict[str, str],
    show: Show,
) -> tuple[Attempt, ...]:
    """Try one seed after the other; the last attempt returned is the one that met the timing."""
    attempts: list[Attempt] = []
    for seed in seeds:
        attempts.append(_try(steps, layout, device, sources, seed, versions, show))
        if attempts[-1].met:
            return tuple(attempts)
        show(0, f"seed {seed} missed the timing")
    raise no_timing(device.part, tuple(attempts))


def _try(
    steps: Steps,
    layout: Layout,
    device: Device,
    sources: BoardSources,
    seed: int,
    versions: dict[str, str],
    show: Show,
) -> Attempt:
    """Place and route with one seed."""
    folder, step = steps.folder, f"placed with seed {seed}"
    words = [
        *device.place,
        *("--seed", str(seed), "--freq", str(sources.clock_hz / HERTZ), "--report", TIMING),
    ]
    placed, timing = _named(PLACED, seed), _named(TIMING, seed)
    key = step_key(words, versions, folder / NETLIST, sources.constraints)
    numbers = steps.finished(step, key)
    if numbers is None:

        def prepare(work: Path) -> None:
            shutil.copyfile(folder / NETLIST, work / NETLIST)
            shutil.copyfile(sources.constraints, work / CONSTRAINTS)

        start = time.perf_counter()
        try:
            run_step(
                [find_program(words[0]), *words[1:]],
                (PLACED, TIMING),
                folder,
                f"nextpnr_{seed}.log",
                what=f"nextpnr places and routes for {device.part}",
                prepare=prepare,
                show=show,
                heading=INFO,
                despite_failure=(TIMING,),
            )
        except ToolError:
            # nextpnr also fails where all went well but the clock; then its report says so.
            if not (folder / TIMING).is_file():
                raise
            if read_timing(folder / TIMING, seed, 0.0, layout).met:
                raise
        results = [name for name in (PLACED, TIMING) if (folder / name).is_file()]
        for name in results:
            (folder / name).replace(folder / _named(name, seed))
        numbers = {"seconds": time.perf_counter() - start}
        steps.finish(step, key, [_named(name, seed) for name in results], **numbers)
    attempt = read_timing(folder / timing, seed, numbers["seconds"], layout)
    if attempt.met and not (folder / placed).is_file():
        raise ToolError(f"nextpnr left out the placed design, see {folder}/nextpnr_{seed}.log")
    return attempt


def _named(file: str, seed: int) -> str:
    stem, dot, suffix = file.partition(".")
    return f"{stem}_{seed}{dot}{suffix}"


def _pack(steps: Steps, device: Device, seed: int, versions: dict[str, str], show: Show) -> Path:
    """Turn the placed design into a bitstream."""
    folder, bitstream = steps.folder, f"{BITSTREAM}{device.suffix}"
    placed = folder / _named(PLACED, seed)
    words = [word.format(bitstream=bitstream) for word in device.pack]
    key = step_key(words, versions, placed)
    if steps.finished("bitstream", key) is None:
        run_step(
            [find_program(words[0]), *words[1:]],
            (bitstream,),
            folder,
            "pack.log",
            what=f"{words[0]} makes the bitstream",
            prepare=lambda work: shutil.copyfile(placed, work / PLACED),
            show=show,
            heading=LINE,
        )
        steps.finish("bitstream", key, (bitstream,))
    return folder / bitstream
