# SPDX-License-Identifier: BSD-3-Clause
"""Run folders with invented measurements."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ATTACKS = ("in/soft", "in/hard", "ood/soft", "ood/hard")
# Surrogate accuracy of each attack, in the order of ATTACKS.
THEFTS = {"qat": (0.887, 0.872, 0.339, 0.301), "divqat": (0.881, 0.873, 0.222, 0.249)}
OWN = {"qat": 0.904, "divqat": 0.897}
BITS = {"weight": 4, "activation": 4, "edge": 8, "input": 8}
POOLS = {"in": "fashion-mnist", "ood": "mnist"}
METHODS: dict[str, dict[str, Any]] = {
    "qat": {"name": "qat"},
    "divqat": {"name": "divqat", "preset": "F3", "alpha": 0.04, "temperature": 4.0, "cap": None},
}

WriteRun = Callable[..., Path]


def victim_json(victim: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "victim",
        "victim": victim,
        "method": METHODS[victim],
        "bits": BITS,
        "data": "fashion-mnist",
        "model": "lenet5",
        "seed": seed,
        "images": 10000,
        "accuracy": {"float": 0.906, "brevitas": accuracy, "qonnx": accuracy},
        "validation_accuracy": 0.91,
        "brevitas_vs_qonnx": {
            "labels_differing": 1,
            "images_differing": 12,
            "max_abs_difference": 2.4e-7,
        },
        "calibration_error": 0.05,
        "parameters": 61000,
        "graph_sha256": f"{victim}-{seed}",
        "executor": "reference",
        "seconds": 12.3,
        "from_the_future": True,
    }


def extraction_json(victim: str, attack: str, seed: int, accuracy: float) -> dict[str, Any]:
    pool, labels = attack.split("/")
    return {
        "schema": 1,
        "kind": "extraction",
        "victim": victim,
        "attack": "knockoff",
        "policy": "random",
        "pool": pool,
        "pool_name": POOLS[pool],
        "pool_images": 60000,
        "labels": labels,
        "interface": {"kind": "probabilities" if labels == "soft" else "label", "k": None},
        "queries": 20000,
        "budget": 20000,
        "surrogate": {"model": "lenet5", "epochs": 20},
        "images": 10000,
        "accuracy": accuracy,
        "fidelity": round(accuracy + 0.02, 6),
        "query_set": {"kl_to_float": 0.4, "entropy": 0.9, "agreement_with_float": 0.8},
        "data": "fashion-mnist",
        "model": "lenet5",
        "bits": BITS,
        "seed": seed,
        "graph_sha256": f"{victim}-{seed}",
        "seconds": 40.0,
    }


def edit(path: Path, **changes: Any) -> None:
    """Overwrite keys of a JSON file, nested ones by ``outer__inner``; None removes the key."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = content
        for name in outer:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Give a function that writes a run folder and returns it."""

    def write(
        seed: int = 0,
        *,
        victims: tuple[str, ...] = ("qat", "divqat"),
        attacks: tuple[str, ...] = ATTACKS,
        own: Mapping[str, float] = OWN,
        thefts: Mapping[str, tuple[float, ...]] = THEFTS,
        name: str = "",
    ) -> Path:
        run = tmp_path / (name or f"run-{seed}")
        folder = run / "measurements"
        folder.mkdir(parents=True)
        for victim in victims:
            content = victim_json(victim, seed, own[victim])
            (folder / f"{victim}.json").write_text(json.dumps(content), encoding="utf-8")
            for attack, accuracy in zip(ATTACKS, thefts[victim], strict=True):
                if attack in attacks:
                    content = extraction_json(victim, attack, seed, accuracy)
                    path = folder / f"{victim}-{attack.replace('/', '-')}.json"
                    path.write_text(json.dumps(content), encoding="utf-8")
        return run

    return write


@pytest.fixture
def edit_json() -> Callable[..., None]:
    return edit
