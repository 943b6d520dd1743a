// SPDX-License-Identifier: BSD-3-Clause
// UART receiver: 8 data bits, no parity, 1 stop bit, least significant bit first.
// A bit lasts DIVIDER clock cycles (at least 4) and is sampled in its middle.

module uart_rx #(
  parameter int DIVIDER = 25
) (
  input  wire        clk,
  input  wire        rst_n,   // synchronous, low active
  input  wire        line,    // asynchronous, high when idle
  output logic [7:0] data,
  output logic       valid,   // one cycle per byte
  output logic       broken   // one cycle per byte whose stop bit is low; its data are lost
);

  localparam int COUNT_BITS = $clog2(DIVIDER);
  localparam logic [COUNT_BITS-1:0] WHOLE_BIT = COUNT_BITS'(DIVIDER - 1);
  localparam logic [COUNT_BITS-1:0] HALF_BIT = COUNT_BITS'(DIVIDER / 2 - 1);

  typedef enum logic [1:0] {IDLE, START, BITS, RECOVER} state_t;

  state_t                state = IDLE;
  logic [1:0]            synced = '1;  // two flip-flops against metastability
  logic [COUNT_BITS-1:0] count = '0;   // cycles until the next sample
  logic [3:0]            index = '0;   // data bits, then the stop bit

  wire level = synced[1];

  always_ff @(posedge clk) begin
    synced <= {synced[0], line};
    valid  <= 1'b0;
    broken <= 1'b0;
    if (!rst_n) begin
      state <= IDLE;
      count <= '0;
      index <= '0;
      data  <= '0;
    end else begin
      count <= count - 1'b1;
      unique case (state)
        IDLE: begin
          count <= HALF_BIT;
          index <= '0;
          if (!level) state <= START;
        end
        START: if (count == '0) begin
          count <= WHOLE_BIT;
          state <= level ? IDLE : BITS;  // a spike is no start bit
        end
        BITS: if (count == '0) begin
          count <= WHOLE_BIT;
          index <= index + 1'b1;
          if (index != 4'd8) data <= {level, data[7:1]};
          else if (level) begin
            valid <= 1'b1;
            state <= IDLE;  // half a bit early, so that a slightly faster sender keeps step
          end else begin
            broken <= 1'b1;
            state  <= RECOVER;
          end
        end
        RECOVER: if (level) state <= IDLE;  // a break lasts until the line is high again
      endcase
    end
  end

endmodule
