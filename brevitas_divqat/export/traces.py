# SPDX-License-Identifier: BSD-3-Clause
"""What a network computes at each of its quantized tensors, in any of the forms that it takes.

A form is the Brevitas model, the exported graph or the integer graph. It names its quantized
tensors once (`Site`), and tells for every batch of images the integers there and what the
quantizers made them from (`Trace`). Whatever else runs the network, such as a simulation of the
hardware, joins by offering the same.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.errors import GraphError

__all__ = [
    "Before",
    "Form",
    "ModelTracer",
    "Observation",
    "Quantizer",
    "RealBefore",
    "Site",
    "SiteKind",
    "Trace",
    "Unit",
    "integer_rows",
    "make_quantizer",
    "numbered",
]

Integers = NDArray[np.int64]
Where = tuple[NDArray[Any], ...]
SiteKind = Literal["activation", "trunc", "absorbed"]
Unit = Literal["step", "accumulator"]

ROUNDING_TOLERANCE = 1e-2
"""In steps: how far a quantized value may lie from an integer. 8 bits of float32 err by 2e-5."""


@dataclass(frozen=True)
class Quantizer:
    """How a quantized tensor is to be read: real value = scale * (integer - zero_point).

    Attributes:
        bits: of the integers.
        signed: whether they are signed.
        scale: the step; several where it is one per channel.
        zero_point: the integer that stands for 0.
    """

    bits: int
    signed: bool
    scale: tuple[float, ...]
    zero_point: float = 0.0


@dataclass(frozen=True)
class Site:
    """A quantized tensor of a form.

    Attributes:
        layer: qualified name of the module whose quantizer made it; empty where the form does not
            tell, as where the integer graph has absorbed the quantizer.
        call: the module's how-many-th call, from 1.
        tensor: its name in the graph; empty in a Brevitas model.
        kind: ``"activation"``; ``"trunc"``, of an average pool; ``"absorbed"``, a quantizer that
            would give every integer back and which the integer graph does without.
        shape: of one image's tensor.
        quantizer: how to read it.
        path: (layer, operator) since the quantized tensors before it, in the order of computation.
        source: name of the tensor that it is computed from element by element.
    """

    layer: str
    call: int
    tensor: str
    kind: SiteKind
    shape: tuple[int, ...]
    quantizer: Quantizer
    path: tuple[tuple[str, str], ...] = ()
    source: str = ""


class Before(Protocol):
    """What a quantizer read, and the thresholds that it compared that with."""

    @property
    def unit(self) -> Unit:
        """``"step"`` of the quantizer, or ``"accumulator"``: an integer of the integer graph."""

    def at(self, where: Where, levels: Integers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the values at ``where``, and the least value that reaches each of ``levels``.

        A threshold that the quantizer lacks is NaN.
        """


@dataclass(frozen=True)
class RealBefore:
    """Real numbers, quantized by rounding."""

    values: NDArray[np.float32]
    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    rounding: str = "ROUND"
    bipolar: bool = False
    unit: Unit = "step"

    def at(self, where: Where, levels: Integers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scale, zero_point = (
            np.broadcast_to(part, self.values.shape)[where]
            for part in (self.scale, self.zero_point)
        )
        return self.values[where] / scale + zero_point, self._thresholds(levels)

    def _thresholds(self, levels: Integers) -> NDArray[np.float64]:
        if self.bipolar:
            return np.zeros(levels.shape)
        below = {"FLOOR": 0.0, "CEIL": 1.0}.get(self.rounding.upper(), 0.5)
        return levels.astype(np.float64) - below


@dataclass(frozen=True)
class Observation:
    """A quantized tensor for one batch.

    Attributes:
        values: (B, …), equal to scale * (integer - zero_point).
        scale: that broadcasts to it.
        zero_point: that broadcasts to it.
        before: what the quantizer read; None where nothing is known of it.
    """

    values: NDArray[np.float32]
    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    before: Before | None

    def integers(self, site: Site) -> Integers:
        """Return the (B, …) integers.

        Raises:
            GraphError: if the values are none: rounding them would then hide a difference.
        """
        steps = self.values / self.scale + self.zero_point
        integers = np.rint(steps)
        harmless = np.abs(steps - integers) <= ROUNDING_TOLERANCE
        if not harmless.all():
            worst = float(steps[~harmless][0])
            raise GraphError(
                f"layer {site.layer or site.tensor} gives {worst:g} steps, where a quantizer gives "
                "a whole number: the graph is damaged, export it again"
            )
        return integers.astype(np.int64)


@dataclass(frozen=True)
class Trace:
    """One batch on its way through a form.

    Attributes:
        observations: one for each of the form's sites.
        scores: (B, K) float32, what the host sees.
    """

    observations: Sequence[Observation]
    scores: NDArray[np.float32]


class Form(Protocol):
    """A network in one of the forms that it takes.

    Attributes:
        name: to be shown, e.g. ``"integer graph model.onnx"``.
        image_shape: (channels, height, width).
        num_classes: number of scores.
        sites: its quantized tensors, in the order of computation.
        score_scale: every score is an integer times this; None in a form that sums real numbers.
    """

    @property
    def name(self) -> str: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def sites(self) -> tuple[Site, ...]: ...
    @property
    def score_scale(self) -> float | None: ...

    def weights(self) -> dict[str, Integers]:
        """Return the (outputs, inputs) integer weights of the layers whose weights are known."""

    def trace(self, images: NDArray[np.uint8]) -> Trace:
        """Run a batch of (B, C, H, W) 8-bit images."""


class ModelTracer:
    """A Brevitas model, observed where its activation and truncation quantizers are called.

    A copy is run: the model stays as it is.

    Args:
        model: from (N, C, H, W) float32 images to (N, K) scores.
        image_shape: (channels, height, width).
        pixel_divisor: its input is a pixel (0 … 255) divided by this.
        name: to be shown.

    Raises:
        GraphError: if the model has no quantized layer or takes no images of this shape.
    """

    score_scale = None

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        pixel_divisor: float = 256.0,
        name: str = "Brevitas model",
    ) -> None:
        self.name, self.image_shape = name, image_shape
        self._model = copy.deepcopy(model).cpu().eval()
        self._pixel_divisor = pixel_divisor
        self._layers: list[str] = []
        self._seen: list[tuple[Site, Observation]] = []
        self._observe()
        scores = self.trace(np.zeros((1, *image_shape), np.uint8)).scores
        if not self._seen:
            raise GraphError(f"{name} has no quantized layer: was it built from Brevitas layers?")
        self.num_classes = scores.shape[1]
        self.sites = numbered([site for site, _ in self._seen])

    def weights(self) -> dict[str, Integers]:
        """Return the (outputs, inputs) integer weights of the quantized layers."""
        found = {}
        for name, module in self._model.named_modules():
            if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                continue
            if not getattr(getattr(module, "weight_quant", None), "is_quant_enabled", False):
                continue
            layer: Any = module
            quantized = layer.quant_weight()
            steps = quantized.value / quantized.scale + quantized.zero_point
            found[name] = integer_rows(steps.detach().numpy(), 0)
        return found

    @torch.no_grad()
    def trace(self, images: NDArray[np.uint8]) -> Trace:
        """Run a batch of (B, C, H, W) 8-bit images."""
        self._layers, self._seen = [], []
        pixels = torch.from_numpy(np.ascontiguousarray(images)).float() / self._pixel_divisor
        try:
            scores = self._model(pixels)
        except GraphError:
            raise
        except Exception as error:  # whatever torch and Brevitas raise, the cause is this model
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise GraphError(
                f"{self.name} cannot be run on images of shape {self.image_shape} ({reason})"
            ) from error
        scores = getattr(scores, "value", scores)
        return Trace([seen for _, seen in self._seen], scores.float().numpy())

    def _observe(self) -> None:
        """Hook the quantizers, and the other modules to know whose quantizer is called."""
        from brevitas.proxy.runtime_quant import (
            ActQuantProxyFromInjectorBase,
            TruncQuantProxyFromInjector,
        )

        kinds: dict[type[nn.Module], SiteKind] = {
            ActQuantProxyFromInjectorBase: "activation",
            TruncQuantProxyFromInjector: "trunc",
        }
        inside: set[nn.Module] = set()
        module: Any
        for name, module in self._model.named_modules():
            if module in inside:
                continue
            kind = next(
                (k for quantizer, k in kinds.items() if isinstance(module, quantizer)), None
            )
            if kind is not None or name.endswith("_quant"):
                inside |= set(module.modules())
            if kind is not None:
                module.skip_create_quant_tensor = False
                module.register_forward_hook(self._quantizer_hook(kind))
            elif module not in inside:
                module.register_forward_pre_hook(self._entrance_hook(name))
                module.register_forward_hook(self._leave)

    def _entrance_hook(self, name: str) -> Callable[..., None]:
        return lambda *_: self._layers.append(name)

    def _leave(self, *_: Any) -> None:
        self._layers.pop()

    def _quantizer_hook(self, kind: SiteKind) -> Callable[..., None]:
        def note(proxy: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if proxy.is_quant_enabled:
                self._note(proxy, kind, inputs[0], output)

        return note

    def _note(self, proxy: Any, kind: SiteKind, read: Any, output: Any) -> None:
        from brevitas.quant_tensor import IntQuantTensor

        layer = self._layers[-1]
        if not isinstance(output, IntQuantTensor):
            raise GraphError(f"layer {layer} quantizes to no integers: only integers are compared")
        read = getattr(read, "value", read)
        if kind == "activation":
            read = proxy.fused_activation_quant_proxy.activation_impl(read)
        scale, zero_point = (
            part.detach().double().numpy() for part in (output.scale, output.zero_point)
        )
        values = output.value.detach().float().numpy()
        bits, signed = int(output.bit_width), bool(output.signed)
        quantizer = make_quantizer(bits, signed, scale, zero_point)
        before = RealBefore(
            read.detach().float().numpy(),
            scale,
            zero_point,
            str(proxy.rounding_mode or "ROUND"),
            bipolar=bits == 1 and signed,
        )
        self._seen.append(
            (
                Site(layer, 1, "", kind, values.shape[1:], quantizer),
                Observation(values, scale, zero_point, before),
            )
        )


def numbered(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Count the calls of every layer."""
    calls: Counter[str] = Counter()
    numbered = []
    for site in sites:
        calls[site.layer] += 1
        numbered.append(replace(site, call=calls[site.layer]))
    return tuple(numbered)


def make_quantizer(bits: int, signed: bool, scale: Any, zero_point: Any) -> Quantizer:
    return Quantizer(
        bits, signed, tuple(float(s) for s in np.ravel(scale)), float(np.ravel(zero_point)[0])
    )


def integer_rows(weights: NDArray[Any], axis: int) -> Integers:
    rows = np.moveaxis(np.rint(weights), axis, 0)
    return rows.reshape(len(rows), -1).astype(np.int64)
