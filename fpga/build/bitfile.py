# SPDX-License-Identifier: BSD-3-Clause
"""Runs FINN's own flow on a build folder: to its estimates anywhere, to the bitfile with Vivado."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from brevitas_divqat.errors import HardwareError, ToolError, check_choice

from ..finn_environment import finn_version, vivado
from ..tools import run_tool
from .finn_project import FINN_OUTPUT

__all__ = ["FinnProfile", "run_finn"]

FinnProfile = Literal["estimate", "bitfile"]

# FINN's flow takes over logging, standard output and warnings of its process: it gets its own.
IN_PROCESS = """\
import runpy, sys
from pathlib import Path
from brevitas_divqat.fpga.finn_environment import prepare
prepare(Path(sys.argv[1]))
sys.argv = ["build.py", sys.argv[2]]
runpy.run_path("build.py", run_name="__main__")
"""
ESTIMATES = ("report/estimate_network_performance.json", "report/estimate_layer_resources.json")
DEPLOYED = ("deploy/bitfile", "deploy/driver")


def run_finn(folder: Path, profile: FinnProfile = "bitfile") -> Path:
    """Build a folder that `write_project` wrote with FINN+, through its ``build.py``.

    Args:
        folder: of the build.
        profile: ``"estimate"`` ends with FINN's estimates, ``"bitfile"`` with bitfile, PYNQ driver
            and deployment package, or with a synthesised accelerator where FINN has no shell for
            the board.

    Returns:
        The folder with FINN's results.

    Raises:
        HardwareError: if the folder is none that FINN can build.
        ToolError: if FINN+ is missing or fails, or Vivado is needed and missing; then nothing is
            run.
    """
    check_choice("profile", profile, FinnProfile)
    finn_version()
    missing = [name for name in ("build.py", "model.onnx") if not (folder / name).is_file()]
    if missing:
        raise HardwareError(
            f"{folder} holds no {' and no '.join(missing)}: make it with `divqat build`"
        )
    found = vivado()
    if profile == "bitfile" and found is None:
        raise ToolError(
            "the bitfile needs Vivado, which was not found: source its settings64.sh and give the "
            f"same command again, or build {folder} where Vivado is (see its README.md); estimates "
            "and RTL need none"
        )
    output = folder / FINN_OUTPUT
    files = folder / f"{FINN_OUTPUT}-files"
    log = folder / f"{FINN_OUTPUT}.log"
    variables = {"FINN_SETTINGS": str(files / "settings.yaml")}
    if found is not None and "XILINX_VIVADO" not in os.environ:
        variables["XILINX_VIVADO"] = str(found.root)
    command = [sys.executable, "-c", IN_PROCESS, str(files.resolve()), profile]
    run_tool(command, what=f"FINN builds {folder}", log=log, cwd=folder, env=variables)
    _check_results(output, profile, log)
    return output


def _check_results(output: Path, profile: FinnProfile, log: Path) -> None:
    """FINN leaves out what it thinks was not asked for, and says so only in its log."""
    needed = list(ESTIMATES)
    if profile == "bitfile":
        in_shell = '"shell_flow_type"' in (output.parent / "dataflow_build_config.json").read_text()
        needed += DEPLOYED if in_shell else ["stitched_ip"]
    missing = [name for name in needed if not (output / name).exists()]
    if missing:
        raise ToolError(f"FINN ended without {', '.join(missing)} in {output}: see {log}")
