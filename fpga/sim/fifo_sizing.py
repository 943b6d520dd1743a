# SPDX-License-Identifier: BSD-3-Clause
"""How deep the FIFOs between the layers must be, from what they hold when none ever blocks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.progress import Progress, silent

from .verilator import build_simulator

__all__ = ["size_fifos"]

LEAST_DEPTH = 2
"""A FIFO of one word takes a word only every other cycle."""

LEAST_FRAMES = 6
"""Frames after which the slowest layer surely sets the pace."""


def size_fifos(
    rtl: Path, images: NDArray[np.uint8], *, folder: Path, progress: Progress = silent
) -> dict[str, int]:
    """Find the depths at which the accelerator is as fast as with unlimited FIFOs.

    Two simulations with FIFOs that never block. The first takes images as fast as they come and
    measures the cycles per frame: the pace of the slowest layer. The second takes them at that
    pace, each frame's words spread evenly, and measures the most words that each FIFO holds; at
    full speed everything before the slowest layer would fill without end. With these depths that
    second schedule never meets a full FIFO, and words that come earlier delay none: the
    accelerator keeps its pace and cannot block. One more word than was held lets a word enter in
    the cycle in which another leaves.

    Data do not matter, since no layer's time depends on them: a few images are repeated until the
    pipeline is full. The caller writes the depths into the RTL and simulates it again.

    Args:
        rtl: a folder with `rtl.json` and `files.f`.
        images: (N, H, W, C) uint8, 1 or more.
        folder: keeps the built simulation.
        progress: shows the frames done.

    Returns:
        Depth in words of each FIFO, by its name in the top.

    Raises:
        HardwareError: if the accelerator stands still or breaks AXI-stream rules even so.
        DataError: if the images have another type or shape.
        ToolError: if Verilator is missing or fails.
    """
    simulator = build_simulator(rtl, folder, gauge=True)
    fast = simulator.run(_repeated(images, LEAST_FRAMES), progress=progress)
    pace = math.ceil(fast.intervals().mean())
    frames = max(LEAST_FRAMES, 2 * (fast.latency // pace + 2))
    paced = simulator.run(_repeated(images, frames), frame_interval=pace, progress=progress)
    return {fifo: max(LEAST_DEPTH, most + 1) for fifo, most in paced.max_counts.items()}


def _repeated(images: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return ``count`` images or more; none where there is none, for the simulator to refuse."""
    times = math.ceil(count / len(images)) if len(images) else 1
    return np.concatenate([images] * times)
