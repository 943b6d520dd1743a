// SPDX-License-Identifier: BSD-3-Clause
// UART transmitter: 8 data bits, no parity, 1 stop bit, least significant bit first.
// A bit lasts DIVIDER clock cycles; bytes follow each other without a gap.

module uart_tx #(
  parameter int DIVIDER = 25
) (
  input  wire       clk,
  input  wire       rst_n,   // synchronous, low active
  input  wire [7:0] data,
  input  wire       valid,
  output wire       ready,   // data are taken in a cycle in which valid and ready are high
  output logic      line = 1'b1  // high when idle
);

  localparam int COUNT_BITS = $clog2(DIVIDER);
  localparam logic [COUNT_BITS-1:0] WHOLE_BIT = COUNT_BITS'(DIVIDER - 1);

  logic [8:0]            bits = '1;   // what follows on the line; ones stand behind the stop bit
  logic [3:0]            left = '0;   // bits that are not over
  logic [COUNT_BITS-1:0] count = '0;  // cycles until the bit on the line is over

  wire over = count == '0;
  assign ready = rst_n && (left == '0 || (left == 4'd1 && over));

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      line  <= 1'b1;
      bits  <= '1;
      left  <= '0;
      count <= '0;
    end else if (ready && valid) begin
      line  <= 1'b0;
      bits  <= {1'b1, data};
      left  <= 4'd10;
      count <= WHOLE_BIT;
    end else if (!over) begin
      count <= count - 1'b1;
    end else if (left != '0) begin
      line  <= bits[0];
      bits  <= {1'b1, bits[8:1]};
      left  <= left - 1'b1;
      count <= WHOLE_BIT;
    end
  end

endmodule
