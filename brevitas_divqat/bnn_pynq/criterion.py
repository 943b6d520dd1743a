# SPDX-License-Identifier: BSD-3-Clause
"""Brevitas' two BNN-PYNQ losses, minus the divergence from the full-precision twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from brevitas_examples.bnn_pynq.models.losses import SqrHingeLoss  # type: ignore[import-untyped]
from torch import Tensor, nn

from brevitas_divqat.loss import LossConfig, Outliers, divergence
from brevitas_divqat.loss.functional import subtract
from brevitas_divqat.loss.watch import answers_of

__all__ = ["DivQATCrossEntropyLoss", "DivQATSqrHingeLoss"]


class _Diverging(nn.Module):
    """Takes the divergence off the loss that comes next in the order of inheritance.

    The trainer calls ``criterion(scores, target)``; the reference's input is what the trained
    network got last, which it tells through `observe`, a forward pre-hook. In evaluation mode the
    loss is the base loss alone and the reference is not run.

    With outliers, `observe` appends them to the batch of a network in training, and `withhold`, a
    forward hook, takes their scores off again: the trainer's own loop sees the training images
    alone. The divergence is then that of the outliers alone. The generator of outliers, where there
    is one, is in the ``state_dict``.

    Args:
        reference: the full-precision twin, on the trained network's device. It is frozen here,
            and is no part of any ``state_dict``.
        config: of the divergence.
        augment: varies the outliers as the trainer varies its images, see `DivQATLoss`.

    Attributes:
        step: training steps so far, for the warm-up.
        last: the divergence of the last training batch, in nats times T²; None before the first.
    """

    def __init__(
        self,
        reference: nn.Module,
        config: LossConfig,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.outliers = Outliers(config.kinds, config.share, augment)
        # In a tuple, so that nn.Module does not register it as a part of this one.
        self._reference = (reference.eval().requires_grad_(False),)
        self._asked: Tensor | None = None  # the images that the divergence is taken on
        self._withheld: Tensor | None = None  # the trained network's scores of the outliers
        self.step = 0
        self.last: Tensor | None = None

    def observe(self, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
        """Keep what the reference is to be asked about, as a forward pre-hook.

        Returns:
            What ``model`` gets instead of its inputs: with outliers, the batch and these.
        """
        self._asked = self._withheld = None
        if not model.training:
            return None
        batch: Tensor = inputs[0]
        if not self.config.kinds:
            self._asked = batch
            return None
        self._asked = self.outliers(batch, answers_of(model))
        return (torch.cat([batch, self._asked]),)

    def withhold(self, model: nn.Module, inputs: tuple[Any, ...], scores: Tensor) -> Tensor:
        """Keep the outliers' scores, as a forward hook; return those of the batch."""
        if self._asked is None or not self.config.kinds:
            return scores
        first = len(scores) - len(self._asked)
        self._withheld = scores[first:]
        return scores[:first]

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
            scores: (N, C), the trained network's; the divergence takes them, or those of the
                outliers, as logits.
            target: as the base loss wants it: (N, C) of -1 and 1, or (N,) class indices.

        Returns:
            A scalar.
        """
        base = self.base_loss(scores, target)
        if not self.training:
            return base
        assert self._asked is not None, "`observe` is no forward pre-hook of the trained network"
        own = self._withheld if self.config.kinds else scores
        assert own is not None, "`withhold` is no forward hook of the trained network"
        with torch.no_grad():
            reference_scores = self._reference[0](self._asked)
        self._asked = self._withheld = None
        alpha = self.current_alpha()
        self.step += 1
        far = divergence(
            own,
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
