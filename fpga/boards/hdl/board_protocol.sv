// SPDX-License-Identifier: BSD-3-Clause
// What host and board agree on: docs/boards.md describes it, host.py is the other side.

package board_protocol;

  localparam logic [7:0] SYNC_0 = 8'h44;  // "D"
  localparam logic [7:0] SYNC_1 = 8'h51;  // "Q"

  localparam logic [7:0] IDENTIFY = 8'h01;
  localparam logic [7:0] INFER = 8'h02;
  localparam logic [7:0] RESET = 8'h03;

  localparam logic [7:0] OK = 8'h00;
  localparam logic [7:0] BAD_CRC = 8'h01;
  localparam logic [7:0] UNKNOWN_COMMAND = 8'h02;
  localparam logic [7:0] OVERRUN = 8'h03;
  localparam logic [7:0] BROKEN = 8'h04;

  localparam int IDENTITY_BYTES = 32;

  // CRC-16/IBM-3740: polynomial 0x1021, start value 0xFFFF, most significant bit first. Run over
  // a message and its CRC, high byte first, it gives 0.
  localparam logic [15:0] CRC_START = 16'hFFFF;

  function automatic logic [15:0] crc_step(input logic [15:0] crc, input logic [7:0] data);
    logic [15:0] next;
    next = crc ^ {data, 8'h00};
    for (int i = 0; i < 8; i++) next = next[15] ? {next[14:0], 1'b0} ^ 16'h1021 : {next[14:0], 1'b0};
    return next;
  endfunction

endpackage
