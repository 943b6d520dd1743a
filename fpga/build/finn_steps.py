# SPDX-License-Identifier: BSD-3-Clause
"""FINN build steps that turn an integer graph into hardware layers without touching an integer.

A build folder carries a copy of this file, which FINN runs: AMD's FINN through `build.py`, FINN+ by
the steps' dotted names. It imports nothing but numpy, qonnx and FINN, and each of them where it is
used. FINN's own streamlining is left out: an integer graph has no scale to move, and what does not
run cannot move a threshold.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "estimate_steps",
    "hardware_steps",
    "step_divqat_compare",
    "step_divqat_hardware",
    "step_divqat_lower",
]

FPGADATAFLOW = "finn.custom_op.fpgadataflow"
MODULES = (
    # AMD FINN holds all of them in one module, FINN+ each in its own.
    "convert_to_hw_layers",
    "convert_to_hw.conv_inp_gen",
    "convert_to_hw.duplicate_streams",
    "convert_to_hw.elementwise_binary_operation",
    "convert_to_hw.pool",
    "convert_to_hw.quantized_matrix_vector_activation",
    "convert_to_hw.thresholding",
    "convert_to_hw.vector_vector_activation",
)
# Step names of AMD FINN and FINN+ side by side; those that the installed one lacks are left out.
ESTIMATE = (
    "step_minimize_bit_width_initial",
    "step_create_dataflow_partition",
    "step_specialize_layers",
    "step_target_fps_parallelization",
    "step_apply_folding_config",
    "step_minimize_bit_width",
    "step_divqat_compare",
    "step_generate_estimate_reports",
)
HARDWARE = (
    "step_assign_ddr_weight_offsets",
    "step_generate_hardware",
    "step_hw_codegen",
    "step_hw_ipgen",
    "step_set_fifo_depths",
    "step_create_stitched_ip",
    "step_measure_rtlsim_performance",
    "step_out_of_context_synthesis",
    "step_prepare_synthesis",
    "step_synthesize_bitfile",
    "step_make_driver",
    "step_make_pynq_driver",
    "step_deployment_package",
)
IN_SHELL = (
    "step_prepare_synthesis",
    "step_synthesize_bitfile",
    "step_make_driver",
    "step_make_pynq_driver",
    "step_deployment_package",
)
# FINN+ registers these for other flows, too: its one step does their work.
REPLACED = {
    "step_hw_codegen": "step_generate_hardware",
    "step_hw_ipgen": "step_generate_hardware",
    "step_set_fifo_depths": "step_generate_hardware",
    "step_make_pynq_driver": "step_make_driver",
}


def estimate_steps(known: Any) -> list[str]:
    """List the steps up to FINN's estimates.

    Args:
        known: names of the steps that the installed FINN has: ``build_dataflow_step_lookup``.
    """
    ours = ["step_divqat_lower", "step_divqat_hardware"]
    return ours + [name for name in ESTIMATE if name in known or name == "step_divqat_compare"]


def hardware_steps(known: Any, *, shell: bool) -> list[str]:
    """List the steps from FINN's estimates to the deployment package.

    Args:
        known: names of the steps that the installed FINN has.
        shell: whether FINN has a shell for the board; else the steps end with synthesis of the
            accelerator alone.
    """
    return [
        name
        for name in HARDWARE
        if name in known and REPLACED.get(name) not in known and (shell or name not in IN_SHELL)
    ]


def step_divqat_lower(model: Any, cfg: Any) -> Any:
    """Write convolutions as matrix products and put channels last, everywhere.

    Args:
        model: an integer graph: (1, C, H, W) UINT8 pixels in, (1, K) integers out.
        cfg: unused.

    Returns:
        The same function, with one transposition at its input.
    """
    from finn.transformation.streamline.absorb import (
        AbsorbConsecutiveTransposes,
        AbsorbTransposeIntoMultiThreshold,
    )
    from finn.transformation.streamline.reorder import (
        MakeMaxPoolNHWC,
        MoveTransposePastFork,
        MoveTransposePastJoinAdd,
    )
    from qonnx.core.datatype import DataType
    from qonnx.transformation.change_datalayout import ChangeDataLayoutQuantAvgPool2d
    from qonnx.transformation.general import GiveUniqueNodeNames, RemoveUnusedTensors
    from qonnx.transformation.infer_data_layouts import InferDataLayouts
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul

    for name in [initializer.name for initializer in model.graph.initializer]:
        if model.get_tensor_datatype(name) == DataType["BIPOLAR"]:
            model.set_tensor_datatype(name, DataType["INT2"])  # RTL layers know no signs
    for first in (InferShapes, GiveUniqueNodeNames, InferDataTypes, InferDataLayouts):
        model = model.transform(first())
    model = model.transform(LowerConvsToMatMul())
    model = model.transform(ChangeDataLayoutQuantAvgPool2d())
    before = -1
    while (left := len(model.get_nodes_by_op_type("Transpose"))) != before:
        before = left
        for move in (
            MakeMaxPoolNHWC,
            AbsorbTransposeIntoMultiThreshold,
            MoveTransposePastFork,
            MoveTransposePastJoinAdd,
            AbsorbConsecutiveTransposes,
            InferDataLayouts,
        ):
            model = model.transform(move())
    for last in (InferShapes, InferDataTypes, RemoveUnusedTensors):
        model = model.transform(last())
    return model


def step_divqat_hardware(model: Any, cfg: Any) -> Any:
    """Replace every node by the hardware layer that computes the same.

    Args:
        model: what `step_divqat_lower` gave.
        cfg: unused.

    Returns:
        A graph of FINN's hardware layers, thresholds standing alone, behind the transposition (or
        flattening, without convolutions) of the image, which FINN leaves to the host.

    Raises:
        RuntimeError: if a node has no hardware layer in this FINN.
    """
    from finn.transformation.move_reshape import RemoveCNVtoFCFlatten
    from finn.transformation.streamline.absorb import AbsorbConsecutiveTransposes
    from qonnx.transformation.general import GiveReadableTensorNames, GiveUniqueNodeNames
    from qonnx.transformation.infer_data_layouts import InferDataLayouts
    from qonnx.transformation.infer_datatypes import InferDataTypes

    for names in (
        ("InferThresholdingLayer",),
        ("InferPool",),
        # Newest first: AMD FINN has renamed the layer that adds two streams twice.
        ("InferElementwiseBinaryOperation", "InferStreamingEltwise", "InferAddStreamsLayer"),
        ("InferQuantizedMatrixVectorActivation",),
        ("InferVectorVectorActivation",),
        ("InferConvInpGen",),
        ("InferDuplicateStreamsLayer",),
    ):
        model = model.transform(_find(names)())
    for transformation in (
        AbsorbConsecutiveTransposes,
        RemoveCNVtoFCFlatten,
        GiveUniqueNodeNames,
        GiveReadableTensorNames,
        InferDataLayouts,
        InferDataTypes,
    ):
        model = model.transform(transformation())
    for index, node in enumerate(model.graph.node):
        at_host = index == 0 and node.op_type in ("Flatten", "Transpose")
        if not (at_host or node.domain.startswith(FPGADATAFLOW)):
            raise RuntimeError(
                f"{node.name} ({node.op_type}) has no hardware layer in this version of FINN"
            )
    return model


def step_divqat_compare(model: Any, cfg: Any) -> Any:
    """Check that what FINN builds is the integer graph; FINN's own verification only prints.

    All thresholds must be those of `model.onnx`, up to clipping to the range of their input, and
    `input.npy` must give `expected_output.npy`, integer by integer. The layers must have the names
    that `folding_config.json` gives them, or FINN would fold others.

    Args:
        model: a graph of hardware layers, at any stage before code generation.
        cfg: unused.

    Returns:
        The model, unchanged.

    Raises:
        RuntimeError: if an integer or a name differs.
    """
    import numpy as np
    from finn.core.onnx_exec import execute_onnx
    from qonnx.core.modelwrapper import ModelWrapper

    folder = Path(__file__).resolve().parent
    folding = json.loads((folder / "folding_config.json").read_text())
    unknown = folding.keys() - {node.name for node in model.graph.node} - {"Defaults"}
    if unknown:
        raise RuntimeError(
            f"folding_config.json folds {', '.join(sorted(unknown))}, of which this FINN has none: "
            "replace folding_config_file by target_fps in the configuration"
        )
    compare_thresholds(ModelWrapper(str(folder / "model.onnx")), model)
    images = np.load(folder / "input.npy").astype(np.float32)
    expected = np.load(folder / "expected_output.npy")
    plain = without_backends(model)
    source, target = plain.graph.input[0].name, plain.graph.output[0].name
    shape = plain.get_tensor_shape(source)
    if len(shape) == 4 and shape[1:] != list(images.shape[1:]):
        images = images.transpose(0, 2, 3, 1)
    for image, scores in zip(images, expected, strict=True):
        image = image.reshape(shape)
        found = execute_onnx(plain, {source: image})[target].reshape(-1)
        if not np.array_equal(found, scores.reshape(-1)):
            raise RuntimeError(
                f"FINN's graph computes {found.tolist()}, the integer graph {scores.tolist()}"
            )
    return model


def without_backends(model: Any) -> Any:
    """Copy a graph with each layer in the form that FINN executes in Python."""
    from qonnx.core.modelwrapper import ModelWrapper

    plain = ModelWrapper(copy.deepcopy(model.model))
    for node in plain.graph.node:
        if node.domain.startswith(FPGADATAFLOW):
            node.op_type = node.op_type.removesuffix("_rtl").removesuffix("_hls")
            node.domain = FPGADATAFLOW
    return plain


def compare_thresholds(integer: Any, hardware: Any) -> None:
    """Check that a graph of hardware layers has the thresholds of an integer graph.

    Raises:
        RuntimeError: if thresholds are missing, or differ where an input can tell.
    """
    import numpy as np

    left = [
        integer.get_initializer(node.input[1])
        for node in integer.get_nodes_by_op_type("MultiThreshold")
    ]
    for node in hardware.graph.node:
        if not node.op_type.startswith(("Thresholding", "MultiThreshold")):
            continue
        values = hardware.get_initializer(node.input[1])
        given = hardware.get_tensor_datatype(node.input[0])

        def clip(steps: Any, given: Any = given) -> Any:
            return np.clip(steps, given.min(), given.max() + 1)

        for index, steps in enumerate(left):
            if steps.shape[1] == values.shape[1] and _same(clip(steps), clip(values)):
                del left[index]
                break
        else:
            raise RuntimeError(f"{node.name} has thresholds that the integer graph has not")
    if left:
        raise RuntimeError(f"{len(left)} of the integer graph's tables of thresholds are missing")


def _same(steps: Any, values: Any) -> bool:
    """Compare thresholds; a row for all channels equals as many equal rows."""
    import numpy as np

    rows = max(len(steps), len(values))
    if not {len(steps), len(values)} <= {1, rows}:
        return False
    return bool(np.all(steps == values))


def _find(names: tuple[str, ...]) -> Callable[[], Any]:
    """Return the first transformation of these names that the installed FINN has."""
    for name in names:
        for module in MODULES:
            try:
                found = importlib.import_module(f"finn.transformation.fpgadataflow.{module}")
            except ModuleNotFoundError:
                continue
            if hasattr(found, name):
                transformation: Callable[[], Any] = getattr(found, name)
                return transformation
    raise RuntimeError(f"this version of FINN has none of {', '.join(names)}")
