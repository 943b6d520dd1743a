# SPDX-License-Identifier: BSD-3-Clause
"""From a deployed graph to a build folder, step by step."""

from __future__ import annotations

import fcntl
import hashlib
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from google.protobuf.message import DecodeError
from qonnx.core.modelwrapper import ModelWrapper
from rich.console import Console

from brevitas_divqat.errors import GraphError, HardwareError, RunExists, ToolError, check_choice
from brevitas_divqat.executors.loading import load_graph
from brevitas_divqat.export import (
    GraphMetadata,
    integer_path,
    is_integer_graph_of,
    to_integer_graph,
)
from brevitas_divqat.files import make_folder, write_bytes, write_text
from brevitas_divqat.progress import Progress, silent

from ..boards.files import board_sources, write_driver
from ..boards.table import Board, board
from ..finn_environment import prepare, quiet
from ..rtl.layout import Layout
from ..rtl.stitch import resize_fifos, write_rtl
from ..sim.fifo_sizing import size_fifos
from ..synth.place_and_route import place_and_route
from ..synth.placement import render_placement
from ..tools import find_verilator
from .bitfile import run_finn
from .dataflow import to_dataflow
from .estimates import RESOURCES, Estimates, estimate
from .finn_project import FINN_OUTPUT, write_project
from .folding import fold
from .manifest import MANIFEST_FILE, MODEL_FILE, RTL_FOLDER, Manifest, build_versions

__all__ = [
    "BITSTREAM_FOLDER",
    "DATAFLOW_FILE",
    "MODEL_FILE",
    "PLACEMENT_TABLE",
    "RTL_FOLDER",
    "SIMULATORS_FOLDER",
    "SYNTHESIS_FOLDER",
    "BuildConfig",
    "FifoKind",
    "ProfileKind",
    "build",
    "find_graph",
]

ProfileKind = Literal["estimate", "bitfile"]
FifoKind = Literal["measured", "default"]

EXPORTED_FILE = "exported.onnx"
DATAFLOW_FILE = "dataflow.onnx"
SIMULATORS_FOLDER = "simulation/build"
SYNTHESIS_FOLDER = "synthesis"
BITSTREAM_FOLDER = "bitstream"
LOG_FILE = "build.log"
LOCK_FILE = ".lock"
PLACEMENT_TABLE = "placement.txt"
TABLE_COLUMNS = 100

STEP_FILES = {
    "graph": (MODEL_FILE, EXPORTED_FILE),
    "dataflow": (DATAFLOW_FILE,),
    "estimates": ("estimates.json", "estimates.txt", "estimates.png"),
    "rtl": (f"{RTL_FOLDER}/*",),
    "fifos": (f"{RTL_FOLDER}/accelerator.sv", f"{RTL_FOLDER}/rtl.json"),
    "project": (
        "input.npy",
        "expected_output.npy",
        "dataflow_build_config.json",
        "folding_config.json",
        "specialize_layers.json",
        "cfg.yaml",
        "build.py",
        "divqat_steps.py",
        "README.md",
    ),
    "bitfile": (
        *(
            f"{BITSTREAM_FOLDER}/{name}"
            for name in ("accelerator.*", "placement.*", "*.sv", "*.py")
        ),
        *(f"{FINN_OUTPUT}/{name}/**/*" for name in ("deploy", "stitched_ip")),
    ),
}
"""The steps, in order, and the files that each one leaves, for a later build to look at."""


@dataclass(frozen=True)
class BuildConfig:
    """What to build for.

    Args:
        board: name of the board.
        fps: frames per second to reach.
        clock_ns: clock period in ns; by default the board's.
        profile: 'estimate' ends with RTL and files for FINN; 'bitfile' goes on to the bitstream.
        fifos: depths of the FIFOs: 'measured' in a simulation with unlimited ones, which needs
            Verilator and g++; or 'default', which may cost frame rate.

    Raises:
        ConfigError: if a value is unknown.
        HardwareError: if the board is unknown, or a number is not above 0.
    """

    board: str = "Pynq-Z1"
    fps: float = 1000.0
    clock_ns: float | None = None
    profile: ProfileKind = "estimate"
    fifos: FifoKind = "measured"

    def __post_init__(self) -> None:
        check_choice("profile", self.profile, ProfileKind)
        check_choice("fifos", self.fifos, FifoKind)
        board(self.board)
        for name, value in (("fps", self.fps), ("clock_ns", self.clock_ns)):
            if value is not None and not 0 < value < float("inf"):
                raise HardwareError(f"{name} is {value}: it must be a number above 0")


def build(
    model: Path, folder: Path, config: BuildConfig, *, progress: Progress = silent
) -> Manifest:
    """Build a network into a folder; go on where an interrupted build of the same stopped.

    A finished step one of whose files is missing or changed is done again, with all behind it; a
    line on standard error says so.

    Args:
        model: an exported or integer graph, or the folder of a checkpoint with one.
        folder: of the build.
        config: what to build for.
        progress: shows the steps.

    Returns:
        The folder's manifest.

    Raises:
        GraphError: if there is no such graph, or it has no integer form.
        HardwareError: if the network cannot become hardware as asked, the folder is of another
            version, or another build is running in it.
        RunExists: if the folder holds another build, or something else.
        ToolError: if a program is missing or fails.
    """
    return _Build(model, folder, config, progress).run()


def find_graph(model: Path) -> tuple[bytes, bytes | None, GraphMetadata]:
    """Find the integer graph of a network, and the exported graph it comes from.

    Args:
        model: an exported or an integer graph's file, or a folder that holds ``model.onnx``.

    Returns:
        Content of the integer graph's file, of the exported graph's where it is at hand, and how
        the integer graph is to be served.

    Raises:
        GraphError: if there is none, or the exported graph has no integer form.
    """
    file = model / MODEL_FILE if model.is_dir() else model
    _, sha256, metadata = load_graph(file)
    if metadata.form == "integer":
        exported = file.with_stem(file.stem.removesuffix("-integer"))
        beside = exported != file and exported.is_file()
        known = beside and is_integer_graph_of(file, exported)
        return file.read_bytes(), exported.read_bytes() if known else None, metadata
    integer = integer_path(file)
    if integer.is_file():
        if not is_integer_graph_of(integer, file):
            raise GraphError(
                f"{integer} was made from another graph than {file}: delete it, or export again"
            )
        return integer.read_bytes(), file.read_bytes(), load_graph(integer)[2]
    made = to_integer_graph(file)
    text = made.get_metadata_prop("brevitas_divqat")
    served = GraphMetadata.from_json(text, str(file))
    return made.model.SerializeToString(), file.read_bytes(), served


def _order(fifos: str) -> tuple[str, ...]:
    """Return the names of all steps in order."""
    return tuple(name for name in STEP_FILES if name != "fifos" or fifos == "measured")


class _Build:
    def __init__(self, model: Path, folder: Path, config: BuildConfig, progress: Progress) -> None:
        self.folder, self.config, self.progress = folder, config, progress
        self.board: Board = board(config.board)
        self.integer, self.exported, self.metadata = find_graph(model)
        self.asked = Manifest(
            model=self.metadata.model,
            data=self.metadata.data,
            model_sha256=hashlib.sha256(self.integer).hexdigest(),
            exported_sha256=self.metadata.exported_sha256,
            board=self.board.name,
            part=self.board.part,
            fps=float(config.fps),
            clock_ns=float(config.clock_ns or self.board.clock_ns),
            fifos=config.fifos,
            versions=build_versions(),
        )
        self.manifest = self.asked

    def run(self) -> Manifest:
        self._look()  # before anything is made
        make_folder(self.folder)
        with self._lock():
            damage = self._look()  # until now, another build may have been at it
            if damage:
                again = _order(self.manifest.fifos)[len(self.manifest.steps)]
                print(
                    f"divqat: {self.folder}: {damage}: step {again} and those behind it are to be "
                    "done again",
                    file=sys.stderr,
                )
            if damage or not self.manifest.steps:
                self.manifest.write(self.folder)
            return self._finish()

    def _finish(self) -> Manifest:
        steps = self._steps()
        with self.progress(f"building {self.folder.name}", len(steps)) as show:
            for name, step in steps.items():
                if name not in self.manifest.steps:
                    show(0, name)
                    step()
                    self.manifest = self.manifest.finish(name, self.folder, STEP_FILES[name])
                show(1, name)
        return self.manifest

    def _steps(self) -> dict[str, Callable[[], None]]:
        steps = {
            "graph": self._graph,
            "dataflow": self._dataflow,
            "estimates": self._estimates,
            "rtl": self._rtl,
        }
        if self.config.fifos == "measured":
            steps["fifos"] = self._fifos
        steps["project"] = self._project
        if self.config.profile == "bitfile":
            steps["bitfile"] = self._bitfile
        return steps

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other builds out of the folder; the system lets them in when this process ends."""
        with (self.folder / LOCK_FILE).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HardwareError(
                    f"another build is running in {self.folder}: wait for it"
                ) from error
            yield

    def _look(self) -> str:
        """Take an empty folder, or one of the same build, as far as its files are intact.

        Returns:
            What is wrong with the files of a finished step; empty if nothing is.

        Raises:
            RunExists: if it holds something else.
            ToolError: if FIFOs are to be measured and cannot be.
        """
        self.manifest, damage = self.asked, ""
        if (self.folder / MANIFEST_FILE).is_file():
            found = Manifest.read(self.folder)
            differences = self.asked.differences(found)
            if not differences:
                self.manifest, damage = found.intact(self.folder, _order(found.fifos))
            elif set(found.steps) - {"graph"}:  # else it stopped before there was anything
                raise RunExists(
                    f"{self.folder} holds another build ({'; '.join(differences)}): choose "
                    "another folder"
                )
        elif self.folder.is_dir() and {path.name for path in self.folder.iterdir()} - {LOCK_FILE}:
            raise RunExists(f"{self.folder} is not empty and no build folder: choose another one")
        self._check_simulator()
        return damage

    def _check_simulator(self) -> None:
        """Raise ToolError now, before anything is built, if FIFOs cannot be measured later."""
        if "fifos" not in self._steps() or "fifos" in self.manifest.steps:
            return
        try:
            find_verilator()
        except ToolError as error:
            raise ToolError(
                f"{error}; or build with --fifos default, which needs none of this and may cost "
                "frame rate"
            ) from error

    # Steps

    def _graph(self) -> None:
        write_bytes(self.folder / MODEL_FILE, self.integer)
        (self.folder / EXPORTED_FILE).unlink(missing_ok=True)
        if self.exported is not None:
            write_bytes(self.folder / EXPORTED_FILE, self.exported)

    def _dataflow(self) -> None:
        prepare()
        with quiet(self.folder / LOG_FILE):
            graph = to_dataflow(ModelWrapper(str(self.folder / MODEL_FILE)))
            folded = fold(
                graph,
                part=self.board.generated_for,
                fps=self.config.fps,
                clock_ns=self.manifest.clock_ns,
            )
        # FINN and qonnx write these in the order of sets, which differs from process to process.
        folded.graph.quantization_annotation.sort(key=lambda note: note.tensor_name)
        write_bytes(self.folder / DATAFLOW_FILE, folded.model.SerializeToString())

    def _folded(self) -> ModelWrapper:
        prepare()
        file = self.folder / DATAFLOW_FILE
        try:
            return ModelWrapper(str(file))
        except (OSError, DecodeError) as error:
            raise HardwareError(f"{file} is damaged: build the folder again") from error

    def _estimates(self) -> None:
        with quiet(self.folder / LOG_FILE):
            found = estimate(
                self._folded(),
                self.board.generated_for,
                self.manifest.clock_ns,
                resources=self.board.resources,
            )
        found.write(self.folder)

    def _rtl(self) -> None:
        layers = Estimates.read(self.folder).layers
        with quiet(self.folder / LOG_FILE):
            write_rtl(
                self._folded(),
                self.folder / RTL_FOLDER,
                part=self.board.generated_for,
                clock_ns=self.manifest.clock_ns,
                model_sha256=self.manifest.model_sha256,
                exported_sha256=self.manifest.exported_sha256,
                estimates={
                    layer.name: {name: getattr(layer, name) for name in RESOURCES}
                    for layer in layers
                },
            )

    def _fifos(self) -> None:
        rtl = self.folder / RTL_FOLDER
        shape = Layout.read(rtl).input.shape
        noise = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)
        depths = size_fifos(
            rtl, noise, folder=self.folder / SIMULATORS_FOLDER, progress=self.progress
        )
        resize_fifos(rtl, depths)

    def _project(self) -> None:
        estimates = Estimates.read(self.folder)
        with quiet(self.folder / LOG_FILE):
            write_project(
                self.folder,
                self._folded(),
                self.board,
                clock_ns=self.manifest.clock_ns,
                estimates=estimates,
            )

    def _bitfile(self) -> None:
        if self.board.flow == "finn":
            run_finn(self.folder)
            return
        rtl, made = self.folder / RTL_FOLDER, self.folder / BITSTREAM_FOLDER
        placed = place_and_route(
            rtl,
            made,
            self.board.part,
            board_sources(self.board, Layout.read(rtl), made),
            synthesis=self.folder / SYNTHESIS_FOLDER / self.board.family,
            progress=self.progress,
        )
        write_driver(made)
        shown = io.StringIO()
        Console(file=shown, width=TABLE_COLUMNS).print(render_placement(placed))
        write_text(made / PLACEMENT_TABLE, shown.getvalue())
