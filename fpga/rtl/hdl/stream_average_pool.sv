// SPDX-License-Identifier: BSD-3-Clause
// Average pooling of integers: one output word per WINDOW input words, their element-wise sum
// shifted right by SHIFT, which rounds towards minus infinity.
//
// This is what a truncating average pool with rounding mode FLOOR computes. Only the low
// OUT_BITS of the shifted sum leave; a narrower one is sign- or zero-extended. A depthwise
// sliding window feeds the WINDOW words of an output pixel one after the other; a window takes
// WINDOW cycles without a bubble. Element 0 lies in the lowest bits; padding is ignored at the
// input and 0 at the output.

module stream_average_pool #(
    parameter int unsigned IN_BITS,   // of an input element
    parameter int unsigned OUT_BITS,  // of an output element
    parameter bit          SIGNED,    // whether elements are two's complement
    parameter int unsigned PE,        // elements of a word
    parameter int unsigned WINDOW,    // words of a window
    parameter int unsigned SHIFT,     // bits dropped from the sum

    localparam int unsigned IN_WORD_BITS  = (PE * IN_BITS + 7) / 8 * 8,
    localparam int unsigned OUT_WORD_BITS = (PE * OUT_BITS + 7) / 8 * 8
) (
    input wire ap_clk,
    input wire ap_rst_n,  // synchronous, active low

    /* verilator lint_off UNUSEDSIGNAL */  // padding is ignored
    input  wire [IN_WORD_BITS-1:0] in0_V_TDATA,
    /* verilator lint_on UNUSEDSIGNAL */
    input  wire                    in0_V_TVALID,
    output wire                    in0_V_TREADY,

    output wire [OUT_WORD_BITS-1:0] out0_V_TDATA,
    output wire                     out0_V_TVALID,
    input  wire                     out0_V_TREADY
);
    localparam int unsigned COUNT_BITS = WINDOW > 1 ? $clog2(WINDOW) : 1;
    // Sums are kept signed: an unsigned one needs a sign bit.
    localparam int unsigned SUM_BITS = IN_BITS + $clog2(WINDOW) + (SIGNED ? 0 : 1);

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
        wire [IN_BITS-1:0] bits = in0_V_TDATA[p*IN_BITS+:IN_BITS];
        /* verilator lint_off UNUSEDSIGNAL */  // the sign bit where the sum is as narrow
        wire signed [IN_BITS:0] element = {SIGNED && bits[IN_BITS-1], bits};
        /* verilator lint_on UNUSEDSIGNAL */
        logic signed [SUM_BITS-1:0] partial;  // sum of the window so far
        logic [OUT_BITS-1:0] result;

        wire signed [SUM_BITS-1:0] previous = first ? '0 : partial;
        wire signed [SUM_BITS-1:0] sum = previous + SUM_BITS'(element);

        always_ff @(posedge ap_clk) begin
            if (take) partial <= sum;
            if (take && last) result <= OUT_BITS'(sum >>> SHIFT);
        end

        assign out0_V_TDATA[p*OUT_BITS+:OUT_BITS] = result;
    end

    if (OUT_WORD_BITS > PE * OUT_BITS) begin : padding
        assign out0_V_TDATA[OUT_WORD_BITS-1:PE*OUT_BITS] = '0;
    end
endmodule
