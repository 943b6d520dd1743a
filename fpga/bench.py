# SPDX-License-Identifier: BSD-3-Clause
"""How long each step from a graph to hardware takes on this machine."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.executors import IntegerExecutor
from brevitas_divqat.progress import Progress, silent

from .build.builder import MODEL_FILE, RTL_FOLDER, SIMULATORS_FOLDER, BuildConfig, build
from .build.manifest import Manifest
from .finn_environment import finn_version
from .rtl.layout import Layout
from .rtl.stitch import resize_fifos
from .sim.fifo_sizing import size_fifos
from .sim.verilator import build_simulator, verilator_version
from .synth.yosys import synthesise, version_of_yosys

__all__ = ["SCHEMA", "bench_hardware", "hardware_table"]

SCHEMA = 1
Result = TypeVar("Result")


def bench_hardware(
    model: Path,
    *,
    board: str = "Pynq-Z1",
    fps: float = 1000.0,
    images: int = 200,
    families: tuple[str, ...] = ("xc7", "xcup", "ecp5"),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time each step on a fresh folder.

    Args:
        model: as `build` takes it.
        board: to build for.
        fps: frames per second to reach.
        images: to simulate in each measurement.
        families: to synthesise for.
        progress: shows the steps of a build and of the syntheses.

    Returns:
        A JSON-serialisable record: seconds by step; images per second by way of simulating, each
        with the number of wrong images; times of processes and threads as ratios to one of each.

    Raises:
        ConfigError: if ``images`` is below 1.
        HardwareError: see `build`.
        ToolError: if a program is missing or fails.
    """
    if images < 1:
        raise ConfigError(f"images is {images}: it must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="divqat-bench-") as name:
        bench = _Bench(Path(name), progress)
        return bench.run(
            model, BuildConfig(board=board, fps=fps, fifos="default"), images, families
        )


class _Bench:
    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder, self.progress = folder / "build", progress
        self.seconds: dict[str, float] = {}

    def timed(self, step: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        done = work()
        self.seconds[step] = round(time.perf_counter() - start, 2)
        return done

    def run(
        self, model: Path, config: BuildConfig, images: int, families: tuple[str, ...]
    ) -> dict[str, Any]:
        rtl, kept = self.folder / RTL_FOLDER, self.folder / SIMULATORS_FOLDER
        self.timed(
            "graph to RTL", lambda: build(model, self.folder, config, progress=self.progress)
        )
        layout = Layout.read(rtl)
        pixels = np.random.default_rng(0).integers(0, 256, (images, *layout.input.shape), np.uint8)
        depths = self.timed("FIFO depths", lambda: size_fifos(rtl, pixels[:1], folder=kept))
        layout = resize_fifos(rtl, depths)
        self.timed("Verilator build", lambda: build_simulator(rtl, kept))
        self.timed("Verilator build, 2 threads", lambda: build_simulator(rtl, kept, threads=2))
        executor = IntegerExecutor(self.folder / MODEL_FILE, verify=False)
        expected = executor.integers(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        rows = []
        for processes, threads in ((1, 1), (2, 1), (1, 2)):
            simulator = build_simulator(rtl, kept, threads=threads)
            run = simulator.run(pixels, processes=processes, progress=self.progress)
            rows.append(
                {
                    "processes": processes,
                    "threads": threads,
                    "images_per_second": round(images / run.seconds, 2),
                    "cycles_per_second": round(run.cycles / run.seconds),
                    "wrong_images": int((run.outputs != expected).any(axis=1).sum()),
                    "cycles_per_frame": float(run.intervals().mean()) if images > 2 else None,
                }
            )
        for family in families:
            out = self.folder / "synthesis" / family
            work = partial(synthesise, rtl, out, family, progress=self.progress)
            self.timed(f"synthesis {family}", work)
        return self.record(config, layout, images, rows)

    def record(
        self,
        config: BuildConfig,
        layout: Layout,
        images: int,
        rows: list[dict[str, Any]],
    ) -> dict[str, Any]:
        manifest = Manifest.read(self.folder)
        tools = {
            "finn-plus": finn_version(),
            "verilator": verilator_version(),
            "yosys": version_of_yosys(),
        }
        verdict = sum(
            self.seconds[step] for step in ("graph to RTL", "FIFO depths", "Verilator build")
        )
        return {
            "schema": SCHEMA,
            "bench": "hardware",
            "model": manifest.model,
            "data": manifest.data,
            "model_sha256": layout.model_sha256,
            "board": config.board,
            "fps": config.fps,
            "cycles_per_frame": layout.cycles_per_frame,
            "layers": len(layout.layers),
            "images": images,
            "machine": {"cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
            "tools": tools,
            "seconds": self.seconds,
            "simulation": rows,
            "verdict_seconds": round(verdict + images / rows[1]["images_per_second"], 1),
        }


def hardware_table(record: dict[str, Any]) -> Table:
    """Return a record of `bench_hardware` as a table."""
    first = record["simulation"][0]["images_per_second"]
    table = Table(
        title=Text(
            f"{record['model']} for {record['board']}, {record['cycles_per_frame']:,} cycles per "
            f"frame, {record['machine']['cores']} cores"
        ),
        caption=Text(
            f"From the graph to the verdict on {record['images']} images: "
            f"{record['verdict_seconds']:.0f} s."
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    for column in ("step", "seconds", "images/s", "ratio", "wrong"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step, seconds in record["seconds"].items():
        table.add_row(step, f"{seconds:.1f}")
    for row in record["simulation"]:
        name = f"simulation, {row['processes']} processes, {row['threads']} threads"
        speed = row["images_per_second"]
        seconds = record["images"] / speed
        table.add_row(
            name, f"{seconds:.1f}", f"{speed:.1f}", f"{speed / first:.2f}", str(row["wrong_images"])
        )
    return table
