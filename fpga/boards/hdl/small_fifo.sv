// SPDX-License-Identifier: BSD-3-Clause
// A few words in registers or distributed RAM, first in, first out; the oldest is visible.

module small_fifo #(
  parameter int BITS = 8,
  parameter int ADDRESS_BITS = 3
) (
  input  wire             clk,
  input  wire             clear,  // synchronous
  input  wire  [BITS-1:0] in_data,
  input  wire             push,   // ignored while full
  output wire             full,
  output wire  [BITS-1:0] out_data,
  output wire             empty,
  input  wire             pop     // ignored while empty
);

  logic [BITS-1:0]       memory [1 << ADDRESS_BITS];
  logic [ADDRESS_BITS:0] head = '0, tail = '0;

  assign empty    = head == tail;
  assign full     = head == {!tail[ADDRESS_BITS], tail[ADDRESS_BITS-1:0]};
  assign out_data = memory[tail[ADDRESS_BITS-1:0]];

  always_ff @(posedge clk) begin
    if (push && !full) memory[head[ADDRESS_BITS-1:0]] <= in_data;
  end

  always_ff @(posedge clk) begin
    if (clear) begin
      head <= '0;
      tail <= '0;
    end else begin
      if (push && !full) head <= head + 1'b1;
      if (pop && !empty) tail <= tail + 1'b1;
    end
  end

endmodule
