# SPDX-License-Identifier: BSD-3-Clause
"""The divergence of a quantized model from its full-precision original, and the loss built on it.

Everything is computed in log space and in float32 or wider, whatever the dtype of the logits, so
that saturated outputs and bfloat16 autocast give finite values and gradients.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_divqat.errors import ConfigError, check_choice

__all__ = [
    "Direction",
    "LossTerms",
    "Weighting",
    "divergence",
    "divqat_loss",
    "per_sample_divergence",
]

Direction = Literal["p||q", "q||p"]
Weighting = Literal["additive", "convex"]


class LossTerms(NamedTuple):
    """What `divqat_loss` returns: scalars, of which ``loss`` is the one to minimise."""

    loss: Tensor
    cross_entropy: Tensor
    divergence: Tensor


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32, or as they are in float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def per_sample_divergence(
    quantized_logits: Tensor,
    reference_logits: Tensor,
    *,
    direction: Direction = "q||p",
    temperature: float = 1.0,
) -> Tensor:
    """Compute T² KL between two models' softened predictions, sample by sample.

    With Q = softmax(z_Q / T) and P = softmax(z_P / T), ``"p||q"`` gives T² Σ_j P_j (log P_j − log
    Q_j) and ``"q||p"`` gives T² Σ_j Q_j (log Q_j − log P_j).

    Args:
        quantized_logits: (N, C) pre-softmax, of the quantized model; gets gradients.
        reference_logits: (N, C) pre-softmax, of the full-precision original.
        direction: which distribution the expectation is taken over.
        temperature: T > 0; the factor T² keeps gradients comparable across temperatures.

    Returns:
        (N,) values in nats times T², zero or more (up to rounding).

    Raises:
        ConfigError: if there is no such direction, or T is not above 0.
    """
    check_choice("direction", direction, Direction)
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}: it must be more than 0")
    log_q = F.log_softmax(wide(quantized_logits) / temperature, dim=1)
    log_p = F.log_softmax(wide(reference_logits) / temperature, dim=1)
    if direction == "p||q":
        kl = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    else:
        kl = (log_q.exp() * (log_q - log_p)).sum(dim=1)
    return temperature**2 * kl


def divergence(
    quantized_logits: Tensor,
    reference_logits: Tensor,
    *,
    direction: Direction = "q||p",
    temperature: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """Average ``per_sample_divergence`` over a batch, each sample limited to ``cap``.

    A capped sample contributes a constant and so no gradient: it is already far enough from the
    original, and pushing it on would only cost accuracy.

    Args:
        quantized_logits: (N, C) pre-softmax.
        reference_logits: (N, C) pre-softmax.
        direction: ``"p||q"`` or ``"q||p"``.
        temperature: T > 0.
        cap: the most that one sample counts, in nats times T²; None for no limit.

    Returns:
        A scalar in nats times T².

    Raises:
        ConfigError: see `per_sample_divergence`.
    """
    values = per_sample_divergence(
        quantized_logits, reference_logits, direction=direction, temperature=temperature
    )
    if cap is not None:
        values = values.clamp(max=cap)
    return values.mean()


def divqat_loss(
    quantized_logits: Tensor,
    targets: Tensor,
    reference_logits: Tensor,
    *,
    alpha: float,
    direction: Direction = "q||p",
    temperature: float = 1.0,
    weighting: Weighting = "additive",
    cap: float | None = None,
    label_smoothing: float = 0.0,
) -> LossTerms:
    """Compute the DivQAT loss of one batch.

    Additive: CE(z_Q, y) − α D(Q, P). Convex: (1 − α) CE − α D. For T = 1 and no cap, the gradients
    with respect to z_Q, per sample, are

    * ``"p||q"``, additive: (1 − α) Q − y + α P;
    * ``"q||p"``, additive: Q_j − y_j − α Q_j [log(Q_j / P_j) − KL(Q‖P)].

    Args:
        quantized_logits: (N, C) pre-softmax, of the quantized model.
        targets: (N,) class indices, or (N, C) class probabilities.
        reference_logits: (N, C) pre-softmax, of the full-precision original.
        alpha: weight of the divergence, 0 or more.
        direction: ``"p||q"`` or ``"q||p"``.
        temperature: T > 0, of the divergence alone.
        weighting: ``"additive"`` or ``"convex"``.
        cap: the most that one sample's divergence counts, in nats times T².
        label_smoothing: of the cross-entropy, in [0, 1).

    Returns:
        The loss and its two parts, scalars.

    Raises:
        ConfigError: if there is no such direction or weighting, alpha is below 0, or T not above.

    References:
        Khaled, Gohring de Magalhães, Nicolescu, "DivQAT", 2025, arXiv 2512.23948: the idea. Its
        abstract and summaries state that the Kullback-Leibler divergence between the quantized and
        the full-precision predictions is maximised with a weight alpha next to the cross-entropy;
        direction, temperature, weighting and cap are not stated there and are options here.
    """
    ce = F.cross_entropy(wide(quantized_logits), targets, label_smoothing=label_smoothing)
    kl = divergence(
        quantized_logits,
        reference_logits,
        direction=direction,
        temperature=temperature,
        cap=cap,
    )
    return subtract(ce, kl, alpha, weighting)


def subtract(ce: Tensor, kl: Tensor, alpha: float, weighting: Weighting) -> LossTerms:
    """Subtract alpha times a divergence from a loss, both scalars.

    Raises:
        ConfigError: if there is no such weighting, or alpha is below 0.
    """
    check_choice("weighting", weighting, Weighting)
    if not alpha >= 0:
        raise ConfigError(f"alpha is {alpha}: it must be 0 (plain QAT) or more")
    ce_weight = 1.0 if weighting == "additive" else 1.0 - alpha
    return LossTerms(ce_weight * ce - alpha * kl, ce, kl)
