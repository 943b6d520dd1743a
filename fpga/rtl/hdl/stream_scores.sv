// SPDX-License-Identifier: BSD-3-Clause
// The scores of a network, one per word: words of PE scores enter, single scores leave.
//
// Scores are sign- or zero-extended to OUT_BITS, whole bytes. TLAST marks the last of the OUTPUTS
// scores of a frame. One score leaves per cycle; the next word enters together with the last score
// of the one before. Score 0 lies in the lowest bits; padding is ignored.

module stream_scores #(
    parameter int unsigned BITS,     // of a score that enters
    parameter bit          SIGNED,   // whether scores are two's complement
    parameter int unsigned PE,       // scores of a word that enters
    parameter int unsigned OUTPUTS,  // scores of a frame, a multiple of PE
    parameter int unsigned OUT_BITS, // of a score that leaves, a multiple of 8, at least BITS

    localparam int unsigned WORD_BITS = (PE * BITS + 7) / 8 * 8
) (
    input wire ap_clk,
    input wire ap_rst_n,  // synchronous, active low

    /* verilator lint_off UNUSEDSIGNAL */  // padding is ignored
    input  wire [WORD_BITS-1:0] in0_V_TDATA,
    /* verilator lint_on UNUSEDSIGNAL */
    input  wire                 in0_V_TVALID,
    output wire                 in0_V_TREADY,

    output wire [OUT_BITS-1:0] out0_V_TDATA,
    output wire                out0_V_TVALID,
    output wire                out0_V_TLAST,
    input  wire                out0_V_TREADY
);
    localparam int unsigned LANE_BITS = PE > 1 ? $clog2(PE) : 1;
    localparam int unsigned POSITION_BITS = OUTPUTS > 1 ? $clog2(OUTPUTS) : 1;

    if (OUTPUTS % PE != 0) begin : wrong_outputs
        $error("stream_scores: OUTPUTS must be a multiple of PE");
    end
    if (OUT_BITS % 8 != 0 || OUT_BITS < BITS) begin : wrong_out_bits
        $error("stream_scores: OUT_BITS must be bytes that hold BITS");
    end

    logic [PE-1:0][BITS-1:0]  scores;    // the one that leaves next at index 0
    logic [LANE_BITS-1:0]     lane;      // of the score that leaves next
    logic [POSITION_BITS-1:0] position;  // of it in the frame
    logic                     full;      // scores are left

    wire last_lane = lane == LANE_BITS'(PE - 1);
    wire last_position = position == POSITION_BITS'(OUTPUTS - 1);
    wire take = in0_V_TVALID && in0_V_TREADY;
    wire give = full && out0_V_TREADY;
    /* verilator lint_off UNUSEDSIGNAL */  // the sign bit where OUT_BITS is BITS
    wire signed [BITS:0] score = {SIGNED && scores[0][BITS-1], scores[0]};
    /* verilator lint_on UNUSEDSIGNAL */

    assign in0_V_TREADY  = !full || (out0_V_TREADY && last_lane);
    assign out0_V_TDATA  = OUT_BITS'(score);
    assign out0_V_TVALID = full;
    assign out0_V_TLAST  = last_position;

    always_ff @(posedge ap_clk) begin
        if (take) scores <= in0_V_TDATA[PE*BITS-1:0];
        else if (give) scores <= scores >> BITS;
        if (!ap_rst_n) begin
            lane     <= '0;
            position <= '0;
            full     <= 1'b0;
        end else begin
            if (give) begin
                lane     <= last_lane ? '0 : lane + 1'b1;
                position <= last_position ? '0 : position + 1'b1;
            end
            full <= take || (full && !(give && last_lane));
        end
    end
endmodule
