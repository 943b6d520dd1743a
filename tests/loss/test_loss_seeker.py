# SPDX-License-Identifier: BSD-3-Clause
"""Outliers of kind generated: what is sought, whom it leaves alone, and its state."""

from __future__ import annotations

import copy
from typing import Any, get_args

import numpy as np
import pytest
import torch
from brevitas.nn import QuantConv2d, QuantLinear
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import DivQATLoss, OutlierKind, Outliers, outliers_like
from brevitas_divqat.loss.seeker import CROWD, Seeker

CLASSES = 4
ALL = get_args(OutlierKind)


class Network(nn.Module):
    """A small network with what evaluation mode changes, quantized or not."""

    def __init__(self, quantized: bool) -> None:
        super().__init__()
        convolution = QuantConv2d if quantized else nn.Conv2d
        linear = QuantLinear if quantized else nn.Linear
        self.conv = convolution(1, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.out = linear(6 * 16, CLASSES, bias=True)
        self.modes: list[tuple[bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, len(x)))
        logits: Tensor = self.out(torch.relu(self.norm(self.conv(x))).flatten(1))
        return logits


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def targets() -> Tensor:
    return torch.arange(12) % CLASSES


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


# --- the search --------------------------------------------------------------------------------


def test_the_search_finds_sure_and_varied_answers(images: Tensor) -> None:
    planes = torch.randn(36, CLASSES)

    def ask(asked: Tensor) -> Tensor:
        return asked.flatten(1) @ planes

    def worth(asked: Tensor) -> float:
        q = ask(asked).softmax(1)
        return float(torch.special.entr(q.mean(0)).sum() - torch.special.entr(q).sum(1).mean())

    seeker = Seeker(images[0].shape)
    found = [2 * seeker(images, 200, ask) - 1 for _ in range(200)]
    assert worth(found[-1]) > 1.0 > 2 * worth(found[0]), "nats; log 4 would be 1.39"


def test_a_step_is_one_of_adam_along_the_gradient(images: Tensor) -> None:
    plane = torch.randn(36, CLASSES)
    seeker, expected = Seeker(images[0].shape), Seeker(images[0].shape)
    expected.load_state_dict(seeker.state_dict())
    weights = list(expected.net.requires_grad_().parameters())
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    low, high = images.min(), images.max()
    for step in range(3):
        torch.manual_seed(step)
        seeker(images, 8, lambda asked: asked.flatten(1) @ plane)
        torch.manual_seed(step)
        shares = expected.net(torch.randn(CROWD, 64))
        q = ((low + (high - low) * shares).flatten(1) @ plane).softmax(1)
        mean = q.mean(0)
        optimizer.zero_grad()
        (-(q * q.log()).sum(1).mean() + (mean * mean.log()).sum()).backward()
        optimizer.step()
        for own, other in zip(seeker.net.parameters(), weights, strict=True):
            torch.testing.assert_close(own, other.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 9, 7), (1, 28, 28)])
def test_found_images_are_like_the_given_ones(shape: tuple[int, int, int]) -> None:
    images = torch.rand(6, *shape, dtype=torch.float64) * 3 - 1
    plane = torch.randn(int(np.prod(shape)), CLASSES, dtype=torch.float64)
    outliers = Outliers(["generated"], 0.5)
    made = outliers(images, lambda asked: asked.flatten(1) @ plane)
    assert made.shape == (3, *shape)
    assert made.dtype == images.dtype
    assert not made.requires_grad
    low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
    assert (made.amin(dim=(0, 2, 3)) >= low - 1e-6).all()
    assert (made.amax(dim=(0, 2, 3)) <= high + 1e-6).all()


@pytest.mark.parametrize("answer", [lambda x: (x, x), lambda x: x])
def test_answers_that_are_no_logits_are_refused(images: Tensor, answer: Any) -> None:
    with pytest.raises(ConfigError, match=r"model's logits \(N, C\)"):
        Outliers(["generated"], 0.5)(images, answer)


def test_answers_without_a_gradient_are_refused(images: Tensor) -> None:
    with pytest.raises(ConfigError, match="passes none to its inputs"):
        Outliers(["generated"], 0.5)(images, lambda x: torch.rand(len(x), CLASSES))


def test_there_must_be_somebody_to_ask(images: Tensor) -> None:
    advice = r"call with_outliers\(images, model\), make the criterion with model=, or leave"
    with pytest.raises(ConfigError, match=advice):
        outliers_like(images, ["generated"], 4)
    with pytest.raises(ConfigError, match=advice):
        DivQATLoss(Network(False)).with_outliers(images)


@pytest.mark.parametrize("number", [1, 2, 7, 30])
def test_half_are_generated_beside_other_kinds(images: Tensor, number: int) -> None:
    asked: list[int] = []

    def seek(given: Tensor, count: int) -> Tensor:
        asked.append(count)
        return torch.rand(count, 1, 6, 6)

    assert len(outliers_like(images, ["generated"], number, seek)) == number == asked.pop()
    for _ in range(40):
        assert len(outliers_like(images, ALL, number, seek)) == number
    assert set(asked) == {number // 2, (number + 1) // 2}


# --- the criterion -----------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [False, True])
def test_the_model_is_left_as_it_was(images: Tensor, targets: Tensor, watched: bool) -> None:
    reference, model = Network(False), Network(True)
    criterion = DivQATLoss(reference, model=model if watched else None, outliers=["generated"])
    model.norm.eval()  # frozen by the user, whatever the rest does
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sum(p.sum() for p in model.parameters()).backward()  # a gradient that is being accumulated
    if watched:
        loss = criterion(model(images), targets)
    else:
        batch = criterion.with_outliers(images, model)
        loss = criterion(model(batch), targets, batch)
    assert model.modes == [(False, CROWD), (True, 18)]
    assert (model.training, model.norm.training, model.conv.training) == (True, False, True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all((p.grad == 1).all() for p in model.parameters())
    assert not any(p.requires_grad for p in criterion.parameters())
    loss.backward()
    assert all((p.grad != 1).any() for p in model.parameters())


def test_a_hook_and_a_hand_make_the_same_outliers(images: Tensor, targets: Tensor) -> None:
    reference, model = Network(False), Network(True)
    by_hand = DivQATLoss(reference)
    watching = DivQATLoss(reference, model=(other := copy.deepcopy(model)))
    for step in range(2):
        torch.manual_seed(step)
        batch = by_hand.with_outliers(images, model)
        expected = by_hand(model(batch), targets, batch)
        torch.manual_seed(step)
        assert torch.equal(watching(other(images), targets), expected)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(value, watching.state_dict()[name])


def test_a_copy_seeks_on_its_own(images: Tensor) -> None:
    model = Network(True)
    criterion = DivQATLoss(Network(False))
    criterion.with_outliers(images, model)
    twin = copy.deepcopy(criterion)
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    twin.with_outliers(images, model)
    assert all(torch.equal(value, before[name]) for name, value in criterion.state_dict().items())


# --- its state ---------------------------------------------------------------------------------


def test_the_state_is_that_of_the_search(images: Tensor) -> None:
    model = Network(True)
    criterion, fresh = DivQATLoss(Network(False)), DivQATLoss(Network(False))
    assert not criterion.state_dict(), "there is no search before the first batch"
    criterion.with_outliers(images, model)
    fresh.load_state_dict(criterion.state_dict())
    made = []
    for own in (criterion, fresh):
        torch.manual_seed(7)
        made.append([own.with_outliers(images, model) for _ in range(2)][-1])
    assert torch.equal(*made)
    fresh.load_state_dict({})
    assert not fresh.state_dict(), "a checkpoint of a training that had not begun"
    DivQATLoss(Network(False), preset="F3").load_state_dict({})


def test_a_damaged_state_is_refused(images: Tensor) -> None:
    criterion = DivQATLoss(Network(False))
    criterion.with_outliers(images, Network(True))
    state = criterion.state_dict()
    del state["outliers.seeker.first"]
    with pytest.raises(RuntimeError, match=r"Missing key.*outliers\.seeker\.first"):
        DivQATLoss(Network(False)).load_state_dict(state)
