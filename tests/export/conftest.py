# SPDX-License-Identifier: BSD-3-Clause
"""A small trained-looking network and its graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from brevitas_divqat.export import GraphMetadata
from brevitas_divqat.models import Precision, build
from brevitas_divqat.training import calibrate

PRECISION = Precision(weight=3, activation=4, edge=8)


@pytest.fixture(scope="session")
def _prototype() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("lenet5", (1, 8, 8), 10, precision=PRECISION, width=0.25)
        images = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
        calibrate(model, images)
        model.train()
        for _ in range(20):  # gives BatchNorm statistics of its own
            model(torch.from_numpy(images).float() / 256)
    return model.eval()


@pytest.fixture
def make_model(_prototype: nn.Module) -> Callable[[], nn.Module]:
    """Return a function that gives a fresh copy of a calibrated W3A4E8 network."""
    return lambda: copy.deepcopy(_prototype)


@pytest.fixture
def metadata() -> GraphMetadata:
    """Return metadata with every field filled."""
    return GraphMetadata(
        image_shape=(1, 8, 8),
        pixel_divisor=256.0,
        class_names=tuple("0123456789"),
        data="few-digits",
        model="lenet5",
        bits={"weight": 3, "activation": 4, "edge": 8, "input": 8},
        method={"name": "divqat", "alpha": 0.04, "cap": None},
    )
