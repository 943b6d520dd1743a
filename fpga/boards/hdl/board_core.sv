// SPDX-License-Identifier: BSD-3-Clause
// What every board with a UART shares: reset, UART, protocol, accelerator and eight lights.
// The numbers of one build come from the generated package board_config.

module board_core
  import board_config::*;
(
  input  wire        clk,
  input  wire        button,  // asynchronous; resets everything while it is high
  input  wire        rx,      // from the host
  output wire        tx,      // to the host
  output logic [7:0] light
);

  // ---- Reset: 255 cycles from power-on, or from the release of the button ----

  logic [1:0] pressed = '0;
  logic [7:0] awake = '0;
  wire        rst_n = &awake;

  always_ff @(posedge clk) begin
    pressed <= {pressed[0], button};
    if (pressed[1]) awake <= '0;
    else if (!rst_n) awake <= awake + 1'b1;
  end

  // ---- UART ----

  wire [7:0] rx_data, tx_data;
  wire       rx_valid, rx_broken, tx_valid, tx_ready;

  uart_rx #(.DIVIDER(DIVIDER)) receiver (
    .clk, .rst_n, .line(rx), .data(rx_data), .valid(rx_valid), .broken(rx_broken)
  );

  uart_tx #(.DIVIDER(DIVIDER)) transmitter (
    .clk, .rst_n, .data(tx_data), .valid(tx_valid), .ready(tx_ready), .line(tx)
  );

  // ---- Protocol and accelerator ----

  wire [8*INPUT_BYTES-1:0] pixels;
  wire [8*SCORE_BYTES-1:0] score;
  wire pixels_valid, pixels_ready, score_valid, score_ready, accelerator_rst_n, busy, refused;

  uart_host #(
    .INPUT_BYTES(INPUT_BYTES),
    .FRAME_BYTES(FRAME_BYTES),
    .SCORE_BYTES(SCORE_BYTES),
    .SCORES(SCORES),
    .BUFFER_ADDRESS_BITS(BUFFER_ADDRESS_BITS),
    .IDLE_CYCLES(IDLE_CYCLES),
    .IDENTITY(IDENTITY)
  ) host (
    .clk, .rst_n, .rx_data, .rx_valid, .rx_broken, .tx_data, .tx_valid, .tx_ready,
    .accelerator_rst_n,
    .m_axis_tdata(pixels), .m_axis_tvalid(pixels_valid), .m_axis_tready(pixels_ready),
    .s_axis_tdata(score), .s_axis_tvalid(score_valid), .s_axis_tready(score_ready),
    .busy, .refused
  );

  accelerator network (
    .clk, .rst_n(accelerator_rst_n),
    .s_axis_tdata(pixels), .s_axis_tvalid(pixels_valid), .s_axis_tready(pixels_ready),
    .m_axis_tdata(score), .m_axis_tvalid(score_valid), .m_axis_tready(score_ready), .m_axis_tlast()
  );

  // ---- Lights; short events are stretched to what an eye can see ----

  logic [23:0] time_passed = '0;
  logic        received = 1'b0, sent = 1'b0, error = 1'b0;
  wire         tick = time_passed[19:0] == '0;

  always_ff @(posedge clk) begin
    time_passed <= time_passed + 1'b1;
    if (rx_valid) received <= 1'b1;
    else if (tick) received <= 1'b0;
    if (tx_valid) sent <= 1'b1;
    else if (tick) sent <= 1'b0;
    if (!rst_n) error <= 1'b0;
    else if (refused || rx_broken) error <= 1'b1;
    light <= {
      !accelerator_rst_n,              // 7: the accelerator is in reset
      score_valid,                     // 6: a score waits for the host
      pixels_valid && !pixels_ready,   // 5: pixels wait for the accelerator
      error,                           // 4: a command was damaged or refused; until the next reset
      busy,                            // 3: a frame waits or is computed
      sent,                            // 2: bytes to the host
      received,                        // 1: bytes from the host
      time_passed[23]                  // 0: the clock runs (1.5 blinks a second at 25 MHz)
    };
  end

endmodule
