# SPDX-License-Identifier: BSD-3-Clause
"""What a board adds to the accelerator: parameters, sources, constraints, driver."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brevitas_divqat.fpga.boards.files import board_sources, write_driver
from brevitas_divqat.fpga.boards.host import Identity
from brevitas_divqat.fpga.boards.table import BOARDS
from brevitas_divqat.fpga.rtl.layout import InputStream, Layout, OutputStream

from brevitas_divqat.errors import HardwareError

ULX3S = BOARDS["ulx3s-85f"]
LAYOUT = Layout(
    top="accelerator",
    input=InputStream(8, False, 1, 8, 784, (28, 28, 1)),
    output=OutputStream(17, True, 1, 24, 10, 10),
    channels=(),
    layers=(),
    cycles_per_frame=37632,
    part="xc7z020clg400-1",
    clock_ns=40.0,
    model_sha256="0123456789abcdef" * 4,
    exported_sha256="f" * 64,
)


def parameters(config: Path) -> dict[str, int]:
    text = config.read_text()
    found = {k: int(v) for k, v in re.findall(r"localparam int (\w+) = (\d+);", text)}
    digits = re.search(r"IDENTITY = 256'h([0-9A-F]{64});", text)
    assert digits is not None
    return found | {"IDENTITY": int(digits[1], 16)}


def test_parameters_follow_the_layout(tmp_path: Path) -> None:
    sources = board_sources(ULX3S, LAYOUT, tmp_path)
    values = parameters(tmp_path / "board_config.sv")
    identity = Identity.unpack(values.pop("IDENTITY").to_bytes(32, "little"))
    assert values == {
        "DIVIDER": 25,
        "INPUT_BYTES": 1,
        "FRAME_BYTES": 784,
        "SCORE_BYTES": 3,
        "SCORES": 10,
        "BUFFER_ADDRESS_BITS": 12,
        "IDLE_CYCLES": 2_500_000,
    }
    assert identity == Identity(
        frames=5,
        shape=(1, 28, 28),
        outputs=10,
        score_bytes=3,
        signed=True,
        cycles_per_frame=37632,
        clock_hz=25_000_000,
        model="0123456789abcdef",
        idle_seconds=0.1,
    )
    assert sources.top == "board_top"
    assert (sources.clock_hz, sources.baud) == (25_000_000, 1_000_000)
    assert sources.files[0] == tmp_path / "board_config.sv"
    assert sources.files[-1].name == "ulx3s_top.sv"
    assert all(f.is_file() for f in (*sources.files, sources.constraints))
    assert sources.clock_hz == 1e9 / ULX3S.clock_ns


def test_every_module_of_the_folder_is_listed(tmp_path: Path) -> None:
    files = board_sources(ULX3S, LAYOUT, tmp_path).files
    shared = {f.name for f in files[-1].parent.glob("*.sv") if not f.name.endswith("_top.sv")}
    assert {f.name for f in files[1:]} == shared | {"ulx3s_top.sv"}


def test_every_port_is_placed_once_and_exists(tmp_path: Path) -> None:
    sources = board_sources(ULX3S, LAYOUT, tmp_path)
    header = sources.files[-1].read_text().split("module board_top (")[1].split(");")[0]
    ports = set()
    for high, name in re.findall(r"wire\s+(?:\[(\d+):0\])?\s*(\w+)", header):
        ports |= {f"{name}[{i}]" for i in range(int(high) + 1)} if high else {name}
    constraints = sources.constraints.read_text()
    located = re.findall(r'LOCATE COMP "([^"]+)" SITE "(\w+)";', constraints)
    assert sorted(name for name, _ in located) == sorted(ports)
    assert len({site for _, site in located}) == len(located)
    assert set(re.findall(r'IOBUF PORT "([^"]+)"', constraints)) == ports
    pins = sources.pins
    assert {pins.clock, pins.receive, pins.transmit, pins.button} < ports
    assert f'FREQUENCY PORT "{pins.clock}" 25 MHZ;' in constraints
    assert "https://github.com/emard/ulx3s" in constraints


def test_two_large_frames_are_buffered(tmp_path: Path) -> None:
    image = InputStream(8, False, 3, 24, 1024, (32, 32, 3))
    board_sources(ULX3S, replace(LAYOUT, input=image), tmp_path)
    values = parameters(tmp_path / "board_config.sv")
    assert values["BUFFER_ADDRESS_BITS"] == 13
    assert values["INPUT_BYTES"] == 3
    assert Identity.unpack(values["IDENTITY"].to_bytes(32, "little")).frames == 2


@pytest.mark.parametrize(
    ("baud", "divider"), [(115_200, 217), (1_000_000, 25), (500_000, 50), (6_250_000, 4)]
)
def test_the_clock_is_divided(tmp_path: Path, baud: int, divider: int) -> None:
    board_sources(ULX3S, LAYOUT, tmp_path, baud=baud)
    assert parameters(tmp_path / "board_config.sv")["DIVIDER"] == divider


@pytest.mark.parametrize(
    ("baud", "match"),
    [
        (3_000_000, "divides 25000000 Hz by 8, 4.2% off: choose 3125000 or 2777777, or 1000000"),
        (12_500_000, "takes from 382 to 6250000 baud"),
        (300, "takes from 382 to 6250000 baud"),
        (0, "takes from"),
    ],
)
def test_a_speed_that_the_clock_cannot_give_is_refused(
    tmp_path: Path, baud: int, match: str
) -> None:
    with pytest.raises(HardwareError, match=match):
        board_sources(ULX3S, LAYOUT, tmp_path, baud=baud)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"top": "finn_top"}, "the top is 'finn_top'"),
        ({"input": InputStream(4, False, 2, 8, 392, (28, 28, 1))}, "unsigned pixels of 4 bits"),
        ({"input": InputStream(8, True, 1, 8, 784, (28, 28, 1))}, "signed pixels of 8 bits"),
        ({"input": InputStream(8, False, 1, 16, 784, (28, 28, 1))}, "784 words of 16 bits"),
        ({"input": InputStream(8, False, 1, 8, 150528, (224, 224, 3))}, "a buffer of 524288 bytes"),
        ({"output": OutputStream(17, True, 2, 40, 5, 10)}, "expected one score per word"),
        ({"output": OutputStream(70, True, 1, 72, 10, 10)}, "scores of 72 bits"),
    ],
)
def test_an_accelerator_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(HardwareError, match=match):
        board_sources(ULX3S, replace(LAYOUT, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_board_without_a_serial_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        HardwareError, match="Pynq-Z1 has no top with a serial line: choose from ul"
    ):
        board_sources(BOARDS["Pynq-Z1"], LAYOUT, tmp_path)


def test_the_driver_runs_without_this_package(tmp_path: Path) -> None:
    path = write_driver(tmp_path)
    assert "brevitas_divqat.errors" not in path.read_text()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import divqat_host as h\n"
        "assert not any(n.split('.')[0] in ('brevitas_divqat', 'torch') for n in sys.modules)\n"
        "try: h.BoardLink('/nowhere/ttyUSB9')\n"
        "except h.HardwareError as error: print(error)\n"
    )
    pytest.importorskip("serial", reason="pyserial is not installed")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cannot open the port /nowhere/ttyUSB9 at 1000000 baud")
