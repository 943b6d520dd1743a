# SPDX-License-Identifier: BSD-3-Clause
"""Steps that take minutes: run aside, watched, and their results taken whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from brevitas_divqat.errors import ToolError
from brevitas_divqat.progress import Show

from ..tools import run_tool

__all__ = ["file_hash", "run_step"]

LOOK_SECONDS = 0.5
TAIL_BYTES = 4096
TEXT_CHARACTERS = 60


def run_step(
    command: Sequence[str | Path],
    results: Sequence[str],
    folder: Path,
    log: str,
    *,
    what: str,
    prepare: Callable[[Path], object],
    show: Show,
    heading: re.Pattern[str],
    despite_failure: Sequence[str] = (),
) -> None:
    """Run a program where paths are short, and move what it made to ``folder`` when it is whole.

    Yosys and nextpnr are WebAssembly that sees the file system through a few openings, and they
    split their command lines at spaces; so they work in a folder below ``folder``, on copies, with
    names alone.

    Args:
        command: the program and its arguments.
        results: files that it writes; those of an earlier run are removed first.
        folder: receives them, and the log.
        log: name of the log, which is replaced.
        what: what the program does, for messages: "Yosys synthesises the accelerator".
        prepare: puts the inputs into the folder that it is given.
        show: told the last line of the log that ``heading`` matches, by its first group.
        heading: what a line looks like that says where the program is.
        despite_failure: results that are taken as well when the program fails.

    Raises:
        ToolError: if the program fails or leaves out a result.
    """
    for result in results:
        (folder / result).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=".step.", dir=folder) as name:
        work = Path(name)
        prepare(work)
        try:
            _watch(command, what, folder / log, work, show, heading)
        except ToolError:
            _move([r for r in despite_failure if (work / r).is_file()], work, folder)
            raise
        missing = [result for result in results if not (work / result).is_file()]
        if missing:
            raise ToolError(f"{what}: it left out {missing[0]}, see {folder / log}")
        _move(results, work, folder)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(names: Sequence[str], start: Path, end: Path) -> None:
    for name in names:
        os.replace(start / name, end / name)


def _watch(
    command: Sequence[str | Path],
    what: str,
    log: Path,
    cwd: Path,
    show: Show,
    heading: re.Pattern[str],
) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(run_tool, command, what=what, log=log, cwd=cwd)
        while not wait([running], timeout=LOOK_SECONDS).done:
            found = heading.findall(_tail(log))
            if found:
                show(0, found[-1][:TEXT_CHARACTERS])
        running.result()


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(-min(TAIL_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""  # not started yet
