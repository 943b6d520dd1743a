# SPDX-License-Identifier: BSD-3-Clause
"""Executors and forms of trained networks agree on all test images of the real data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from brevitas_divqat.data import DataConfig, Dataset, load
from brevitas_divqat.evaluation import export
from brevitas_divqat.evaluation.verify import VERIFIED_EQUAL, verify
from brevitas_divqat.loss import LossConfig
from brevitas_divqat.models import ModelConfig
from brevitas_divqat.training import (
    TrainingConfig,
    load_checkpoint,
    train_float,
    train_quantized,
)

CASES = {"fashion-mnist": ModelConfig(), "cifar10": ModelConfig("cnv", 0.25)}
TRAINING = TrainingConfig(float_epochs=2, epochs=1)
LABELS = 10
"""Of 10,000 that may change between forms: by ties, and by float32 sums rounded across a
threshold."""


@pytest.fixture(scope="module", params=CASES)
def data(request: pytest.FixtureRequest, data_root: Path) -> Dataset:
    return load(DataConfig(data=request.param, data_root=data_root), foreign=False)


@pytest.fixture(scope="module")
def original(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float")
    train_float(CASES[data.name], TRAINING, data, folder, seed=0)
    return folder


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_no_score_differs_between_executors(
    data: Dataset, original: Path, tmp_path: Path, bits: int
) -> None:
    case = CASES[data.name]
    model = ModelConfig(case.model, case.width, bits)
    reference = load_checkpoint(original)[0]
    train_quantized("qat", reference, model, TRAINING, LossConfig(), data, tmp_path, seed=0)
    export(tmp_path)
    record = verify(tmp_path, data.test.images)
    assert record["images"] == 10_000
    found = record["comparisons"]
    for name in VERIFIED_EQUAL:
        assert found[name]["bits_differing"] == 0
    assert len(found) == 5
    assert all(row["labels_differing"] <= LABELS for row in found.values())
