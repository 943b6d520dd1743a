# SPDX-License-Identifier: BSD-3-Clause
"""The exported graph computes what Brevitas computes, and exporting changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import brevitas.config
import numpy as np
import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from torch import Tensor, nn

from brevitas_divqat.errors import ExportError
from brevitas_divqat.executors import ModuleExecutor, ReferenceExecutor
from brevitas_divqat.export import GraphMetadata, export_qonnx
from brevitas_divqat.models import Precision, build
from brevitas_divqat.quant import Uint8InputPerTensorConst

MakeModel = Callable[[], nn.Module]
IMAGES = np.random.default_rng(1).integers(0, 256, (256, 1, 8, 8), dtype=np.uint8)

SCORE_TOLERANCE = 1e-5
"""Float32 sums of 256 products of order 0.01 in another order; one threshold crossed on the way
would show as 1e-3 or more."""


def differing_labels(model: nn.Module, path: Path, metadata: GraphMetadata) -> int:
    by_brevitas = ModuleExecutor(
        model, image_shape=metadata.image_shape, num_classes=len(metadata.class_names)
    )(IMAGES)
    by_graph = ReferenceExecutor(path)(IMAGES)
    assert len(set(by_brevitas.argmax(axis=1))) > 1  # one label for all would agree too easily
    return int((by_brevitas.argmax(axis=1) != by_graph.argmax(axis=1)).sum())


class Quantizer:
    """A Quant node with its constants."""

    def __init__(self, graph: ModelWrapper, node: Any) -> None:
        value, self.scale, self.zero_point, width = map(graph.get_initializer, node.input)
        self.is_weight = value is not None
        self.bits = int(width)
        self.signed = getCustomOp(node).get_nodeattr("signed")
        self.narrow = getCustomOp(node).get_nodeattr("narrow")
        self.reads_the_input = node.input[0] == graph.graph.input[0].name


def quantizers(path: Path) -> list[Quantizer]:
    graph = ModelWrapper(str(path))
    return [Quantizer(graph, node) for node in graph.get_nodes_by_op_type("Quant")]


# --- what the graph computes -------------------------------------------------------------------


def test_graph_and_brevitas_give_the_same_labels(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    model = make_model()
    path = export_qonnx(model, tmp_path / "model.onnx", metadata)
    assert differing_labels(model, path, metadata) == 0


def test_weights_are_signed_narrow_and_of_the_right_bits(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    path = export_qonnx(make_model(), tmp_path / "model.onnx", metadata)
    weights = [q for q in quantizers(path) if q.is_weight]
    assert [q.bits for q in weights] == [8, 3, 3, 3, 8]
    assert all((q.signed, q.narrow) == (1, 1) for q in weights)
    assert all((q.zero_point == 0).all() for q in weights)
    assert all((q.scale > 0).all() for q in weights)


def test_activations_are_unsigned_with_one_scale(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    path = export_qonnx(make_model(), tmp_path / "model.onnx", metadata)
    entry, *activations = [q for q in quantizers(path) if not q.is_weight]
    assert [q.bits for q in activations] == [4] * 4
    assert all((q.signed, q.narrow, q.scale.size) == (0, 0, 1) for q in (entry, *activations))
    assert all((q.zero_point == 0).all() for q in (entry, *activations))
    assert entry.reads_the_input
    assert (entry.bits, entry.scale) == (8, 1 / 256)


class Residual(nn.Module):
    """Plain Brevitas layers, with one quantizer on both branches of an addition."""

    def __init__(self) -> None:
        super().__init__()
        weights: dict[str, Any] = {
            "bias": False,
            "weight_quant": Int8WeightPerTensorFloat,
            "weight_bit_width": 4,
        }
        self.entry = QuantIdentity(act_quant=Uint8InputPerTensorConst, return_quant_tensor=True)
        self.first = QuantConv2d(1, 4, 3, padding=1, **weights)
        self.second = QuantConv2d(4, 4, 3, padding=1, **weights)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.relu = QuantReLU(
            act_quant=Uint8ActPerTensorFloat, bit_width=4, return_quant_tensor=True
        )
        # With one scale for all classes the scores are integers times that scale, and equal ones
        # are told apart by rounding alone: labels would then differ without any error.
        weights["weight_quant"] = Int8WeightPerChannelFloat
        self.last = QuantLinear(4 * 8 * 8, 10, **weights)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.relu(self.norms[0](self.first(self.entry(x))))
        added = kept + self.relu(self.norms[1](self.second(kept)))
        return self.last(added.flatten(1))


def test_residual_network_of_plain_brevitas_layers_agrees(
    metadata: GraphMetadata, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()
        for _ in range(20):
            model.train()(torch.from_numpy(IMAGES[:64]).float() / 256)
    path = export_qonnx(model, tmp_path / "residual.onnx", metadata)
    assert differing_labels(model, path, metadata) == 0
    by_brevitas = ModuleExecutor(model, image_shape=(1, 8, 8), num_classes=10)(IMAGES)
    assert np.abs(by_brevitas - ReferenceExecutor(path)(IMAGES)).max() < SCORE_TOLERANCE
    bits = [q.bits for q in quantizers(path) if not q.is_weight]
    assert bits == [8, 4, 4]
    assert "Add" in {node.op_type for node in ModelWrapper(str(path)).graph.node}


def test_exporting_twice_gives_the_same_bytes(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    model = make_model()
    first = export_qonnx(model, tmp_path / "first.onnx", metadata).read_bytes()
    second = export_qonnx(model, tmp_path / "elsewhere" / "second.onnx", metadata).read_bytes()
    assert first == second


def test_metadata_survives(make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path) -> None:
    path = export_qonnx(make_model(), tmp_path / "model.onnx", metadata)
    assert ReferenceExecutor(path).metadata == metadata


# --- what stays as it was ----------------------------------------------------------------------


def snapshot(model: nn.Module) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "state": {name: t.clone() for name, t in model.state_dict().items()},
        "training": {name: m.training for name, m in model.named_modules()},
        "hooks": {n: [list(getattr(m, h)) for h in hooks] for n, m in model.named_modules()},
        "types": {name: type(module) for name, module in model.named_modules()},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "switches": {
            name: (m.disable_quant, m.export_mode)
            for name, m in model.named_modules()
            if hasattr(m, "export_mode") and hasattr(m, "disable_quant")
        },
    }


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = snapshot(model)
    first, second = before.pop("state"), after.pop("state")
    assert after == before
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert brevitas.config._ONGOING_EXPORT is None


class Unexportable(nn.Module):
    """Computes what has no ONNX form."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x.flatten(2)).S.sum() + x


class Crashing(nn.Module):
    """Fails where it is run."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of\norder")


FAILURES: dict[str, Callable[[nn.Module, GraphMetadata], tuple[nn.Module, GraphMetadata]]] = {
    "layer without ONNX form": lambda m, d: (nn.Sequential(Unexportable(), m), d),
    "crash at the end": lambda m, d: (nn.Sequential(m, Crashing()), d),
    "wrong image size": lambda m, d: (m, replace(d, image_shape=(1, 9, 12))),
    "wrong channels": lambda m, d: (m, replace(d, image_shape=(3, 8, 8))),
    "wrong number of class names": lambda m, d: (m, replace(d, class_names=("a", "b"))),
    "two outputs": lambda m, d: (Twice(m), d),
}


class Twice(nn.Module):
    """Returns its model's scores twice."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.model(x)
        return scores, scores + 1


def prepared(model: nn.Module) -> nn.Module:
    """In training mode, with a frozen weight and a hook, all of which must come through."""
    model.train()
    first = next(m for m in model.modules() if isinstance(m, QuantConv2d))
    first.weight.requires_grad_(False)
    first.register_forward_hook(lambda *_: None)
    return model


def test_model_is_unchanged_by_success(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    model = prepared(make_model())
    before = snapshot(model)
    export_qonnx(model, tmp_path / "model.onnx", metadata)
    assert_unchanged(before, model)
    inputs = torch.from_numpy(IMAGES).float() / 256
    with torch.no_grad():
        assert torch.equal(model.eval()(inputs), make_model()(inputs))


@pytest.mark.parametrize("failure", FAILURES)
def test_model_and_folder_are_unchanged_by_failure(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path, failure: str
) -> None:
    model, described = FAILURES[failure](prepared(make_model()), metadata)
    before = snapshot(model)
    with pytest.raises(ExportError) as caught:
        export_qonnx(model, tmp_path / "model.onnx", described)
    assert "\n" not in str(caught.value)
    assert_unchanged(before, model)
    assert list(tmp_path.iterdir()) == []


def test_existing_file_survives_a_failure(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    path = export_qonnx(make_model(), tmp_path / "model.onnx", metadata)
    before = path.read_bytes()
    with pytest.raises(ExportError):
        export_qonnx(make_model(), path, replace(metadata, class_names=("a", "b")))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_global_random_state_is_untouched(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    model = make_model()
    before = torch.get_rng_state(), str(np.random.get_state())
    export_qonnx(model, tmp_path / "model.onnx", metadata)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


def test_export_works_after_a_failure(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    with pytest.raises(ExportError):
        export_qonnx(nn.Sequential(make_model(), Crashing()), tmp_path / "a.onnx", metadata)
    model = make_model()
    path = export_qonnx(model, tmp_path / "b.onnx", metadata)
    assert differing_labels(model, path, metadata) == 0


# --- what is refused ---------------------------------------------------------------------------


def test_uncalibrated_model_is_refused_with_its_layer(
    metadata: GraphMetadata, tmp_path: Path
) -> None:
    model = build("lenet5", (1, 8, 8), 10, precision=Precision(), width=0.25)
    with pytest.raises(ExportError, match=r"^4 activation quantizers .*features\.3\.") as caught:
        export_qonnx(model, tmp_path / "model.onnx", metadata)
    assert "calibrate or train" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_plain_float_model_is_refused(metadata: GraphMetadata, tmp_path: Path) -> None:
    model = build("lenet5", (1, 8, 8), 10, precision=None, width=0.25)
    with pytest.raises(ExportError, match="no quantizer"):
        export_qonnx(model, tmp_path / "model.onnx", metadata)
    assert list(tmp_path.iterdir()) == []


def test_wrong_number_of_class_names_is_named(
    make_model: MakeModel, metadata: GraphMetadata, tmp_path: Path
) -> None:
    described = replace(metadata, class_names=("a", "b"))
    with pytest.raises(ExportError, match=r"shape \(1, 10\), expected \(1, 2\)"):
        export_qonnx(make_model(), tmp_path / "model.onnx", described)
