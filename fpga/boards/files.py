# SPDX-License-Identifier: BSD-3-Clause
"""What the open flow needs around the accelerator: sources, parameters, constraints, driver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.files import write_text

from ..rtl.layout import Layout
from .host import IDENTITY, PROTOCOL_VERSION
from .table import BOARDS, Board

__all__ = [
    "BAUD",
    "CONFIG_FILE",
    "DRIVER_FILE",
    "BoardPins",
    "BoardSources",
    "board_sources",
    "write_driver",
]

HERE = Path(__file__).parent
HDL = HERE / "hdl"
CONFIG_FILE = "board_config.sv"
DRIVER_FILE = "divqat_host.py"

BAUD = 1_000_000
"""Bits per second on the serial line: 25 MHz / 25 and 27 MHz / 27 on the boards, 3 MHz / 3 in the
ULX3S's USB converter: all exact."""

SHARED = (
    "board_protocol.sv",
    "uart_rx.sv",
    "uart_tx.sv",
    "frame_buffer.sv",
    "small_fifo.sv",
    "uart_host.sv",
    "board_core.sv",
)
SLOWEST_DIVIDER = 65_535
FASTEST_DIVIDER = 4
BAUD_TOLERANCE = 0.01
"""Of the mismatch of both sides' clocks; half a bit in ten would be 0.05 for both together."""

IDLE_SECONDS = 0.1
"""Silence after which the board gives up half a command."""

BUFFER_BYTES = 4096
"""Of the frame buffer, at least: enough frames on their way to hide the delays of USB."""

MOST_FRAMES = 16
"""That the board keeps tags for."""

BLOCK_RAM_BYTES = 2048
BUFFER_SHARE = 0.25
"""Of the part's block RAM that the frame buffer may take."""


@dataclass(frozen=True)
class BoardPins:
    """How the ports of a board's top are named.

    Attributes:
        clock: the board's clock.
        receive: what the host sends.
        transmit: what the host receives.
        button: resets everything while it is high.
    """

    clock: str
    receive: str
    transmit: str
    button: str


@dataclass(frozen=True)
class BoardTop:
    """What is known about a board with a serial line.

    Attributes:
        file: its top, in `hdl`.
        constraints: its constraint file.
        clock_hz: of the board's oscillator, which clocks everything.
        pins: port names of the top.
    """

    file: str
    constraints: str
    clock_hz: int
    pins: BoardPins


TOPS = {
    "ulx3s-85f": BoardTop(
        "ulx3s_top.sv",
        "ulx3s-85f.lpf",
        25_000_000,
        BoardPins("clk_25mhz", "ftdi_txd", "ftdi_rxd", "btn_fire1"),
    ),
    "tang-nano-20k": BoardTop(
        "tang_nano_20k_top.sv",
        "tang-nano-20k.cst",
        27_000_000,
        BoardPins("clk_27mhz", "uart_rx", "uart_tx", "button_s1"),
    ),
}


@dataclass(frozen=True)
class BoardSources:
    """What synthesis and place-and-route take besides the accelerator.

    Attributes:
        top: module name of the whole design.
        files: SystemVerilog in compile order, to be read after the accelerator's.
        constraints: pins and clock.
        clock_hz: of the only clock.
        baud: bits per second on the serial line.
        pins: port names of the top.
    """

    top: str
    files: tuple[Path, ...]
    constraints: Path
    clock_hz: int
    baud: int
    pins: BoardPins


def board_sources(
    board: Board,
    layout: Layout,
    folder: Path,
    *,
    baud: int = BAUD,
    idle_seconds: float = IDLE_SECONDS,
) -> BoardSources:
    """Write the parameters of a board's top for an accelerator, and list what belongs to it.

    Args:
        board: one of the open flow.
        layout: of the accelerator.
        folder: receives ``board_config.sv``; replaced where it exists.
        baud: bits per second on the serial line; the clock divided by a whole number must be
            within 1 % of it.
        idle_seconds: silence on the line after which the board gives up half a command.

    Raises:
        HardwareError: if the board has no top here, the accelerator's streams do not fit the host
            protocol, or the serial line cannot have that speed.
    """
    if board.name not in TOPS:
        names = ", ".join(b.name for b in BOARDS.values() if b.name in TOPS)
        raise HardwareError(
            f"{board.name} has no top with a serial line: choose from {names}, or let FINN build "
            "it with Vivado"
        )
    top = TOPS[board.name]
    config = folder / CONFIG_FILE
    write_text(config, _config(board, top, layout, baud, idle_seconds))
    return BoardSources(
        top="board_top",
        files=(config, *(HDL / name for name in (*SHARED, top.file))),
        constraints=HERE / top.constraints,
        clock_hz=top.clock_hz,
        baud=baud,
        pins=top.pins,
    )


def write_driver(folder: Path) -> Path:
    """Write the host driver as one file that needs Python, NumPy and pyserial only.

    Raises:
        HardwareError: if this installation's driver is not the expected one.
    """
    source = (HERE / "host.py").read_text(encoding="utf-8")
    imported = "from brevitas_divqat.errors import DataError, HardwareError, ToolError\n"
    if source.count(imported) != 1:
        raise HardwareError(f"{HERE / 'host.py'} was changed: install brevitas-divqat again")
    classes = "".join(
        f'\n\nclass {name}({base}):\n    """{text}"""\n'
        for name, base, text in (
            ("DataError", "ValueError", "Images are of the wrong shape or type."),
            ("HardwareError", "ValueError", "The board does not do what it should."),
            ("ToolError", "RuntimeError", "A package is missing."),
        )
    )
    path = folder / DRIVER_FILE
    write_text(path, source.replace(imported, classes.lstrip("\n") + "\n"))
    return path


def _divider(board: Board, clock_hz: int, baud: int) -> int:
    divider = round(clock_hz / baud) if baud > 0 else 0
    if not FASTEST_DIVIDER <= divider <= SLOWEST_DIVIDER:
        raise HardwareError(
            f"{baud} baud: {board.name} has a clock of {clock_hz} Hz and takes from "
            f"{-(-clock_hz // SLOWEST_DIVIDER)} to {clock_hz // FASTEST_DIVIDER} baud"
        )
    error = abs(clock_hz / (divider * baud) - 1)
    if error > BAUD_TOLERANCE:
        raise HardwareError(
            f"{baud} baud: {board.name} divides {clock_hz} Hz by {divider}, {error:.1%} off: "
            f"choose {clock_hz // divider} or {clock_hz // (divider + 1)}, or {BAUD}"
        )
    return divider


def _buffer(board: Board, frame_bytes: int) -> int:
    """Give the address bits of the frame buffer: at least two frames, as a power of two."""
    bits = (max(BUFFER_BYTES, 2 * frame_bytes) - 1).bit_length()
    most = int(board.resources.BRAM18 * BLOCK_RAM_BYTES * BUFFER_SHARE)
    if 1 << bits > most:
        raise HardwareError(
            f"images of {frame_bytes} bytes need a buffer of {1 << bits} bytes, and {board.name} "
            f"has {most} to spare: choose a larger board or smaller images"
        )
    return bits


def _check(board: Board, layout: Layout) -> None:
    image, scores = layout.input, layout.output
    if layout.top != "accelerator":
        raise HardwareError(f"the top is {layout.top!r}, expected 'accelerator': build it again")
    if image.signed or image.bits != 8:
        sign = "signed" if image.signed else "unsigned"
        raise HardwareError(
            f"the accelerator takes {sign} pixels of {image.bits} bits: {board.name} sends "
            "unsigned ones of 8 bits"
        )
    height, width, channels = image.shape
    if image.word_bits * image.words_per_frame != 8 * height * width * channels:
        raise HardwareError(
            f"the accelerator takes {image.words_per_frame} words of {image.word_bits} bits for "
            f"images of {height} x {width} x {channels}: expected one byte per pixel and channel"
        )
    if scores.elements_per_word != 1 or scores.words_per_frame != scores.outputs:
        raise HardwareError(
            f"the accelerator gives {scores.words_per_frame} words of {scores.elements_per_word} "
            f"scores for {scores.outputs} outputs: expected one score per word"
        )
    if scores.word_bits % 8 or scores.word_bits > 64:
        raise HardwareError(
            f"the accelerator gives scores of {scores.word_bits} bits: expected whole bytes, "
            "at most 8"
        )


def _config(board: Board, top: BoardTop, layout: Layout, baud: int, idle_seconds: float) -> str:
    _check(board, layout)
    height, width, channels = layout.input.shape
    frame_bytes = height * width * channels
    buffer_bits = _buffer(board, frame_bytes)
    divider = _divider(board, top.clock_hz, baud)
    identity = IDENTITY.pack(
        PROTOCOL_VERSION,
        min(MOST_FRAMES, (1 << buffer_bits) // frame_bytes),
        height,
        width,
        channels,
        layout.output.outputs,
        layout.output.word_bits // 8,
        layout.output.signed,
        layout.cycles_per_frame,
        top.clock_hz,
        bytes.fromhex(layout.model_sha256)[:8],
        round(idle_seconds * 1e6),
    )
    digits = identity[::-1].hex().upper()
    return f"""// SPDX-License-Identifier: BSD-3-Clause
// Generated for {board.name}: {height} x {width} x {channels} pixels, \
{layout.output.outputs} scores, {top.clock_hz} Hz / {divider} = \
{top.clock_hz / divider:.0f} baud.

package board_config;
  localparam int DIVIDER = {divider};
  localparam int INPUT_BYTES = {layout.input.word_bits // 8};
  localparam int FRAME_BYTES = {frame_bytes};
  localparam int SCORE_BYTES = {layout.output.word_bits // 8};
  localparam int SCORES = {layout.output.outputs};
  localparam int BUFFER_ADDRESS_BITS = {buffer_bits};
  localparam int IDLE_CYCLES = {round(idle_seconds * top.clock_hz)};
  localparam logic [{8 * len(identity) - 1}:0] IDENTITY = {8 * len(identity)}'h{digits};
endpackage
"""
