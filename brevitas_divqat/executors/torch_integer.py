# SPDX-License-Identifier: BSD-3-Clause
"""The integer graph in torch, exact on every device.

Convolutions are matrix products of unfolded images: in float32 a sum of integers below 2^24 is
exact in any order, but not in the transformed domains that convolution kernels may choose, nor with
the short mantissas (TF32) that GPUs offer for products and that are switched off here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.export.graph_files import attributes_of, layer_name

__all__ = ["TorchInteger"]


class TorchInteger:
    """Maps (N, C, H, W) bytes to the float32 integers that leave an integer graph.

    Args:
        graph: the integer graph.
        device: of torch.

    Raises:
        GraphError: naming a node that is not of an integer graph.
        ConfigError: if there is no such device.
    """

    def __init__(self, graph: Any, device: str) -> None:
        from onnx import numpy_helper

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("torch finds no CUDA device: compute on the CPU")
        try:
            self._device = torch.zeros(1, device=device).device
        except (RuntimeError, AssertionError) as error:  # no such name, or no driver
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"device is {device!r} ({reason}): choose cpu or cuda") from error
        self._source = graph.graph.input[0].name
        self._output = graph.graph.output[0].name
        self._constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(self._device)
            for tensor in graph.graph.initializer
        }
        self._steps = []
        for node in graph.graph.node:
            attributes = attributes_of(node)
            if node.op_type not in OPERATORS:
                raise GraphError(
                    f"node {layer_name(node)} ({node.op_type}) is none of an integer graph: use "
                    "--executor reference"
                )
            if node.op_type == "QuantAvgPool2d":
                from qonnx.custom_op.registry import getCustomOp

                attributes["shift"] = getCustomOp(node).get_shifts()
            step = OPERATORS[node.op_type]
            self._steps.append((step, list(node.input), node.output[0], attributes))

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (N, K) integers as float32."""
        tensors = dict(self._constants)
        tensors[self._source] = torch.from_numpy(images.copy()).to(self._device).float()
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            for step, inputs, output, attributes in self._steps:
                tensors[output] = step(*(tensors[name] for name in inputs), **attributes)
        finally:
            torch.set_float32_matmul_precision(precision)
        result: NDArray[np.float32] = tensors[self._output].cpu().numpy()
        return result


def _conv(
    x: Tensor,
    weight: Tensor,
    *,
    group: int = 1,
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    **_: Any,
) -> Tensor:
    top, left, bottom, right = pads
    padded = functional.pad(x, (left, right, top, bottom))
    size = tuple(weight.shape[2:])
    height, width = (
        (length - dilation * (kernel - 1) - 1) // stride + 1
        for length, dilation, kernel, stride in zip(
            padded.shape[2:], dilations, size, strides, strict=True
        )
    )
    columns = functional.unfold(padded, size, dilation=tuple(dilations), stride=tuple(strides))
    columns = columns.view(len(x), group, -1, height * width)  # (N, G, K, P)
    rows = weight.reshape(group, weight.shape[0] // group, -1)  # (G, O, K)
    return torch.matmul(rows, columns).reshape(len(x), -1, height, width)


def _threshold(x: Tensor, thresholds: Tensor, *, out_bias: float = 0.0, **_: Any) -> Tensor:
    channels = x.movedim(1, 0).reshape(x.shape[1], -1).contiguous()
    limits = thresholds.expand(x.shape[1], -1).contiguous()
    counts = torch.searchsorted(limits, channels, right=True).to(x.dtype) + out_bias
    return counts.reshape(x.shape[1], x.shape[0], *x.shape[2:]).movedim(0, 1)


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: int = 0,
    **_: Any,
) -> Tensor:
    top, left, bottom, right = pads
    padded = functional.pad(x, (left, right, top, bottom), value=-torch.inf)
    return functional.max_pool2d(
        padded,
        tuple(kernel_shape),
        tuple(strides),
        dilation=tuple(dilations),
        ceil_mode=bool(ceil_mode),
    )


def _average_pool(x: Tensor, *, kernel: int, stride: int, shift: int, **_: Any) -> Tensor:
    windows = x.unfold(2, kernel, stride).unfold(3, kernel, stride)
    return torch.floor(windows.sum(dim=(-1, -2)) / 2**shift)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "MatMul": lambda x, weight, **_: x @ weight,
    "MultiThreshold": _threshold,
    "MaxPool": _max_pool,
    "Add": lambda x, y, **_: x + y,
    "QuantAvgPool2d": _average_pool,
    "Flatten": lambda x, **_: x.flatten(1),
}
