# SPDX-License-Identifier: BSD-3-Clause
"""Integer thresholds of the float arithmetic between an accumulator and the next quantizer.

An accumulator a stands for the real number a * scale. What the exported graph does with it
(BatchNorm, bias, ReLU, Quant) is a monotone function of a, in floating point too, and so is
described whole by the least a that reaches each level of the quantizer. Those are found by
bisection with the exported graph's own nodes, run by qonnx's executor: nothing is derived anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arithmetic", "find_thresholds"]

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Arithmetic:
    """Nodes of the exported graph that are applied to each element by itself.

    Attributes:
        nodes: first to last; each takes what the one before gives as its first input, and
            constants.
        constants: by name.
        opsets: of the exported graph, by domain.
        rank: of the tensors; the second dimension is the channels.
    """

    nodes: tuple[Any, ...]
    constants: dict[str, NDArray[Any]]
    opsets: dict[str, int]
    rank: int

    def __call__(self, integers: Integers, scale: NDArray[np.float64]) -> Floats:
        """Apply the nodes to the correctly rounded products of ``integers`` and ``scale``.

        Args:
            integers: (P, C) of magnitude below 2^24: P values for each of C channels.
            scale: () or (C,).

        Returns:
            (P, C) float32.
        """
        real = (integers.astype(np.float64) * scale).astype(np.float32)
        if not self.nodes:
            return real
        if self.rank == 2:
            return self._run(real)
        # One image whose pixels are the P values, so that the operators meet them as they would
        # meet a feature map.
        shape = (1, real.shape[1], *((1,) * (self.rank - 3)), real.shape[0])
        answers = self._run(real.T.reshape(shape))
        return answers.reshape(real.shape[1], real.shape[0]).T

    def _constant(self, node: Any, name: str, rank: int) -> NDArray[Any]:
        """Return an operand, one for each channel or one for all, for tensors of a rank."""
        value = self.constants[name]
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            return value
        return value.reshape((1, -1, *(1,) * (rank - 2)) if value.size > 1 else ())

    def _run(self, values: Floats) -> Floats:
        from onnx import TensorProto, helper
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx

        def info(name: str) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape)

        chain, operands = [], {}
        for i, node in enumerate(self.nodes):
            link = type(node)()
            link.CopyFrom(node)
            link.input[0], link.output[0] = f"step{i}", f"step{i + 1}"
            for j, name in enumerate(node.input[1:], 1):
                if name:
                    link.input[j] = f"operand{i}_{j}"
                    operands[link.input[j]] = self._constant(node, name, values.ndim)
            chain.append(link)
        names = [f"step{i}" for i in range(len(chain) + 1)]
        graph = helper.make_graph(
            chain,
            "arithmetic",
            [info(names[0])],
            [info(names[-1])],
            value_info=[info(name) for name in names[1:-1]],
        )
        opsets = [helper.make_opsetid(domain, number) for domain, number in self.opsets.items()]
        model = ModelWrapper(helper.make_model(graph, opset_imports=opsets))
        for name, operand in operands.items():
            model.set_initializer(name, operand)
        result: Floats = execute_onnx(model, {names[0]: values})[names[-1]]
        return result


def find_thresholds(
    level: Callable[[Integers], Integers], low: Integers, high: Integers, levels: Sequence[int]
) -> Integers:
    """Find the least accumulator that reaches each level.

    Args:
        level: maps (P, C) accumulators to the (P, C) levels of the quantizer; non-decreasing in
            every channel.
        low: (C,) least accumulators.
        high: (C,) greatest accumulators.
        levels: the levels to find, L of them.

    Returns:
        (C, L) accumulators in low … high + 1; the latter where the level is never reached.
    """
    wanted = np.asarray(levels, np.int64)[:, None]
    below = np.broadcast_to(low - 1, (len(levels), len(low))).copy()  # does not reach it
    above = np.broadcast_to(high + 1, below.shape).copy()  # reaches it, or is out of range
    while (above - below > 1).any():
        middle = (below + above) // 2
        middle = np.clip(middle, low, high)  # where the search has ended already
        reached = level(middle) >= wanted
        open_ = above - below > 1
        above = np.where(open_ & reached, middle, above)
        below = np.where(open_ & ~reached, middle, below)
    return above.T
