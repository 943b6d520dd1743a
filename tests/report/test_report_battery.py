# SPDX-License-Identifier: BSD-3-Clause
"""Table, verdict and plot of batteries, from invented measurements."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from brevitas_divqat.cli import main
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.report import (
    battery_plot,
    battery_table,
    battery_verdict,
    load_batteries,
    write_battery_plot,
)

# Accuracy and fidelity of each entry.
GAINS = {
    "knockoff-in-soft": (0.85, 0.80),
    "knockoff-in-hard": (0.83, 0.88),
    "noise-soft": (0.21, 0.25),
}


def row(name: str, accuracy: float, fidelity: float) -> dict[str, Any]:
    return {
        "status": "measured",
        "entry": {"name": name, "source": "floor" if "noise" in name else "KnockoffNets"},
        "queries": 1000,
        "accuracy": accuracy,
        "fidelity": fidelity,
    }


def battery_json(seed: int = 0, victim: str = "divqat", shift: float = 0.0) -> dict[str, Any]:
    skipped = {
        "entry": {"name": "dfme-soft", "source": "DFME"},
        "status": "skipped",
        "reason": "shows [labels] alone",
    }
    return {
        "schema": 1,
        "kind": "battery",
        "battery": {"version": 1, "name": "quick"},
        "victim": victim,
        "data": "digits",
        "model": "lenet5",
        "bits": {"weight": 4, "activation": 4},
        "method": {"name": victim},
        "interface": {"kind": "top-k", "k": 3, "decimals": None},
        "executor": "integer",
        "pools": {
            "in": {"name": "digits", "images": 450, "crc32": "01"},
            "ood": {"name": "photographs", "images": 4000, "crc32": "02"},
        },
        "surrogate_device": "cpu",
        "images": 297,
        "seed": seed,
        "graph_sha256": f"{victim}-{seed}",
        "victim_accuracy": 0.9,
        "queries": 2000,
        "entries": [*(row(n, a + shift, f + shift) for n, (a, f) in GAINS.items()), skipped],
    }


def write_content(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "battery.json").write_text(json.dumps(content))
    return folder


def write(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    return write_content(folder, battery_json(**settings))


def shown(thing: Any, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_verdict_names_the_worst_case_and_the_floor(tmp_path: Path) -> None:
    (battery,) = load_batteries([write(tmp_path / "a")])
    assert battery_verdict(battery).splitlines() == [
        "Worst case, accuracy: 85.0 % (knockoff-in-soft); random noise 21.0 % (noise-soft).",
        "Worst case, fidelity: 88.0 % (knockoff-in-hard); random noise 25.0 % (noise-soft).",
        "1 entry was skipped: the table says why.",
        "One seed: small differences are not yet a claim, and the highest of 3 noisy entries is "
        "biased upward.",
    ]


def test_the_table_has_every_entry_strongest_first_and_what_was_skipped(tmp_path: Path) -> None:
    (battery,) = load_batteries([write(tmp_path / "a")])
    lines = shown(battery_table(battery)).splitlines()
    assert "Battery 1 (quick) against DivQAT: digits, lenet5, W4A4, top-k 3, seed 0" in lines[0]
    names = [
        line.split()[0] for line in lines if line.strip().startswith(("knock", "noise", "dfme"))
    ]
    assert names == ["knockoff-in-soft", "knockoff-in-hard", "noise-soft", "dfme-soft"]
    (skipped,) = (line for line in lines if "dfme-soft" in line)
    assert "skipped" in skipped
    assert "shows [labels] alone" in skipped
    caption = " ".join(" ".join(lines).split())
    assert "2,000 distinct queries. Foreign images: 4,000 of photographs." in caption
    assert "Executor: integer." in caption


def test_the_table_shows_renamed_accuracy_where_it_was_measured(tmp_path: Path) -> None:
    content = battery_json()
    content["entries"][0]["renamed_accuracy"] = 0.861
    (battery,) = load_batteries([write_content(tmp_path, content)])
    lines = shown(battery_table(battery)).splitlines()
    cells = {line.split()[0]: line.split()[2:5] for line in lines if "knockoff" in line}
    assert cells["knockoff-in-soft"] == ["85.0", "86.1", "80.0"]
    assert cells["knockoff-in-hard"] == ["83.0", "-", "88.0"]
    assert "(-: not measured at each seed)" in " ".join(" ".join(lines).split())


def test_without_any_renamed_accuracy_there_is_no_column_of_it(tmp_path: Path) -> None:
    (battery,) = load_batteries([write(tmp_path / "a")])
    text = shown(battery_table(battery))
    assert "renamed" not in text
    (skipped,) = (line for line in text.splitlines() if "dfme-soft" in line)
    assert skipped.split() == ["dfme-soft", "skipped", "shows", "[labels]", "alone"]


def test_renamed_accuracy_of_some_seeds_is_not_set_beside_accuracy_of_all(tmp_path: Path) -> None:
    folders = []
    for seed, renamed in enumerate(({0: 0.86, 1: 0.9}, {1: 0.9})):
        content = battery_json(seed)
        for number, value in renamed.items():
            content["entries"][number]["renamed_accuracy"] = value
        folders.append(write_content(tmp_path / str(seed), content))
    (battery,) = load_batteries(folders)
    soft, hard, _ = battery.rows
    assert soft.renamed is None
    assert hard.renamed is not None
    assert hard.renamed.seeds == (0, 1)


@pytest.mark.parametrize("renamed", [False, True])
def test_entry_names_are_never_cut(tmp_path: Path, renamed: bool) -> None:
    name = "activethief-deepfool-k-center-ood-soft"
    content = battery_json()
    content["entries"][0]["entry"] |= {
        "name": name,
        "source": "KnockoffNets, CVPR 2019; forward correction, CVPR 2017",
    }
    if renamed:
        content["entries"][0]["renamed_accuracy"] = 0.9
    (battery,) = load_batteries([write_content(tmp_path / "a", content)])
    assert renamed or name in shown(battery_table(battery)), "whole where there is no terminal"
    for width in (80, 110):
        lines = shown(battery_table(battery), width).splitlines()
        assert not any("…" in line for line in lines)
        (end,) = (line.index("queries") for line in lines if "surrogate %" in line)
        assert name in "".join(line[:end].strip() for line in lines)


def test_a_renamed_accuracy_that_is_no_fraction_is_refused(tmp_path: Path) -> None:
    content = battery_json()
    content["entries"][0]["renamed_accuracy"] = 86
    with pytest.raises(ConfigError, match="renamed_accuracy"):
        load_batteries([write_content(tmp_path, content)])


def test_seeds_are_averaged_and_victims_are_kept_apart(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "a"),
        write(tmp_path / "b", seed=1, shift=0.02),
        write(tmp_path / "c", victim="qat"),
    ]
    both, other = load_batteries(folders)
    assert (both.victim, both.seeds, other.victim, other.seeds) == ("divqat", (0, 1), "qat", (0,))
    assert both.rows[0].accuracy.mean == pytest.approx(0.86)
    assert "86.0 ± 1.4 % (knockoff-in-soft)" in battery_verdict(both)
    assert "Means over 2 seeds" in battery_verdict(both)
    assert "the highest of 3 noisy entries is biased upward" in battery_verdict(both)


@pytest.mark.parametrize(
    "change",
    [
        {"executor": "reference"},
        {"pools": {**battery_json()["pools"], "ood": {"name": "x", "images": 1, "crc32": "02"}}},
        {"pools": {**battery_json()["pools"], "in": {"name": "x", "images": 1, "crc32": "03"}}},
    ],
    ids=["executor", "foreign images", "own images"],
)
def test_batteries_that_differ_in_more_than_the_seed_are_not_averaged(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folders = [write(tmp_path / "a"), tmp_path / "b"]
    folders[1].mkdir()
    (folders[1] / "battery.json").write_text(json.dumps({**battery_json(seed=1), **change}))
    assert [battery.seeds for battery in load_batteries(folders)] == [(0,), (1,)]


def test_an_entry_that_was_skipped_at_some_seeds_says_so(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
    content = battery_json(seed=1)
    strongest = content["entries"][0]["entry"]
    content["entries"][0] = {"entry": strongest, "status": "skipped", "reason": "no data"}
    (folders[1] / "battery.json").write_text(json.dumps(content))
    (battery,) = load_batteries(folders)
    text = shown(battery_table(battery))
    assert "knockoff-in-soft (1 of 2 seeds)" in text
    assert "seed 1: no data" in text
    assert "seed 0: shows" not in text, "skipped at both seeds for the same reason"
    assert "(knockoff-in-soft) (1 of 2 seeds);" in battery_verdict(battery)
    assert "2 entries were skipped" in battery_verdict(battery)


def test_a_seed_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a"), write(tmp_path / "b")]
    with pytest.raises(ConfigError, match="qat with the seed 0 was already read") as caught:
        load_batteries(folders)
    for folder in folders:
        assert str(folder / "battery.json") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "victim"}, "is no battery"),
        ({"schema": 2}, "schema is 2"),
        ({"queries": None}, "lacks 'queries'"),
        ({"executor": None}, "lacks 'executor'"),
        ({"entries": [1]}, "entry 0: is 1, expected an object"),
        ({"entries": {}}, "entries is {}, expected a list"),
        ({"entries": [{**row("a", 0.5, 0.5), "accuracy": None}]}, "entry 0: lacks 'accuracy'"),
        ({"entries": [row("a", 7.5, 0.5)]}, "entry 0: accuracy is 7.5, expected a number from 0"),
        ({"entries": [row("a", float("nan"), 0.5)]}, "entry 0: accuracy is nan"),
        ({"entries": [row("a", 10**400, 0.5)]}, "entry 0: accuracy is 1000"),
        ({"entries": [row("a", 0.1, 0.1), row("a", 0.2, 0.2)]}, "entry 1: 'a' occurs a second"),
        ({"entries": [{**row("a", 0.5, 0.5), "queries": "1"}]}, "entry 0: queries is '1'"),
        ({"entries": [{**row("a", 0.5, 0.5), "status": []}]}, "entry 0: status is"),
        ({"entries": [{**row("a", 0.5, 0.5), "entry": "a"}]}, "entry 0: entry is 'a'"),
        ({"entries": [{**row("a", 0.5, 0.5), "entry": {}}]}, "entry 0: lacks 'entry.name'"),
        ({"entries": [{**row("a", 0.5, 0.5), "status": "skipped"}]}, "entry 0: lacks 'reason'"),
        ({"victim_accuracy": "high"}, "victim_accuracy is 'high'"),
        ({"interface": "x"}, "interface is 'x'"),
        ({"battery": [1]}, r"battery is \[1\]"),
        ({"seed": True}, "seed is True"),
        ({"pools": {}}, "lacks 'pools.ood'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    folder = write(tmp_path / "a")
    content = {k: v for k, v in {**battery_json(), **change}.items() if v is not None}
    (folder / "battery.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=match) as caught:
        load_batteries([folder])
    assert "battery.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert main(["report", str(folder)]) == 2


def test_the_plot_shows_every_entry_and_the_floor(tmp_path: Path) -> None:
    (battery,) = load_batteries([write(tmp_path / "a")])
    (axes,) = battery_plot(battery).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["noise-soft", "knockoff-in-hard", "knockoff-in-soft"]
    lines = [float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 2]
    assert 90.0 in lines
    assert pytest.approx(21.0) in lines
    write_battery_plot(battery, tmp_path / "first.png")
    write_battery_plot(battery, tmp_path / "second.png")
    first = (tmp_path / "first.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert (tmp_path / "second.png").read_bytes() == first


def test_divqat_report_shows_batteries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(write(tmp_path / "a"))]) == 0
    said = capsys.readouterr().out
    assert "knockoff-in-soft" in said
    assert "Worst case, accuracy: 85.0 %" in said
    assert not (tmp_path / "a" / "report.html").exists(), "there is nothing to put into it"
    assert (tmp_path / "a" / "report-battery.png").read_bytes().startswith(b"\x89PNG")


def test_divqat_report_draws_each_battery_where_it_is_told_to(tmp_path: Path) -> None:
    folders = [write(tmp_path / victim, victim=victim) for victim in ("qat", "divqat")]
    out = tmp_path / "new" / "out"
    assert main(["report", *map(str, folders), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "report-battery-1.png",
        "report-battery-2.png",
    ]


def test_batteries_that_look_alike_have_plots_of_their_own(tmp_path: Path) -> None:
    folders = [write(tmp_path / name) for name in "ab"]
    path = folders[1] / "battery.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surrogate_device": "cuda"}))
    first, second = load_batteries(folders)
    assert (first.against, second.against) == (
        "DivQAT (surrogate_device cpu)",
        "DivQAT (surrogate_device cuda)",
    )
    assert main(["report", *map(str, folders), "-o", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_divqat_report_leaves_no_folder_out_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(write(tmp_path / "a")), str(tmp_path / "typo")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "typo: holds neither measurements nor battery.json" in line


def test_a_file_in_place_of_a_folder_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a") / "battery.json"
    assert main(["report", str(file)]) == 2
    assert capsys.readouterr() == ("", f"divqat: error: {file} is a file: name its folder\n")


def test_a_bad_folder_of_plots_is_refused_before_anything_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = write(tmp_path / "a"), tmp_path / "file"
    file.write_text("x")
    assert main(["report", str(folder), "-o", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"cannot create the folder {file}" in err


def test_the_help_of_divqat_report_names_batteries(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Render runs, attacks and batteries" in said
    assert "and of batteries (`divqat attack --battery`), which are averaged where" in said


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff"])
def test_a_file_that_is_no_json_has_the_advice_of_other_batteries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (write(tmp_path / "a") / "battery.json").write_bytes(content)
    assert main(["report", str(tmp_path / "a")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "battery.json: not readable as JSON" in line
    assert line.endswith("; delete it and go on with --battery --resume")


@pytest.mark.parametrize(
    "change", [{"surrogate_device": "cuda"}, {"entries": [row("knockoff-in-soft", 0.5, 0.5)]}]
)
def test_batteries_of_other_settings_are_shown_apart(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folders = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
    path = folders[1] / "battery.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert [battery.seeds for battery in load_batteries(folders)] == [(0,), (1,)]
