# SPDX-License-Identifier: BSD-3-Clause
"""Batches and reference networks for the tests of the loss."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """Logits of the trained model, class indices, and the model's inputs."""

    logits: Tensor
    targets: Tensor
    inputs: Tensor


@pytest.fixture
def batch() -> Batch:
    """Return 6 samples of 4 features and 5 classes."""
    random = torch.Generator().manual_seed(0)
    return Batch(
        logits=(3 * torch.randn(6, 5, generator=random)).requires_grad_(),
        targets=torch.randint(5, (6,), generator=random),
        inputs=torch.rand(6, 4, generator=random),
    )


@pytest.fixture
def reference() -> nn.Sequential:
    """Return a small network with BatchNorm, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))


class NeverCalled(nn.Module):
    """Fails where it is run."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the reference was run")


@pytest.fixture
def never_called() -> nn.Module:
    """Return a reference that must not be run."""
    return NeverCalled()
