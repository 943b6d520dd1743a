# SPDX-License-Identifier: BSD-3-Clause
"""What a model was given and what it answered, noted by forward hooks on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from brevitas_divqat.errors import ConfigError

__all__ = [
    "Ask",
    "ForwardPass",
    "Watch",
    "answers_of",
    "is_quantized",
    "plain",
    "tensors_in",
    "watchable",
]

ROW_BY_ROW = frozenset(
    ("Add", "Alias", "Clamp", "ClampMax", "ClampMin", "Clone", "Div", "Hardtanh", "LogSoftmax")
    + ("MaskedFill", "Mul", "NanToNum", "Neg", "ReshapeAlias", "Squeeze", "Sub", "Tanh", "ToCopy")
    + ("UnsafeView", "Unsqueeze", "View", "Where")
)
"""Autograd nodes that keep each image's scores in its row: what loops do between a model and its
loss. Indexing, slicing and concatenation do not."""
CLASS_DIMENSIONS = (1, -1, 2**64 - 1)
"""Of a softmax over each image's scores; autograd keeps -1 as an unsigned number."""
SEARCH_DEPTH = 32
Ask = Callable[[Tensor], AbstractContextManager[Any]]
"""From (M, C, H, W) images to the trained network's answer, and to its evaluation mode while it is
used."""
BY_HAND = {
    False: "call criterion(logits, targets, inputs)",
    True: "make the criterion without model=, and call criterion(model(inputs), targets, inputs) "
    "with inputs = criterion.with_outliers(images, model)",
}
"""How the loss learns the inputs where no hook can find them; True with outliers."""


@dataclass
class ForwardPass:
    """One training forward pass.

    Attributes:
        args: positional arguments of the model.
        kwargs: keyword arguments.
        versions: how often each tensor among the arguments had been changed in place.
        output: what the model returned.
        reference_logits: (N, C) of the reference, once they are known.
        outlier_logits: (M, C) that the model gave to M outliers, which then are the images among
            the arguments; None where there are none.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: tuple[int, ...] = ()
    output: Any = None
    reference_logits: Tensor | None = None
    outlier_logits: Tensor | None = None


class Watch:
    """Forward hooks that note the last training pass of one model.

    With outliers, the model gets a batch and these in one pass, and its caller what it answers to
    the batch. Passes in evaluation mode or without gradients are not noted. A copy of the model, by
    ``copy.deepcopy``, carries hooks that note nothing.

    Args:
        model: the model that is trained, as `watchable` returns it; None for hooks that note
            nothing.
        outliers: makes (M, C, H, W) outliers for a batch of (N, C, H, W) images, if any, given who
            answers images as the model would in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        outliers: Callable[[Tensor, Ask], Tensor] | None = None,
    ) -> None:
        self._outliers = outliers
        self._made = 0  # how many outliers the pass has that is under way
        self.last: ForwardPass | None = None
        self._begun: ForwardPass | None = None
        self._by_hand = BY_HAND[outliers is not None]
        self._model = None if model is None else weakref.ref(model)
        self._handles = (
            ()
            if model is None
            else (
                model.register_forward_pre_hook(self.before, with_kwargs=True),
                model.register_forward_hook(self.after, with_kwargs=True),
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, ()

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    @property
    def evaluating(self) -> bool:
        """Whether the model is in evaluation mode."""
        model = None if self._model is None else self._model()
        return model is not None and not model.training

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Note the arguments of a pass that begins, and add outliers; torch calls this."""
        self._begun = None
        if self._model is None or not (module.training and torch.is_grad_enabled()):
            return None
        if getattr(module, "_is_replica", False):  # DataParallel's mark
            raise ConfigError(_no_replicas(type(module).__name__))
        self._check_alone(module)
        if self._outliers is None:
            self._begun = ForwardPass(args, kwargs, _versions(args, kwargs))
            return None
        given = list(tensors_in((args, kwargs)))
        images = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if len(images) != 1 or len(given) != 1:
            raise ConfigError(
                f"the model {type(module).__name__} takes {max(len(images), len(given))} tensors, "
                f"{len(images)} of them bare or in tuples, lists or dictionaries, and outliers are "
                "added to one batch of images: choose preset F3, which makes none"
            )

        @contextmanager
        def ask(images: Tensor) -> Iterator[Any]:
            asked, named = tree_map_only(Tensor, lambda _: images, (args, kwargs))
            with evaluating(module):  # what other hooks do to the inputs has been done
                yield module.forward(*asked, **named)

        made = self._outliers(images[0], ask)
        self._made = len(made)
        asked, named = tree_map_only(Tensor, lambda _: made, (args, kwargs))
        self._begun = ForwardPass(asked, named, _versions(asked, named))
        extended: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
            Tensor, lambda batch: torch.cat([batch, made]), (args, kwargs)
        )
        return extended

    def _check_alone(self, module: nn.Module) -> None:
        """Refuse a second criterion's hooks that would take outliers for images, or add to them.

        A part with outliers takes its own off again; a part without takes the whole's for images.
        """
        others = 0
        for part in module.modules():
            for hook in part._forward_pre_hooks.values():
                other = getattr(hook, "__self__", None)
                if not isinstance(other, Watch) or other is self or other._model is None:
                    continue
                added = [watch._outliers is not None for watch in (self, other)]
                others += any(added) if part is module else all(added)
        if others:
            raise ConfigError(
                f"the model {type(module).__name__} is watched by {1 + others} DivQATLoss, "
                "and outliers can be added for one: delete those that no longer train it, or make "
                "them without model="
            )

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Note the output of a pass, without what it says of outliers; torch calls this."""
        if self._begun is None:
            return None
        self.last, self._begun = self._begun, None
        if self._outliers is not None:
            logits = plain(output)
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) <= self._made:
                raise ConfigError(
                    f"the model {type(module).__name__} returns no logits of shape (N, C) alone, "
                    "from which the outliers' could be told: choose preset F3, which makes none"
                )
            output, self.last.outlier_logits = logits.tensor_split((-self._made,))
        self.last.output = output
        return output

    def check_original(self) -> None:
        """Raise ConfigError if these hooks are a copy's, which are on no model."""
        if self._model is None:
            raise ConfigError(
                "this DivQATLoss is a copy, and watches no model: make a new one for the copied "
                "model, DivQATLoss(reference, model=model)"
            )

    def pass_of(self, logits: Tensor) -> ForwardPass:
        """Return the pass that ``logits`` come from.

        Raises:
            ConfigError: if there was none, the logits come from another one, or its arguments have
                been changed in place since it began.
        """
        self.check_original()
        last = self.last
        if last is None:
            raise ConfigError(
                "DivQATLoss has seen no training pass of its model: call the model that it was "
                "given, in training mode and with gradients (torch.utils.checkpoint with "
                f"use_reentrant=False), or {self._by_hand}"
            )
        obstacle = _obstacle(logits, list(tensors_in(last.output)))
        if obstacle is not None:
            behind = f" (found behind {obstacle})" if obstacle else ""
            raise ConfigError(
                f"the logits of shape {tuple(logits.shape)} are not what the model's last forward "
                f"pass returned, image by image{behind}: where passes overlap, or images are left "
                f"out or reordered, {self._by_hand}"
            )
        if last.reference_logits is None and last.versions != _versions(last.args, last.kwargs):
            raise ConfigError(
                "the model's inputs, or what they are views of, have been changed in place since "
                "its forward pass began: change a copy in the model and in the loop, or "
                f"{self._by_hand}, a clone of what the model was given"
            )
        return last


def watchable(model: Any) -> nn.Module:
    """Return the module to watch: ``model``, or what is inside ``DistributedDataParallel``.

    Raises:
        ConfigError: if it is no module, is wrapped in ``DataParallel``, or has no quantizers.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}: give the nn.Module that is trained")
    if isinstance(model, nn.DataParallel):
        raise ConfigError(_no_replicas(type(model.module).__name__))
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if not is_quantized(model):
        raise ConfigError(
            f"the model {type(model).__name__} has no enabled quantizer: build it from "
            "brevitas.nn layers, or quantize it with brevitas_divqat.quantize"
        )
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode, and then the mode of each of its modules back.

    Checkpointed parts run again when a gradient is taken: take it inside.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:  # parents first: the children's own modes stay
            module.train(training)


def answers_of(model: nn.Module) -> Ask:
    """Return who answers images as ``model`` does, hooks and all, in evaluation mode."""

    @contextmanager
    def ask(images: Tensor) -> Iterator[Any]:
        with evaluating(model):
            yield model(images)

    return ask


def _no_replicas(name: str) -> str:
    return (
        f"{name} runs in DataParallel, whose replicas see parts of the batch in threads and whose "
        "quantizers lose their statistics: use DistributedDataParallel, or one device"
    )


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    tensors = tensors_in((args, kwargs))
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def _obstacle(logits: Tensor, outputs: list[Tensor]) -> str | None:
    """Follow ``logits`` back to one of ``outputs``, through operations that keep rows.

    Returns:
        None if they come from it; else the name of the operation in the way, which may be empty.
    """
    if any(logits is output for output in outputs):
        return None
    ends = [output.grad_fn for output in outputs if output.grad_fn is not None]
    node, kind = logits.grad_fn, ""
    for _ in range(SEARCH_DEPTH):
        if node is None:
            break
        if any(node is end for end in ends):
            return None
        kind = node.name().strip("_").rstrip("0123456789").removesuffix("Backward")
        earlier = [n for n, _ in node.next_functions if n and "AccumulateGrad" not in n.name()]
        if kind == "DDPSink":  # has all outputs of the model for parents
            return None if any(n is end for n in earlier for end in ends) else kind
        if kind not in ROW_BY_ROW or len(earlier) != 1 or not _keeps_rows(node):
            return kind
        node = earlier[0]
    return kind


def _keeps_rows(node: Any) -> bool:
    dimension = getattr(node, "_saved_dim", None)
    return "LogSoftmax" not in node.name() or dimension in CLASS_DIMENSIONS


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a model takes or returns: nested tuples, mappings, dataclasses."""
    value = plain(value)
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def plain(value: Any) -> Any:
    """Unwrap a Brevitas ``QuantTensor``; leave anything else."""
    inner = getattr(value, "value", None) if isinstance(value, tuple) else None
    return inner if isinstance(inner, Tensor) else value


def is_quantized(model: nn.Module) -> bool:
    """Tell whether a Brevitas quantizer in ``model`` is enabled."""
    return any(getattr(module, "is_quant_enabled", False) for module in model.modules())
