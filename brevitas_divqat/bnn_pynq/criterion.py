# SPDX-License-Identifier: BSD-3-Clause
"""Brevitas' two BNN-PYNQ losses, minus the divergence from the full-precision twin."""

from __future__ import annotations

from typing import Any

import torch
from brevitas_examples.bnn_pynq.models.losses import SqrHingeLoss  # type: ignore[import-untyped]
from torch import Tensor, nn

from brevitas_divqat.loss import LossConfig, divergence
from brevitas_divqat.loss.functional import subtract

__all__ = ["DivQATCrossEntropyLoss", "DivQATSqrHingeLoss"]


class _Diverging(nn.Module):
    """Takes the divergence off the loss that comes next in the order of inheritance.

    The trainer calls ``criterion(scores, target)``; the reference's input is what the trained
    network got last, which it tells through `observe`, a forward pre-hook. In evaluation mode the
    loss is the base loss alone and the reference is not run.

    Args:
        reference: the full-precision twin, on the trained network's device. It is frozen here,
            and is no part of any ``state_dict``.
        config: of the divergence.

    Attributes:
        step: training steps so far, for the warm-up.
        last: the divergence of the last training batch, in nats times T²; None before the first.
    """

    def __init__(self, reference: nn.Module, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        # In a tuple, so that nn.Module does not register it as a part of this one.
        self._reference = (reference.eval().requires_grad_(False),)
        self._batch: Tensor | None = None
        self.step = 0
        self.last: Tensor | None = None

    def observe(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the batch that ``model`` is about to see, as a forward pre-hook."""
        self._batch = inputs[0] if model.training else None

    def current_alpha(self) -> float:
        """Return alpha at the present training step."""
        steps = self.config.warmup_steps
        return self.config.weight * (min(1.0, self.step / steps) if steps else 1.0)

    def base_loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the loss without the divergence."""
        return super().forward(scores, target)

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one batch.

        Args:
            scores: (N, C), the trained network's; the divergence takes them as logits.
            target: as the base loss wants it: (N, C) of -1 and 1, or (N,) class indices.

        Returns:
            A scalar.
        """
        base = self.base_loss(scores, target)
        if not self.training:
            return base
        assert self._batch is not None, "`observe` is no forward pre-hook of the trained network"
        with torch.no_grad():
            reference_scores = self._reference[0](self._batch)
        self._batch = None
        alpha = self.current_alpha()
        self.step += 1
        far = divergence(
            scores,
            reference_scores,
            direction=self.config.direction,  # type: ignore[arg-type]
            temperature=self.config.softness,
            cap=self.config.cap,
        )
        self.last = far.detach()
        return subtract(base, far, alpha, self.config.weighting).loss  # type: ignore[arg-type]


class DivQATCrossEntropyLoss(_Diverging, nn.CrossEntropyLoss):
    """Cross-entropy minus alpha times the divergence."""


class DivQATSqrHingeLoss(_Diverging, SqrHingeLoss):
    """Squared hinge loss minus alpha times the divergence.

    A ``SqrHingeLoss``, so that Brevitas' trainer encodes the targets as it does for its own.
    """

    def base_loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the squared hinge loss, differentiated by autograd.

        Brevitas' own backward pass writes into the gradient that it receives and does not look at
        its value: right where the loss is all there is, wrong for one term of a sum with weights.
        """
        return (1.0 - scores * target).clamp(min=0).square().mean()
