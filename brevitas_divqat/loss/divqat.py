# SPDX-License-Identifier: BSD-3-Clause
"""The DivQAT loss as a module that keeps the full-precision original."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_divqat.loss.config import LossConfig, Preset
from brevitas_divqat.loss.functional import Direction, Weighting, divqat_loss

__all__ = ["DivQATLoss", "LossReport"]


class LossReport(NamedTuple):
    """What one training step looked like; scalars, detached.

    A divergence near 0 shows a defence that does nothing; a maximum probability near 1 with a high
    cross-entropy, or an entropy near log C, shows a collapse.
    """

    cross_entropy: Tensor
    divergence: Tensor
    max_probability: Tensor
    entropy: Tensor
    alpha: float


class DivQATLoss(nn.Module):
    r"""Cross-entropy minus alpha times the divergence from the full-precision original.

    The reference is copied, put in evaluation mode and frozen: neither it nor the caller's model
    changes, and it is no part of this module's parameters or ``state_dict`` (which holds one
    number, the count of training steps that the warm-up needs). It follows ``.to(device)``.

    With ``alpha=0`` the reference is never run and the loss is ``F.cross_entropy``, bit for bit. In
    evaluation mode the loss is the cross-entropy alone.

    Args:
        reference: the full-precision original; maps inputs to (N, C) logits.
        preset: ``"F1"`` or ``"F3"``, see ``PRESETS``; the other settings override it.
        alpha: weight of the divergence, 0 or more.
        temperature: T > 0, of the divergence alone, which is multiplied by T².
        direction: ``"p||q"`` or ``"q||p"``.
        weighting: ``"additive"`` or ``"convex"``.
        cap: the most that one sample's divergence counts, in nats times T².
        warmup_steps: training steps over which alpha grows linearly from 0.
        label_smoothing: of the cross-entropy, in [0, 1).

    Attributes:
        report: the `LossReport` of the last call; None before the first.

    Raises:
        ConfigError: if a setting is out of range.

    Example:
        >>> import torch
        >>> reference, model = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        >>> criterion = DivQATLoss(reference, alpha=0.1)
        >>> x, y = torch.rand(8, 4), torch.randint(3, (8,))
        >>> criterion(model(x), y, x).backward()
        >>> bool(criterion.report.divergence >= 0)
        True

    References:
        Khaled et al., "DivQAT", 2025, arXiv 2512.23948, as its abstract describes it; see
        ``divqat_loss`` for the equations and for what is our choice.
    """

    step: Tensor

    def __init__(
        self,
        reference: nn.Module,
        *,
        preset: Preset = "F3",
        alpha: float | None = None,
        temperature: float | None = None,
        direction: Direction | None = None,
        weighting: Weighting | None = None,
        cap: float | None = None,
        warmup_steps: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = LossConfig(
            preset=preset,
            alpha=alpha,
            temperature=temperature,
            direction=direction,
            weighting=weighting,
            cap=cap,
            warmup_steps=warmup_steps,
            label_smoothing=label_smoothing,
        )
        frozen = copy.deepcopy(reference).eval().requires_grad_(False)
        # In a tuple, so that nn.Module does not register it as a part of this one.
        self._reference = (frozen,)
        self.report: LossReport | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def reference(self) -> nn.Module:
        """The frozen copy of the full-precision original."""
        return self._reference[0]

    def current_alpha(self) -> float:
        """Return alpha at the present training step of the warm-up."""
        if self.config.warmup_steps == 0:
            return self.config.weight
        return self.config.weight * min(1.0, int(self.step) / self.config.warmup_steps)

    def forward(self, logits: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Return the loss of one batch.

        Args:
            logits: (N, C) pre-softmax, of the quantized model.
            targets: (N,) class indices, or (N, C) class probabilities.
            inputs: what the quantized model was given, for the reference; needed in training mode
                with an alpha above 0.

        Returns:
            A scalar.

        Raises:
            TypeError: if the inputs are needed and missing.
            ValueError: if the reference has other classes than the model.
        """
        logits = _plain(logits)
        if self.config.weight == 0 or not self.training:
            loss = F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)
            self.report = _report(logits, loss, loss.new_zeros(()), 0.0)
            return loss
        if inputs is None:
            raise TypeError(
                "DivQATLoss was called as criterion(logits, targets): with alpha above 0 call "
                "criterion(logits, targets, inputs), since the reference needs the model's inputs"
            )
        alpha = self.current_alpha()
        with torch.no_grad():
            reference_logits = _plain(self.reference(inputs))
        if reference_logits.shape != logits.shape:
            raise ValueError(
                f"the reference gives logits of shape {tuple(reference_logits.shape)}, the model "
                f"{tuple(logits.shape)}: both need the same classes"
            )
        self.step += 1
        terms = divqat_loss(
            logits,
            targets,
            reference_logits,
            alpha=alpha,
            direction=self.config.direction,  # type: ignore[arg-type]
            temperature=self.config.softness,
            weighting=self.config.weighting,  # type: ignore[arg-type]
            cap=self.config.cap,
            label_smoothing=self.config.label_smoothing,
        )
        self.report = _report(logits, terms.cross_entropy, terms.divergence, alpha)
        return terms.loss

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> DivQATLoss:
        """Take the reference along where this module is moved to."""
        self.reference._apply(fn)
        super()._apply(fn, *args, **kwargs)
        return self


def _plain(logits: Any) -> Tensor:
    """Unwrap a Brevitas ``QuantTensor``."""
    return logits if isinstance(logits, Tensor) else logits.value


@torch.no_grad()
def _report(logits: Tensor, ce: Tensor, kl: Tensor, alpha: float) -> LossReport:
    log_q = F.log_softmax(logits.detach().float(), dim=1)
    q = log_q.exp()
    return LossReport(
        cross_entropy=ce.detach(),
        divergence=kl.detach(),
        max_probability=q.amax(dim=1).mean(),
        entropy=-(q * log_q).sum(dim=1).mean(),
        alpha=alpha,
    )
