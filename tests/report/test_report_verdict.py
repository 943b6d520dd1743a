# SPDX-License-Identifier: BSD-3-Clause
"""The verdict says what the figures say, the worst case first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from brevitas_divqat.report import load_measurements, verdict

WriteRun = Callable[..., Path]
Thefts = dict[str, tuple[float, ...]]


def test_gain_with_one_seed(write_run: WriteRun) -> None:
    assert verdict(load_measurements([write_run()])) == (
        "Worst case: the best thief (in/soft) reaches 88.1 % against DivQAT and 88.7 % against "
        "plain QAT: 0.6 points lower, for 0.7 points of the victim's own accuracy. "
        "Largest gain: ood/soft, 33.9 % -> 22.2 % (-11.7 points); the others: in/soft -0.6, "
        "in/hard +0.1, ood/hard -5.2. "
        "One seed: differences of this size are not yet a claim."
    )


def test_no_gain(write_run: WriteRun) -> None:
    thefts: Thefts = {"qat": (0.8, 0.7, 0.3, 0.3), "divqat": (0.82, 0.7, 0.35, 0.31)}
    text = verdict(load_measurements([write_run(thefts=thefts, own={"qat": 0.9, "divqat": 0.91})]))
    assert "2.0 points higher, so DivQAT did not protect" in text
    assert "while the victim's own accuracy is 1.0 points higher" in text
    assert "No attack got weaker; closest to it: in/hard +0.0 points" in text


def test_equal_figures_are_no_difference(write_run: WriteRun) -> None:
    same: Thefts = dict.fromkeys(("qat", "divqat"), (0.8, 0.7, 0.3, 0.3))
    text = verdict(load_measurements([write_run(thefts=same, own={"qat": 0.9, "divqat": 0.9})]))
    assert "no difference, at no change of the victim's own accuracy." in text


def test_each_victim_has_its_own_worst_case(write_run: WriteRun) -> None:
    thefts: Thefts = {"qat": (0.9, 0.7, 0.3, 0.3), "divqat": (0.5, 0.7, 0.3, 0.2)}
    text = verdict(load_measurements([write_run(thefts=thefts)]))
    assert text.startswith(
        "Worst case: the best thief reaches 70.0 % against DivQAT (in/hard) and 90.0 % against "
        "plain QAT (in/soft): 20.0 points lower"
    )


def test_noise_is_called_noise(write_run: WriteRun) -> None:
    # Over the seeds in/soft changes by -3, +1, -1 points (noise), ood/soft by -10, -11, -12.
    changes = ((-0.03, -0.10), (0.01, -0.11), (-0.01, -0.12))
    runs = [
        write_run(
            seed,
            thefts={"qat": (0.8, 0.7, 0.4, 0.3), "divqat": (0.8 + a, 0.7, 0.4 + b, 0.3)},
        )
        for seed, (a, b) in enumerate(changes)
    ]
    text = verdict(load_measurements(runs))
    assert "79.0 ± 2.0 % against DivQAT and 80.0 ± 0.0 % against plain QAT" in text
    assert "1.0 points lower (within seed-to-seed noise), for 0.7 points of" in text
    assert "ood/soft, 40.0 ± 0.0 % -> 29.0 ± 1.0 % (-11.0 points); the others" in text
    assert "in/soft -1.0 (noise), in/hard +0.0, ood/hard +0.0." in text
    assert text.endswith(
        "3 paired seeds: a difference whose 95 % confidence interval holds 0 counts as "
        "seed-to-seed noise."
    )


def test_copies_that_name_classes_wrongly_are_told_apart(
    write_run: WriteRun, edit_json: Callable[..., None]
) -> None:
    run = write_run()
    # In/soft gains 1.8 points, to the most of all, ood/hard 1, and ood/soft 3.8.
    renamed = {"divqat-ood-hard": 0.259, "divqat-in-soft": 0.899, "divqat-ood-soft": 0.26}
    for name, value in renamed.items():
        edit_json(run / "measurements" / f"{name}.json", renamed_accuracy=value)
    assert verdict(load_measurements([run])).endswith(
        "Some copies name classes wrongly: renamed by the true labels, that of DivQAT by ood/soft "
        "has 26.0 % instead of 22.2 %."
    )
    # In/hard now has the most of all that gain three points, ood/soft still gains most.
    edit_json(run / "measurements" / "divqat-in-hard.json", renamed_accuracy=0.905)
    assert "that of DivQAT by ood/soft has 26.0 %" in verdict(load_measurements([run]))
    edit_json(run / "measurements" / "divqat-ood-soft.json", renamed_accuracy=0.24)
    edit_json(run / "measurements" / "divqat-in-hard.json", renamed_accuracy=0.902)
    assert "name classes wrongly" not in verdict(load_measurements([run]))


def test_a_copy_renamed_at_some_seeds_is_compared_at_these(
    write_run: WriteRun, edit_json: Callable[..., None]
) -> None:
    low: Thefts = {"qat": (0.8, 0.7, 0.4, 0.3), "divqat": (0.8, 0.7, 0.1, 0.3)}
    high: Thefts = {"qat": (0.8, 0.7, 0.4, 0.3), "divqat": (0.8, 0.7, 0.5, 0.3)}
    runs = [write_run(0, thefts=low), write_run(1, thefts=high)]
    path = runs[1] / "measurements" / "divqat-ood-soft.json"
    edit_json(path, renamed_accuracy=0.51)  # the mean over both seeds is 0.3
    assert "name classes wrongly" not in verdict(load_measurements(runs))
    edit_json(path, renamed_accuracy=0.54)
    assert verdict(load_measurements(runs)).endswith(
        "that of DivQAT by ood/soft has 54.0 % instead of 50.0 % (1 of 2 seeds)."
    )


def test_a_missing_victim_is_said(write_run: WriteRun) -> None:
    text = verdict(load_measurements([write_run(victims=("qat",))]))
    assert text == (
        "Worst case: the best thief (in/soft) reaches 88.7 % against plain QAT; there is nothing "
        "to compare it with yet. The victims' own accuracy: plain QAT 90.4 %. "
        "Not measured: the victim DivQAT; every attack on DivQAT."
    )


def test_missing_extractions_are_said(write_run: WriteRun) -> None:
    text = verdict(load_measurements([write_run(attacks=())]))
    assert text == (
        "The victims' own accuracy: plain QAT 90.4 %, DivQAT 89.7 %. Not measured: any extraction."
    )


def test_a_missing_attack_takes_no_part(write_run: WriteRun) -> None:
    run = write_run()
    (run / "measurements" / "divqat-in-soft.json").unlink()
    text = verdict(load_measurements([run]))
    assert "the best thief (in/hard) reaches 87.3 % against DivQAT and 87.2 %" in text
    assert text.endswith("Not measured: in/soft on DivQAT.")


def test_only_seeds_that_all_have_are_compared(write_run: WriteRun) -> None:
    weak: Thefts = dict.fromkeys(("qat", "divqat"), (0.1, 0.1, 0.1, 0.1))
    runs = [write_run(0), write_run(1, thefts=weak)]
    (runs[1] / "measurements" / "divqat-ood-hard.json").unlink()
    text = verdict(load_measurements(runs))
    assert "88.1 % against DivQAT and 88.7 %" in text
    assert "One seed" in text
    assert text.endswith("Not measured: ood/hard on DivQAT at seed 1.")
