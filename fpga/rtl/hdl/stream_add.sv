// SPDX-License-Identifier: BSD-3-Clause
// Element-wise sum of two streams, as a residual connection needs it.
//
// Each input is signed or unsigned on its own. The sum leaves in OUT_BITS, two's complement where
// it can be negative; OUT_BITS must hold it. Both words of a pair are taken in the same cycle, one
// pair per cycle. Element 0 lies in the lowest bits; padding is ignored at the inputs and 0 at the
// output.

module stream_add #(
    parameter int unsigned A_BITS,    // of an element of in0
    parameter bit          A_SIGNED,  // whether in0 is two's complement
    parameter int unsigned B_BITS,    // of an element of in1
    parameter bit          B_SIGNED,  // whether in1 is two's complement
    parameter int unsigned OUT_BITS,  // of a sum
    parameter int unsigned PE,        // elements of a word

    localparam int unsigned A_WORD_BITS   = (PE * A_BITS + 7) / 8 * 8,
    localparam int unsigned B_WORD_BITS   = (PE * B_BITS + 7) / 8 * 8,
    localparam int unsigned OUT_WORD_BITS = (PE * OUT_BITS + 7) / 8 * 8
) (
    input wire ap_clk,
    input wire ap_rst_n,  // synchronous, active low

    /* verilator lint_off UNUSEDSIGNAL */  // padding is ignored
    input  wire [A_WORD_BITS-1:0] in0_V_TDATA,
    /* verilator lint_on UNUSEDSIGNAL */
    input  wire                   in0_V_TVALID,
    output wire                   in0_V_TREADY,

    /* verilator lint_off UNUSEDSIGNAL */  // padding is ignored
    input  wire [B_WORD_BITS-1:0] in1_V_TDATA,
    /* verilator lint_on UNUSEDSIGNAL */
    input  wire                   in1_V_TVALID,
    output wire                   in1_V_TREADY,

    output wire [OUT_WORD_BITS-1:0] out0_V_TDATA,
    output wire                     out0_V_TVALID,
    input  wire                     out0_V_TREADY
);
    logic full;  // a sum waits

    wire take = in0_V_TVALID && in1_V_TVALID && (!full || out0_V_TREADY);

    assign in0_V_TREADY  = take;
    assign in1_V_TREADY  = take;
    assign out0_V_TVALID = full;

    always_ff @(posedge ap_clk) begin
        if (!ap_rst_n) full <= 1'b0;
        else full <= take || (full && !out0_V_TREADY);
    end

    for (genvar p = 0; p < PE; p++) begin : lane
        wire [A_BITS-1:0] a_bits = in0_V_TDATA[p*A_BITS+:A_BITS];
        wire [B_BITS-1:0] b_bits = in1_V_TDATA[p*B_BITS+:B_BITS];
        /* verilator lint_off UNUSEDSIGNAL */  // the sign bit where the sum is as narrow
        wire signed [A_BITS:0] a = {A_SIGNED && a_bits[A_BITS-1], a_bits};
        wire signed [B_BITS:0] b = {B_SIGNED && b_bits[B_BITS-1], b_bits};
        /* verilator lint_on UNUSEDSIGNAL */
        logic [OUT_BITS-1:0] sum;

        always_ff @(posedge ap_clk) begin
            if (take) sum <= OUT_BITS'(a) + OUT_BITS'(b);
        end

        assign out0_V_TDATA[p*OUT_BITS+:OUT_BITS] = sum;
    end

    if (OUT_WORD_BITS > PE * OUT_BITS) begin : padding
        assign out0_V_TDATA[OUT_WORD_BITS-1:PE*OUT_BITS] = '0;
    end
endmodule
