// SPDX-License-Identifier: BSD-3-Clause
// Behaviour of the ECP5 cells that Yosys describes by their ports alone, in the modes that its maps
// of memories and multipliers use (Lattice FPGA-TN-02204 and FPGA-TN-02205); any other mode is
// refused when the simulation is built. And of LUTs, as one index each: Yosys' cascades of
// multiplexers become half as much C++ again.

// 18 kbit of memory with two ports, without output registers.
//
// 2048 bytes of 9 bits. A port of 1, 2 or 4 bits sees the lower 8 of each. A port of 18 or 36 bits
// takes an enable for each byte that it writes in the lowest bits of its address. With 36 bits,
// port A writes (the lower half from DIA, the upper one from DIB) or port B reads (the lower half
// to DOA, the upper one to DOB).
//
// Where both ports meet at one byte in one cycle, what is read is undefined in the device. Here it
// is the complement of what was there: a design that relies on it shows a wrong result.
module DP16KD (
  input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0,
  input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
  input CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
  output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0,
  input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
  input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
  input CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
  output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
);
  parameter integer DATA_WIDTH_A = 18;
  parameter integer DATA_WIDTH_B = 18;
  parameter REGMODE_A = "NOREG";
  parameter REGMODE_B = "NOREG";
  parameter RESETMODE = "SYNC";
  parameter ASYNC_RESET_RELEASE = "SYNC";
  parameter CSDECODE_A = "0b000";
  parameter CSDECODE_B = "0b000";
  parameter WRITEMODE_A = "NORMAL";
  parameter WRITEMODE_B = "NORMAL";
  parameter CLKAMUX = "CLKA";
  parameter CLKBMUX = "CLKB";
  parameter GSR = "ENABLED";
  parameter INIT_DATA = "STATIC";
  parameter WID = "0b000000000";
  parameter [319:0] INITVAL_00 = 320'h0;
  parameter [319:0] INITVAL_01 = 320'h0;
  parameter [319:0] INITVAL_02 = 320'h0;
  parameter [319:0] INITVAL_03 = 320'h0;
  parameter [319:0] INITVAL_04 = 320'h0;
  parameter [319:0] INITVAL_05 = 320'h0;
  parameter [319:0] INITVAL_06 = 320'h0;
  parameter [319:0] INITVAL_07 = 320'h0;
  parameter [319:0] INITVAL_08 = 320'h0;
  parameter [319:0] INITVAL_09 = 320'h0;
  parameter [319:0] INITVAL_0A = 320'h0;
  parameter [319:0] INITVAL_0B = 320'h0;
  parameter [319:0] INITVAL_0C = 320'h0;
  parameter [319:0] INITVAL_0D = 320'h0;
  parameter [319:0] INITVAL_0E = 320'h0;
  parameter [319:0] INITVAL_0F = 320'h0;
  parameter [319:0] INITVAL_10 = 320'h0;
  parameter [319:0] INITVAL_11 = 320'h0;
  parameter [319:0] INITVAL_12 = 320'h0;
  parameter [319:0] INITVAL_13 = 320'h0;
  parameter [319:0] INITVAL_14 = 320'h0;
  parameter [319:0] INITVAL_15 = 320'h0;
  parameter [319:0] INITVAL_16 = 320'h0;
  parameter [319:0] INITVAL_17 = 320'h0;
  parameter [319:0] INITVAL_18 = 320'h0;
  parameter [319:0] INITVAL_19 = 320'h0;
  parameter [319:0] INITVAL_1A = 320'h0;
  parameter [319:0] INITVAL_1B = 320'h0;
  parameter [319:0] INITVAL_1C = 320'h0;
  parameter [319:0] INITVAL_1D = 320'h0;
  parameter [319:0] INITVAL_1E = 320'h0;
  parameter [319:0] INITVAL_1F = 320'h0;
  parameter [319:0] INITVAL_20 = 320'h0;
  parameter [319:0] INITVAL_21 = 320'h0;
  parameter [319:0] INITVAL_22 = 320'h0;
  parameter [319:0] INITVAL_23 = 320'h0;
  parameter [319:0] INITVAL_24 = 320'h0;
  parameter [319:0] INITVAL_25 = 320'h0;
  parameter [319:0] INITVAL_26 = 320'h0;
  parameter [319:0] INITVAL_27 = 320'h0;
  parameter [319:0] INITVAL_28 = 320'h0;
  parameter [319:0] INITVAL_29 = 320'h0;
  parameter [319:0] INITVAL_2A = 320'h0;
  parameter [319:0] INITVAL_2B = 320'h0;
  parameter [319:0] INITVAL_2C = 320'h0;
  parameter [319:0] INITVAL_2D = 320'h0;
  parameter [319:0] INITVAL_2E = 320'h0;
  parameter [319:0] INITVAL_2F = 320'h0;
  parameter [319:0] INITVAL_30 = 320'h0;
  parameter [319:0] INITVAL_31 = 320'h0;
  parameter [319:0] INITVAL_32 = 320'h0;
  parameter [319:0] INITVAL_33 = 320'h0;
  parameter [319:0] INITVAL_34 = 320'h0;
  parameter [319:0] INITVAL_35 = 320'h0;
  parameter [319:0] INITVAL_36 = 320'h0;
  parameter [319:0] INITVAL_37 = 320'h0;
  parameter [319:0] INITVAL_38 = 320'h0;
  parameter [319:0] INITVAL_39 = 320'h0;
  parameter [319:0] INITVAL_3A = 320'h0;
  parameter [319:0] INITVAL_3B = 320'h0;
  parameter [319:0] INITVAL_3C = 320'h0;
  parameter [319:0] INITVAL_3D = 320'h0;
  parameter [319:0] INITVAL_3E = 320'h0;
  parameter [319:0] INITVAL_3F = 320'h0;

  if (REGMODE_A != "NOREG" || REGMODE_B != "NOREG") $error("output registers are not modelled");
  if (RESETMODE != "SYNC") $error("an asynchronous reset is not modelled");
  if (CLKAMUX != "CLKA" || CLKBMUX != "CLKB") $error("an inverted clock is not modelled");
  if (DATA_WIDTH_B == 36 && WRITEMODE_A != "NORMAL") $error("this mode is not modelled");

  localparam [64*320-1:0] INITIAL = {INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39, INITVAL_38,
    INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32, INITVAL_31, INITVAL_30,
    INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B, INITVAL_2A, INITVAL_29, INITVAL_28,
    INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24, INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20,
    INITVAL_1F, INITVAL_1E, INITVAL_1D, INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18,
    INITVAL_17, INITVAL_16, INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10,
    INITVAL_0F, INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
    INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01, INITVAL_00};

  reg [8:0] bytes [0:2047];
  initial
    for (int k = 0; k < 2048; k = k + 1)
      bytes[k] = INITIAL[(k / 2) * 20 + (k % 2) * 9 +: 9];

  wire [13:0] ada = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
  wire [13:0] adb = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
  wire [17:0] dia = {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
  wire [17:0] dib = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0};
  reg [35:0] a_out = 36'h0, b_out = 36'h0;

  // Byte enables of a write, as bits of the aligned group of four bytes.
  function automatic [3:0] lanes(input integer width, input [13:0] address);
    if (width == 36) lanes = address[3:0];
    else if (width == 18) lanes = {2'b00, address[1:0]} << {address[4], 1'b0};
    else lanes = 4'b0001 << address[4:3];
  endfunction

  // What a byte becomes when a port of less than 9 bits writes to it.
  function automatic [8:0] merged(
      input integer width, input [2:0] place, input [8:0] old, input [8:0] data);
    merged = old;
    if (width == 9) merged = data;
    else if (width == 4) merged[{place[2], 2'b00} +: 4] = data[3:0];
    else if (width == 2) merged[{place[2:1], 1'b0} +: 2] = data[1:0];
    else merged[place] = data[0];
  endfunction

  // The group of four bytes as a port of some width sees it.
  function automatic [35:0] seen(input integer width, input [4:0] place, input [35:0] group);
    if (width == 36) seen = group;
    else if (width == 18) seen = {18'b0, group[18*place[4] +: 18]};
    else begin
      seen = {27'b0, group[9*place[4:3] +: 9]};
      if (width == 4) seen = {32'b0, seen[{place[2], 2'b00} +: 4]};
      if (width == 2) seen = {34'b0, seen[{place[2:1], 1'b0} +: 2]};
      if (width == 1) seen = {35'b0, seen[place[2:0]]};
    end
  endfunction

  wire a_writes = CEA && WEA && !RSTA && {CSA2, CSA1, CSA0} == 3'b000;
  wire b_writes = CEB && WEB && !RSTB && {CSB2, CSB1, CSB0} == 3'b000;
  wire [3:0] a_lanes = a_writes ? lanes(DATA_WIDTH_A, ada) : 4'b0000;
  wire [3:0] b_lanes = b_writes ? lanes(DATA_WIDTH_B, adb) : 4'b0000;
  wire [35:0] a_data = DATA_WIDTH_A == 36 ? {dib, dia} :
    DATA_WIDTH_A == 18 ? {2{dia}} : {4{dia[8:0]}};
  wire [35:0] b_data = DATA_WIDTH_B == 18 ? {2{dib}} : {4{dib[8:0]}};
  wire [35:0] a_group = {bytes[{ada[13:5], 2'd3}], bytes[{ada[13:5], 2'd2}],
    bytes[{ada[13:5], 2'd1}], bytes[{ada[13:5], 2'd0}]};
  wire [35:0] b_group = {bytes[{adb[13:5], 2'd3}], bytes[{adb[13:5], 2'd2}],
    bytes[{adb[13:5], 2'd1}], bytes[{adb[13:5], 2'd0}]};

  // What each port's group of bytes becomes by its own write.
  reg [35:0] a_next, b_next;
  // What each port finds there, undefined where the other one writes.
  reg [35:0] a_found, b_found;
  always @* begin
    for (int i = 0; i < 4; i = i + 1) begin
      a_next[9*i +: 9] = a_group[9*i +: 9];
      if (a_lanes[i])
        a_next[9*i +: 9] = DATA_WIDTH_A >= 9 ? a_data[9*i +: 9] :
          merged(DATA_WIDTH_A, ada[2:0], a_group[9*i +: 9], a_data[9*i +: 9]);
      b_next[9*i +: 9] = b_group[9*i +: 9];
      if (b_lanes[i])
        b_next[9*i +: 9] = DATA_WIDTH_B >= 9 ? b_data[9*i +: 9] :
          merged(DATA_WIDTH_B, adb[2:0], b_group[9*i +: 9], b_data[9*i +: 9]);
      a_found[9*i +: 9] = a_group[9*i +: 9];
      b_found[9*i +: 9] = b_group[9*i +: 9];
      if (ada[13:5] == adb[13:5]) begin
        if (b_lanes[i]) a_found[9*i +: 9] = ~a_group[9*i +: 9];
        if (a_lanes[i]) b_found[9*i +: 9] = ~b_group[9*i +: 9];
      end
    end
  end

  always @(posedge CLKA) begin
    for (int k = 0; k < 4; k = k + 1)
      if (a_lanes[k]) bytes[{ada[13:5], k[1:0]}] <= a_next[9*k +: 9];
    if (RSTA) a_out <= 36'h0;
    else if (CEA) begin
      if (!a_writes || WRITEMODE_A == "READBEFOREWRITE")
        a_out <= seen(DATA_WIDTH_A, ada[4:0], a_found);
      else if (WRITEMODE_A == "WRITETHROUGH") a_out <= seen(DATA_WIDTH_A, ada[4:0], a_next);
    end
  end

  always @(posedge CLKB) begin
    for (int k = 0; k < 4; k = k + 1)
      if (b_lanes[k]) bytes[{adb[13:5], k[1:0]}] <= b_next[9*k +: 9];
    if (RSTB) b_out <= 36'h0;
    else if (CEB) begin
      if (!b_writes || WRITEMODE_B == "READBEFOREWRITE")
        b_out <= seen(DATA_WIDTH_B, adb[4:0], b_found);
      else if (WRITEMODE_B == "WRITETHROUGH") b_out <= seen(DATA_WIDTH_B, adb[4:0], b_next);
    end
  end

  assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0} = DATA_WIDTH_B == 36 ? b_out[17:0] : a_out[17:0];
  assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0} = DATA_WIDTH_B == 36 ? b_out[35:18] : b_out[17:0];
endmodule

// A product of 18 by 18 bits, without registers.
module MULT18X18D (
  input A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
  input B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
  input C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0,
  input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
  output P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
  wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
  wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
  wire signed [18:0] left = {SIGNEDA & a[17], a};
  wire signed [18:0] right = {SIGNEDB & b[17], b};
  wire signed [37:0] product = left * right;
  assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = product[35:0];
endmodule

module LUT4 (input A, B, C, D, output Z);
  parameter [15:0] INIT = 16'h0000;
  assign Z = INIT[{D, C, B, A}];
endmodule

module LUT2 (input A, B, output Z);
  parameter [3:0] INIT = 4'h0;
  assign Z = INIT[{B, A}];
endmodule
