# SPDX-License-Identifier: BSD-3-Clause
"""What is opened, and what is refused in one line: every executor, every damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from qonnx.core.modelwrapper import ModelWrapper

from brevitas_divqat.errors import ConfigError, DataError, GraphError
from brevitas_divqat.executors import (
    ExecutorConfig,
    FastExecutor,
    IntegerExecutor,
    ReferenceExecutor,
    open_executor,
)
from brevitas_divqat.executors.loading import load_graph
from brevitas_divqat.export import GraphMetadata
from brevitas_divqat.export.metadata import METADATA_KEY
from tests import networks

KINDS: dict[str, Callable[[Path], Any]] = {
    "fast": FastExecutor,
    "reference": ReferenceExecutor,
    "integer": IntegerExecutor,
    "torch": lambda path: IntegerExecutor(path, device="cpu:0"),
    "default": open_executor,
}
of_exported = pytest.mark.parametrize("kind", ["fast", "reference", "default"])
of_integer = pytest.mark.parametrize("kind", ["integer", "torch", "reference", "default"])


def refused(kind: str, path: Path, *words: str) -> None:
    """Assert that a graph is refused with one line that names it and holds ``words``."""
    with pytest.raises(GraphError) as caught:
        KINDS[kind](path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message


def attempted(kind: str, path: Path) -> tuple[Any, str]:
    """Return an executor, or None and the one line that refuses the graph."""
    try:
        return KINDS[kind](path), ""
    except GraphError as error:
        message = str(error)
    assert "\n" not in message
    assert str(path) in message or message.startswith("node ")
    return None, message


def assert_same(executor: Any, path: Path) -> None:
    images = networks.images(executor.image_shape, 9)
    np.testing.assert_array_equal(executor(images), ReferenceExecutor(path)(images))


@pytest.fixture(scope="module")
def small(exported: Callable[[str], Path]) -> Path:
    return exported("quantized_scores")


@pytest.fixture(scope="module")
def small_integer(integer: Callable[[str], Path]) -> Path:
    return integer("quantized_scores")


# Damaged files


@pytest.mark.parametrize("per_mille", [0, 1, 5, 50, 333, 500, 900, 980, 990, 995, 998, 999])
@of_exported
def test_a_beginning_of_an_exported_graph_is_refused(
    small: Path, tmp_path: Path, kind: str, per_mille: int
) -> None:
    content = small.read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) * per_mille // 1000])
    refused(kind, tmp_path / "model.onnx")


@pytest.mark.parametrize("per_mille", [0, 5, 333, 980, 999])
@of_integer
def test_a_beginning_of_an_integer_graph_is_refused(
    small_integer: Path, tmp_path: Path, kind: str, per_mille: int
) -> None:
    content = small_integer.read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) * per_mille // 1000])
    refused(kind, tmp_path / "model.onnx")


@pytest.mark.parametrize("form", ["exported", "integer"])
def test_the_last_bytes_one_by_one(
    small: Path, small_integer: Path, tmp_path: Path, form: str
) -> None:
    """Where whole fields of the file are missing, what is left still parses."""
    path, kind = (small, "fast") if form == "exported" else (small_integer, "integer")
    content = path.read_bytes()
    for missing in range(1, 40):
        (tmp_path / "model.onnx").write_bytes(content[:-missing])
        executor, _ = attempted(kind, tmp_path / "model.onnx")
        if executor is not None:  # what is missing does not count
            assert_same(executor, path)


@of_exported
@pytest.mark.parametrize("part", ["opset_import", "ir_version", "producer_name"])
def test_a_graph_without_a_part_is_refused_or_served(
    small: Path, tmp_path: Path, kind: str, part: str
) -> None:
    model = onnx.load(small)
    model.ClearField(part)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    executor, _ = attempted(kind, path)
    if executor is not None:
        assert_same(executor, small)


Edit = Callable[[Any], None]


def without_inputs(model: Any) -> None:
    del model.graph.input[:]


def without_outputs(model: Any) -> None:
    del model.graph.output[:]


def without_initializers(model: Any) -> None:
    del model.graph.initializer[:]


def without_the_first_node(model: Any) -> None:
    del model.graph.node[0]


def reversed_nodes(model: Any) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def two_outputs(model: Any) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info(model.graph.node[1].output[0], TensorProto.FLOAT, None)
    )


def short_weights(model: Any) -> None:
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data) + len(t.float_data))
    tensor.raw_data = tensor.raw_data[:-5]
    del tensor.float_data[:1]


def shapeless_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def missing_attributes(model: Any) -> None:
    for node in model.graph.node:
        del node.attribute[:]


def missing_operands(model: Any) -> None:
    for node in model.graph.node:
        del node.input[1:]


def no_operands(model: Any) -> None:
    for node in model.graph.node:
        del node.input[:]


def foreign_names(model: Any) -> None:
    for node in model.graph.node:
        node.op_type = "Whatever"


DAMAGES = [
    without_inputs,
    without_outputs,
    without_initializers,
    without_the_first_node,
    reversed_nodes,
    two_outputs,
    short_weights,
    shapeless_input,
    missing_attributes,
    missing_operands,
    no_operands,
    foreign_names,
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_graphs_are_refused_or_do_what_they_did(
    small: Path, small_integer: Path, tmp_path: Path, kind: str, damage: Edit
) -> None:
    model = onnx.load(small_integer if kind in ("integer", "torch") else small)
    damage(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    executor, _ = attempted(kind, path)
    if executor is not None:  # what is left is a graph, or nobody reads what is new
        assert damage in (reversed_nodes, two_outputs, missing_attributes)
        assert_same(executor, path)


# Tensors in other files


def keep_outside(path: Path, target: Path, location: str, *, constant: bool = False) -> Path:
    """Move the greatest tensor of a graph to another file; return that file."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda t: len(numpy_helper.to_array(t).tobytes()))
    content = numpy_helper.to_array(tensor).tobytes()
    outside = (target.parent / location).resolve()
    tensor.raw_data = content
    if constant:  # as the attribute of a node
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(0, node)
        model.graph.initializer.remove(tensor)
        (attribute,) = model.graph.node[0].attribute
        tensor = attribute.t
    set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    target.write_bytes(model.SerializeToString())
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.write_bytes(content)
    return outside


@pytest.mark.parametrize("location", ["weights.bin", "data/weights.bin"])
@of_exported
def test_tensors_in_the_graph_s_folder_are_read(
    small: Path, tmp_path: Path, kind: str, location: str
) -> None:
    keep_outside(small, tmp_path / "model.onnx", location)
    executor = KINDS[kind](tmp_path / "model.onnx")
    images = networks.images(executor.image_shape, 9)
    np.testing.assert_array_equal(executor(images), ReferenceExecutor(small)(images))


@of_integer
def test_tensors_of_an_integer_graph_in_its_folder_are_read(
    small_integer: Path, tmp_path: Path, kind: str
) -> None:
    keep_outside(small_integer, tmp_path / "model.onnx", "weights.bin")
    executor = KINDS[kind](tmp_path / "model.onnx")
    images = networks.images(executor.image_shape, 9)
    np.testing.assert_array_equal(executor(images), ReferenceExecutor(small_integer)(images))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("location", ["../weights.bin", "a/../../weights.bin", "absolute"])
@of_exported
def test_tensors_outside_the_graph_s_folder_are_refused(
    small: Path, tmp_path: Path, kind: str, location: str, constant: bool
) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    if location == "absolute":
        location = str(tmp_path / "weights.bin")
    keep_outside(small, folder / "model.onnx", location, constant=constant)
    words = () if constant else (largest_tensor(small), location, "outside its folder")
    refused(kind, folder / "model.onnx", *words)


def largest_tensor(path: Path) -> str:
    tensors = onnx.load(path).graph.initializer
    return str(max(tensors, key=lambda t: len(numpy_helper.to_array(t).tobytes())).name)


@of_exported
def test_a_link_out_of_the_graph_s_folder_is_refused(
    small: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    outside = keep_outside(small, folder / "model.onnx", "weights.bin")
    outside.rename(tmp_path / "elsewhere.bin")
    outside.symlink_to(tmp_path / "elsewhere.bin")
    refused(kind, folder / "model.onnx")


@of_exported
def test_a_missing_file_of_tensors_is_named(small: Path, tmp_path: Path, kind: str) -> None:
    keep_outside(small, tmp_path / "model.onnx", "weights.bin").unlink()
    refused(kind, tmp_path / "model.onnx", largest_tensor(small), "weights.bin", "missing")


@of_exported
@pytest.mark.parametrize("length", [0, 1, 50])
def test_a_truncated_file_of_tensors_is_refused(
    small: Path, tmp_path: Path, kind: str, length: int
) -> None:
    outside = keep_outside(small, tmp_path / "model.onnx", "weights.bin")
    outside.write_bytes(outside.read_bytes()[:length])
    refused(kind, tmp_path / "model.onnx")


@of_exported
@pytest.mark.parametrize(
    ("key", "value"), [("offset", "much"), ("offset", "999999"), ("length", "-4")]
)
def test_a_damaged_place_in_a_file_of_tensors_is_refused(
    small: Path, tmp_path: Path, kind: str, key: str, value: str
) -> None:
    path = tmp_path / "model.onnx"
    keep_outside(small, path, "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    refused(kind, path)


# Graphs that are none of ours


def float_graph(path: Path) -> Path:
    """A network without quantizers, and without metadata."""
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "f", [shape], [output])
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_without_quantizers_is_refused(tmp_path: Path, kind: str) -> None:
    refused(kind, float_graph(tmp_path / "model.onnx"), "holds no quantizer", "Brevitas")


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_alone_make_no_deployed_graph(tmp_path: Path, kind: str) -> None:
    wrapper = ModelWrapper(str(float_graph(tmp_path / "model.onnx")))
    metadata = GraphMetadata((1, 2, 2), 256.0, ("a", "b"))
    wrapper.set_metadata_prop(METADATA_KEY, metadata.to_json())
    wrapper.save(str(tmp_path / "model.onnx"))
    refused(kind, tmp_path / "model.onnx", "holds no quantizer")


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_without_metadata_is_refused(
    small: Path, small_integer: Path, tmp_path: Path, kind: str
) -> None:
    model = onnx.load(small_integer if kind in ("integer", "torch") else small)
    del model.graph.metadata_props[:], model.metadata_props[:]
    onnx.save(model, tmp_path / "model.onnx")
    refused(kind, tmp_path / "model.onnx", "does not say how it is to be served", "export_qonnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"image_shape": (3, 8, 8)},
        {"image_shape": (1, 8, 9)},
        {"class_names": ("a", "b")},
        {"class_names": tuple("abcdefgh")},
    ],
    ids=["channels", "width", "few-classes", "many-classes"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_metadata_of_another_graph_are_refused(
    small: Path, small_integer: Path, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    wrapper = ModelWrapper(str(small_integer if kind in ("integer", "torch") else small))
    metadata = GraphMetadata.from_json(wrapper.get_metadata_prop(METADATA_KEY), "it")
    wrapper.set_metadata_prop(METADATA_KEY, GraphMetadata(**(vars(metadata) | changes)).to_json())
    wrapper.save(str(tmp_path / "model.onnx"))
    refused(kind, tmp_path / "model.onnx", "damaged metadata")


@pytest.mark.parametrize("operand", [1, 2, 3])
@of_exported
def test_a_dynamic_quantizer_is_refused_by_its_layer_s_name(
    small: Path, tmp_path: Path, kind: str, operand: int
) -> None:
    model = onnx.load(small)
    quantizers = [n for n in model.graph.node if n.op_type == "Quant"]
    last = quantizers[-1]
    last.doc_string = "features.7.act_quant"
    position = list(model.graph.node).index(last)
    node = helper.make_node("ReduceMax", [last.input[0]], ["computed"], keepdims=0)
    model.graph.node.insert(position, node)
    last = model.graph.node[position + 1]
    last.input[operand] = "computed"
    model.graph.value_info.append(helper.make_tensor_value_info("computed", TensorProto.FLOAT, ()))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    refused(kind, path, "features.7.act_quant", "computed", "static")


def test_a_scale_that_a_constant_node_holds_is_served(small: Path, tmp_path: Path) -> None:
    model = onnx.load(small)
    (scale,) = {n.input[1] for n in model.graph.node if n.op_type == "Quant"} & {
        model.graph.node[-1].input[1]
    }
    (tensor,) = (t for t in model.graph.initializer if t.name == scale)
    model.graph.node.insert(0, helper.make_node("Constant", [], [scale], value=tensor))
    model.graph.initializer.remove(tensor)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    images = networks.images((1, 8, 8), 5)
    np.testing.assert_array_equal(FastExecutor(path)(images), ReferenceExecutor(small)(images))


# What opens what


def test_a_graph_gets_its_own_executor(small: Path, small_integer: Path) -> None:
    assert type(open_executor(small)) is FastExecutor
    assert type(open_executor(small_integer)) is IntegerExecutor
    for path, kind, of in (
        (small, "fast", FastExecutor),
        (small, "reference", ReferenceExecutor),
        (small_integer, "integer", IntegerExecutor),
        (small_integer, "reference", ReferenceExecutor),
    ):
        assert type(open_executor(path, ExecutorConfig(executor=kind))) is of


def test_the_wrong_form_is_refused_with_the_right_executor_s_name(
    small: Path, small_integer: Path
) -> None:
    refused("fast", small_integer, "integer graph", "--executor integer")
    for kind in ("integer", "torch"):
        refused(kind, small, "exported graph", "--executor fast")


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(ConfigError, match="executor"):
        ExecutorConfig(executor="slow")  # type: ignore[arg-type]
    assert ExecutorConfig().executor is None


def test_every_executor_tells_the_file_s_hash_and_metadata(
    small: Path, small_integer: Path
) -> None:
    for path, kinds in ((small, ("fast", "reference")), (small_integer, ("integer", "torch"))):
        _, sha256, metadata = load_graph(path)
        for kind in kinds:
            executor = KINDS[kind](path)
            assert executor.sha256 == sha256
            assert executor.metadata == metadata
            assert executor.image_shape == metadata.image_shape == (1, 8, 8)
            assert executor.num_classes == networks.CLASSES
        assert KINDS[kinds[0]](str(path)).sha256 == sha256


def test_a_network_of_one_layer_is_served(tmp_path: Path) -> None:
    """Its integer graph holds no threshold."""
    from torch import nn

    from brevitas_divqat.export import export_qonnx
    from brevitas_divqat.export.integer import export_integer

    model = nn.Sequential(nn.Flatten(), networks.entry(), networks.linear(16)).eval()
    path = export_qonnx(model, tmp_path / "model.onnx", networks.metadata((1, 4, 4)))
    images = networks.images((1, 4, 4), 40)
    same = FastExecutor(path)(images), ReferenceExecutor(path)(images)
    np.testing.assert_array_equal(same[0].view(np.uint32), same[1].view(np.uint32))
    path = export_integer(path)
    expected = ReferenceExecutor(path)(images)
    for kind in ("integer", "torch", "default"):
        np.testing.assert_array_equal(KINDS[kind](path)(images), expected)


def test_an_exported_graph_s_output_scale_is_applied(small: Path, tmp_path: Path) -> None:
    wrapper = ModelWrapper(str(small))
    metadata = GraphMetadata.from_json(wrapper.get_metadata_prop(METADATA_KEY), "it")
    scaled = GraphMetadata(**(vars(metadata) | {"output_scale": 0.75}))
    wrapper.set_metadata_prop(METADATA_KEY, scaled.to_json())
    path = tmp_path / "model.onnx"
    wrapper.save(str(path))
    images = networks.images((1, 8, 8), 5)
    np.testing.assert_array_equal(FastExecutor(path)(images), ReferenceExecutor(path)(images))


# Images


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: x.astype(np.float32), id="float32"),
        pytest.param(lambda x: np.full(x.shape, np.nan, np.float32), id="nan"),
        pytest.param(lambda x: x.astype(np.int64), id="int64"),
        pytest.param(lambda x: x.astype(np.int8), id="int8"),
        pytest.param(lambda x: x > 3, id="bool"),
        pytest.param(lambda x: x.tolist(), id="list"),
        pytest.param(lambda x: x.astype(object), id="object"),
        pytest.param(lambda x: None, id="none"),
        pytest.param(lambda x: x[0], id="one-image"),
        pytest.param(lambda x: x[None], id="five-dimensions"),
        pytest.param(lambda x: x[..., :7], id="narrow"),
        pytest.param(lambda x: x.repeat(3, axis=1), id="rgb"),
        pytest.param(lambda x: x.reshape(len(x), -1), id="flat"),
        pytest.param(lambda x: x[:0, :, :3], id="none-of-another-shape"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(
    small: Path, small_integer: Path, spoil: Callable[[NDArray[np.uint8]], Any]
) -> None:
    images = networks.images((1, 8, 8), 3)
    executors = (
        FastExecutor(small, verify=False),
        IntegerExecutor(small_integer, verify=False),
        IntegerExecutor(small_integer, device="cpu:0", verify=False),
    )
    for executor in executors:
        with pytest.raises(DataError, match="expected") as caught:
            executor(spoil(images))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="expected"):
        executors[1].integers(spoil(images))
