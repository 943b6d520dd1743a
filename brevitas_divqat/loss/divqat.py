# SPDX-License-Identifier: BSD-3-Clause
"""The DivQAT loss as a module that keeps the full-precision original."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss.cache import LogitCache
from brevitas_divqat.loss.config import LossConfig, Preset
from brevitas_divqat.loss.functional import Direction, Weighting, divqat_loss
from brevitas_divqat.loss.watch import ForwardPass, Watch, is_quantized, plain, unwrapped

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
    """Cross-entropy minus alpha times the divergence from the full-precision original.

    The reference is copied, put in evaluation mode and frozen: neither it nor the caller's model
    changes, and it is no part of this module's parameters or ``state_dict`` (which holds one
    number, the count of training steps that the warm-up needs). It follows ``.to(device)``.

    The reference needs what the quantized model was given. A loop that calls
    ``criterion(model(x), y)`` names the model once, ``DivQATLoss(float_model, model=model)``: a
    forward hook then notes each training pass. Without it, call ``criterion(model(x), y, x)``.

    With ``alpha=0`` the reference is never run and the loss is ``F.cross_entropy``, bit for bit.
    Under evaluation the loss is the cross-entropy alone: where this module or the watched model is
    in evaluation mode, or gradients are off.

    Args:
        reference: the full-precision original; maps inputs to (N, C) logits.
        model: the quantized model that is trained, wrapped in ``DistributedDataParallel`` or
            ``torch.compile`` or not; needed where the loop does not hand over the inputs.
        preset: ``"F1"`` or ``"F3"``, see ``PRESETS``; the other settings override it.
        alpha: weight of the divergence, 0 or more.
        temperature: T > 0, of the divergence alone, which is multiplied by T².
        direction: ``"p||q"`` or ``"q||p"``.
        weighting: ``"additive"`` or ``"convex"``.
        cap: the most that one sample's divergence counts, in nats times T².
        warmup_steps: training steps over which alpha grows linearly from 0.
        label_smoothing: of the cross-entropy, in [0, 1).
        cache: keep the reference's logits of so many inputs, and run it on inputs that are new
            alone; for training images that are not augmented. Off by default: a kept answer has
            the last bits of the batch that it was computed in, so a resumed training may differ
            in these.

    Attributes:
        report: the `LossReport` of the last call; None before the first.

    Raises:
        ConfigError: if a setting is out of range, the reference is quantized (as the trained model
            itself is), or the model is not, or is wrapped in ``DataParallel``.

    Example:
        >>> import torch
        >>> from brevitas.nn import QuantLinear
        >>> reference, model = torch.nn.Linear(4, 3), QuantLinear(4, 3, bias=True)
        >>> criterion = DivQATLoss(reference, model=model, alpha=0.1)
        >>> x, y = torch.rand(8, 4), torch.randint(3, (8,))
        >>> criterion(model(x), y).backward()
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
        model: nn.Module | None = None,
        preset: Preset = "F3",
        alpha: float | None = None,
        temperature: float | None = None,
        direction: Direction | None = None,
        weighting: Weighting | None = None,
        cap: float | None = None,
        warmup_steps: int = 0,
        label_smoothing: float = 0.0,
        cache: int | None = None,
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
        if is_quantized(reference):
            raise ConfigError(
                f"the reference {type(reference).__name__} is quantized"
                f"{', being the trained model itself' if reference is model else ''}: give the "
                "full-precision original"
            )
        frozen = copy.deepcopy(unwrapped(reference)).eval().requires_grad_(False)
        # In a tuple, so that nn.Module does not register it as a part of this one.
        self._reference = (frozen,)
        self._cache = None if cache is None else LogitCache(cache)
        self._watch = None if model is None else Watch(model)
        if self._watch is not None and self._watch.handle is not None:
            weakref.finalize(self, self._watch.handle.remove)
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

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        inputs: Tensor | None = None,
        *,
        reference_logits: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of one batch.

        Args:
            logits: (N, C) pre-softmax, of the quantized model.
            targets: (N,) class indices, or (N, C) class probabilities.
            inputs: what the quantized model was given, for the reference; where the model is
                watched, it need not be given.
            reference_logits: (N, C) of the reference, where the caller keeps them.

        Returns:
            A scalar.

        Raises:
            TypeError: if the inputs are needed and missing.
            ConfigError: if the reference cannot take the inputs, is on another device or in
                training mode, or has other classes than the model.
        """
        logits = plain(logits)
        if self.config.weight == 0 or self._evaluating():
            loss = F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)
            self.report = _report(logits, loss, loss.new_zeros(()), 0.0)
            return loss
        if reference_logits is None:
            reference_logits = self._reference_logits(logits, inputs)
        if reference_logits.shape != logits.shape:
            raise ConfigError(
                f"the reference gives logits of shape {tuple(reference_logits.shape)}, the model "
                f"{tuple(logits.shape)}: both need the same classes"
            )
        alpha = self.current_alpha()
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

    def _evaluating(self) -> bool:
        if not (self.training and torch.is_grad_enabled()):
            return True
        if self._watch is None or not self._watch.evaluating:
            return False
        warnings.warn(
            "DivQATLoss gives the cross-entropy alone, because the model is in evaluation mode "
            "while gradients are on: call model.train() to train (put only BatchNorm in evaluation "
            "mode to freeze it), or evaluate under torch.no_grad()",
            stacklevel=4,
        )
        return True

    def _reference_logits(self, logits: Tensor, inputs: Tensor | None) -> Tensor:
        if inputs is not None:
            given = ForwardPass((inputs,), {}, None)
        elif self._watch is not None:
            given = self._watch.inputs_of(logits)
        else:
            raise TypeError(
                "DivQATLoss was called as criterion(logits, targets): with alpha above 0 make it "
                "with DivQATLoss(reference, model=model), or call criterion(logits, targets, "
                "inputs), since the reference needs the model's inputs"
            )
        if self._cache is None:
            return self._run_reference(given)
        if len(given.args) != 1 or given.kwargs or not isinstance(given.args[0], Tensor):
            raise ConfigError(
                f"cache is on, and the model takes {len(given.args)} positional and "
                f"{len(given.kwargs)} keyword arguments: leave the cache out for a model of "
                "several inputs"
            )
        return self._cache.look_up(given.args[0], lambda: self._run_reference(given))

    @torch.no_grad()
    def _run_reference(self, given: ForwardPass) -> Tensor:
        name = f"the reference {type(self.reference).__name__}"
        if self.reference.training:
            raise ConfigError(f"{name} is in training mode: call criterion.reference.eval()")
        args = tuple(plain(value) for value in given.args)
        kwargs = {key: plain(value) for key, value in given.kwargs.items()}
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        here = next((t.device for t in self.reference.parameters()), None)
        elsewhere = next((t.device for t in inputs if here is not None and t.device != here), None)
        if elsewhere is not None:
            raise ConfigError(
                f"{name} is on {here}, the model's inputs are on {elsewhere}: call "
                f"criterion.to({str(elsewhere)!r})"
            )
        try:
            logits = plain(self.reference(*args, **kwargs))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{name} cannot take the model's inputs of shape "
                f"{[tuple(t.shape) for t in inputs]} and type {[str(t.dtype) for t in inputs]}: "
                f"{' '.join(str(error).split())[:200]}; give the original of this very model"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(f"{name} gives {found}: it must return logits of shape (N, C)")
        return logits

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> DivQATLoss:
        """Take the reference along where this module is moved to."""
        self.reference._apply(fn)
        super()._apply(fn, *args, **kwargs)
        return self


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
