// SPDX-License-Identifier: BSD-3-Clause
// Bytes of frames in block RAM. What is written counts once it is committed, and can be taken
// back until then: a frame that arrives damaged never reaches the accelerator.

module frame_buffer #(
  parameter int ADDRESS_BITS = 11
) (
  input  wire        clk,
  input  wire        clear,     // forgets everything, synchronous
  input  wire  [7:0] in_data,
  input  wire        in_valid,  // ignored while full
  output wire        full,
  input  wire        commit,    // not together with in_valid
  input  wire        rollback,  // forgets what is not committed; not together with in_valid
  output logic [7:0] out_data,
  output logic       out_valid = 1'b0,
  input  wire        out_ready
);

  localparam int PLACES = 1 << ADDRESS_BITS;

  logic [7:0] memory [PLACES];

  logic [ADDRESS_BITS:0] written = '0, committed = '0, fetched = '0, taken = '0;

  // A byte is fetched one cycle before it is valid; its place is free once it is taken.
  wire fetch = fetched != committed && (!out_valid || out_ready);
  assign full = written == {!taken[ADDRESS_BITS], taken[ADDRESS_BITS-1:0]};

  always_ff @(posedge clk) begin
    if (in_valid && !full) memory[written[ADDRESS_BITS-1:0]] <= in_data;
    if (fetch) out_data <= memory[fetched[ADDRESS_BITS-1:0]];
  end

  always_ff @(posedge clk) begin
    if (clear) begin
      written   <= '0;
      committed <= '0;
      fetched   <= '0;
      taken     <= '0;
      out_valid <= 1'b0;
    end else begin
      if (in_valid && !full) written <= written + 1'b1;
      if (rollback) written <= committed;
      if (commit) committed <= written;
      if (fetch) fetched <= fetched + 1'b1;
      if (out_valid && out_ready) taken <= taken + 1'b1;
      if (out_ready || !out_valid) out_valid <= fetch;
    end
  end

endmodule
