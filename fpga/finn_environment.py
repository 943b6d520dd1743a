# SPDX-License-Identifier: BSD-3-Clause
"""Makes FINN+ usable from Python, on machines with Vivado and without.

FINN+ 1.6.1 is made to be started by its own command, which insists on Vivado. As a library it wants
environment variables, and some of its modules import a simulator that only Vivado can build.
`prepare` sets what is missing; whoever imports `finn` calls it first. Where Vivado exists,
nothing of Vivado is touched.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from brevitas_divqat.errors import ToolError

from .tools import EXTRA

__all__ = ["NO_VIVADO", "Vivado", "finn_version", "prepare", "quiet", "vivado"]

NO_VIVADO = "/vivado-is-not-installed"
"""What XILINX_VIVADO says after `prepare` on a machine without: FINN+ reads its last part."""

_VERSION = re.compile(r"20\d\d\.\d")


@dataclass(frozen=True)
class Vivado:
    """An installation of Vivado.

    Attributes:
        root: its folder, as XILINX_VIVADO names it.
        version: as its path tells it, ``"2024.2"``; empty where the path does not.
    """

    root: Path
    version: str


def vivado() -> Vivado | None:
    """Find Vivado: the folder that XILINX_VIVADO names, else the program `vivado` on the path."""
    named = os.environ.get("XILINX_VIVADO")
    program = shutil.which("vivado")
    if named and Path(named).is_dir():
        root = Path(named)
    elif program is not None:
        root = Path(program).resolve().parent.parent  # ROOT/bin/vivado
    else:
        return None
    found = _VERSION.search(str(root))
    return Vivado(root, found.group() if found else "")


def finn_version() -> str:
    """Say which FINN+ is installed.

    Raises:
        ToolError: if there is none, if another FINN is in its place, or if psutil is missing,
            which FINN+ needs and does not require.
    """
    try:
        found = version("finn-plus")
    except PackageNotFoundError:
        if find_spec("finn") is not None:
            raise ToolError(
                "finn-plus is needed, and another package is installed as finn (AMD's FINN or "
                f"finn-base): use a fresh environment with {EXTRA}"
            ) from None
        raise ToolError(f"finn-plus is needed and is not installed: {EXTRA}") from None
    if find_spec("psutil") is None:
        raise ToolError(f"finn-plus {found} needs psutil, which is not installed: {EXTRA}")
    return found


def prepare(build_dir: Path | None = None, *, workers: int = 1) -> None:
    """Make `finn` ready to be imported and used; to be called before each use.

    Sets FINN_BUILD_DIR, and where they are unset FINN_SETTINGS (else FINN+ makes a folder in the
    user's home) and NUM_DEFAULT_WORKERS. On a machine without Vivado, sets XILINX_VIVADO to
    `NO_VIVADO` unless it is set, and replaces the simulator that FINN+ imports by one that raises
    ToolError when it is used. Calling it again changes nothing but the folder, if one is given.

    Args:
        build_dir: where FINN+ puts its generated files; created. Without it the folder that
            FINN_BUILD_DIR names, else a temporary one that goes with the process.
        workers: processes that FINN+ may use, unless NUM_DEFAULT_WORKERS says.

    Raises:
        ToolError: if FINN+ or what it needs is missing or cannot be imported.
    """
    installed = finn_version()
    folder = _build_folder(build_dir)
    os.environ["FINN_BUILD_DIR"] = str(folder)
    os.environ.setdefault("FINN_SETTINGS", str(folder / "settings.yaml"))
    os.environ.setdefault("NUM_DEFAULT_WORKERS", str(workers))
    try:
        from finn import xsi
        from finn.util.settings import get_settings
    except ImportError as error:
        raise ToolError(f"finn-plus {installed} cannot be imported ({error}): {EXTRA}") from error
    get_settings().finn_build_dir = folder  # FINN+ reads the variable only once
    if vivado() is None:
        os.environ.setdefault("XILINX_VIVADO", NO_VIVADO)
        for name in xsi._LAZY_NAMES:
            setattr(xsi, name, _NoSimulator)


class _NoSimulator:
    """Stands for each part of the simulator that FINN+ builds with Vivado."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ToolError(
            "this step of FINN simulates with Vivado, which is not installed: install Vivado and "
            "source its settings64.sh, or use `divqat simulate`, which needs none"
        )


def _build_folder(given: Path | None) -> Path:
    folder = given or Path(os.environ.get("FINN_BUILD_DIR") or _temporary_folder().name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"FINN cannot put its files into {folder} ({error.strerror}): choose another folder"
        ) from error
    return folder.resolve()


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="divqat-finn-")


@contextmanager
def quiet(log: Path | None = None) -> Iterator[None]:
    """Keep what FINN prints, logs and warns of out of sight; exceptions pass.

    Standard output, standard error, Python's logging and warnings go to ``log``, and are as they
    were afterwards. An exception carries the log's name as a note.

    Args:
        log: the file that receives them, after what it holds already; without it they are dropped.
    """
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stream = stack.enter_context(open(log or os.devnull, "a", encoding="utf-8", buffering=1))
        stack.enter_context(redirect_stdout(stream))
        stack.enter_context(redirect_stderr(stream))
        stack.enter_context(_warnings_to(stream))
        stack.enter_context(_logging_to(stream))
        try:
            yield
        except Exception as error:
            if log is not None:
                error.add_note(f"FINN's output is in {log}")
            raise


@contextmanager
def _logging_to(stream: TextIO) -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers, root.level
    warnings_were_captured = getattr(logging, "_warnings_showwarning", None) is not None
    root.handlers = [logging.StreamHandler(stream)]
    try:
        yield
    finally:
        # FINN's builder sets up logging anew, for good.
        root.handlers = before
        root.setLevel(level)
        logging.captureWarnings(warnings_were_captured)


@contextmanager
def _warnings_to(stream: TextIO) -> Iterator[None]:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        stream.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield
