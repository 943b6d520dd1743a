# SPDX-License-Identifier: BSD-3-Clause
"""A folder of RTL as the generator writes it, of a design that fits on a page.

It computes one matrix product, in a way that needs its FIFOs: each word is forked; one branch adds
up the whole frame, the other waits in a FIFO until the sum is known. score[k] = sum over i of
(weight[k, i] - 1) * x[i], plus the sum of x.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from brevitas_divqat.fpga.rtl.layout import Channel, InputStream, Layer, Layout, OutputStream
from numpy.typing import NDArray

__all__ = ["FAULTS", "write_tiny_accelerator"]

FAULTS = {
    "none": ("", ""),
    "early TLAST": ("m_axis_tlast = k == OUTPUTS-1", "m_axis_tlast = k == OUTPUTS-2"),
    "unstable TVALID": ("assign m_axis_tvalid = busy", "assign m_axis_tvalid = busy && !tick"),
    "unstable TDATA": ("= acc[k]", "= waited ? ~acc[k] : acc[k]"),
    "dropped word": ("rest_valid = rest_out_valid", "rest_valid = rest_out_valid && !drop"),
    "surplus word": ("if (k == LAST) begin", "if (k == LAST + extra) begin"),
    "wrong product": ("acc[j] + term[j]", "acc[j] + term[j] + (x == 200)"),
    "no reset": ("if (!rst_n) filled <= 0;", "if (0) filled <= 0;"),
}
"""Name of a planted fault: the text of the right design, the text of the wrong one."""

DESIGN = """// SPDX-License-Identifier: BSD-3-Clause
module tiny_fifo #(parameter int BITS = 8, DEPTH = 2) (
  input wire clk, input wire rst_n,
  input wire [BITS-1:0] in_data, input wire in_valid, output wire in_ready,
  output wire [BITS-1:0] out_data, output wire out_valid, input wire out_ready,
  output logic [31:0] count, max_count);
`ifdef DIVQAT_GAUGE
  localparam int SIZE = 4096;
`else
  localparam int SIZE = DEPTH;
`endif
  logic [BITS-1:0] words [SIZE];
  int unsigned first, last;
  assign in_ready = count < SIZE, out_valid = count > 0, out_data = words[first];
  wire push = in_valid && in_ready, pop = out_valid && out_ready;
  wire [31:0] next = count + 32'(push) - 32'(pop);
  always_ff @(posedge clk) if (!rst_n) begin
    count <= 0; max_count <= 0; first <= 0; last <= 0;
  end else begin
    count <= next;
    if (next > max_count) max_count <= next;
    if (push) begin words[last] <= in_data; last <= last == SIZE-1 ? 0 : last + 1; end
    if (pop) first <= first == SIZE-1 ? 0 : first + 1;
  end
endmodule

module accelerator (
  input wire clk, input wire rst_n,
  input wire [7:0] s_axis_tdata, input wire s_axis_tvalid, output wire s_axis_tready,
  output wire [23:0] m_axis_tdata, output wire m_axis_tvalid, output wire m_axis_tlast,
  input wire m_axis_tready
`ifdef DIVQAT_PROBES
  , output wire [1:0] probe_in_valid, probe_in_ready, probe_out_valid, probe_out_ready
  , output wire [63:0] probe_count, probe_max_count
`endif
);
  localparam int INPUTS = @INPUTS@, OUTPUTS = @OUTPUTS@, LAST = OUTPUTS - 1;
  logic signed [7:0] weights [INPUTS*OUTPUTS];
  initial $readmemh("weights.dat", weights);

  // Fork: a word enters both branches or none.
  logic [31:0] filled;
  logic [23:0] total;
  wire sum_in_valid = filled == INPUTS, sum_in_ready, rest_in_ready;
  assign s_axis_tready = rest_in_ready && filled < INPUTS;
  wire enter = s_axis_tvalid && s_axis_tready;
  always_ff @(posedge clk) begin
    if (enter) begin
      filled <= filled + 1;
      total <= filled == 0 ? 24'(s_axis_tdata) : total + 24'(s_axis_tdata);
    end
    if (sum_in_valid && sum_in_ready) filled <= 0;
    if (!rst_n) filled <= 0;
  end

  wire [7:0] x; wire rest_out_valid, rest_valid; logic rest_ready;
  wire [23:0] sum; wire sum_valid; logic sum_ready;
  wire rest_in_valid = s_axis_tvalid && filled < INPUTS;
  wire [31:0] rest_count, rest_max, sum_count, sum_max;
  tiny_fifo #(.BITS(8), .DEPTH(@REST_DEPTH@)) fifo_rest (.clk, .rst_n, .in_data(s_axis_tdata),
    .in_valid(rest_in_valid), .in_ready(rest_in_ready), .out_data(x), .out_valid(rest_out_valid),
    .out_ready(rest_ready), .count(rest_count), .max_count(rest_max));
  tiny_fifo #(.BITS(24), .DEPTH(@SUM_DEPTH@)) fifo_sum (.clk, .rst_n, .in_data(total),
    .in_valid(sum_in_valid), .in_ready(sum_in_ready), .out_data(sum), .out_valid(sum_valid),
    .out_ready(sum_ready), .count(sum_count), .max_count(sum_max));
  logic [15:0] words; wire drop = words == 37;
  assign rest_valid = rest_out_valid;

  // Join: the sum first, then the words, then the scores go out.
  logic signed [23:0] acc [OUTPUTS];
  logic signed [23:0] term [OUTPUTS];
  logic [15:0] i, k;
  logic started, busy, tick, waited, extra;
  assign sum_ready = !started && !busy, rest_ready = started && !busy;
  always_comb for (int j = 0; j < OUTPUTS; j++)
    term[j] = 24'(signed'(weights[j*INPUTS+i]) - 8'sd1) * $signed({16'b0, x});
  assign m_axis_tvalid = busy, m_axis_tdata = acc[k], m_axis_tlast = k == OUTPUTS-1;
  always_ff @(posedge clk) if (!rst_n) begin
    started <= 0; busy <= 0; i <= 0; k <= 0; tick <= 0; waited <= 0; extra <= 0; words <= 0;
  end else begin
    tick <= !tick;
    waited <= m_axis_tvalid && !m_axis_tready;
    if (rest_out_valid && rest_ready) words <= words + 1;
    if (sum_ready && sum_valid) begin
      started <= 1;
      for (int j = 0; j < OUTPUTS; j++) acc[j] <= sum;
    end
    if (rest_ready && rest_valid) begin
      for (int j = 0; j < OUTPUTS; j++) acc[j] <= acc[j] + term[j];
      i <= i == INPUTS-1 ? 0 : i + 1;
      if (i == INPUTS-1) begin started <= 0; busy <= 1; end
    end
    if (m_axis_tvalid && m_axis_tready) begin
      k <= k + 1;
      if (k == LAST) begin k <= 0; busy <= 0; extra <= words >= 64; end
    end
  end
`ifdef DIVQAT_PROBES
  assign probe_in_valid = {sum_in_valid, rest_in_valid};
  assign probe_in_ready = {sum_in_ready, rest_in_ready};
  assign probe_out_valid = {sum_valid, rest_out_valid};
  assign probe_out_ready = {sum_ready, rest_ready};
  assign probe_count = {sum_count, rest_count};
  assign probe_max_count = {sum_max, rest_max};
`endif
endmodule
"""


def write_tiny_accelerator(
    folder: Path,
    weights: NDArray[np.int64],
    *,
    shape: tuple[int, int, int],
    rest_depth: int | None = None,
    sum_depth: int = 2,
    model_sha256: str = "0" * 64,
    fault: str = "none",
) -> Layout:
    """Write the design, its weights, `files.f` and `rtl.json`.

    Args:
        folder: receives them; created.
        weights: (K, H*W*C) of -8 … 7, in the order in which the elements enter.
        shape: (H, W, C) of an image.
        rest_depth: words of the FIFO that must hold a whole frame; by default as many as it needs.
        sum_depth: words of the other FIFO.
        model_sha256: of the graph that it is said to come from.
        fault: a name of ``FAULTS``.

    Returns:
        What `rtl.json` says.
    """
    outputs, inputs = weights.shape
    depth = inputs + 1 if rest_depth is None else rest_depth
    right, wrong = FAULTS[fault]
    assert right in DESIGN
    text = DESIGN.replace(right, wrong)
    for name, value in {
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "REST_DEPTH": depth,
        "SUM_DEPTH": sum_depth,
    }.items():
        text = text.replace(f"@{name}@", str(value))
    folder.mkdir(parents=True)
    (folder / "accelerator.sv").write_text(text)
    (folder / "weights.dat").write_text("".join(f"{w & 255:02x}\n" for w in weights.reshape(-1)))
    (folder / "files.f").write_text("accelerator.sv\n")
    layout = Layout(
        top="accelerator",
        input=InputStream(8, False, 1, 8, inputs, shape),
        output=OutputStream(20, True, 1, 24, outputs, outputs),
        channels=(
            Channel("fork -> join", "fifo_rest", 8, depth),
            Channel("sum -> join", "fifo_sum", 24, sum_depth),
        ),
        layers=(Layer("Join", "MVAU", "fc", "join", "accelerator", inputs),),
        cycles_per_frame=inputs + outputs + 1,
        part="xc7z020clg400-1",
        clock_ns=10.0,
        model_sha256=model_sha256,
        exported_sha256="0" * 64,
    )
    layout.write(folder)
    return layout
