// SPDX-License-Identifier: BSD-3-Clause
// Maximum pooling of a stream: one output word per WINDOW input words, their element-wise maximum.
//
// A depthwise sliding window feeds the WINDOW words of an output pixel one after the other. Every
// word but the last one of a window is taken while an earlier result still waits, so a window takes
// WINDOW cycles without a bubble. Element 0 lies in the lowest bits; bits above PE * BITS are
// padding, ignored at the input and 0 at the output.

module stream_max_pool #(
    parameter int unsigned BITS,    // of an element
    parameter bit          SIGNED,  // whether elements are two's complement
    parameter int unsigned PE,      // elements of a word
    parameter int unsigned WINDOW,  // words of a window

    localparam int unsigned WORD_BITS = (PE * BITS + 7) / 8 * 8
) (
    input wire ap_clk,
    input wire ap_rst_n,  // synchronous, active low

    /* verilator lint_off UNUSEDSIGNAL */  // padding is ignored
    input  wire [WORD_BITS-1:0] in0_V_TDATA,
    /* verilator lint_on UNUSEDSIGNAL */
    input  wire                 in0_V_TVALID,
    output wire                 in0_V_TREADY,

    output wire [WORD_BITS-1:0] out0_V_TDATA,
    output wire                 out0_V_TVALID,
    input  wire                 out0_V_TREADY
);
    localparam int unsigned COUNT_BITS = WINDOW > 1 ? $clog2(WINDOW) : 1;

    logic [COUNT_BITS-1:0] count;  // words of the window taken so far
    logic                  full;   // a result waits

    wire first = count == '0;
    wire last  = count == COUNT_BITS'(WINDOW - 1);
    wire take  = in0_V_TVALID && in0_V_TREADY;

    assign in0_V_TREADY  = !last || !full || out0_V_TREADY;
    assign out0_V_TVALID = full;

    always_ff @(posedge ap_clk) begin
        if (!ap_rst_n) begin
            count <= '0;
            full  <= 1'b0;
        end else begin
            if (take) count <= last ? '0 : count + 1'b1;
            full <= (take && last) || (full && !out0_V_TREADY);
        end
    end

    for (genvar p = 0; p < PE; p++) begin : lane
        wire [BITS-1:0] element = in0_V_TDATA[p*BITS+:BITS];
        logic [BITS-1:0] best;  // of the window so far
        logic [BITS-1:0] result;

        wire above = SIGNED ? $signed(element) > $signed(best) : element > best;
        wire [BITS-1:0] larger = first || above ? element : best;

        always_ff @(posedge ap_clk) begin
            if (take) best <= larger;
            if (take && last) result <= larger;
        end

        assign out0_V_TDATA[p*BITS+:BITS] = result;
    end

    if (WORD_BITS > PE * BITS) begin : padding
        assign out0_V_TDATA[WORD_BITS-1:PE*BITS] = '0;
    end
endmodule
