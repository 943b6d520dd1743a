# SPDX-License-Identifier: BSD-3-Clause
"""The way from a float network to a quantized one in one call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from brevitas_divqat.conversion.report import ConversionReport, Problem
from brevitas_divqat.conversion.rewriting import rewrite
from brevitas_divqat.conversion.tracing import has_hooks, shapes_of, trace
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.export import check
from brevitas_divqat.export.rules import SEVERITIES
from brevitas_divqat.models import Precision
from brevitas_divqat.models.layers import WeightScale

__all__ = ["QuantizedGraph", "quantize"]

MIN_BITS, MAX_BITS = 2, 8
REPORT_KEY = "brevitas_divqat_report"
LOST_HOOKS = "has hooks, which are lost"


class QuantizedGraph(fx.GraphModule):
    """A network of Brevitas layers made by `quantize`: maps pixels in [0, 1) to scores."""

    @property
    def report(self) -> ConversionReport:
        """What was converted, and what FINN cannot build."""
        return self.meta[REPORT_KEY]


def quantize(
    float_model: nn.Module,
    example: Tensor | tuple[int, ...] | None = None,
    *,
    bits: int = 4,
    act_bits: int | None = None,
    edge_bits: int = 8,
    join_bits: int | None = None,
    weight_scale: WeightScale = "channel",
    replace_activations: bool = False,
) -> QuantizedGraph:
    """Return a quantized copy of a float network that torch.fx can trace.

    Convolutions, linear layers and BatchNorms keep names, weights and statistics, so that the float
    checkpoint fits. The argument stays as it is; every layer of the copy is in the mode (training
    or evaluation) of its original. The activations' scales are set by ``training.calibrate``, or by
    the first 300 steps of training. docs/graph-mode.md says what becomes what.

    Args:
        float_model: layers of ``torch.nn`` and their functional forms, float32, on one device; maps
            one batch of images to one tensor of scores.
        example: a batch of inputs, (N, C, H, W), or the shape of one image, (C, H, W). With it
            adaptive pools get the kernel that FINN needs, and the result is checked; without it the
            report says "not checked".
        bits: of the weights of inner layers, 2 to 8.
        act_bits: of the activations, 2 to 8; ``bits`` by default.
        edge_bits: of the weights of first and last layers, and of what follows the last, 2 to 8.
        join_bits: of the signed branches of additions and concatenations, 2 to 8; the activations'
            by default.
        weight_scale: one scale per output ``"channel"`` or per ``"tensor"``; last layers have one
            per tensor in any case.
        replace_activations: whether to turn SiLU, Hardswish, LeakyReLU and others into ReLU, which
            changes the network's function: it needs training then.

    Returns:
        The quantized network, whose ``report`` tells what was done and what cannot be built.

    Raises:
        ConfigError: if a setting is out of range, or the model cannot be traced, is quantized
            already, has nothing to quantize, lies on several devices, or fails on the example.

    Example:
        >>> from torch import nn
        >>> float_model = nn.Sequential(
        ...     nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
        ... )
        >>> model = quantize(float_model, (1, 8, 8), bits=4)
        >>> model.report.buildable
        True
    """
    act_bits = bits if act_bits is None else act_bits
    join_bits = act_bits if join_bits is None else join_bits
    named = {"bits": bits, "act_bits": act_bits, "edge_bits": edge_bits, "join_bits": join_bits}
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} is {value!r}: give a whole number")
        if not MIN_BITS <= value <= MAX_BITS:
            raise ConfigError(f"{name} is {value}: graph mode makes {MIN_BITS} to {MAX_BITS} bits")
    precision = Precision(bits, act_bits, edge_bits, weight_scale)
    with torch.random.fork_rng(devices=[]):  # new layers start from random weights, for a moment
        traced = trace(float_model)
        shapes = None if example is None else shapes_of(traced, float_model, _inputs(example))
        graph, changes, problems = rewrite(
            traced, precision, join_bits=join_bits, shapes=shapes, rectify=replace_activations
        )
    model = QuantizedGraph(traced, graph, type(float_model).__name__)
    _copy_modes(float_model, model)
    problems += _left_out(float_model, model, compared=example is not None)
    checked = example is not None and not _has_adaptive_pools(model)
    if example is not None and checked:
        problems += [Problem.of(f) for f in check(model, example) if f.severity == SEVERITIES[0]]
    ordered = sorted(dict.fromkeys(problems), key=lambda p: SEVERITIES.index(p.severity))
    model.meta[REPORT_KEY] = ConversionReport(tuple(changes), tuple(ordered), checked)
    return model


def _inputs(example: Any) -> Tensor:
    """Return a small batch of an example, or of a shape, with values in [0, 1)."""
    if isinstance(example, Tensor):
        if example.ndim < 2 or not example.numel():
            raise ConfigError(
                f"the example has shape {tuple(example.shape)}: give a batch of inputs, "
                "(N, C, H, W), or the shape (C, H, W)"
            )
        if not example.isfinite().all():
            raise ConfigError("the example has NaN or infinite values: give numbers in [0, 1)")
        return example[:1].detach()
    if not isinstance(example, tuple | list):
        raise ConfigError(
            f"the example is a {type(example).__name__}: give a tensor (N, C, H, W), or the shape "
            "(C, H, W)"
        )
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in example)
    if len(example) not in (3, 4) or not whole:
        raise ConfigError(f"the example's shape is {example}: give (C, H, W) or (N, C, H, W)")
    return torch.rand(1, *example[-3:])


def _has_adaptive_pools(model: fx.GraphModule) -> bool:
    """Tell whether adaptive pools are left, which torch cannot export; they are in the report."""
    return any(
        isinstance(model.get_submodule(str(node.target)), nn.AdaptiveAvgPool2d)
        if node.op == "call_module"
        else node.target is F.adaptive_avg_pool2d
        for node in model.graph.nodes
    )


def _copy_modes(original: nn.Module, model: nn.Module) -> None:
    """Put every module in the mode of its original, or of what encloses it."""
    modes = {name: module.training for name, module in original.named_modules()}
    for name, module in model.named_modules():
        while name not in modes:
            name = name.rpartition(".")[0]
        module.training = modes[name]


def _left_out(original: nn.Module, model: nn.Module, *, compared: bool) -> list[Problem]:
    """Report layers with weights that evaluation does not call, and hooks, which are lost.

    Hooks that change the scores are an error where these were ``compared``.
    """
    kept = set(model.state_dict())
    owners = {name.rpartition(".")[0] for name in original.state_dict() if name not in kept}
    tops = sorted({name.split(".")[0] for name in owners if name})
    lost = [
        Problem(
            name,
            "has weights that evaluation does not use, and is left out",
            "load the float checkpoint with strict=False",
            "costs area",
        )
        for name in tops
    ]
    hooked = [name or "the model" for name, m in original.named_modules() if has_hooks(m)]
    if compared:
        why, remedy, severity = LOST_HOOKS, "register them on the result", "costs area"
    else:
        why = f"{LOST_HOOKS}, also those that change the network's function"
        remedy, severity = "give an example, for which the scores are compared", "breaks FINN"
    return lost + [Problem(name, why, remedy, severity) for name in hooked]  # type: ignore[arg-type]
