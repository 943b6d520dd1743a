# SPDX-License-Identifier: BSD-3-Clause
"""Faster training steps of Brevitas quantizers, with the same bits.

A Brevitas quantizer is a chain of small modules, and autograd keeps a tensor of each: on a CPU, a
third to a half of a training step is spent there, in passes over memory that change nothing and in
``torch.where`` with a scalar. Here the same arithmetic is one function with one backward pass, for
the quantizers whose chain is known; docs/bench.md tells what that gives.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import brevitas.config
import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.function_wrapper import (
    Identity,
    RoundSte,
    ScalarSignedClampMinSte,
    TensorClamp,
    TensorClampSte,
)
from brevitas.core.quant import IntQuant, RescalingIntQuant
from brevitas.core.quant.delay import _NoDelay
from brevitas.core.restrict_val import FloatRestrictValue, _ClampValue
from brevitas.core.scaling import ParameterFromRuntimeStatsScaling, StatsFromParameterScaling
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjectorBase
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from brevitas_divqat.errors import ConfigError

__all__ = ["speed_up"]


def speed_up(model: nn.Module) -> list[str]:
    """Make the training steps of a quantized model faster, in place; every bit stays the same.

    Parameters, ``state_dict`` keys, evaluation and export are as before, and optimizers that hold
    the parameters stay valid. The quantizers stay fast when ``load_state_dict`` re-creates them.
    Integer quantizers with a constant bit width and no zero-point that round to nearest become
    faster; others, and those already fast, are left as they are.

    Bits are the same where a scale is used by its own quantizer alone; a quantized bias, which uses
    the scales of input and weight, may add the gradients of a scale in another order.

    Args:
        model: has Brevitas layers.

    Returns:
        The qualified names of the quantizers that became faster.

    Raises:
        ConfigError: if Brevitas compiles its quantizers (``BREVITAS_JIT=1``), or the model has
            none that can become faster.

    Example:
        >>> from brevitas_divqat.models import Precision, build
        >>> model = build("lenet5", (1, 28, 28), 10, precision=Precision(4, 4))
        >>> len(speed_up(model)), len(speed_up(model.features))
        (10, 0)
    """
    if brevitas.config.JIT_ENABLED:
        raise ConfigError(
            "BREVITAS_JIT is on, whose compiled quantizers cannot be replaced: unset it, or train "
            "without speed_up()"
        )
    proxies = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (WeightQuantProxyFromInjectorBase, ActQuantProxyFromInjectorBase))
    }
    places = {name: _place_of(proxy) for name, proxy in proxies.items()}
    places = {name: place for name, place in places.items() if place is not None}
    kinds = {type(place.tensor_quant) for place in places.values()}
    if FusedIntQuant not in kinds and RescalingIntQuant not in kinds:
        raise ConfigError(
            f"{type(model).__name__} has no integer quantizer that speed_up() knows: give the "
            "quantized model, after its layers are built"
        )
    return [name for name, place in places.items() if _fuse(proxies[name], place)]


def _place_of(proxy: nn.Module) -> Any:
    """Return the module that holds the ``tensor_quant`` of a proxy."""
    if isinstance(proxy, ActQuantProxyFromInjectorBase):
        return proxy.fused_activation_quant_proxy
    return proxy


def _fuse(proxy: Any, place: Any) -> bool:
    """Replace a quantizer, and what its proxy makes when a ``state_dict`` is loaded."""
    old: Any = place.tensor_quant
    if not _is_known(old):
        return False
    new = FusedIntQuant(
        int_quant=old.int_quant,
        scaling_impl=old.scaling_impl,
        int_scaling_impl=old.int_scaling_impl,
        zero_point_impl=old.zero_point_impl,
        bit_width_impl=old.msb_clamp_bit_width_impl,
    )
    new.observer_only = old.observer_only
    place.tensor_quant = new.train(old.training)
    proxy.quant_injector = proxy.quant_injector.let(tensor_quant=FusedIntQuant)
    return True


def _is_known(quant: Any) -> bool:
    """Tell whether a quantizer computes what `_Quantize` does."""
    if type(quant) is not RescalingIntQuant or type(quant.int_quant) is not IntQuant:
        return False
    inner = quant.int_quant
    parts = (
        (quant.msb_clamp_bit_width_impl, (BitWidthConst,)),
        (quant.zero_point_impl, (ZeroZeroPoint,)),
        (inner.float_to_int_impl, (RoundSte,)),
        (inner.tensor_clamp_impl, (TensorClamp, TensorClampSte)),
        (inner.input_view_impl, (Identity,)),
        (inner.delay_wrapper.delay_impl, (_NoDelay,)),
    )
    return not quant._forward_hooks and all(type(part) in kinds for part, kinds in parts)


class FusedIntQuant(RescalingIntQuant):
    """A ``RescalingIntQuant`` of the same parts whose training pass is two autograd functions.

    Evaluation and tracing take Brevitas' own way.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what ``RescalingIntQuant`` returns: value, scale, zero-point, bit width."""
        if not self.training or self.observer_only or torch._C._get_tracing_state() is not None:
            return super().forward(x)
        bit_width = self.msb_clamp_bit_width_impl()
        low, high, threshold = self._constants(bit_width)
        scale = self._scale(x, threshold)
        through = type(self.int_quant.tensor_clamp_impl) is TensorClampSte
        value = _Quantize.apply(x, scale, low, high, through)
        return value, scale, self.zero_point_impl(x, scale, bit_width), bit_width

    def _constants(self, bit_width: Tensor) -> tuple[float, float, Tensor]:
        """Return the integer range and the scale's divisor, which a constant bit width fixes."""
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != bit_width.device:
            low, high = self.int_quant.min_int(bit_width), self.int_quant.max_int(bit_width)
            threshold = self.int_scaling_impl(bit_width)
            kept = (bit_width.device, float(low), float(high), threshold)
            self.__dict__["_kept"] = kept
        return kept[1:]

    def _scale(self, x: Tensor, threshold: Tensor) -> Tensor:
        impl = self.scaling_impl
        least = _least_of(impl)
        if least is None:
            return impl(x, threshold)
        if type(impl) is StatsFromParameterScaling:
            return _Scale.apply(impl.parameter_list_stats(x), threshold, least)
        return _Scale.apply(impl.value, threshold, least)


def _least_of(impl: Any) -> float | None:
    """Return the least value of a scale that `_Scale` can compute; None for other scales.

    Such a scale is a statistic of the weights, or a parameter that is no longer collected.
    """
    if type(impl) is StatsFromParameterScaling:
        chain = impl.stats_scaling_impl
        if (
            type(chain.affine_rescaling) is not Identity
            or type(chain.restrict_clamp_scaling.restrict_value_impl) is not FloatRestrictValue
            or type(chain.restrict_clamp_threshold.restrict_value_impl) is not FloatRestrictValue
            or type(chain.restrict_clamp_scale_threshold.restrict_value_impl) is not Identity
        ):
            return None
        return _least(chain.clamp_scaling)
    if type(impl) is ParameterFromRuntimeStatsScaling:
        if (
            impl.counter <= impl.collect_stats_steps
            or type(impl.restrict_scaling.restrict_value_impl) is not FloatRestrictValue
            or type(impl.restrict_threshold.restrict_value_impl) is not FloatRestrictValue
            or type(impl.restrict_scale_threshold.restrict_value_impl) is not Identity
        ):
            return None
        return _least(impl.clamp_scaling)
    return None


def _least(clamp: _ClampValue) -> float | None:
    if type(clamp.clamp_min_ste) is not ScalarSignedClampMinSte:
        return None
    return float(clamp.clamp_min_ste.min_val)


class _Scale(torch.autograd.Function):
    """The magnitude of a value, but at least so much, divided by the highest integer."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, threshold: Tensor, least: float) -> Tensor:
        ctx.save_for_backward(value, threshold)
        return value.abs().clamp_min_(least).div_(threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        value, threshold = ctx.saved_tensors
        gradient = gradient / threshold
        # Straight through the lower limit; the slope at 0 is 1.
        return torch.where(value >= 0, gradient, -gradient), None, None


class _Quantize(torch.autograd.Function):
    """Divide by the scale, round to nearest even, clamp, multiply by the scale.

    Rounding passes the gradient on; clamping too if it is ``through``, else where it does nothing.
    The order of the operations, and so every rounding error, is that of Brevitas' modules.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, through: bool
    ) -> Tensor:
        # Adding the zero-point makes 0 of -0. Rounding is not in place: the result has the strides
        # that it has in Brevitas, and they decide which kernel a convolution takes.
        steps = (x / scale).add_(0.0)
        integers = steps.round().clamp_(low, high)
        ctx.save_for_backward(steps, integers, scale)
        ctx.limits = None if through else _limits(low, high, steps.dtype)
        ctx.dtype = x.dtype
        return integers * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        steps, integers, scale = ctx.saved_tensors
        wants_x, wants_scale = ctx.needs_input_grad[:2]
        to_steps = gradient * scale
        if ctx.limits is not None:
            # Not in place, for the strides again.
            to_steps = torch.ops.aten.hardtanh_backward(to_steps, steps, *ctx.limits)
        to_scale = None
        if wants_scale:
            outer = _summed(gradient * integers, scale)
            # The order of the factors decides the strides, and these the order of the sum.
            to_scale = outer - _summed(to_steps * (steps / scale), scale)
        to_x = to_steps.div_(scale).to(ctx.dtype) if wants_x else None
        return to_x, to_scale, None, None, None


def _summed(gradients: Tensor, scale: Tensor) -> Tensor:
    """Sum what a scale's broadcast has spread, each sum rounded as autograd does."""
    return gradients.sum_to_size(scale.shape).to(scale.dtype)


@functools.cache
def _limits(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the open interval of what rounds to an integer from ``low`` to ``high``.

    Halves round to even: an even limit is reached from its half, an odd one is not.
    """

    def limit(integer: float, side: float) -> float:
        half = torch.tensor(integer + 0.5 * side, dtype=dtype)
        if integer % 2 == 0:
            half = torch.nextafter(half, torch.tensor(side * math.inf, dtype=dtype))
        return half.item()

    return limit(low, -1.0), limit(high, 1.0)
