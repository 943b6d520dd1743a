# SPDX-License-Identifier: BSD-3-Clause
"""Edits of finn-rtllib: each fits the installed files, and another text is refused."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from brevitas_divqat.fpga.finn_environment import prepare
from brevitas_divqat.fpga.rtl.patches import NETTYPE, PATCHES, Move, Patch, Replace, patched

from brevitas_divqat.errors import ToolError

FILES = sorted({patch.file for patch in PATCHES})
PLACES = dict.fromkeys(("add_multi.sv", "mvu.sv", "mvu_vvu_axi.sv"), "mvu") | {
    "fifo.sv": "fifo",
    "thresholding.sv": "thresholding",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("finn")
    prepare(tmp_path_factory.mktemp("finn"))
    from finn.util.settings import get_settings

    return Path(get_settings().finn_rtllib)


def original(library: Path, file: str) -> str:
    (found,) = (library / PLACES[file]).rglob(file)
    return found.read_text()


def of(file: str) -> list[Patch]:
    return [patch for patch in PATCHES if patch.file == file]


@pytest.mark.parametrize("file", FILES)
def test_every_edit_fits_the_installed_file_and_changes_it(file: str, library: Path) -> None:
    text = original(library, file)
    for patch in of(file):
        edited = patch.apply(text)
        assert edited != text
        assert patch.reason
        text = edited
    assert patched(file, original(library, file)) == NETTYPE.sub("", text)


@pytest.mark.parametrize("file", FILES)
def test_nothing_else_changes(file: str, library: Path) -> None:
    """Lines that are gone or new belong to an edit."""
    before, after = original(library, file), patched(file, original(library, file))
    replacements = [patch for patch in of(file) if isinstance(patch, Replace)]
    growth = sum(patch.count * (len(patch.new) - len(patch.old)) for patch in replacements)
    nettypes = sum(len(found) for found in NETTYPE.findall(before))
    assert len(after) == len(before) + growth - nettypes
    words = "".join(patch.old + patch.new for patch in replacements).split()
    words += [word for p in of(file) if isinstance(p, Move) for word in moved(p, before).split()]
    for line in difflib.ndiff(NETTYPE.sub("", before).split("\n"), after.split("\n")):
        if line[0] in "+-":
            assert not line[1:].strip() or any(word in line for word in words), line


def moved(patch: Move, text: str) -> str:
    return text[text.index(patch.first) : text.index(patch.end)]


@pytest.mark.parametrize("number", range(len(PATCHES)), ids=lambda n: f"{n}-{PATCHES[n].file}")
def test_another_text_is_refused_with_file_and_version(number: int, library: Path) -> None:
    """Each edit in turn finds its text gone, and one time more than it should be there."""
    patch = PATCHES[number]
    text = original(library, patch.file)
    for earlier in PATCHES[:number]:
        if earlier.file == patch.file:
            text = earlier.apply(text)
    marker = patch.old if isinstance(patch, Replace) else patch.target  # type: ignore[attr-defined]
    for other in (text.replace(marker, ""), text + marker):
        with pytest.raises(ToolError) as caught:
            patch.apply(other)
        message = str(caught.value)
        assert "\n" not in message
        for part in (patch.file, "finn-plus 1.6.1", patch.reason):
            assert part in message
    with pytest.raises(ToolError, match="finn-rtllib"):
        patched(patch.file, "")


def test_a_move_keeps_every_line() -> None:
    move = Move("a.sv", "a reason", first="two\n", end="four\n", target="one\n")
    assert move.apply("zero\none\ntwo\nthree\nfour\n") == "zero\ntwo\nthree\none\nfour\n"


def test_a_file_without_edits_loses_its_default_nettypes_alone(library: Path) -> None:
    name = "memstream.sv"
    (found,) = (library / "memstream").rglob(name)
    text = found.read_text()
    assert patched(name, text) == NETTYPE.sub("", text)
    assert patched("own.sv", "a\n  `default_nettype none\nb `default_nettype\n") == (
        "a\n\nb `default_nettype\n"
    )


def test_the_library_is_left_as_it_is(library: Path) -> None:
    before = {file: original(library, file) for file in FILES}
    for file in FILES:
        patched(file, before[file])
    assert {file: original(library, file) for file in FILES} == before
