# SPDX-License-Identifier: BSD-3-Clause
"""Images through a built simulation: integers, cycles, and what stood in the way."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError, DataError, HardwareError, ToolError
from brevitas_divqat.progress import Progress, Show, silent

from ..rtl.layout import Layout

__all__ = ["SimulationRun", "Simulator", "check_numbers"]

IDLE_CYCLES = 10_000
"""Cycles without any word moving that are no deadlock even in the smallest accelerator."""

NAMED_CHANNELS = 4
"""Channels that a message about a deadlock names."""


@dataclass(frozen=True)
class SimulationRun:
    """What came out of a simulation.

    Attributes:
        outputs: (N, K) integer scores.
        frame_cycles: (N,) cycle at which each frame's last score left, counted from the end of the
            reset in the process that simulated the frame.
        ranges: (first, one past the last) image of each process.
        latency: cycles from the first word in to the first score out.
        cycles: simulated by all processes together.
        max_counts: most words that each FIFO held since the last reset, by its name in the top.
        interrupted: frames that a reset threw out of the accelerator and that were sent again.
        seconds: of wall clock.
    """

    outputs: NDArray[np.int64]
    frame_cycles: NDArray[np.int64]
    ranges: tuple[tuple[int, int], ...]
    latency: int
    cycles: int
    max_counts: dict[str, int]
    interrupted: int
    seconds: float

    def intervals(self) -> NDArray[np.int64]:
        """Return the cycles between one frame's last score and the next one's.

        Only the later half of each process's frames counts: before, the pipeline still fills.
        """
        parts = [np.diff(self.frame_cycles[a:b])[(b - a - 1) // 2 :] for a, b in self.ranges]
        return np.concatenate(parts)


class Simulator:
    """An accelerator's simulation, as `build_simulator` built it.

    Args:
        program: the built test bench; the memories' contents lie beside it.
        layout: the accelerator's streams and channels.
        trace: whether it can write a waveform.
    """

    def __init__(self, program: Path, layout: Layout, *, trace: bool = False) -> None:
        self.program, self.layout, self.trace = program, layout, trace
        if layout.input.bits != 8 or layout.input.signed:
            raise HardwareError(
                f"the accelerator takes {'int' if layout.input.signed else 'uint'}"
                f"{layout.input.bits} pixels: only 8-bit unsigned ones can be simulated"
            )

    def run(
        self,
        images: NDArray[np.uint8],
        *,
        seed: int = 0,
        input_stall: float = 0.0,
        output_stall: float = 0.0,
        burst: float = 1.0,
        reset_at: int | None = None,
        frame_interval: int | None = None,
        random_start: bool = False,
        idle_limit: int | None = None,
        trace: Path | None = None,
        processes: int = 1,
        progress: Progress = silent,
    ) -> SimulationRun:
        """Simulate images, back to back.

        Args:
            images: (N, H, W, C) uint8.
            seed: of the stalls and of random contents of registers.
            input_stall: share of the cycles, 0 … 1, in which no new word is offered.
            output_stall: share of the cycles, 0 … 1, in which no score is taken.
            burst: mean length of the stalls, in multiples of that of independent ones; 1 or more.
            reset_at: cycle of a reset; the frames that it interrupts are sent again.
            frame_interval: cycles over which the words of each frame are spread evenly; by default
                words come as fast as they are taken.
            random_start: registers that no reset touches begin with random bits, not with zeros.
            idle_limit: cycles without any word moving that are a deadlock; by default two frames.
            trace: a file for the waveform (FST).
            processes: that share the images, each a range; a trace needs 1.
            progress: shows the frames done.

        Raises:
            DataError: if the images have another type or shape.
            ConfigError: if a number is out of its range.
            HardwareError: if the accelerator stands still (naming the channel), breaks a rule of
                AXI streams, or loses or invents scores.
            ToolError: if the simulation is killed or its files are not whole.
        """
        self._check_images(images)
        if idle_limit is None:
            idle_limit = IDLE_CYCLES + 2 * self.layout.cycles_per_frame
        check_numbers(
            input_stall=input_stall,
            output_stall=output_stall,
            burst=burst,
            reset_at=reset_at,
            frame_interval=frame_interval,
            idle_limit=idle_limit,
            processes=processes,
            seed=seed,
        )
        if trace is not None:
            self.check_trace(trace, processes=processes)
        options: dict[str, Any] = {
            "input-stall": input_stall,
            "output-stall": output_stall,
            "burst": burst,
            "idle-limit": idle_limit,
            "random-start": int(random_start),
        }
        if reset_at is not None:
            options["reset-at"] = reset_at
        if frame_interval is not None:
            options["frame-interval"] = frame_interval
        if trace is not None:
            options["trace"] = Path(trace).resolve()
        ranges = _ranges(len(images), processes)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="divqat-simulation-") as folder:
            parts = [
                _Part(self, Path(folder), first, images[first:last], options, seed + number)
                for number, (first, last) in enumerate(ranges)
            ]
            _run_all(parts, len(images), progress)
            results = [part.result() for part in parts]
        return SimulationRun(
            outputs=np.concatenate([outputs for outputs, _ in results]),
            frame_cycles=np.concatenate(
                [np.array(found["frame_cycles"], np.int64) for _, found in results]
            ),
            ranges=ranges,
            latency=results[0][1]["first_out"] - results[0][1]["first_in"],
            cycles=sum(found["cycles"] for _, found in results),
            max_counts={
                channel.fifo: max(found["max_count"][index] for _, found in results)
                for index, channel in enumerate(self.layout.channels)
            },
            interrupted=sum(self._interrupted(found) for _, found in results),
            seconds=time.perf_counter() - start,
        )

    def _interrupted(self, found: dict[str, Any]) -> int:
        if found["reset_frame"] < 0:
            return 0
        entered = -(-found["reset_sent"] // self.layout.input.words_per_frame)
        return int(entered - found["reset_frame"])

    def _check_images(self, images: NDArray[np.uint8]) -> None:
        shape = self.layout.input.shape
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise DataError(f"images are {got}: expected a numpy array of 8-bit pixels (uint8)")
        if images.ndim != 4 or images.shape[1:] != shape:
            raise DataError(
                f"images have shape {images.shape}: the accelerator takes "
                f"(N, {', '.join(map(str, shape))}), channels last"
            )
        if not len(images):
            raise DataError("there are no images to simulate: give 1 or more")

    def check_trace(self, trace: Path, *, processes: int = 1) -> None:
        """Make sure that a waveform can be written.

        Raises:
            ConfigError: if the simulation writes none, its folder is missing, or there are more
                processes than one.
        """
        if not self.trace:
            raise ConfigError("this simulation was built without a waveform: build it with trace")
        if processes != 1:
            raise ConfigError(f"processes is {processes}: a waveform needs 1")
        if not Path(trace).parent.is_dir():
            raise ConfigError(f"the waveform's folder {Path(trace).parent} does not exist: make it")

    def words(self, images: NDArray[np.uint8]) -> bytes:
        """Return the input port's words for (N, H, W, C) images, little-endian."""
        stream = self.layout.input
        elements = images.reshape(len(images), stream.words_per_frame, stream.elements_per_word)
        words = np.zeros((*elements.shape[:2], stream.word_bits // 8), np.uint8)
        words[..., : stream.elements_per_word] = elements
        return words.tobytes()

    def scores(self, words: bytes) -> NDArray[np.int64]:
        """Return the (N, K) integers in the output port's little-endian words."""
        stream = self.layout.output
        size = stream.word_bits // 8
        raw = np.frombuffer(words, np.uint8).reshape(-1, stream.words_per_frame, size)
        sign = (raw[..., -1:] >> 7) * np.uint8(255) if stream.signed else raw[..., -1:] * 0
        filled = np.concatenate([raw, np.repeat(sign, 8 - size, axis=-1)], axis=-1)
        return np.ascontiguousarray(filled).view("<i8")[..., 0].astype(np.int64)


class _Part:
    """One process and the range of images that it simulates."""

    def __init__(
        self,
        simulator: Simulator,
        folder: Path,
        first: int,
        images: NDArray[np.uint8],
        options: dict[str, Any],
        seed: int,
    ) -> None:
        self.simulator, self.first, self.frames = simulator, first, len(images)
        self.done = 0
        self._files = {
            name: folder / f"{first}.{name}" for name in ("input", "output", "statistics")
        }
        self._errors = folder / f"{first}.errors"
        self._files["input"].write_bytes(simulator.words(images))
        stream = simulator.layout
        said = self._files | options | {"seed": seed, "frames": len(images)}
        said["input-words"] = stream.input.words_per_frame
        said["output-words"] = stream.output.words_per_frame
        self._command = [
            str(simulator.program),
            *(word for name, value in said.items() for word in (f"--{name}", str(value))),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> IO[bytes]:
        """Start the process and return its standard output."""
        with self._errors.open("wb") as errors:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self.simulator.program.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                )
            except OSError as error:
                raise ToolError(
                    f"{self.simulator.program} cannot be run ({error.strerror}): build it again"
                ) from error
        assert self._process.stdout is not None
        return self._process.stdout

    def stop(self) -> None:
        """Wait for the process, and end it if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def result(self) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Return the scores and the statistics, once they are known to be whole and right."""
        assert self._process is not None
        found = self._statistics(self._process.wait())
        if found["stands"]:
            raise HardwareError(self._standstill(found))
        if found["violations"]:
            listed = "; ".join(f"cycle {cycle}: {rule}" for cycle, rule in found["listed"][:3])
            raise HardwareError(
                f"the accelerator breaks the rules of AXI streams at its output "
                f"{found['violations']} times ({listed}): the generated top or its last layer is "
                "wrong"
            )
        stream = self.simulator.layout.output
        words = self._files["output"].read_bytes()
        if len(words) != self.frames * stream.words_per_frame * (stream.word_bits // 8):
            raise ToolError(
                f"{self._what} is truncated: it left {len(words)} bytes of scores; run it again"
            )
        if "--reset-at" in self._command and found["reset_frame"] < 0:
            raise ConfigError(
                f"reset_at lies behind the end of the run, cycle {found['cycles']}: choose an "
                "earlier cycle or more images"
            )
        return self.simulator.scores(words), found

    @property
    def _what(self) -> str:
        return f"the simulation of images {self.first} to {self.first + self.frames - 1}"

    def _statistics(self, status: int) -> dict[str, Any]:
        if status < 0:
            raise ToolError(
                f"{self._what} was killed by {signal.Signals(-status).name}: nothing of it is "
                "used; run it again, with fewer processes if memory was short"
            )
        if status:
            text = " ".join(self._errors.read_text(errors="replace").split())[-400:]
            raise ToolError(f"{self._what} failed with exit status {status}: {text}")
        try:
            found: dict[str, Any] = json.loads(self._files["statistics"].read_text())
        except (OSError, ValueError) as error:
            raise ToolError(f"{self._what} left no whole statistics: run it again") from error
        return found

    def _standstill(self, found: dict[str, Any]) -> str:
        """Say where an accelerator stands: what waits for what."""
        stream = self.simulator.layout
        frame, score = divmod(found["taken"], stream.output.words_per_frame)
        text = (
            f"the accelerator stands still at cycle {found['cycles']}, after {score} of "
            f"{stream.output.words_per_frame} scores of image {self.first + frame}"
        )
        full, empty = [], []
        for index, channel in enumerate(stream.channels):
            words = found["count"][index]
            held = f"{channel.name} ({channel.fifo}, depth {channel.depth}, holds {words})"
            if found["in_valid"][index] and not found["in_ready"][index]:
                full.append(held)
            elif found["out_ready"][index] and not found["out_valid"][index]:
                empty.append(held)
        if full:
            # Nearest to the output first: what waits before it waits because of it.
            text += f"; blocked at the full channel {', '.join(full[::-1][:NAMED_CHANNELS])}"
        if empty:
            text += f"; waiting for words in {', '.join(empty[:NAMED_CHANNELS])}"
        remedy = "deepen the full FIFO" if full else "a layer lost words: build the folder again"
        return f"{text}; {remedy}"


def _run_all(parts: list[_Part], total: int, progress: Progress) -> None:
    """Run the processes side by side to their end; on an error or an interrupt, end them all."""
    try:
        with progress("Simulate", total) as show, selectors.DefaultSelector() as waiting:
            for part in parts:
                waiting.register(part.start(), selectors.EVENT_READ, part)
            while waiting.get_map():
                for key, _ in waiting.select():
                    text = os.read(key.fd, 4096)
                    if text:
                        _report(key.data, text, total, show)
                    else:
                        waiting.unregister(key.fileobj)
                        key.data.result()  # raises at once where it failed
    finally:
        for part in parts:
            part.stop()


def _report(part: _Part, text: bytes, total: int, show: Show) -> None:
    """Show how many frames a process has done; a line that is cut is made up by the next."""
    lines = text.split(b"\n")
    if len(lines) > 1 and lines[-2].isdigit():
        done = int(lines[-2])
        if part.done < done <= part.frames:
            show(done - part.done, f"{total} images")
            part.done = done


def _ranges(count: int, processes: int) -> tuple[tuple[int, int], ...]:
    """Return (first, one past the last) of nearly equal ranges, none of them empty."""
    edges = [count * number // processes for number in range(processes + 1)]
    return tuple((a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b)


def check_numbers(
    *,
    input_stall: float,
    output_stall: float,
    burst: float,
    processes: int,
    seed: int,
    reset_at: int | None = None,
    frame_interval: int | None = None,
    idle_limit: int | None = None,
) -> None:
    """Check what `Simulator.run` takes.

    Raises:
        ConfigError: if a number is out of its range.
    """
    for name, share in (("input_stall", input_stall), ("output_stall", output_stall)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name} is {share}: it must be at least 0 and below 1")
    if not 1 <= burst < float("inf"):
        raise ConfigError(f"burst is {burst}: it must be 1 or more")
    for name, least, number in (
        ("reset_at", 0, reset_at),
        ("frame_interval", 1, frame_interval),
        ("idle_limit", 1, idle_limit),
        ("processes", 1, processes),
        ("seed", 0, seed),
    ):
        if number is not None and number < least:
            raise ConfigError(f"{name} is {number}: it must be {least} or more")
