# SPDX-License-Identifier: BSD-3-Clause
"""The files with which AMD's FINN and FINN+ build an accelerator from a build folder.

FINN builds `model.onnx`, the integer graph itself, with the steps of `finn_steps`; each build ends
with a comparison of all thresholds and of one image's scores. The folder runs without this package.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.executors.integer import IntegerExecutor
from brevitas_divqat.export.metadata import tool_versions
from brevitas_divqat.files import write_bytes, write_json, write_text

from ..finn_environment import finn_version, prepare
from . import finn_steps

if TYPE_CHECKING:
    from onnx import NodeProto
    from qonnx.core.modelwrapper import ModelWrapper

    from ..boards.table import Board
    from .estimates import Estimates

__all__ = ["FINN_OUTPUT", "write_project"]

FINN_OUTPUT = "finn"
"""Folder, in the build folder, into which FINN writes."""

CONFIG_FILE = "dataflow_build_config.json"
FOLDING_FILE = "folding_config.json"
SPECIALIZE_FILE = "specialize_layers.json"
STEPS_FILE = "divqat_steps.py"
SEED = 0
FOLDED = ("PE", "SIMD", "parallel_window")
WEIGHTED = ("MVAU", "VVAU")
# Below 4 bits FINN takes HLS unless it is asked for RTL.
IN_RTL = ("MVAU", "Thresholding")

BUILD_SCRIPT = '''\
"""Builds this folder with AMD's FINN or with FINN+: python build.py [estimate | bitfile]."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(profile="bitfile"):
    if profile not in ("estimate", "bitfile"):
        raise SystemExit(f"{profile!r} is no profile: choose estimate or bitfile")
    os.chdir(HERE)
    sys.path.insert(0, str(HERE))
    import divqat_steps
    from finn.builder.build_dataflow import build_dataflow_cfg
    from finn.builder.build_dataflow_config import DataflowBuildConfig
    from finn.builder.build_dataflow_steps import build_dataflow_step_lookup as known

    config = DataflowBuildConfig.from_json(Path("dataflow_build_config.json").read_text())
    names = divqat_steps.estimate_steps(known)
    if profile == "bitfile":
        names += divqat_steps.hardware_steps(known, shell=config.board is not None)
    config.steps = [getattr(divqat_steps, name, None) or known[name] for name in names]
    return build_dataflow_cfg("model.onnx", config)


if __name__ == "__main__":
    # FINN reports a failure as -1 and does not raise.
    raise SystemExit(1 if main(*sys.argv[1:2]) else 0)
'''

README = """\
# {network}: a folder that FINN builds

| | |
|---|---|
| model | `model.onnx`, integer graph, SHA-256 `{sha256}` |
| made from | exported graph, SHA-256 `{exported_sha256}` |
| board | {board} |
| clock | {clock} |
| estimated | {fps} |
| result | {goal} |

```
./run-docker.sh build_custom DIR       # AMD FINN, in its checkout: runs build.py
{simple}finn build cfg.yaml model.onnx         # FINN+
```

These need Vivado and write into `finn/`; `--stop step_generate_estimate_reports` ends FINN+ with
its estimates. Without Vivado, `divqat build` estimates by FINN's formulas: `estimates.txt` (FINN's
own report comes after it has narrowed types: LUT there are a few percent fewer).
{no_simple}
The steps in `divqat_steps.py` turn the integer graph into FINN's layers without streamlining, so
that no threshold is moved. Before hardware is generated, they compare every threshold with those
of `model.onnx`, and the scores of `input.npy` with `expected_output.npy`: a difference stops the
build.

Input: {shape} (channels, rows, columns) 8-bit pixels as they are; FINN's driver takes channels
last, or all pixels in the order of the graph where the first layer is fully connected. Output:
{outputs} integers; times {scale} they are the network's scores.

`folding_config.json` folds FINN's layers as the RTL beside it is folded; `specialize_layers.json`
asks for RTL where FINN has it.

Tested with FINN+ {finn} up to its estimates. The steps beyond were not run, and of AMD FINN only
parts of the development branch were read.

Made with
{versions}
"""

SIMPLE = "./run-docker.sh build_dataflow DIR     # AMD FINN, its own steps: no comparison\n"
NO_SIMPLE = """\

AMD FINN's `build_dataflow` does not build this network: its configuration cannot name steps of
one's own, which joins, averages, grouped convolutions and signs need. `build_custom` does.
"""


def write_project(
    folder: Path,
    dataflow: ModelWrapper,
    board: Board,
    *,
    clock_ns: float,
    estimates: Estimates,
) -> None:
    """Write what FINN needs into a build folder that holds ``model.onnx``, replacing older files.

    FINN's own steps are run as far as they need no Vivado and no folding: their names of the
    layers are those of the folding file.

    Args:
        folder: of the build.
        dataflow: the folded graph that the RTL is generated from; FINN is to fold alike.
        board: to build for.
        clock_ns: clock period in ns.
        estimates: of ``dataflow``, for the README.

    Raises:
        HardwareError: if FINN's layers are not those of ``dataflow``.
        ToolError: if FINN+ is missing.
        GraphError: if ``model.onnx`` is missing or no integer graph.
    """
    prepare()
    from finn.builder.build_dataflow_steps import build_dataflow_step_lookup as known
    from qonnx.core.modelwrapper import ModelWrapper

    executor = IntegerExecutor(folder / "model.onnx")
    image = _image(executor.image_shape)
    _write_array(folder / "input.npy", image)
    _write_array(folder / "expected_output.npy", executor.integers(image))
    write_text(folder / STEPS_FILE, Path(finn_steps.__file__).read_text(encoding="utf-8"))
    write_text(folder / "build.py", BUILD_SCRIPT)
    write_json(folder / SPECIALIZE_FILE, {"Defaults": {"preferred_impl_style": ["rtl", IN_RTL]}})

    model = ModelWrapper(str(folder / "model.onnx"))
    plain = _is_plain(model)
    settings = _settings(board, clock_ns)
    named = _until_specialized(model, settings, folder)
    write_json(folder / FOLDING_FILE, {"Defaults": {}} | _folding(dataflow, named))
    steps = [
        f"{Path(STEPS_FILE).stem}.{name}" if hasattr(finn_steps, name) else name
        for name in (
            *finn_steps.estimate_steps(known),
            *finn_steps.hardware_steps(known, shell=_in_shell(board)),
        )
    ]
    write_json(folder / CONFIG_FILE, settings | ({} if plain else {"steps": steps}))
    write_text(folder / "cfg.yaml", yaml.safe_dump(settings | {"steps": steps}, sort_keys=False))
    write_text(folder / "README.md", _readme(executor, board, estimates, plain=plain))


def _image(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(SEED).integers(0, 256, (1, *shape), dtype=np.uint8)


def _write_array(path: Path, values: NDArray[Any]) -> None:
    content = io.BytesIO()
    np.save(content, values)
    write_bytes(path, content.getvalue())


def _in_shell(board: Board) -> bool:
    return board.shell in ("vivado_zynq", "vitis_alveo")


def _is_plain(model: ModelWrapper) -> bool:
    """Tell whether FINN's default steps build the graph: a chain without grouped convolutions."""
    channels_last = {"Add", "QuantAvgPool2d"} & {node.op_type for node in model.graph.node}
    grouped = any(
        attribute.name == "group" and attribute.i > 1
        for node in model.get_nodes_by_op_type("Conv")
        for attribute in node.attribute
    )
    signs = any(
        model.get_tensor_datatype(initializer.name).name == "BIPOLAR"
        for initializer in model.graph.initializer
    )
    return not (channels_last or grouped or signs)


def _settings(board: Board, clock_ns: float) -> dict[str, Any]:
    """Return the settings that AMD's FINN and FINN+ share, by the names of both."""
    outputs = ["estimate_reports", "stitched_ip"]
    if _in_shell(board):
        target = {"board": board.name, "shell_flow_type": board.shell}
        outputs += ["bitfile", "pynq_driver", "deployment_package"]
    else:
        target = {"fpga_part": board.generated_for}
        outputs += ["out_of_context_synth"]
    return {
        "output_dir": FINN_OUTPUT,
        "synth_clk_period_ns": float(clock_ns),
        **target,
        "generate_outputs": outputs,
        "specialize_layers_config_file": SPECIALIZE_FILE,
        "folding_config_file": FOLDING_FILE,
        "standalone_thresholds": True,
        "minimize_bit_width": True,
        "auto_fifo_depths": True,
        "save_intermediate_models": True,
        "enable_build_pdb_debug": False,
    }


def _until_specialized(model: ModelWrapper, settings: dict[str, Any], folder: Path) -> ModelWrapper:
    """Run the steps up to the one that gives the layers the names by which they are folded."""
    from finn.builder.build_dataflow_config import DataflowBuildConfig
    from finn.builder.build_dataflow_steps import build_dataflow_step_lookup as known

    with tempfile.TemporaryDirectory(prefix="divqat-finn-") as scratch:
        config = DataflowBuildConfig.from_json(
            json.dumps(
                settings
                | {
                    "output_dir": scratch,
                    "specialize_layers_config_file": str(folder / SPECIALIZE_FILE),
                    "folding_config_file": None,
                }
            )
        )
        for name in finn_steps.estimate_steps(known):
            step: Callable[..., ModelWrapper] = getattr(finn_steps, name, None) or known[name]
            model = step(model, config)
            if name == "step_specialize_layers":
                break
    return model


def _folding(dataflow: ModelWrapper, named: ModelWrapper) -> dict[str, dict[str, int]]:
    """Return how FINN folds its layers so that they are folded as ours.

    Raises:
        HardwareError: if there is a layer in one graph that is not in the other.
    """
    from qonnx.custom_op.registry import getCustomOp

    ours = defaultdict(list)
    for place, node in _places(dataflow):
        ours[place].append(node)
    folding: dict[str, dict[str, int]] = {}
    for place, node in _places(named):
        if not ours[place]:
            raise HardwareError(
                f"FINN+ {finn_version()} builds a layer {node.name} that the RTL has not: "
                "install the version that this package is tested with"
            )
        source = getCustomOp(ours[place].pop(0))
        known = getCustomOp(node).get_nodeattr_types().keys() & source.get_nodeattr_types().keys()
        folding[node.name] = {
            name: int(source.get_nodeattr(name)) for name in FOLDED if name in known
        }
    left = [node.name for nodes in ours.values() for node in nodes]
    if left:
        raise HardwareError(
            f"FINN+ {finn_version()} builds no layer for {', '.join(left)}: install the version "
            "that this package is tested with"
        )
    return {name: values for name, values in folding.items() if values}


def _places(model: ModelWrapper) -> list[tuple[str, NodeProto]]:
    """Say of each layer where it is, in words that do not depend on names.

    A layer with weights is known by them; others by what is before and behind them, up to the next
    layers with weights.
    """

    @cache
    def words(index: int, forward: bool) -> str:
        node = model.graph.node[index]
        kind = node.op_type.removesuffix("_rtl").removesuffix("_hls")
        if kind in WEIGHTED:
            weights = np.ascontiguousarray(model.get_initializer(node.input[1]), np.float32)
            return f"{kind} {hashlib.sha256(weights.tobytes()).hexdigest()}"
        near = (
            model.find_direct_successors(node) if forward else model.find_direct_predecessors(node)
        )
        return f"{kind}({', '.join(sorted(words(indices[n.name], forward) for n in near or []))})"

    indices = {node.name: index for index, node in enumerate(model.graph.node)}
    return [
        (f"{words(index, False)} {words(index, True)}", node)
        for index, node in enumerate(model.graph.node)
    ]


def _readme(executor: IntegerExecutor, board: Board, estimates: Estimates, *, plain: bool) -> str:
    metadata = executor.metadata
    versions = tool_versions() | {"finn-plus": finn_version()}
    goal = (
        "bitfile, PYNQ driver and deployment package"
        if _in_shell(board)
        else f"IP, synthesised for {board.generated_for}: FINN has no shell for this board"
    )
    return README.format(
        network=f"{metadata.model} on {metadata.data}",
        sha256=executor.sha256,
        exported_sha256=metadata.exported_sha256 or "unknown",
        board=f"{board.name} ({board.part})",
        clock=f"{1e3 / estimates.clock_ns:g} MHz",
        fps=f"{estimates.fps:,.0f} images/s, one every {estimates.cycles_per_frame:,} cycles",
        goal=goal,
        simple=SIMPLE if plain else "",
        no_simple="" if plain else NO_SIMPLE,
        shape=" x ".join(str(size) for size in executor.image_shape),
        outputs=executor.num_classes,
        scale=repr(metadata.output_scale),
        finn=finn_version(),
        versions="\n".join(f"- {name} {number}" for name, number in versions.items()),
    )
