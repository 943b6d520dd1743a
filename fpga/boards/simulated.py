# SPDX-License-Identifier: BSD-3-Clause
"""A whole board in Verilator behind a pseudo-terminal: pins, protocol and network, bit by bit.

`host.BoardLink` opens the terminal and talks to it as it talks to the board.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import tty
from pathlib import Path
from types import TracebackType
from typing import Self

from brevitas_divqat.errors import HardwareError, ToolError
from brevitas_divqat.files import make_folder, write_json

from ..rtl.layout import FILE_LIST, Layout
from ..tools import TAIL_CHARACTERS, find_verilator, run_tool
from .files import BoardSources, board_sources
from .host import BoardLink
from .table import board as find_board

__all__ = ["SimulatedBoard", "build_simulated_board"]

BENCH = Path(__file__).with_name("simulated.cpp")
PROGRAM = "simulated"
STAMP = "simulated.json"
RUN_LOG = "simulated.log"
OBJECTS = "objects"
RTL_COPY, BOARD_COPY = "rtl", "board"

NANOSECONDS = 1e9
DIVIDER = 4
"""Cycles per bit on the simulated line, so that most of the time is the accelerator's."""

IDLE_SECONDS = 0.01
TIME_SCALE = 100.0
"""How much slower than real time a simulated network may be."""

LULL_FRAMES = 64
LULL_SILENCES = 4


def build_simulated_board(
    rtl: Path,
    folder: Path,
    *,
    board: str = "ulx3s-85f",
    baud: int | None = None,
    idle_seconds: float = IDLE_SECONDS,
) -> Path:
    """Compile a board's top around the accelerator in ``rtl``.

    What was built from the same files and settings is used again.

    Args:
        rtl: folder of the generated accelerator.
        folder: receives parameters, program and logs.
        board: one of the open flow.
        baud: bits per second on the simulated line; by default a quarter of the board's clock.
        idle_seconds: of simulated time, after which the board gives up half a command.

    Returns:
        The program.

    Raises:
        HardwareError: if ``rtl`` holds no accelerator that fits the board.
        ToolError: if Verilator or a compiler is missing or fails.
    """
    layout, chosen = Layout.read(rtl), find_board(board)
    sources = board_sources(
        chosen,
        layout,
        make_folder(folder),
        baud=baud or round(NANOSECONDS / chosen.clock_ns / DIVIDER),
        idle_seconds=idle_seconds,
    )
    verilator, variables = find_verilator()
    program = folder / OBJECTS / PROGRAM
    command = _command(verilator, sources)
    stamp = {"sha256": _digest(rtl, sources, command)}
    if not program.is_file() or not _same(folder / STAMP, stamp):
        (folder / STAMP).unlink(missing_ok=True)
        _build(command, rtl, sources, program, folder / "verilator.log", variables)
        write_json(folder / STAMP, stamp)
    return program


class SimulatedBoard:
    """A simulated board that runs while the context lasts.

    Args:
        rtl: folder of the generated accelerator.
        folder: receives the build; used again where nothing changed.
        board: one of the open flow.
        baud: bits per second on the simulated line, which changes the speed of simulation only;
            by default a quarter of the board's clock.
        idle_seconds: of simulated time, after which the board gives up half a command.

    Attributes:
        port: the pseudo-terminal, while the context lasts.

    Raises:
        HardwareError: if ``rtl`` holds no accelerator that fits the board.
        ToolError: if it cannot be built; on leaving the context, if it died.
    """

    def __init__(
        self,
        rtl: Path,
        folder: Path,
        *,
        board: str = "ulx3s-85f",
        baud: int | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.port = ""
        self._rtl = rtl.resolve()
        self._log = folder / RUN_LOG
        self._program = build_simulated_board(
            self._rtl, folder, board=board, baud=baud, idle_seconds=idle_seconds
        ).resolve()
        cycles = Layout.read(rtl).cycles_per_frame
        clock_hz = NANOSECONDS / find_board(board).clock_ns
        self._lull = max(LULL_FRAMES * cycles, round(LULL_SILENCES * idle_seconds * clock_hz))
        self._process: subprocess.Popen[bytes] | None = None
        self._slave = -1

    def __enter__(self) -> Self:
        master, self._slave = os.openpty()
        try:
            tty.setraw(self._slave)
            self.port = os.ttyname(self._slave)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [self._program, str(master), str(self._lull)],
                    cwd=self._rtl,  # memories are read from there
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(master,),
                )
        except BaseException:
            os.close(self._slave)
            raise
        finally:
            os.close(master)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        assert process is not None
        died = process.poll() is not None
        if not died:
            process.kill()
            process.wait()
        os.close(self._slave)
        self._process = None
        self.port = ""
        if died:
            raise self._death(process.returncode) from error

    def check(self) -> None:
        """Make sure that the simulation runs.

        Raises:
            ToolError: if it died, with its last words.
            HardwareError: if it was never started.
        """
        process = self._running()
        if process.poll() is not None:
            raise self._death(process.returncode)

    def link(
        self,
        *,
        timeout: float = 2.0,
        retries: int = 3,
        model_sha256: str | None = None,
        time_scale: float = TIME_SCALE,
    ) -> BoardLink:
        """Open the host's side of the line.

        Args:
            timeout: seconds of the board's time to wait for an answer.
            retries: times that an image or a command is sent again before it is given up.
            model_sha256: of the integer graph that the board must hold; None takes any.
        """
        self.check()
        return BoardLink(
            self.port,
            timeout=timeout,
            retries=retries,
            model_sha256=model_sha256,
            time_scale=time_scale,
        )

    def press_reset(self) -> None:
        """Press the board's reset button for a moment."""
        self.check()
        self._running().send_signal(signal.SIGUSR1)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise HardwareError("the simulated board does not run: enter its context first")
        return self._process

    def _death(self, status: int) -> ToolError:
        words = " ".join(self._log.read_text(errors="replace")[-TAIL_CHARACTERS:].split())
        return ToolError(
            f"the simulated board ended with status {status}, see {self._log}: {words}"
        )


def _build(
    command: list[str],
    rtl: Path,
    sources: BoardSources,
    program: Path,
    log: Path,
    variables: dict[str, str],
) -> None:
    """Build on copies in a temporary folder: names of the user's folders may break make."""
    with tempfile.TemporaryDirectory(prefix="divqat-verilator-") as name:
        work = Path(name)
        copies = (
            (RTL_COPY, (f for f in rtl.iterdir() if f.is_file())),
            (BOARD_COPY, sources.files),
            ("", (BENCH,)),
        )
        for place, files in copies:
            (work / place).mkdir(exist_ok=True)
            for file in files:
                shutil.copyfile(file, work / place / file.name)
        run_tool(command, what="Verilator builds the board", log=log, cwd=work, env=variables)
        part = make_folder(program.parent) / f".{work.name}.part"
        shutil.copy(work / OBJECTS / PROGRAM, part)
        os.replace(part, program)


def _command(verilator: Path, sources: BoardSources) -> list[str]:
    divider = round(sources.clock_hz / sources.baud)
    pins = sources.pins
    defines = {
        "CLOCK": pins.clock,
        "RECEIVE": pins.receive,
        "TRANSMIT": pins.transmit,
        "BUTTON": pins.button,
        "DIVIDER": divider,
    }
    return [
        str(verilator),
        *("--cc", "--exe", "--build", "--no-timing", "-Wno-fatal", "-O3", "-j", "1"),
        *("--top-module", sources.top, "--prefix", "Vboard_top"),
        *("-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include"),  # the wheel's configuration lacks it
        *("-MAKEFLAGS", "OPT_FAST=-O2"),
        *("-CFLAGS", " ".join(f"-D{k}={v}" for k, v in defines.items())),
        *("--Mdir", OBJECTS, "-o", PROGRAM),
        *("-F", f"{RTL_COPY}/{FILE_LIST}"),
        *(f"{BOARD_COPY}/{f.name}" for f in sources.files),
        BENCH.name,
    ]


def _digest(rtl: Path, sources: BoardSources, command: list[str]) -> str:
    digest = hashlib.sha256("\0".join(command).encode())
    for file in (*sorted(f for f in rtl.iterdir() if f.is_file()), *sources.files, BENCH):
        digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _same(stamp: Path, content: dict[str, str]) -> bool:
    try:
        return bool(json.loads(stamp.read_text(encoding="utf-8")) == content)
    except (OSError, ValueError):
        return False
