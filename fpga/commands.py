# SPDX-License-Identifier: BSD-3-Clause
"""The hardware subcommands of `divqat`: plain functions of their settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray
from rich.console import Console

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.progress import bar

__all__ = [
    "bench",
    "bench_arguments",
    "build",
    "build_arguments",
    "built_data",
    "doctor",
    "doctor_arguments",
    "simulate",
    "simulate_arguments",
    "synth",
    "synth_arguments",
]

GATES_FAMILY = "ecp5"
"""The family whose cells can be simulated."""

COLUMNS = 110
"""Width of tables where there is no terminal."""


def build_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `divqat build`."""
    from .build.builder import BuildConfig

    parser.add_argument(
        "model", type=Path, help="a graph that `divqat export` wrote, or its checkpoint's folder."
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="the build folder.")
    parser.add_class_arguments(BuildConfig, None)


def build(settings: Namespace) -> None:
    """Build a network into a folder, or go on with an interrupted build."""
    from .build.builder import BITSTREAM_FOLDER, PLACEMENT_TABLE, BuildConfig, build
    from .build.estimates import Estimates, table

    names = ("board", "fps", "clock_ns", "profile", "fifos")
    config = BuildConfig(**{name: settings[name] for name in names})
    build(settings.model, settings.out, config, progress=bar)
    print(table(Estimates.read(settings.out)))
    placed = settings.out / BITSTREAM_FOLDER / PLACEMENT_TABLE
    if placed.is_file():
        print(placed.read_text(encoding="utf-8"))
    print(f"\n{settings.out}: see {settings.out / 'README.md'}")
    print(f"next:  divqat simulate {settings.out}   (bit for bit against the graph)")
    print(f"       divqat synth {settings.out}      (resources by layer)")


def simulate_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `divqat simulate`, except those that choose images."""
    parser.add_argument("folder", type=Path, help="a folder that `divqat build` wrote.")
    parser.add_argument(
        "--stall",
        type=float | None,
        default=None,
        help="share of cycles with stalls at either end; by default what just slows it down.",
    )
    parser.add_argument(
        "--processes", type=int, default=None, help="that share the images; by default the cores."
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of each simulation, for large networks."
    )
    parser.add_argument(
        "--channels", action="store_true", help="list the FIFOs and the most words they held."
    )
    parser.add_argument(
        "--gates",
        action="store_true",
        help="simulate the netlist that Yosys makes for the ECP5 instead of the RTL; minutes.",
    )
    parser.add_argument(
        "--trace", type=Path, default=None, help="a file for the waveform (FST) of two images."
    )


def simulate(settings: Namespace, images: NDArray[Any]) -> int:
    """Simulate a build folder's RTL, compare every integer; exit status 1 if one differs."""
    from .build.manifest import Manifest
    from .sim.compare import simulate_folder
    from .sim.report import render

    processes = settings.processes
    if processes is not None and processes < 1:
        raise ConfigError(f"--processes is {processes}: it must be 1 or more")
    Manifest.read(settings.folder).require_rtl(settings.folder)
    gates = None
    if settings.gates:
        from .build.builder import RTL_FOLDER, SYNTHESIS_FOLDER
        from .synth.netlist import gate_netlist

        kept = settings.folder / SYNTHESIS_FOLDER / GATES_FAMILY
        gates = gate_netlist(settings.folder / RTL_FOLDER, kept, GATES_FAMILY, progress=bar)
    report = simulate_folder(
        settings.folder,
        images,
        input_stall=settings.stall,
        output_stall=settings.stall,
        seed=settings.seed,
        processes=processes or len(os.sched_getaffinity(0)),
        threads=settings.threads,
        trace=_new_file("--trace", settings.trace),
        gates=gates,
        progress=bar,
    )
    _console().print(render(report, channels=settings.channels))
    return int(not report.exact)


def synth_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `divqat synth`."""
    parser.add_argument("folder", type=Path, help="a folder that `divqat build` wrote.")
    parser.add_argument(
        "--family",
        type=str | None,
        default=None,
        help="xc7 (Zynq-7000), xcup (UltraScale+), ecp5, …; by default the board's.",
    )


def synth(settings: Namespace) -> None:
    """Synthesise a build folder's RTL and show what each layer takes."""
    from .boards.table import board
    from .build.builder import RTL_FOLDER, SYNTHESIS_FOLDER
    from .build.manifest import Manifest
    from .synth.report import render
    from .synth.yosys import synthesise

    manifest = Manifest.read(settings.folder)
    manifest.require_rtl(settings.folder)
    family = settings.family or board(manifest.board).family
    kept = settings.folder / SYNTHESIS_FOLDER / family
    report = synthesise(settings.folder / RTL_FOLDER, kept, family, progress=bar)
    _console().print(render(report))


def bench_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `divqat bench hardware`, except where to write."""
    parser.add_argument("model", type=Path, help="a graph, or its checkpoint's folder.")
    parser.add_argument("--board", type=str, default="Pynq-Z1", help="name of the board.")
    parser.add_argument("--fps", type=float, default=1000.0, help="frames per second to reach.")
    parser.add_argument("--images", type=int, default=200, help="images to simulate.")


def bench(settings: Namespace) -> tuple[dict[str, Any], Any]:
    """Time each step from a graph to hardware."""
    from .bench import bench_hardware, hardware_table

    record = bench_hardware(
        settings.model,
        board=settings.board,
        fps=settings.fps,
        images=settings.images,
        progress=bar,
    )
    return record, hardware_table(record)


def built_data(folder: Path) -> str | None:
    """Return the data set of the network in a build folder; None if it is none, or unknown."""
    from .build.manifest import MANIFEST_FILE, Manifest

    if not (folder / MANIFEST_FILE).is_file():
        return None
    data = Manifest.read(folder).data
    return None if data == "unknown" else data


def doctor_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `divqat doctor`: none."""


def doctor(settings: Namespace) -> int:
    """Show what of the hardware flow works here; exit status 1 if something needed is missing."""
    from .doctor import diagnose, healthy, render

    rows = diagnose()
    print(render(rows))
    return int(not healthy(rows))


def _new_file(flag: str, file: Path | None) -> Path | None:
    if file is not None and file.exists():
        raise ConfigError(f"{flag} {file} exists: choose another file")
    return file


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else COLUMNS)
