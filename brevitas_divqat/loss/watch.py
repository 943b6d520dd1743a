# SPDX-License-Identifier: BSD-3-Clause
"""What a model was given and what it answered, noted by a forward hook on it."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brevitas_divqat.errors import ConfigError

__all__ = ["ForwardPass", "Watch", "is_quantized", "plain", "unwrapped"]

SEARCH_DEPTH = 32
"""Autograd nodes between a model's output and the loss's logits: casts, views, DDP's own."""


class ForwardPass(NamedTuple):
    """One training forward pass: arguments, keyword arguments, output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class Watch:
    """A forward hook that notes the last training pass of one model.

    Passes in evaluation mode or without gradients are not noted. A copy of the model, by
    ``copy.deepcopy`` or pickle, carries a hook that notes nothing.

    Args:
        model: the model that is trained; None for a hook that notes nothing.

    Raises:
        ConfigError: if the model is wrapped in ``DataParallel``, or has no quantizers.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.last: ForwardPass | None = None
        self.handle: RemovableHandle | None = None
        self._model = None
        if model is None:
            return
        if isinstance(model, nn.DataParallel):
            raise ConfigError(_no_replicas(type(model.module).__name__))
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        if not is_quantized(model):
            raise ConfigError(
                f"the model {type(model).__name__} has no enabled quantizer: build it from "
                "brevitas.nn layers, or quantize it with brevitas_divqat.quantize"
            )
        self._model = weakref.ref(model)
        self.handle = model.register_forward_hook(self, with_kwargs=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, ()

    @property
    def evaluating(self) -> bool:
        """Whether the model is in evaluation mode."""
        model = None if self._model is None else self._model()
        return model is not None and not model.training

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Note a pass; torch calls this."""
        if self._model is None or not (module.training and torch.is_grad_enabled()):
            return
        if getattr(module, "_is_replica", False):  # DataParallel's mark
            raise ConfigError(_no_replicas(type(module).__name__))
        self.last = ForwardPass(args, kwargs, output)

    def inputs_of(self, logits: Tensor) -> ForwardPass:
        """Return the pass that ``logits`` come from.

        Raises:
            ConfigError: if there was none, or the logits come from another one.
        """
        last = self.last
        if last is None:
            raise ConfigError(
                "DivQATLoss has seen no training pass of its model: call the model that it was "
                "given, in training mode, or call criterion(logits, targets, inputs)"
            )
        if not _comes_from(logits, plain(last.output)):
            raise ConfigError(
                f"the logits of shape {tuple(logits.shape)} do not come from the model's last "
                "forward pass: call criterion(logits, targets, inputs) where passes overlap"
            )
        return last


def _no_replicas(name: str) -> str:
    return (
        f"{name} runs in DataParallel, whose replicas see parts of the batch in threads and whose "
        "quantizers lose their statistics: use DistributedDataParallel, or one device"
    )


def _comes_from(logits: Tensor, output: Any) -> bool:
    """Tell whether autograd leads from ``logits`` back to ``output``, through casts and views."""
    if logits is output:
        return True
    if not isinstance(output, Tensor) or output.grad_fn is None:
        return isinstance(output, Tensor) and output.shape == logits.shape
    nodes = [] if logits.grad_fn is None else [logits.grad_fn]
    for _ in range(SEARCH_DEPTH):
        if any(node is output.grad_fn for node in nodes):
            return True
        earlier = [node for later in nodes for node, _ in later.next_functions]
        nodes = [node for node in earlier if node is not None][:SEARCH_DEPTH]
    return False


def plain(value: Any) -> Any:
    """Unwrap a Brevitas ``QuantTensor``; leave anything else."""
    return value.value if not isinstance(value, Tensor) and hasattr(value, "value") else value


def is_quantized(model: nn.Module) -> bool:
    """Tell whether a Brevitas quantizer in ``model`` is enabled."""
    return any(getattr(module, "is_quant_enabled", False) for module in model.modules())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``DataParallel``, ``DistributedDataParallel`` or ``compile``."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    original = getattr(model, "_orig_mod", None)
    return model if original is None else unwrapped(original)
