# SPDX-License-Identifier: BSD-3-Clause
"""From a module to a graph of single calls that computes the same, or the reason why there is none.

The graph is that of evaluation. Every change here keeps the network's function: what is done in
place gets a name of its own, rectifiers move in front of the max pool or flattening that they
follow, functional dropout becomes a module.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from brevitas_divqat.conversion.nodes import is_in_place, kind_of, scope_of, source_input
from brevitas_divqat.errors import ConfigError

__all__ = ["fresh_name", "trace"]

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
SAME = 1e-3
"""Of the largest score: float32 sums may differ, other functions differ by more."""


def trace(model: nn.Module) -> fx.GraphModule:
    """Return a copy of a network as a graph, in evaluation mode.

    Raises:
        ConfigError: if it is no float network on one device, or cannot be traced.
    """
    _check_model(model)
    twin = copy.deepcopy(model).eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(twin)
    except Exception as error:  # of any kind: it comes from the model's own code
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        where = tracer.path or "the model"
        raise ConfigError(
            f"torch.fx cannot trace {where} ({reason}): take decisions that depend on values out "
            "of its forward, or build this part from brevitas.nn layers"
        ) from error
    traced = fx.GraphModule(twin, graph)
    _check_graph(traced)
    _name_in_place_results(traced)
    _make_dropout_modules(traced)
    _rectify_early(traced)
    traced.graph.lint()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    """Keeps leaves of torchvision whole, and remembers where tracing ended."""

    def __init__(self) -> None:
        super().__init__()
        self.path = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        outer, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = outer  # not in a finally: after an error it names the innermost module
        return result


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model is a {type(model).__name__}: give a torch.nn.Module")
    if isinstance(model, WRAPPERS):
        raise ConfigError(
            f"the model is wrapped in {type(model).__name__}: give model.module, and wrap the "
            "quantized one"
        )
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ConfigError("the model is compiled: give the module that it was compiled from")
    for name, module in model.named_modules():
        if type(module).__module__.split(".")[0] == "brevitas":
            raise ConfigError(
                f"{name or 'the model'} is quantized already ({type(module).__name__}): give the "
                "full-precision model"
            )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if nn.parameter.is_lazy(tensor):
            raise ConfigError(f"{name} has no shape yet: run the lazy model on one batch first")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ConfigError(f"{name} is {tensor.dtype}, not float32: call model.float() first")
    devices = {str(tensor.device): name for name, tensor in tensors}
    if "meta" in devices:
        raise ConfigError(f"{devices['meta']} is on the meta device, without values: load them")
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in sorted(devices.items()))
        raise ConfigError(f"the model is on several devices ({places}): move it to one first")


def _check_graph(traced: fx.GraphModule) -> None:
    modules = dict(traced.named_modules())
    nodes = list(traced.graph.nodes)
    if not any(kind_of(n, modules) in ("conv", "linear") for n in nodes):
        raise ConfigError(
            "the model calls no nn.Conv2d or nn.Linear: there is nothing to quantize; functional "
            "convolutions and subclasses have to become these layers"
        )
    inputs = [n for n in nodes if n.op == "placeholder" and n.users]
    if len(inputs) != 1:
        names = ", ".join(n.name for n in inputs) or "none"
        raise ConfigError(f"the model reads {len(inputs)} inputs ({names}): it has to read one")
    (output,) = (n for n in nodes if n.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise ConfigError(
            f"the model returns a {type(output.args[0]).__name__}: it has to return one tensor of "
            "scores"
        )


def _name_in_place_results(traced: fx.GraphModule) -> None:
    """Let whatever reads a tensor after it was changed in place read the changed one."""
    modules = dict(traced.named_modules())
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        if node.op in ("placeholder", "get_attr", "output") or not is_in_place(node, modules):
            continue
        changed = source_input(node)
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)


def fresh_name(traced: fx.GraphModule, scope: str, base: str) -> str:
    """Return a qualified name in a scope that no module and no tensor has yet."""
    prefix = f"{scope}." if scope else ""
    taken = {name for name, _ in traced.named_modules()} | set(dict(traced.named_buffers()))
    taken |= set(dict(traced.named_parameters()))
    name, count = f"{prefix}{base}", 0
    while name in taken or (not scope and hasattr(traced, base if not count else name)):
        count += 1
        name = f"{prefix}{base}_{count}"
    return name


def _make_dropout_modules(traced: fx.GraphModule) -> None:
    """Replace ``F.dropout``, whose mode was noted while tracing, by modules that know theirs."""
    for node in list(traced.graph.nodes):
        if node.op != "call_function" or node.target not in (F.dropout, F.dropout2d):
            continue
        share = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        name = fresh_name(traced, scope_of(node), "dropout")
        kind = nn.Dropout if node.target is F.dropout else nn.Dropout2d
        traced.add_submodule(name, kind(share).eval())
        with traced.graph.inserting_before(node):
            module = traced.graph.call_module(name, (source_input(node),))
        module.meta = {"nn_module_stack": {name: (name, kind)}}
        node.replace_all_uses_with(module)
        traced.graph.erase_node(node)


def _rectify_early(traced: fx.GraphModule) -> None:
    """Move rectifiers before the max pools and flattenings that they follow: these commute."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if kind_of(node, modules) != "relu":
            continue
        while True:
            before = source_input(node)
            moves = kind_of(before, modules) in ("max_pool", "pass") and len(before.users) == 1
            if not moves:
                break
            inner = source_input(before)
            node.replace_all_uses_with(before)
            node.replace_input_with(before, inner)
            before.prepend(node)
            before.replace_input_with(inner, node)


@torch.no_grad()
def shapes_of(traced: fx.GraphModule, model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Run the graph and the model; return every tensor's shape by its node's name.

    Raises:
        ConfigError: if the model fails on the example, or the graph computes something else.
    """
    device = next(model.parameters()).device
    example = example.to(device)
    recorder = _Recorder(traced)
    try:
        expected = copy.deepcopy(model).eval()(example.clone())
        result = recorder.run(example.clone())
    except Exception as error:  # of any kind: the model does not take the example
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"the model fails on an input of shape {tuple(example.shape)} ({reason}): give an "
            "example of the shape that it takes"
        ) from error
    scale = max(1e-6, float(expected.abs().max()))
    if not torch.allclose(result, expected, rtol=0.0, atol=SAME * scale):
        raise ConfigError(
            "the traced graph computes other scores than the model: its forward changes tensors "
            "in place that it reads again, or keeps a state; write these steps out of place"
        )
    return recorder.shapes


class _Recorder(fx.Interpreter):
    """Notes the shape of every tensor."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result
