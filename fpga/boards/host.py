# SPDX-License-Identifier: BSD-3-Clause
"""The host's side of the serial line: images to a board, scores back (docs/boards.md).

This file also works alone, beside a bitstream: it needs Python, NumPy and pyserial.
"""

from __future__ import annotations

import argparse
import binascii
import contextlib
import importlib
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from brevitas_divqat.errors import DataError, HardwareError, ToolError

try:
    from termios import error as TerminalError
except ImportError:  # Windows has none
    TerminalError = OSError  # type: ignore[assignment, misc]

__all__ = ["BoardLink", "Identity", "LinkStatistics", "crc16", "main"]

PROTOCOL_VERSION = 1
BAUD = 1_000_000

SYNC = b"DQ"
IDENTIFY, INFER, RESET = 1, 2, 3
COMMANDS = (IDENTIFY, INFER, RESET)
OK, BAD_CRC, UNKNOWN_COMMAND, OVERRUN, BROKEN = range(5)
STATUS = {
    BAD_CRC: "a damaged command (CRC)",
    UNKNOWN_COMMAND: "an unknown command",
    OVERRUN: "more images than its buffer holds",
    BROKEN: "half a command",
}

HEADER = struct.Struct("<2sBBB")
"""Synchronisation, command, tag, status."""

CRC = struct.Struct(">H")

IDENTITY = struct.Struct("<BBHHHHB?II8sI")
"""Protocol version, frames buffered, height, width, channels, outputs, bytes of a score, scores
signed, cycles per frame, clock in Hz, first bytes of the model's SHA-256, silence in microseconds
after which half a command is given up."""

IDLE_SECONDS = 0.1
"""The same silence, before the board has told its own."""

TAGS = 256


def crc16(data: bytes) -> int:
    """Compute CRC-16/IBM-3740: polynomial 0x1021, start value 0xFFFF.

    Example:
        >>> hex(crc16(b"123456789"))
        '0x29b1'
    """
    return binascii.crc_hqx(data, 0xFFFF)


@dataclass(frozen=True)
class Identity:
    """What a board says about itself.

    Attributes:
        frames: images that may be on their way at once.
        shape: (channels, height, width) of an image.
        outputs: scores of an image.
        score_bytes: of a score on the line.
        signed: whether scores are two's complement.
        cycles_per_frame: clock cycles from one image to the next, estimated when it was built.
        clock_hz: of the board.
        model: first 16 digits of the SHA-256 of the integer graph.
        idle_seconds: silence on the line after which the board gives up half a command.
    """

    frames: int
    shape: tuple[int, int, int]
    outputs: int
    score_bytes: int
    signed: bool
    cycles_per_frame: int
    clock_hz: int
    model: str
    idle_seconds: float

    @classmethod
    def unpack(cls, payload: bytes) -> Identity:
        """Read the answer to the command identify.

        Raises:
            HardwareError: if the board speaks another version of the protocol.
        """
        (version, frames, height, width, channels, outputs, score_bytes, signed, cycles, clock) = (
            IDENTITY.unpack(payload)[:10]
        )
        model, idle = IDENTITY.unpack(payload)[10:]
        if version != PROTOCOL_VERSION:
            raise HardwareError(
                f"the board speaks version {version} of the protocol, this driver "
                f"{PROTOCOL_VERSION}: use the driver that was built with the bitstream"
            )
        return cls(
            frames=frames,
            shape=(channels, height, width),
            outputs=outputs,
            score_bytes=score_bytes,
            signed=signed,
            cycles_per_frame=cycles,
            clock_hz=clock,
            model=model.hex(),
            idle_seconds=idle / 1e6,
        )


@dataclass
class LinkStatistics:
    """What happened on the line.

    Attributes:
        sent: images sent, repetitions included.
        answered: images whose scores arrived.
        refused: answers by which the board refused a command.
        damaged: answers that arrived damaged.
        silences: times that no answer came.
        resets: resets of the accelerator by command.
    """

    sent: int = 0
    answered: int = 0
    refused: int = 0
    damaged: int = 0
    silences: int = 0
    resets: int = 0


class Reply(NamedTuple):
    """An answer whose CRC is right."""

    command: int
    tag: int
    status: int
    payload: bytes


@dataclass
class Batch:
    """Images on their way.

    Attributes:
        attempts: per image.
        waiting: images to be sent.
        outstanding: tag to image, of what was sent and not answered.
        failed: images to be sent again once the line is quiet.
    """

    attempts: list[int]
    waiting: deque[int]
    outstanding: dict[int, int] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)


class BoardLink:
    """A serial line to a board.

    Args:
        port: ``/dev/ttyUSB0``, ``COM3``; any URL that pyserial takes.
        baud: bits per second, as the bitstream was built.
        timeout: seconds to wait for an answer.
        retries: times that an image or a command is sent again before it is given up.
        model_sha256: of the integer graph that the board must hold; None takes any.
        time_scale: how much slower than real time the board is, where it is simulated.

    Raises:
        ToolError: if pyserial is missing.
        HardwareError: if the port cannot be opened.
    """

    def __init__(
        self,
        port: str,
        baud: int = BAUD,
        *,
        timeout: float = 2.0,
        retries: int = 3,
        model_sha256: str | None = None,
        time_scale: float = 1.0,
    ) -> None:
        if timeout <= 0 or retries < 0 or time_scale < 1:
            raise HardwareError(
                f"timeout {timeout}, retries {retries}, time_scale {time_scale}: expected more "
                "than 0, at least 0, at least 1"
            )
        self.port = port
        self.statistics = LinkStatistics()
        self._timeout = timeout * time_scale
        self._retries = retries
        self._model = model_sha256
        self._time_scale = time_scale
        self._identity: Identity | None = None
        self._received = bytearray()
        self._tag = 0
        self._serial = _open(port, baud, self._timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the port."""
        self._serial.close()

    def identify(self) -> Identity:
        """Ask the board what it is; asked once, then remembered.

        Raises:
            HardwareError: if nothing answers, or the board holds another model.
        """
        if self._identity is None:
            identity = Identity.unpack(self._ask(IDENTIFY))
            if self._model is not None and not self._model.startswith(identity.model):
                raise HardwareError(
                    f"the board at {self.port} holds the model {identity.model}, expected "
                    f"{self._model[:16]}: load the bitstream that belongs to it"
                )
            self._identity = identity
        return self._identity

    def reset(self) -> None:
        """Reset the accelerator; images that are on their way are lost.

        Raises:
            HardwareError: if nothing answers.
        """
        self._pause()  # half a command would swallow this one
        self._ask(RESET)
        self.statistics.resets += 1

    def infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Compute the scores of images.

        As many images as the board buffers are on their way at once. One that is damaged on the
        line, or not answered, is sent again.

        Args:
            images: (N, C, H, W) pixels.

        Returns:
            (N, K) integer scores.

        Raises:
            DataError: if the images are not what the board takes.
            HardwareError: if the board is gone, or an image fails more often than ``retries``.
        """
        identity = self.identify()
        if images.dtype != np.uint8 or images.shape[1:] != identity.shape:
            raise DataError(
                f"images are {images.dtype} {images.shape}: the board takes uint8 "
                f"(N, {', '.join(str(n) for n in identity.shape)})"
            )
        frames = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        scores = np.zeros((len(images), identity.outputs), np.int64)
        batch = Batch([0] * len(images), deque(range(len(images))))
        while batch.waiting or batch.outstanding or batch.failed:
            if batch.failed and not batch.outstanding:
                self._pause()
                batch.waiting.extendleft(reversed(batch.failed))
                batch.failed.clear()
            if not batch.failed:
                self._fill(batch, frames, identity.frames)
            self._collect(batch, scores, identity)
        return scores

    def _fill(self, batch: Batch, frames: npt.NDArray[np.uint8], most: int) -> None:
        while batch.waiting and len(batch.outstanding) < most:
            image = batch.waiting.popleft()
            tag = self._send(INFER, frames[image].tobytes())
            batch.outstanding[tag] = image
            self.statistics.sent += 1

    def _collect(self, batch: Batch, scores: npt.NDArray[np.int64], identity: Identity) -> None:
        """Take one answer, or notice that none comes."""
        reply = self._receive(identity.outputs * identity.score_bytes)
        if reply is None:
            self.statistics.silences += 1
            for image in batch.outstanding.values():
                self._fail(batch, image, "no answer")
            batch.outstanding.clear()
            self.reset()
        elif reply.command == INFER and reply.tag in batch.outstanding:
            image = batch.outstanding.pop(reply.tag)
            if reply.status == OK:
                scores[image] = _integers(reply.payload, identity)
                self.statistics.answered += 1
            else:
                self.statistics.refused += 1
                self._fail(batch, image, STATUS[reply.status])

    def _fail(self, batch: Batch, image: int, reason: str) -> None:
        batch.attempts[image] += 1
        if batch.attempts[image] > self._retries:
            raise HardwareError(
                f"the board at {self.port} failed {batch.attempts[image]} times on image {image}, "
                f"last with {reason}: check cable and baud rate, or load the bitstream again"
            )
        batch.failed.append(image)

    def _ask(self, command: int) -> bytes:
        """Send a command without payload until its answer comes."""
        for attempt in range(self._retries + 1):
            if attempt:
                self._pause()
            self._received.clear()
            self._guard(self._serial.reset_input_buffer)
            tag = self._send(command, b"")
            while (reply := self._receive(None)) is not None:
                if (reply.command, reply.tag, reply.status) == (command, tag, OK):
                    return reply.payload
                if reply.status != OK:  # it may have swallowed this command
                    break
        raise HardwareError(
            f"no answer from {self.port} in {self._retries + 1} attempts, "
            f"{self.statistics.damaged} damaged ones: check that the board is on, its bitstream "
            "loaded, and port and baud rate are right"
        )

    def _pause(self) -> None:
        """Be silent until the board has given up whatever half a command it may hold."""
        idle = IDLE_SECONDS if self._identity is None else self._identity.idle_seconds
        time.sleep(2 * idle * self._time_scale)

    def _send(self, command: int, payload: bytes) -> int:
        self._tag = (self._tag + 1) % TAGS
        body = bytes((command, self._tag)) + payload
        self._guard(self._serial.write, SYNC + body + CRC.pack(crc16(body)))
        return self._tag

    def _receive(self, scores_size: int | None) -> Reply | None:
        """Wait for the next good answer; None where none comes within the timeout.

        Args:
            scores_size: bytes of an image's scores; None before they are known.
        """
        end = time.monotonic() + self._timeout
        while (reply := self._parse(scores_size)) is None:
            if time.monotonic() >= end:
                return self._salvage(scores_size)
            self._received += self._guard(self._read)
        return reply

    def _salvage(self, scores_size: int | None) -> Reply | None:
        """Find an answer behind one that was cut short and will not be completed."""
        reply = None
        while reply is None and self._received:
            self.statistics.damaged += 1
            del self._received[: len(SYNC)]
            reply = self._parse(scores_size)
        return reply

    def _parse(self, scores_size: int | None) -> Reply | None:
        """Take the first good answer out of what was received; None where it is not complete."""
        sizes = {IDENTIFY: IDENTITY.size, RESET: 0, INFER: scores_size}
        data = self._received
        while True:
            start = data.find(SYNC)
            if start < 0:  # the last byte may be half a synchronisation
                del data[: len(data) - data.endswith(SYNC[:1])]
                return None
            del data[:start]
            if len(data) < HEADER.size:
                return None
            _, command, tag, status = HEADER.unpack_from(data)
            size = sizes.get(command) if status == OK else 0
            if size is None or (status != OK and status not in STATUS):
                del data[: len(SYNC)]
                continue
            end = HEADER.size + size
            if len(data) < end + CRC.size:
                return None
            if crc16(bytes(data[len(SYNC) : end + CRC.size])) == 0:
                payload = bytes(data[HEADER.size : end])
                del data[: end + CRC.size]
                return Reply(command, tag, status, payload)
            self.statistics.damaged += 1
            del data[: len(SYNC)]

    def _read(self) -> bytes:
        """Read what waits, or the next byte; empty where none comes within the port's timeout."""
        return bytes(self._serial.read(max(1, self._serial.in_waiting)))

    def _guard(self, call: Any, *args: Any) -> Any:
        """Call a method of the port, and say plainly that it failed."""
        try:
            return call(*args)
        except (OSError, TerminalError) as error:  # pyserial's own errors are OSErrors
            raise HardwareError(
                f"the board at {self.port} is gone ({error}): connect it again"
            ) from error


def _open(port: str, baud: int, timeout: float) -> Any:
    try:
        serial = importlib.import_module("serial")
    except ImportError as error:
        raise ToolError("pyserial is needed and was not found: pip install pyserial") from error
    try:
        line = serial.serial_for_url(port, baud, timeout=min(timeout, 0.1), write_timeout=timeout)
        line.reset_input_buffer()
    except (OSError, TerminalError, ValueError) as error:
        raise HardwareError(
            f"cannot open the port {port} at {baud} baud ({error}): check its name and your rights"
        ) from error
    # The FTDI driver of Linux waits 16 ms for more bytes otherwise; elsewhere, and without a USB
    # converter, there is no such mode, and the same answers.
    with contextlib.suppress(AttributeError, NotImplementedError, ValueError):
        line.set_low_latency_mode(True)
    return line


def _integers(payload: bytes, identity: Identity) -> npt.NDArray[np.int64]:
    """Read little-endian integers of any number of bytes up to 8."""
    words = np.zeros((identity.outputs, 8), np.uint8)
    given = np.frombuffer(payload, np.uint8).reshape(identity.outputs, identity.score_bytes)
    words[:, : identity.score_bytes] = given
    if identity.signed:
        words[:, identity.score_bytes :] = np.where(given[:, -1:] >= 0x80, 0xFF, 0)
    return words.view("<i8")[:, 0].astype(np.int64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Show what a board is, and let it compute the scores of a file of images."""
    parser = argparse.ArgumentParser(description="Images to a board, scores back.")
    parser.add_argument("port", help="/dev/ttyUSB0, COM3")
    parser.add_argument("--baud", type=int, default=BAUD, help="bits per second")
    parser.add_argument("--images", help="a .npy file, uint8 (N, C, H, W)")
    parser.add_argument("--scores", help="the .npy file to write, int64 (N, K)")
    options = parser.parse_args(arguments)
    if (options.images is None) != (options.scores is None):
        parser.error("--images and --scores belong together")
    with BoardLink(options.port, options.baud) as link:
        print(link.identify())
        if options.images is not None:
            images = np.load(options.images, allow_pickle=False)
            start = time.perf_counter()
            scores = link.infer(images)
            seconds = time.perf_counter() - start
            with open(options.scores, "xb") as file:
                np.save(file, scores)
            print(f"{len(images)} images in {seconds:.2f} s")
            print(link.statistics)


if __name__ == "__main__":
    main()
