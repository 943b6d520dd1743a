# SPDX-License-Identifier: BSD-3-Clause
"""From a module to a graph of single calls that computes the same, or the reason why there is none.

The graph is that of evaluation. Every change here keeps the network's function: what is done in
place is done out of place under a name of its own, rectifiers move in front of the max pool or
flattening that they follow, functional dropout becomes a module.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from brevitas_divqat.conversion.nodes import (
    OPERATORS,
    is_identity,
    is_in_place,
    kind_of,
    label,
    may_alias,
    out_of_place,
    relu_limit,
    scope_of,
    source_input,
)
from brevitas_divqat.errors import ConfigError

__all__ = ["fresh_name", "has_hooks", "shapes_of", "trace"]

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SAME = 1e-3
"""Of the largest score: float32 sums may differ, other functions differ by more."""


def trace(model: nn.Module) -> fx.GraphModule:
    """Return a copy of a network as a graph, in evaluation mode.

    Raises:
        ConfigError: if it is no float network on one device, or cannot be traced.
    """
    _check_model(model)
    twin = _without_hooks(model)
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
    _do_out_of_place(traced)
    _make_dropout_modules(traced)
    _rectify_early(traced)
    traced.graph.lint()
    traced.recompile()
    return traced


def _changing(target: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return record


class _Proxy(fx.Proxy):
    """Keeps ``+=`` and its kin apart from ``+``, since other names may hold the changed tensor."""

    __iadd__ = _changing(operator.iadd)
    __isub__ = _changing(operator.isub)
    __imul__ = _changing(operator.imul)
    __itruediv__ = _changing(operator.itruediv)


class _Tracer(fx.Tracer):
    """Keeps leaves of torchvision whole, and remembers where tracing ended."""

    def __init__(self) -> None:
        super().__init__()
        self.path = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

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
    if type(model) in (nn.Conv2d, nn.Linear):
        raise ConfigError(
            f"the model is itself a {type(model).__name__}: give nn.Sequential(model), so that the "
            "layer has a name"
        )
    for name, module in model.named_modules():
        _check_module(name or "the model", module)
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


def _check_module(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        raise ConfigError(f"{name} is compiled: give the module that it was compiled from")
    if type(module).__module__.split(".")[0] == "brevitas":
        raise ConfigError(
            f"{name} is quantized already ({type(module).__name__}): give the full-precision model"
        )
    if not type(module).__module__.startswith("torch.nn."):
        return
    for key in ("weight", "bias"):
        stored = key in module._parameters or key in module._buffers
        if not stored and isinstance(getattr(module, key, None), Tensor):
            raise ConfigError(
                f"{name}.{key} is computed by weight_norm, spectral_norm, prune or another "
                "parametrization: make it a parameter first (nn.utils.remove_weight_norm, "
                "nn.utils.remove_spectral_norm, nn.utils.prune.remove, or "
                "nn.utils.parametrize.remove_parametrizations)"
            )


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


Key = tuple[tuple[fx.Node, Any], ...]
"""Memory: the node that made it, then the pieces of it, each by its ``chunk`` and index."""
PARTITIONS = ("chunk", "split", "unbind", "tensor_split")


def _do_out_of_place(traced: fx.GraphModule) -> None:
    """Let whatever reads a tensor after it was changed in place read a changed copy of it.

    Raises:
        ConfigError: if another view of the changed memory is read afterwards.
    """
    modules = dict(traced.named_modules())
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    memory = _memory(traced, modules)
    roots: dict[fx.Node, fx.Node] = {}  # the first name of each tensor
    changed: list[fx.Node] = []
    for node in list(traced.graph.nodes):
        if "out" in node.kwargs:
            raise ConfigError(f"{label(node)} writes into out=…: use its result instead")
        in_place = is_in_place(node, modules)
        roots[node] = node
        if in_place or is_identity(node, modules):
            roots[node] = roots[source_input(node)]
        if in_place:
            changed.append(node)
    for node in changed:
        for other in [n for n in order if order[n] < order[node] and n.op != "get_attr"]:
            late = [u for u in other.users if order[u] > order[node] and not _asks_size(u, modules)]
            if roots[other] is roots[node]:
                for user in late:
                    user.replace_input_with(other, node)
            elif late and _overlap(memory[other], memory[node]):
                raise ConfigError(
                    f"{label(node)} changes {label(source_input(node))} in place, and "
                    f"{label(late[0])} reads the same memory afterwards, as {label(other)}: work "
                    "out of place there (inplace=False)"
                )
    numbers = [n for n in order if n.target in OPERATORS and n not in changed]
    for node in [*changed, *numbers]:
        name = label(node)
        if not out_of_place(node, modules):
            raise ConfigError(f"{name} changes a tensor in place: write it out of place")


def _asks_size(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return kind_of(node, modules) == "number"


def _memory(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> dict[fx.Node, frozenset[Key]]:
    """Return where each node's result may lie; of pieces, only those that do not overlap differ."""
    found: dict[fx.Node, frozenset[Key]] = {}
    for node in traced.graph.nodes:
        if not node.all_input_nodes or not may_alias(node, modules):
            found[node] = frozenset({((node, None),)})
            continue
        inputs = [source_input(node)] if is_in_place(node, modules) else node.all_input_nodes
        found[node] = frozenset().union(*(found[n] for n in inputs))
        if node.target is operator.getitem and isinstance(node.args[1], int):
            whole = source_input(node)
            if getattr(whole.target, "__name__", whole.target) in PARTITIONS:
                found[node] = frozenset({(*key, (whole, node.args[1])) for key in found[node]})
    return found


def _overlap(left: frozenset[Key], right: frozenset[Key]) -> bool:
    return any(_keys_overlap(a, b) for a in left for b in right)


def _keys_overlap(left: Key, right: Key) -> bool:
    """Tell pieces of one division, which are apart, from pieces of unlike ones."""
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position > 0 and a[0] is not b[0]
    return True


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
        clips = relu_limit(node, modules) != math.inf
        while True:
            before = source_input(node)
            moves = kind_of(before, modules) in ("max_pool", "pass") and len(before.users) == 1
            scaled = is_identity(before, modules)  # by dropout while training, before the clip
            if not moves or (clips and scaled):
                break
            inner = source_input(before)
            node.replace_all_uses_with(before)
            node.replace_input_with(before, inner)
            before.prepend(node)
            before.replace_input_with(inner, node)


@torch.no_grad()
def shapes_of(traced: fx.GraphModule, model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Run the graph and the model, with its hooks; return every tensor's shape by its node's name.

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
    if not expected.isfinite().all():
        raise ConfigError(
            "the model's scores on the example are not all finite: give an example of numbers in "
            "[0, 1), and look for NaN in the weights"
        )
    if not _alike(result, expected):
        hooked = [name for name, module in model.named_modules() if has_hooks(module)]
        if hooked and _alike(result, _without_hooks(model)(example.clone())):
            names = ", ".join(name or "the model" for name in hooked)
            raise ConfigError(
                f"hooks change the model's scores ({names}), and would be lost: write what they do "
                "into forward"
            )
        raise ConfigError(
            "the traced graph computes other scores than the model: its forward keeps a state, "
            "draws random numbers, or changes tensors in place that it reads again; write these "
            "steps out of place"
        )
    return recorder.shapes


def _alike(result: Tensor, expected: Tensor) -> bool:
    scale = max(1e-6, float(expected.abs().max()))
    return torch.allclose(result, expected, rtol=0.0, atol=SAME * scale)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module has hooks of its own."""
    return any(getattr(module, name) for name in HOOKS)


def _without_hooks(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that runs no hooks."""
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        for name in HOOKS:
            getattr(module, name).clear()
    return twin


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
