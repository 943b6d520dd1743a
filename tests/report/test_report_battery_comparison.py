# SPDX-License-Identifier: BSD-3-Clause
"""Batteries against plain QAT and a defended victim beside each other, from invented figures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from brevitas_divqat.cli import main
from brevitas_divqat.report import (
    Battery,
    Comparison,
    compare_batteries,
    comparison_table,
    load_batteries,
    not_compared,
)

# Accuracy of the copy by entry; None: the entry was skipped.
Gains = dict[str, float | None]
GAINS: Gains = {"knockoff-in-soft": 0.85, "knockoff-ood-soft": 0.55}
LONG = "activethief-deepfool-k-center-ood-soft"
Write = Callable[..., Path]


def entry_json(name: str, accuracy: float | None) -> dict[str, Any]:
    entry = {"name": name, "source": "KnockoffNets", "budget": 1000}
    if accuracy is None:
        return {"entry": entry, "status": "skipped", "reason": "no data"}
    figures = {"queries": 1000, "accuracy": accuracy, "fidelity": accuracy}
    return {"entry": entry, "status": "measured", **figures}


def battery_json(victim: str, seed: int, gains: Gains, own: float) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "battery",
        "battery": {"version": 1, "name": "quick"},
        "victim": victim,
        "data": "digits",
        "model": "lenet5",
        "bits": {"weight": 4, "activation": 4, "edge": 8},
        "method": {"name": victim, "label_smoothing": 0.0},
        "interface": {"kind": "top-k", "k": 3, "decimals": None},
        "executor": "integer",
        "pools": {
            "in": {"name": "digits", "images": 450, "crc32": "01"},
            "ood": {"name": "photographs", "images": 4000, "crc32": "02"},
        },
        "surrogate_device": "cpu",
        "images": 297,
        "split": "test",
        "seed": seed,
        "graph_sha256": f"{victim}-{seed}",
        "victim_accuracy": own,
        "queries": 2000,
        "entries": [entry_json(name, accuracy) for name, accuracy in gains.items()],
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Give a function that writes a battery into a folder of its own and returns the folder."""

    def writing(
        victim: str,
        seed: int = 0,
        gains: Gains = GAINS,
        *,
        own: float = 0.9,
        changes: dict[str, Any] | None = None,
    ) -> Path:
        content = battery_json(victim, seed, gains, own)
        for key, value in (changes or {}).items():
            *outer, last = key.split(".")
            place = content
            for name in outer:
                place = place[name]
            place[last] = value
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "battery.json").write_text(json.dumps(content))
        return folder

    return writing


def loaded(*folders: Path) -> list[Battery]:
    return load_batteries(folders)


def compared(*folders: Path) -> Comparison:
    (comparison,) = compare_batteries(loaded(*folders))
    return comparison


def shown(comparison: Comparison, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(comparison))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(comparison: Comparison) -> str:
    return " ".join(shown(comparison).split())


def test_a_defence_is_compared_with_plain_qat_seed_by_seed(write: Write) -> None:
    # Of each victim a seed that the other lacks, whose figures are far off.
    comparison = compared(
        write("divqat", 0, {"a": 0.76, "b": 0.56}, own=0.88),
        write("divqat", 1, {"a": 0.66, "b": 0.58}, own=0.90),
        write("divqat", 3, {"a": 0.01, "b": 0.01}, own=0.10),
        write("qat", 0, {"a": 0.86, "b": 0.54}, own=0.92),
        write("qat", 1, {"a": 0.88, "b": 0.54}, own=0.94),
        write("qat", 2, {"a": 0.02, "b": 0.02}, own=0.20),
    )
    assert (comparison.plain.victim, comparison.other.victim) == ("qat", "divqat")
    assert comparison.seeds == (0, 1)
    first, second = comparison.rows
    assert first.change.by_seed == ((0, pytest.approx(-0.10)), (1, pytest.approx(-0.22)))
    assert second.change.by_seed == ((0, pytest.approx(0.02)), (1, pytest.approx(0.04)))
    # Student's t with one degree of freedom: 12.706 standard errors to either side.
    text = words(comparison)
    assert " entry plain QAT DivQAT difference " in text
    assert " a 87.0 ± 12.7 71.0 ± 63.5 -16.0 ± 76.2 b 54.0 ± 0.0 57.0 ± 12.7 +3.0 ± 12.7 " in text
    assert (
        "mean and half of the 95 % interval (Student's t), differences paired by seed. "
        "The victims have 93.0 ± 12.7 and 89.0 ± 12.7 %." in text
    )


def test_with_one_seed_there_are_no_intervals(write: Write) -> None:
    comparison = compared(
        write("qat", gains={"a": 0.5, "b": 0.5, "c": 0.5}, own=0.92),
        write("divqat", gains={"a": 0.53, "b": 0.4, "c": 0.4999}, own=0.91),
    )
    assert [row.name for row in comparison.rows] == ["b", "c", "a"], "the largest loss first"
    text = words(comparison)
    # A loss of less than half a tenth of a point is no "-0.0".
    assert " b 50.0 40.0 -10.0 c 50.0 50.0 +0.0 a 50.0 53.0 +3.0 " in text
    assert "on 297 test images. The victims have 92.0 and 91.0 %." in text
    assert "interval" not in text
    assert "paired" not in text


def test_an_entry_that_was_measured_at_some_seeds_says_so(write: Write) -> None:
    comparison = compared(
        write("qat", 0, {"a": 0.9, "b": 0.5}),
        write("qat", 1, {"a": 0.5, "b": 0.5}),
        write("divqat", 0, {"a": None, "b": 0.4}),
        write("divqat", 1, {"a": 0.2, "b": 0.4}),
    )
    assert " a (1 of 2 seeds) 50.0 20.0 -30.0 " in words(comparison)
    assert comparison.left_out == {}
    assert "Not compared" not in words(comparison)


def test_entries_that_were_not_carried_out_against_both_are_named(write: Write) -> None:
    comparison = compared(
        write("qat", 0, {"a": 0.5, "b": None, "c": 0.5, "d": 0.5, "e": None}),
        write("qat", 1, {"a": 0.5, "b": None, "c": 0.5, "d": None, "e": None}),
        write("divqat", 0, {"a": 0.4, "b": 0.4, "c": None, "d": None, "e": None}),
        write("divqat", 1, {"a": 0.4, "b": 0.4, "c": None, "d": 0.4, "e": None}),
    )
    assert [row.name for row in comparison.rows] == ["a"]
    assert words(comparison).endswith(
        "Not compared: c (skipped against DivQAT), d (no seed in common), b (skipped against "
        "plain QAT), e (skipped against both)."
    )


def test_without_any_entry_in_common_there_is_a_line_instead_of_a_table(write: Write) -> None:
    batteries = loaded(
        write("qat", gains={"a": 0.5, "b": None}), write("divqat", gains={"a": None, "b": 0.5})
    )
    assert compare_batteries(batteries) == []
    assert not_compared(batteries) == [
        "Not compared: DivQAT, seed 0, with plain QAT, seed 0: no entry was carried out against "
        "both: a (skipped against DivQAT), b (skipped against plain QAT)."
    ]


def test_entry_names_are_never_cut(write: Write) -> None:
    gains: Gains = {LONG: 0.5}
    comparison = compared(write("qat", gains=gains), write("divqat", gains=gains))
    assert LONG in shown(comparison, 80)
    for width in (40, 50, 60):
        text = shown(comparison, width)
        assert "…" not in text
        column = [line.split()[0] for line in text.splitlines() if line.strip()]
        assert LONG in "".join(column)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("battery.version", 2, "battery.version is 2, but 1"),
        ("battery.name", "full", "battery.name is full, but quick"),
        ("data", "mnist", "data is mnist, but digits"),
        ("model", "cnv", "model is cnv, but lenet5"),
        ("bits.weight", 3, "bits.weight is 3, but 4"),
        ("interface.kind", "logits", "interface.kind is logits, but top-k"),
        ("interface.k", None, "interface.k is none, but 3"),
        ("interface.decimals", 2, "interface.decimals is 2, but none"),
        ("images", 7, "images is 7, but 297"),
        ("split", "validation", "split is validation, but test"),
        ("executor", "reference", "executor is reference, but integer"),
        ("pools.in.crc32", "03", "pools.in.crc32 is 03, but 01"),
        ("pools.ood.images", 5, "pools.ood.images is 5, but 4000"),
        ("surrogate_device", "cuda", "surrogate_device is cuda, but cpu"),
        (
            "entries",
            [entry_json("knockoff-in-soft", 0.5)],
            "entries.knockoff-ood-soft.name is none, but knockoff-ood-soft",
        ),
    ],
)
def test_batteries_of_other_settings_are_not_compared(
    write: Write, key: str, value: Any, said: str
) -> None:
    plain, other = write("qat"), write("divqat", changes={key: value})
    assert compare_batteries(loaded(plain, other)) == []
    assert not_compared(loaded(plain, other)) == [
        f"Not compared: DivQAT, seed 0, with plain QAT, seed 0: {said} against plain QAT."
    ]
    again = write("qat", changes={key: value})
    assert compared(plain, other, again).plain.setting == loaded(again)[0].setting
    assert not_compared(loaded(plain, other, again)) == []


def test_without_a_seed_in_common_both_are_named(write: Write) -> None:
    batteries = loaded(write("qat", 0), write("qat", 1), write("divqat", 5))
    assert compare_batteries(batteries) == []
    assert not_compared(batteries) == [
        "Not compared: DivQAT, seed 5, with plain QAT, seeds 0, 1: they have no seed in common."
    ]


def test_the_nearest_battery_against_plain_qat_says_what_differs(write: Write) -> None:
    far = {"battery.version": 7, "data": "mnist"}
    folders = [write("qat", changes=far), write("qat", changes={"executor": "reference"})]
    (line,) = not_compared(loaded(*folders, write("divqat")))
    assert line.endswith(": executor is integer, but reference against plain QAT.")


@pytest.mark.parametrize("victim", ["qat", "divqat"])
def test_batteries_of_one_kind_need_no_line(write: Write, victim: str) -> None:
    batteries = loaded(write(victim), write(victim, changes={"bits.weight": 3}))
    assert compare_batteries(batteries) == []
    assert not_compared(batteries) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bits.weight", 3, "digits, lenet5, W3A4, edge 8, top-k 3, seed 0"),
        ("bits", {}, "digits, lenet5, top-k 3, seed 0"),
        ("interface.decimals", 1, "edge 8, top-k 3 of 1 decimal, seed 0"),
        ("interface.decimals", 0, "edge 8, top-k 3 of 0 decimals, seed 0"),
        ("pools.ood.images", 5, "Foreign images: 5 of photographs."),
        ("executor", "reference", "Executor: reference."),
        ("pools.ood.crc32", "03", "DivQAT (pools.ood.crc32 03) beside plain QAT"),
        ("surrogate_device", "cuda", "DivQAT (surrogate_device cuda) beside plain QAT"),
    ],
)
def test_comparisons_of_other_settings_look_different(
    write: Write, key: str, value: Any, said: str
) -> None:
    folders = [write(victim) for victim in ("qat", "divqat")]
    folders += [write(victim, changes={key: value}) for victim in ("qat", "divqat")]
    before, after = (words(one) for one in compare_batteries(loaded(*folders)))
    assert said in after
    assert said not in before
    assert ("(pools" in before or "(surrogate" in before) == ("(" in said), "where titles are alike"


def test_victims_of_one_name_are_told_apart_by_how_they_were_trained(write: Write) -> None:
    method: dict[str, Any] = {"name": "divqat", "alpha": 0.04, "cap": None, "kinds": ["a"]}
    narrow = {"bits.weight": 3}
    folders = [
        write("divqat", changes={"method": method}),
        write("divqat", changes={"method": {**method, "alpha": 0.1}} | narrow),
        write("divqat", changes={"method": {**method, "kinds": []}} | narrow),
        write("qat"),
        write("qat", changes={"method.label_smoothing": 0.1} | narrow),
    ]
    first, second, third = compare_batteries(loaded(*folders))
    assert words(first).startswith(
        'DivQAT (alpha 0.04, kinds ["a"]) beside plain QAT (label_smoothing 0.0), '
        "battery 1 (quick): digits, lenet5, W4A4, edge 8, top-k 3, seed 0 "
    )
    assert words(second).startswith('DivQAT (alpha 0.1, kinds ["a"]) beside plain QAT (label_s')
    assert words(third).startswith("DivQAT (alpha 0.04, kinds []) beside plain QAT (label_smo")
    assert "label_smoothing 0.1), battery 1 (quick): digits, lenet5, W3A4" in words(third)


def test_divqat_report_prints_comparisons_and_what_is_not_compared(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        write("qat"),
        write("divqat", gains={"knockoff-in-soft": 0.84, "knockoff-ood-soft": 0.05}),
        write("divqat", changes={"bits.weight": 3}),
    ]
    assert main(["report", *map(str, folders), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert " knockoff-ood-soft 55.0 5.0 -50.0 knockoff-in-soft 85.0 84.0 -1.0 " in " ".join(
        said.split()
    )
    assert said.splitlines()[-1] == (
        "Not compared: DivQAT, seed 0, with plain QAT, seed 0: bits.weight is 3, but 4 against "
        "plain QAT."
    )
