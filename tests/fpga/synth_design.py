# SPDX-License-Identifier: BSD-3-Clause
"""A folder of RTL as the generator writes it, of two layers that use every kind of cell.

One layer multiplies each pixel by a weight; after a FIFO, the other one takes the products of a
frame apart and together again in block RAMs of every width and adds up four sums of them:
score[k] = sum over i of weight[i] * x[i], i = k modulo 4.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from brevitas_divqat.fpga.rtl.layout import Channel, InputStream, Layer, Layout, OutputStream
from numpy.typing import NDArray

__all__ = ["BOARD", "HWC", "OUTPUTS", "scores", "write_design"]

HWC = (8, 8, 1)
PIXELS = 64
OUTPUTS = 4
MEMORIES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
WEIGHTS = (np.arange(PIXELS) * 37 + 11) % 256 - 128

SCALE = """// SPDX-License-Identifier: BSD-3-Clause
module scale (
  input wire clk, input wire rst_n,
  input wire [7:0] in_data, input wire in_valid, output wire in_ready,
  output logic signed [16:0] out_data, output logic out_valid, input wire out_ready);
  logic signed [7:0] weights [64];
  initial $readmemh("weights.dat", weights);
  logic [5:0] i;
  assign in_ready = !out_valid || out_ready;
  wire signed [16:0] product = $signed({1'b0, in_data}) * weights[i];
  always_ff @(posedge clk) begin
    if (out_ready) out_valid <= 1'b0;
    if (in_valid && in_ready) begin
      out_data <= product;
      out_valid <= 1'b1;
      i <= i + 1'b1;
    end
    if (!rst_n) begin i <= '0; out_valid <= 1'b0; end
  end
endmodule
"""

FIFO = """// SPDX-License-Identifier: BSD-3-Clause
module shallow (
  input wire clk, input wire rst_n,
  input wire [16:0] in_data, input wire in_valid, output wire in_ready,
  output wire [16:0] out_data, output wire out_valid, input wire out_ready);
  (* ram_style = "distributed" *) logic [16:0] words [32];
  logic [5:0] first, last;
  assign in_ready = last - first != 32, out_valid = last != first, out_data = words[first[4:0]];
  always_ff @(posedge clk) begin
    if (in_valid && in_ready) begin words[last[4:0]] <= in_data; last <= last + 1'b1; end
    if (out_valid && out_ready) first <= first + 1'b1;
    if (!rst_n) begin first <= '0; last <= '0; end
  end
endmodule
"""

SUMS = """// SPDX-License-Identifier: BSD-3-Clause
// A memory that holds something of each of a frame's 64 products.
module store #(parameter int BITS = 8, DEPTH = 512) (
  input wire clk, input wire write, input wire [5:0] place, input wire [BITS-1:0] data,
  input wire read, input wire [5:0] from, output logic [BITS-1:0] found);
  (* ram_style = "block" *) logic [BITS-1:0] words [DEPTH];
  // The frame's 64 places are spread over the memory's whole address range.
  localparam int SPREAD = DEPTH / 64;
  always_ff @(posedge clk) begin
    if (write) words[place * SPREAD + SPREAD / 3] <= data;
    if (read) found <= words[from * SPREAD + SPREAD / 3];
  end
endmodule

// Answers whether a memory's contents at power-up are what they must be.
module contents #(parameter int BITS = 8, DEPTH = 512, parameter FILE = "") (
  input wire clk, input wire step, output logic right);
  (* rom_style = "block" *) logic [BITS-1:0] words [DEPTH];
  initial $readmemh(FILE, words);
  localparam int PLACES = $clog2(DEPTH);
  logic [PLACES-1:0] k = 0, shown = 0;
  wire [13:0] p = 14'(shown);
  wire [35:0] word = {p[8:0] ^ 9'h155, p[13:5], ~p[8:0], p[8:0] ^ {9{^p}}};
  logic [BITS-1:0] found;
  logic known = 0;
  initial right = 1'b1;
  always_ff @(posedge clk) begin
    found <= words[k];
    known <= step;
    shown <= k;
    if (step) k <= k + 5;
    if (known && found != word[BITS-1:0]) right <= 1'b0;
  end
endmodule

module sums (
  input wire clk, input wire rst_n,
  input wire signed [16:0] in_data, input wire in_valid, output wire in_ready,
  output wire [23:0] out_data, output wire out_valid, output wire out_last, input wire out_ready);
  // A frame is written, then read and added up, then sent.
  logic [1:0] phase;
  logic [6:0] i;
  logic reading;
  logic [1:0] lane;
  wire write = phase == 0 && in_valid;
  wire read = phase == 1 && i < 64;
  assign in_ready = phase == 0;
  wire [35:0] wide;
  wire [17:0] half;
  wire [8:0] nine;
  wire [3:0] four;
  wire [1:0] two;
  wire one;
  // A product's 17 bits are stored in pieces, and as a whole beside their complement.
  wire [35:0] whole = {~in_data, 2'b10, in_data};
  // A frame is read from its end; two memories have one address for both, the others two.
  wire [5:0] either = write ? i[5:0] : ~i[5:0];
  store #(.BITS(36), .DEPTH(512)) s36 (
    .clk, .write, .place(i[5:0]), .data(whole), .read, .from(~i[5:0]), .found(wide));
  store #(.BITS(18), .DEPTH(1024)) s18 (
    .clk, .write, .place(either), .data({1'b0, in_data}), .read, .from(either), .found(half));
  store #(.BITS(9), .DEPTH(2048)) s9 (
    .clk, .write, .place(i[5:0]), .data(in_data[8:0]), .read, .from(~i[5:0]), .found(nine));
  store #(.BITS(4), .DEPTH(4096)) s4 (
    .clk, .write, .place(either), .data(in_data[12:9]), .read, .from(either), .found(four));
  store #(.BITS(2), .DEPTH(8192)) s2 (
    .clk, .write, .place(i[5:0]), .data(in_data[14:13]), .read, .from(~i[5:0]), .found(two));
  store #(.BITS(1), .DEPTH(16384)) s1 (
    .clk, .write, .place(i[5:0]), .data(in_data[15]), .read, .from(~i[5:0]), .found(one));
  wire signed [16:0] product = {wide[16], one, two, four, nine};
  wire same = product == wide[16:0] && product == half[16:0] && wide[35:17] == {~product, 2'b10};
  wire [5:0] right;
  contents #(.BITS(36), .DEPTH(512), .FILE("contents_36.dat")) c36 (
    .clk, .step(read), .right(right[0]));
  contents #(.BITS(18), .DEPTH(1024), .FILE("contents_18.dat")) c18 (
    .clk, .step(read), .right(right[1]));
  contents #(.BITS(9), .DEPTH(2048), .FILE("contents_9.dat")) c9 (
    .clk, .step(read), .right(right[2]));
  contents #(.BITS(4), .DEPTH(4096), .FILE("contents_4.dat")) c4 (
    .clk, .step(read), .right(right[3]));
  contents #(.BITS(2), .DEPTH(8192), .FILE("contents_2.dat")) c2 (
    .clk, .step(read), .right(right[4]));
  contents #(.BITS(1), .DEPTH(16384), .FILE("contents_1.dat")) c1 (
    .clk, .step(read), .right(right[5]));
  logic signed [23:0] acc [4];
  logic wrong;
  assign out_data = wrong || right != '1 ? 24'h800000 | 24'(right) : acc[i[1:0]];
  assign out_valid = phase == 2, out_last = phase == 2 && i == 3;
  always_ff @(posedge clk) begin
    reading <= read;
    lane <= ~i[1:0];
    if (write) begin
      i <= i + 1'b1;
      if (i == 63) begin
        phase <= 1;
        i <= '0;
        for (int k = 0; k < 4; k++) acc[k] <= '0;
      end
    end
    if (phase == 1) begin
      i <= i + 1'b1;
      if (i == 65) begin phase <= 2; i <= '0; end
    end
    if (reading) begin
      acc[lane] <= acc[lane] + 24'(product);
      if (!same) wrong <= 1'b1;
    end
    if (out_valid && out_ready) begin
      i <= i + 1'b1;
      if (out_last) begin phase <= 0; i <= '0; end
    end
    if (!rst_n) begin phase <= 0; i <= '0; reading <= 1'b0; wrong <= 1'b0; end
  end
endmodule
"""

TOP = """// SPDX-License-Identifier: BSD-3-Clause
module accelerator (
  input wire clk, input wire rst_n,
  input wire [7:0] s_axis_tdata, input wire s_axis_tvalid, output wire s_axis_tready,
  output wire [23:0] m_axis_tdata, output wire m_axis_tvalid, output wire m_axis_tlast,
  input wire m_axis_tready
`ifdef DIVQAT_PROBES
  , output wire probe_in_valid, probe_in_ready, probe_out_valid, probe_out_ready
  , output wire [31:0] probe_count, probe_max_count
`endif
);
  wire signed [16:0] a, b;
  wire a_valid, a_ready, b_valid, b_ready;
  scale layer_scale (
    .clk, .rst_n, .in_data(s_axis_tdata), .in_valid(s_axis_tvalid), .in_ready(s_axis_tready),
    .out_data(a), .out_valid(a_valid), .out_ready(a_ready));
  shallow fifo_0 (
    .clk, .rst_n, .in_data(a), .in_valid(a_valid), .in_ready(a_ready),
    .out_data(b), .out_valid(b_valid), .out_ready(b_ready));
  sums layer_sums (
    .clk, .rst_n, .in_data(b), .in_valid(b_valid), .in_ready(b_ready),
    .out_data(m_axis_tdata), .out_valid(m_axis_tvalid), .out_last(m_axis_tlast),
    .out_ready(m_axis_tready));
`ifdef DIVQAT_PROBES
  assign probe_in_valid = a_valid, probe_in_ready = a_ready;
  assign probe_out_valid = b_valid, probe_out_ready = b_ready;
  assign probe_count = '0, probe_max_count = '0;
`endif
endmodule
"""

BOARD = """// SPDX-License-Identifier: BSD-3-Clause
// Everything of the accelerator's ports is shifted in and out through single pins.
module board_top (input wire clk, input wire in, output wire out);
  logic [9:0] taken = '0;
  logic [26:0] shown = '0;
  wire [23:0] data;
  wire valid, last, ready;
  accelerator network (
    .clk, .rst_n(taken[0]), .s_axis_tdata(taken[8:1]), .s_axis_tvalid(taken[9]),
    .s_axis_tready(ready), .m_axis_tdata(data), .m_axis_tvalid(valid), .m_axis_tlast(last),
    .m_axis_tready(in));
  always_ff @(posedge clk) begin
    taken <= {taken[8:0], in};
    shown <= valid ? {data, last, ready, valid} : {1'b0, shown[26:1]};
  end
  assign out = shown[0];
endmodule
"""


def scores(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return what the design must answer to (N, H, W, C) images: (N, 4)."""
    products = images.reshape(len(images), PIXELS).astype(np.int64) * WEIGHTS
    return products.reshape(len(images), PIXELS // OUTPUTS, OUTPUTS).sum(1)


def _word(k: int) -> int:
    """Return what stands at a place of the memories that are never written."""
    low, parity = k & 511, 511 * (k.bit_count() & 1)
    return (low ^ 0x155) << 27 | (k >> 5) << 18 | (~low & 511) << 9 | (low ^ parity)


def write_design(folder: Path) -> Layout:
    """Write the design, its weights, `files.f` and `rtl.json` into a new folder."""
    folder.mkdir(parents=True)
    texts = {"scale.sv": SCALE, "shallow.sv": FIFO, "sums.sv": SUMS, "accelerator.sv": TOP}
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "weights.dat").write_text("".join(f"{w & 255:02x}\n" for w in WEIGHTS))
    for bits, depth in MEMORIES:
        words = (_word(place) % (1 << bits) for place in range(depth))
        (folder / f"contents_{bits}.dat").write_text("".join(f"{word:x}\n" for word in words))
    (folder / "files.f").write_text("".join(f"{name}\n" for name in texts))
    layout = Layout(
        top="accelerator",
        input=InputStream(8, False, 1, 8, PIXELS, HWC),
        output=OutputStream(24, True, 1, 24, OUTPUTS, OUTPUTS),
        channels=(Channel("Scale -> Sums", "fifo_0", 17, 32),),
        layers=(
            Layer("Scale", "MVAU", "conv", "layer_scale", "scale", 64, {"LUT": 40.0, "DSP": 1.0}),
            Layer("Sums", "Pool", "pool", "layer_sums", "sums", 134),
        ),
        cycles_per_frame=134,
        part="xc7z020clg400-1",
        clock_ns=10.0,
        model_sha256="0" * 64,
        exported_sha256="0" * 64,
    )
    layout.write(folder)
    return layout
