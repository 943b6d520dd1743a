# SPDX-License-Identifier: BSD-3-Clause
"""Victims that are hardware: generated RTL in a simulator, or a board on a serial line."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.executors.base import check_images
from brevitas_divqat.executors.integer import IntegerExecutor
from brevitas_divqat.executors.loading import GraphExecutor, load_graph
from brevitas_divqat.executors.sessions import thread_count

__all__ = ["BoardExecutor", "HardwareExecutor", "RtlExecutor", "open_hardware"]

FORMS = "rtl:DIR or board:DIR@PORT, with the folder of `divqat build`"
IMAGES_PER_PROCESS = 8
"""Fewer do not make up for starting a process and filling its pipeline."""


class HardwareExecutor(GraphExecutor):
    """What both kinds have in common: the build folder, and scores from integers.

    Args:
        folder: of `divqat build`.

    Attributes:
        metadata: of the integer graph that was built.
        sha256: of its file.

    Raises:
        HardwareError: if the folder is not built to the end, or its graph is another one than the
            RTL was made from.
    """

    def __init__(self, folder: Path) -> None:
        from brevitas_divqat.fpga.build.manifest import MODEL_FILE, Manifest

        self.folder = Path(folder)
        Manifest.read(self.folder).require_rtl(self.folder)
        self._file = self.folder / MODEL_FILE
        _, self.sha256, self.metadata = load_graph(self._file)

    @property
    def judge(self) -> IntegerExecutor:
        """The integer executor of the graph that was built, whose integers are the hardware's.

        The test images that measure a surrogate would take hardware long; `divqat simulate` shows
        that it gives the same integers.
        """
        return IntegerExecutor(self._file)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, K) scores of (N, C, H, W) images: integers times the output scale."""
        integers = self.integers(images).astype(np.float32)
        return integers * np.float32(self.metadata.output_scale)

    def integers(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the (N, K) integers that leave the accelerator for (N, C, H, W) images.

        Raises:
            DataError: if the images have another type or shape.
            HardwareError: if the accelerator does not answer.
        """
        check_images(images, self.image_shape)
        if not len(images):
            return np.empty((0, self.num_classes), np.int64)
        return self._ask(images)

    @abstractmethod
    def _ask(self, images: NDArray[np.uint8]) -> NDArray[np.int64]: ...


class RtlExecutor(HardwareExecutor):
    """The RTL of a build folder, simulated by Verilator; images of a batch follow back to back.

    Args:
        folder: of `divqat build`.
        processes: simulations at a time; by default OMP_NUM_THREADS or the number of cores.

    Raises:
        HardwareError: see `HardwareExecutor`.
        ToolError: if Verilator or g++ is missing, or fails.
    """

    name = "rtl"

    def __init__(self, folder: Path, *, processes: int | None = None) -> None:
        from brevitas_divqat.fpga.build.builder import RTL_FOLDER, SIMULATORS_FOLDER
        from brevitas_divqat.fpga.sim.verilator import build_simulator

        super().__init__(folder)
        self._processes = thread_count(processes)
        self._simulator: Any = build_simulator(
            self.folder / RTL_FOLDER, self.folder / SIMULATORS_FOLDER
        )

    def _ask(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        processes = min(self._processes, -(-len(images) // IMAGES_PER_PROCESS))
        channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        outputs: NDArray[np.int64] = self._simulator.run(channels_last, processes=processes).outputs
        return outputs


class BoardExecutor(HardwareExecutor):
    """A board that holds the bitstream of a build folder.

    Args:
        folder: of `divqat build`.
        port: serial port, e.g. ``/dev/ttyUSB0``.
        baud: bits per second; by default the bitstream's.
        time_scale: how much slower than real time the board is, where it is simulated.

    Raises:
        HardwareError: see `HardwareExecutor`; or if the board does not answer, or holds another
            model.
        ToolError: if pyserial is missing.
    """

    name = "board"

    def __init__(
        self, folder: Path, port: str, *, baud: int | None = None, time_scale: float = 1.0
    ) -> None:
        from brevitas_divqat.fpga.boards.host import BAUD, BoardLink

        super().__init__(folder)
        self._link: Any = BoardLink(
            port, baud or BAUD, model_sha256=self.sha256, time_scale=time_scale
        )
        self._link.identify()

    def _ask(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        outputs: NDArray[np.int64] = self._link.infer(images)
        return outputs


def _open_rtl(place: str) -> HardwareExecutor:
    return RtlExecutor(Path(place))


def _open_board(place: str) -> HardwareExecutor:
    folder, at, port = place.rpartition("@")
    if not (folder and at and port):
        raise ConfigError(f"board:{place}: expected board:DIR@PORT, e.g. board:build@/dev/ttyUSB0")
    return BoardExecutor(Path(folder), port)


KINDS: dict[str, Callable[[str], HardwareExecutor]] = {"rtl": _open_rtl, "board": _open_board}


def open_hardware(victim: str) -> HardwareExecutor:
    """Open what ``--victim`` names.

    Args:
        victim: ``rtl:DIR`` or ``board:DIR@PORT``.

    Raises:
        ConfigError: if it names neither.
        HardwareError: if the folder or the board cannot serve.
        ToolError: if a program or package is missing.
    """
    kind, colon, place = victim.partition(":")
    if kind not in KINDS or not colon or not place:
        raise ConfigError(f"the victim {victim!r} is unknown: expected {FORMS}")
    return KINDS[kind](place)
