# SPDX-License-Identifier: BSD-3-Clause
"""Edits of our copies of finn-rtllib, each with its reason.

FINN's library is written for Vivado. Verilator and Yosys' SystemVerilog reader refuse a few of its
lines, none of which changes what the hardware does; one edit mends a queue that overflows. An edit
names the text that it is about; where another version of FINN has another text, it fails rather
than leave the file as it is.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from brevitas_divqat.errors import ToolError

__all__ = ["PATCHES", "Move", "Patch", "Replace", "patched"]


@dataclass(frozen=True)
class Patch(ABC):
    """One edit of a file of finn-rtllib.

    Attributes:
        file: its name.
        reason: why the text cannot stay.
    """

    file: str
    reason: str

    @abstractmethod
    def apply(self, text: str) -> str:
        """Return the edited text of the whole file."""

    def check(self, text: str, found: str, count: int) -> None:
        """Raise ToolError unless ``found`` stands in ``text`` ``count`` times."""
        if text.count(found) != count:
            raise ToolError(
                f"finn-rtllib/{self.file} is not the file that this version was made for: "
                f"{found.strip()!r} stands there {text.count(found)} times, expected {count} "
                f"({self.reason}): install finn-plus 1.6.1"
            )


@dataclass(frozen=True)
class Replace(Patch):
    """Puts ``new`` in the place of ``old``, which stands there ``count`` times."""

    old: str
    new: str
    count: int = 1

    def apply(self, text: str) -> str:
        """Return the edited text of the whole file."""
        self.check(text, self.old, self.count)
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Move(Patch):
    """Moves the lines from ``first`` up to, without, ``end`` to before ``target``."""

    first: str
    end: str
    target: str

    def apply(self, text: str) -> str:
        """Return the edited text of the whole file."""
        for marker in (self.first, self.end, self.target):
            self.check(text, marker, 1)
        start, stop = text.index(self.first), text.index(self.end)
        lines, rest = text[start:stop], text[:start] + text[stop:]
        place = rest.index(self.target)
        return rest[:place] + lines + rest[place:]


NETTYPE = re.compile(r"^[ \t]*`default_nettype[ \t]+\w+[ \t]*$", re.MULTILINE)

CONSTANT_FUNCTION = "Verilator takes no constant function inside a generate block"
SHIFTED = (
    "Yosys leaves a shift register that is read by index as flip-flops; a memory with two pointers "
    "holds the same words in the same order and becomes LUTRAM on every family"
)
QUEUE = (
    "the queue is too short for what the pipeline holds when the next layer stops taking, where "
    "a result comes in every cycle: results are overwritten or lost"
)
STRUCT_LITERAL = "Verilator takes no struct literal in a constant function"
WILDCARD = "Yosys' reader has no wildcard comparison; the constants on the right have no wildcards"
X_CHECK = "Yosys' reader has no wildcard comparison; simulation alone reads this line"

PATCHES: tuple[Patch, ...] = (
    Move(
        "add_multi.sv",
        CONSTANT_FUNCTION,
        first="\t\ttypedef int unsigned  leaf_load_t",
        end="\t\tlocalparam leaf_load_t   LEAF_LOAD",
        target="\tuwire [SUM_WIDTH-1:0]  sum0;",
    ),
    Replace(
        "add_multi.sv",
        CONSTANT_FUNCTION,
        "function leaf_load_t",
        "function automatic leaf_load_t",
    ),
    Replace("add_multi.sv", CONSTANT_FUNCTION, "\t\t\tautomatic leaf_load_t", "\t\t\tleaf_load_t"),
    Replace("fifo.sv", STRUCT_LITERAL, "typedef struct {", "typedef struct packed {"),
    Replace("fifo.sv", STRUCT_LITERAL, "function abits_t INIT", "function automatic abits_t INIT"),
    Replace(
        "fifo.sv",
        STRUCT_LITERAL,
        "automatic abits_t  abits = '{ lo: $clog2(DEPTH_REQ), hi: 0 };",
        "abits_t  abits;\n\t\tint unsigned  hi_abits;\n"
        "\t\tabits.lo = $clog2(DEPTH_REQ);\n\t\tabits.hi = 0;",
    ),
    Replace("fifo.sv", STRUCT_LITERAL, "automatic int unsigned  hi_abits", "hi_abits"),
    Replace(
        "fifo.sv",
        SHIFTED,
        '\t\t(* SHREG_EXTRACT = "yes" *) dat_t  A[DEPTH_IMPL];\n',
        "\t\tlogic [$clog2(DEPTH_IMPL)-1:0]  WrPtr = 0;\n"
        "\t\tlogic [$clog2(DEPTH_IMPL)-1:0]  RdPtr = 0;\n"
        '\t\t(* ram_style = "distributed" *) dat_t  A[2**$clog2(DEPTH_IMPL)];\n',
    ),
    Replace("fifo.sv", SHIFTED, "A <= { idat, A[0:DEPTH_IMPL-2] };", "A[WrPtr] <= idat;"),
    Replace(
        "fifo.sv",
        SHIFTED,
        "\t\t\t\tPtr <= '1;\n",
        "\t\t\t\tPtr <= '1;\n\t\t\t\tWrPtr <= 0;\n\t\t\t\tRdPtr <= 0;\n",
    ),
    Replace(
        "fifo.sv",
        SHIFTED,
        "\t\t\t\tPtr <= Ptr + (",
        "\t\t\t\tWrPtr <= WrPtr + push;\n\t\t\t\tRdPtr <= RdPtr + pop;\n\t\t\t\tPtr <= Ptr + (",
    ),
    Replace("fifo.sv", SHIFTED, "B <= A[Ptr[$left(Ptr)-1:0]];", "B <= A[RdPtr];"),
    Replace(
        "fifo.sv",
        "Yosys reads the attribute in lower case alone, and else takes a block RAM",
        '(* RAM_STYLE = "distributed" *)',
        '(* ram_style = "distributed" *)',
    ),
    Replace(
        "mvu.sv",
        "a delay needs Verilator's slower timing mode; it only arms a warning about DSP start-up",
        "\t\t\t#100ns;\n\t\t\tDirty <= 0;\n",
        "\t\t\tDirty = 0;\n",
    ),
    Replace(
        "mvu_vvu_axi.sv",
        QUEUE,
        "MAX_IN_FLIGHT = CORE_PIPELINE_DEPTH;",
        "SOFT_DEPTH = 4 + $clog2(SIMD) + (SIMD == 1);  // mvu.sv's PIPELINE_DEPTH\n"
        "\t\tlocalparam int unsigned  MAX_IN_FLIGHT = 1 +\n"
        "\t\t\t(SOFT_DEPTH > CORE_PIPELINE_DEPTH? SOFT_DEPTH : CORE_PIPELINE_DEPTH);",
    ),
    Replace(
        "thresholding.sv",
        "Yosys' reader refuses a reversed part select, which an untaken branch has",
        "p.ptr[M-1:SN+1] <",
        "(p.ptr[M-1:0] >> (SN+1)) <",
    ),
    Replace("thresholding.sv", WILDCARD, "op ==? ", "op == ", count=4),
    Replace("thresholding.sv", WILDCARD, "P.op !=? CFG", "!P.op[1]"),
    Replace("thresholding.sv", X_CHECK, "op !=? TH", "op != TH", count=2),
)


def patched(file: str, text: str) -> str:
    """Return a file's text with its edits.

    `` `default_nettype `` goes from every file: FINN sets it inside module bodies, which the
    standard forbids (IEEE 1800-2017, 22.8) and Yosys' reader refuses.

    Raises:
        ToolError: if the text is not the one that an edit was made for.
    """
    for patch in PATCHES:
        if patch.file == file:
            text = patch.apply(text)
    return NETTYPE.sub("", text)
