# SPDX-License-Identifier: BSD-3-Clause
"""Drives stream modules with Verilator: stalls, resets and a check of the stream protocol.

Instances of modules, each with its parameters, are built into one program, every stream widened to
the same number of bits; a run talks to one of them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from brevitas_divqat.fpga.tools import find_verilator, run_tool
from numpy.typing import NDArray

__all__ = [
    "HDL",
    "Bench",
    "Instance",
    "Run",
    "Stalls",
    "build_bench",
    "lint",
    "pack",
    "word_bits",
]

HDL = Path(__file__).parents[2] / "fpga" / "rtl" / "hdl"
"""The modules under test."""

MAX_INPUTS = 2
MAX_OUTPUTS = 3
MAX_WORD_BITS = 128
MAX_CYCLES = 200_000
AFTERMATH = 40
"""Cycles that a run goes on after the last word expected, to see words that nobody expects."""

HARNESS = r"""
// Reads a stimulus from stdin: see Bench.run. Writes one line per event to stdout.
#include "Vbench.h"
#include "verilated.h"
#include <array>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {
constexpr int kInputs = @INPUTS@, kOutputs = @OUTPUTS@, kLimbs = @WORD_BITS@ / 32;
using Word = std::array<uint32_t, kLimbs>;

Word parse(const std::string& text) {
    Word word{};
    for (size_t i = 0; i < text.size(); i++) {
        const size_t nibble = text.size() - 1 - i;
        const uint32_t value = std::stoul(text.substr(i, 1), nullptr, 16);
        word[nibble / 8] |= value << (nibble % 8 * 4);
    }
    return word;
}

std::string print(const Word& word) {
    std::string text;
    char limb[9];
    for (int i = kLimbs - 1; i >= 0; i--) {
        std::snprintf(limb, sizeof limb, "%08x", word[i]);
        text += limb;
    }
    return text;
}

struct Sample {  // of one output
    bool valid, last;
    Word data;
    bool operator==(const Sample& other) const {
        return valid == other.valid && (!valid || (last == other.last && data == other.data));
    }
};
}  // namespace

int main(int argc, char** argv) {
    const auto context = std::make_unique<VerilatedContext>();
    context->commandArgs(argc, argv);
    context->randReset(2);  // registers start at random values, as far as no reset sets them
    const auto top = std::make_unique<Vbench>(context.get());

    unsigned select, seed, input_stall, output_stall;  // stalls in thousandths
    long reset_at, limit, aftermath;                   // cycles; no reset in mid-run if negative
    std::cin >> select >> seed >> input_stall >> output_stall >> reset_at >> limit >> aftermath;
    std::vector<Word> words[kInputs];
    size_t expected[kOutputs];
    for (auto& stream : words) {
        size_t count;
        std::cin >> count;
        std::string text;
        while (stream.size() < count && std::cin >> text) stream.push_back(parse(text));
    }
    for (auto& count : expected) std::cin >> count;
    if (!std::cin) return std::fprintf(stderr, "the stimulus is cut short\n"), 1;

    std::mt19937 random(seed);
    const auto stalls = [&](unsigned thousandths) { return random() % 1000 < thousandths; };
    const auto garbage = [&] {
        Word word;
        for (auto& limb : word) limb = random();
        return word;
    };
    const auto sample = [&](int output) {
        Sample s{bool(top->out_valid >> output & 1), bool(top->out_last >> output & 1), {}};
        for (int i = 0; i < kLimbs; i++) s.data[i] = top->out_data[output * kLimbs + i];
        return s;
    };

    size_t next[kInputs] = {};       // word that is or will be presented
    bool presented[kInputs] = {};
    std::vector<Sample> received[kOutputs];
    Sample waiting[kOutputs] = {};   // at the last edge, not taken
    bool was_waiting[kOutputs] = {};
    long cycle = 0, end = 0;         // cycles since reset
    int reset_left = 3;
    bool in_reset_before = false;
    top->select = select;
    top->clk = top->rst_n = top->in_valid = 0;
    top->eval();  // the clock is low, whatever it started at

    for (long time = 0; time < limit; time++) {
        if (time == reset_at) reset_left = 2;
        const bool reset = reset_left > 0;
        if (reset) {
            reset_left--;
            cycle = end = 0;
            for (auto& n : next) n = 0;
            for (auto& p : presented) p = false;
            for (auto& w : was_waiting) w = false;
            for (auto& r : received) r.clear();
        }
        top->rst_n = !reset;
        top->in_valid = 0;
        for (int i = 0; i < kInputs; i++) {
            if (!reset && !presented[i] && next[i] < words[i].size() && !stalls(input_stall))
                presented[i] = true;
            const Word word = presented[i] ? words[i][next[i]] : garbage();
            for (int l = 0; l < kLimbs; l++) top->in_data[i * kLimbs + l] = word[l];
            top->in_valid |= presented[i] << i;
        }

        // An output must not depend on its consumer in the same cycle.
        Sample alone[kOutputs], offered[kOutputs];
        top->out_ready = 0;
        top->eval();
        for (int o = 0; o < kOutputs; o++) alone[o] = sample(o);
        unsigned ready = 0;
        for (int o = 0; o < kOutputs; o++) ready |= !stalls(output_stall) << o;
        top->out_ready = (1 << kOutputs) - 1;
        top->eval();
        for (int o = 0; o < kOutputs; o++)
            if (!(sample(o) == alone[o]))
                std::printf("violation: output %d follows its TREADY at %ld\n", o, time);
        top->out_ready = ready;
        top->eval();

        for (int o = 0; o < kOutputs; o++) {
            offered[o] = sample(o);
            if (was_waiting[o] && !offered[o].valid)
                std::printf("violation: output %d drops TVALID at %ld\n", o, time);
            else if (was_waiting[o] && !(offered[o] == waiting[o]))
                std::printf("violation: output %d changes while it waits at %ld\n", o, time);
            if (in_reset_before && offered[o].valid)
                std::printf("violation: output %d is valid after a reset at %ld\n", o, time);
            const bool taken = !reset && offered[o].valid && (ready >> o & 1);
            if (taken) received[o].push_back(offered[o]);
            was_waiting[o] = !reset && offered[o].valid && !taken;
            waiting[o] = offered[o];
        }
        for (int i = 0; i < kInputs; i++)
            if (presented[i] && (top->in_ready >> i & 1)) {
                next[i]++;
                presented[i] = false;
            }
        in_reset_before = reset;

        top->clk = 1;
        top->eval();
        top->clk = 0;
        top->eval();
        if (!reset) cycle++;

        bool done = time > reset_at;
        for (int i = 0; i < kInputs; i++) done &= next[i] == words[i].size();
        for (int o = 0; o < kOutputs; o++) done &= received[o].size() >= expected[o];
        if (done && !end) end = cycle;
        if (end && cycle >= end + aftermath) break;
    }
    top->final();
    for (int i = 0; i < kInputs; i++) std::printf("accepted %zu\n", next[i]);
    for (int o = 0; o < kOutputs; o++)
        for (const auto& s : received[o])
            std::printf("word %d %d %s\n", o, s.last, print(s.data).c_str());
    std::printf("cycles %ld\n", end);
    return 0;
}
"""


@dataclass(frozen=True)
class Instance:
    """A module with its parameters and the streams that it has.

    Attributes:
        module: its name.
        parameters: by name; text is passed as a string.
        inputs: bits of a word of each input, padding included.
        outputs: the same of each output.
        has_last: whether its only output has TLAST.
        is_fork: whether its outputs are bits of one vector, all with the same data.
    """

    module: str
    parameters: Mapping[str, int | str]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    has_last: bool = False
    is_fork: bool = False

    def __post_init__(self) -> None:
        if len(self.inputs) > MAX_INPUTS or len(self.outputs) > MAX_OUTPUTS:
            raise ValueError(f"{self.module}: the bench has too few streams for {self}")
        if max(self.inputs + self.outputs) > MAX_WORD_BITS:
            raise ValueError(f"{self.module}: the bench has too few bits for {self}")


@dataclass(frozen=True)
class Stalls:
    """How often the neighbours of a module make it wait.

    Attributes:
        input: probability that a producer with a word pauses, per cycle.
        output: probability that a consumer is not ready, per cycle.
        seed: of both.
    """

    input: float = 0.0
    output: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """What came out of a module.

    Attributes:
        words: of each output, in order.
        lasts: TLAST of each of them; False where the module has none.
        accepted: words taken at each input.
        cycles: from the end of the last reset to the last word; 0 if not all came.
        violations: of the protocol.
    """

    words: list[list[int]]
    lasts: list[list[bool]]
    accepted: list[int]
    cycles: int
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """A program that simulates some instances.

    Attributes:
        program: the executable.
        folder: where it runs, and where $readmemh looks for files.
        instances: what it holds.
    """

    program: Path
    folder: Path
    instances: tuple[Instance, ...]

    def run(
        self,
        index: int,
        inputs: Sequence[Sequence[int]],
        expected: Sequence[int],
        *,
        stalls: Stalls | None = None,
        reset_at: int | None = None,
        cycles: int = MAX_CYCLES,
    ) -> Run:
        """Stream words through an instance.

        Args:
            index: of the instance.
            inputs: words of each of its inputs.
            expected: number of words that each of its outputs is going to give. The run goes on for
                some cycles after them; a module that gives fewer is stopped.
            stalls: of its neighbours; none if None.
            reset_at: cycle of a second reset, after which the inputs start anew and all that came
                out before is forgotten.
            cycles: after which a run is stopped that has not come to its end.

        Returns:
            What came out.
        """
        stalls = stalls or Stalls()
        instance = self.instances[index]
        assert len(inputs) == len(instance.inputs)
        assert len(expected) == len(instance.outputs)
        lines = [
            f"{index} {stalls.seed} {round(stalls.input * 1000)} {round(stalls.output * 1000)} "
            f"{-1 if reset_at is None else reset_at} {cycles} {AFTERMATH}"
        ]
        for words in [*inputs, *[[]] * (MAX_INPUTS - len(inputs))]:
            lines += [str(len(words)), *(f"{word:x}" for word in words)]
        lines += [str(count) for count in [*expected, *[0] * (MAX_OUTPUTS - len(expected))]]
        done = subprocess.run(
            [self.program],
            input="\n".join(lines) + "\n",
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return _read(done.stdout, inputs=len(inputs), outputs=len(expected))


def word_bits(elements: int, bits: int) -> int:
    """Return the bits of a word of ``elements`` elements, whole bytes."""
    return (elements * bits + 7) // 8 * 8


def pack(
    elements: NDArray[np.int64], bits: int, *, padding: np.random.Generator | None = None
) -> list[int]:
    """Pack elements into words, element 0 in the lowest bits.

    Args:
        elements: (N, PE) integers.
        bits: of an element; higher bits are dropped.
        padding: source of the bits that fill up a word; they are 0 if None.

    Returns:
        N words.
    """
    pe = elements.shape[1]
    free = word_bits(pe, bits) - pe * bits
    words = []
    for row in elements.tolist():
        word = sum((value & (1 << bits) - 1) << bits * p for p, value in enumerate(row))
        if padding is not None and free:
            word |= int(padding.integers(1 << free)) << pe * bits
        words.append(word)
    return words


def build_bench(instances: Sequence[Instance], sources: Sequence[Path], folder: Path) -> Bench:
    """Build instances into one program, in ``folder``.

    Raises:
        ToolError: if Verilator, or the compiler, refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.sv").write_text(_bench(instances), encoding="utf-8")
    harness = HARNESS.replace("@INPUTS@", str(MAX_INPUTS)).replace("@OUTPUTS@", str(MAX_OUTPUTS))
    harness = harness.replace("@WORD_BITS@", str(MAX_WORD_BITS))
    (folder / "bench.cpp").write_text(harness, encoding="utf-8")
    verilator, variables = find_verilator()
    run_tool(
        [
            *(verilator, "--cc", "--exe", "--build", "-j", "1", "-O1", "--no-timing"),
            *("-Wno-fatal", "-Wno-lint", "--top-module", "bench", "-o", "bench"),
            *("-CFLAGS", "-O1", "-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include"),
            *("--x-initial", "unique", "bench.sv", "bench.cpp", *sources),
        ],
        what="Verilator builds the test bench",
        log=folder / "build.log",
        cwd=folder,
        env=variables,
    )
    return Bench(folder / "obj_dir" / "bench", folder, tuple(instances))


def lint(instance: Instance, source: Path, folder: Path) -> None:
    """Check one instance with all of Verilator's warnings.

    Raises:
        ToolError: at the first run that warns.
    """
    verilator, variables = find_verilator()
    parameters = [f"-G{name}={_literal(value)}" for name, value in instance.parameters.items()]
    run_tool(
        [
            *(verilator, "--lint-only", "--no-timing", "-Wall", "--top-module", instance.module),
            *(*parameters, source),
        ],
        what=f"Verilator checks {instance.module}",
        log=folder / "lint.log",
        cwd=folder,
        env=variables,
    )


def _literal(value: int | str) -> str:
    return f'"{value}"' if isinstance(value, str) else str(int(value))


def _bench(instances: Sequence[Instance]) -> str:
    """Return the top: every instance, of which ``select`` chooses the one that is talked to."""
    width = MAX_WORD_BITS
    count = len(instances)
    body = "\n".join(_instance(i, instance) for i, instance in enumerate(instances))
    return f"""
module bench (
    input  wire clk, rst_n,
    input  wire [31:0] select,
    input  wire [{MAX_INPUTS - 1}:0][{width - 1}:0] in_data,
    input  wire [{MAX_INPUTS - 1}:0] in_valid,
    output wire [{MAX_INPUTS - 1}:0] in_ready,
    output wire [{MAX_OUTPUTS - 1}:0][{width - 1}:0] out_data,
    output wire [{MAX_OUTPUTS - 1}:0] out_valid, out_last,
    input  wire [{MAX_OUTPUTS - 1}:0] out_ready
);
    logic [{MAX_OUTPUTS - 1}:0][{width - 1}:0] data[{count}];
    logic [{MAX_OUTPUTS - 1}:0] valid[{count}], last[{count}];
    logic [{MAX_INPUTS - 1}:0] ready[{count}];
    assign out_data = data[select];
    assign out_valid = valid[select];
    assign out_last = last[select];
    assign in_ready = ready[select];
{body}
endmodule
"""


def _instance(index: int, instance: Instance) -> str:
    ports = [".ap_clk(clk)", ".ap_rst_n(rst_n)"]
    mine = f"select == {index}"
    for i, bits in enumerate(instance.inputs):
        ports += [
            f".in{i}_V_TDATA(in_data[{i}][{bits - 1}:0])",
            f".in{i}_V_TVALID({mine} && in_valid[{i}])",
            f".in{i}_V_TREADY(ready[{index}][{i}])",
        ]
    lines = [f"assign ready[{index}][{i}] = 1'b0;" for i in range(len(instance.inputs), MAX_INPUTS)]
    count = len(instance.outputs)
    if instance.is_fork:
        bits = instance.outputs[0]
        lines += [f"wire [{bits - 1}:0] copy_{index};"]
        lines += [
            f"assign data[{index}][{o}] = {MAX_WORD_BITS}'(copy_{index});" for o in range(count)
        ]
        ports += [
            f".out_V_TDATA(copy_{index})",
            f".out_V_TVALID(valid[{index}][{count - 1}:0])",
            f".out_V_TREADY(out_ready[{count - 1}:0])",
        ]
    else:
        for o, bits in enumerate(instance.outputs):
            ports += [
                f".out{o}_V_TDATA(data[{index}][{o}][{bits - 1}:0])",
                f".out{o}_V_TVALID(valid[{index}][{o}])",
                f".out{o}_V_TREADY(out_ready[{o}])",
            ]
            if bits < MAX_WORD_BITS:
                lines += [f"assign data[{index}][{o}][{MAX_WORD_BITS - 1}:{bits}] = '0;"]
    if instance.has_last:
        ports += [f".out0_V_TLAST(last[{index}][0])"]
    for o in range(MAX_OUTPUTS):
        if o >= count:
            lines += [f"assign data[{index}][{o}] = '0;", f"assign valid[{index}][{o}] = 1'b0;"]
        if o >= count or not instance.has_last:
            lines += [f"assign last[{index}][{o}] = 1'b0;"]
    parameters = [f".{name}({_literal(value)})" for name, value in instance.parameters.items()]
    setting = f" #({', '.join(parameters)})" if parameters else ""
    lines += [f"{instance.module}{setting} dut_{index} ({', '.join(ports)});"]
    return "\n".join(f"    {line}" for line in lines)


def _read(text: str, *, inputs: int, outputs: int) -> Run:
    words: list[list[int]] = [[] for _ in range(outputs)]
    lasts: list[list[bool]] = [[] for _ in range(outputs)]
    accepted: list[int] = []
    violations: list[str] = []
    cycles = 0
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "violation:":
            violations.append(rest)
        elif kind == "accepted":
            accepted.append(int(rest))
        elif kind == "cycles":
            cycles = int(rest)
        else:
            output, last, word = rest.split()
            words[int(output)].append(int(word, 16))
            lasts[int(output)].append(last == "1")
    return Run(words, lasts, accepted[:inputs], cycles, violations)
