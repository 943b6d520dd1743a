# SPDX-License-Identifier: BSD-3-Clause
"""A small deployed graph and the model it came from: calibrated, not trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.data import DataConfig, load
from brevitas_divqat.export import GraphMetadata, export_qonnx
from brevitas_divqat.models import Precision, build
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import calibrate

SHAPE = (1, 8, 8)
CLASSES = tuple("0123456789")


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    return load(DataConfig(pool_images=1)).train.images[:40]


@pytest.fixture(scope="session")
def model(images: NDArray[np.uint8]) -> nn.Module:
    with seeded(0, "tests"):
        model = build("lenet5", SHAPE, len(CLASSES), precision=Precision(), width=0.5)
    calibrate(model, images)
    return model


@pytest.fixture(scope="session")
def graph_file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = GraphMetadata(image_shape=SHAPE, pixel_divisor=256.0, class_names=CLASSES)
    return export_qonnx(model, tmp_path_factory.mktemp("graph") / "model.onnx", metadata)
