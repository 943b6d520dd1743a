// SPDX-License-Identifier: BSD-3-Clause
// Copies of a stream: every word goes to COPIES branches.
//
// Each branch takes the word as soon as it is ready; the next word enters once all have taken it,
// in the same cycle as the last of them, so that branches that are always ready see a word per
// cycle.

module stream_duplicate #(
    parameter int unsigned WORD_BITS,  // of a word, padding included
    parameter int unsigned COPIES      // branches
) (
    input wire ap_clk,
    input wire ap_rst_n,  // synchronous, active low

    input  wire [WORD_BITS-1:0] in0_V_TDATA,
    input  wire                 in0_V_TVALID,
    output wire                 in0_V_TREADY,

    output wire [WORD_BITS-1:0] out_V_TDATA,   // the same for all branches
    output wire [   COPIES-1:0] out_V_TVALID,  // one bit per branch
    input  wire [   COPIES-1:0] out_V_TREADY
);
    logic [WORD_BITS-1:0] word;
    logic [   COPIES-1:0] pending;  // branches that have yet to take it

    wire take = in0_V_TVALID && in0_V_TREADY;

    assign in0_V_TREADY = &(~pending | out_V_TREADY);
    assign out_V_TDATA  = word;
    assign out_V_TVALID = pending;

    always_ff @(posedge ap_clk) begin
        if (take) word <= in0_V_TDATA;
        if (!ap_rst_n) pending <= '0;
        else pending <= take ? '1 : pending & ~out_V_TREADY;
    end
endmodule
