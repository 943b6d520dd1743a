# SPDX-License-Identifier: BSD-3-Clause
"""Every direction of examples/directions.py trains, and what it leaves is exported as a victim."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from brevitas_divqat.cli import main
from brevitas_divqat.data import DataConfig, load
from brevitas_divqat.evaluation import export
from brevitas_divqat.executors import open_executor
from brevitas_divqat.training import load_checkpoint

EXAMPLE = Path(__file__).parents[1] / "examples" / "directions.py"


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("directions", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DIRECTIONS = load_example()
NAMES = list(DIRECTIONS.DIRECTIONS)
QUICK = ("outliers", "quantiser", "nasty")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    argv = ["train", "--method", "qat", "--float-epochs", "2", "--epochs", "1", "--device", "cpu"]
    assert main([*argv, "--batch-size", "64", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_a_direction_trains_a_victim(run: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "victim"
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    DIRECTIONS.train(run, name, 0.04, out, 1)
    info = load_checkpoint(out)[1]
    assert info.method == {"name": name, "weight": 0.04}
    assert info.precision is not None
    exported = export(out)
    assert exported.integer is not None
    scores = open_executor(exported.integer)(images)
    assert np.isfinite(scores).all()
    before = load_checkpoint(run / "qat")[0].state_dict()
    after = load_checkpoint(out)[0].state_dict()
    assert any(not (before[key] == after[key]).all() for key in before)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("constant --weight 0 --out victim", "--weight is 0.0"),
        ("constant --weight nan --out victim", "--weight is nan"),
        ("constant --weight=-1 --out victim", "--weight is -1.0"),
        ("nasty --epochs 1 --out victim", "nasty has none of"),
        ("constant --out run/config.yaml/victim", "a file is in the way"),
        ("constant --out run", "run exists"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    run: Path, argv: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(sys, "argv", ["directions.py", "run", *argv.split()])
    with pytest.raises(SystemExit) as caught:
        DIRECTIONS.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_rounding_stays_within_half_a_step(run: Path, tmp_path: Path) -> None:
    DIRECTIONS.train(run, "rounding", 1.0, tmp_path / "victim", 1)
    before, after = (load_checkpoint(f)[0] for f in (run / "qat", tmp_path / "victim"))
    steps = []
    for old, new in zip(before.modules(), after.modules(), strict=True):
        if hasattr(old, "weight_quant") and old.weight is not None:
            moved = (new.weight - old.weight).detach().abs() / old.quant_weight().scale
            steps.append(float(moved.max()))
    assert 0.4 < max(steps) <= 0.5 + 1e-4


def test_images_that_are_appended_are_augmented_as_the_training_images_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str] = []

    def noted(kind: str) -> None:
        kinds.append(kind)

    monkeypatch.setattr(DIRECTIONS, "augmentation_of", noted)
    DIRECTIONS.train(run, "outliers", 0.04, tmp_path / "victim", 1)
    assert kinds == [load(DataConfig("digits"), foreign=False).augmentation]
