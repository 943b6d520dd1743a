# SPDX-License-Identifier: BSD-3-Clause
"""The pre-flight check: what in a network keeps FINN from building hardware of it.

The rules themselves are in ``rules``, what they look at in ``quantgraph``; here is the way to it
from a model, which may be untrained, or from a file.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError, ExportError, GraphError
from brevitas_divqat.export.graph_files import read_graph
from brevitas_divqat.export.integer import SCALES_KEY
from brevitas_divqat.export.qonnx import cleaned_graph, on_cpu
from brevitas_divqat.export.quantgraph import QUANTIZERS, QuantGraph
from brevitas_divqat.export.rules import RULES, SEVERITIES, Severity
from brevitas_divqat.training import uncalibrated

__all__ = ["Finding", "check", "check_graph"]

DIFFERENT_SCALES = "Scaling factors are different"
"""In the message of the error that Brevitas raises."""


@dataclass(frozen=True)
class Finding:
    """One place in a network that breaks one rule.

    Attributes:
        rule: identifier of the rule, a row of docs/check.md.
        layer: qualified name of the layer; where the graph has none, the node's name.
        found: what was found there.
        remedy: what to do.
        severity: what it leads to.
    """

    rule: str
    layer: str
    found: str
    remedy: str
    severity: Severity

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.severity}: {self.layer}: {self.found} ({self.rule}): {self.remedy}"


def check(model: nn.Module, example: Tensor | tuple[int, ...]) -> list[Finding]:
    """List everything that keeps FINN from building an all-RTL accelerator of a model.

    The model may be untrained and uncalibrated. A copy is checked: the model, its mode and the
    random generators stay as they are.

    Args:
        model: any model of Brevitas layers.
        example: a batch of inputs, or the shape of one: (C, H, W), or (N, C, H, W) whose N is
            ignored. A tensor's first axis is always the batch.

    Returns:
        The findings, worst first, then in the order of the graph; empty where there are none.

    Raises:
        ConfigError: if the example is no such shape, or the model fails on it.

    Example:
        >>> from brevitas_divqat.models import Precision, build
        >>> model = build("lenet5", (1, 28, 28), 10, precision=Precision(weight=4, activation=4))
        >>> {finding.rule for finding in check(model, (1, 28, 28))}
        {'max-pool'}
    """
    inputs = _inputs(example)
    shape = tuple(inputs.shape[1:])
    with torch.random.fork_rng(devices=[]):
        twin = on_cpu(model)
        _run(twin, inputs)
        unknown = _unknown_zero_points(twin)
        _tell_scales_apart(twin)
        try:
            graph = QuantGraph(cleaned_graph(twin, shape))
        except ExportError as error:
            if DIFFERENT_SCALES not in str(error):
                return [_finding("export", "the model", str(error))]
            # Brevitas refuses to add branches of different scales: with equal ones it exports them,
            # and the rest can be checked.
            unknown.append(("join-scale", "the model", "an addition of different quantizers"))
            _make_scales_equal(twin)
            try:
                graph = QuantGraph(cleaned_graph(twin, shape))
            except ExportError as second:
                return [_finding("export", "the model", str(second))]
    return _findings(graph, unknown)


def check_graph(graph: Path | str | Any) -> list[Finding]:
    """List everything that keeps FINN from building an all-RTL accelerator of a QONNX graph.

    Args:
        graph: a ``.onnx`` file, from anywhere, or a qonnx ``ModelWrapper``, which is not changed.

    Returns:
        The findings, worst first, then in the order of the graph; empty where there are none.

    Raises:
        GraphError: if the file is missing, no ONNX graph, without nodes, or damaged.
    """
    source = str(graph) if isinstance(graph, Path | str) else "the graph"
    wrapper = read_graph(Path(graph))[0] if isinstance(graph, Path | str) else copy.deepcopy(graph)
    if not wrapper.graph.node:
        raise GraphError(f"{source} is an ONNX file without nodes: export the model again")
    if wrapper.get_metadata_prop(SCALES_KEY) is not None:
        raise GraphError(
            f"{source} is an integer graph, whose quantizers are thresholds already: check the "
            "exported graph that it was made from"
        )
    try:
        return _findings(QuantGraph(_prepared(wrapper)), [])
    except Exception as error:  # whatever qonnx and onnx raise, the cause is this file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise GraphError(f"{source} cannot be read ({reason}): export the model again") from error


def _prepared(wrapper: Any) -> Any:
    """Infer shapes and fold constants; unlike qonnx's cleanup, keep the nodes' names."""
    from qonnx.transformation.fold_constants import FoldConstants
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.transformation.quant_constant_folding import FoldTransposeIntoQuantInit

    for node in wrapper.graph.node:
        if node.op_type in QUANTIZERS:
            node.domain = "qonnx.custom_op.general"
    for step in (InferShapes(), FoldConstants(), FoldTransposeIntoQuantInit()):
        wrapper = wrapper.transform(step)
    return wrapper


def _findings(graph: QuantGraph, by_module: list[tuple[str, str, str]]) -> list[Finding]:
    if not graph.quantizers:
        return [_finding("no-quantizer", "the graph", "no quantizer at all")]
    order = {id(node): position for position, node in enumerate(graph.nodes)}
    located = [
        (order[id(hit.node)], _finding(name, graph.layer(hit.node), hit.found))
        for name, rule in RULES.items()
        if rule.find is not None
        for hit in rule.find(graph)
    ]
    first = {graph.layer(node): order[id(node)] for node in reversed(graph.nodes)}
    located += [
        (first.get(layer, len(order)), _finding(rule, layer, found))
        for rule, layer, found in by_module
    ]
    located.sort(key=lambda pair: (SEVERITIES.index(pair[1].severity), pair[0]))
    return list(dict.fromkeys(finding for _, finding in located))


def _finding(rule: str, layer: str, found: str) -> Finding:
    return Finding(rule, layer, found, RULES[rule].remedy, RULES[rule].severity)


# --- what only the modules show ----------------------------------------------------------------


def _inputs(example: Tensor | tuple[int, ...]) -> Tensor:
    if isinstance(example, Tensor):
        if example.ndim < 2 or not len(example):
            raise ConfigError(
                f"the example has shape {tuple(example.shape)}: give a batch of inputs, "
                "(N, C, H, W), or the shape (C, H, W)"
            )
        return example[:1].detach().cpu()
    shape = tuple(example)[-3:]
    if len(example) not in (3, 4) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ConfigError(f"the example's shape is {example}: give (C, H, W) or (N, C, H, W)")
    return torch.zeros(1, *shape)


@torch.no_grad()
def _run(model: nn.Module, inputs: Tensor) -> None:
    try:
        model(inputs)
    except Exception as error:  # whatever the model raises, it does not fit the example
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"the model fails on an input of shape {tuple(inputs.shape)} ({reason}): give an "
            "example of the shape that it takes"
        ) from error


def _without_statistics(model: nn.Module) -> list[tuple[str, Any]]:
    modules = [(name, model.get_submodule(name)) for name in uncalibrated(model)]
    return [(name, module) for name, module in modules if module.counter == 0]


def _layer_of(name: str) -> str:
    """Cut a qualified name before its first quantizer: that is the layer."""
    parts = name.split(".")
    ends = [i for i, part in enumerate(parts) if part.endswith("_quant")]
    return ".".join(parts[: ends[0]] if ends else parts)


def _unknown_zero_points(model: nn.Module) -> list[tuple[str, str, str]]:
    """Find zero-points that calibration will set: Brevitas exports 0 until then."""
    return [
        ("zero-point", _layer_of(name), "zero-point from statistics")
        for name, _ in _without_statistics(model)
        if name.endswith(".zero_point_impl")
    ]


@torch.no_grad()
def _make_scales_equal(model: nn.Module) -> None:
    """Give all activation scales the value 1, in place."""
    for name, module in model.named_modules():
        if name.endswith("act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl"):
            for value in (*module.parameters(), *module.buffers()):
                if value.is_floating_point():
                    value.fill_(1.0)


@torch.no_grad()
def _tell_scales_apart(model: nn.Module) -> None:
    """Give each scale without statistics a value of its own, in place.

    Brevitas exports 1 for all of them, and two quantizers would pass for one shared by both
    branches. Powers of two stay apart where scales are restricted to them.
    """
    for position, (name, module) in enumerate(_without_statistics(model)):
        if name.endswith(".scaling_impl"):
            module.buffer.fill_(2.0 ** (position % 64 + 1))
