# SPDX-License-Identifier: BSD-3-Clause
"""The table of boards: FINN's boards as FINN knows them, and the open ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from brevitas_divqat.fpga.boards.table import BOARDS, Resources, board

from brevitas_divqat.errors import ConfigError, HardwareError

TOLERANCE = 0.05
"""FINN rounds some resources."""

ALVEO = ("U50", "U200", "U250", "U280", "U55C")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Pynq-Z1", "Pynq-Z1"),
        ("PYNQ_Z2", "Pynq-Z2"),
        ("pynqz1", "Pynq-Z1"),
        ("kv260", "KV260_SOM"),
        ("KV260_SOM", "KV260_SOM"),
        ("kv260-som", "KV260_SOM"),
        ("AUP-ZU3", "AUP-ZU3_8GB"),
        (" ulx3s ", "ulx3s-85f"),
        ("ULX3S-85F", "ulx3s-85f"),
        ("v80", "V80"),
    ],
)
def test_a_board_is_found_by_any_spelling(spelling: str, name: str) -> None:
    assert board(spelling) is BOARDS[name]


def test_an_unknown_board_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(HardwareError) as caught:
        board("Pynq-Z3")
    message = str(caught.value)
    assert "'Pynq-Z3' is unknown: did you mean Pynq-Z2 or Pynq-Z1? choose from" in message
    assert all(name in message for name in BOARDS)
    assert "\n" not in message


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    with pytest.raises(HardwareError, match="'qqqqqqqq' is unknown: choose from Pynq-Z1"):
        board("qqqqqqqq")


def test_the_table_is_read_without_finn() -> None:
    code = (
        "import sys; from brevitas_divqat.fpga.boards.table import BOARDS; "
        "print(sorted({'finn', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_parts_and_platforms_are_finns() -> None:
    basic = pytest.importorskip("finn.util.basic", reason="finn-plus is not installed")
    ours = {name: b for name, b in BOARDS.items() if b.flow == "finn"}
    assert {name: b.part for name, b in ours.items()} == basic.part_map
    assert {n: b.platform for n, b in ours.items() if b.platform} == basic.alveo_default_platform
    zynq = {name for name, b in ours.items() if b.shell == "vivado_zynq"}
    assert zynq == set(basic.pynq_part_map)
    assert all(b.generated_for == b.part for b in ours.values())
    assert all(basic.is_versal(b.part) == (b.family == "versal") for b in ours.values())


def test_resources_agree_with_finns_platforms() -> None:
    """FINN's numbers for Alveo cards are what the shell leaves; the part has more."""
    platforms = pytest.importorskip("finn.util.platforms", reason="finn-plus is not installed")
    for name, platform in platforms.platforms.items():
        regions = platform().compute_resources
        finn = [sum(region[i] for region in regions) for i in range(5)]
        r = BOARDS[name].resources
        for ours, theirs in zip((r.LUT, r.FF, r.BRAM18, r.URAM, r.DSP), finn, strict=True):
            if name in ALVEO:
                assert theirs <= ours, name
            else:
                assert ours == pytest.approx(theirs, rel=TOLERANCE), name


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"clock_ns": 0.0}, HardwareError, "clock period is 0.0 ns: more than 0"),
        ({"shell": "uart"}, HardwareError, "shell uart belongs to the open flow"),
        ({"platform": "xilinx"}, HardwareError, "belongs to the shell vitis_alveo"),
        ({"family": "ice40"}, ConfigError, "choose from"),
    ],
)
def test_a_wrong_entry_is_refused(
    change: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        replace(BOARDS["Pynq-Z1"], **change)  # type: ignore[arg-type]


def test_negative_resources_are_refused() -> None:
    with pytest.raises(HardwareError, match="DSP is -1"):
        Resources(LUT=1, FF=1, BRAM18=0, DSP=-1, URAM=0)
