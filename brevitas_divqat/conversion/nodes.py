# SPDX-License-Identifier: BSD-3-Clause
"""What a node of a traced network is, whether it is a module, a function or a method."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import StochasticDepth

__all__ = [
    "OPERATORS",
    "Kind",
    "Pool",
    "argument",
    "is_identity",
    "is_in_place",
    "kind_of",
    "label",
    "may_alias",
    "out_of_place",
    "pool_of",
    "relu_limit",
    "scope_of",
    "source_input",
]

Kind = Literal[
    "input",
    "parameter",
    "output",
    "number",
    "conv",
    "linear",
    "norm",
    "relu",
    "activation",
    "max_pool",
    "average",
    "add",
    "cat",
    "affine",
    "pass",
    "select",
    "softmax",
    "other",
]
"""``affine``: arithmetic with numbers and parameters, which thresholds absorb; ``pass``: leaves
values and their order as they are (or scales them in training only); ``select``: moves or picks
values, which FINN does not build; ``number``: no tensor."""

MODULES: dict[type[nn.Module], Kind] = {
    nn.Conv2d: "conv",
    nn.Linear: "linear",
    nn.BatchNorm1d: "norm",
    nn.BatchNorm2d: "norm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool2d: "average",
    nn.AdaptiveAvgPool2d: "average",
    nn.Flatten: "pass",
    nn.Unflatten: "pass",
    nn.Identity: "pass",
    nn.Dropout: "pass",
    nn.Dropout2d: "pass",
    StochasticDepth: "pass",
    nn.ChannelShuffle: "select",
    nn.PixelShuffle: "select",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "softmax",
    **dict.fromkeys(
        (
            nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
            nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh,
        ),
        "activation",
    ),
}  # fmt: skip

FUNCTIONS: dict[Callable[..., Any], Kind] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, F.relu6), "relu"),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), "max_pool"),
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean), "average"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), "add"),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), "cat"),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze), "pass"),
    **dict.fromkeys((torch.chunk, torch.split, torch.transpose, torch.permute), "select"),
    **dict.fromkeys((operator.getitem, F.channel_shuffle, torch.channel_shuffle), "select"),
    **dict.fromkeys((F.softmax, F.log_softmax, torch.softmax, torch.log_softmax), "softmax"),
    **dict.fromkeys(
        (
            F.leaky_relu, F.leaky_relu_, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish,
            F.sigmoid, torch.sigmoid, F.hardsigmoid, F.tanh, torch.tanh, F.softplus, F.hardtanh,
            F.prelu, torch.prelu,
        ),
        "activation",
    ),
}  # fmt: skip

METHODS: dict[str, Kind] = {
    **dict.fromkeys(("relu", "relu_"), "relu"),
    **dict.fromkeys(("sigmoid", "tanh"), "activation"),
    "mean": "average",
    **dict.fromkeys(("add", "add_"), "add"),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "contiguous"), "pass"),
    **dict.fromkeys(("chunk", "split", "transpose", "permute"), "select"),
    **dict.fromkeys(("softmax", "log_softmax"), "softmax"),
}
CLAMPS = (torch.clamp, torch.clip, torch.clamp_min, torch.clamp_min_)
CLAMP_METHODS = ("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_")
NUMBERS = ("size", "dim", "ndimension", "numel")
OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
"""Operators that change their left side, and those that do not."""
IDENTITIES = (nn.Identity, nn.modules.dropout._DropoutNd, StochasticDepth)
IDENTITY_FUNCTIONS = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
)  # fmt: skip
FRESH: tuple[Kind, ...] = (
    "parameter", "number", "conv", "linear", "norm", "relu", "activation", "max_pool", "average",
    "add", "cat", "affine", "softmax", "input",
)  # fmt: skip
"""Kinds of nodes whose result has memory of its own, if they do not work in place."""


ARITHMETIC: tuple[Callable[..., Any], ...] = (
    operator.add,
    operator.iadd,
    operator.sub,
    operator.mul,
)
ARITHMETIC += (operator.truediv, torch.add, torch.sub, torch.mul, torch.div)
ARITHMETIC_METHODS = ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call, by position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def source_input(node: fx.Node) -> fx.Node:
    """Return the tensor that a node with one tensor input works on."""
    return node.all_input_nodes[0]


def scope_of(node: fx.Node) -> str:
    """Return the qualified name of the module in whose ``forward`` a node was traced, or ``""``."""
    scopes = list(node.meta.get("nn_module_stack", {}).values())
    path = str(scopes[-1][0]) if scopes else ""
    return path.rpartition(".")[0] if node.op == "call_module" else path


def label(node: fx.Node) -> str:
    """Name a node for people: a module by its qualified name, a call by its scope and function."""
    if node.op == "call_module":
        return str(node.target)
    return f"{scope}.{node.name}" if (scope := scope_of(node)) else node.name


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> Kind:
    """Tell what a node is."""
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "parameter"
    if node.op == "output":
        return "output"
    if _is_number(node):
        return "number"
    kind: Kind
    if node.op == "call_module":
        module = modules[str(node.target)]
        kind = MODULES.get(type(module), "other")
        return "relu" if relu_limit(node, modules) is not None else kind
    if relu_limit(node, modules) is not None:
        return "relu"
    if node.op == "call_method":
        kind = METHODS.get(str(node.target), "other")
    else:
        kind = FUNCTIONS.get(node.target, "other")  # type: ignore[arg-type]
    if kind == "average" and pool_of(node, modules) is None:
        return "other"
    if _is_affine(node):
        return "affine"
    if kind == "add" and node.kwargs.get("alpha", 1) != 1:
        return "other"
    return kind


def _is_number(node: fx.Node) -> bool:
    """Tell sizes and what is computed from them from tensors."""
    if node.op == "call_method" and node.target in NUMBERS:
        return True
    if node.op == "call_function":
        if node.target is getattr:
            return node.args[1] in ("shape", "ndim", "dtype", "device")
        inputs = node.all_input_nodes
        return bool(inputs) and all(_is_number(n) for n in inputs)
    return False


def _is_affine(node: fx.Node) -> bool:
    """Tell arithmetic of a tensor with numbers and parameters from that of two tensors."""
    names = ARITHMETIC_METHODS if node.op == "call_method" else ARITHMETIC
    tensors = [t for t in node.all_input_nodes if t.op != "get_attr" and not _is_number(t)]
    values = [value for value in node.args[:2] if isinstance(value, fx.Node)]
    twice = len(values) == 2 and values[0] is values[1]
    return node.target in names and len(tensors) == 1 and not twice


def relu_limit(node: fx.Node, modules: dict[str, nn.Module]) -> float | None:
    """Return where a rectifier clips, infinity where it does not, None for anything else."""
    if node.op == "call_module":
        module: Any = modules[str(node.target)]
        if type(module) is nn.ReLU:
            return float("inf")
        if type(module) in (nn.ReLU6, nn.Hardtanh) and module.min_val == 0:
            return _limit(module.max_val)
        return None
    if node.target is F.relu6:
        return 6.0
    if node.target is F.hardtanh:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif node.target in CLAMPS or (node.op == "call_method" and node.target in CLAMP_METHODS):
        low, high = argument(node, 1, "min"), argument(node, 2, "max", float("inf"))
    elif FUNCTIONS.get(node.target) == "relu" or (  # type: ignore[arg-type]
        node.op == "call_method" and METHODS.get(str(node.target)) == "relu"
    ):
        return float("inf")
    else:
        return None
    is_rectifier = isinstance(low, int | float) and low == 0
    return _limit(high) if is_rectifier and isinstance(high, int | float | None) else None


def _limit(high: float | None) -> float | None:
    if high is None:
        return float("inf")
    return float(high) if high > 0 else None


def is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a call changes its first argument."""
    if node.op in ("placeholder", "get_attr", "output") or _is_number(node):
        return False
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return _ends_in_place(str(node.target))
    if _is_operator(node):
        return node.target in OPERATORS
    return _ends_in_place(getattr(node.target, "__name__", "")) or bool(_in_place_option(node))


def _is_operator(node: fx.Node) -> bool:
    """Tell ``operator.and_`` and its kin, whose names do not mean that they work in place."""
    return getattr(node.target, "__module__", "") == "_operator"


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _in_place_option(node: fx.Node) -> Any:
    """Return the argument ``inplace`` of a function, which may stand at its position."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"]
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # written in C: none of these has the option
        return False
    return bound.arguments.get("inplace", False)


def out_of_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Make a call that changes its first argument one that does not; tell whether there is one."""
    if node.op == "call_module":
        module: Any = modules[str(node.target)]
        module.inplace = False
        return True
    if node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
        return hasattr(torch.Tensor, node.target)
    if node.target in OPERATORS:
        node.target = OPERATORS[node.target]
        return True
    if _in_place_option(node):
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
        node.args = tuple(
            False if name == "inplace" else value
            for name, value in zip(names, node.args, strict=False)
        )
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
        return True
    name = str(getattr(node.target, "__name__", "")).removesuffix("_")
    found = getattr(F, name, None) or getattr(torch, name, None)
    if found is None:
        return False
    node.target = found
    return True


def is_identity(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether evaluation returns the very tensor that a node reads."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], IDENTITIES)
    return node.op == "call_function" and node.target in IDENTITY_FUNCTIONS


def may_alias(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a node's result may lie in the memory of what it reads: if in doubt, yes."""
    if is_in_place(node, modules) or is_identity(node, modules):
        return True
    kind = kind_of(node, modules)
    if kind == "other":
        return node.op != "call_module" and not _is_operator(node)
    return kind not in FRESH


@dataclass(frozen=True)
class Pool:
    """An average pool.

    Attributes:
        kernel: (height, width) of the window; None for ``size``.
        stride: (height, width).
        size: (height, width) of the output of an adaptive pool; None for ``kernel``.
        flat: whether the result has no height and width.
        exact: whether neither padding, ``ceil_mode`` nor another divisor changes the average.
    """

    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    size: tuple[int | None, int | None] | None = None
    flat: bool = False
    exact: bool = True


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, int) or value is None:
        return value, value
    first, *rest = value
    return (first, rest[0]) if rest else (first, first)


def pool_of(node: fx.Node, modules: dict[str, nn.Module]) -> Pool | None:
    """Read the settings of an average pool; None for a mean over other axes."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return Pool(None, None, _pair(module.output_size))
        assert isinstance(module, nn.AvgPool2d)
        exact = (
            _pair(module.padding) == (0, 0)
            and not module.ceil_mode
            and module.divisor_override is None
        )
        return Pool(_pair(module.kernel_size), _pair(module.stride), exact=exact)
    if node.target is F.adaptive_avg_pool2d:
        return Pool(None, None, _pair(argument(node, 1, "output_size")))
    if node.target is F.avg_pool2d:
        kernel = _pair(argument(node, 1, "kernel_size"))
        stride = argument(node, 2, "stride")
        padding, ceil = argument(node, 3, "padding", 0), argument(node, 4, "ceil_mode", False)
        exact = _pair(padding) == (0, 0) and not ceil
        exact = exact and argument(node, 6, "divisor_override") is None
        return Pool(kernel, kernel if stride in (None, ()) else _pair(stride), exact=exact)
    axes = argument(node, 1, "dim", ())
    axes = tuple(axes) if isinstance(axes, tuple | list) else (axes,)
    if {axis % 4 if isinstance(axis, int) else -1 for axis in axes} != {2, 3}:
        return None
    return Pool(None, None, (1, 1), flat=not argument(node, 2, "keepdim", False))
