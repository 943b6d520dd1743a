// SPDX-License-Identifier: BSD-3-Clause
// The class numbers of the K largest scores, the largest first, the lower number first where scores
// are equal.
//
// LABELS / PE words of PE scores enter, K words with one class number each leave. The K best so far
// are kept sorted; a score moves in behind those that are at least as large. Numbers leave from a
// register of their own, so that the next frame enters meanwhile: a frame takes LABELS / PE or K
// cycles, whichever is more. Score 0 lies in the lowest bits; padding is ignored at the input and 0
// at the output.

module stream_label_select #(
    parameter int unsigned BITS,       // of a score
    parameter bit          SIGNED,     // whether scores are two's complement
    parameter int unsigned PE,         // scores of a word
    parameter int unsigned LABELS,     // scores of a frame, a multiple of PE
    parameter int unsigned K,          // class numbers of a frame, at most LABELS
    parameter int unsigned INDEX_BITS, // of a class number

    localparam int unsigned IN_WORD_BITS  = (PE * BITS + 7) / 8 * 8,
    localparam int unsigned OUT_WORD_BITS = (INDEX_BITS + 7) / 8 * 8
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
    localparam int unsigned COUNT_BITS = $clog2(K + 1);

    if (LABELS % PE != 0) begin : wrong_labels
        $error("stream_label_select: LABELS must be a multiple of PE");
    end
    if (K < 1 || K > LABELS) begin : wrong_k
        $error("stream_label_select: K must be 1 ... LABELS");
    end
    if ($clog2(LABELS) > INDEX_BITS) begin : wrong_index_bits
        $error("stream_label_select: INDEX_BITS must hold LABELS - 1");
    end

    // The best K of the frame so far, and the same with the word at the input moved in.
    logic [K-1:0]                 used, used_next;
    logic [K-1:0][BITS-1:0]       score, score_next;
    logic [K-1:0][INDEX_BITS-1:0] label, label_next;

    logic [INDEX_BITS-1:0]        base;      // class number of the input's element 0
    logic [K-1:0][INDEX_BITS-1:0] leaving;   // the one that leaves next at index 0
    logic [COUNT_BITS-1:0]        left;      // of them

    wire last = base == INDEX_BITS'(LABELS - PE);
    wire take = in0_V_TVALID && in0_V_TREADY;
    wire give = out0_V_TVALID && out0_V_TREADY;

    assign in0_V_TREADY  = !last || left == '0 || (left == COUNT_BITS'(1) && out0_V_TREADY);
    assign out0_V_TDATA  = OUT_WORD_BITS'(leaving[0]);
    assign out0_V_TVALID = left != '0;

    function automatic logic above(input logic [BITS-1:0] a, input logic [BITS-1:0] b);
        return SIGNED ? $signed(a) > $signed(b) : a > b;
    endfunction

    always_comb begin
        used_next  = used;
        score_next = score;
        label_next = label;
        for (int p = 0; p < PE; p++) begin
            // From the last place up: those that it beats move down by one.
            for (int k = K - 1; k >= 0; k--) begin
                if (!used_next[k] || above(in0_V_TDATA[p*BITS+:BITS], score_next[k])) begin
                    if (k + 1 < int'(K)) begin
                        used_next[k+1]  = used_next[k];
                        score_next[k+1] = score_next[k];
                        label_next[k+1] = label_next[k];
                    end
                    used_next[k]  = 1'b1;
                    score_next[k] = in0_V_TDATA[p*BITS+:BITS];
                    label_next[k] = base + INDEX_BITS'(p);
                end
            end
        end
    end

    always_ff @(posedge ap_clk) begin
        if (take) begin
            score <= score_next;
            label <= label_next;
        end
        if (take && last) leaving <= label_next;
        else if (give) leaving <= leaving >> INDEX_BITS;
        if (!ap_rst_n) begin
            used <= '0;
            base <= '0;
            left <= '0;
        end else begin
            if (take) begin
                used <= last ? '0 : used_next;
                base <= last ? '0 : base + INDEX_BITS'(PE);
            end
            if (take && last) left <= COUNT_BITS'(K);
            else if (give) left <= left - 1'b1;
        end
    end
endmodule
