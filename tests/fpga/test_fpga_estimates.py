# SPDX-License-Identifier: BSD-3-Clause
"""FINN's estimates: read from its graph, summed, written, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from brevitas_divqat.fpga.boards.table import board
from brevitas_divqat.fpga.build.estimates import (
    Estimates,
    LayerEstimate,
    estimate,
    plot,
    table,
)
from brevitas_divqat.fpga.finn_environment import prepare, quiet
from qonnx.core.modelwrapper import ModelWrapper

from brevitas_divqat.errors import HardwareError
from tests.fpga import finn_networks


def layer(name: str, cycles: int, lut: int = 0, *, backend: str = "rtl") -> LayerEstimate:
    return LayerEstimate(
        name=f"{name}_{backend}_0",
        kind=name,
        layer="features[0].$",
        backend=backend,  # type: ignore[arg-type]
        cycles=cycles,
        LUT=lut,
        BRAM_18K=2,
        URAM=0,
        DSP=3,
    )


@pytest.fixture
def estimates() -> Estimates:
    return Estimates(
        part="xc7z020clg400-1",
        clock_ns=5.0,
        layers=(
            layer("FMPadding", 100, 10),
            layer("MVAU", 4000, 90),
            layer("Pool", 3, backend="hls"),
        ),
        latency_cycles=4103,
        available={"LUT": 1000, "BRAM_18K": 280, "URAM": 0, "DSP": 18},
    )


def test_the_slowest_layer_sets_the_rate(estimates: Estimates) -> None:
    assert estimates.limiting.name == "MVAU_rtl_0"
    assert estimates.cycles_per_frame == 4000
    assert estimates.fps == 50_000
    assert estimates.latency_us == 20.515
    assert estimates.totals == {"LUT": 100, "BRAM_18K": 6, "URAM": 0, "DSP": 9}
    assert estimates.percent("LUT") == 10
    assert estimates.percent("DSP") == 50
    assert estimates.percent("URAM") is None


def test_files_hold_what_was_estimated(estimates: Estimates, tmp_path: Path) -> None:
    estimates.write(tmp_path)
    assert Estimates.read(tmp_path) == estimates
    content = json.loads((tmp_path / "estimates.json").read_text())
    assert content["fps"] == 50_000
    assert content["limiting_layer"] == "MVAU_rtl_0"
    assert content["percent"]["URAM"] is None
    assert (tmp_path / "estimates.txt").read_text() == table(estimates)
    assert (tmp_path / "estimates.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_layers_totals_and_the_limit(estimates: Estimates) -> None:
    text = table(estimates)
    assert "features[0].$" in text  # brackets are no markup
    assert "MVAU_rtl_0 *" in text
    assert "50,000 images/s: one every 4,000 cycles, limited by MVAU_rtl_0" in text
    assert "10.0 %" in text
    assert "FINN's HLS layer" in text
    assert max(len(line) for line in text.splitlines()[:12]) <= 100
    only_rtl = Estimates("p", 5.0, estimates.layers[:2], 4100, {})
    assert "HLS" not in table(only_rtl)


def test_the_plot_has_a_bar_per_layer_and_a_panel_per_resource(estimates: Estimates) -> None:
    figure = plot(estimates)
    panels = {axes.get_xlabel().split()[0]: axes for axes in figure.axes}
    assert list(panels) == ["cycles", "LUT", "BRAM", "DSP"]
    widths = [bar.get_width() for bar in panels["cycles"].patches]  # type: ignore[attr-defined]
    assert widths == [100, 4000, 3]
    assert panels["cycles"].get_xscale() == "log"
    assert panels["DSP"].get_xscale() == "linear"
    assert "50.0 %" in panels["DSP"].get_xlabel()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no estimates"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"schema": 1, "part": "p"}', "is damaged"),
        ('{"schema": 9}', "has schema 9, this version reads 1"),
    ],
)
def test_other_files_are_refused(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "estimates.json").write_text(content)
    with pytest.raises(HardwareError, match=said):
        Estimates.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("part", 1),
        ("clock_ns", 0),
        ("clock_ns", "5"),
        ("latency_cycles", -1),
        ("latency_cycles", 1.5),
        ("available", []),
        ("available", {"LUT": "many"}),
        ("layers", []),
        ("layers", {}),
        ("layers", [3]),
        ("cycles", "9"),
        ("cycles", 0),
        ("LUT", -1),
        ("backend", "vhdl"),
    ],
)
def test_an_entry_of_another_kind_is_refused(
    key: str, value: object, estimates: Estimates, tmp_path: Path
) -> None:
    content = estimates.to_json()
    for entry in [content] if key in content else content["layers"]:
        entry[key] = value
    (tmp_path / "estimates.json").write_text(json.dumps(content))
    with pytest.raises(HardwareError, match=r"estimates\.json is damaged"):
        Estimates.read(tmp_path)


def test_nothing_to_estimate_is_refused() -> None:
    with pytest.raises(HardwareError, match="no layers"):
        Estimates("p", 5.0, (), 0, {})
    with pytest.raises(HardwareError, match="0 ns"):
        Estimates("p", 0.0, (layer("MVAU", 1),), 0, {})


def test_finns_analyses_are_read_layer_by_layer(tmp_path: Path) -> None:
    pytest.importorskip("finn")
    prepare(tmp_path / "finn-files")
    from brevitas_divqat.fpga.build.dataflow import to_dataflow
    from brevitas_divqat.fpga.build.folding import fold
    from qonnx.custom_op.registry import getCustomOp

    integer = ModelWrapper(str(finn_networks.chain(tmp_path / "model.onnx")))
    target = board("Pynq-Z1")
    with quiet():
        dataflow = fold(to_dataflow(integer), part=target.part, fps=20_000, clock_ns=10.0)
        before = dataflow.model.SerializeToString()
        found = estimate(dataflow, target.part, 10.0, resources=target.resources)
    assert dataflow.model.SerializeToString() == before
    assert [layer.name for layer in found.layers] == [node.name for node in dataflow.graph.node]
    assert {layer.backend for layer in found.layers if layer.kind == "Pool"} == {"hls"}
    for shown, node in zip(found.layers, dataflow.graph.node, strict=True):
        assert shown.layer == node.doc_string
        assert shown.cycles == getCustomOp(node).get_exp_cycles()
    products = [shown for shown in found.layers if shown.kind == "MVAU"]
    # One vector a pixel; each multiplies inputs by outputs, SIMD times PE of them in a cycle.
    for shown, node in zip(products, dataflow.get_nodes_by_op_type("MVAU_rtl"), strict=True):
        size = {name: getCustomOp(node).get_nodeattr(name) for name in ("MW", "MH", "PE", "SIMD")}
        vectors = int(np.prod(getCustomOp(node).get_nodeattr("numInputVectors")))
        work = vectors * size["MW"] * size["MH"]
        assert shown.cycles == work // (size["PE"] * size["SIMD"])
        assert shown.DSP > 0
    assert found.latency_cycles == sum(shown.cycles for shown in found.layers)  # a chain
    assert found.fps >= 20_000
    assert found.available["DSP"] == 220


def test_a_graph_without_backends_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("finn")
    prepare(tmp_path / "finn-files")
    from brevitas_divqat.fpga.build.dataflow import to_dataflow

    integer = ModelWrapper(str(finn_networks.chain(tmp_path / "model.onnx")))
    with quiet(), pytest.raises(HardwareError, match="FINN cannot estimate FMPadding_0"):
        estimate(to_dataflow(integer), "xc7z020clg400-1", 10.0)
