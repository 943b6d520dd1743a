# SPDX-License-Identifier: BSD-3-Clause
"""Proof that the RTL of a build folder computes the integers of its graph, and at what pace."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError, DataError, HardwareError
from brevitas_divqat.executors import IntegerExecutor, ReferenceExecutor, check_images
from brevitas_divqat.files import write_json
from brevitas_divqat.progress import Progress, silent

from ..rtl.layout import LAYOUT_FILE, Layout
from .simulator import SimulationRun, check_numbers
from .verilator import build_simulator, verilator_version

__all__ = [
    "ChannelUse",
    "Check",
    "Mismatch",
    "SimulationReport",
    "simulate_folder",
]

SCHEMA = 1
LISTED_MISMATCHES = 10
REFERENCE_IMAGES = 20
RESET_IMAGES = 20
TRACED_IMAGES = 2
LEAST_STALL = 0.2
SPARE = 1.5

FIFO = re.compile(r"\.DEPTH\((\d+)\)\) (fifo_\w+) \(")
"""A FIFO of the top, as `write_rtl` writes it."""


@dataclass(frozen=True)
class Mismatch:
    """A score that differs.

    Attributes:
        image: its number.
        score: its number among the image's scores.
        got: what the RTL computed.
        expected: what the integer graph computes.
    """

    image: int
    score: int
    got: int
    expected: int


@dataclass(frozen=True)
class Check:
    """One simulation and its comparison.

    Attributes:
        name: ``"plain"``, ``"stalled"`` or ``"reset"``.
        options: how it was run: seed, stalls, reset.
        images: simulated.
        wrong_images: with one wrong score or more.
        wrong_scores: that differ from the integer executor's.
        mismatches: the first of them.
        cycles_per_frame: mean, of the later half of the frames; None with a reset,
            or for too few frames.
        least_cycles: between two of those frames, or None.
        most_cycles: between two of those frames, or None.
        latency: cycles from the first word in to the first score out.
        cycles: simulated.
        interrupted: frames that the reset threw out of the accelerator.
        seconds: of wall clock.
    """

    name: str
    options: dict[str, Any]
    images: int
    wrong_images: int
    wrong_scores: int
    mismatches: tuple[Mismatch, ...]
    cycles_per_frame: float | None
    least_cycles: int | None
    most_cycles: int | None
    latency: int
    cycles: int
    interrupted: int
    seconds: float


@dataclass(frozen=True)
class ChannelUse:
    """A FIFO and the most words that it held in the run without stalls."""

    name: str
    fifo: str
    bits: int
    depth: int
    most: int


@dataclass(frozen=True)
class SimulationReport:
    """What the simulations of a build folder showed.

    Attributes:
        model_sha256: of the integer graph.
        rtl: name of the simulated build: a hash of the RTL and of the tools.
        part: device that the RTL was generated for.
        clock_ns: clock period that it was generated for.
        verilator: version.
        build_seconds: to build the simulation, or to find that it was built.
        reference_images: also compared with qonnx' ``execute_onnx``.
        wrong_reference_scores: of these images.
        estimated_cycles: per frame, from the generator.
        checks: the simulations.
        channels: FIFOs.
    """

    model_sha256: str
    rtl: str
    part: str
    clock_ns: float
    verilator: str
    build_seconds: float
    reference_images: int
    wrong_reference_scores: int
    estimated_cycles: int
    checks: tuple[Check, ...]
    channels: tuple[ChannelUse, ...]

    @property
    def exact(self) -> bool:
        """Whether every integer of every simulation was right."""
        wrong = sum(check.wrong_scores for check in self.checks)
        return not wrong and not self.wrong_reference_scores

    @property
    def cycles_per_frame(self) -> float | None:
        """Cycles per frame without stalls; None for fewer than three images."""
        return self.checks[0].cycles_per_frame

    @property
    def deviation_percent(self) -> float | None:
        """How many percent more cycles a frame takes than estimated; None where not measured."""
        measured = self.cycles_per_frame
        return None if measured is None else 100 * (measured / self.estimated_cycles - 1)

    def write(self, path: Path) -> None:
        """Write the report as JSON; replaces an earlier one."""
        summary = {
            "exact": self.exact,
            "cycles_per_frame": self.cycles_per_frame,
            "deviation_percent": self.deviation_percent,
        }
        write_json(path, {"schema": SCHEMA, **summary, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> SimulationReport:
        """Read a report that `write` wrote.

        Raises:
            HardwareError: if there is none, it is damaged, or another version wrote it.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"it has schema {content['schema']}, this version reads {SCHEMA}")
            fields = {name: content[name] for name in cls.__dataclass_fields__}
            fields["checks"] = tuple(
                Check(
                    **check
                    | {"mismatches": tuple(Mismatch(**found) for found in check["mismatches"])}
                )
                for check in content["checks"]
            )
            fields["channels"] = tuple(ChannelUse(**channel) for channel in content["channels"])
            return cls(**fields)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HardwareError(
                f"{path} is no simulation report ({error}): simulate the folder again"
            ) from error


def simulate_folder(
    folder: Path,
    images: NDArray[np.uint8],
    *,
    stalled_images: int | None = None,
    reset_images: int = RESET_IMAGES,
    reference_images: int = REFERENCE_IMAGES,
    input_stall: float | None = None,
    output_stall: float | None = None,
    burst: float = 2.0,
    seed: int = 0,
    processes: int = 1,
    threads: int = 1,
    trace: Path | None = None,
    gates: Path | None = None,
    progress: Progress = silent,
) -> SimulationReport:
    """Simulate the RTL of a build folder and compare every integer with the graph's.

    Three runs, each with frames back to back: as fast as words come; with stalls at the input and
    back-pressure at the output; with a reset in the middle of a frame. In the last two, registers
    without a reset begin with random bits. The report is written to ``simulation/report.json``,
    replacing an earlier one; built simulations are kept beside it.

    Args:
        folder: a build folder, with `model.onnx` and `rtl/`.
        images: (N, C, H, W) uint8.
        stalled_images: images of the run with stalls, the first ones; by default all, 0 for none.
        reset_images: images of the run with a reset, the first ones; 0 for none.
        reference_images: first images also compared with qonnx' ``execute_onnx``.
        input_stall: share of the cycles in which no word is offered; by default so many that words
            come hardly faster than the accelerator needs them, and long stalls starve it.
        output_stall: share of the cycles in which no score is taken; likewise by default, so that
            long stalls fill it up.
        burst: mean length of the stalls, in multiples of that of independent ones.
        seed: of the stalls and of random contents of registers.
        processes: that share the images.
        threads: of each simulation.
        trace: a file for the waveform (FST) of the first two images.
        gates: a netlist of the RTL (`gate_netlist`) to simulate in its place; the report is then
            ``simulation/gates.json``.
        progress: shows the images done.

    Raises:
        HardwareError: if the folder is incomplete, its RTL was made from another graph or has
            other FIFOs than `rtl.json` says, or the accelerator stands still or breaks AXI-stream
            rules.
        ConfigError: if a number is out of its range, or the waveform's folder does not exist.
        DataError: if the images have another type or shape, or there are none.
        GraphError: if `model.onnx` is no integer graph.
        ToolError: if Verilator, or what a waveform needs, is missing or fails, or a simulation is
            killed.
    """
    folder = Path(folder)
    rtl = folder / "rtl" if gates is None else gates
    layout = Layout.read(rtl)
    if gates is None:
        _check_fifos(rtl, layout)
    executor = _open_model(folder / "model.onnx", layout)
    check_images(images, executor.image_shape)
    if not len(images):
        raise DataError("there are no images to simulate: give 1 or more")
    stalled_images = len(images) if stalled_images is None else stalled_images
    for name, count in (
        ("stalled_images", stalled_images),
        ("reset_images", reset_images),
        ("reference_images", reference_images),
    ):
        if count < 0:
            raise ConfigError(f"{name} is {count}: it must be 0 or more")
    if input_stall is None:
        input_stall = _stall(layout.input.words_per_frame, layout.cycles_per_frame)
    if output_stall is None:
        output_stall = _stall(layout.output.words_per_frame, layout.cycles_per_frame)
    stalls = {"input_stall": input_stall, "output_stall": output_stall, "burst": burst}
    check_numbers(
        input_stall=input_stall,
        output_stall=output_stall,
        burst=burst,
        processes=processes,
        seed=seed,
    )
    kept = folder / "simulation"
    traced = None
    if trace is not None:  # built first, so that what it lacks is said before the work
        traced = build_simulator(rtl, kept / "build", trace=True)
        traced.check_trace(trace)
    start = time.perf_counter()
    simulator = build_simulator(rtl, kept / "build", threads=threads)
    build_seconds = time.perf_counter() - start
    expected = executor.integers(images).astype(np.int64)
    words = np.ascontiguousarray(images.transpose(0, 2, 3, 1))

    def check(name: str, count: int, **options: Any) -> tuple[Check, SimulationRun]:
        run = simulator.run(
            words[:count], processes=processes, seed=seed, progress=progress, **options
        )
        return _check(name, run, expected, {"seed": seed, "processes": processes} | options), run

    plain, run = check("plain", len(images))
    checks = [plain]
    if stalled_images:
        checks.append(check("stalled", stalled_images, random_start=True, **stalls)[0])
    if reset_images:
        cycle = _middle_of_a_frame(run, min(reset_images, len(images)))
        checks.append(check("reset", reset_images, random_start=True, reset_at=cycle)[0])
    compared = min(reference_images, len(images))
    report = SimulationReport(
        model_sha256=layout.model_sha256,
        rtl=simulator.program.parent.name,
        part=layout.part,
        clock_ns=layout.clock_ns,
        verilator=verilator_version(),
        build_seconds=build_seconds,
        reference_images=compared,
        wrong_reference_scores=_differ_from_reference(
            folder / "model.onnx", images[:compared], run.outputs[:compared]
        ),
        estimated_cycles=layout.cycles_per_frame,
        checks=tuple(checks),
        channels=tuple(
            ChannelUse(c.name, c.fifo, c.bits, c.depth, run.max_counts[c.fifo])
            for c in layout.channels
        ),
    )
    report.write(kept / ("report.json" if gates is None else "gates.json"))
    if traced is not None:
        traced.run(words[:TRACED_IMAGES], trace=trace, progress=progress)
    return report


def _check_fifos(rtl: Path, layout: Layout) -> None:
    """Make sure that the top has the FIFOs of `rtl.json`, as deep as it says."""
    top = rtl / f"{layout.top}.sv"
    try:
        text = top.read_text(encoding="utf-8")
    except OSError as error:
        raise HardwareError(
            f"{top} cannot be read ({error.strerror}): build the folder again"
        ) from error
    there = {name: int(depth) for depth, name in FIFO.findall(text)}
    said = {channel.fifo: channel.depth for channel in layout.channels}
    for name in sorted(there.keys() | said.keys()):
        if there.get(name) != said.get(name):
            raise HardwareError(
                f"{name} has depth {there.get(name, 'none')} in {top}, {LAYOUT_FILE} says "
                f"{said.get(name, 'none')}: build the folder again"
            )


def _open_model(path: Path, layout: Layout) -> IntegerExecutor:
    """Open the graph that the RTL was made from."""
    if not path.is_file():
        raise HardwareError(f"{path} does not exist: give a folder that `divqat build` wrote")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != layout.model_sha256:
        raise HardwareError(
            f"the RTL beside {path} was made from another graph (SHA-256 "
            f"{layout.model_sha256[:12] or 'none'}, the file has {sha256[:12]}): build again"
        )
    # `simulate_folder` itself compares with the reference, on images of the user.
    executor = IntegerExecutor(path, verify=False)
    channels, height, width = executor.image_shape
    takes, gives = layout.input.shape, layout.output.outputs
    if takes != (height, width, channels) or gives != executor.num_classes:
        raise HardwareError(
            f"the RTL beside {path} maps {takes} to {gives} scores, the graph "
            f"{(height, width, channels)} to {executor.num_classes}: build again"
        )
    return executor


def _stall(words: int, cycles: int) -> float:
    """Return the share of stalled cycles that leaves some more than a frame's words need."""
    return max(LEAST_STALL, 1 - SPARE * words / cycles)


def _check(
    name: str, run: SimulationRun, expected: NDArray[np.int64], options: dict[str, Any]
) -> Check:
    wrong = run.outputs != expected[: len(run.outputs)]
    # A reset's own cycles, and those to fill the pipeline again, say nothing about the pace.
    intervals = run.intervals() if not run.interrupted else np.array([], np.int64)
    return Check(
        name=name,
        options=options,
        images=len(run.outputs),
        wrong_images=int(wrong.any(axis=1).sum()),
        wrong_scores=int(wrong.sum()),
        mismatches=tuple(
            Mismatch(int(i), int(k), int(run.outputs[i, k]), int(expected[i, k]))
            for i, k in np.argwhere(wrong)[:LISTED_MISMATCHES]
        ),
        cycles_per_frame=float(intervals.mean()) if len(intervals) else None,
        least_cycles=int(intervals.min()) if len(intervals) else None,
        most_cycles=int(intervals.max()) if len(intervals) else None,
        latency=run.latency,
        cycles=run.cycles,
        interrupted=run.interrupted,
        seconds=run.seconds,
    )


def _middle_of_a_frame(run: SimulationRun, images: int) -> int:
    """Return a cycle halfway between two frames' ends, at which others are under way."""
    ends = [0, *run.frame_cycles[: min(run.ranges[0][1], images)].tolist()]
    middle = len(ends) // 2
    return int(ends[middle - 1] + ends[middle]) // 2


def _differ_from_reference(
    path: Path, images: NDArray[np.uint8], outputs: NDArray[np.int64]
) -> int:
    """Return how many scores differ from those of qonnx' ``execute_onnx``."""
    if not len(images):
        return 0
    reference = ReferenceExecutor(path, batch_size=len(images))
    # Without the scale it gives the graph's own integers: a product in float32 may hide one.
    reference.metadata = replace(reference.metadata, output_scale=1.0)
    scores = reference(images).astype(np.float64)
    whole = scores.astype(np.int64)
    return int(((whole != scores) | (whole != outputs)).sum())
