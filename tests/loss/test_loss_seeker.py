# SPDX-License-Identifier: BSD-3-Clause
"""Outliers of kind generated: what is sought, whom it leaves alone, and its state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import DivQATLoss, OutlierKind, Outliers, outliers_like
from brevitas_divqat.loss.outliers import MAKERS
from brevitas_divqat.loss.seeker import CROWD, HALVED, Seeker
from brevitas_divqat.loss.watch import Ask
from brevitas_divqat.training import FitConfig, fit

CLASSES = 4
ALL: tuple[OutlierKind, ...] = (*MAKERS, "generated")


def asking(answer: Callable[[Tensor], Any]) -> Ask:
    @contextmanager
    def ask(images: Tensor) -> Iterator[Any]:
        yield answer(images)

    return ask


class Network(nn.Module):
    """A small network with what evaluation mode changes, quantized or not."""

    def __init__(self, quantized: bool) -> None:
        super().__init__()
        convolution = QuantConv2d if quantized else nn.Conv2d
        linear = QuantLinear if quantized else nn.Linear
        self.conv = convolution(1, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.act = QuantIdentity(bit_width=4) if quantized else nn.Identity()  # not calibrated
        self.out = linear(6 * 16, CLASSES, bias=True)
        self.modes: list[tuple[bool, int]] = []
        self.checkpointed: dict[str, Any] | None = None

    def body(self, x: Tensor) -> Tensor:
        made: Tensor = self.act(torch.relu(self.norm(self.conv(x)))).flatten(1)
        return made

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, len(x)))
        kept = self.checkpointed
        logits: Tensor = self.out(
            self.body(x) if kept is None else checkpoint(self.body, x, **kept)
        )
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

    def answer(asked: Tensor) -> Tensor:
        return asked.flatten(1) @ planes

    def worth(asked: Tensor) -> float:
        q = answer(asked).softmax(1)
        return float(torch.special.entr(q.mean(0)).sum() - torch.special.entr(q).sum(1).mean())

    seeker = Seeker.like(images)
    found = [2 * seeker(images, 200, asking(answer)) - 1 for _ in range(200)]
    assert worth(found[-1]) > 1.0 > 2 * worth(found[0]), "nats; log 4 would be 1.39"


def test_a_step_is_one_of_adam_along_the_gradient(images: Tensor) -> None:
    plane = torch.randn(36, CLASSES)
    seeker = Seeker.like(images)
    weights = seeker.weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=1e-3)
    low, high = images.min(), images.max()
    for batch in range(3):
        torch.manual_seed(batch)
        seeker(images, 8, asking(lambda asked: asked.flatten(1) @ plane))
        torch.manual_seed(batch)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (1 + batch / HALVED)
        shares = seeker._made(weights, torch.randn(CROWD, 64), images)
        q = ((low + (high - low) * shares).flatten(1) @ plane).softmax(1)
        mean = q.mean(0)
        optimizer.zero_grad()
        (-(q * q.log()).sum(1).mean() + (mean * mean.log()).sum()).backward()
        optimizer.step()
        torch.testing.assert_close(seeker.weights, weights.detach(), rtol=1e-4, atol=2e-5)
    assert seeker.steps == 3


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 9, 7), (1, 28, 28), (3, 64, 48)])
def test_found_images_are_like_the_given_ones(shape: tuple[int, int, int]) -> None:
    images = torch.rand(6, *shape, dtype=torch.float64) * 3 - 1
    plane = torch.randn(math.prod(shape), CLASSES, dtype=torch.float64)
    made = Outliers(["generated"], 0.5)(images, asking(lambda asked: asked.flatten(1) @ plane))
    assert made.shape == (3, *shape)
    assert made.dtype == images.dtype
    assert not made.requires_grad
    low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
    assert (made.amin(dim=(0, 2, 3)) >= low - 1e-6).all()
    assert (made.amax(dim=(0, 2, 3)) <= high + 1e-6).all()


def test_images_may_change_their_size_and_not_their_channels(images: Tensor) -> None:
    outliers = Outliers(ALL, 0.5)
    ask = asking(lambda x: x.mean(dim=(1, 2, 3))[:, None] * torch.arange(4.0))
    assert outliers(images, ask).shape == (6, 1, 6, 6)
    assert outliers(nn.functional.interpolate(images, size=9), ask).shape == (6, 1, 9, 9)
    with pytest.raises(ConfigError, match="have 3 channels, .* sought for images of 1:"):
        outliers(images.repeat(1, 3, 1, 1), ask)


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


@pytest.mark.parametrize("gap", [1e4, math.nan, math.inf])
def test_one_extreme_answer_does_not_stay(images: Tensor, gap: float) -> None:
    seeker = Seeker.like(images)

    def answer(asked: Tensor) -> Tensor:
        logits: Tensor = asked.flatten(1)[:, :CLASSES].masked_fill(torch.arange(4) == 0, -gap)
        return logits

    for _ in range(2):
        seeker(images, 4, asking(answer))
    assert seeker.steps == 2
    assert all(value.isfinite().all() for value in seeker.buffers())


@pytest.mark.parametrize("answer", [lambda x: (x, x), lambda x: x])
def test_answers_that_are_no_logits_are_refused(images: Tensor, answer: Any) -> None:
    with pytest.raises(ConfigError, match=r"model's logits \(N, C\)"):
        Outliers(["generated"], 0.5)(images, asking(answer))


def test_answers_without_a_gradient_are_refused(images: Tensor) -> None:
    with pytest.raises(ConfigError, match="passes none to its inputs"):
        Outliers(["generated"], 0.5)(images, asking(lambda x: torch.rand(len(x), CLASSES)))


def test_there_must_be_a_model_to_ask(images: Tensor) -> None:
    advice = r"call with_outliers\(images, model\), make the criterion with model=, or leave"
    with pytest.raises(ConfigError, match=advice):
        outliers_like(images, ["generated"], 4)
    criterion = DivQATLoss(Network(False), outliers=ALL)
    with pytest.raises(ConfigError, match=advice):
        criterion.with_outliers(images)
    with pytest.raises(ConfigError, match="model is a str: give the nn.Module"):
        criterion.with_outliers(images, "model")  # type: ignore[arg-type]


# --- the criterion -----------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [False, True])
def test_the_model_is_left_as_it_was(images: Tensor, targets: Tensor, watched: bool) -> None:
    reference, model = Network(False), Network(True)
    criterion = DivQATLoss(reference, model=model if watched else None, outliers=["generated"])
    model.norm.eval()  # frozen by the user, whatever the rest does
    twin = copy.deepcopy(model)  # which nobody asks
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # a gradient that is being accumulated
    if watched:
        seen: list[Tensor] = []
        model.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        loss = criterion(model(images), targets)
        twin(seen[-1])
    else:
        batch = criterion.with_outliers(images, model)
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
        loss = criterion(model(batch), targets, batch)
        twin(batch)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert model.modes == [(False, CROWD), (True, 18)]
    assert (model.training, model.norm.training, model.conv.training) == (True, False, True)
    assert all((p.grad == 1).all() for p in model.parameters() if p.grad is not None)
    assert not list(criterion.parameters())
    loss.backward()
    learnt = [p.grad is not None and bool((p.grad != 1).any()) for p in model.parameters()]
    assert sum(learnt) >= 4, "weights of three layers and a bias"


def test_modes_come_back_by_the_modules_own_ways(images: Tensor) -> None:
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

    model = Network(True)
    model.out = Merging(96, CLASSES)
    seen: list[bool] = []
    model.out.register_forward_hook(lambda *_: seen.append(model.out.merged))
    criterion = DivQATLoss(Network(False), outliers=ALL)
    criterion.with_outliers(images, model)
    assert (seen, model.out.merged) == ([True], False)


def test_a_hook_and_a_hand_make_the_same_outliers(images: Tensor, targets: Tensor) -> None:
    reference, model = Network(False), Network(True)
    by_hand = DivQATLoss(reference, outliers=ALL)
    watching = DivQATLoss(reference, model=(other := copy.deepcopy(model)), outliers=ALL)
    for step in range(3):
        torch.manual_seed(step)
        batch = by_hand.with_outliers(images, model)
        expected = by_hand(model(batch), targets, batch)
        torch.manual_seed(step)
        assert torch.equal(watching(other(images), targets), expected)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(value, watching.state_dict()[name])


def test_what_earlier_hooks_did_is_done_once(images: Tensor) -> None:
    model, ranges = Network(True), []
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0] / 2 + 10,))
    model.conv.register_forward_pre_hook(
        lambda _, inputs: ranges.append((inputs[0].min(), inputs[0].max()))
    )
    criterion = DivQATLoss(Network(False), model=model, outliers=ALL)
    model(images)
    for low, high in ranges:
        assert 9.4 < low < high < 10.6
    assert criterion.training


@pytest.mark.parametrize("kinds", [ALL, ALL[:3]])
@pytest.mark.parametrize("whole", [False, True])
def test_checkpoints_see_the_outliers_of_their_pass(
    images: Tensor, targets: Tensor, whole: bool, kinds: tuple[OutlierKind, ...]
) -> None:
    gradients, states = [], []
    for kept in (None, {"use_reentrant": False}):
        torch.manual_seed(0)
        model = Network(True)
        model.act = nn.Dropout()  # and no statistics, which a second pass collects again
        criterion = DivQATLoss(Network(False), model=model, outliers=kinds)
        if whole and kept is not None:
            logits = checkpoint(model, images, **kept)
        else:
            model.checkpointed = kept
            logits = model(images)
        criterion(logits, targets).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        states.append(list(criterion.state_dict().values()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_a_checkpointed_pass_before_the_last_is_refused(images: Tensor, targets: Tensor) -> None:
    model = Network(True)
    model.act = nn.Identity()
    criterion = DivQATLoss(Network(False), model=model, outliers=ALL)
    total = torch.zeros(())
    for _ in range(2):
        total = total + criterion(checkpoint(model, images, use_reentrant=False), targets)
    with pytest.raises(ConfigError, match=r"call backward\(\) after each"):
        total.backward()


def test_a_gradient_that_cannot_be_taken_is_refused(images: Tensor) -> None:
    model = Network(True)
    model.checkpointed = {"use_reentrant": True}
    with pytest.raises(ConfigError, match="use torch.utils.checkpoint with use_reentrant=False"):
        DivQATLoss(Network(False), outliers=ALL).with_outliers(images, model)


@pytest.mark.parametrize(
    ("of_whole", "of_part", "refused"),
    [(ALL, ALL, True), (ALL, (), False), ((), ALL, False), ((), (), False)],
)
def test_outliers_of_outliers_are_refused(
    images: Tensor, of_whole: Any, of_part: Any, refused: bool
) -> None:
    model = Network(True)
    whole = nn.Sequential(model)
    criteria = [
        DivQATLoss(Network(False), model=part, preset="F3", outliers=kinds)
        for part, kinds in ((whole, of_whole), (model, of_part))
    ]
    if refused:
        with pytest.raises(ConfigError, match="is watched by 2 DivQATLoss"):
            whole(images)
    else:
        assert len(whole(images)) == len(images)
    assert len(criteria) == 2


# --- its state ---------------------------------------------------------------------------------


def test_a_criterion_without_the_search_refuses_its_state(images: Tensor) -> None:
    model = Network(True)
    criterion = DivQATLoss(Network(False), model=model, outliers=ALL)
    model(images)
    other = DivQATLoss(Network(False), outliers=("shapes",))
    with pytest.raises(RuntimeError, match="Unexpected key.*seeker"):
        other.load_state_dict(criterion.state_dict())


def test_the_state_is_that_of_the_search(images: Tensor) -> None:
    model = Network(True)
    criterion, fresh = (
        DivQATLoss(Network(False), outliers=ALL),
        DivQATLoss(Network(False), outliers=ALL),
    )
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
    DivQATLoss(Network(False), preset="F3").load_state_dict(criterion.state_dict(), strict=False)


def test_a_copy_seeks_on_its_own(images: Tensor) -> None:
    model = Network(True)
    criterion = DivQATLoss(Network(False), outliers=ALL)
    criterion.with_outliers(images, model)
    twin = copy.deepcopy(criterion)
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    twin.with_outliers(images, model)
    assert all(torch.equal(value, before[name]) for name, value in criterion.state_dict().items())
    assert not torch.equal(
        before["outliers.seeker.weights"], twin.state_dict()["outliers.seeker.weights"]
    )


def test_a_damaged_state_is_refused(images: Tensor) -> None:
    criterion = DivQATLoss(Network(False), outliers=ALL)
    criterion.with_outliers(images, Network(True))
    state = criterion.state_dict()
    del state["outliers.seeker.first"]
    with pytest.raises(RuntimeError, match=r"Missing key.*outliers\.seeker\.first"):
        DivQATLoss(Network(False), outliers=ALL).load_state_dict(state)


def test_the_search_stays_in_32_bits(images: Tensor) -> None:
    criterion = DivQATLoss(Network(False), outliers=ALL)
    criterion.with_outliers(images, Network(True))
    criterion.half()
    kept = [value.dtype for value in criterion.buffers() if value.is_floating_point()]
    assert kept
    assert set(kept) == {torch.float32}


def test_a_loaded_search_goes_where_the_images_are(images: Tensor) -> None:
    criterion, later = (DivQATLoss(Network(False), outliers=["generated"]) for _ in range(2))
    criterion.with_outliers(images, Network(True))
    later.load_state_dict(criterion.state_dict())
    seeker = later.outliers.seeker
    assert seeker is not None
    there = images.to("meta")  # where nothing can be computed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeker, "forward", lambda images, count, ask: there[:count])
        later.outliers(there, asking(lambda x: x.flatten(1)))
    assert seeker.weights.device.type == "meta"


def test_a_search_leaves_the_random_numbers_of_others_alone(images: Tensor) -> None:
    criterion, later = (DivQATLoss(Network(False), outliers=ALL) for _ in range(2))
    model, states = Network(True), []
    for _ in range(2):  # the first makes the generator
        torch.manual_seed(0)
        criterion.with_outliers(images, model)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    later.load_state_dict(criterion.state_dict())
    assert torch.equal(torch.get_rng_state(), states[-1])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_training_in_any_precision_seeks(precision: Any) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 1, 6, 6), dtype=np.uint8)
    labels = random.integers(0, CLASSES, 40)
    criterion = DivQATLoss(Network(False), outliers=ALL)
    config = FitConfig(2, batch_size=8, device="cpu", precision=precision)
    fit(Network(True), criterion, pixels, labels, config=config, seed=0)
    assert criterion.outliers.seeker is not None
    assert criterion.outliers.seeker.steps == 10
