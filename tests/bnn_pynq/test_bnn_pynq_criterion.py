# SPDX-License-Identifier: BSD-3-Clause
"""The two losses with the divergence."""

from __future__ import annotations

import pytest
import torch
from brevitas_examples.bnn_pynq.models.losses import SqrHingeLoss
from torch import Tensor, nn

from brevitas_divqat.bnn_pynq import DivQATCrossEntropyLoss, DivQATSqrHingeLoss
from brevitas_divqat.loss import LossConfig, divergence

CASES = [(DivQATCrossEntropyLoss, nn.CrossEntropyLoss), (DivQATSqrHingeLoss, SqrHingeLoss)]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator)
    y = torch.randint(3, (6,), generator=generator)
    return x, y, 2.0 * nn.functional.one_hot(y, 3) - 1


@pytest.mark.parametrize("weighting", ["additive", "convex"])
@pytest.mark.parametrize(("kind", "base"), CASES)
def test_the_loss_and_its_gradient(
    kind: type[nn.Module], base: type[nn.Module], weighting: str, batch: tuple[Tensor, ...]
) -> None:
    torch.manual_seed(0)
    x, y, signs = batch
    target = signs if base is SqrHingeLoss else y
    model, reference = nn.Linear(4, 3), nn.Linear(4, 3)
    config = LossConfig("F3", alpha=0.3, weighting=weighting)  # type: ignore[arg-type]
    criterion = kind(reference, config)
    assert isinstance(criterion, base)
    assert not criterion.state_dict()
    assert not list(criterion.parameters())
    model.register_forward_pre_hook(criterion.observe)
    scores = model(x)
    loss = criterion(scores, target)
    (gradient,) = torch.autograd.grad(loss, scores)

    scores = scores.detach().requires_grad_()
    weight = 1.0 if weighting == "additive" else 0.7
    (own,) = torch.autograd.grad(base()(scores, target), scores)
    far = divergence(scores, reference(x).detach(), direction="q||p", temperature=4.0)
    (push,) = torch.autograd.grad(far, scores)
    torch.testing.assert_close(loss, weight * base()(scores, target) - 0.3 * far)
    torch.testing.assert_close(gradient, weight * own - 0.3 * push)


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_evaluation_runs_no_reference(
    kind: type[nn.Module], base: type[nn.Module], batch: tuple[Tensor, ...]
) -> None:
    class Untouchable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the reference was run")

    x, y, signs = batch
    target = signs if base is SqrHingeLoss else y
    model = nn.Linear(4, 3).eval()
    criterion = kind(Untouchable(), LossConfig("F3", alpha=0.3)).eval()
    model.register_forward_pre_hook(criterion.observe)
    assert torch.equal(criterion(model(x), target), base()(model(x), target))


# Outliers


class Network(nn.Module):
    """Linear; notes the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        scores: Tensor = self.layer(x.flatten(1))
        return scores


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def watched(criterion: nn.Module, model: nn.Module) -> nn.Module:
    """Let the criterion watch the model, as the trainer does."""
    model.register_forward_pre_hook(criterion.observe)
    model.register_forward_hook(criterion.withhold)
    return model


@pytest.mark.parametrize(("share", "count"), [(None, 3), (0.75, 4), (0.01, 1), (2.0, 12)])
@pytest.mark.parametrize(("kind", "base"), CASES)
def test_the_divergence_is_that_of_the_outliers_alone(
    kind: type[nn.Module],
    base: type[nn.Module],
    share: float | None,
    count: int,
    images: Tensor,
    batch: tuple[Tensor, ...],
) -> None:
    torch.manual_seed(0)
    _, y, signs = batch
    target = signs if base is SqrHingeLoss else y
    model, reference = Network(), Network()
    config = LossConfig(alpha=0.3, outliers=("patches", "textures"), outlier_share=share)
    criterion = kind(reference, config)
    scores = watched(criterion, model)(images)
    assert scores.shape == (6, 3), "the trainer gets the scores of what it gave"
    loss = criterion(scores, target)
    gradients = torch.autograd.grad(loss, list(model.parameters()))

    (given,), (asked,) = model.seen, reference.seen
    assert torch.equal(given[:6], images)
    assert torch.equal(given[6:], asked), "the reference is asked about the outliers alone"
    assert len(asked) == count
    assert not any(torch.equal(a, b) for a in asked for b in images)
    own = base()(model.layer(images.flatten(1)), target)
    ours, theirs = (net.layer(asked.flatten(1)) for net in (model, reference))
    far = divergence(ours, theirs.detach(), direction="q||p", temperature=4.0)
    torch.testing.assert_close(loss, own - 0.3 * far)
    pull = torch.autograd.grad(own, list(model.parameters()))
    push = torch.autograd.grad(far, list(model.parameters()))
    for found, towards, away in zip(gradients, pull, push, strict=True):
        torch.testing.assert_close(found, towards - 0.3 * away)
        assert away.abs().max() > 0.01


def test_each_step_has_outliers_of_its_own(images: Tensor, batch: tuple[Tensor, ...]) -> None:
    torch.manual_seed(0)
    model = Network()
    config = LossConfig(alpha=0.3, outliers=("shapes",))
    criterion = DivQATCrossEntropyLoss(Network(), config)
    watched(criterion, model)
    for _ in range(2):
        criterion(model(images), batch[1])
    first, second = model.seen
    assert torch.equal(first[:6], second[:6])
    assert not torch.equal(first[6:], second[6:])


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_an_evaluation_has_no_outliers(
    kind: type[nn.Module], base: type[nn.Module], images: Tensor, batch: tuple[Tensor, ...]
) -> None:
    torch.manual_seed(0)
    _, y, signs = batch
    target = signs if base is SqrHingeLoss else y
    model, reference = Network(), Network()
    criterion = kind(reference, LossConfig(alpha=0.3, outliers=("textures",)))
    watched(criterion, model)
    criterion(model(images), target)  # a step before: nothing is kept of it
    model.eval()
    criterion.eval()
    state = torch.get_rng_state()
    scores = model(images)
    assert torch.equal(criterion(scores, target), base()(scores, target))
    assert torch.equal(model.seen[-1], images)
    assert len(reference.seen) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_alpha_grows_over_the_warm_up(batch: tuple[Tensor, ...]) -> None:
    x, y, _ = batch
    model = nn.Linear(4, 3)
    criterion = DivQATCrossEntropyLoss(nn.Linear(4, 3), LossConfig("F3", alpha=0.4, warmup_steps=4))
    model.register_forward_pre_hook(criterion.observe)
    alphas = []
    for _ in range(6):
        alphas.append(criterion.current_alpha())
        criterion(model(x), y)
    assert alphas == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_the_reference_is_frozen() -> None:
    reference = nn.Linear(4, 3)
    DivQATCrossEntropyLoss(reference, LossConfig("F3", alpha=0.3))
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
