# SPDX-License-Identifier: BSD-3-Clause
"""Each hardware layer as one module: ports of whole bytes, memories named by the layer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from brevitas_divqat.fpga.build.dataflow import to_dataflow
from brevitas_divqat.fpga.build.folding import fold
from brevitas_divqat.fpga.finn_environment import prepare, quiet
from brevitas_divqat.fpga.rtl.layers import HDL, LayerModule, stream_width, translate_layer
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp

from brevitas_divqat.errors import HardwareError
from tests.fpga import finn_networks

PART = "xc7z020clg400-1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelWrapper:
    """A folded graph with every layer that FINN has in C++ alone."""
    pytest.importorskip("finn")
    folder = tmp_path_factory.mktemp("layers")
    prepare(folder / "finn")
    file = finn_networks.joined(folder / "model.onnx")
    with quiet():
        return fold(to_dataflow(ModelWrapper(str(file))), part=PART, fps=60_000.0, clock_ns=10.0)


def translated(model: ModelWrapper, name: str, scratch: Path) -> LayerModule:
    (node,) = (node for node in model.graph.node if node.name == name)
    with quiet():
        return translate_layer(node, model, part=PART, clock_ns=10.0, scratch=scratch)


@given(st.integers(1, 4096))
def test_words_fill_whole_bytes(bits: int) -> None:
    width = stream_width(bits)
    assert width % 8 == 0
    assert bits <= width < bits + 8


def test_every_layer_becomes_a_module_with_ports_of_finns_widths(
    model: ModelWrapper, tmp_path: Path
) -> None:
    own = {"Pool_hls", "DuplicateStreams_hls", "ElementwiseAdd_hls", "VVAU_hls"}
    assert own <= {node.op_type for node in model.graph.node}
    for node in model.graph.node:
        scratch = tmp_path / node.name
        scratch.mkdir()
        made = translated(model, node.name, scratch)
        layer = getCustomOp(node)
        streams = 2 if node.op_type.startswith("ElementwiseAdd") else 1
        assert made.inputs == tuple(layer.get_instream_width_padded(i) for i in range(streams))
        outputs = range(len(node.output))
        assert made.outputs == tuple(layer.get_outstream_width_padded(i) for i in outputs)
        assert made.name == f"{node.name}_layer"
        assert made.text.startswith(f"module {made.name} (\n")
        assert made.text.count("endmodule") == 1
        for side, widths in (("in", made.inputs), ("out", made.outputs)):
            for index, bits in enumerate(widths):
                assert f"[{bits - 1}:0] {side}{index}_tdata" in made.text
        assert (any(scratch.iterdir())) is (node.op_type not in own)
        for file, text in {**made.sources, **made.memories}.items():
            assert str(scratch) not in text, file
        assert all(file.startswith(node.name) for file in made.memories)
        needs_memory = ("MVAU", "VVAU", "Thresholding")
        assert bool(made.memories) is node.op_type.startswith(needs_memory)


def test_kernels_of_a_depthwise_layer_lie_channel_by_channel(
    model: ModelWrapper, tmp_path: Path
) -> None:
    (node,) = model.get_nodes_by_op_type("VVAU_hls")
    layer = getCustomOp(node)
    made = translated(model, node.name, tmp_path)
    ((file, text),) = made.memories.items()
    assert f'.WEIGHTS_FILE("./{file}")' in made.text
    weights = model.get_initializer(node.input[1])
    channels, _, *kernel = weights.shape
    pe, bits = layer.get_nodeattr("PE"), layer.get_input_datatype(1).bitwidth()
    words = [int(line, 16) for line in text.split()]
    assert len(words) == channels // pe * int(np.prod(kernel))
    decoded = [[(word >> (bits * i)) & ((1 << bits) - 1) for i in range(pe)] for word in words]
    signed = np.array(decoded)
    signed = np.where(signed >> (bits - 1), signed - (1 << bits), signed)
    expected = weights.reshape(channels // pe, pe, -1).transpose(0, 2, 1).reshape(-1, pe)
    assert np.array_equal(signed, expected)


def test_our_modules_are_there_and_named_as_their_files() -> None:
    modules = sorted(HDL.glob("*.sv"))
    assert modules
    for file in modules:
        assert re.search(rf"^module {file.stem}\b", file.read_text(), re.MULTILINE)


def test_a_layer_without_rtl_is_refused(model: ModelWrapper, tmp_path: Path) -> None:
    copy = ModelWrapper(model.model, make_deepcopy=True)
    node = copy.graph.node[-1]
    node.op_type = "Lookup_hls"
    with pytest.raises(HardwareError, match="Lookup_hls has no RTL") as caught:
        translate_layer(node, copy, part=PART, clock_ns=10.0, scratch=tmp_path)
    assert str(caught.value).startswith(f"{node.doc_string}: ")
    assert "\n" not in str(caught.value)


def test_what_finn_cannot_generate_is_refused_by_the_layers_name(
    model: ModelWrapper, tmp_path: Path
) -> None:
    copy = ModelWrapper(model.model, make_deepcopy=True)
    node = copy.get_nodes_by_op_type("Thresholding_rtl")[0]
    values = copy.get_initializer(node.input[1])
    copy.set_initializer(node.input[1], values[:, ::-1].copy())  # no longer in order
    with pytest.raises(HardwareError, match=f"FINN cannot generate {node.name}") as caught:
        translated(copy, node.name, tmp_path)
    assert str(caught.value).startswith(f"{node.doc_string}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given_bits", "result_bits", "steps"),
    [
        (24, 8, [(24, 8)]),
        (3, 9, [(3, 9)]),
        (16, 72, [(16, 144), (144, 72)]),
        (39, 9, [(39, 117), (117, 9)]),
    ],
)
def test_widths_that_do_not_divide_are_changed_in_two_steps(
    given_bits: int,
    result_bits: int,
    steps: list[tuple[int, int]],
    model: ModelWrapper,
    tmp_path: Path,
) -> None:
    node = helper.make_node(
        "StreamingDataWidthConverter_rtl",
        ["a"],
        ["b"],
        name="converter",
        domain="finn.custom_op.fpgadataflow.rtl",
        inWidth=given_bits,
        outWidth=result_bits,
        shape=[1, 1404],
        dataType="INT4",
    )
    made = translate_layer(node, model, part=PART, clock_ns=10.0, scratch=tmp_path)
    assert made.inputs == (stream_width(given_bits),)
    assert made.outputs == (stream_width(result_bits),)
    found = re.findall(r"dwc_axi #\(\.IBITS\((\d+)\), \.OBITS\((\d+)\)\)", made.text)
    assert [(int(a), int(b)) for a, b in found] == steps
    assert sorted(made.sources) == ["dwc_axi.sv", "vpc.sv"]
    assert ("joined_tdata" in made.text) is (len(steps) == 2)
