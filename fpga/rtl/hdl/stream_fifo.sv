// SPDX-License-Identifier: BSD-3-Clause
// A FIFO between two layers: FINN's, with its occupancy.
//
// With DIVQAT_GAUGE (simulation only) it holds any number of words: what it then reaches is the
// depth that never blocks.
module stream_fifo #(
    parameter int unsigned BITS,  // of a word
    parameter int unsigned DEPTH  // words that it holds, at least 2
) (
    input wire clk,
    input wire rst_n,  // synchronous, active low

    input  wire [BITS-1:0] in_tdata,
    input  wire            in_tvalid,
    output wire            in_tready,

    output wire [BITS-1:0] out_tdata,
    output wire            out_tvalid,
    input  wire            out_tready,

    output wire [31:0] count,     // words held
    output wire [31:0] max_count  // the most since reset
);

`ifdef DIVQAT_GAUGE

  logic [BITS-1:0] held[$];
  logic [BITS-1:0] head;
  logic [31:0] now, most;
  logic valid;

  assign in_tready  = 1'b1;
  assign out_tdata  = head;
  assign out_tvalid = valid;
  assign count      = now;
  assign max_count  = most;

  always @(posedge clk) begin
    if (!rst_n) begin
      held.delete();
      now   <= 0;
      most  <= 0;
      valid <= 1'b0;
    end else begin
      if (valid && out_tready) void'(held.pop_front());
      // The word that enters now can leave in the next cycle but one, as in the real FIFO.
      valid <= held.size() != 0;
      if (held.size() != 0) head <= held[0];
      if (in_tvalid) held.push_back(in_tdata);
      now <= held.size();
      if (held.size() > most) most <= held.size();
    end
  end

`else

  wire [$clog2(DEPTH+1):0] held, most;

  assign count     = 32'(held);
  assign max_count = 32'(most);

  fifo #(
      .DEPTH     (DEPTH),
      .DATA_WIDTH(BITS),
      .RAM_STYLE ("auto")
  ) storage (
      .clk     (clk),
      .rst     (!rst_n),
      .idat    (in_tdata),
      .ivld    (in_tvalid),
      .irdy    (in_tready),
      .odat    (out_tdata),
      .ovld    (out_tvalid),
      .ordy    (out_tready),
      .count   (held),
      .maxcount(most)
  );

`endif

endmodule
