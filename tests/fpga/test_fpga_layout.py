# SPDX-License-Identifier: BSD-3-Clause
"""`rtl.json`: what was written is read, and whatever is damaged is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from brevitas_divqat.fpga.rtl.layout import (
    LAYOUT_FILE,
    Channel,
    InputStream,
    Layer,
    Layout,
    OutputStream,
)

from brevitas_divqat.errors import HardwareError

LAYOUT = Layout(
    top="accelerator",
    input=InputStream(8, False, 1, 8, 32, (4, 4, 2)),
    output=OutputStream(17, True, 1, 24, 10, 10),
    channels=(Channel("a -> b", "fifo_0", 24, 32), Channel("b -> c", "fifo_1", 8, 2)),
    layers=(Layer("MVAU_rtl_0", "MVAU", "fc", "layer_MVAU_rtl_0", "MVAU_rtl_0_layer", 9),),
    cycles_per_frame=9,
    part="xc7z020clg400-1",
    clock_ns=10.0,
    model_sha256="0" * 64,
    exported_sha256="1" * 64,
)


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(HardwareError) as caught:
        Layout.read(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message


def written(folder: Path) -> dict[str, Any]:
    LAYOUT.write(folder)
    content: dict[str, Any] = json.loads((folder / LAYOUT_FILE).read_text())
    return content


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert written(tmp_path)["schema"] == 1
    assert Layout.read(tmp_path) == LAYOUT


def test_a_folder_without_it_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "divqat build")
    refused(tmp_path / "missing", "divqat build")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    content = written(tmp_path) | {"schema": 2}
    (tmp_path / LAYOUT_FILE).write_text(json.dumps(content))
    refused(tmp_path, "schema 2", "reads 1")


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    text = (tmp_path / LAYOUT_FILE).read_bytes()
    for length in range(0, len(text) - 2, 7):
        (tmp_path / LAYOUT_FILE).write_bytes(text[:length])
        refused(tmp_path, "damaged")
    (tmp_path / LAYOUT_FILE).write_bytes(b"\xff\xfe" + text)
    refused(tmp_path, "damaged")


@pytest.mark.parametrize("content", ["[]", "7", "null", '"schema"', "{}"])
def test_json_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / LAYOUT_FILE).write_text(content)
    refused(tmp_path, "damaged")


@pytest.mark.parametrize("key", list(Layout.__dataclass_fields__))
def test_a_missing_or_unknown_entry_is_refused(key: str, tmp_path: Path) -> None:
    content = written(tmp_path)
    value = content.pop(key)
    (tmp_path / LAYOUT_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")
    (tmp_path / LAYOUT_FILE).write_text(json.dumps(content | {key: value, "more": 1}))
    refused(tmp_path, "damaged")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input", {"bits": 8}),
        ("input", 8),
        ("input", None),
        ("output", {}),
        ("channels", [{"name": "a"}]),
        ("channels", [3]),
        ("channels", None),
        ("layers", 3),
        ("layers", ["a"]),
        ("channels", {}),
        ("top", 1),
        ("cycles_per_frame", 0),
        ("cycles_per_frame", "9"),
        ("cycles_per_frame", True),
        ("clock_ns", 0),
        ("clock_ns", float("nan")),
        ("clock_ns", "10"),
        ("model_sha256", None),
    ],
)
def test_an_entry_of_another_kind_is_refused(key: str, value: object, tmp_path: Path) -> None:
    content = written(tmp_path) | {key: value}
    (tmp_path / LAYOUT_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("input", "bits", 0),
        ("input", "bits", 8.0),
        ("input", "signed", 0),
        ("input", "words_per_frame", -1),
        ("output", "outputs", "10"),
        ("output", "more", 1),
        ("channels", "depth", 0),
        ("channels", "bits", None),
        ("channels", "fifo", 3),
        ("layers", "cycles", -1),
        ("layers", "name", []),
        ("layers", "estimate", [1]),
        ("layers", "estimate", {"LUT": "1"}),
        ("layers", "estimate", {"LUT": -1}),
    ],
)
def test_a_number_or_text_of_another_kind_is_refused(
    place: str, key: str, value: object, tmp_path: Path
) -> None:
    content = written(tmp_path)
    entry = content[place]
    (entry[0] if isinstance(entry, list) else entry)[key] = value
    (tmp_path / LAYOUT_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")


@pytest.mark.parametrize(
    "shape", [["4", 4, 2], [4, 4, 0], [4, 4.0, 2], "442", [4, 4], [4, 4, 2, 1], 4, None]
)
def test_an_image_of_another_rank_is_refused(shape: object, tmp_path: Path) -> None:
    content = written(tmp_path)
    content["input"]["shape"] = shape
    (tmp_path / LAYOUT_FILE).write_text(json.dumps(content))
    refused(tmp_path, "damaged")
