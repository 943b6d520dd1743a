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
    config = LossConfig(alpha=0.3, weighting=weighting)  # type: ignore[arg-type]
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
    criterion = kind(Untouchable(), LossConfig(alpha=0.3)).eval()
    model.register_forward_pre_hook(criterion.observe)
    assert torch.equal(criterion(model(x), target), base()(model(x), target))


def test_alpha_grows_over_the_warm_up(batch: tuple[Tensor, ...]) -> None:
    x, y, _ = batch
    model = nn.Linear(4, 3)
    criterion = DivQATCrossEntropyLoss(nn.Linear(4, 3), LossConfig(alpha=0.4, warmup_steps=4))
    model.register_forward_pre_hook(criterion.observe)
    alphas = []
    for _ in range(6):
        alphas.append(criterion.current_alpha())
        criterion(model(x), y)
    assert alphas == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_the_reference_is_frozen() -> None:
    reference = nn.Linear(4, 3)
    DivQATCrossEntropyLoss(reference, LossConfig(alpha=0.3))
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
