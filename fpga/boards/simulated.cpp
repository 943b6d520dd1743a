// SPDX-License-Identifier: BSD-3-Clause
// A board's top in Verilator, its serial line at a pseudo-terminal: bytes of the terminal become
// levels of the receiving pin, bit by bit, and levels of the transmitting pin become bytes.
// usage: simulated TERMINAL_FD LULL_CYCLES; SIGUSR1 presses the button.
// Defined by the build: CLOCK, RECEIVE, TRANSMIT, BUTTON (ports), DIVIDER (cycles of a bit).

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "Vboard_top.h"
#include "verilated.h"

namespace {

constexpr int kPress = 64;            // cycles for which the button is held
constexpr int kPowerOn = 1000;        // cycles until the board listens
constexpr int kBatch = 10 * DIVIDER;  // cycles between two looks at the terminal: one byte
constexpr int kLullMilliseconds = 20;

volatile std::sig_atomic_t pressed = 0;

void press(int) { pressed = 1; }

// Bytes to levels: start bit, 8 bits from the least significant, stop bit.
class Sender {
 public:
  std::deque<uint8_t> bytes;
  bool held = false;  // no further byte starts

  bool idle() const { return bytes.empty() && left_ == 0; }

  int level() {
    if (left_ == 0) {
      if (bytes.empty() || held) return 1;
      shift_ = 0x200 | (bytes.front() << 1);
      bytes.pop_front();
      left_ = 10 * DIVIDER;
    }
    const int bit = (shift_ >> ((10 * DIVIDER - left_) / DIVIDER)) & 1;
    --left_;
    return bit;
  }

 private:
  int shift_ = 0;
  int left_ = 0;
};

// Levels to bytes; each bit is read in its middle.
class Receiver {
 public:
  std::deque<uint8_t> bytes;

  bool idle() const { return cycle_ < 0; }

  void level(int bit) {
    if (cycle_ < 0) {
      if (bit) return;
      cycle_ = 0;
      shift_ = 0;
    }
    if (cycle_ % DIVIDER == DIVIDER / 2) shift_ |= bit << (cycle_ / DIVIDER);
    if (++cycle_ < 9 * DIVIDER + DIVIDER / 2 + 1) return;
    if ((shift_ & 0x201) == 0x200) bytes.push_back(static_cast<uint8_t>(shift_ >> 1));
    cycle_ = -1;
  }

 private:
  int shift_ = 0;
  int cycle_ = -1;
};

// Moves what can be moved without waiting; false once the terminal is gone.
bool exchange(int terminal, std::deque<uint8_t>& to_board, std::deque<uint8_t>& to_host) {
  uint8_t buffer[4096];
  const ssize_t got = read(terminal, buffer, sizeof buffer);
  if (got > 0) to_board.insert(to_board.end(), buffer, buffer + got);
  else if (got == 0 || (errno != EAGAIN && errno != EINTR)) return false;
  size_t count = 0;
  for (; count < to_host.size() && count < sizeof buffer; ++count) buffer[count] = to_host[count];
  if (count == 0) return true;
  const ssize_t put = write(terminal, buffer, count);
  if (put > 0) to_host.erase(to_host.begin(), to_host.begin() + put);
  return put >= 0 || errno == EAGAIN || errno == EINTR;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s TERMINAL_FD LULL_CYCLES\n", argv[0]);
    return 2;
  }
  const int terminal = std::atoi(argv[1]);
  const long lull = std::atol(argv[2]);
  if (fcntl(terminal, F_SETFL, O_NONBLOCK) < 0) {
    std::perror("terminal");
    return 2;
  }
  std::signal(SIGUSR1, press);

  VerilatedContext context;
  Vboard_top top{&context};
  Sender sender;
  Receiver receiver;
  long quiet = 0;  // cycles without a byte on the line
  const auto run = [&](int cycles) {
    for (int i = 0; i < cycles; ++i) {
      top.RECEIVE = sender.level();
      top.CLOCK = 0;
      top.eval();
      top.CLOCK = 1;
      top.eval();
      receiver.level(top.TRANSMIT);
    }
  };

  run(kPowerOn);
  while (exchange(terminal, sender.bytes, receiver.bytes)) {
    if (sender.idle() && receiver.idle() && receiver.bytes.empty()) quiet += kBatch;
    else quiet = 0;
    if (quiet > lull) {  // nobody waits: leave the processor to others
      pollfd look{terminal, POLLIN, 0};
      poll(&look, 1, kLullMilliseconds);
    }
    if (pressed) {  // what came after it on the terminal waits until the board listens again
      pressed = 0;
      sender.held = true;
      top.BUTTON = 1;
      run(kPress);
      top.BUTTON = 0;
      run(kPowerOn);
      sender.held = false;
    }
    run(kBatch);
  }
  std::fprintf(stderr, "the terminal is gone: %s\n", std::strerror(errno));
  top.final();
  return 1;
}
