# SPDX-License-Identifier: BSD-3-Clause
"""The host driver against a board of pure Python at a pseudo-terminal."""

from __future__ import annotations

import os
import struct
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from brevitas_divqat.fpga.boards import host
from brevitas_divqat.fpga.boards.host import BoardLink, Identity, crc16

from brevitas_divqat.errors import DataError, HardwareError, ToolError

serial = pytest.importorskip("serial", reason="pyserial is not installed")

SHAPE = (2, 3, 4)  # C, H, W
PIXELS = 24
MODEL = "00112233445566778899aabbccddeeff" * 2
IDLE_MICROSECONDS = 1000
TIMEOUT = 0.2

Fault = Callable[["FakeBoard", int, bytes], None]
"""(board, tag, the answer that it would give): gives another one."""


class FakeBoard:
    """The board's side: answers each command, except where a fault is planned.

    Attributes:
        faults: the number of an inference, counted from 0, to what happens instead of its answer.
        served: inferences that arrived.
        resets: resets that arrived.
        version: of the protocol.
        frames: images that it buffers.
        deaf: answers nothing.
    """

    def __init__(self) -> None:
        self.faults: dict[int, Fault] = {}
        self.served = 0
        self.resets = 0
        self.version = host.PROTOCOL_VERSION
        self.frames = 2
        self.deaf = False
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def answer(self, command: int, tag: int, status: int = 0, payload: bytes = b"") -> bytes:
        body = bytes((command, tag, status)) + payload
        return b"DQ" + body + struct.pack(">H", crc16(body))

    def write(self, data: bytes) -> None:
        os.write(self._master, data)

    def close(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)  # the reading thread ends
            self._slave = -1
        self._thread.join()

    def unplug(self) -> None:
        """Take the board away from under an open link."""
        self.faults[self.served] = lambda board, tag, answer: board._hang_up()

    def _identity(self) -> bytes:
        c, h, w = SHAPE
        model = bytes.fromhex(MODEL)[:8]
        return struct.pack(
            "<BBHHHHBBII8sI", *(self.version, self.frames, h, w, c, 2, 3, 1, 99, 1000, model),
            IDLE_MICROSECONDS,
        )  # fmt: skip

    def _serve(self) -> None:
        data = bytearray()
        while self._master >= 0:
            try:
                data += os.read(self._master, 4096)
            except OSError:  # the other side is closed
                self._hang_up()
                break
            while self._master >= 0 and (used := self._command(bytes(data))) > 0:
                del data[:used]

    def _hang_up(self) -> None:
        os.close(self._master)
        self._master = -1

    def _command(self, data: bytes) -> int:
        """Carry out the first command; give its bytes, 0 where it is not complete."""
        if len(data) < 4:
            return 0
        assert data[:2] == b"DQ", data
        end = 4 + (PIXELS if data[2] == host.INFER else 0)
        if len(data) < end + 2:
            return 0
        assert crc16(data[2 : end + 2]) == 0
        command, tag = data[2], data[3]
        if self.deaf:
            return end + 2
        if command == host.IDENTIFY:
            self.write(self.answer(command, tag, 0, self._identity()))
        elif command == host.RESET:
            self.resets += 1
            self.write(self.answer(command, tag))
        else:
            scores = expected(np.frombuffer(data[4:end], np.uint8).reshape(1, 3, 4, 2))[0]
            payload = b"".join(int(s).to_bytes(3, "little", signed=True) for s in scores)
            answer = self.answer(command, tag, 0, payload)
            fault = self.faults.get(self.served)
            self.served += 1
            if fault is None:
                self.write(answer)
            else:
                fault(self, tag, answer)
        return end + 2


def expected(pixels_hwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Compute what the fake board answers: (N, H, W, C) to (N, 2)."""
    flat = pixels_hwc.reshape(len(pixels_hwc), -1).astype(np.int64)
    return np.stack([flat.sum(1), -(flat * np.arange(PIXELS)).sum(1)], 1)


@pytest.fixture
def fake() -> Iterator[FakeBoard]:
    board = FakeBoard()
    yield board
    board.close()


@pytest.fixture
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (9, *SHAPE), np.uint8)


def link(fake: FakeBoard, retries: int = 3, model: str | None = None) -> BoardLink:
    return BoardLink(fake.port, timeout=TIMEOUT, retries=retries, model_sha256=model)


def answers(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    return expected(images.transpose(0, 2, 3, 1))


def damage(board: FakeBoard, tag: int, answer: bytes) -> None:
    board.write(answer[:7] + bytes((answer[7] ^ 1,)) + answer[8:])


def cut(board: FakeBoard, tag: int, answer: bytes) -> None:
    board.write(answer[:8])


def nothing(board: FakeBoard, tag: int, answer: bytes) -> None:
    pass


def noise(board: FakeBoard, tag: int, answer: bytes) -> None:
    board.write(b"\xffDQ\x02\x63\x07DDQ" + answer + b"DQD")


def stray(board: FakeBoard, tag: int, answer: bytes) -> None:
    board.write(board.answer(host.INFER, (tag + 100) % 256, 0, b"\x55" * 6) + answer)


def refuse(status: int) -> Fault:
    return lambda board, tag, answer: board.write(board.answer(host.INFER, tag, status))


def test_the_crc_is_the_published_one() -> None:
    assert crc16(b"123456789") == 0x29B1  # the check value of CRC-16/IBM-3740
    assert crc16(b"123456789\x29\xb1") == 0


def test_a_board_says_what_it_is(fake: FakeBoard) -> None:
    with link(fake, model=MODEL) as board:
        assert board.identify() == Identity(
            frames=2,
            shape=SHAPE,
            outputs=2,
            score_bytes=3,
            signed=True,
            cycles_per_frame=99,
            clock_hz=1000,
            model=MODEL[:16],
            idle_seconds=0.001,
        )


def test_scores_are_those_of_each_image(fake: FakeBoard, images: npt.NDArray[np.uint8]) -> None:
    with link(fake) as board:
        scores = board.infer(images)
        assert scores.dtype == np.int64
        assert np.array_equal(scores, answers(images))
        assert board.infer(images[:0]).shape == (0, 2)
        assert (board.statistics.sent, board.statistics.answered) == (9, 9)


def test_tags_wrap_around(fake: FakeBoard) -> None:
    images = np.random.default_rng(1).integers(0, 256, (600, *SHAPE), np.uint8)
    with link(fake) as board:
        assert np.array_equal(board.infer(images), answers(images))


def test_as_many_images_are_on_their_way_as_the_board_buffers(
    fake: FakeBoard, images: npt.NDArray[np.uint8]
) -> None:
    """The first two answers are kept back until the second image is there."""
    kept: list[bytes] = []

    def keep(board: FakeBoard, tag: int, answer: bytes) -> None:
        kept.append(answer)

    def release(board: FakeBoard, tag: int, answer: bytes) -> None:
        board.write(b"".join(kept) + answer)

    fake.faults = {0: keep, 1: release}
    with link(fake) as board:
        assert np.array_equal(board.infer(images), answers(images))
        assert (board.statistics.sent, board.statistics.silences) == (9, 0)


@pytest.mark.parametrize(
    ("fault", "refused", "damaged", "silences"),
    [
        (refuse(host.BAD_CRC), 1, 0, 0),
        (refuse(host.OVERRUN), 1, 0, 0),
        (refuse(host.BROKEN), 1, 0, 0),
        (damage, 0, 1, 1),
        (cut, 0, 1, 1),
        (nothing, 0, 0, 1),
        (noise, 0, None, 0),
        (stray, 0, 0, 0),
    ],
)
def test_what_goes_wrong_once_is_repeated(
    fake: FakeBoard,
    images: npt.NDArray[np.uint8],
    fault: Fault,
    refused: int,
    damaged: int | None,
    silences: int,
) -> None:
    fake.faults[4] = fault
    with link(fake) as board:
        assert np.array_equal(board.infer(images), answers(images))
        statistics = board.statistics
        assert statistics.answered == 9
        assert (statistics.refused, statistics.silences) == (refused, silences)
        assert statistics.resets == fake.resets == silences
        assert damaged is None or statistics.damaged == damaged
        assert statistics.sent == fake.served


def test_the_last_image_can_fail_too(fake: FakeBoard, images: npt.NDArray[np.uint8]) -> None:
    fake.faults = {8: nothing, 9: refuse(host.BAD_CRC)}
    with link(fake) as board:
        assert np.array_equal(board.infer(images), answers(images))
        assert board.statistics.sent == 11


def test_repetitions_are_bounded(fake: FakeBoard, images: npt.NDArray[np.uint8]) -> None:
    fake.faults = dict.fromkeys(range(3, 99), refuse(host.BAD_CRC))
    with (
        link(fake, retries=2) as board,
        pytest.raises(HardwareError, match=r"failed 3 times on image \d, last with a damaged comm"),
    ):
        board.infer(images)


def test_a_deaf_board_is_given_up(fake: FakeBoard) -> None:
    fake.deaf = True
    with (
        BoardLink(fake.port, timeout=0.02, retries=1) as board,
        pytest.raises(
            HardwareError, match="no answer from .* in 2 attempts, 0 damaged ones: check"
        ),
    ):
        board.identify()


def test_a_board_that_is_unplugged_is_reported(
    fake: FakeBoard, images: npt.NDArray[np.uint8]
) -> None:
    with link(fake) as board:
        board.identify()
        fake.unplug()
        with pytest.raises(HardwareError, match=r"the board at .* is gone \(.*\): connect it"):
            board.infer(images)


class GonePort:
    """A port whose device was taken away: one of its calls fails as pyserial's do on Linux."""

    def __init__(self, failing: str, error: Exception) -> None:
        self._failing, self._error = failing, error

    def _call(self, name: str) -> None:
        if name == self._failing:
            raise self._error

    @property
    def in_waiting(self) -> int:
        self._call("in_waiting")
        return 0

    def read(self, size: int) -> bytes:
        self._call("read")
        return b""

    def write(self, data: bytes) -> int:
        self._call("write")
        return len(data)

    def reset_input_buffer(self) -> None:
        self._call("reset_input_buffer")


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ("in_waiting", OSError(5, "Input/output error")),
        ("read", serial.SerialException("no data")),
        ("write", OSError(5, "Input/output error")),
        ("reset_input_buffer", termios.error(5, "Input/output error")),
    ],
)
def test_every_call_of_the_port_may_find_the_board_gone(
    fake: FakeBoard, monkeypatch: pytest.MonkeyPatch, failing: str, error: Exception
) -> None:
    with link(fake) as board:
        with monkeypatch.context() as gone:
            gone.setattr(board, "_serial", GonePort(failing, error))
            with pytest.raises(HardwareError, match=r"the board at .* is gone \(.*\): connect it"):
                board.identify()
        board.identify()


def test_a_port_that_is_gone_before_it_is_open_is_reported(
    fake: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = GonePort("reset_input_buffer", termios.error(5, "Input/output error"))
    monkeypatch.setattr(serial, "serial_for_url", lambda *_, **__: gone)
    with pytest.raises(HardwareError, match="cannot open the port .*Input/output error"):
        link(fake)


def test_another_model_is_refused(fake: FakeBoard) -> None:
    with (
        link(fake, model="ff" * 32) as board,
        pytest.raises(HardwareError, match="holds the model 0011223344556677, expected ffffffff"),
    ):
        board.identify()


def test_another_protocol_is_refused(fake: FakeBoard) -> None:
    fake.version = 9
    with link(fake) as board, pytest.raises(HardwareError, match="speaks version 9 of the prot"):
        board.identify()


def test_wrong_images_are_refused(fake: FakeBoard, images: npt.NDArray[np.uint8]) -> None:
    with link(fake) as board:
        for wrong in (images.astype(np.int64), images[:, :1], images[0]):
            with pytest.raises(DataError, match=r"the board takes uint8 \(N, 2, 3, 4\)"):
                board.infer(wrong)
        assert fake.served == 0


def test_scores_of_any_width_are_read() -> None:
    def read(values: list[int], size: int, signed: bool) -> list[int]:
        identity = Identity(1, SHAPE, len(values), size, signed, 1, 1, "", 0.0)
        payload = b"".join(v.to_bytes(size, "little", signed=signed) for v in values)
        return host._integers(payload, identity).tolist()

    for size in range(1, 9):
        most = 1 << (8 * size - 1)
        signed = [0, 1, -1, most - 1, -most]
        assert read(signed, size, True) == signed
        assert read([0, most - 1], size, False) == [0, most - 1]
    assert read([255, 128], 1, False) == [255, 128]


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="cannot open the port .*nothing at 1000000 baud"):
        BoardLink(str(tmp_path / "nothing"))


@pytest.mark.parametrize("setting", [{"timeout": 0.0}, {"retries": -1}, {"time_scale": 0.5}])
def test_settings_out_of_range(setting: dict[str, float]) -> None:
    with pytest.raises(HardwareError, match="expected more than 0, at least 0, at least 1"):
        BoardLink("unused", **setting)  # type: ignore[arg-type]


def test_pyserial_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    with pytest.raises(ToolError, match="pip install pyserial"):
        BoardLink("unused")


def test_the_command_line_writes_scores(
    fake: FakeBoard,
    images: npt.NDArray[np.uint8],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(tmp_path / "images.npy", images)
    words = [fake.port, "--images", str(tmp_path / "images.npy"), "--scores"]
    host.main([*words, str(tmp_path / "scores.npy")])
    assert np.array_equal(np.load(tmp_path / "scores.npy"), answers(images))
    assert "9 images in" in capsys.readouterr().out
    with pytest.raises(FileExistsError):
        host.main([*words, str(tmp_path / "scores.npy")])
