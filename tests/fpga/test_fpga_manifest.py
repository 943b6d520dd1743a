# SPDX-License-Identifier: BSD-3-Clause
"""`manifest.json`: what a build folder says about itself, whole or refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from brevitas_divqat.fpga.build.manifest import FORMAT, MANIFEST_FILE, Manifest, build_versions

from brevitas_divqat import __version__
from brevitas_divqat.errors import HardwareError

MANIFEST = Manifest(
    model="lenet5",
    data="digits",
    model_sha256="a" * 64,
    exported_sha256="b" * 64,
    board="Pynq-Z1",
    part="xc7z020clg400-1",
    fps=1000.0,
    clock_ns=10.0,
    fifos="default",
    versions={"brevitas-divqat": "1", "finn-plus": "2"},
    steps=("graph",),
    files={"graph": {"model.onnx": "c" * 64}},
)
SETTINGS = [field.name for field in fields(Manifest) if field.name not in ("steps", "files")]


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of "abc", from FIPS 180-2."""


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(HardwareError) as caught:
        Manifest.read(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message


def written(folder: Path) -> dict[str, Any]:
    MANIFEST.write(folder)
    content: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text())
    return content


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert written(tmp_path)["format"] == FORMAT == 2
    assert Manifest.read(tmp_path) == MANIFEST


def test_a_finished_step_is_written_behind_the_others(tmp_path: Path) -> None:
    (tmp_path / "dataflow.onnx").write_bytes(b"abc")
    finished = MANIFEST.finish("dataflow", tmp_path, ("dataflow.onnx", "missing"))
    assert finished.steps == ("graph", "dataflow")
    assert finished.files == MANIFEST.files | {"dataflow": {"dataflow.onnx": ABC}}
    assert Manifest.read(tmp_path) == finished
    finished.require("dataflow", tmp_path)
    with pytest.raises(HardwareError, match="finished: graph, dataflow; needed: rtl"):
        finished.require("rtl", tmp_path)
    with pytest.raises(HardwareError, match="finished: nothing; needed: graph"):
        replace(MANIFEST, steps=()).require("graph", tmp_path)


def test_a_folder_without_one_is_no_build_folder(tmp_path: Path) -> None:
    refused(tmp_path, "no build folder", "divqat build")
    refused(tmp_path / "missing", "no build folder")


def test_the_format_without_hashes_says_so(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(written(tmp_path) | {"format": 1}))
    refused(tmp_path, "format 1, without hashes of its files", "reads 2", "another folder")


@pytest.mark.parametrize("found", [0, 3, "2", None])
def test_another_format_is_refused(found: object, tmp_path: Path) -> None:
    content = written(tmp_path) | {"format": found}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content))
    refused(tmp_path, f"format {found}", "reads 2", "another folder")


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    text = (tmp_path / MANIFEST_FILE).read_bytes()
    for length in range(0, len(text) - 2, 5):
        (tmp_path / MANIFEST_FILE).write_bytes(text[:length])
        refused(tmp_path, "damaged")
    (tmp_path / MANIFEST_FILE).write_bytes(b"\xff" + text)
    refused(tmp_path, "damaged")


@pytest.mark.parametrize("content", ["[]", "7", "null", "{}", '"format"'])
def test_json_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(content)
    refused(tmp_path, "damaged")


@pytest.mark.parametrize(
    "key", [name for name in SETTINGS if name != "versions"] + ["steps", "files"]
)
def test_a_missing_or_unknown_entry_is_refused(key: str, tmp_path: Path) -> None:
    content = written(tmp_path)
    value = content.pop(key)
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content | {key: value, "more": 1}))
    refused(tmp_path, "damaged")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("board", 5),
        ("data", None),
        ("model_sha256", ["a"]),
        ("fps", "1"),
        ("fps", True),
        ("fps", 0),
        ("fps", float("nan")),
        ("clock_ns", -1.0),
        ("clock_ns", float("inf")),
        ("versions", ["a"]),
        ("versions", {"finn-plus": 2}),
        ("files", ["a"]),
        ("files", {"graph": "model.onnx"}),
        ("files", {"graph": {"model.onnx": 7}}),
        ("steps", [{}]),
    ],
)
def test_an_entry_of_another_kind_is_refused(key: str, value: object, tmp_path: Path) -> None:
    content = written(tmp_path) | {key: value}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")


def left(folder: Path) -> Manifest:
    """Finish three steps, of which the last one writes a file of the second one again."""
    manifest = replace(MANIFEST, steps=(), files={})
    for step, files in (("a", "x"), ("b", "yz"), ("c", "z")):
        for name in files:
            (folder / name).write_text(step)
        manifest = manifest.finish(step, folder, files)
    return manifest


def test_steps_are_kept_while_their_files_are_as_they_were(tmp_path: Path) -> None:
    manifest = left(tmp_path)
    assert manifest.intact(tmp_path, "abcd") == (manifest, "")


@pytest.mark.parametrize(
    ("name", "kept"), [("x", ""), ("y", "a"), ("z", "a")], ids=["first", "own", "shared"]
)
def test_a_step_whose_file_is_lost_or_changed_goes_with_all_behind_it(
    name: str, kept: str, tmp_path: Path
) -> None:
    manifest = left(tmp_path)
    (tmp_path / name).write_text("b" if name == "z" else "other")
    found, reason = manifest.intact(tmp_path, "abcd")
    assert (found.steps, reason) == (tuple(kept), f"{name} is changed")
    assert list(found.files) == list(kept)
    (tmp_path / name).unlink()
    found, reason = manifest.intact(tmp_path, "abcd")
    assert (found.steps, reason) == (tuple(kept), f"{name} is missing")


def test_steps_that_left_nothing_or_come_from_nowhere_are_not_kept(tmp_path: Path) -> None:
    manifest = left(tmp_path)
    added = replace(manifest, steps=(*manifest.steps, "d"))
    assert added.intact(tmp_path, "abcd") == (manifest, f"{MANIFEST_FILE} names no file of step d")
    emptied = replace(added, files=added.files | {"d": {}})
    assert emptied.intact(tmp_path, "abcd")[0] == manifest
    gap = replace(manifest, steps=("a", "c"))
    found, reason = gap.intact(tmp_path, "abcd")
    assert (found.steps, reason) == (("a",), f"{MANIFEST_FILE} names steps out of order (a, c)")


@pytest.mark.parametrize(
    ("fifos", "steps", "needed"),
    [
        ("default", ("graph",), "rtl"),
        ("measured", ("graph",), "rtl"),
        ("measured", ("graph", "rtl"), "fifos"),
    ],
)
def test_rtl_that_is_half_built_is_refused(
    fifos: str, steps: tuple[str, ...], needed: str, tmp_path: Path
) -> None:
    with pytest.raises(HardwareError, match=f"not built to the end .* needed: {needed}"):
        replace(MANIFEST, fifos=fifos, steps=steps).require_rtl(tmp_path)


@pytest.mark.parametrize("steps", [3, None, {"a": 1}, "graph"])
def test_steps_of_another_kind_are_refused(steps: object, tmp_path: Path) -> None:
    content = written(tmp_path) | {"steps": steps}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")


def test_a_difference_of_versions_names_the_package() -> None:
    other = replace(MANIFEST, versions={"finn-plus": "3"})
    assert MANIFEST.differences(other) == [
        "brevitas-divqat 1 instead of none",
        "finn-plus 2 instead of 3",
    ]


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "versions"])
def test_every_setting_but_the_origin_makes_another_build(name: str) -> None:
    values: dict[str, Any] = {"fps": 1001.0, "clock_ns": 9.0}
    other = replace(MANIFEST, **{name: values.get(name, "other")})
    differences = MANIFEST.differences(other)
    if name == "exported_sha256":  # the integer graph alone is built
        assert differences == []
    else:
        (difference,) = differences
        assert (
            difference == f"{name} {getattr(MANIFEST, name)!r} instead of {getattr(other, name)!r}"
        )


def test_steps_make_no_other_build() -> None:
    assert MANIFEST.differences(replace(MANIFEST, steps=(), files={})) == []


def test_versions_are_those_that_are_installed() -> None:
    pytest.importorskip("finn")
    assert build_versions() == {
        "brevitas-divqat": __version__,
        "finn-plus": version("finn-plus"),
    }
