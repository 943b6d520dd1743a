# SPDX-License-Identifier: BSD-3-Clause
"""Folding: the rate asked for, or the highest one there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from brevitas_divqat.fpga.build.dataflow import to_dataflow
from brevitas_divqat.fpga.build.folding import fold, layer_cycles
from brevitas_divqat.fpga.finn_environment import prepare, quiet
from brevitas_divqat.fpga.rtl.stitch import write_rtl
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp

from brevitas_divqat.errors import HardwareError
from tests.fpga import finn_networks

ZYNQ, ULTRASCALE, VERSAL = (
    "xc7z020clg400-1",
    "xczu7ev-ffvc1156-2-e",
    "xcvc1902-vsva2197-2MP-e-S",
)
HIGHEST = re.compile(r"ask for at most ([0-9.]+) fps")
Maker = Callable[[Path], Path]
MAKERS = (finn_networks.chain, finn_networks.joined, finn_networks.signs)

each_network = pytest.mark.parametrize("maker", MAKERS, ids=lambda make: make.__name__)


def translated(maker: Maker, folder: Path) -> ModelWrapper:
    pytest.importorskip("finn")
    prepare(folder / "finn")
    return to_dataflow(ModelWrapper(str(maker(folder / "model.onnx"))))


def folded(
    dataflow: ModelWrapper, fps: float, *, clock_ns: float = 10.0, part: str = ZYNQ
) -> ModelWrapper:
    with quiet():
        return fold(dataflow, part=part, fps=fps, clock_ns=clock_ns)


def rate(model: ModelWrapper, clock_ns: float = 10.0) -> float:
    return 1e9 / (clock_ns * max(layer_cycles(model).values()))


@each_network
@pytest.mark.parametrize("part", [ZYNQ, ULTRASCALE, VERSAL])
def test_the_rate_is_reached_and_with_little_more(maker: Maker, part: str, tmp_path: Path) -> None:
    dataflow = translated(maker, tmp_path)
    before = dataflow.model.SerializeToString()
    slow, fast = (folded(dataflow, fps, part=part) for fps in (1_000.0, 40_000.0))
    assert rate(slow) >= 1_000
    assert rate(fast) >= 40_000
    assert sum(parallel(slow).values()) <= sum(parallel(fast).values())
    assert dataflow.model.SerializeToString() == before


def parallel(model: ModelWrapper) -> dict[str, int]:
    """Return PE times SIMD of each layer that has either."""
    found = {}
    for node in model.graph.node:
        layer, size = getCustomOp(node), 1
        for name in layer.get_nodeattr_types().keys() & {"PE", "SIMD"}:
            size *= layer.get_nodeattr(name)
        found[node.name] = size
    return found


@each_network
@pytest.mark.parametrize("clock_ns", [10.0, 3.3, 40.0, 1e9 / 7])
def test_the_highest_rate_that_is_told_is_the_highest(
    maker: Maker, clock_ns: float, tmp_path: Path
) -> None:
    dataflow = translated(maker, tmp_path)
    names = {node.doc_string for node in dataflow.graph.node}
    with pytest.raises(HardwareError) as caught:
        folded(dataflow, 1e12, clock_ns=clock_ns)
    message = str(caught.value)
    assert "\n" not in message
    assert any(f"and {name} (" in message for name in names)
    found = HIGHEST.search(message)
    assert found is not None
    highest = float(found[1])
    assert rate(folded(dataflow, highest, clock_ns=clock_ns), clock_ns) >= highest
    with pytest.raises(HardwareError, match=re.escape(f"at most {found[1]} fps")):
        folded(dataflow, highest * 1.001, clock_ns=clock_ns)


def test_a_rate_of_whole_cycles_loses_none_to_rounding(tmp_path: Path) -> None:
    dataflow = translated(finn_networks.signs, tmp_path)
    cycles = max(layer_cycles(folded(dataflow, 1_000.0)).values())
    for clock_ns in (0.7, 1.1, 3.3, 6.6, 9.9, 10.0):
        exact = 1e9 / (clock_ns * cycles)
        model = folded(dataflow, exact, clock_ns=clock_ns)
        assert max(layer_cycles(model).values()) <= cycles


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(fps: float, tmp_path: Path) -> None:
    dataflow = translated(finn_networks.signs, tmp_path)
    with pytest.raises(HardwareError, match="above 0"):
        folded(dataflow, fps)
    with pytest.raises(HardwareError, match="above 0"):
        folded(dataflow, 1.0, clock_ns=fps)


def wide_weights(path: Path) -> Path:
    """A network whose second layer uses the least number of its type, -8 of 4 bits."""
    file = finn_networks.chain(path)
    model = ModelWrapper(str(file))
    node = model.get_nodes_by_op_type("MatMul")[0]
    assert model.get_tensor_datatype(node.input[1]) == DataType["INT4"]
    values = model.get_initializer(node.input[1]).copy()
    values[0, 0] = -8
    model.set_initializer(node.input[1], values)
    model.save(str(file))
    return file


def test_weights_that_are_not_narrow_are_refused_on_zynq_alone(tmp_path: Path) -> None:
    dataflow = translated(wide_weights, tmp_path)
    with pytest.raises(HardwareError, match="narrow range") as caught:
        folded(dataflow, 1_000.0, part=ZYNQ)
    message = str(caught.value)
    assert message.startswith("layers.4: ")
    assert ZYNQ in message
    assert "\n" not in message
    assert rate(folded(dataflow, 1_000.0, part=ULTRASCALE)) >= 1_000


def test_signs_become_weights_of_two_bits(tmp_path: Path) -> None:
    model = folded(translated(finn_networks.signs, tmp_path), 1_000.0)
    types = {
        getCustomOp(n).get_nodeattr("weightDataType") for n in model.graph.node if "MV" in n.name
    }
    assert types == {"INT2"}
    assert {node.op_type for node in model.graph.node} == {"MVAU_rtl", "Thresholding_rtl"}


def test_depthwise_windows_leave_pixel_by_pixel(tmp_path: Path) -> None:
    dataflow = translated(finn_networks.joined, tmp_path)
    with pytest.raises(HardwareError) as caught:
        folded(dataflow, 1e12)
    found = HIGHEST.search(str(caught.value))
    assert found is not None
    model = folded(dataflow, float(found[1]))
    (node,) = model.get_nodes_by_op_type("VVAU_hls")
    assert getCustomOp(node).get_nodeattr("SIMD") == 1
    windows = getCustomOp(model.find_producer(node.input[0]))
    assert windows.get_nodeattr("parallel_window") == 0
    assert windows.get_nodeattr("SIMD") == getCustomOp(node).get_nodeattr("PE")


def test_a_kernel_over_the_whole_map_can_be_generated_at_its_highest_rate(tmp_path: Path) -> None:
    def whole(path: Path) -> Path:
        net = finn_networks.Network((2, 4, 4))
        x = net.convolution("pixels", 6, 4, bits=8)
        return net.write(path, net.product(net.flatten(x, 6), finn_networks.CLASSES))

    dataflow = translated(whole, tmp_path)
    with pytest.raises(HardwareError) as caught:
        folded(dataflow, 1e12)
    found = HIGHEST.search(str(caught.value))
    assert found is not None
    model = folded(dataflow, float(found[1]))
    with quiet():
        layout = write_rtl(
            model,
            tmp_path / "rtl",
            part=ZYNQ,
            clock_ns=10.0,
            model_sha256="",
            exported_sha256="",
        )
    assert layout.cycles_per_frame == max(layer_cycles(model).values())
