# SPDX-License-Identifier: BSD-3-Clause
"""The divergence is the textbook's, its gradients are the closed forms, and it stays finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr, softmax
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import Direction, divergence, divqat_loss, per_sample_divergence

LAW = settings(deadline=None, max_examples=20, database=None)
GRADIENT_TOLERANCE = 1e-6
"""Float64 rounding of a few dozen operations on values below 1e3 stays far below this."""
VALUE_TOLERANCE = 1e-9
"""Float64; the textbook's formulas go through probabilities and lose a few digits there."""

DIRECTIONS = ["p||q", "q||p"]


@st.composite
def two_logits(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits of two models for the same batch, (N, C) float64."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 5)))
    values = arrays(np.float64, shape, elements=st.floats(-15, 15))
    return torch.from_numpy(draw(values)), torch.from_numpy(draw(values))


def targets_for(logits: Tensor) -> Tensor:
    n, classes = logits.shape
    return torch.arange(n) % classes


def gradient(logits: Tensor, reference: Tensor, alpha: float, direction: Direction) -> Tensor:
    """Per-sample gradient: that of the mean, times the number of samples."""
    z = logits.clone().requires_grad_()
    loss = divqat_loss(z, targets_for(z), reference, alpha=alpha, direction=direction).loss
    return torch.autograd.grad(loss, z)[0] * len(z)


@LAW
@given(two_logits(), st.floats(0, 0.99))
def test_gradient_of_f1_is_the_closed_form(logits: tuple[Tensor, Tensor], alpha: float) -> None:
    z_q, z_p = logits
    q, p = z_q.softmax(1), z_p.softmax(1)
    y = F.one_hot(targets_for(z_q), z_q.shape[1])
    expected = (1 - alpha) * q - y + alpha * p
    found = gradient(z_q, z_p, alpha, "p||q")
    assert (found - expected).abs().max() < GRADIENT_TOLERANCE


@LAW
@given(two_logits(), st.floats(0, 3))
def test_gradient_of_f3_is_the_closed_form(logits: tuple[Tensor, Tensor], alpha: float) -> None:
    z_q, z_p = logits
    q, p = z_q.softmax(1), z_p.softmax(1)
    y = F.one_hot(targets_for(z_q), z_q.shape[1])
    ratio = (q / p).log()
    kl = (q * ratio).sum(dim=1, keepdim=True)
    expected = q - y - alpha * q * (ratio - kl)
    found = gradient(z_q, z_p, alpha, "q||p")
    assert (found - expected).abs().max() < GRADIENT_TOLERANCE


@pytest.mark.parametrize("direction", DIRECTIONS)
@LAW
@given(logits=two_logits(), temperature=st.floats(0.5, 20))
def test_divergence_is_the_textbook_s_times_t_squared(
    direction: Direction, logits: tuple[Tensor, Tensor], temperature: float
) -> None:
    z_q, z_p = logits
    found = per_sample_divergence(z_q, z_p, direction=direction, temperature=temperature)
    first, second = (z_p, z_q) if direction == "p||q" else (z_q, z_p)
    by_torch = kl_divergence(
        Categorical(logits=first / temperature), Categorical(logits=second / temperature)
    )
    by_scipy = rel_entr(
        softmax(first.numpy() / temperature, axis=1), softmax(second.numpy() / temperature, axis=1)
    ).sum(axis=1)
    scale = temperature**2
    assert (found - scale * by_torch).abs().max() < VALUE_TOLERANCE * scale
    assert np.abs(found.numpy() - scale * by_scipy).max() < VALUE_TOLERANCE * scale


@pytest.mark.parametrize("direction", DIRECTIONS)
@LAW
@given(logits=two_logits(), temperature=st.floats(0.5, 20))
def test_divergence_is_never_negative(
    direction: Direction, logits: tuple[Tensor, Tensor], temperature: float
) -> None:
    found = per_sample_divergence(*logits, direction=direction, temperature=temperature)
    assert found.min() > -VALUE_TOLERANCE


@pytest.mark.parametrize("direction", DIRECTIONS)
@LAW
@given(logits=two_logits())
def test_divergence_of_equal_logits_is_zero(
    direction: Direction, logits: tuple[Tensor, Tensor]
) -> None:
    same = logits[0]
    found = per_sample_divergence(same, same.clone(), direction=direction, temperature=4.0)
    assert (found == 0).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
@LAW
@given(logits=two_logits(), shifts=st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
def test_divergence_ignores_shifts_of_the_logits(
    direction: Direction, logits: tuple[Tensor, Tensor], shifts: tuple[float, float]
) -> None:
    z_q, z_p = logits
    plain = per_sample_divergence(z_q, z_p, direction=direction)
    shifted = per_sample_divergence(z_q + shifts[0], z_p + shifts[1], direction=direction)
    assert (plain - shifted).abs().max() < VALUE_TOLERANCE


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_saturated_logits_give_finite_loss_and_gradient(
    direction: Direction, dtype: torch.dtype, autocast: bool
) -> None:
    z_q = torch.tensor([[1e4, -1e4, -1e4], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    z_p = torch.tensor([[-1e4, 1e4, -1e4], [-1e4, 1e4, 0.0]], dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        terms = divqat_loss(z_q, torch.tensor([0, 1]), z_p, alpha=0.1, direction=direction)
    (found,) = torch.autograd.grad(terms.loss, z_q)
    assert torch.isfinite(terms.loss)
    assert torch.isfinite(found).all()
    # One sample of two is certain of another class than the original, by 2e4 nats.
    expected = (z_p.detach()[0, 1] - z_p.detach()[0, 0]).float() / 2
    assert terms.divergence == expected


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bfloat16_logits_are_widened_before_anything_else(
    direction: Direction, autocast: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    z_q, z_p = (torch.randn(2, 8, 10, generator=random) * 4).bfloat16()
    targets = torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = divqat_loss(z_q, targets, z_p, alpha=0.1, direction=direction)
    expected = divqat_loss(z_q.float(), targets, z_p.float(), alpha=0.1, direction=direction)
    assert found == expected
    assert found.loss.dtype == torch.float32


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_capped_sample_contributes_the_cap_and_no_gradient(direction: Direction) -> None:
    z_q = torch.tensor([[9.0, 0.0, 0.0], [0.3, 0.1, 0.0]], dtype=torch.float64).requires_grad_()
    z_p = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.1, 0.3]], dtype=torch.float64)
    cap = 2.0
    above, below = per_sample_divergence(z_q, z_p, direction=direction).detach()
    assert above > cap > below  # or the test would show nothing
    value = divergence(z_q, z_p, direction=direction, cap=cap)
    (found,) = torch.autograd.grad(value, z_q)
    (uncapped,) = torch.autograd.grad(divergence(z_q, z_p, direction=direction), z_q)
    assert value == (cap + below) / 2
    assert (found[0] == 0).all()
    assert torch.equal(found[1], uncapped[1])
    assert found[1].abs().max() > 0


def test_cap_counts_in_nats_times_t_squared() -> None:
    z_q, z_p = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    assert per_sample_divergence(z_q, z_p, temperature=4.0) > 20 > per_sample_divergence(z_q, z_p)
    assert divergence(z_q, z_p, temperature=4.0, cap=20.0) == 20


@pytest.mark.parametrize("direction", DIRECTIONS)
@LAW
@given(logits=two_logits(), alpha=st.floats(0, 0.45))
def test_convex_weighting_is_additive_with_another_alpha(
    direction: Direction, logits: tuple[Tensor, Tensor], alpha: float
) -> None:
    z_q, z_p = logits
    targets = targets_for(z_q)
    convex = divqat_loss(z_q, targets, z_p, alpha=alpha, direction=direction, weighting="convex")
    additive = divqat_loss(z_q, targets, z_p, alpha=alpha / (1 - alpha), direction=direction)
    assert abs(convex.loss - (1 - alpha) * additive.loss) < VALUE_TOLERANCE
    assert (
        abs(convex.loss - ((1 - alpha) * convex.cross_entropy - alpha * convex.divergence))
        < VALUE_TOLERANCE
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_cross_entropy_is_torch_s(kind: str, smoothing: float) -> None:
    random = torch.Generator().manual_seed(0)
    z_q, z_p = torch.randn(2, 6, 4, generator=random)
    targets = torch.arange(6) % 4 if kind == "indices" else z_p.softmax(1)
    found = divqat_loss(z_q, targets, z_p, alpha=0.3, label_smoothing=smoothing)
    expected = F.cross_entropy(z_q, targets, label_smoothing=smoothing)
    assert torch.equal(found.cross_entropy, expected)
    assert torch.equal(found.loss, expected - 0.3 * found.divergence)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("direction", "P||Q"),
        ("weighting", "product"),
        ("alpha", -1.0),
        ("alpha", float("nan")),
        ("temperature", 0.0),
        ("temperature", float("nan")),
    ],
)
def test_what_the_equations_do_not_know_is_refused(name: str, value: object) -> None:
    settings = {"alpha": 0.1} | {name: value}
    with pytest.raises(ConfigError, match=f"^{name} is"):
        divqat_loss(torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2, 3), **settings)  # type: ignore[arg-type]
