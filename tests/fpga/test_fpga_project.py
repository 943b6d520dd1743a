# SPDX-License-Identifier: BSD-3-Clause
"""The folder that FINN builds: its files, its steps, and that they leave every integer alone."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from brevitas_divqat.fpga.boards.table import BOARDS, board
from brevitas_divqat.fpga.build import finn_project, finn_steps
from brevitas_divqat.fpga.build.bitfile import run_finn
from brevitas_divqat.fpga.finn_environment import prepare, quiet
from numpy.typing import NDArray
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp

from brevitas_divqat.errors import ConfigError, HardwareError, ToolError
from brevitas_divqat.executors.integer import IntegerExecutor
from tests.fpga import finn_networks

Maker = Callable[[Path], Path]
NETWORKS = (finn_networks.chain, finn_networks.joined, finn_networks.signs)
CLOCK_NS = 10.0
FPS = 10_000.0

each_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda make: make.__name__)


@pytest.fixture
def finn(tmp_path: Path) -> None:
    pytest.importorskip("finn")
    prepare(tmp_path / "finn-files")


def run(model: ModelWrapper, image: NDArray[np.uint8]) -> NDArray[Any]:
    """Execute one (C, H, W) image, whatever the graph's layout."""
    from finn.core.onnx_exec import execute_onnx

    plain = finn_steps.without_backends(model)
    source, target = plain.graph.input[0].name, plain.graph.output[0].name
    shape = plain.get_tensor_shape(source)
    if len(shape) == 4 and shape[1:] != list(image.shape):
        image = image.transpose(1, 2, 0)
    context = {source: image.reshape(shape).astype(np.float32)}
    scores: NDArray[Any] = execute_onnx(plain, context)[target].reshape(-1)
    return scores


@dataclass(frozen=True)
class Table:
    """Thresholds of an integer graph.

    Attributes:
        sums: (sums, channels) below, at and above each threshold, within their range; or (sums, 1)
            where all channels share thresholds.
        channels: that are compared with them.
        levels: what sums yield: (sums, channels).
    """

    sums: NDArray[Any]
    channels: int
    levels: Callable[[NDArray[Any]], NDArray[Any]]


def tables_of(integer: ModelWrapper) -> list[Table]:
    tables = []
    for node in integer.get_nodes_by_op_type("MultiThreshold"):
        given = integer.get_tensor_datatype(node.input[0])
        steps = integer.get_initializer(node.input[1])
        sums = np.concatenate([steps.T - 1, steps.T, steps.T + 1])
        channels = integer.get_tensor_shape(node.input[0])[1]
        tables.append(
            Table(np.clip(sums, given.min(), given.max()), channels, partial(levels, integer, node))
        )
    return tables


def channel_axis(model: ModelWrapper, node: Any) -> int:
    last = len(model.get_tensor_shape(node.input[0])) - 1
    if node.op_type == "MultiThreshold" and last == 3:
        return last if getCustomOp(node).get_nodeattr("data_layout") == "NHWC" else 1
    return last


def levels(model: ModelWrapper, node: Any, sums: NDArray[Any]) -> NDArray[Any]:
    """Execute one node of thresholds on sums: (sums, channels) to (sums, channels)."""
    shape, axis = model.get_tensor_shape(node.input[0]), channel_axis(model, node)
    sizes = [1] * len(shape)
    sizes[axis] = -1
    rows = []
    for row in sums:
        inputs = np.broadcast_to(row.reshape(sizes), shape).astype(np.float32)
        context = {
            node.input[0]: inputs,
            node.input[1]: model.get_initializer(node.input[1]),
            node.output[0]: np.empty(shape, np.float32),
        }
        getCustomOp(node).execute_node(context, model.graph)
        rows.append(np.moveaxis(context[node.output[0]], axis, -1).reshape(-1, shape[axis])[0])
    return np.stack(rows)


def assert_same_levels(model: ModelWrapper, tables: list[Table]) -> None:
    """Every node of thresholds does, at each threshold, what one of the tables says.

    FINN may have found that sums have a narrower range: what is beyond does not occur.
    """
    plain = finn_steps.without_backends(model)
    left = list(tables)
    for node in plain.graph.node:
        if node.op_type not in ("MultiThreshold", "Thresholding"):
            continue
        given = plain.get_tensor_datatype(node.input[0])
        channels = plain.get_tensor_shape(node.input[0])[channel_axis(plain, node)]
        for index, table in enumerate(left):
            sums = np.clip(table.sums, given.min(), given.max())
            if channels == table.channels and np.array_equal(
                levels(plain, node, sums), table.levels(sums)
            ):
                del left[index]
                break
        else:
            pytest.fail(f"{node.name} yields other levels")
    assert not left


@each_network
def test_every_step_leaves_every_integer(network: Maker, tmp_path: Path, finn: None) -> None:
    executor = IntegerExecutor(network(tmp_path / "model.onnx"))
    images = np.random.default_rng(3).integers(0, 256, (6, *executor.image_shape), dtype=np.uint8)
    images[0], images[1] = 0, 255
    expected = executor.integers(images)
    assert len(np.unique(expected, axis=0)) == len(images)
    model = ModelWrapper(str(tmp_path / "model.onnx"))
    tables = tables_of(model)
    with quiet():
        for step in (finn_steps.step_divqat_lower, finn_steps.step_divqat_hardware):
            model = step(model, None)
            assert np.array_equal([run(model, image) for image in images], expected), step.__name__
            finn_steps.compare_thresholds(ModelWrapper(str(tmp_path / "model.onnx")), model)
            assert_same_levels(model, tables)
    ours = {n.op_type for n in model.graph.node if n.domain.startswith(finn_steps.FPGADATAFLOW)}
    assert {n.op_type for n in model.graph.node} - ours <= {"Transpose", "Flatten"}
    assert "Shuffle" not in ours


def hardware(network: Maker, folder: Path) -> ModelWrapper:
    """Make hardware layers, and the files that a comparison reads beside its module."""
    executor = IntegerExecutor(network(folder / "model.onnx"))
    image = np.full((1, *executor.image_shape), 77, np.uint8)
    np.save(folder / "input.npy", image)
    np.save(folder / "expected_output.npy", executor.integers(image))
    (folder / "folding_config.json").write_text('{"Defaults": {}}')
    model = ModelWrapper(str(folder / "model.onnx"))
    with quiet():
        return finn_steps.step_divqat_hardware(finn_steps.step_divqat_lower(model, None), None)


def steps_in(folder: Path) -> ModuleType:
    """Load the steps as FINN does: a file in the build folder."""
    copy = shutil.copy(finn_steps.__file__, folder / "divqat_steps.py")
    spec = importlib.util.spec_from_file_location("divqat_steps_copy", copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_comparison_passes_and_sees_any_threshold_off_by_one(
    tmp_path: Path, finn: None
) -> None:
    model = hardware(finn_networks.chain, tmp_path)
    steps = steps_in(tmp_path)
    assert steps.step_divqat_compare(model, None) is model
    tables = [n for n in model.graph.node if n.op_type == "Thresholding"]
    assert len(tables) == 2
    for node in tables:
        values = model.get_initializer(node.input[1])
        for row, column in ((0, 0), (1, 7), (len(values) - 1, 13)):
            for offset in (-1, 1):
                changed = values.copy()
                changed[row, column] += offset
                model.set_initializer(node.input[1], changed)
                with pytest.raises(RuntimeError, match="has thresholds that the integer graph"):
                    steps.step_divqat_compare(model, None)
        model.set_initializer(node.input[1], values)
    assert steps.step_divqat_compare(model, None) is model


def test_the_comparison_sees_other_weights_names_and_missing_tables(
    tmp_path: Path, finn: None
) -> None:
    model = hardware(finn_networks.chain, tmp_path)
    steps = steps_in(tmp_path)
    last = model.graph.node[-1]
    weights = model.get_initializer(last.input[1])
    model.set_initializer(last.input[1], -weights)
    with pytest.raises(RuntimeError, match="FINN's graph computes"):
        steps.step_divqat_compare(model, None)
    model.set_initializer(last.input[1], weights)
    (tmp_path / "folding_config.json").write_text('{"MVAU_rtl_9": {"PE": 2}}')
    with pytest.raises(RuntimeError, match="MVAU_rtl_9"):
        steps.step_divqat_compare(model, None)
    integer = ModelWrapper(str(tmp_path / "model.onnx"))
    integer.graph.node.append(integer.get_nodes_by_op_type("MultiThreshold")[0])
    with pytest.raises(RuntimeError, match="1 of the integer graph's tables"):
        steps.compare_thresholds(integer, model)


def test_thresholds_may_differ_where_no_input_can_tell(tmp_path: Path, finn: None) -> None:
    model = hardware(finn_networks.chain, tmp_path)
    integer = ModelWrapper(str(tmp_path / "model.onnx"))
    node = model.get_nodes_by_op_type("Thresholding")[0]
    values = model.get_initializer(node.input[1]).copy()
    top = integer.get_tensor_datatype(integer.graph.node[0].output[0]).max()
    assert values[0, -1] == top + 1
    # What FINN does once it knows how large sums are.
    narrow = DataType.get_smallest_possible(-top - 1)
    model.set_tensor_datatype(node.input[0], narrow)
    values[0, -1] += 100
    model.set_initializer(node.input[1], values)
    finn_steps.compare_thresholds(integer, model)


def test_steps_of_both_finns_are_picked_by_what_is_installed() -> None:
    shared = [
        "step_create_dataflow_partition",
        "step_specialize_layers",
        "step_target_fps_parallelization",
        "step_apply_folding_config",
        "step_minimize_bit_width",
        "step_generate_estimate_reports",
        "step_create_stitched_ip",
        "step_measure_rtlsim_performance",
        "step_out_of_context_synthesis",
        "step_synthesize_bitfile",
        "step_deployment_package",
        "step_hw_codegen",
        "step_hw_ipgen",
        "step_set_fifo_depths",
    ]
    amd = {*shared, "step_make_pynq_driver"}
    plus = {*shared, "step_minimize_bit_width_initial", "step_generate_hardware"} | {
        "step_prepare_synthesis",
        "step_make_driver",
    }
    assert finn_steps.estimate_steps(amd) == [
        "step_divqat_lower",
        "step_divqat_hardware",
        *shared[:5],
        "step_divqat_compare",
        "step_generate_estimate_reports",
    ]
    assert finn_steps.estimate_steps(plus)[2] == "step_minimize_bit_width_initial"
    assert finn_steps.hardware_steps(amd, shell=True) == [
        "step_hw_codegen",
        "step_hw_ipgen",
        "step_set_fifo_depths",
        "step_create_stitched_ip",
        "step_measure_rtlsim_performance",
        "step_out_of_context_synthesis",
        "step_synthesize_bitfile",
        "step_make_pynq_driver",
        "step_deployment_package",
    ]
    assert finn_steps.hardware_steps(plus, shell=True)[0] == "step_generate_hardware"
    assert finn_steps.hardware_steps(plus, shell=True)[-2] == "step_make_driver"
    assert finn_steps.hardware_steps(plus, shell=False)[-1] == "step_out_of_context_synthesis"


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_finn_takes_the_settings_of_every_board(name: str, finn: None) -> None:
    from finn.builder.build_dataflow_config import DataflowBuildConfig
    from finn.util.basic import alveo_part_map, pynq_part_map

    settings = finn_project._settings(board(name), CLOCK_NS)
    config = DataflowBuildConfig.from_json(json.dumps(settings))
    assert config._resolve_fpga_part() == board(name).generated_for
    if name in pynq_part_map:
        assert config.shell_flow_type == "vivado_zynq"
    elif name in alveo_part_map:
        assert config.shell_flow_type == "vitis_alveo"
    else:
        assert config.board is None
        assert "bitfile" not in settings["generate_outputs"]


@pytest.mark.parametrize(
    ("network", "plain"), [(NETWORKS[0], True), (NETWORKS[1], False), (NETWORKS[2], False)]
)
def test_chains_alone_are_left_to_finns_default_steps(
    network: Maker, plain: bool, tmp_path: Path
) -> None:
    model = ModelWrapper(str(network(tmp_path / "model.onnx")))
    assert finn_project._is_plain(model) is plain


def test_the_bitfile_stops_before_anything_runs_where_vivado_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("finn")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("XILINX_VIVADO", raising=False)
    (tmp_path / "build.py").write_text("raise SystemExit(1)")
    (tmp_path / "model.onnx").write_text("")
    with pytest.raises(ToolError, match="needs Vivado, which was not found") as caught:
        run_finn(tmp_path, "bitfile")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build.py", "model.onnx"]


def test_a_folder_that_finn_cannot_build_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("finn")
    with pytest.raises(HardwareError, match="holds no build.py and no model.onnx"):
        run_finn(tmp_path, "estimate")
    with pytest.raises(ConfigError, match="profile is 'all'"):
        run_finn(tmp_path, "all")  # type: ignore[arg-type]


FAKE_BUILD = """
import os, sys
from pathlib import Path
print(sys.argv[1], os.environ["XILINX_VIVADO"])
for name in {made}:
    path = Path("finn") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
raise SystemExit({code})
"""


@pytest.mark.parametrize("shell", [True, False])
def test_with_vivado_finns_flow_runs_to_its_end(
    shell: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("finn")
    vivado = tmp_path / "Vivado" / "2024.2"
    vivado.mkdir(parents=True)
    monkeypatch.setenv("XILINX_VIVADO", str(vivado))
    folder = tmp_path / "build"
    folder.mkdir()
    settings = {"shell_flow_type": "vivado_zynq"} if shell else {}
    (folder / "dataflow_build_config.json").write_text(json.dumps(settings))
    (folder / "model.onnx").write_text("")
    made = [
        "report/estimate_network_performance.json",
        "report/estimate_layer_resources.json",
        *(["deploy/bitfile", "deploy/driver"] if shell else ["stitched_ip"]),
    ]

    def script(made: list[str], code: int = 0) -> None:
        (folder / "build.py").write_text(FAKE_BUILD.format(made=made, code=code))

    script(made[:-1])
    with pytest.raises(ToolError, match=f"ended without {made[-1]}"):
        run_finn(folder)
    script(made)
    assert run_finn(folder) == folder / "finn"
    assert (folder / "finn.log").read_text().split() == ["bitfile", str(vivado)]
    script(made, code=1)
    with pytest.raises(ToolError, match="exit status 1, see"):
        run_finn(folder)


FINN_PLUS_COMMAND = """
import sys
from pathlib import Path
from brevitas_divqat.fpga.finn_environment import prepare
prepare(Path(sys.argv[1]))
import finn.interface.run_finn as command
import finn.util.settings
# Checks for Vivado and downloads FINN's other sources; what follows is the command as it is.
def without_vivado(settings, *_):
    finn.util.settings._SETTINGS = settings
command.prepare_finn = without_vivado
command.build(sys.argv[2:], standalone_mode=False)
"""


@pytest.mark.hardware
@each_network
def test_finn_plus_builds_the_folder_as_it_is_folded(
    network: Maker, tmp_path: Path, finn: None
) -> None:
    from brevitas_divqat.fpga.build.dataflow import to_dataflow
    from brevitas_divqat.fpga.build.estimates import estimate
    from brevitas_divqat.fpga.build.folding import fold

    folder = tmp_path / "build"
    folder.mkdir()
    network(folder / "model.onnx")
    target = board("Pynq-Z1")
    with quiet(tmp_path / "log"):
        dataflow = fold(
            to_dataflow(ModelWrapper(str(folder / "model.onnx"))),
            part=target.part,
            fps=FPS,
            clock_ns=CLOCK_NS,
        )
        estimates = estimate(dataflow, target.part, CLOCK_NS)
        finn_project.write_project(folder, dataflow, target, clock_ns=CLOCK_NS, estimates=estimates)
    executor = IntegerExecutor(folder / "model.onnx")
    image, scores = np.load(folder / "input.npy"), np.load(folder / "expected_output.npy")
    assert image.dtype == np.uint8
    assert np.array_equal(executor.integers(image), scores)
    assert executor.sha256 in (folder / "README.md").read_text()

    # AMD's way, and ours: build.py.
    cycles = {layer.name: layer.cycles for layer in estimates.layers}
    output = run_finn(folder, "estimate")
    assert json.loads((output / "report/estimate_layer_cycles.json").read_text()) == cycles
    images = np.random.default_rng(5).integers(0, 256, (4, *executor.image_shape), dtype=np.uint8)
    expected = executor.integers(images)
    tables = tables_of(ModelWrapper(str(folder / "model.onnx")))
    stages = sorted((output / "intermediate_models").glob("*.onnx"))
    stages = [stage for stage in stages if stage.stem != "dataflow_parent"]
    assert len(stages) == 10
    for stage in stages:
        model = ModelWrapper(str(stage))
        found = [run(model, image) for image in images]
        assert np.array_equal(found, expected), stage.stem
        assert_same_levels(model, tables)

    # FINN+'s way: finn build cfg.yaml model.onnx.
    shutil.rmtree(output)
    command = [sys.executable, "-c", FINN_PLUS_COMMAND, str(tmp_path / "temporary")]
    command += ["cfg.yaml", "model.onnx", "--stop", "step_generate_estimate_reports"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert json.loads((output / "report/estimate_layer_cycles.json").read_text()) == cycles
    steps = yaml.safe_load((folder / "cfg.yaml").read_text())["steps"]
    assert steps[-1] == "step_deployment_package"

    # AMD FINN's build_dataflow: its own steps, for chains alone.
    settings = json.loads((folder / "dataflow_build_config.json").read_text())
    assert ("steps" in settings) is not (network is finn_networks.chain)
    if network is finn_networks.chain:
        shutil.rmtree(output)
        command[4] = "dataflow_build_config.json"
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        assert json.loads((output / "report/estimate_layer_cycles.json").read_text()) == cycles
        last = ModelWrapper(str(output / "intermediate_models/step_minimize_bit_width.onnx"))
        finn_steps.compare_thresholds(ModelWrapper(str(folder / "model.onnx")), last)
        assert np.array_equal([run(last, image) for image in images], expected)
