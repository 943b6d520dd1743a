# SPDX-License-Identifier: BSD-3-Clause
"""`divqat attack --battery` and `divqat bench attacks`: flags, files, one line per mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brevitas_divqat.attacks import ATTACKS
from brevitas_divqat.attacks.battery import Entry
from brevitas_divqat.cli import main
from brevitas_divqat.errors import AttackError, DataError
from brevitas_divqat.evaluation import battery as module
from brevitas_divqat.evaluation import battery_process, bench_attacks
from brevitas_divqat.files import locked
from brevitas_divqat.victims import Victim

ENTRIES = {
    "quick": (
        Entry("knockoff", "in", "soft", 32, 1),
        Entry("knockoff", "in", "hard", 32, 1),
        Entry("noise", "none", "soft", 32, 1),
    )
}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    training = "--pool-images 50 --width 0.5 --float-epochs 1 --epochs 1 --batch-size 32"
    argv = ["train", *training.split(), "--device", "cpu", "--method", "qat"]
    assert main([*argv, "--out", str(folder)]) == 0
    assert main(["export", str(folder / "qat")]) == 0
    return folder


@pytest.fixture
def graph(trained: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "BATTERIES", ENTRIES)
    return str(trained / "qat" / "model-integer.onnx")


def battery(graph: str, *flags: str) -> list[str]:
    return ["attack", graph, "--battery", "quick", "--jobs", "1", *flags]


def refused(capsys: Capture, argv: list[str], *parts: str) -> None:
    capsys.readouterr()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if ": done (" not in line]
    assert len(lines) == 1, err
    for part in parts:
        assert part in err


def test_a_battery_shows_table_verdict_and_files(
    graph: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(battery(graph, "-o", str(tmp_path))) == 0
    said = capsys.readouterr().out
    assert "knockoff-in-hard" in said
    assert "Worst case, accuracy:" in said
    assert "Worst case, fidelity:" in said
    assert {path.name for path in tmp_path.iterdir()} == {"battery.json", "battery.png", "battery"}
    record = json.loads((tmp_path / "battery.json").read_text())
    assert (record["victim"], record["seed"], record["data"]) == ("qat", 0, "digits")
    assert record["entries"][0]["query_set"]["kl_to_float"] is not None, "the run's original"
    refused(capsys, battery(graph, "-o", str(tmp_path)), "holds a battery", "--resume")
    assert main(battery(graph, "-o", str(tmp_path), "--resume")) == 0
    assert json.loads((tmp_path / "battery.json").read_text()) == record
    refused(
        capsys,
        battery(graph, "-o", str(tmp_path), "--resume", "--seed", "1"),
        "seed is 0, here 1",
    )


def test_a_battery_lies_in_the_run_of_its_graph_by_default(graph: str, trained: Path) -> None:
    assert main(battery(graph)) == 0
    assert (trained / "battery-qat" / "battery.json").exists()


@pytest.mark.parametrize(
    "flag",
    [
        "--attack=knockoff",
        "--budget=100",
        "--labels=hard",
        "--images=in",
        "--surrogate=lenet5",
        "--surrogate-epochs=3",
        "--training=plain",
        "--copies=2",
    ],
)
def test_what_a_battery_fixes_is_refused(graph: str, capsys: Capture, flag: str) -> None:
    refused(capsys, battery(graph, flag), flag.partition("=")[0], "--battery, which fixes it")


def test_mistakes_are_one_line(graph: str, tmp_path: Path, capsys: Capture) -> None:
    out = ("--out", str(tmp_path / "new"))
    refused(capsys, ["attack", graph, "--battery", "huge", *out], "battery", "huge")
    refused(capsys, ["attack", graph, "--battery", "quick", "--jobs", "0", *out], "jobs is 0")
    refused(capsys, ["attack", graph, "--jobs", "2", *out], "--jobs 2 is for a --battery")
    refused(capsys, ["attack", "--battery", "quick", *out], "either a graph or --victim")
    refused(
        capsys,
        ["attack", graph, "--attack", "noise", "--images", "in", "--labels", "loud", *out],
        "loud",
    )
    few = ["attack", graph, "--attack", "noise"]
    refused(capsys, [*few, "--budget", "9" * 20, *out], "budget is 9999", "1 to 1,000,000,000")
    refused(capsys, [*few, "--points", "100", *out], "--points: expected whole numbers in brackets")
    refused(capsys, ["attack", graph, "--attack", "copycat", *out], "copycat", "labels 'hard'")
    assert not (tmp_path / "new").exists()


def test_a_second_process_is_refused(graph: str, tmp_path: Path, capsys: Capture) -> None:
    out = ["--resume", "--out", str(tmp_path)]
    with locked(tmp_path / "battery"):
        refused(capsys, [*battery(graph), *out], "in use by another process")
    few = ["attack", graph, "--attack", "noise", "--budget", "32", "--surrogate-epochs", "1"]
    with locked(tmp_path / "transcripts" / "qat-noise-none-soft"):
        refused(capsys, [*few, *out], "in use by another process")
    assert list(tmp_path.iterdir()) == []
    assert main([*few, *out]) == 0


def test_an_entry_that_fails_is_one_line(
    graph: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise battery_process.DataError("no space left")

    monkeypatch.setattr(battery_process, "steal", full)
    refused(
        capsys,
        battery(graph, "-o", str(tmp_path)),
        "the entry knockoff-in-soft failed (and 2 more failed): no space left",
        "--resume",
    )


def test_an_interruption_says_how_to_go_on(
    graph: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(battery_process, "steal", stopped)
        assert main(battery(graph, "-o", str(tmp_path))) == 130
    assert "go on with --resume" in capsys.readouterr().err
    assert main(battery(graph, "-o", str(tmp_path), "--resume")) == 0


def test_an_attack_that_asks_about_no_images_needs_none(
    graph: str, tmp_path: Path, capsys: Capture
) -> None:
    small = ["--budget", "32", "--surrogate-epochs", "1", "--surrogate-device", "cpu"]
    out = ["--out", str(tmp_path / "a")]
    assert main(["attack", graph, "--attack", "noise", *small, *out]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["attack"], record["pool"], record["pool_images"]) == ("noise", "none", 0)
    assert (tmp_path / "a" / "measurements" / "extraction-qat-noise-none-soft.json").exists()
    refused(capsys, ["attack", graph, "--images", "none", *small, *out], "give --images in or ood")
    noise = ["attack", graph, "--attack", "noise", "--images", "in"]
    refused(capsys, [*noise, *small, *out], "--images in is without effect: leave it out")


# The benchmark


@pytest.mark.slow
def test_bench_attacks_can_time_every_attack_at_its_default_budget(
    graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*args: Any) -> None:
        raise LookupError("asked")

    monkeypatch.setattr(Victim, "query", asked)  # it is possible, then
    for name in ATTACKS:
        monkeypatch.setattr(bench_attacks, "ATTACKS", {name: ATTACKS[name]})
        with pytest.raises(AttackError, match="asked"):
            bench_attacks.bench_attacks(Path(graph))


def test_bench_attacks_measures_every_attack(
    graph: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: ATTACKS[name] for name in ("knockoff", "jbda", "noise")}
    monkeypatch.setattr(bench_attacks, "ATTACKS", few)
    monkeypatch.setattr(bench_attacks, "BATTERIES", ENTRIES)
    out = tmp_path / "bench.json"
    argv = ["bench", "attacks", graph, "--budget", "40", "--battery", "quick", "--jobs", "1"]
    assert main([*argv, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "knockoff, adaptive" in said
    record = json.loads(out.read_text())
    assert (record["schema"], record["kind"]) == (1, "bench-attacks")
    rows = {row["attack"]: row for row in record["rows"]}
    assert {row["labels"] for row in rows.values()} == {"soft"}
    assert list(rows) == ["knockoff", "knockoff, adaptive", "jbda", "noise"]
    assert rows["jbda"]["status"] == "not possible", "40 queries are fewer than its seed images"
    assert "jbda" in rows["jbda"]["reason"]
    for name in ("knockoff", "noise"):
        row = rows[name]
        assert row["queries"] == 40
        assert 0 < row["victim_seconds"] < row["seconds"]
        assert row["victim_share"] == pytest.approx(row["victim_seconds"] / row["seconds"])
        assert row["queries_per_second"] == pytest.approx(40 / row["seconds"])
    timed = record["battery"]
    assert [row["entry"] for row in timed["entries"]] == [e.name for e in ENTRIES["quick"]]
    assert timed["seconds"] > timed["entry_seconds"] > timed["victim_seconds"] > 0
    assert timed["queries"] == 64
    assert "Battery 2 (quick)" in said


def test_bench_attacks_refuses_a_battery_before_it_measures_anything(
    graph: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any) -> None:
        raise DataError("mnist: not found")

    monkeypatch.delattr(bench_attacks, "_row")
    argv = ["bench", "attacks", graph, "--battery", "quick"]
    refused(capsys, [*argv, "--jobs", "0"], "jobs is 0")
    monkeypatch.setattr(bench_attacks, "load", missing)
    refused(capsys, argv, "mnist: not found")
