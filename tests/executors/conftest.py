# SPDX-License-Identifier: BSD-3-Clause
"""Small deployed graphs and the models they came from: calibrated, not trained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.data import DataConfig, load
from brevitas_divqat.export import GraphMetadata, export_qonnx
from brevitas_divqat.export.integer import export_integer
from brevitas_divqat.models import Precision, build
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import calibrate
from tests import networks

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


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that exports a network of the zoo, each one once."""
    folder = tmp_path_factory.mktemp("zoo")
    return functools.cache(lambda name: networks.export(name, folder / f"{name}.onnx"))


@pytest.fixture(scope="session")
def integer(exported: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return a function that gives the integer graph of a network of the zoo."""
    return functools.cache(lambda name: export_integer(exported(name)))


@pytest.fixture(scope="session")
def integer_file(graph_file: Path) -> Path:
    """Return the integer graph of ``graph_file``."""
    return export_integer(graph_file)
