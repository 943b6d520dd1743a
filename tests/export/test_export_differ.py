# SPDX-License-Identifier: BSD-3-Clause
"""The differ finds nothing where nothing differs, and names the layer where something does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU, TruncAvgPool2d
from brevitas.quant import (
    Int8ActPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    SignedBinaryActPerTensorConst,
)
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from torch import Tensor, nn

from brevitas_divqat.errors import CheckpointError, ConfigError, DataError, GraphError
from brevitas_divqat.executors import ModuleExecutor, ReferenceExecutor
from brevitas_divqat.export import GraphMetadata, export_qonnx, to_integer_graph
from brevitas_divqat.export.differ import diff
from brevitas_divqat.export.differences import ROUNDING_STEPS, Diff
from brevitas_divqat.export.graph_traces import GraphTracer, load_form
from brevitas_divqat.export.metadata import METADATA_KEY
from brevitas_divqat.export.traces import ModelTracer, Observation, Quantizer, Trace
from brevitas_divqat.models import Precision, build
from brevitas_divqat.progress import Show
from brevitas_divqat.quant import (
    Int4WeightPerChannelFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Uint4ActPerTensorFloat,
    Uint8InputPerTensorConst,
)
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import calibrate
from brevitas_divqat.training.checkpoint import CheckpointInfo, save_checkpoint

Forms = tuple[nn.Module, ModelWrapper, ModelWrapper]
LENET_LAYERS = ["features.0", "features.3", "features.7", "classifier.2", "classifier.5"]
PAIRS = list(combinations(range(3), 2))
PAIR_NAMES = ["brevitas-exported", "brevitas-integer", "exported-integer"]


def pixels(count: int, *shape: int, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def described(shape: tuple[int, int, int], classes: int = 10) -> GraphMetadata:
    return GraphMetadata(
        image_shape=shape,
        pixel_divisor=256.0,
        class_names=tuple(f"class {i}" for i in range(classes)),
    )


def forms_of(model: nn.Module, shape: tuple[int, int, int], folder: Path) -> Forms:
    path = export_qonnx(model, folder / "model.onnx", described(shape))
    return model.eval(), ModelWrapper(str(path)), to_integer_graph(path)


def settled(model: nn.Module, *shape: int) -> nn.Module:
    images = torch.from_numpy(pixels(64, *shape, seed=0)).float() / 256
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(images)
    return model.eval()


def lenet(bits: int) -> nn.Module:
    with seeded(0):
        model = build("lenet5", (1, 8, 8), 10, precision=Precision(bits, bits), width=0.5)
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.5, 0.5)
    calibrate(model, pixels(256, 1, 8, 8, seed=0))
    return settled(model, 1, 8, 8)


@pytest.fixture(scope="module", params=(2, 3, 4), ids="{}bits".format)
def lenet_forms(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Forms:
    return forms_of(lenet(request.param), (1, 8, 8), tmp_path_factory.mktemp("lenet"))


@pytest.fixture(scope="module")
def forms(tmp_path_factory: Any) -> Forms:
    return forms_of(lenet(4), (1, 8, 8), tmp_path_factory.mktemp("forms"))


class Block(nn.Module):
    """Quantizes both branches by one quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(
            4, 4, 3, padding=1, bias=False, weight_quant=Int4WeightPerChannelFloat
        )
        self.bn = nn.BatchNorm2d(4)
        self.act = QuantReLU(act_quant=Uint4ActPerTensorFloat)
        self.add = QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.conv2 = QuantConv2d(4, 4, 1, bias=True, weight_quant=Int4WeightPerChannelFloat)

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(x)
        return torch.relu(x + self.add(self.conv2(self.act(self.bn(self.conv1(x))))))


class Residual(nn.Module):
    """Two blocks and an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = QuantIdentity(act_quant=Uint8InputPerTensorConst)
        self.first = QuantConv2d(
            3, 4, 3, padding=1, bias=False, weight_quant=Int8WeightPerChannelFloat
        )
        self.layer1 = nn.Sequential(Block(), Block())
        self.act = QuantReLU(bit_width=4, return_quant_tensor=True)
        self.pool = TruncAvgPool2d(kernel_size=4, bit_width=4, float_to_int_impl_type="floor")
        self.last = QuantLinear(16, 10, bias=False, weight_quant=Int8WeightPerTensorFloat)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.layer1(self.first(self.entry(x))))
        return self.last(torch.flatten(self.pool(x), 1))


RESIDUAL_CALLS = [
    ("entry", 1),
    ("layer1.0.add", 1),
    ("layer1.0.act", 1),
    ("layer1.0.add", 2),
    ("layer1.1.add", 1),
    ("layer1.1.act", 1),
    ("layer1.1.add", 2),
    ("act", 1),
    ("pool", 1),
]


@pytest.fixture(scope="module")
def residual_forms(tmp_path_factory: Any) -> Forms:
    with seeded(0):
        model = settled(Residual(), 3, 8, 8)
    return forms_of(model, (3, 8, 8), tmp_path_factory.mktemp("residual"))


# --- forms of one network ----------------------------------------------------------------------


def assert_differs_by_rounding_alone(found: Diff) -> None:
    """Some element may lie on a threshold; none may lie beside one."""
    for row in found.tensors:
        assert row.same_quantizer
        assert row.first_here <= 2
        assert all(
            far is None or far <= ROUNDING_STEPS or margin.unit == "accumulator"
            for offender in row.offenders
            for far, margin in zip(row.farthest, offender.margins, strict=True)
            if margin is not None
        )
    assert found.weights == ()


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_NAMES)
def test_the_three_forms_of_lenet_agree(lenet_forms: Forms, pair: tuple[int, int]) -> None:
    images = pixels(60, 1, 8, 8)
    found = diff(*(lenet_forms[i] for i in pair), images)
    assert [row.layer for row in found.tensors] == LENET_LAYERS
    assert [row.call for row in found.tensors] == [1] * 5
    assert_differs_by_rounding_alone(found)
    assert found.images == 60
    assert found.tensors[0].size == 60 * 64
    assert found.scores.accuracy is None


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_NAMES)
def test_the_three_forms_of_a_residual_network_agree(
    residual_forms: Forms, pair: tuple[int, int]
) -> None:
    found = diff(*(residual_forms[i] for i in pair), pixels(60, 3, 8, 8))
    assert [(row.layer, row.call) for row in found.tensors] == RESIDUAL_CALLS
    assert [row.kind for row in found.tensors] == ["activation"] * 8 + ["trunc"]
    assert [row.quantizers[0].signed for row in found.tensors[:4]] == [False, True, False, True]
    assert_differs_by_rounding_alone(found)


@pytest.mark.parametrize("which", range(3), ids=("brevitas", "exported", "integer"))
def test_a_form_equals_itself(residual_forms: Forms, which: int) -> None:
    form = residual_forms[which]
    found = diff(form, form, pixels(20, 3, 8, 8))
    assert found.first is None
    assert all(row.identical and row.images == row.first_here == 0 for row in found.tensors)
    assert (found.scores.images, found.scores.max_difference, found.scores.changes) == (0, 0.0, ())
    assert "All 9 quantized tensors are equal on 20 images." in str(found)
    assert "All scores are equal." in str(found)


def test_scores_are_those_of_the_executors(forms: Forms, tmp_path: Path) -> None:
    model, exported, _ = forms
    images = pixels(30, 1, 8, 8)
    exported.save(str(tmp_path / "model.onnx"))
    trace = GraphTracer(exported).trace(images)
    assert (trace.scores[:30] == ReferenceExecutor(tmp_path / "model.onnx")(images)).all()
    executor = ModuleExecutor(model, image_shape=(1, 8, 8), num_classes=10)
    assert (ModelTracer(model, (1, 8, 8)).trace(images).scores == executor(images)).all()


def test_neither_order_nor_batch_size_matters(forms: Forms) -> None:
    images = pixels(101, 1, 8, 8)
    wrong = moved_threshold(forms[2])[0]
    one, other = (diff(forms[2], wrong, images, batch_size=size) for size in (40, 256))
    assert one == other
    back = diff(wrong, forms[2], images)
    assert [row.elements for row in back.tensors] == [row.elements for row in one.tensors]
    assert back.first is not None
    assert one.first is not None
    assert back.first.offenders[0].integers == one.first.offenders[0].integers[::-1]


def test_what_is_compared_stays_as_it_was(forms: Forms) -> None:
    model, exported, integer = forms
    model.train()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    before = [g.model.SerializeToString() for g in (exported, integer)]
    diff(model, exported, pixels(2, 1, 8, 8))
    diff(model, integer, pixels(2, 1, 8, 8))
    assert model.training
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert [g.model.SerializeToString() for g in (exported, integer)] == before
    model.eval()


# --- damage ------------------------------------------------------------------------------------


def node_of(graph: ModelWrapper, layer: str, operator: str) -> Any:
    (node,) = [n for n in graph.graph.node if (n.doc_string, n.op_type) == (layer, operator)]
    return node


def moved_threshold(
    integer: ModelWrapper, layer: str = "features.7", by: int = 1
) -> tuple[ModelWrapper, int]:
    """Raise each channel's threshold of level 3; return that level, too."""
    wrong = copy.deepcopy(integer)
    name = node_of(wrong, layer, "MultiThreshold").input[1]
    thresholds = wrong.get_initializer(name).copy()
    thresholds[:, 2] += by
    wrong.set_initializer(name, thresholds)
    wrong.set_tensor_datatype(name, DataType["INT32"])
    return wrong, 3


def changed_weight(graph: ModelWrapper, by: float) -> ModelWrapper:
    wrong = copy.deepcopy(graph)
    weights = node_of(wrong, "features.5", "Conv").input[1]
    if wrong.get_initializer(weights) is None:
        weights = wrong.find_producer(weights).input[0]
    values = wrong.get_initializer(weights).copy()
    values[0, 0, 2, 2] += by if values[0, 0, 2, 2] < 0 else -by
    wrong.set_initializer(weights, values)
    return wrong


def test_a_moved_threshold_is_named_with_its_distance(forms: Forms) -> None:
    wrong, level = moved_threshold(forms[2])
    found = diff(forms[2], wrong, pixels(120, 1, 8, 8), examples=1000)
    row = found.first
    assert row is not None
    assert (row.layer, row.call, row.kind, row.max_step) == ("features.7", 1, "activation", 1)
    assert row.images == row.first_here > 0
    assert row.farthest == (0.0, 1.0)
    assert len(row.offenders) == row.elements > 1
    for offender in row.offenders:
        assert offender.integers == (level, level - 1)
        assert [m and m.distance for m in offender.margins] == [0.0, -1.0]
        assert [m and m.unit for m in offender.margins] == ["accumulator", "accumulator"]
    assert found.weights == ()
    assert ("features.5", "Conv") in row.path
    assert "exactly the threshold" in str(found)
    assert "Both forms count in integers" in str(found)


@pytest.mark.parametrize("other", [0, 1], ids=("brevitas", "exported"))
def test_a_moved_threshold_is_seen_from_the_float_forms(forms: Forms, other: int) -> None:
    wrong, level = moved_threshold(forms[2])
    found = diff(forms[other], wrong, pixels(120, 1, 8, 8))
    row = found.first
    assert row is not None
    assert row.layer == "features.7"
    for offender in row.offenders:
        real, integer = offender.margins
        assert real is not None
        assert integer is not None
        assert (real.unit, real.threshold, integer.distance) == ("step", level - 0.5, -1.0)
        assert real.value >= level - 0.5 - 1e-5  # the forms part at one accumulator
    assert "above the threshold 2.5" in str(found)


@pytest.mark.parametrize("form", [1, 2], ids=("exported", "integer"))
def test_a_changed_weight_is_named(forms: Forms, form: int) -> None:
    scale = 1.0
    if form == 1:
        weights = forms[1].find_producer(node_of(forms[1], "features.5", "Conv").input[1])
        scale = float(np.ravel(forms[1].get_initializer(weights.input[1]))[0])
    wrong = changed_weight(forms[form], 2 * scale)
    for other in forms:
        found = diff(other, wrong, pixels(50, 1, 8, 8))
        assert found.first is not None
        assert found.first.layer == "features.7"
        assert [(w.layer, w.elements) for w in found.weights] == [("features.5", 1)]
        assert {o.element[0] for o in found.first.offenders} == {0}
        if other is not forms[2]:  # what a quantizer reads has passed the ReLU
            assert all(o.margins[0].value >= 0 for o in found.first.offenders if o.margins[0])
            assert any(o.margins[0].value == 0 for o in found.first.offenders if o.margins[0])
    assert "The weights of features.5 differ: 1 of" in str(found)


def test_weights_that_the_integer_graph_turned_around_are_the_same(tmp_path: Path) -> None:
    model = lenet(3)
    model.features[2].weight.data[1] *= -1
    three = forms_of(model, (1, 8, 8), tmp_path)
    weights = [load.weights() for load in (GraphTracer(three[1]), GraphTracer(three[2]))]
    assert (weights[0]["features.1"][1] == -weights[1]["features.1"][1]).all()
    assert set(weights[0]) == set(ModelTracer(model, (1, 8, 8)).weights())
    for other in three[:2]:
        assert_differs_by_rounding_alone(diff(other, three[2], pixels(40, 1, 8, 8)))


def test_a_moved_batchnorm_is_named(forms: Forms) -> None:
    wrong = copy.deepcopy(forms[1])
    name = node_of(wrong, "classifier.4", "BatchNormalization").input[2]
    bias = wrong.get_initializer(name).copy()
    bias[3] += 0.5
    wrong.set_initializer(name, bias)
    found = diff(forms[0], wrong, pixels(50, 1, 8, 8))
    row = found.first
    assert row is not None
    assert row.layer == "classifier.5"
    assert row.path == (
        ("classifier.3", "MatMul"),
        ("classifier.4", "BatchNormalization"),
        ("classifier.5", "Relu"),
    )
    assert {offender.element for offender in row.offenders} == {(3,)}
    assert max(far for far in row.farthest if far is not None) > ROUNDING_STEPS
    assert found.weights == ()
    assert "which rounding does not explain" in str(found)
    assert "computed by classifier.3 (MatMul), classifier.4 (BatchNormalization)" in str(found)


def test_a_changed_scale_is_named(forms: Forms) -> None:
    wrong = copy.deepcopy(forms[1])
    name = node_of(wrong, "classifier.2", "Quant").input[1]
    wrong.set_initializer(name, wrong.get_initializer(name) * np.float32(1.3))
    for other in forms:
        found = diff(other, wrong, pixels(50, 1, 8, 8))
        assert found.first is not None
        assert found.first.layer == "classifier.2"
        assert [row.layer for row in found.tensors if not row.same_quantizer] == ["classifier.2"]
        assert "The quantizer of classifier.2 is uint4" in str(found)


def test_the_second_call_of_a_shared_quantizer_is_named(residual_forms: Forms) -> None:
    wrong = copy.deepcopy(residual_forms[2])
    calls = [
        n
        for n in wrong.graph.node
        if (n.doc_string, n.op_type) == ("layer1.0.add", "MultiThreshold")
    ]
    name = calls[1].input[1]
    wrong.set_initializer(name, wrong.get_initializer(name) + 40)
    wrong.set_tensor_datatype(name, DataType["INT32"])
    for other in (residual_forms[0], residual_forms[2]):
        found = diff(other, wrong, pixels(40, 3, 8, 8))
        affected = [row for row in found.tensors if row.first_here > 2]
        assert [(row.layer, row.call) for row in affected] == [("layer1.0.add", 2)]
    assert "layer1.0.add (call 2)" in str(found)


def test_a_damaged_pool_is_measured_by_its_sum(residual_forms: Forms) -> None:
    """Float steps and integer sums tell of one threshold."""
    wrong = copy.deepcopy(residual_forms[1])
    name = node_of(wrong, "pool", "Trunc").input[4]
    wrong.set_initializer(name, wrong.get_initializer(name) * np.float32(2))
    found = diff(wrong, residual_forms[2], pixels(40, 3, 8, 8))
    row = next(row for row in found.tensors if row.first_here > 2)
    assert (row.layer, row.kind) == ("pool", "trunc")
    for offender in row.offenders:
        half, whole = offender.integers
        real, summed = offender.margins
        assert half == whole // 2
        assert summed is not None
        assert real is not None
        assert real.distance is not None
        assert summed.distance is not None
        assert summed.threshold == 16 * whole
        assert 0 <= summed.distance < 16
        assert real.distance < 0
        assert real.value == pytest.approx(summed.value / 32)


def test_differences_count_for_their_origin(forms: Forms) -> None:
    """An image counts as new in one tensor, however many it differs in."""
    once, _ = moved_threshold(forms[2], "features.3", by=100)
    twice, _ = moved_threshold(once, "classifier.2")
    images = pixels(100, 1, 8, 8)
    found = diff(forms[2], twice, images)
    rows = {row.layer: row for row in found.tensors}
    early, between, late = (rows[n] for n in ("features.3", "features.7", "classifier.2"))
    assert found.first is early
    assert 0 < early.first_here == early.images < 100
    assert (between.images > 0, between.first_here) == (True, 0)
    assert 0 < late.first_here < late.images
    assert rows["classifier.5"].first_here == found.scores.first_here == 0
    # The images that each tensor accounts for are those that differ where it alone is damaged.
    alone, _ = moved_threshold(forms[2], "classifier.2")
    untouched = diff(forms[2], alone, images, examples=10**6).tensors[3].offenders
    early_images = {
        o.image for o in diff(forms[2], once, images, examples=10**6).tensors[1].offenders
    }
    assert late.first_here == len({o.image for o in untouched} - early_images)
    assert not early_images & {o.image for o in late.offenders}


# --- scores and labels -------------------------------------------------------------------------


def negated_scores(exported: ModelWrapper) -> ModelWrapper:
    wrong = copy.deepcopy(exported)
    weights = wrong.find_producer(node_of(wrong, "classifier.6", "MatMul").input[1]).input[0]
    wrong.set_initializer(weights, -wrong.get_initializer(weights))
    return wrong


def test_labels_are_told_with_their_cause(forms: Forms) -> None:
    images = pixels(50, 1, 8, 8)
    scores = GraphTracer(forms[1]).trace(images).scores[:50]
    truth = scores.argmax(axis=1)
    wrong = negated_scores(forms[1])
    found = diff(forms[1], wrong, images, truth)
    assert found.first is None
    assert found.scores.accuracy == (1.0, 0.0)
    assert len(found.scores.changes) == found.scores.images == found.scores.first_here == 50
    assert {change.cause for change in found.scores.changes} == {None}
    change = found.scores.changes[7]
    assert (change.image, change.label) == (7, truth[7])
    assert change.labels == (scores[7].argmax(), scores[7].argmin())
    assert not change.tied
    assert found.scores.max_difference == pytest.approx(2 * np.abs(scores).max())
    assert [w.layer for w in found.weights] == ["classifier.6"]
    assert "50 differ in the scores alone" in str(found)
    assert "Accuracy: 100.00% in A, 0.00% in B." in str(found)


def test_a_label_s_cause_is_the_layer_where_its_image_parted(forms: Forms) -> None:
    wrong = changed_weight(forms[2], 6.0)
    found = diff(forms[2], wrong, pixels(120, 1, 8, 8), np.zeros(120, np.int64))
    assert found.scores.changes
    assert {change.cause for change in found.scores.changes} == {"features.7"}
    assert all(change.labels[0] != change.labels[1] for change in found.scores.changes)
    assert found.first is not None
    assert {offender.label for offender in found.first.offenders} == {0}
    assert "differ first in features.7" in str(found)
    assert "(label 0)" in str(found)


def test_ties_are_noted(forms: Forms) -> None:
    """With equal weights two classes tie always; a float on one side then decides the label."""
    tied, lifted = copy.deepcopy(forms[2]), copy.deepcopy(forms[2])
    for graph, extra in ((tied, 0), (lifted, 1)):
        name = node_of(graph, "classifier.6", "MatMul").input[1]
        weights = np.zeros_like(graph.get_initializer(name))
        weights[:, :2] = 1
        weights[:, 1] += extra
        graph.set_initializer(name, weights)
    found = diff(tied, lifted, pixels(30, 1, 8, 8))
    assert found.scores.ties == (30, 0)
    assert [change.labels for change in found.scores.changes] == [(0, 1)] * 30
    assert all(change.tied for change in found.scores.changes)
    assert "30 of them by a tie" in str(found)
    assert "Two highest scores are equal for 30 images in A, 0 in B" in str(found)


def test_scores_are_compared_by_the_step_as_well(forms: Forms) -> None:
    found = diff(forms[1], forms[2], pixels(50, 1, 8, 8))
    assert found.scores.images > 0
    assert found.scores.images_in_steps == 0
    assert "float32 rounding" in str(found)
    assert diff(forms[0], forms[1], pixels(5, 1, 8, 8)).scores.images_in_steps is None


# --- other networks and forms ------------------------------------------------------------------


class Various(nn.Module):
    """Quantizers of a layer's input and output, with a zero-point, per channel, and of a sign."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = QuantConv2d(
            1,
            4,
            3,
            bias=False,
            weight_quant=Int4WeightPerChannelFloat,
            input_quant=Int8ActPerTensorFloat,
            output_quant=Int8ActPerTensorFloat,
        )
        self.shifted = QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat)
        self.relu = QuantReLU(
            act_quant=Uint4ActPerTensorFloat,
            scaling_per_output_channel=True,
            per_channel_broadcastable_shape=(1, 4, 1, 1),
            scaling_stats_permute_dims=(1, 0, 2, 3),
        )
        self.sign = QuantIdentity(act_quant=SignedBinaryActPerTensorConst)
        self.last = QuantLinear(144, 10, bias=True, weight_quant=Int8WeightPerTensorFloat)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.shifted(self.conv(x)))
        return self.last(self.sign(x - 0.01).flatten(1))


def test_every_kind_of_quantizer_is_read(tmp_path: Path) -> None:
    with seeded(0):
        model = settled(Various(), 1, 8, 8)
    path = export_qonnx(model, tmp_path / "various.onnx", described((1, 8, 8)))
    found = diff(model, path, pixels(60, 1, 8, 8))
    calls = [("conv", 1), ("conv", 2), ("shifted", 1), ("relu", 1), ("sign", 1)]
    assert [(row.layer, row.call) for row in found.tensors] == calls
    assert_differs_by_rounding_alone(found)
    assert set(load_form(path).weights()) == {"conv", "last"}
    shifted, per_channel = (row.quantizers for row in found.tensors[2:4])
    assert shifted[0].zero_point == shifted[1].zero_point > 0
    assert len(per_channel[0].scale) == 4
    assert found.tensors[4].quantizers[1] == Quantizer(1, True, (1.0,))
    json.dumps(found.to_json(), allow_nan=False)
    assert str(found)


class TwiceQuantized(nn.Module):
    """Quantizes its pixels twice, of which the integer graph does neither."""

    def __init__(self) -> None:
        super().__init__()
        self.one = QuantIdentity(act_quant=Uint8InputPerTensorConst)
        self.two = QuantIdentity(act_quant=Uint8InputPerTensorConst)
        self.last = QuantLinear(64, 10, bias=False, weight_quant=Int8WeightPerTensorFloat)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(x)).flatten(1))


def test_absorbed_quantizers_are_found_again(tmp_path: Path) -> None:
    _, exported, integer = forms_of(TwiceQuantized(), (1, 8, 8), tmp_path)
    for pair in ((exported, integer), (integer, exported)):
        found = diff(*pair, pixels(8, 1, 8, 8))
        assert [(row.layer, row.identical) for row in found.tensors] == [("one", 1), ("two", 1)]
    assert diff(integer, integer, pixels(8, 1, 8, 8)).tensors[0].kind == "absorbed"


class Recorded:
    """A form of its own, as a simulation of the hardware is: integers and scores alone."""

    name, image_shape, num_classes = "recording", (1, 8, 8), 10

    def __init__(self, form: GraphTracer) -> None:
        self._form = form
        self.sites, self.score_scale = form.sites, form.score_scale

    def weights(self) -> dict[str, Any]:
        return {}

    def trace(self, images: np.ndarray[Any, Any]) -> Trace:
        trace = self._form.trace(images)
        bare = [Observation(o.values, o.scale, o.zero_point, None) for o in trace.observations]
        return Trace(bare, trace.scores)


def test_a_form_of_one_s_own_joins(forms: Forms) -> None:
    wrong, level = moved_threshold(forms[2])
    for other in forms:
        found = diff(other, Recorded(GraphTracer(wrong)), pixels(100, 1, 8, 8))
        assert found.forms[1] == "recording"
        assert found.first is not None
        assert found.first.layer == "features.7"
        assert found.first.farthest[1] is None
        assert found.first.offenders[0].margins[1] is None
        assert found.first.offenders[0].integers == (level, level - 1)
        assert str(found)


# --- what is written ---------------------------------------------------------------------------


def test_json_round_trips(forms: Forms) -> None:
    wrong, level = moved_threshold(forms[2])
    found = diff(forms[1], wrong, pixels(100, 1, 8, 8), np.zeros(100, np.uint8), examples=2)
    content = found.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert (content["schema"], content["kind"], content["images"]) == (1, "diff", 100)
    assert content["first"] == {"layer": "features.7", "call": 1}
    row = content["tensors"][2]
    assert (row["layer"], len(row["offenders"])) == ("features.7", 2)
    assert row["offenders"][0]["integers"] == [level, level - 1]
    assert row["quantizers"][0]["bits"] == 4
    assert content["scores"]["accuracy"] is not None
    assert diff(forms[1], forms[1], pixels(2, 1, 8, 8)).to_json()["first"] is None


def test_the_text_fits_a_terminal(forms: Forms) -> None:
    wrong, _ = moved_threshold(forms[2])
    found = diff(forms[0], wrong, pixels(100, 1, 8, 8), examples=3)
    lines = found.lines()
    assert lines[:2] == ["A: Brevitas model", "B: integer graph"]
    assert str(found) == "\n".join(lines)
    assert all("\n" not in line for line in lines)
    table = lines[3 : 4 + len(found.tensors)]
    assert max(map(len, table)) <= 100
    assert sum(line.startswith("  image ") for line in lines) == 3
    assert any("… 3 of" in line for line in lines)


def test_no_examples_are_needed_to_judge(forms: Forms) -> None:
    wrong, _ = moved_threshold(forms[2])
    for other, verdict in ((0, "rounding does not explain"), (2, "Both forms count in integers")):
        found = diff(forms[other], wrong, pixels(100, 1, 8, 8), examples=0)
        assert found.first is not None
        assert found.first.offenders == ()
        assert verdict in str(found)


def test_progress_is_told(forms: Forms) -> None:
    told: list[tuple[str, int]] = []
    steps: list[int] = []

    @contextmanager
    def note(name: str, total: int) -> Iterator[Show]:
        told.append((name, total))
        yield lambda count, text: steps.append(count)

    diff(forms[1], forms[2], pixels(9, 1, 8, 8), batch_size=4, progress=note)
    assert told == [("Comparing", 3)]
    assert steps == [1, 1, 1]


# --- files -------------------------------------------------------------------------------------


def test_each_form_is_loaded_from_its_file(forms: Forms, tmp_path: Path) -> None:
    model, exported, integer = forms
    info = CheckpointInfo(
        model="lenet5",
        width=0.5,
        precision=Precision(4, 4),
        image_shape=(1, 8, 8),
        class_names=tuple("0123456789"),
        data="random",
        method={"name": "qat"},
        seed=0,
        best_epoch=1,
        validation_accuracy=None,
    )
    save_checkpoint(tmp_path / "checkpoint", model, info)
    exported.save(str(tmp_path / "exported.onnx"))
    integer.save(str(tmp_path / "integer.onnx"))
    paths = [tmp_path / name for name in ("checkpoint", "exported.onnx", "integer.onnx")]
    assert [load_form(path).name for path in paths] == [
        f"Brevitas model {paths[0]}",
        f"exported graph {paths[1]}",
        f"integer graph {paths[2]}",
    ]
    for a, b in PAIRS:
        found = diff(paths[a], str(paths[b]), pixels(10, 1, 8, 8))
        in_memory = diff(forms[a], forms[b], pixels(10, 1, 8, 8))
        assert found.tensors == in_memory.tensors
        assert found.scores == in_memory.scores


@pytest.mark.parametrize("content", [None, b"", b"no graph", "half"], ids=str)
def test_unreadable_graphs_are_one_line(forms: Forms, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "model.onnx"
    if content == "half":
        forms[1].save(str(path))
        content = path.read_bytes()[: path.stat().st_size // 2]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError, match=r"model\.onnx") as caught:
        load_form(path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished model"):
        load_form(tmp_path)


def test_a_graph_without_metadata_is_refused(forms: Forms) -> None:
    bare = copy.deepcopy(forms[1])
    del bare.graph.metadata_props[:]
    with pytest.raises(GraphError, match="does not say how it is to be served"):
        diff(forms[0], bare, pixels(1, 1, 8, 8))


def with_metadata(graph: ModelWrapper, **changed: Any) -> ModelWrapper:
    other = copy.deepcopy(graph)
    said = GraphMetadata.from_json(graph.get_metadata_prop(METADATA_KEY), "it")
    other.set_metadata_prop(METADATA_KEY, replace(said, **changed).to_json())
    return other


def test_metadata_that_do_not_fit_are_refused(forms: Forms) -> None:
    with pytest.raises(GraphError, match="10.* scores for 2 class names"):
        GraphTracer(with_metadata(forms[1], class_names=("a", "b")))
    with pytest.raises(GraphError, match="cannot be run"):
        GraphTracer(with_metadata(forms[1], image_shape=(3, 8, 8)))
    with pytest.raises(GraphError, match="no activation quantizer|does not tell the scale"):
        GraphTracer(with_metadata(forms[1], form="integer"))


# --- what is refused ---------------------------------------------------------------------------


def test_networks_of_other_layers_are_refused(forms: Forms) -> None:
    class Deeper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.features, self.classifier = model.features, model.classifier
            self.more = QuantIdentity(act_quant=Uint8InputPerTensorConst)

        def forward(self, x: Tensor) -> Tensor:
            return self.more(self.classifier(self.features(x)))

    for pair, side in (((Deeper(forms[0]), forms[1]), "A"), ((forms[1], Deeper(forms[0])), "B")):
        with pytest.raises(GraphError, match=rf"layer more, in {side} \(Brevitas model\)"):
            diff(*pair, pixels(1, 1, 8, 8))


def test_networks_of_other_sizes_are_refused(forms: Forms) -> None:
    wide = build("lenet5", (1, 8, 8), 10, precision=Precision(4, 4), width=1.0)
    with pytest.raises(GraphError, match=r"layer features\.3 gives shape \(6, 8, 8\) in A"):
        diff(wide, forms[1], pixels(1, 1, 8, 8))
    fewer = build("lenet5", (1, 8, 8), 3, precision=Precision(4, 4), width=0.5)
    with pytest.raises(GraphError, match="num classes is 3 in A .* and 10 in B"):
        diff(fewer, forms[1], pixels(1, 1, 8, 8))
    other = ModelTracer(build("lenet5", (1, 9, 9), 10, precision=Precision(4, 4)), (1, 9, 9))
    with pytest.raises(GraphError, match=r"image shape is \(1, 8, 8\) in A .* \(1, 9, 9\) in B"):
        diff(forms[1], other, pixels(1, 1, 8, 8))


def test_float_networks_are_refused(forms: Forms) -> None:
    with pytest.raises(GraphError, match="no quantized layer"):
        diff(build("lenet5", (1, 8, 8), 10, precision=None), forms[1], pixels(1, 1, 8, 8))


def test_values_off_the_grid_are_refused(forms: Forms) -> None:
    """A wrong step would be rounded away, and with it what is looked for."""

    class OffTheGrid(Recorded):
        def trace(self, images: np.ndarray[Any, Any]) -> Trace:
            trace = super().trace(images)
            first, *others = trace.observations
            moved = Observation(first.values + np.float32(0.3), first.scale, first.zero_point, None)
            return Trace([moved, *others], trace.scores)

    with pytest.raises(GraphError, match="layer global_in gives .*whole number"):
        diff(forms[1], OffTheGrid(GraphTracer(forms[2])), pixels(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(0, 1, 8, 8), "no images"),
        (pixels(2, 8, 8), r"expected \(N, C, H, W\)"),
        (pixels(2, 3, 8, 8), r"expected \(N, \*\(1, 8, 8\)\)"),
        (pixels(2, 1, 8, 8).astype(np.float32), "float32"),
        ([[1]], "list"),
    ],
    ids=["none", "three axes", "channels", "float", "list"],
)
def test_wrong_images_are_refused(forms: Forms, images: Any, message: str) -> None:
    for pair in (forms[:2], forms[1:]):
        with pytest.raises(DataError, match=message):
            diff(*pair, images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.int64), r"\(3,\): expected \(2,\)"),
        (np.zeros(2), "float64"),
        ([0, 1], "list"),
        (np.array([0, 10]), "from 0 to 10: expected 0 to 9"),
        (np.array([-1, 1]), "from -1 to 1"),
    ],
    ids=["count", "float", "list", "too high", "negative"],
)
def test_wrong_labels_are_refused(forms: Forms, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        diff(forms[1], forms[2], pixels(2, 1, 8, 8), labels)


def test_wrong_numbers_are_refused(forms: Forms) -> None:
    for wrong in ({"batch_size": 0}, {"examples": -1}):
        with pytest.raises(ConfigError, match="must be"):
            diff(forms[1], forms[2], pixels(2, 1, 8, 8), **wrong)
