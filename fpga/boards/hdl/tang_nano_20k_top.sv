// SPDX-License-Identifier: BSD-3-Clause
// Sipeed Tang Nano 20K: the pins that board_core needs. The names of the serial line are from the
// FPGA's side: uart_rx is what the board's BL616 sends.

module board_top (
  input  wire       clk_27mhz,
  input  wire       uart_rx,
  output wire       uart_tx,
  input  wire       button_s1,  // high while pressed: reset
  output wire [5:0] led_n       // lit while low
);

  wire [7:0] light;

  assign led_n = ~light[5:0];

  board_core core (
    .clk(clk_27mhz), .button(button_s1), .rx(uart_rx), .tx(uart_tx), .light
  );

endmodule
