// SPDX-License-Identifier: BSD-3-Clause
// Depthwise convolution: per channel, the dot product of its window and its weights.
//
// A depthwise sliding window feeds, for each output pixel and each fold of PE channels, KERNEL
// words of PE activations; one word of PE signed accumulators leaves after each KERNEL words.
// One word enters per cycle: it and its weights are registered, then their products, then the
// sums. Only a finished sum that has no room stops the pipeline. ACC_BITS must hold every final
// sum.
//
// WEIGHTS_FILE, for $readmemh, has CHANNELS / PE * KERNEL words of PE weights in two's complement:
// line f * KERNEL + k holds weight k of the channels f * PE ... f * PE + PE - 1. Element 0 lies in
// the lowest bits everywhere; padding is ignored at the input and 0 at the output.

module stream_depthwise_mvu #(
    parameter int unsigned ACT_BITS,     // of an activation
    parameter bit          ACT_SIGNED,   // whether activations are two's complement
    parameter int unsigned WEIGHT_BITS,  // of a weight
    parameter int unsigned ACC_BITS,     // of an accumulator
    parameter int unsigned CHANNELS,     // a multiple of PE
    parameter int unsigned KERNEL,       // elements of a window
    parameter int unsigned PE,           // channels of a word
    parameter              WEIGHTS_FILE,

    localparam int unsigned IN_WORD_BITS  = (PE * ACT_BITS + 7) / 8 * 8,
    localparam int unsigned OUT_WORD_BITS = (PE * ACC_BITS + 7) / 8 * 8
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
    localparam int unsigned DEPTH = CHANNELS / PE * KERNEL;
    localparam int unsigned ADDRESS_BITS = DEPTH > 1 ? $clog2(DEPTH) : 1;
    localparam int unsigned COUNT_BITS = KERNEL > 1 ? $clog2(KERNEL) : 1;
    // Operands are multiplied signed: an unsigned activation needs a sign bit.
    localparam int unsigned FACTOR_BITS = ACT_BITS + (ACT_SIGNED ? 0 : 1);
    localparam int unsigned PRODUCT_BITS = FACTOR_BITS + WEIGHT_BITS;

    if (CHANNELS % PE != 0) begin : wrong_channels
        $error("stream_depthwise_mvu: CHANNELS must be a multiple of PE");
    end

    logic [PE*WEIGHT_BITS-1:0] memory[DEPTH];
    initial $readmemh(WEIGHTS_FILE, memory);

    logic [ADDRESS_BITS-1:0] address;  // of the weights of the word at the input
    logic [COUNT_BITS-1:0]   count;    // words of the window taken so far

    // Stage 1: activations and weights. Stage 2: products. Stage 3: sums.
    logic [PE*ACT_BITS-1:0]    activations;
    logic [PE*WEIGHT_BITS-1:0] weights;
    logic valid1, first1, last1;
    logic valid2, first2, last2;
    logic full;  // a finished sum waits

    wire step = !(valid2 && last2 && full && !out0_V_TREADY);
    wire take = in0_V_TVALID && step;
    wire done = valid2 && last2 && step;
    wire last = count == COUNT_BITS'(KERNEL - 1);

    assign in0_V_TREADY  = step;
    assign out0_V_TVALID = full;

    always_ff @(posedge ap_clk) begin
        if (take) begin
            activations <= in0_V_TDATA[PE*ACT_BITS-1:0];
            weights     <= memory[address];
        end
        if (step) begin
            first1 <= count == '0;
            last1  <= last;
            first2 <= first1;
            last2  <= last1;
        end
        if (!ap_rst_n) begin
            address <= '0;
            count   <= '0;
            valid1  <= 1'b0;
            valid2  <= 1'b0;
            full    <= 1'b0;
        end else begin
            if (take) begin
                address <= address == ADDRESS_BITS'(DEPTH - 1) ? '0 : address + 1'b1;
                count   <= last ? '0 : count + 1'b1;
            end
            if (step) begin
                valid1 <= in0_V_TVALID;
                valid2 <= valid1;
            end
            full <= done || (full && !out0_V_TREADY);
        end
    end

    for (genvar p = 0; p < PE; p++) begin : lane
        wire [ACT_BITS-1:0] bits = activations[p*ACT_BITS+:ACT_BITS];
        wire signed [FACTOR_BITS-1:0] activation = FACTOR_BITS'({1'b0, bits});
        wire signed [WEIGHT_BITS-1:0] weight = weights[p*WEIGHT_BITS+:WEIGHT_BITS];
        /* verilator lint_off UNUSEDSIGNAL */  // high bits where accumulators are narrower
        logic signed [PRODUCT_BITS-1:0] product;
        /* verilator lint_on UNUSEDSIGNAL */
        logic signed [ACC_BITS-1:0] partial;  // sum of the window so far
        logic [ACC_BITS-1:0] result;

        wire signed [ACC_BITS-1:0] previous = first2 ? '0 : partial;
        wire signed [ACC_BITS-1:0] sum = previous + ACC_BITS'(product);

        always_ff @(posedge ap_clk) begin
            if (step) product <= activation * weight;
            if (step && valid2) partial <= sum;
            if (done) result <= sum;
        end

        assign out0_V_TDATA[p*ACC_BITS+:ACC_BITS] = result;
    end

    if (OUT_WORD_BITS > PE * ACC_BITS) begin : padding
        assign out0_V_TDATA[OUT_WORD_BITS-1:PE*ACC_BITS] = '0;
    end
endmodule
