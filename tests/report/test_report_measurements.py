# SPDX-License-Identifier: BSD-3-Clause
"""Reading and aggregating measurements, and refusing those that cannot be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brevitas_divqat import report
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.report import Stat, load_measurements

# Surrogate accuracy against DivQAT on ood/soft, by seed.
OOD_SOFT = (0.20, 0.22, 0.27)


def three_runs(write_run: Callable[..., Path]) -> list[Path]:
    return [
        write_run(
            seed,
            thefts={"qat": (0.9, 0.9, 0.3, 0.3), "divqat": (0.8, 0.8, accuracy, 0.2)},
        )
        for seed, accuracy in enumerate(OOD_SOFT)
    ]


def test_every_public_name_resolves() -> None:
    assert sorted(report.__all__) == report.__all__
    assert all(hasattr(report, name) for name in report.__all__)


def test_one_run_has_no_spread(write_run: Callable[..., Path]) -> None:
    m = load_measurements([write_run()])
    assert [row.victim for row in m.victims] == ["qat", "divqat"]
    assert [(row.victim, row.attack) for row in m.extractions] == [
        (victim, attack)
        for victim in ("qat", "divqat")
        for attack in ("in/soft", "in/hard", "ood/soft", "ood/hard")
    ]
    own = m.victims[0].qonnx_accuracy
    assert (own.mean, own.sd, own.n, own.percent) == (0.904, None, 1, "90.4")


def test_validation_images_that_judged_are_named_and_not_mixed_with_test_images(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    first, second = write_run(0), write_run(1)
    assert load_measurements([first, second]).split == "test", (
        "files from before there was a choice"
    )
    for path in (first / "measurements").glob("*.json"):
        edit_json(path, split="validation")
    m = load_measurements([first])
    assert m.setting.endswith("seed 0, judged on validation images")
    with pytest.raises(ConfigError, match="split is 'test', but 'validation'"):
        load_measurements([first, second])


def test_several_runs_are_averaged_over_their_seeds(write_run: Callable[..., Path]) -> None:
    m = load_measurements(three_runs(write_run))
    row = next(r for r in m.extractions if (r.victim, r.attack) == ("divqat", "ood/soft"))
    # Mean 0.23; deviations -0.03, -0.01, 0.04; their squares sum to 0.0026, over n - 1 = 2.
    assert row.accuracy.mean == pytest.approx(0.23)
    assert row.accuracy.sd == pytest.approx(math.sqrt(0.0013))
    assert row.accuracy.percent == "23.0 ± 3.6"
    assert row.fidelity.mean == pytest.approx(0.25)
    assert row.accuracy.seeds == m.seeds == (0, 1, 2)
    assert m.victims[0].labels_differing == 3
    assert m.victims[0].images_differing == 36
    assert m.victims[0].graphs == {0: "qat-0", 1: "qat-1", 2: "qat-2"}


def test_differences_are_paired_by_seed() -> None:
    ours, theirs = Stat.of({0: 0.5, 1: 0.7, 3: 0.1}), Stat.of({0: 0.4, 1: 0.5, 2: 0.9})
    change = ours.minus(theirs)
    assert change.seeds == (0, 1)
    assert change.mean == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("values", "noise"),
    [
        # Standard error 0.00577; with 2 degrees of freedom t(97.5 %) = 4.303: reach 0.0248.
        ((0.01, 0.02, 0.03), True),
        ((0.015, 0.025, 0.035), False),
        # Standard error 0.005; with 1 degree of freedom t(97.5 %) = 12.71: reach 0.0635.
        ((0.05, 0.06), True),
        ((0.06, 0.07), False),
        ((0.01,), False),
        ((0.0, 0.0), False),
    ],
)
def test_noise_is_within_the_confidence_interval(values: tuple[float, ...], noise: bool) -> None:
    assert Stat.of(dict(enumerate(values))).is_noise is noise


def test_query_set_figures_may_be_absent(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    run = write_run()
    edit_json(run / "measurements" / "qat-in-hard.json", query_set=None)
    row = load_measurements([run]).extractions[1]
    assert row.kl is None
    assert row.entropy is None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        pytest.param("qat", {"schema": 2}, "made by a newer version", id="newer schema"),
        pytest.param("qat", {"schema": "1"}, "schema is '1', expected 1", id="schema as text"),
        pytest.param("qat", {"kind": "poem"}, "kind is 'poem', expected victim or", id="kind"),
        pytest.param("qat", {"kind": ["victim"]}, "kind is", id="kind as list"),
        pytest.param("qat", {"seed": None}, "lacks 'seed'", id="missing key"),
        pytest.param("qat", {"accuracy__qonnx": None}, "lacks 'accuracy.qonnx'", id="inner key"),
        pytest.param("qat", {"accuracy": 0.9}, "lacks 'accuracy.float'", id="not nested"),
        pytest.param("qat-in-soft", {"accuracy": 88.7}, "from 0 to 1", id="percent"),
        pytest.param("qat-in-soft", {"accuracy": "0.8"}, "from 0 to 1", id="number as text"),
        pytest.param("qat-in-soft", {"accuracy": math.nan}, "accuracy is nan", id="not a number"),
        pytest.param("qat-in-soft", {"seed": True}, "seed is True", id="bool"),
        pytest.param(
            "qat-in-soft", {"query_set__entropy": "high"}, "query_set.entropy", id="optional"
        ),
        pytest.param(
            "qat-in-soft", {"renamed_accuracy": 88.7}, "renamed_accuracy is", id="renamed"
        ),
        pytest.param("qat-in-soft", {"accuracy": 10**400}, "accuracy is 1000", id="huge"),
        pytest.param("qat-in-soft", {"query_set__entropy": 10**400}, "entropy is", id="huge nats"),
        pytest.param("qat-in-soft", {"curve": [{"queries": -1}]}, "curve is", id="curve"),
        pytest.param(
            "qat-in-soft",
            {"curve": [{"queries": 9, "accuracy": 0.1}, {"queries": 9, "accuracy": 0.2}]},
            "curve is",
            id="curve twice",
        ),
        pytest.param(
            "qat-in-soft",
            {"curve": [{"queries": 20001, "accuracy": 0.1}]},
            "curve has a point at 20001 queries",
            id="curve beyond",
        ),
        pytest.param("qat-in-soft", {"queries": 10**400}, "queries is", id="no number of queries"),
        pytest.param("qat", {"data": "cifar10"}, "data is", id="data differs"),
        pytest.param("divqat", {"bits__weight": 2}, "bits is", id="bits differ"),
        pytest.param("qat-in-soft", {"budget": 50000}, "budget is", id="budget differs"),
        pytest.param("qat-in-soft", {"surrogate__epochs": 5}, "surrogate is", id="attack differs"),
        pytest.param("qat-in-soft", {"graph_sha256": "x"}, "another graph", id="other graph"),
    ],
)
def test_a_bad_file_is_named_in_one_line(
    write_run: Callable[..., Path],
    edit_json: Callable[..., None],
    name: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    run = write_run()
    path = run / "measurements" / f"{name}.json"
    edit_json(path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_measurements([run])
    assert message in str(caught.value)
    assert f"{name}.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_a_damaged_file_is_named(write_run: Callable[..., Path], content: bytes) -> None:
    run = write_run()
    path = run / "measurements" / "qat.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"qat\.json.*measure again"):
        load_measurements([run])


def test_a_run_without_measurements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_measurements([tmp_path / "nowhere"])
    (tmp_path / "measurements").mkdir()
    with pytest.raises(ConfigError, match="holds no measurement"):
        load_measurements([tmp_path])
    with pytest.raises(ConfigError, match="no run folder"):
        load_measurements([])


@pytest.mark.parametrize(
    ("change", "key"),
    [({"model": "vgg7"}, "model"), ({"method__alpha": 0.5}, "method"), ({"images": 9}, "images")],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(
    write_run: Callable[..., Path],
    edit_json: Callable[..., None],
    change: dict[str, Any],
    key: str,
) -> None:
    runs = [write_run(0), write_run(1)]
    edit_json(runs[1] / "measurements" / "divqat.json", **change)
    with pytest.raises(ConfigError, match=rf"{key} is .*only runs that differ in seed"):
        load_measurements(runs)


def test_the_same_seed_twice_is_refused(write_run: Callable[..., Path]) -> None:
    run = write_run(0)
    for other in (run, write_run(0, name="again")):
        with pytest.raises(ConfigError, match="seed 0 was already read from"):
            load_measurements([run, other])


def test_measurements_do_not_depend_on_the_order_of_runs(write_run: Callable[..., Path]) -> None:
    runs = three_runs(write_run)
    assert load_measurements(runs) == load_measurements(runs[::-1])


def test_unknown_keys_are_tolerated(write_run: Callable[..., Path]) -> None:
    run = write_run()
    content = json.loads((run / "measurements" / "qat.json").read_text(encoding="utf-8"))
    assert content["from_the_future"]
    load_measurements([run])


def test_runs_of_other_settings_are_not_averaged(write_run: Callable[..., Path]) -> None:
    runs = [write_run(0), write_run(1)]
    for run, lr in zip(runs, (0.1, 0.2), strict=True):
        (run / "config.yaml").write_text(f"seed: {lr}\ndata_root: {lr}\nlr: {lr}\n")
    with pytest.raises(ConfigError, match="lr is 0.2, but 0.1 in .* only runs that differ in seed"):
        load_measurements(runs)


def test_attacks_of_other_names_trainings_or_copies_are_rows_of_their_own(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    run = write_run()
    folder = run / "measurements"
    kinds: dict[str, dict[str, Any]] = {
        "jbda/ood/soft": {"attack": "jbda"},
        "ood/soft/rotation": {"training": "rotation"},
        "ood/soft/3 mixed copies": {"copies": 3, "copy_kind": "mixed"},
    }
    for number, changes in enumerate(kinds.values()):
        for victim in ("qat", "divqat"):
            path = folder / f"{victim}-{number}.json"
            path.write_bytes((folder / f"{victim}-ood-soft.json").read_bytes())
            edit_json(path, accuracy=0.1 * (number + 1), **changes)
    measurements = load_measurements([run])
    found = {(row.victim, row.attack): row.accuracy.mean for row in measurements.extractions}
    assert len(found) == 2 * (4 + len(kinds))
    for number, name in enumerate(kinds):
        assert found["divqat", name] == pytest.approx(0.1 * (number + 1))
    assert found["divqat", "ood/soft"] == pytest.approx(0.222)


CURVE = [
    {"queries": 1000, "accuracy": 0.2},
    {"queries": 5300, "accuracy": 0.5},
    {"queries": 20000, "accuracy": 0.7},
]


def test_several_budgets_of_one_attack_are_one_learning_curve(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    run = write_run(victims=("qat",), attacks=("ood/soft",))
    folder = run / "measurements"
    whole, part = folder / "qat-ood-soft.json", folder / "qat-ood-soft-1000.json"
    part.write_bytes(whole.read_bytes())
    edit_json(whole, accuracy=0.7, curve=CURVE)
    edit_json(part, budget=1000, queries=1000, accuracy=0.3)
    (row,) = load_measurements([run]).extractions
    assert (row.settings["budget"], row.accuracy.mean) == (20000, 0.7)
    # A thief who knew that it had 1,000 queries goes before one on the way to 20,000.
    assert {queries: stat.mean for queries, stat in row.curve.items()} == {
        1000: 0.3,
        5300: 0.5,
        20000: 0.7,
    }


def test_victims_are_compared_at_the_largest_budget_that_they_share(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    run = write_run(attacks=("ood/soft",))
    folder = run / "measurements"
    more = folder / "qat-ood-soft-50000.json"
    more.write_bytes((folder / "qat-ood-soft.json").read_bytes())
    edit_json(more, budget=50000, queries=50000, accuracy=0.8)
    qat, divqat = load_measurements([run]).extractions
    assert qat.settings == divqat.settings
    assert (qat.settings["budget"], qat.accuracy.mean) == (20000, 0.339)
    assert list(qat.curve) == [20000, 50000]
    (folder / "qat-ood-soft.json").unlink()
    with pytest.raises(ConfigError, match="queries is"):  # they share none
        load_measurements([run])


def test_folders_of_one_attack_each_are_joined(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    runs = [write_run(victims=("qat",), attacks=("ood/soft",), name=name) for name in "ab"]
    edit_json(runs[1] / "measurements" / "qat-ood-soft.json", budget=300, queries=300)
    m = load_measurements(runs)
    assert m.victims[0].qonnx_accuracy.seeds == (0,)
    assert list(m.extractions[0].curve) == [300, 20000]
    edit_json(runs[1] / "measurements" / "qat.json", accuracy__qonnx=0.5)
    with pytest.raises(ConfigError, match="accuracy is"):
        load_measurements(runs)


def test_budgets_on_different_graphs_are_not_one_curve(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    runs = [write_run(victims=("qat",), attacks=("ood/soft",), name=name) for name in "ab"]
    for run in runs:
        (run / "measurements" / "qat.json").unlink()
    edit_json(runs[1] / "measurements" / "qat-ood-soft.json", budget=300, graph_sha256="x")
    with pytest.raises(ConfigError, match="another graph"):
        load_measurements(runs)


def test_a_point_on_the_way_is_not_averaged_with_an_attack_of_that_budget(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    runs = [write_run(seed, victims=("qat",), attacks=("ood/soft",)) for seed in (0, 1)]
    for run in runs:
        edit_json(run / "measurements" / "qat-ood-soft.json", accuracy=0.7, curve=CURVE)
    own = runs[0] / "measurements" / "own.json"
    own.write_bytes((runs[0] / "measurements" / "qat-ood-soft.json").read_bytes())
    edit_json(own, budget=1000, queries=1000, accuracy=0.3, curve=None)
    (row,) = load_measurements(runs).extractions
    assert row.curve[1000] == Stat.of({0: 0.3})
    assert row.curve[5300].n == 2
