# SPDX-License-Identifier: BSD-3-Clause
"""What one image meets on its way through a copy of a model, layer by layer.

The copy is in evaluation mode and without the user's hooks, so that nothing of the model moves:
not the statistics of its quantizers, and not the scales that Brevitas sets at the first use.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.inspection.formats import UNKNOWN, Format, floating, format_of

__all__ = ["Visit", "checked_shape", "copied", "layers", "recurrent_layers", "trace"]

SHOWN_CHARACTERS = 60
OUTPUT_QUANTIZERS = ("act_quant", "output_quant", "trunc_quant", "clamp_quant")

# Operations whose results are among their inputs' elements (or 0), so that the format stays.
KEEPING = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose"),
    *("contiguous", "clone", "detach", "expand", "to", "type_as", "rename", "requires_grad_"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
    *("relu", "relu_", "dropout", "feature_dropout", "pad", "cat", "stack", "chunk", "split"),
    *("__getitem__", "select", "narrow", "unbind", "index_select", "flip", "roll", "repeat"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "movedim", "swapaxes", "mT", "T"),
}


@dataclass
class Visit:
    """What was seen of one layer; quantities are of one image.

    Attributes:
        name: qualified name.
        layer: the copy's layer.
        calls: how often it ran.
        inputs: format of what it computes with, behind its own input quantizer.
        weight: its quantized weights, a QuantTensor; None without a quantizer.
        formats: of what its quantizers gave, by the quantizer's name.
        output_shape: without the batch.
        macs: multiply-accumulates of all calls; None where they are not counted.
        reads_image: whether it was handed the network's input itself, or what was made of it before
            any layer with weights ran, e.g. by rescaling it.
        recurrent: whether it is a recurrent layer or a part of one, whose insides are not followed.
    """

    name: str
    layer: nn.Module
    calls: int = 0
    inputs: Format | None = None
    weight: Any = None
    formats: dict[str, Format] = field(default_factory=dict)
    output_shape: tuple[int, ...] | None = None
    macs: int | None = 0
    reads_image: bool = False
    recurrent: bool = False


def copied(model: nn.Module) -> nn.Module:
    """Copy a model without its users' hooks, in evaluation mode.

    Hooks of torch itself, as of ``torch.nn.utils.weight_norm``, are part of the computation.

    Raises:
        ConfigError: if it cannot be copied.
    """
    memo: dict[int, Any] = {}  # deepcopy takes these in place of the models' own hooks
    for module in model.modules():
        for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            hooks = getattr(module, key)
            memo[id(hooks)] = OrderedDict((k, h) for k, h in hooks.items() if _of_torch(h))
    try:
        return copy.deepcopy(model, memo).eval()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{type(model).__name__} cannot be copied ({_line(error)}): give a model that "
            "copy.deepcopy takes"
        ) from error


def _of_torch(hook: object) -> bool:
    name = getattr(hook, "__module__", None) or type(hook).__module__
    return str(name).partition(".")[0] == "torch"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what has quantizers or parameters of its own, but not the parts of a quantizer."""
    from brevitas.proxy.quant_proxy import QuantProxyFromInjector

    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(proxy) for proxy in inside):
            continue
        if isinstance(module, QuantProxyFromInjector):
            inside.append(f"{name}.")
            continue
        quantized = any(isinstance(c, QuantProxyFromInjector) for c in module.children())
        if quantized or any(p is not None for p in module._parameters.values()):
            yield name, module


def recurrent_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost recurrent layers, of torch or Brevitas."""
    from brevitas.nn import QuantLSTM, QuantRNN

    classes = (nn.RNNBase, nn.RNNCellBase, QuantLSTM, QuantRNN)
    inside: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, classes) and not _within(name, inside):
            inside.append(name)
            yield name, module


def _within(name: str, outer: Sequence[str]) -> bool:
    """Tell whether a qualified name is one of ``outer`` or of a part of it."""
    return any(o in ("", name) or name.startswith(f"{o}.") for o in outer)


def checked_shape(image_shape: object) -> tuple[int, ...]:
    """Return the sizes of one input as a tuple.

    Raises:
        ConfigError: if they are no sizes.
    """
    if isinstance(image_shape, Sequence):
        shape = tuple(image_shape)
        if shape and all(isinstance(side, int) and side > 0 for side in shape):
            return shape
    got = " ".join(repr(image_shape).split())
    raise ConfigError(
        f"image_shape is {got[:SHOWN_CHARACTERS]}: give the sizes of one input without the batch, "
        "e.g. (3, 32, 32)"
    )


def trace(model: nn.Module, image_shape: Sequence[int] | None) -> list[Visit]:
    """Run one grey image through a copied model and note what its layers do.

    Args:
        model: from `copied`.
        image_shape: from `checked_shape`; None to look at the layers without running
            them, in the order in which they are registered.

    Returns:
        One record per layer, in the order of their first calls; last those that never ran.

    Raises:
        ConfigError: if the model cannot take such an image; it names the layer.
    """
    recurrent = [name for name, _ in recurrent_layers(model)]
    visits = [Visit(n, layer, recurrent=_within(n, recurrent)) for n, layer in layers(model)]
    with torch.no_grad():
        if image_shape is not None:
            visits = _Run(model, visits).of(_image(model, image_shape))
        elif visits:
            visits[0].reads_image = True  # as far as can be told without running it
        for visit in visits:
            if visit.calls == 0:
                _look_at(visit)
    return visits


def _image(model: nn.Module, image_shape: Sequence[int]) -> Tensor:
    tensors = (*model.parameters(), *model.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    return torch.full((1, *image_shape), 0.5, dtype=like.dtype, device=like.device)


def _look_at(visit: Visit) -> None:
    """Describe a layer that did not run by what its quantizers say of themselves."""
    visit.macs = None
    for name, proxy in _proxies(visit.layer).items():
        if not proxy.is_quant_enabled:
            continue
        if name == "weight_quant":
            if not proxy.requires_quant_input:
                visit.weight = visit.layer.quant_weight()  # type: ignore[operator]
        elif name in OUTPUT_QUANTIZERS and hasattr(proxy, "internal_forward"):
            given = proxy.internal_forward(force_eval=True)
            visit.formats[name] = format_of(given, narrow=bool(proxy.is_narrow_range))


def _proxies(layer: nn.Module) -> dict[str, Any]:
    from brevitas.proxy.quant_proxy import QuantProxyFromInjector

    return {n: c for n, c in layer._modules.items() if isinstance(c, QuantProxyFromInjector)}


class _Formats(TorchFunctionMode):
    """Carries formats through operations that are no layers, as pooling or a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self._known: Any = WeakTensorKeyDictionary()

    def note(self, value: Any, known: Format | None) -> None:
        """Remember the format of a tensor, a QuantTensor's value, or several; None: forget it."""
        from brevitas.quant_tensor import QuantTensor

        if isinstance(value, QuantTensor):
            self.note(value.value, known)
        elif isinstance(value, Tensor):
            if known is not None:
                self._known[value] = known
            elif value in self._known:
                del self._known[value]
        elif isinstance(value, (tuple, list)):
            for part in value:
                self.note(part, known)

    def of(self, value: Any) -> Format | None:
        """Return the format of what a layer is handed; None if it is no tensor."""
        from brevitas.quant_tensor import QuantTensor

        if isinstance(value, QuantTensor):
            known = self._known.get(value.value)
            return known if known is not None else format_of(value)
        if isinstance(value, Tensor):
            return self._known.get(value) or floating(value.dtype)
        if isinstance(value, (tuple, list)) and value:
            return self.of(value[0])
        return None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        keeps = name in KEEPING and bool(args) and not (name == "pad" and _pads(args, kwargs or {}))
        before = self._common(args[0]) if keeps else None
        result = func(*args, **(kwargs or {}))
        self.note(result, before)  # also of what was changed in place
        return result

    def _common(self, value: Any) -> Format | None:
        """Return the one format of all tensors that are joined; None where they differ."""
        from brevitas.quant_tensor import QuantTensor

        if isinstance(value, Tensor):
            return self._known.get(value)
        parts = [value] if isinstance(value, QuantTensor) else value
        found = {self._known.get(getattr(part, "value", part)) for part in parts}
        return found.pop() if len(found) == 1 else None


def _pads(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether these arguments of ``F.pad`` put in another value than 0."""
    given = {**dict(zip(("input", "pad", "mode", "value"), args, strict=False)), **kwargs}
    return bool(given.get("value"))


class _Run:
    """One forward pass with hooks on layers and quantizers of a copied model."""

    def __init__(self, model: nn.Module, visits: list[Visit]) -> None:
        self._model = model
        self._visits = visits
        self._formats = _Formats()
        self._running: list[Visit] = []
        self._entered: list[str] = []
        self._order: list[Visit] = []
        self._image: Tensor | None = None
        self._weighted = False

    def of(self, image: Tensor) -> list[Visit]:
        """Run it and return the records."""
        self._image = image
        proxies: dict[int, Any] = {}
        for visit in self._visits:
            visit.layer.register_forward_pre_hook(self._before(visit), with_kwargs=True)
            visit.layer.register_forward_hook(self._after(visit))
            proxies |= {id(p): p for p in _proxies(visit.layer).values()}
        for proxy in proxies.values():
            proxy.register_forward_hook(self._quantized)
        for _, layer in recurrent_layers(self._model):
            if not isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):  # whose output is in float
                layer.register_forward_hook(self._forget)
        for name, module in self._model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # as Brevitas' own may be
                module.register_forward_pre_hook(self._entering(name))
        try:
            with self._formats:
                self._model(image)
        except Exception as error:  # whatever a user's forward raises
            raise ConfigError(
                f"an image of shape {tuple(image.shape[1:])} does not pass "
                f"{self._entered[-1] or 'the model'}: {_line(error)}; give the shape of one input "
                "without the batch, to a model that runs in evaluation mode"
            ) from error
        return self._order + [v for v in self._visits if v.calls == 0]

    def _entering(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any) -> None:
            self._entered.append(name)

        return note

    def _before(self, visit: Visit) -> Callable[..., None]:
        def note(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            handed = next(iter((*args, *kwargs.values())), None)
            weighted = _has_weights(visit)
            visit.reads_image |= handed is self._image or not (weighted or self._weighted)
            self._weighted |= weighted
            visit.inputs = self._formats.of(handed)
            if visit.calls == 0:
                self._order.append(visit)
            visit.calls += 1
            self._running.append(visit)

        return note

    def _after(self, visit: Visit) -> Callable[..., None]:
        def note(layer: nn.Module, args: Any, output: Any) -> None:
            self._running.pop()
            given = [visit.formats[q] for q in OUTPUT_QUANTIZERS if q in visit.formats]
            if given:
                self._formats.note(getattr(output, "value", output), given[-1])
            value = getattr(output, "value", output)
            if isinstance(value, Tensor):
                visit.output_shape = tuple(value.shape[1:])
            counted = None if visit.recurrent else _macs(layer, args[0] if args else None, value)
            visit.macs = None if None in (counted, visit.macs) else visit.macs + counted  # type: ignore[operator]

        return note

    def _forget(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._formats.note(output, UNKNOWN)

    def _quantized(self, proxy: Any, args: Any, output: Any) -> None:
        if not self._running or not proxy.is_quant_enabled:
            return
        visit = self._running[-1]
        name = next((n for n, p in _proxies(visit.layer).items() if p is proxy), None)
        if name is None or not hasattr(output, "scale"):
            return
        if name == "weight_quant":
            visit.weight = output
            return
        visit.formats[name] = format_of(output, narrow=bool(proxy.is_narrow_range))
        if name == "input_quant":
            visit.inputs = visit.formats[name]


def _has_weights(visit: Visit) -> bool:
    """Tell whether a layer computes with weights; BatchNorm's factors are none."""
    parameters = [p for p in visit.layer._parameters.values() if p is not None]
    return visit.recurrent or any(p.dim() > 1 for p in parameters)


def _macs(layer: nn.Module, inputs: Any, output: Any) -> int | None:
    """Count the multiply-accumulates of one call; None where that is not known."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or isinstance(layer, nn.Embedding):
        return 0
    if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
        return None
    if getattr(layer, "transposed", False):
        shape = getattr(inputs, "value", inputs).shape
        return math.prod(shape) * weight[0].numel()
    return int(output.numel()) * weight[0].numel()
