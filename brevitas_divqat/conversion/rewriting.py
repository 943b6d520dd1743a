# SPDX-License-Identifier: BSD-3-Clause
"""From the graph of a float network to that of a quantized one.

A rectifier becomes a ``QuantReLU``, behind other sources of integers comes a signed quantizer (see
``analysis``), layers become Brevitas layers with the same weights under the same names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import brevitas.nn as qnn
from torch import fx, nn

from brevitas_divqat import quant
from brevitas_divqat.conversion.analysis import LAYERS, MOVERS, Analysis, Group
from brevitas_divqat.conversion.nodes import Pool, label, pool_of, relu_limit, scope_of
from brevitas_divqat.conversion.report import Change, Problem
from brevitas_divqat.conversion.tracing import fresh_name
from brevitas_divqat.models import Precision

__all__ = ["rewrite"]

INPUT_BITS = 8
MAX_POOLED_BITS = 8

KEPT = {
    "activation": (
        "stays in floating point: FINN builds ReLU only",
        "train the network with ReLU, or convert with replace_activations=True and retrain",
    ),
    "select": (
        "moves or picks values, for which FINN has no hardware",
        "use convolutions of 1 group, and additions or torch.cat of whole tensors",
    ),
    "other": (
        "stays in floating point: graph mode knows no integer form of it",
        "use Conv2d, Linear, BatchNorm, ReLU, pools, additions and torch.cat",
    ),
}
"""Kind of what is not converted to why, and what to do."""
ON_HOST = ("comes after the last layer and stays as it is", "leave it to the host")


@dataclass(frozen=True)
class _Levels:
    """The integers in a quantized tensor.

    Attributes:
        module: name of their quantizer or pool.
        signed: whether they may be negative.
        bits: their bit width.
    """

    module: str
    signed: bool
    bits: int


def rewrite(
    traced: fx.GraphModule,
    precision: Precision,
    *,
    join_bits: int,
    shapes: dict[str, tuple[int, ...]] | None,
    rectify: bool,
) -> tuple[fx.Graph, list[Change], list[Problem]]:
    """Quantize a traced network: replace and add modules in place, and return the new graph.

    Args:
        traced: the float network, see ``tracing.trace``.
        precision: bit widths and granularity of the weights' scales.
        join_bits: bits of signed branches of an addition or concatenation.
        shapes: of every tensor, by its node's name; None where they are not known.
        rectify: whether to replace other activations by ReLU.

    Returns:
        The graph of the quantized network, what was changed, and what FINN cannot build.
    """
    rewriting = _Rewriting(traced, precision, join_bits, shapes, rectify)
    return rewriting.run(), rewriting.changes, rewriting.problems


class _Rewriting:
    """One walk over a float network's graph that writes a new one."""

    def __init__(
        self,
        traced: fx.GraphModule,
        precision: Precision,
        join_bits: int,
        shapes: dict[str, tuple[int, ...]] | None,
        rectify: bool,
    ) -> None:
        self._traced = traced
        self._precision = precision
        self._join_bits = join_bits
        self._shapes = shapes
        self._modules = dict(traced.named_modules())
        self._plan = Analysis(traced.graph, self._modules, rectify=rectify)
        self._graph = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}  # of the old graph to the new one
        self._levels: dict[fx.Node, _Levels] = {}  # of the old graph's tensors
        self._named: set[str] = set()
        self.changes: list[Change] = []
        self.problems: list[Problem] = []

    def run(self) -> fx.Graph:
        for node in self._plan.nodes:
            self._made[node] = self._new(node)
            if node in self._plan.signed:
                self._quantize_signed(node)
        self._graph.lint()
        return self._graph

    def _new(self, node: fx.Node) -> fx.Node:
        kind = self._plan.kinds[node]
        if kind == "input":
            return self._input(node)
        if kind in LAYERS:
            return self._layer(node)
        if kind == "relu":
            return self._relu(node)
        if kind == "average":
            return self._average(node)
        if kind in ("add", "cat"):
            return self._join(node)
        if kind in MOVERS:
            source = self._plan.branches(node)[0]
            if source in self._levels:
                self._levels[node] = self._levels[source]
        self._report_kept(node)
        return self._copy(node)

    def _copy(self, node: fx.Node, instead: dict[fx.Node, fx.Node] | None = None) -> fx.Node:
        known = instead or {}
        return self._graph.node_copy(node, lambda n: known.get(n, self._made[n]))

    def _call(self, name: str, source: fx.Node) -> fx.Node:
        call = self._graph.call_module(name, (source,))
        call.meta = {"nn_module_stack": {name: (name, type(self._traced.get_submodule(name)))}}
        return call

    def _add(self, name: str, module: nn.Module) -> None:
        weights = next(self._traced.parameters())
        self._traced.add_submodule(name, module.to(weights.device))

    def _name_beside(self, node: fx.Node, base: str) -> str:
        """Return a free name in the scope in which a node was traced."""
        if node.op == "call_module":
            return fresh_name(self._traced, str(node.target).rpartition(".")[0], base)
        return fresh_name(self._traced, scope_of(node), base)

    def _was(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self._modules[str(node.target)]).__name__
        return str(getattr(node.target, "__name__", node.target))

    def _report_kept(self, node: fx.Node) -> None:
        kind = self._plan.kinds[node]
        if kind == "softmax" and self._plan.is_last(node):
            why, remedy = ON_HOST
            severity = "falls back to HLS"
        elif kind in KEPT or kind == "softmax":
            why, remedy = KEPT["other" if kind == "softmax" else kind]
            severity = "breaks FINN"
        else:
            return
        problem = Problem(label(node), f"{self._was(node)} {why}", remedy, severity)  # type: ignore[arg-type]
        self.problems.append(problem)

    # --- input and layers ----------------------------------------------------------------------

    def _input(self, node: fx.Node) -> fx.Node:
        entry = self._copy(node)
        if not node.users:
            return entry
        name = fresh_name(self._traced, "", "input_act")
        self._add(name, qnn.QuantIdentity(act_quant=quant.Uint8InputPerTensorConst))
        self._levels[node] = _Levels(name, False, INPUT_BITS)
        became = "QuantIdentity of scale 1/256 for pixels in [0, 1)"
        self.changes.append(Change(name, "", became, INPUT_BITS))
        return self._call(name, entry)

    def _layer(self, node: fx.Node) -> fx.Node:
        name = str(node.target)
        if name not in self._named:
            self._named.add(name)
            self._convert_layer(node, name)
        return self._copy(node)

    def _convert_layer(self, node: fx.Node, name: str) -> None:
        old = self._modules[name]
        last = self._plan.is_last(node)
        by_channel = self._precision.weight_scale == "channel" and not last
        edge = last or self._plan.is_first(node)
        bits = self._precision.edge if edge else self._precision.weight
        new = _quantized(old, bits, by_channel)
        self._add(name, new)
        new.train(old.training)
        scale = "one weight scale per output channel" if by_channel else "one weight scale"
        became = f"{type(new).__name__}, {scale}"
        self.changes.append(Change(name, type(old).__name__, became, bits))
        if last and old.bias is not None:
            self.problems.append(
                Problem(
                    name,
                    "the last layer has a bias, which no threshold absorbs",
                    "leave its addition to the host, or build the layer with bias=False",
                    "falls back to HLS",
                )
            )

    # --- activations ---------------------------------------------------------------------------

    def _activation_bits(self, node: fx.Node) -> int:
        if self._plan.is_of_pixels(node):
            return INPUT_BITS
        return self._precision.edge if self._plan.is_last(node) else self._precision.activation

    def _relu(self, node: fx.Node) -> fx.Node:
        group = self._plan.groups.get(node)
        shared = group if group is not None and not group.signed else None
        bits = self._activation_bits(node)
        name = shared.module if shared else ""
        if name:
            bits = self._bits_of(name)
            became = f"{name}, which it shares"
            self.changes.append(Change(label(node), self._was(node), became, bits))
        else:
            name = self._relu_name(node)
            self._add(name, _rectifier(relu_limit(node, self._modules), bits))
            self.changes.append(Change(name, self._was(node), "QuantReLU", bits))
        if shared:
            shared.module = name
        if self._plan.loses_clip(node):
            limit = relu_limit(node, self._modules)
            self.problems.append(
                Problem(
                    label(node),
                    f"clips at {limit:g}, other than what it is joined with: it keeps a quantizer "
                    "of its own, and the join adds a second, signed one",
                    "use one kind of activation in all branches of an addition or torch.cat",
                    "costs area",
                )
            )
        self._levels[node] = _Levels(name, False, bits)
        return self._call(name, self._made[self._plan.branches(node)[0]])

    def _relu_name(self, node: fx.Node) -> str:
        """Keep a module's name for its first call; others get one of their own."""
        if node.op == "call_module" and str(node.target) not in self._named:
            self._named.add(str(node.target))
            return str(node.target)
        base = str(node.target).rpartition(".")[2] if node.op == "call_module" else "relu"
        return self._name_beside(node, base)

    def _quantize_signed(self, node: fx.Node) -> None:
        """Put the group's signed quantizer, or one of its own, right behind a source."""
        name = self._signed_quantizer(node, self._plan.groups.get(node))
        self._levels[node] = _Levels(name, True, self._bits_of(name))
        self._made[node] = self._call(name, self._made[node])

    def _signed_quantizer(self, node: fx.Node, group: Group | None) -> str:
        if group is not None and group.module:
            return group.module
        base = str(node.target).rpartition(".")[2] if node.op == "call_module" else node.name
        name = self._name_beside(node, f"{base}_act")
        inner = self._precision.activation if group is None else self._join_bits
        bits = INPUT_BITS if self._plan.is_of_pixels(node) else inner
        bits = self._precision.edge if self._plan.is_last(node) else bits
        self._add(name, qnn.QuantIdentity(act_quant=quant.Int8ActPerTensorFloat, bit_width=bits))
        became = "signed QuantIdentity"
        if group is not None:
            group.module = name
            became += f", shared by {len(group.sources)} branches"
        self.changes.append(Change(name, "", became, bits))
        if self._plan.is_of_pixels(node) and self._plan.kinds[node] != "input":
            self.problems.append(
                Problem(
                    label(node),
                    "arithmetic on the pixels, before the first layer, costs a comparator with "
                    "255 thresholds per channel",
                    "train on pixels / 256 as they are: a BatchNorm behind the first layer learns "
                    "the rest",
                    "costs area",
                )
            )
        return name

    def _bits_of(self, name: str) -> int:
        module: Any = self._traced.get_submodule(name)
        return int(module.act_quant.bit_width())

    # --- joins and pools -----------------------------------------------------------------------

    def _join(self, node: fx.Node) -> fx.Node:
        """Copy a join; branches that hold another quantizer's integers are quantized again."""
        branches = self._plan.branches(node)
        if self._plan.reads_twice(node):
            self.problems.append(
                Problem(
                    label(node),
                    f"{self._was(node)} reads one tensor twice, for which export makes no graph",
                    "multiply by 2, or let a convolution make twice the channels",
                )
            )
        group = self._plan.groups[next(s for part in branches for s in self._plan.sources(part))]
        instead = {}
        for part in dict.fromkeys(branches):
            levels = self._levels.get(part)
            if levels is None or levels.module == group.module:
                continue
            if part not in group.readers:
                name = self._signed_quantizer(part, group)
                group.readers[part] = self._call(name, self._made[part])
            instead[part] = group.readers[part]
        if self._plan.kinds[node] == "cat" and group.module:
            bits = self._bits_of(group.module)
            self._levels[node] = _Levels(group.module, group.signed, bits)
        return self._copy(node, instead)

    def _average(self, node: fx.Node) -> fx.Node:
        source = self._plan.branches(node)[0]
        pool = pool_of(node, self._modules)
        assert pool is not None  # otherwise its kind is "other"
        size = self._shapes[source.name][-2:] if self._shapes else None
        levels = self._levels.get(source)
        module, bits = self._pool_module(node, pool, size, levels)
        if module is None:
            return self._copy(node)
        name = str(node.target) if node.op == "call_module" else ""
        if not name or name in self._named:
            name = self._name_beside(node, node.name.rpartition(".")[2])
        self._named.add(name)
        self._add(name, module)
        became = type(module).__name__
        kernel = getattr(module, "kernel_size", None)
        if kernel is not None:
            became += f" of kernel {kernel[0]}x{kernel[1]}, FLOOR"
        identity = isinstance(module, nn.Identity)
        self.changes.append(Change(name, self._was(node), became, None if identity else bits))
        value = self._made[source]
        if not identity:
            value = self._with_metadata(source)
        assert levels is not None
        self._levels[node] = levels if identity else _Levels(name, levels.signed, bits)
        call = self._call(name, value)
        return self._graph.call_method("flatten", (call, 1)) if pool.flat else call

    def _pool_module(
        self, node: fx.Node, pool: Pool, size: Any, levels: _Levels | None
    ) -> tuple[nn.Module | None, int]:
        """Return the integer form of a pool and its bits, or None where it has none."""
        if levels is None:
            self._refuse_pool(node, "an average of values that no quantizer made")
            return None, 0
        kernel, stride = pool.kernel, pool.stride
        if pool.size is not None and size is not None:
            wanted = tuple(w if w is not None else s for w, s in zip(pool.size, size, strict=True))
            if any(s % w for s, w in zip(size, wanted, strict=True)):
                self._refuse_pool(
                    node,
                    f"an adaptive pool from {size[0]}x{size[1]} to {wanted[0]}x{wanted[1]}, which "
                    "does not divide evenly",
                )
                return None, 0
            kernel = stride = (size[0] // wanted[0], size[1] // wanted[1])
        if kernel == (1, 1) and stride == (1, 1) and pool.exact:
            return nn.Identity(), levels.bits
        if not pool.exact:
            self._refuse_pool(node, "an average pool with padding, ceil_mode or a divisor")
            return None, 0
        bits = levels.bits
        if self._plan.feeds_last(node):
            # What the last layer reads has more levels: small averages would all become 0. Scores
            # that are averages keep all their bits.
            room = math.ceil(math.log2(math.prod(kernel))) if kernel else MAX_POOLED_BITS
            bits += room
            if not self._plan.is_last(node):
                bits = min(MAX_POOLED_BITS, bits)
        options = {
            "bit_width": bits,
            "float_to_int_impl_type": "floor",
            "return_quant_tensor": False,
        }
        if kernel is not None:
            return qnn.TruncAvgPool2d(kernel_size=kernel, stride=stride, **options), bits
        self.problems.append(
            Problem(
                label(node),
                "an adaptive pool, whose kernel is not known without a shape",
                "give quantize the shape of an image as example: FINN builds stated kernels only",
            )
        )
        return qnn.TruncAdaptiveAvgPool2d(pool.size, **options), bits

    def _refuse_pool(self, node: fx.Node, why: str) -> None:
        self.problems.append(
            Problem(
                label(node),
                f"{why}: stays in floating point",
                "use a square kernel that divides the map, without padding, or a strided "
                "convolution",
            )
        )

    def _with_metadata(self, node: fx.Node) -> fx.Node:
        """Return a tensor with scale and bit width, which the pool of integers needs."""
        if self._hand_on_metadata(node):
            return self._made[node]
        levels = self._levels[node]
        act_quant = quant.Int8ActPerTensorFloat if levels.signed else quant.Uint8ActPerTensorFloat
        module = qnn.QuantIdentity(
            act_quant=act_quant, bit_width=levels.bits, return_quant_tensor=True
        )
        name = self._name_beside(node, f"{node.name.rpartition('.')[2]}_act")
        self._add(name, module)
        self.changes.append(Change(name, "", "QuantIdentity before a pool", levels.bits))
        return self._call(name, self._made[node])

    def _hand_on_metadata(self, node: fx.Node) -> bool:
        """Let the quantizers of a tensor return ``QuantTensor``; tell whether that arrives."""
        kind = self._plan.kinds[node]
        if kind == "max_pool":
            return self._hand_on_metadata(self._plan.branches(node)[0])
        if kind == "cat":
            return all(self._hand_on_metadata(part) for part in self._plan.branches(node))
        if kind == "relu" or node in self._plan.signed:
            module: Any = self._traced.get_submodule(self._levels[node].module)
            module.return_quant_tensor = True
            return True
        return False


def _quantized(old: nn.Module, bits: int, by_channel: bool) -> nn.Module:
    """Return the Brevitas layer that takes over a layer's own parameters."""
    options: dict[str, Any] = {
        "bias": old.bias is not None,
        "weight_quant": quant.Int8WeightPerChannelFloat
        if by_channel
        else quant.Int8WeightPerTensorFloat,
        "weight_bit_width": bits,
    }
    new: Any
    if isinstance(old, nn.Conv2d):
        new = qnn.QuantConv2d(
            old.in_channels,
            old.out_channels,
            old.kernel_size,
            stride=old.stride,
            padding=old.padding,
            dilation=old.dilation,
            groups=old.groups,
            padding_mode=old.padding_mode,
            **options,
        )
    else:
        assert isinstance(old, nn.Linear)
        new = qnn.QuantLinear(old.in_features, old.out_features, **options)
    new.weight, new.bias = old.weight, old.bias
    return new


def _rectifier(limit: float | None, bits: int) -> nn.Module:
    """Return a ``QuantReLU`` whose scale starts at most at the limit; None for no limit."""
    if limit is None or math.isinf(limit):
        return qnn.QuantReLU(act_quant=quant.Uint8ActPerTensorFloat, bit_width=bits)
    return qnn.QuantReLU(act_quant=quant.Uint8ClippedActPerTensorFloat, bit_width=bits, limit=limit)
