# SPDX-License-Identifier: BSD-3-Clause
"""Folding: what each hardware layer does in one clock cycle, from the frame rate asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import NodeProto
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.transformation.general import GiveUniqueNodeNames

from brevitas_divqat.errors import HardwareError

__all__ = ["fold", "layer_cycles"]

WEIGHT_WORD_BITS = 36
"""Weights that one processing element reads at a time: the width of a block RAM's port."""

NANOSECONDS = 1e9

ROUNDING = 1e-6
"""Of a cycle: what a rate that is a whole number of cycles may lose to rounding."""


def fold(dataflow: ModelWrapper, *, part: str, fps: float, clock_ns: float) -> ModelWrapper:
    """Choose a backend for each layer, and the least parallelism that reaches a frame rate.

    Args:
        dataflow: what `to_dataflow` gave; not changed.
        part: the device.
        fps: frames per second to reach, above 0.
        clock_ns: clock period in ns, above 0.

    Returns:
        The specialized and folded graph. Layers that FINN has in C++ alone keep FINN's names for
        them (``Pool_hls``): the RTL has modules of its own for these.

    Raises:
        HardwareError: if the rate cannot be reached, with the highest one and what limits it; or
            if a layer's weights fit no RTL layer.
    """
    from finn.transformation.fpgadataflow.set_folding import SetFolding
    from finn.transformation.fpgadataflow.specialize_layers import SpecializeLayers

    if not (0 < fps < math.inf and 0 < clock_ns < math.inf):
        raise HardwareError(f"fps is {fps}, the clock {clock_ns} ns: both must be numbers above 0")
    layers = {node.output[0]: node.doc_string for node in dataflow.graph.node}
    model = dataflow.transform(SpecializeLayers(part)).transform(GiveUniqueNodeNames())
    for node in model.graph.node:
        node.doc_string = layers[node.output[0]]
        if node.op_type in ("MVAU_hls", "Thresholding_hls"):
            raise HardwareError(
                f"{node.doc_string}: FINN has no RTL layer for these weights on {part}: expected "
                "2 to 8 bits in a narrow range (-7 to 7 for 4 bits); see `divqat check`"
            )
    target = math.floor(NANOSECONDS / (clock_ns * fps) + ROUNDING)
    model = model.transform(
        SetFolding(max(1, target), mvau_wwidth_max=WEIGHT_WORD_BITS, two_pass_relaxation=True)
    )
    _fold_kernels_back(model)
    _fold_last_windows_back(model)
    cycles = layer_cycles(model)
    slowest = max(cycles, key=lambda name: cycles[name])
    if cycles[slowest] > target:
        layer = next(node.doc_string for node in model.graph.node if node.name == slowest)
        highest = _rounded_down(NANOSECONDS / (clock_ns * cycles[slowest]))
        raise HardwareError(
            f"--fps {fps:g} leaves {target:,} clock cycles of {clock_ns:g} ns for a frame, and "
            f"{layer} ({slowest}) takes {cycles[slowest]:,} however it is folded: ask for at most "
            f"{highest} fps, or for a faster clock"
        )
    return model


def layer_cycles(model: ModelWrapper) -> dict[str, int]:
    """Return the clock cycles that each node of a folded graph takes for a frame."""
    return {node.name: int(getCustomOp(node).get_exp_cycles()) for node in model.graph.node}


def _rounded_down(rate: float) -> str:
    """Write a rate with six digits, such that it is reached when it is asked for."""
    digits = 5 - math.floor(math.log10(rate))
    return f"{math.floor(rate * 10.0**digits) / 10.0**digits:.{max(0, digits)}f}"


def _fold_kernels_back(model: ModelWrapper) -> None:
    """Let depthwise layers take one pixel of the window at a time, as their RTL module does."""
    for node, windows in _depthwise(model):
        getCustomOp(node).set_nodeattr("SIMD", 1)
        getCustomOp(windows).set_nodeattr("parallel_window", 0)


def _fold_last_windows_back(model: ModelWrapper) -> None:
    """Let windows that cover the whole map leave in parts: FINN cannot generate them otherwise."""
    for node in model.get_nodes_by_op_type("ConvolutionInputGenerator_rtl"):
        windows = getCustomOp(node)
        if list(windows.get_nodeattr("OFMDim")) == [1, 1]:
            windows.set_nodeattr("parallel_window", 0)


def _depthwise(model: ModelWrapper) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Yield each depthwise layer whose kernel is unfolded, and its sliding window."""
    for node in model.get_nodes_by_op_type("VVAU_hls") + model.get_nodes_by_op_type("VVAU_rtl"):
        if getCustomOp(node).get_nodeattr("SIMD") > 1:
            yield node, model.find_producer(node.input[0])
