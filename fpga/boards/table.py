# SPDX-License-Identifier: BSD-3-Clause
"""The boards that a network can be built for.

FINN's boards stand here with FINN's names and parts, so that nothing of FINN is imported to list
them; a test compares the table with FINN's. Resources are those of the whole part, from AMD's data
sheets DS190 (Zynq-7000), DS891 (Zynq UltraScale+), DS889 (RFSoC), DS987 (K26), DS890 (the parts of
the Alveo cards), DS950 and DS1013 (Versal), from Lattice's FPGA-DS-02012 (ECP5) and from Gowin's
DS226 (GW2AR). A shell takes its share of them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from brevitas_divqat.errors import HardwareError, check_choice

__all__ = ["BOARDS", "Board", "Family", "Flow", "Resources", "Shell", "board"]

Flow = Literal["finn", "open"]
"""``finn``: the bitstream comes from FINN and Vivado; ``open``: from Yosys and nextpnr."""

Family = Literal["xc7", "xcup", "versal", "ecp5", "gowin"]
"""Which cells the part has."""

Shell = Literal["vivado_zynq", "vitis_alveo", "none", "uart"]
"""What stands around the accelerator: one of FINN's shells; ``none``: FINN has no shell for the
board, which ends at estimates and RTL; ``uart``: this package's own top with a serial line."""

ALTERNATIVES = 3


@dataclass(frozen=True)
class Resources:
    """What a part has.

    Attributes:
        LUT: look-up tables: of 6 inputs on AMD's parts, of 4 on Lattice's and Gowin's.
        FF: flip-flops.
        BRAM18: block RAMs of 18 kbit; AMD's of 36 kbit count twice.
        DSP: multiplier blocks: DSP48, DSP58, or 18 x 18 bit multipliers elsewhere.
        URAM: UltraRAMs of 288 kbit.
    """

    LUT: int
    FF: int
    BRAM18: int
    DSP: int
    URAM: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise HardwareError(f"{name} is {value}: a part has 0 or more")


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes:
        name: as FINN spells it.
        part: the device's full name: family, size, package, speed grade.
        family: which cells the part has.
        flow: which tools make its bitstream.
        shell: what stands around the accelerator.
        clock_ns: default clock period.
        platform: name of the Vitis platform; empty where there is none.
        resources: of the part.
        generated_for: part that FINN generates the RTL for; the board's own where FINN knows it.
    """

    name: str
    part: str
    family: Family
    flow: Flow
    shell: Shell
    clock_ns: float
    platform: str
    resources: Resources
    generated_for: str

    def __post_init__(self) -> None:
        check_choice("family", self.family, Family)
        check_choice("flow", self.flow, Flow)
        check_choice("shell", self.shell, Shell)
        if not self.clock_ns > 0:
            raise HardwareError(f"{self.name}: the clock period is {self.clock_ns} ns: more than 0")
        if (self.flow == "open") != (self.shell == "uart"):
            raise HardwareError(f"{self.name}: the shell uart belongs to the open flow")
        if (self.shell == "vitis_alveo") != bool(self.platform):
            raise HardwareError(f"{self.name}: a Vitis platform belongs to the shell vitis_alveo")


XC7Z020 = Resources(LUT=53_200, FF=106_400, BRAM18=280, DSP=220, URAM=0)
ZU3EG = Resources(LUT=70_560, FF=141_120, BRAM18=432, DSP=360, URAM=0)
ZU7EV = Resources(LUT=230_400, FF=460_800, BRAM18=624, DSP=1_728, URAM=96)
ZU9EG = Resources(LUT=274_080, FF=548_160, BRAM18=1_824, DSP=2_520, URAM=0)
RFSOC = Resources(LUT=425_280, FF=850_560, BRAM18=2_160, DSP=4_272, URAM=80)
K26 = Resources(LUT=117_120, FF=234_240, BRAM18=288, DSP=1_248, URAM=64)
U50 = Resources(LUT=871_680, FF=1_743_360, BRAM18=2_688, DSP=5_952, URAM=640)
U200 = Resources(LUT=1_182_240, FF=2_364_480, BRAM18=4_320, DSP=6_840, URAM=960)
U250 = Resources(LUT=1_728_000, FF=3_456_000, BRAM18=5_376, DSP=12_288, URAM=1_280)
U280 = Resources(LUT=1_303_680, FF=2_607_360, BRAM18=4_032, DSP=9_024, URAM=960)
VC1902 = Resources(LUT=899_840, FF=1_799_680, BRAM18=1_934, DSP=1_968, URAM=463)
VE2802 = Resources(LUT=520_704, FF=1_041_408, BRAM18=1_200, DSP=1_312, URAM=264)
XCV80 = Resources(LUT=2_574_208, FF=5_148_416, BRAM18=7_482, DSP=10_848, URAM=1_925)
LFE5U_85F = Resources(LUT=83_640, FF=83_640, BRAM18=208, DSP=156, URAM=0)
GW2AR_18 = Resources(LUT=20_736, FF=15_552, BRAM18=46, DSP=48, URAM=0)


def _zynq(name: str, part: str, resources: Resources) -> Board:
    family: Family = "xc7" if part.startswith("xc7") else "xcup"
    return Board(name, part, family, "finn", "vivado_zynq", 10.0, "", resources, part)


def _alveo(name: str, part: str, platform: str, resources: Resources) -> Board:
    return Board(name, part, "xcup", "finn", "vitis_alveo", 5.0, platform, resources, part)


def _versal(name: str, part: str, resources: Resources) -> Board:
    return Board(name, part, "versal", "finn", "none", 5.0, "", resources, part)


def _open(
    name: str, part: str, family: Family, clock_ns: float, resources: Resources, generated_for: str
) -> Board:
    return Board(name, part, family, "open", "uart", clock_ns, "", resources, generated_for)


BOARDS: dict[str, Board] = {
    b.name: b
    for b in (
        _zynq("Pynq-Z1", "xc7z020clg400-1", XC7Z020),
        _zynq("Pynq-Z2", "xc7z020clg400-1", XC7Z020),
        _zynq("Ultra96", "xczu3eg-sbva484-1-e", ZU3EG),
        _zynq("Ultra96-V2", "xczu3eg-sbva484-1-i", ZU3EG),
        _zynq("AUP-ZU3_8GB", "xczu3eg-sfvc784-2-e", ZU3EG),
        _zynq("ZCU102", "xczu9eg-ffvb1156-2-e", ZU9EG),
        _zynq("ZCU104", "xczu7ev-ffvc1156-2-e", ZU7EV),
        _zynq("ZCU111", "xczu28dr-ffvg1517-2-e", RFSOC),
        _zynq("RFSoC2x2", "xczu28dr-ffvg1517-2-e", RFSOC),
        _zynq("RFSoC4x2", "xczu48dr-ffvg1517-2-e", RFSOC),
        _zynq("KV260_SOM", "xck26-sfvc784-2LV-c", K26),
        _alveo("U50", "xcu50-fsvh2104-2L-e", "xilinx_u50_gen3x16_xdma_5_202210_1", U50),
        _alveo("U200", "xcu200-fsgd2104-2-e", "xilinx_u200_gen3x16_xdma_2_202110_1", U200),
        _alveo("U250", "xcu250-figd2104-2L-e", "xilinx_u250_gen3x16_xdma_4_1_202210_1", U250),
        _alveo("U280", "xcu280-fsvh2892-2L-e", "xilinx_u280_gen3x16_xdma_1_202211_1", U280),
        _alveo("U55C", "xcu55c-fsvh2892-2L-e", "xilinx_u55c_gen3x16_xdma_3_202210_1", U280),
        _versal("VCK190", "xcvc1902-vsva2197-2MP-e-S", VC1902),
        _versal("VEK280", "xcve2802-vsvh1760-2MP-e-S", VE2802),
        _versal("V80", "xcv80-lsva4737-2MHP-e-s", XCV80),
        # RTL for a small 7-series part: its multipliers are written out for other families.
        _open("ulx3s-85f", "LFE5U-85F-6BG381C", "ecp5", 40.0, LFE5U_85F, "xc7z020clg400-1"),
        _open(
            *("tang-nano-20k", "GW2AR-LV18QN88C8/I7", "gowin"),
            *(1000 / 27, GW2AR_18, "xc7z020clg400-1"),
        ),
    )
}
"""Every board, by name."""

ALIASES = {
    "aup-zu3": "AUP-ZU3_8GB",
    "kria": "KV260_SOM",
    "kv260": "KV260_SOM",
    "pynqz1": "Pynq-Z1",
    "pynqz2": "Pynq-Z2",
    "tang": "tang-nano-20k",
    "tangnano20k": "tang-nano-20k",
    "ulx3s": "ulx3s-85f",
    "ultra96v2": "Ultra96-V2",
}
"""Other spellings, in lower case, to names."""


def board(name: str) -> Board:
    """Find a board by its name or another spelling of it, in upper or lower case.

    Raises:
        HardwareError: if there is none, with the nearest names and all of them.

    Example:
        >>> board("pynq-z1").part
        'xc7z020clg400-1'
    """
    known = {n.lower(): n for n in BOARDS} | ALIASES
    wanted = name.strip().lower().replace("_", "-")
    spellings = {spelling.replace("_", "-"): n for spelling, n in known.items()}
    if wanted in spellings:
        return BOARDS[spellings[wanted]]
    near = difflib.get_close_matches(wanted, spellings, ALTERNATIVES)
    names = list(dict.fromkeys(spellings[n] for n in near))
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    raise HardwareError(f"the board {name!r} is unknown: {hint}choose from {', '.join(BOARDS)}")
