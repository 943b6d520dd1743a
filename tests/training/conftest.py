# SPDX-License-Identifier: BSD-3-Clause
"""A few real digits and a network small enough to train in a blink."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from brevitas_divqat.data import Dataset, Labelled, Pool
from brevitas_divqat.models import FloatLayers, Layers, Precision, QuantLayers, build
from brevitas_divqat.progress import Progress, Show
from brevitas_divqat.training import calibrate


class Interrupted(Exception):
    """Stands for the user's Ctrl-C."""


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Return 64 training, 32 validation and 32 test images of 8x8 pixels, ten classes."""
    bunch = load_digits()
    images = (bunch.images[:, None] * 15).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    parts = [Labelled(images[a:b], labels[a:b]) for a, b in ((0, 64), (64, 96), (96, 128))]
    return Dataset(
        name="few-digits",
        class_names=tuple("0123456789"),
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        pools={"in": Pool("few-digits", images[128:160])},
        augmentation="shift",
    )


def _small(layers: Layers) -> nn.Sequential:
    """Return a network of one convolution, which trains in a third of LeNet-5's time."""
    return nn.Sequential(
        layers.input(),
        layers.conv(1, 6, 3, edge=True),
        nn.BatchNorm2d(6),
        layers.relu(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        layers.linear(6 * 3 * 3, 10, edge=True),
    )


@pytest.fixture(scope="session")
def _prototypes(digits: Dataset) -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        twin = build("lenet5", (1, 8, 8), 10, precision=None, width=0.25)
        model = build("lenet5", (1, 8, 8), 10, precision=Precision(), width=0.25)
        fresh = copy.deepcopy(model)
        small = {
            "small": _small(QuantLayers(Precision())),
            "small uncalibrated": _small(QuantLayers(Precision())),
            "small float": _small(FloatLayers()),
        }
    calibrate(model, digits.train.images)
    calibrate(small["small"], digits.train.images)
    return {"float": twin, "quantized": model, "uncalibrated": fresh, **small}


@pytest.fixture
def make_model(_prototypes: dict[str, nn.Module]) -> Callable[..., nn.Module]:
    """Return a function that gives a fresh copy of the network of a kind.

    ``"quantized"`` (calibrated), ``"uncalibrated"`` and ``"float"`` are LeNet-5; ``"small"``
    (calibrated), ``"small uncalibrated"`` and ``"small float"`` have one convolution.
    """
    return lambda kind: copy.deepcopy(_prototypes[kind])


@pytest.fixture
def interrupt_after() -> Callable[[int], Progress]:
    """Return a function that makes a progress which raises after so many steps."""

    def make(steps: int) -> Progress:
        @contextmanager
        def progress(name: str, total: int) -> Iterator[Show]:
            shown = -1  # the first call announces what was done before

            def show(advanced: int, text: str) -> None:
                nonlocal shown
                shown += 1
                if shown == steps:
                    raise Interrupted

            yield show

        return progress

    return make


@pytest.fixture
def interrupted() -> type[Exception]:
    """Return what an interruption raises."""
    return Interrupted


@pytest.fixture
def global_random_state_untouched() -> Iterator[None]:
    """Fail the test if torch's, numpy's or Python's global generator has moved."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert torch.equal(before[0], after[0]), "torch's global generator has moved"
    assert str(before[1]) == str(after[1]), "numpy's global generator has moved"
    assert before[2] == after[2], "Python's global generator has moved"
