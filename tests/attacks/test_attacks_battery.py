# SPDX-License-Identifier: BSD-3-Clause
"""The fixed lists of attacks, and the page that documents them."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from brevitas_divqat.attacks import ATTACKS, AttackConfig, Labels, Training
from brevitas_divqat.attacks.battery import BATTERIES, FLOOR, VERSION, BatteryName, Entry
from brevitas_divqat.attacks.inquiry import CopyKind
from brevitas_divqat.attacks.knockoff import Policy

PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"

each_battery = pytest.mark.parametrize("name", get_args(BatteryName))


@each_battery
def test_every_entry_is_an_attack_with_valid_settings(name: BatteryName) -> None:
    entries = BATTERIES[name]
    assert len({entry.name for entry in entries}) == len(entries), "two entries share a folder"
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+", entry.name)
        assert entry.source
        config = AttackConfig(
            attack=entry.attack,
            policy=entry.policy,
            budget=entry.budget,
            training=entry.training,
            copies=entry.copies,
            copy_kind=entry.copy_kind,
            surrogate_bits=entry.surrogate_bits,
            surrogate_epochs=entry.epochs,
        )
        config.thief(entry.labels)
        strategy = config.strategy()
        assert strategy.needs_pool == (entry.pool != "none")
        assert strategy.least_images <= entry.budget // entry.copies


@each_battery
def test_every_battery_has_a_floor_and_hard_labels(name: BatteryName) -> None:
    attacks = {entry.attack for entry in BATTERIES[name]}
    assert FLOOR == ("noise",), "synthetic images steal"
    assert {*FLOOR, "synthetic"} <= attacks
    assert any(e.labels == "hard" and e.attack == "knockoff" for e in BATTERIES[name])
    assert any(e.labels == "temperature" for e in BATTERIES[name])


@pytest.mark.parametrize("name", ["standard", "full"])
def test_the_larger_batteries_leave_nothing_out(name: BatteryName) -> None:
    entries = BATTERIES[name]
    assert {entry.attack for entry in entries} == set(ATTACKS)
    assert {entry.labels for entry in entries} == set(get_args(Labels))
    assert {entry.training for entry in entries} == set(get_args(Training))
    assert {entry.policy for entry in entries} == set(get_args(Policy))
    assert {e.copy_kind for e in entries if e.copies > 1} == set(get_args(CopyKind))
    assert {entry.surrogate_bits for entry in entries} == {"full", "victim"}
    assert {entry.pool for entry in entries} == {"in", "ood", "none"}
    assert any(entry.pretrained for entry in entries)
    assert any(entry.surrogate != "victim" for entry in entries)


def test_full_holds_what_standard_holds() -> None:
    def kinds(name: BatteryName) -> set[Entry]:
        return {replace(entry, budget=1, epochs=1) for entry in BATTERIES[name]}

    assert kinds("standard") <= kinds("full")


def test_the_standard_battery_fits_into_twenty_minutes() -> None:
    trained = sum(entry.budget * entry.epochs for entry in BATTERIES["standard"])
    assert trained <= 9_500_000, "what two cores do for LeNet-5, with the attacks' own trainings"


def test_an_entry_is_named_after_what_sets_it_apart() -> None:
    plain = Entry("knockoff", "ood", "soft", 10, 1)
    assert plain.name == "knockoff-ood-soft"
    assert replace(plain, policy="adaptive").name == "knockoff-adaptive-ood-soft"
    assert replace(plain, copies=3, copy_kind="mixed").name == "knockoff-ood-soft-3-mixed"
    other = replace(plain, surrogate="sfc", surrogate_bits="victim", pretrained=True)
    assert other.name == "knockoff-ood-soft-sfc-victims-bits-pretrained"
    assert replace(plain, pool="none", attack="noise").name == "noise-soft"
    assert plain.questions == replace(plain, labels="hard", training="rotation").questions
    assert plain.questions != replace(plain, budget=11).questions


def _rows(title: str) -> list[list[str]]:
    section = PAGE.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("title", "name"),
    [("The standard battery", "standard"), ("The quick battery", "quick")],
)
def test_the_page_shows_the_table_of_the_code(title: str, name: BatteryName) -> None:
    expected = [
        [f"`{e.name}`", f"{e.budget:,}", _surrogate(e), str(e.epochs), e.source]
        for e in BATTERIES[name]
    ]
    assert _rows(title) == expected
    assert f"`battery: {VERSION}`" in PAGE.read_text(encoding="utf-8")


def _surrogate(entry: Entry) -> str:
    words = ["victim's" if entry.surrogate == "victim" else entry.surrogate]
    words += ["its bits"] if entry.surrogate_bits == "victim" else []
    words += ["pretrained"] if entry.pretrained else []
    return ", ".join(words)


def test_the_page_names_every_attack_label_and_training() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in (*ATTACKS, *get_args(Labels), *get_args(Training)):
        assert f"`{name}`" in text, name


def test_the_page_s_example_runs() -> None:
    with torch.random.fork_rng():
        failed, attempted = doctest.testfile(str(PAGE), module_relative=False)
    assert failed == 0
    assert attempted >= 10
