// SPDX-License-Identifier: BSD-3-Clause
// ULX3S: the pins that board_core needs, named as in the board's public constraint file. The
// FTDI's names are from its own side: ftdi_txd is what it sends.

module board_top (
  input  wire       clk_25mhz,
  input  wire       ftdi_txd,
  output wire       ftdi_rxd,
  input  wire       btn_fire1,   // high while pressed: reset
  output wire [7:0] led,
  output wire       wifi_gpio0   // high, or the board's ESP32 may restart the board
);

  assign wifi_gpio0 = 1'b1;

  board_core core (
    .clk(clk_25mhz), .button(btn_fire1), .rx(ftdi_txd), .tx(ftdi_rxd), .light(led)
  );

endmodule
