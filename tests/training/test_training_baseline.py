# SPDX-License-Identifier: BSD-3-Clause
"""The baseline is worth beating: plain QAT stays close to full precision on real images."""

from __future__ import annotations

from pathlib import Path

import pytest

from brevitas_divqat.data import DataConfig, Dataset, load
from brevitas_divqat.loss import LossConfig
from brevitas_divqat.models import ModelConfig
from brevitas_divqat.training import (
    TrainingConfig,
    load_checkpoint,
    train_float,
    train_quantized,
)

TRAINING = TrainingConfig(float_epochs=6, epochs=6)  # half the default, to save time


@pytest.fixture(scope="module")
def fashion(data_root: Path) -> Dataset:
    return load(DataConfig(data="fashion-mnist", data_root=data_root), foreign=False)


@pytest.fixture(scope="module")
def original(fashion: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float")
    train_float(ModelConfig(), TRAINING, fashion, folder, seed=0)
    return folder


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("bits", "points"), [(4, 1), (3, 2), (2, 4)], ids=["4", "3", "2"])
def test_plain_qat_stays_close_to_full_precision(
    fashion: Dataset, original: Path, tmp_path: Path, bits: int, points: float
) -> None:
    reference, info = load_checkpoint(original)
    model = ModelConfig(bits=bits)
    train_quantized("qat", reference, model, TRAINING, LossConfig(), fashion, tmp_path, seed=0)
    quantized = load_checkpoint(tmp_path)[1]
    assert info.validation_accuracy is not None
    assert quantized.validation_accuracy is not None
    assert info.validation_accuracy > 0.9
    assert 100 * (info.validation_accuracy - quantized.validation_accuracy) <= points
