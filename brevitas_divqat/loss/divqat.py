# SPDX-License-Identifier: BSD-3-Clause
"""The DivQAT loss as a module that keeps the full-precision original."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.inspection import unwrapped
from brevitas_divqat.loss.cache import LogitCache
from brevitas_divqat.loss.config import LossConfig, Preset
from brevitas_divqat.loss.functional import (
    Direction,
    LossTerms,
    Weighting,
    divergence,
    subtract,
    wide,
)
from brevitas_divqat.loss.outliers import OutlierKind, Outliers
from brevitas_divqat.loss.watch import (
    ForwardPass,
    Watch,
    answers_of,
    is_quantized,
    plain,
    tensors_in,
    watchable,
)

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
    changes, and it is no part of this module's parameters or ``state_dict`` (which holds the count
    of training steps where there is a warm-up, the generator of outliers where there is one, and
    what ``base`` has). It follows ``.to(device)``.

    The reference needs what the quantized model was given. A loop that calls
    ``criterion(model(x), y)`` names the model once, ``DivQATLoss(float_model, model=model)``: a
    forward hook then notes each training pass. Without it, call ``criterion(model(x), y, x)``. A
    copy of this module watches nothing.

    With ``outliers`` the divergence is asked for on images of no class, as a foreign thief's
    questions are. They share the batch, and so the statistics of BatchNorm, with the training
    images: the hook adds them to what the named model is given, and takes their logits from what it
    returns, so that the loop sees none of them. Without a named model, call
    ``criterion(model(inputs), y, inputs)`` with ``inputs = criterion.with_outliers(x, model)``.
    Those of kind generated are sought by asking the model in evaluation mode, once per step; its
    modes and gradients stay as they are.

    With ``alpha=0`` the reference is never run and the loss is ``F.cross_entropy``, bit for bit,
    whatever the divergence's other settings are: the baseline of a sweep.
    Under evaluation the loss is the cross-entropy alone: where this module or the watched model is
    in evaluation mode, or gradients are off. Targets that the base loss ignores still count in the
    divergence. No gradient flows to the reference, nor through it to the inputs.

    Args:
        reference: the full-precision original; maps inputs to (N, C) logits.
        model: the quantized model that is trained, wrapped in ``DistributedDataParallel`` or
            ``torch.compile`` or not; needed where the loop does not hand over the inputs.
        preset: ``"F1"``, ``"F3"`` or ``"outliers"``, see ``PRESETS``; other settings override it.
        alpha: weight of the divergence, 0 or more.
        temperature: T > 0, of the divergence alone, which is multiplied by T².
        direction: ``"p||q"`` or ``"q||p"``.
        weighting: ``"additive"`` or ``"convex"``.
        cap: the most that one sample's divergence counts, in nats times T²; needed with
            ``"p||q"``, which has no upper bound.
        warmup_steps: training calls of this module over which alpha grows linearly from 0.
        label_smoothing: of the cross-entropy, in [0, 1).
        outliers: kinds of outliers that `with_outliers` makes, of ``"textures"``, ``"patches"``,
            ``"shapes"``, ``"generated"`` and ``"given"``; by default the preset's, which are the
            first three.
        outlier_share: outliers per training image; 0.5 by default.
        augment: a function of (M, C, H, W) that varies the outliers as your loader varies the
            training images (shifts that let a black border in, flips), for example
            ``augmentation_of("shift-flip")`` of `brevitas_divqat.training`. Where the training
            images are augmented and the outliers are not, the network tells one from the other by
            the borders, and takes images without them, which it is deployed on, for outliers.
        outlier_images: draws the outliers of kind given from images of your own: a function of a
            count that returns (count, C, H, W), as the model is given its inputs, before `augment`.
        base: the loss of (logits, targets) in the cross-entropy's place, for example
            ``nn.CrossEntropyLoss(weight=…)``.
        cache: keep the reference's logits of so many inputs, and run it on inputs that are new
            alone; for training images that are not augmented. Off by default: a kept answer has
            the last bits and the precision of the batch that it was computed in, so a resumed
            training may differ in these.

    Attributes:
        report: the `LossReport` of the last call; None before the first.
        outliers: the module that makes the outliers, and has the generator's state.

    Raises:
        ConfigError: if a setting is out of range, the reference is no module, cannot be copied or
            is quantized (as the trained model itself is), or the model is not quantized, or is
            wrapped in ``DataParallel``; if ``augment`` or ``outlier_images`` is no function or
            without effect, or ``outlier_images`` is missing.

    Example:
        >>> import torch
        >>> from brevitas.nn import QuantLinear
        >>> reference = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), QuantLinear(16, 3, bias=True))
        >>> criterion = DivQATLoss(reference, model=model, alpha=0.1)
        >>> x, y = torch.rand(8, 1, 4, 4), torch.randint(3, (8,))
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
        preset: Preset = "outliers",
        alpha: float | None = None,
        temperature: float | None = None,
        direction: Direction | None = None,
        weighting: Weighting | None = None,
        cap: float | None = None,
        warmup_steps: int = 0,
        label_smoothing: float = 0.0,
        outliers: Sequence[OutlierKind] | None = None,
        outlier_share: float | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        outlier_images: Callable[[int], Tensor] | None = None,
        base: Callable[[Tensor, Tensor], Tensor] | None = None,
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
            outliers=outliers,  # type: ignore[arg-type]
            outlier_share=outlier_share,
        )
        if self.config.kinds and cache is not None:
            raise ConfigError(
                "cache is on, and the reference is asked about outliers alone, which are new in "
                "every step: leave the cache out, or choose preset F3"
            )
        if base is not None and not callable(base):
            raise ConfigError(f"base is {base!r}: give a function of logits and targets")
        if base is not None and label_smoothing:
            raise ConfigError(
                f"label_smoothing is {label_smoothing} and base is given: leave the smoothing to it"
            )
        self.base = base or partial(F.cross_entropy, label_smoothing=label_smoothing)
        # In a tuple, so that nn.Module does not register it as a part of this one.
        self._reference = (_frozen(reference, model),)
        self._cache = None if cache is None else LogitCache(cache)
        watched = None if model is None else watchable(model)
        _check_functions(self.config, augment, outlier_images)
        self.outliers = Outliers(self.config.kinds, self.config.share, augment, outlier_images)
        needless = watched is None or self.config.weight == 0
        make = self.outliers if self.config.kinds else None
        self._watch = None if needless else Watch(watched, make)
        if self._watch is not None:
            weakref.finalize(self, self._watch.remove)
        self.report: LossReport | None = None
        self.register_buffer(
            "step", torch.zeros((), dtype=torch.int64), persistent=warmup_steps > 0
        )

    @property
    def reference(self) -> nn.Module:
        """The frozen copy of the full-precision original."""
        return self._reference[0]

    def current_alpha(self) -> float:
        """Return alpha at the present training step of the warm-up."""
        if self.config.warmup_steps == 0:
            return self.config.weight
        return self.config.weight * min(1.0, int(self.step) / self.config.warmup_steps)

    def with_outliers(self, inputs: Tensor, model: nn.Module | None = None) -> Tensor:
        """Append outliers to a batch of training images.

        Nothing is appended where none are configured, with ``alpha=0``, in evaluation mode, without
        gradients, or where the model is watched, to which its hook adds them.

        Args:
            inputs: (N, C, H, W), as the model is given them.
            model: the model that is trained; needed for outliers of kind generated.

        Returns:
            (N + M, C, H, W), M of ``outlier_share`` times N, rounded down, but 1 or more.

        Raises:
            ConfigError: if the inputs are no images, the model is needed and missing, what is
                drawn or augmented has another shape, type or device than the inputs, or this is a
                copy of a criterion that watches a model.
        """
        wanted = self.training and torch.is_grad_enabled() and self.config.weight > 0
        if not self.config.kinds or not wanted:
            return inputs
        if self._watch is not None:
            self._watch.check_original()
            return inputs
        if not isinstance(inputs, Tensor):
            raise ConfigError(
                f"the inputs are a {type(inputs).__name__}: give a tensor (N, C, H, W), as the "
                "model is given it"
            )
        if model is not None and not isinstance(model, nn.Module):
            raise ConfigError(
                f"model is a {type(model).__name__}: give the nn.Module that is trained"
            )
        made = self.outliers(inputs, None if model is None else answers_of(model))
        return torch.cat([inputs.detach(), made])

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
            logits: (N, C) pre-softmax, of the quantized model; (N + M, C) with M outliers that
                `with_outliers` appended.
            targets: (N,) class indices, or (N, C) class probabilities.
            inputs: what the quantized model was given, for the reference; where the model is
                watched, it need not be given.
            reference_logits: (N, C) of the reference, where the caller keeps them; (M, C) with
                outliers, theirs alone.

        Returns:
            A scalar.

        Raises:
            TypeError: if the inputs are needed and missing.
            ConfigError: if the reference cannot take the inputs, is on another device, of another
                type or in training mode, or has other classes than the model; if the logits are
                not those of the watched model's last training pass; or if there are not as many
                logits and inputs as targets and outliers.
        """
        logits = plain(logits)
        if self.config.weight == 0 or self._evaluating():
            loss = _scalar(self.base(logits, targets))
            self.report = _report(logits, loss, loss.new_zeros(()), 0.0)
            return loss
        appended = self.config.kinds and self._watch is None
        labelled = logits[: len(targets)] if appended else logits
        given, asked = self._asked(logits, len(targets), inputs, reference_logits)
        reference_logits = plain(given.reference_logits)
        if not isinstance(reference_logits, Tensor):
            raise TypeError(
                f"reference_logits is a {type(reference_logits).__name__}: give a tensor (N, C)"
            )
        if reference_logits.shape != asked.shape:
            unequal = "images" if len(reference_logits) != len(asked) else "classes"
            raise ConfigError(
                f"the reference gives logits of shape {tuple(reference_logits.shape)}, the model "
                f"{tuple(asked.shape)}: both need the same {unequal}"
            )
        alpha = self.current_alpha()
        self.step += 1
        terms = self._terms(labelled, targets, asked, reference_logits.detach(), alpha)
        self.report = _report(labelled, terms.cross_entropy, terms.divergence, alpha)
        return terms.loss

    def _terms(
        self,
        labelled: Tensor,
        targets: Tensor,
        asked: Tensor,
        reference_logits: Tensor,
        alpha: float,
    ) -> LossTerms:
        away = divergence(
            asked,
            reference_logits,
            direction=self.config.direction,  # type: ignore[arg-type]
            temperature=self.config.softness,
            cap=self.config.cap,
        )
        weighting = self.config.weighting
        base = _scalar(self.base(wide(labelled), targets))
        return subtract(base, away, alpha, weighting)  # type: ignore[arg-type]

    def _evaluating(self) -> bool:
        if not torch.is_grad_enabled():
            return True
        trains = self._watch is not None and not self._watch.evaluating
        if self.training and (self._watch is None or trains):
            return False
        if self._watch is not None and self.training != trains:
            which, other = ("the model", "model") if self.training else ("it", "criterion")
            warnings.warn(
                f"DivQATLoss gives the cross-entropy alone, because {which} is in evaluation mode "
                f"while gradients are on: call {other}.train() to train (put only BatchNorm in "
                "evaluation mode to freeze it), or evaluate under torch.no_grad()",
                stacklevel=5,  # the line that calls the criterion, behind torch's own two
            )
        return True

    def _asked(
        self, logits: Tensor, count: int, inputs: Tensor | None, reference_logits: Tensor | None
    ) -> tuple[ForwardPass, Tensor]:
        """Return what the reference says, and the model's logits of the same images."""
        given = self._given(logits, inputs, reference_logits)
        asked = logits
        if given.outlier_logits is not None:
            asked = given.outlier_logits
        elif self.config.kinds:
            asked = logits[count:]
            made = self.outliers.count(count)
            counts = {len(logits), *(len(images) for images in given.args)}
            if counts != {count + made}:
                what = f", inputs {len(given.args[0])}" if given.args else ""
                raise ConfigError(
                    f"there are {count} targets, logits {len(logits)}{what}: with {made} outliers "
                    f"it must be {count + made}; call criterion(model(given), targets, given) with "
                    "given = criterion.with_outliers(inputs, model)"
                )
            given.args = tuple(images[count:] for images in given.args)
        if given.reference_logits is None:
            given.reference_logits = self._looked_up(given)
            given.args, given.kwargs = (), {}  # a batch need not wait for the next one
        return given, asked

    def _given(
        self, logits: Tensor, inputs: Tensor | None, reference_logits: Tensor | None
    ) -> ForwardPass:
        """Find what the reference is asked about, or what it has answered."""
        if self._watch is not None and self.config.kinds:
            self._watch.check_original()
            if inputs is not None or reference_logits is not None:
                raise ConfigError(
                    "inputs or reference_logits are given, but the hook on the model chose the "
                    "outliers that are asked about: call criterion(logits, targets), or make the "
                    "criterion without model= and call with_outliers(inputs, model)"
                )
            return self._watch.pass_of(logits)
        if reference_logits is not None:
            return ForwardPass((), {}, reference_logits=reference_logits)
        if inputs is not None:
            return ForwardPass((inputs,), {})
        if self._watch is not None:
            return self._watch.pass_of(logits)
        raise TypeError(
            "DivQATLoss was called as criterion(logits, targets): with alpha above 0 make it "
            "with DivQATLoss(reference, model=model), or call criterion(logits, targets, "
            "inputs), since the reference needs the model's inputs"
        )

    def _looked_up(self, given: ForwardPass) -> Tensor:
        args = tuple(plain(value) for value in given.args)
        kwargs = {key: plain(value) for key, value in given.kwargs.items()}
        if self._cache is None:
            return self._run_reference(*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].is_sparse:
            raise ConfigError(
                f"cache is on, and the model takes {len(args)} positional and {len(kwargs)} "
                "keyword arguments: leave the cache out unless it is one dense tensor"
            )
        return self._cache.look_up(args[0], self._run_reference)

    @torch.no_grad()
    def _run_reference(self, *args: Any, **kwargs: Any) -> Tensor:
        name = f"the reference {type(self.reference).__name__}"
        if self.reference.training:
            raise ConfigError(f"{name} is in training mode: call criterion.reference.eval()")
        inputs = list(tensors_in((args, kwargs)))
        if inputs:
            self._check_place(name, inputs[0])  # what else there is may lie elsewhere
        args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))  # it may change them
        try:
            logits = plain(self.reference(*args, **kwargs))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            raise ConfigError(
                f"{name} cannot take the model's inputs of shape "
                f"{[tuple(t.shape) for t in inputs]} and type {[str(t.dtype) for t in inputs]}: "
                f"{' '.join(str(error).split())[:200]}; give the original of this very model"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(
                f"{name} gives {found}: it must return logits of shape (N, C); wrap it in a module "
                "that returns these alone"
            )
        return logits

    def _check_place(self, name: str, images: Tensor) -> None:
        """Refuse images on another device or of another floating-point type than the reference."""
        own = next((p for p in self.reference.parameters() if p.is_floating_point()), None)
        if own is None:
            return
        if images.device != own.device:
            raise ConfigError(
                f"{name} is on {own.device}, the model's inputs are on {images.device}: call "
                f"criterion.to({str(images.device)!r})"
            )
        other = images.is_floating_point() and images.dtype != own.dtype
        if other and not torch.is_autocast_enabled(images.device.type):
            raise ConfigError(
                f"{name} is of {own.dtype}, the model's inputs are of {images.dtype}: call "
                f"criterion.to({images.dtype})"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> DivQATLoss:
        """Take the reference along where this module is moved to."""
        self.reference._apply(fn)
        if self._cache is not None:
            self._cache.clear()  # its logits are of the old place
        super()._apply(fn, *args, **kwargs)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load the count of steps where there is one: checkpoints of plain training have none."""
        key = f"{prefix}step"
        kept = {name: value for name, value in state_dict.items() if name != key}
        counted = key in state_dict and self.config.warmup_steps > 0
        super()._load_from_state_dict(
            state_dict if counted else kept,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if key in missing_keys:
            missing_keys.remove(key)


def _check_functions(config: LossConfig, augment: object, outlier_images: object) -> None:
    if augment is not None and not callable(augment):
        raise ConfigError(f"augment is {augment!r}: give a function of a batch of images")
    if augment is not None and not config.kinds:
        raise ConfigError(
            f"augment is given with preset {config.preset}, which makes no outliers, and has no "
            "effect: leave it out, or name the outliers' kinds"
        )
    if outlier_images is not None and not callable(outlier_images):
        raise ConfigError(
            f"outlier_images is a {type(outlier_images).__name__}: give a function of a count, for "
            "example lambda n: images[torch.randint(len(images), (n,))]"
        )
    if outlier_images is not None and "given" not in config.kinds:
        raise ConfigError(
            f"outlier_images is there, but outliers is {list(config.kinds)}: name given among them"
        )
    if outlier_images is None and "given" in config.kinds and config.weight > 0:
        raise ConfigError(
            "outliers of kind given are asked for, and no images to draw them from: give "
            "outlier_images="
        )


def _frozen(reference: Any, model: Any) -> nn.Module:
    """Return a frozen copy of the reference, in evaluation mode."""
    if not isinstance(reference, nn.Module):
        raise ConfigError(
            f"reference is a {type(reference).__name__}: give the full-precision nn.Module"
        )
    name = f"the reference {type(reference).__name__}"
    if is_quantized(reference):
        itself = ", being the trained model itself" if reference is model else ""
        raise ConfigError(f"{name} is quantized{itself}: give the full-precision original")
    try:
        with torch.no_grad():  # a copied ScriptModule's parameters then are leaves as well
            frozen = copy.deepcopy(unwrapped(reference)).eval()
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{name} cannot be copied: {' '.join(str(error).split())}") from error
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen


def _scalar(loss: Tensor) -> Tensor:
    if loss.ndim:
        raise ConfigError(
            f"base returns a loss of shape {tuple(loss.shape)}: it must be one number, for example "
            "with reduction='mean'"
        )
    return loss


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
