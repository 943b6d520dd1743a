# SPDX-License-Identifier: BSD-3-Clause
"""Where a float network needs quantizers, and which of them have to be one and the same.

Every tensor that a convolution, a linear layer, a pool, an addition or a concatenation reads has to
hold integers of one scale. Going back from such a reader over what only moves values leads to the
nodes that make them, the *sources*. The sources of all branches of a join share one quantizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import fx, nn

from brevitas_divqat.conversion.nodes import Kind, argument, kind_of, relu_limit, source_input

__all__ = ["LAYERS", "MOVERS", "Analysis", "Group"]

LAYERS = ("conv", "linear")
JOINS = ("add", "cat")
READERS = (*LAYERS, "average", "max_pool", *JOINS)
"""Kinds of nodes that have to read integers."""
MOVERS = ("max_pool", "pass", "select")
"""Kinds of nodes whose result holds the very values that they read."""
QUANTIZED = ("relu", "average", "input", "parameter", "number")
"""Kinds of nodes behind which no signed quantizer is needed."""


@dataclass(eq=False)
class Group:
    """Sources that share one quantizer.

    Attributes:
        sources: the nodes whose results it quantizes.
        signed: whether its quantizer is: one source is no rectifier, or they clip at unlike limits,
            so that each rectifier keeps a quantizer of its own.
        module: name of the quantizer; empty until it is made.
        readers: the joined tensors, by the branch that is read.
    """

    sources: list[fx.Node]
    signed: bool
    module: str = ""
    readers: dict[fx.Node, fx.Node] = field(default_factory=dict)


class Analysis:
    """What a graph's nodes are and where they stand.

    Args:
        graph: the graph of a float network.
        modules: its modules by name.
        rectify: whether activations other than ReLU count as ReLU.

    Attributes:
        kinds: what each node is.
        groups: the group of each source that is joined.
        signed: the sources that need a signed quantizer right behind them.
    """

    def __init__(
        self, graph: fx.Graph, modules: dict[str, nn.Module], *, rectify: bool = False
    ) -> None:
        self.nodes = list(graph.nodes)
        self.kinds: dict[fx.Node, Kind] = {n: kind_of(n, modules) for n in self.nodes}
        if rectify:
            other = (n for n in self.nodes if self.kinds[n] == "activation")
            self.kinds |= dict.fromkeys(other, "relu")
        self._limits = {n: relu_limit(n, modules) or math.inf for n in self.nodes}
        self._behind = self._reached(forwards=True)
        self._weighted = self._find_weighted(modules)
        self._before = self._reached(forwards=False)
        self._sources = self._find_sources()
        self._feeding = self._find_feeding()
        self.groups = self._find_groups()
        self.signed = self._find_signed()

    def is_first(self, node: fx.Node) -> bool:
        """Tell whether no convolution or linear layer comes before a node."""
        return node not in self._behind

    def is_of_pixels(self, node: fx.Node) -> bool:
        """Tell whether a node computes something before the first weights, of whatever layer."""
        return node not in self._weighted

    def is_last(self, node: fx.Node) -> bool:
        """Tell whether no convolution or linear layer comes behind a node."""
        return node not in self._before

    def loses_clip(self, node: fx.Node) -> bool:
        """Tell whether a rectifier clips where all it is joined with are rectifiers as well.

        It would lose its limit in a quantizer that it shares with those that clip higher.
        """
        group = self.groups.get(node)
        return (
            group is not None
            and group.signed
            and math.isfinite(self._limits[node])
            and all(self.kinds[source] == "relu" for source in group.sources)
        )

    def feeds_last(self, node: fx.Node) -> bool:
        """Tell whether nothing but last layers, or none, come behind a node."""
        return node in self._feeding

    def _find_feeding(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if all(
                self.is_last(user) if self.kinds[user] in LAYERS else user in found
                for user in node.users
            ):
                found.add(node)
        return found

    def branches(self, node: fx.Node) -> list[fx.Node]:
        """Return the tensors that a node reads as values."""
        if self.kinds[node] == "cat":
            parts = argument(node, 0, "tensors", ())
            parts = parts if isinstance(parts, list | tuple) else (parts,)
            return [part for part in parts if isinstance(part, fx.Node)]
        if self.kinds[node] == "add":
            return list(node.all_input_nodes)
        return [source_input(node)]

    def reads_twice(self, node: fx.Node) -> bool:
        """Tell whether a join reads one tensor more than once."""
        read: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), read.append)
        return any(read.count(part) > 1 for part in self.branches(node))

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the nodes that make the values in a tensor, each once."""
        return self._sources[node]

    def _find_sources(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        """Go through the graph in its order, so that no path is walked twice."""
        found: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node in self.nodes:
            moves = self.kinds[node] in MOVERS or self.kinds[node] == "cat"
            parts = self.branches(node) if moves else []
            made = [source for part in parts for source in found[part]] if moves else [node]
            found[node] = tuple(dict.fromkeys(made))
        return found

    def _reached(self, *, forwards: bool) -> set[fx.Node]:
        """Collect the nodes that have a layer before them (``forwards``) or behind them."""
        found: set[fx.Node] = set()
        for node in self.nodes if forwards else reversed(self.nodes):
            if node in found or self.kinds[node] in LAYERS:
                found.update(node.users if forwards else node.all_input_nodes)
        return found

    def _find_weighted(self, modules: dict[str, nn.Module]) -> set[fx.Node]:
        """Collect the layers that graph mode knows or keeps, and what comes behind them."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            kept = self.kinds[node] == "other" and node.op == "call_module"
            if kept and any(True for _ in modules[str(node.target)].parameters()):
                found.add(node)
            if node in found or self.kinds[node] in LAYERS:
                found |= {node, *node.users}
        return found

    def _find_groups(self) -> dict[fx.Node, Group]:
        """Unite the sources of each join, and what these are united with already."""
        groups: dict[fx.Node, Group] = {}
        for node in self.nodes:
            if self.kinds[node] not in JOINS:
                continue
            members: dict[fx.Node, None] = {}
            for part in self.branches(node):
                for source in self.sources(part):
                    members |= dict.fromkeys(
                        groups[source].sources if source in groups else [source]
                    )
            unlike = len({self._limits[source] for source in members}) > 1
            signed = unlike or any(self.kinds[source] != "relu" for source in members)
            groups |= dict.fromkeys(members, Group(list(members), signed))
        return groups

    def _find_signed(self) -> set[fx.Node]:
        """Collect the sources of readers, unless they are quantized or belong to the scores."""
        return {
            source
            for node in self.nodes
            if self.kinds[node] in READERS
            for part in self.branches(node)
            for source in self.sources(part)
            if self.kinds[source] not in QUANTIZED
            and (not self.is_last(source) or self.kinds[node] == "average")
        }
