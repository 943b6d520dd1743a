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
)
SETTINGS = [field.name for field in fields(Manifest) if field.name != "steps"]


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
    assert written(tmp_path)["format"] == FORMAT == 1
    assert Manifest.read(tmp_path) == MANIFEST


def test_a_finished_step_is_written_behind_the_others(tmp_path: Path) -> None:
    finished = MANIFEST.finish("dataflow", tmp_path)
    assert finished == replace(MANIFEST, steps=("graph", "dataflow"))
    assert Manifest.read(tmp_path) == finished
    finished.require("dataflow", tmp_path)
    with pytest.raises(HardwareError, match="finished: graph, dataflow; needed: rtl"):
        finished.require("rtl", tmp_path)
    with pytest.raises(HardwareError, match="finished: nothing; needed: graph"):
        replace(MANIFEST, steps=()).require("graph", tmp_path)


def test_a_folder_without_one_is_no_build_folder(tmp_path: Path) -> None:
    refused(tmp_path, "no build folder", "divqat build")
    refused(tmp_path / "missing", "no build folder")


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_another_format_is_refused(found: object, tmp_path: Path) -> None:
    content = written(tmp_path) | {"format": found}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content))
    refused(tmp_path, f"format {found}", "reads 1", "another folder")


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


@pytest.mark.parametrize("key", [name for name in SETTINGS if name != "versions"] + ["steps"])
def test_a_missing_or_unknown_entry_is_refused(key: str, tmp_path: Path) -> None:
    content = written(tmp_path)
    value = content.pop(key)
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content | {key: value, "more": 1}))
    refused(tmp_path, "damaged")


@pytest.mark.parametrize("steps", [3, None, {"a": 1}, "graph"])
def test_steps_of_another_kind_are_refused(steps: object, tmp_path: Path) -> None:
    content = written(tmp_path) | {"steps": steps}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_but_the_origin_makes_another_build(name: str) -> None:
    values: dict[str, Any] = {"fps": 1001.0, "clock_ns": 9.0, "versions": {"finn-plus": "3"}}
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
    assert MANIFEST.differences(replace(MANIFEST, steps=())) == []


def test_versions_are_those_that_are_installed() -> None:
    pytest.importorskip("finn")
    assert build_versions() == {
        "brevitas-divqat": __version__,
        "finn-plus": version("finn-plus"),
    }
