# SPDX-License-Identifier: BSD-3-Clause
"""Both sides of every diff in docs/migrating-from-brevitas.md run."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "migrating-from-brevitas.md"
SECTIONS = {
    part.splitlines()[0]: re.findall(r"```diff\n(.*?)```", part, flags=re.DOTALL)
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
}
SCRIPTS = {title: diffs[0] for title, diffs in SECTIONS.items() if diffs[0][1:8] == "import "}
PATCH = SECTIONS["`brevitas_examples.imagenet_classification`"][0]


def sides(diff: str) -> tuple[str, str]:
    """Return the script before and after a diff."""
    lines = diff.splitlines()
    assert all(line[:1] in (" ", "-", "+") for line in lines)
    before, after = ([li[1:] for li in lines if li[:1] in (" ", mark)] for mark in "-+")
    return "\n".join(before) + "\n", "\n".join(after) + "\n"


def run(script: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments],
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_section_shows_one_diff() -> None:
    assert len(SECTIONS) == 6
    assert all(len(diffs) == 1 for diffs in SECTIONS.values())
    assert len(SCRIPTS) == 4


@pytest.mark.parametrize("title", SCRIPTS)
def test_the_script_runs_before_and_after(title: str, tmp_path: Path) -> None:
    if "Lightning" in title:
        pytest.importorskip("pytorch_lightning")
    before, after = sides(SCRIPTS[title])
    assert "brevitas_divqat" not in before
    assert "brevitas_divqat" in after
    for name, text in (("before.py", before), ("after.py", after)):
        script = tmp_path / name
        script.write_text(text, encoding="utf-8")
        run(script)


def apply(diff: str, folder: Path) -> None:
    """Apply a unified diff as it stands to a file in ``folder``."""
    (folder / "change.diff").write_text(diff, encoding="utf-8")
    done = subprocess.run(
        ["git", "apply", "change.diff"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def write_cifar10(root: Path) -> None:
    """Write 50 training and 10 test images as the files of CIFAR-10 for Python."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = random.integers(256, size=(10, 3072), dtype=np.uint8)
        content = {"data": images, "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {"label_names": [str(i) for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))


RUNNER = """
import runpy, sys
import torchvision
from brevitas_examples.imagenet_classification.a2q import utils

torchvision.datasets.CIFAR10._check_integrity = lambda self: True
torchvision.datasets.cifar.check_integrity = lambda *args: True
make = utils.get_model_by_name  # its pretrained weights are a download
utils.get_model_by_name = lambda name, pretrained=False, **kw: make(name, **kw)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_brevitas_own_training_script_runs_with_the_diff(tmp_path: Path) -> None:
    found = importlib.util.find_spec("brevitas_examples.imagenet_classification.a2q")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0])
    original = (folder / "a2q_train_models.py").read_text(encoding="utf-8")
    write_cifar10(tmp_path)
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER, encoding="utf-8")
    script = tmp_path / "a2q_train_models.py"
    script.write_text(original, encoding="utf-8")
    apply(PATCH, tmp_path)
    assert script.read_text(encoding="utf-8") != original
    flags = {
        "--data-root": tmp_path,
        "--model-name": "quant_resnet18_w4a4_a2q_16b",  # its default does not exist
        "--total-epochs": 1,
        "--batch-size-train": 10,
        "--batch-size-test": 10,
        "--calibration-samples": 10,
    }
    out = run(runner, str(script), *(str(part) for flag in flags.items() for part in flag))
    assert "[Epoch 000] train_loss=" in out
