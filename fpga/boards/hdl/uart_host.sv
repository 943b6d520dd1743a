// SPDX-License-Identifier: BSD-3-Clause
// The host protocol (docs/boards.md): commands arrive as bytes, frames leave as the accelerator's
// input words, its scores return as bytes. Receiver, accelerator and transmitter work at the same
// time: the host sends the next frame while scores return.

module uart_host
  import board_protocol::*;
#(
  parameter int INPUT_BYTES = 1,          // of an input word
  parameter int FRAME_BYTES = 784,        // of a frame; a multiple of INPUT_BYTES
  parameter int SCORE_BYTES = 3,          // of an output word
  parameter int SCORES = 10,              // output words of a frame
  parameter int BUFFER_ADDRESS_BITS = 12, // the frame buffer holds 2**BUFFER_ADDRESS_BITS bytes
  parameter int IDLE_CYCLES = 2_500_000,  // silence after which a half command is given up
  parameter int RESET_CYCLES = 16,        // for which the accelerator is held in reset
  parameter logic [8*IDENTITY_BYTES-1:0] IDENTITY = '0  // first byte in the lowest bits
) (
  input  wire                       clk,
  input  wire                       rst_n,       // synchronous, low active
  // from the UART receiver
  input  wire  [7:0]                rx_data,
  input  wire                       rx_valid,
  input  wire                       rx_broken,
  // to the UART transmitter
  output logic [7:0]                tx_data,
  output wire                       tx_valid,
  input  wire                       tx_ready,
  // to and from the accelerator
  output wire                       accelerator_rst_n,
  output logic [8*INPUT_BYTES-1:0]  m_axis_tdata,
  output wire                       m_axis_tvalid,
  input  wire                       m_axis_tready,
  input  wire  [8*SCORE_BYTES-1:0]  s_axis_tdata,
  input  wire                       s_axis_tvalid,
  output wire                       s_axis_tready,
  // for the LEDs
  output wire                       busy,        // frames wait, or are being computed
  output wire                       refused      // one cycle per command that is not carried out
);

  // ---- Reset: at power-on, by the button, by command ----

  localparam int RESET_BITS = $clog2(RESET_CYCLES + 1);

  logic                  reset_command;
  logic [RESET_BITS-1:0] reset_left = RESET_BITS'(RESET_CYCLES);

  always_ff @(posedge clk) begin
    if (!rst_n || reset_command) reset_left <= RESET_BITS'(RESET_CYCLES);
    else if (reset_left != '0) reset_left <= reset_left - 1'b1;
  end

  assign accelerator_rst_n = reset_left == '0;
  wire clear = !accelerator_rst_n;

  // ---- Receiver: one byte at a time, at least 40 cycles apart ----

  typedef enum logic [2:0] {HUNT, SYNC, COMMAND, TAG, PAYLOAD, CRC_HIGH, CRC_LOW, CHECK} rx_state_t;

  localparam int COUNT_BITS = $clog2(FRAME_BYTES + 1);
  localparam int IDLE_BITS = $clog2(IDLE_CYCLES + 1);

  rx_state_t             rx_state = HUNT;
  logic [7:0]            rx_command, rx_tag;
  logic [15:0]           rx_crc;
  logic [COUNT_BITS-1:0] rx_left;
  logic [IDLE_BITS-1:0]  silence = '0;
  logic                  overrun;

  wire buffer_full, tags_full;
  wire give_up = rx_broken || silence == IDLE_BITS'(IDLE_CYCLES);
  wire known = rx_command == IDENTIFY || rx_command == INFER || rx_command == RESET;
  wire crc_good = rx_crc == '0;

  // What the end of a command, or its failure, leads to; at most one reply in a cycle.
  logic       reply, commit, rollback;
  logic [7:0] reply_command, reply_tag, reply_status;

  always_comb begin
    reply         = 1'b0;
    reply_command = rx_command;
    reply_tag     = rx_tag;
    reply_status  = OK;
    commit        = 1'b0;
    rollback      = 1'b0;
    reset_command = 1'b0;
    if (rx_state == CHECK) begin
      if (!crc_good) begin
        reply        = 1'b1;
        reply_status = BAD_CRC;
        rollback     = 1'b1;
      end else if (rx_command == INFER) begin
        if (overrun || tags_full) begin
          reply        = 1'b1;
          reply_status = OVERRUN;
          rollback     = 1'b1;
        end else commit = 1'b1;
      end else begin
        reply         = rx_command == IDENTIFY;
        reset_command = rx_command == RESET;
      end
    end else if (rx_state == TAG && rx_valid && !known) begin
      reply        = 1'b1;
      reply_tag    = rx_data;
      reply_status = UNKNOWN_COMMAND;
    end else if (give_up && (rx_state == PAYLOAD || rx_state == CRC_HIGH || rx_state == CRC_LOW)) begin
      reply        = 1'b1;
      reply_status = BROKEN;
      rollback     = 1'b1;
    end
  end

  assign refused = reply && reply_status != OK;

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      rx_state   <= HUNT;
      rx_command <= '0;
      rx_tag     <= '0;
      rx_crc     <= CRC_START;
      rx_left    <= '0;
      silence    <= '0;
      overrun    <= 1'b0;
    end else begin
      silence <= rx_valid || rx_state == HUNT ? '0 : silence + 1'b1;
      if (rx_state == CHECK) rx_state <= HUNT;
      else if (give_up) rx_state <= HUNT;
      else if (rx_valid) begin
        rx_crc <= crc_step(rx_crc, rx_data);
        unique case (rx_state)
          HUNT: if (rx_data == SYNC_0) rx_state <= SYNC;
          SYNC: begin
            rx_crc   <= CRC_START;
            rx_state <= rx_data == SYNC_1 ? COMMAND : rx_data == SYNC_0 ? SYNC : HUNT;
          end
          COMMAND: begin
            rx_command <= rx_data;
            rx_state   <= TAG;
          end
          TAG: begin
            rx_tag   <= rx_data;
            rx_left  <= COUNT_BITS'(FRAME_BYTES);
            overrun  <= 1'b0;
            rx_state <= !known ? HUNT : rx_command == INFER ? PAYLOAD : CRC_HIGH;
          end
          PAYLOAD: begin
            rx_left <= rx_left - 1'b1;
            if (buffer_full) overrun <= 1'b1;
            if (rx_left == COUNT_BITS'(1)) rx_state <= CRC_HIGH;
          end
          CRC_HIGH: rx_state <= CRC_LOW;
          CRC_LOW: rx_state <= CHECK;
          default: rx_state <= HUNT;
        endcase
      end
    end
  end

  // ---- Frames: buffered whole, then given to the accelerator in words ----

  wire [7:0] byte_data;
  wire       byte_valid, byte_ready;

  frame_buffer #(.ADDRESS_BITS(BUFFER_ADDRESS_BITS)) frames (
    .clk, .clear,
    .in_data(rx_data), .in_valid(rx_valid && rx_state == PAYLOAD), .full(buffer_full),
    .commit, .rollback,
    .out_data(byte_data), .out_valid(byte_valid), .out_ready(byte_ready)
  );

  if (INPUT_BYTES == 1) begin : one_byte
    assign m_axis_tdata  = byte_data;
    assign m_axis_tvalid = byte_valid && !clear;
    assign byte_ready    = m_axis_tready;
  end else begin : words
    localparam int FILL_BITS = $clog2(INPUT_BYTES + 1);
    logic [FILL_BITS-1:0] filled = '0;
    wire whole = filled == FILL_BITS'(INPUT_BYTES);
    assign m_axis_tvalid = whole && !clear;
    assign byte_ready    = !whole;
    always_ff @(posedge clk) begin
      if (clear) filled <= '0;
      else if (whole) begin
        if (m_axis_tready) filled <= '0;
      end else if (byte_valid) begin
        m_axis_tdata <= {byte_data, m_axis_tdata[8*INPUT_BYTES-1:8]};
        filled       <= filled + 1'b1;
      end
    end
  end

  // ---- Replies without scores, and the tags of frames whose scores are to come ----

  localparam int REPLY_BITS = 24;

  wire [REPLY_BITS-1:0] reply_word;
  wire [7:0]            frame_tag;
  wire                  no_reply, no_frame;
  logic                 reply_done, frame_done;
  logic                 was_reset = 1'b0;

  // The reply to a reset leaves after the reset, which empties the queue.
  wire reset_over = was_reset && !clear;

  always_ff @(posedge clk) begin
    if (!rst_n) was_reset <= 1'b0;
    else if (reset_command) was_reset <= 1'b1;
    else if (reset_over) was_reset <= 1'b0;
  end

  small_fifo #(.BITS(REPLY_BITS), .ADDRESS_BITS(3)) replies (
    .clk, .clear,
    .in_data(reset_over ? {OK, rx_tag, RESET} : {reply_status, reply_tag, reply_command}),
    .push(reply || reset_over), .full(),  // a reply too many is lost: the host repeats itself
    .out_data(reply_word), .empty(no_reply), .pop(reply_done)
  );

  small_fifo #(.BITS(8), .ADDRESS_BITS(4)) tags (
    .clk, .clear,
    .in_data(rx_tag), .push(commit), .full(tags_full),
    .out_data(frame_tag), .empty(no_frame), .pop(frame_done)
  );

  assign busy = !no_frame;

  // ---- Transmitter ----

  typedef enum logic [3:0] {
    QUIET, SEND_SYNC_0, SEND_SYNC_1, SEND_COMMAND, SEND_TAG, SEND_STATUS, SEND_IDENTITY, SEND_SCORES,
    SEND_CRC_HIGH, SEND_CRC_LOW
  } tx_state_t;

  localparam int SCORE_COUNT_BITS = $clog2(SCORES + 1);
  localparam int SCORE_BYTE_BITS = $clog2(SCORE_BYTES + 1);
  localparam int IDENTITY_BITS = $clog2(IDENTITY_BYTES);

  tx_state_t                   tx_state = QUIET;
  logic [7:0]                  tx_command, tx_tag, tx_status;
  logic [15:0]                 tx_crc;
  logic [SCORE_COUNT_BITS-1:0] scores_left;
  logic [SCORE_BYTE_BITS-1:0]  score_left;   // bytes of the score in the register
  logic [8*SCORE_BYTES-1:0]    score;
  logic [IDENTITY_BITS-1:0]    identity_at;

  wire scores_wait = !no_frame && s_axis_tvalid;
  assign reply_done = tx_state == QUIET && !no_reply;
  assign frame_done = tx_state == QUIET && no_reply && scores_wait;

  // A score is fetched while the transmitter is busy with the byte before it.
  assign s_axis_tready = tx_state == SEND_SCORES && score_left == '0 && scores_left != '0 && !clear;

  assign tx_valid = tx_state != QUIET && !(tx_state == SEND_SCORES && score_left == '0);

  always_comb begin
    unique case (tx_state)
      SEND_SYNC_0: tx_data = SYNC_0;
      SEND_SYNC_1: tx_data = SYNC_1;
      SEND_COMMAND: tx_data = tx_command;
      SEND_TAG: tx_data = tx_tag;
      SEND_STATUS: tx_data = tx_status;
      SEND_IDENTITY: tx_data = IDENTITY[8*identity_at +: 8];
      SEND_SCORES: tx_data = score[7:0];
      SEND_CRC_HIGH: tx_data = tx_crc[15:8];
      SEND_CRC_LOW: tx_data = tx_crc[7:0];
      default: tx_data = '0;
    endcase
  end

  always_ff @(posedge clk) begin
    if (clear) begin
      tx_state    <= QUIET;
      tx_command  <= '0;
      tx_tag      <= '0;
      tx_status   <= '0;
      tx_crc      <= CRC_START;
      scores_left <= '0;
      score_left  <= '0;
      score       <= '0;
      identity_at <= '0;
    end else if (tx_state == QUIET) begin
      tx_crc      <= CRC_START;
      scores_left <= SCORE_COUNT_BITS'(SCORES);
      score_left  <= '0;
      identity_at <= '0;
      if (!no_reply) begin
        {tx_status, tx_tag, tx_command} <= reply_word;
        tx_state <= SEND_SYNC_0;
      end else if (scores_wait) begin
        {tx_status, tx_tag, tx_command} <= {OK, frame_tag, INFER};
        tx_state <= SEND_SYNC_0;
      end
    end else begin
      if (s_axis_tready && s_axis_tvalid) begin
        score       <= s_axis_tdata;
        score_left  <= SCORE_BYTE_BITS'(SCORE_BYTES);
        scores_left <= scores_left - 1'b1;
      end
      if (tx_valid && tx_ready) begin
        if (tx_state != SEND_SYNC_0 && tx_state != SEND_SYNC_1 && tx_state != SEND_CRC_HIGH)
          tx_crc <= crc_step(tx_crc, tx_data);
        unique case (tx_state)
          SEND_SYNC_0: tx_state <= SEND_SYNC_1;
          SEND_SYNC_1: tx_state <= SEND_COMMAND;
          SEND_COMMAND: tx_state <= SEND_TAG;
          SEND_TAG: tx_state <= SEND_STATUS;
          SEND_STATUS:
            if (tx_status != OK || tx_command == RESET) tx_state <= SEND_CRC_HIGH;
            else tx_state <= tx_command == INFER ? SEND_SCORES : SEND_IDENTITY;
          SEND_IDENTITY: begin
            identity_at <= identity_at + 1'b1;
            if (identity_at == IDENTITY_BITS'(IDENTITY_BYTES - 1)) tx_state <= SEND_CRC_HIGH;
          end
          SEND_SCORES: begin
            score      <= score >> 8;
            score_left <= score_left - 1'b1;
            if (scores_left == '0 && score_left == SCORE_BYTE_BITS'(1)) tx_state <= SEND_CRC_HIGH;
          end
          SEND_CRC_HIGH: tx_state <= SEND_CRC_LOW;
          default: tx_state <= QUIET;
        endcase
      end
    end
  end

endmodule
