# SPDX-License-Identifier: BSD-3-Clause
"""From a folder of RTL to a program that simulates it, built once and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from brevitas_divqat.errors import ConfigError, HardwareError, ToolError
from brevitas_divqat.executors.sessions import thread_count
from brevitas_divqat.files import make_folder, write_json

from ..rtl.layout import LAYOUT_FILE, Layout, listed_sources
from ..tools import find_program, find_verilator, run_tool
from .simulator import Simulator

__all__ = ["build_simulator", "has_trace_libraries", "verilator_version"]

PROGRAM = "accelerator"
LOG = "verilator.log"
RECORD = "build.json"
OBJECTS = "objects"
TESTBENCH = Path(__file__).with_name("testbench.cpp")

VERILATOR_FLAGS = (
    "--cc",
    "--exe",
    "--build",
    "-O3",
    "-Wno-fatal",
    "-Wno-lint",
    "--no-timing",
    "--x-assign",
    "fast",
    # Registers without a reset then begin with whatever the run chooses: zero, or random bits.
    "--x-initial",
    "unique",
    "--noassert",
    "--prefix",
    "Vaccelerator",
)
MAKE_FLAGS = (
    # The wheel was configured without this flag of g++; without it make says no such file.
    "CFG_CXXFLAGS_PCH_I=-include",
    "OPT_FAST=-O2",
    "OPT_SLOW=-O0",
    # The runtime library is slow to compile and takes no part in the inner loop.
    "OPT_GLOBAL=-O0",
)


def verilator_version() -> str:
    """Return the version of Verilator's Python package.

    Raises:
        ToolError: if it, or a compiler that it needs, is missing.
    """
    find_verilator()
    return version("verilator")


def build_simulator(
    rtl: Path, folder: Path, *, gauge: bool = False, trace: bool = False, threads: int = 1
) -> Simulator:
    """Build the simulation of a folder of RTL, unless ``folder`` holds it already.

    A build is known by a hash of the RTL's files, the test bench, the options and the versions of
    Verilator and g++. It appears in ``folder`` when it is whole; what is damaged there is built
    again. The log of a build that failed stays in ``folder``.

    Args:
        rtl: a folder with `rtl.json` and `files.f`.
        folder: keeps the built simulations; created.
        gauge: FIFOs of unlimited depth, to learn how deep they must be.
        trace: able to write a waveform; simulates more slowly, and needs liblz4 and zlib.
        threads: of the simulation itself; 1 is the fastest unless the accelerator is large.

    Raises:
        HardwareError: if the folder of RTL is incomplete, or does not compile.
        ToolError: if Verilator or the compiler is missing or fails.
        ConfigError: if ``threads`` is below 1 or ``folder`` cannot be written to.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}: it must be 1 or more")
    rtl, folder = Path(rtl).resolve(), make_folder(Path(folder).resolve())
    layout = Layout.read(rtl)
    sources = listed_sources(rtl)
    program, env = find_verilator()
    flags = [*VERILATOR_FLAGS, "--top-module", layout.top, *_options(gauge, trace, threads)]
    if layout.channels:
        flags.append("-DDIVQAT_PROBES")
    shape = (
        f"-DINPUT_BYTES={_whole_bytes(rtl, layout.input.word_bits)} "
        f"-DOUTPUT_BYTES={_whole_bytes(rtl, layout.output.word_bits)} "
        f"-DCHANNELS={len(layout.channels)}"
    )
    tools = {
        "verilator": verilator_version(),
        "g++": _first_line([str(find_program("g++")), "--version"]),
    }
    key = _key(rtl, [*flags, shape, *MAKE_FLAGS, *tools.values()])
    built = folder / key
    if not _is_whole(built, rtl):
        if trace and not has_trace_libraries():
            raise ToolError(
                "a waveform needs the headers of liblz4 and zlib, which were not found: install "
                "them (Debian, Ubuntu: apt install liblz4-dev zlib1g-dev)"
            )
        command: list[str | Path] = [program, *flags]
        command += ["--build-jobs", str(thread_count(None)), "-CFLAGS", shape]
        for flag in MAKE_FLAGS:
            command += ["-MAKEFLAGS", flag]
        _build(rtl, sources, built, command, env, tools)
    return Simulator(built / PROGRAM, layout, trace=trace)


def _options(gauge: bool, trace: bool, threads: int) -> list[str]:
    options = ["-DDIVQAT_GAUGE"] if gauge else []
    if trace:
        options += ["--trace-fst", "--trace-structs"]
    if threads > 1:
        options += ["--threads", str(threads)]
    return options


def _build(
    rtl: Path,
    sources: list[str],
    built: Path,
    command: list[str | Path],
    env: dict[str, str],
    tools: dict[str, str],
) -> None:
    """Build in a temporary folder and move what is whole to ``built``.

    Verilator pastes names of files and folders into lines for make and the shell: it is given
    relative ones alone, on copies, so that the user's may hold spaces, quotes and worse.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="divqat-verilator-") as name:
        work, result = Path(name) / "work", Path(name) / "result"
        work.mkdir()
        result.mkdir()
        for source in (*(rtl / source for source in sources), TESTBENCH):
            shutil.copyfile(source, work / source.name)
        # The simulation reads its memories' contents where it runs; the folder of RTL may change.
        for data in sorted(rtl.glob("*.dat")):
            shutil.copyfile(data, result / data.name)
        command = [*command, "--Mdir", OBJECTS, "-o", PROGRAM, *sources, TESTBENCH.name]
        # The same may be built twice at a time: a log of its own each.
        log = built.with_name(f"{built.name}.{name.rpartition('-')[2]}.{LOG}")
        run_tool(command, what="Verilator builds the simulation", log=log, cwd=work, env=env)
        shutil.copy(work / OBJECTS / PROGRAM, result / PROGRAM)
        shutil.copyfile(log, result / LOG)
        write_json(
            result / RECORD,
            {
                "schema": 1,
                "rtl": str(rtl),
                "command": [str(word) for word in command],
                "tools": tools,
                "seconds": round(time.perf_counter() - start, 1),
            },
        )
        _move(result, built, rtl)
    log.unlink(missing_ok=True)


def _is_whole(built: Path, rtl: Path) -> bool:
    """Tell whether a build has its record, a program that can be run, and its memories."""
    program = built / PROGRAM
    names = [RECORD, PROGRAM, *(data.name for data in rtl.glob("*.dat"))]
    return all((built / name).is_file() for name in names) and os.access(program, os.X_OK)


def _move(result: Path, built: Path, rtl: Path) -> None:
    """Move a build, maybe from another file system, to its place, whole or not at all."""
    with tempfile.TemporaryDirectory(
        prefix=f".{built.name}.", suffix=".part", dir=built.parent
    ) as name:
        new = Path(name) / "new"
        shutil.copytree(result, new)
        if not _is_whole(built, rtl):
            with suppress(FileNotFoundError):  # the usual case: nothing is there
                os.rename(built, Path(name) / "damaged")
        try:
            os.rename(new, built)
        except OSError:
            if not _is_whole(built, rtl):  # else somebody else was faster with the same build
                raise


def _key(rtl: Path, words: list[str]) -> str:
    """Return a hash of the test bench, the RTL's files and ``words``.

    What `rtl.json` says that matters is among the words.
    """
    digest = hashlib.sha256()
    files = sorted(f for f in rtl.iterdir() if f.is_file() and f.name != LAYOUT_FILE)
    for file in [TESTBENCH, *files]:
        content = file.read_bytes()
        digest.update(f"{file.name}\n{len(content)}\n".encode())
        digest.update(content)
    digest.update("\n".join(words).encode())
    return digest.hexdigest()[:16]


def _whole_bytes(rtl: Path, bits: int) -> int:
    if bits < 8 or bits % 8:
        raise HardwareError(
            f"{rtl} has a stream of {bits} bits: expected whole bytes; build the folder again"
        )
    return bits // 8


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolError(f"{command[0]} does not run: {error}") from error
    return done.stdout.strip().split("\n")[0]


def has_trace_libraries() -> bool:
    """Return whether the libraries that compress a waveform can be compiled against."""
    command = [str(find_program("g++")), "-fsyntax-only", "-x", "c++", "-include", "lz4.h"]
    command += ["-include", "zlib.h", os.devnull]
    return not subprocess.run(command, capture_output=True, check=False).returncode
