# SPDX-License-Identifier: BSD-3-Clause
"""Each rule of the pre-flight check finds what breaks it, and nothing in what obeys."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.export.check import Finding, check, check_graph
from brevitas_divqat.export.rules import RULES, SEVERITIES
from brevitas_divqat.models import Precision, build
from brevitas_divqat.quant import (
    Int4WeightPerChannelFloat,
    Int4WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
    Uint8InputPerTensorConst,
)

SHAPE = (2, 6, 6)
DOCUMENT = Path(__file__).parents[2] / "docs" / "check.md"
BREAKS, HLS, AREA = SEVERITIES


# --- layers ------------------------------------------------------------------------------------


def entry(**options: Any) -> nn.Module:
    return qnn.QuantIdentity(act_quant=Uint8InputPerTensorConst, **options)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Module:
    settings = {"bias": False, "weight_quant": Int4WeightPerTensorFloat, **options}
    return qnn.QuantConv2d(inputs, outputs, kernel, **settings)


def linear(inputs: int, **options: Any) -> nn.Module:
    settings = {"bias": False, "weight_quant": Int4WeightPerTensorFloat, **options}
    return qnn.QuantLinear(inputs, 3, **settings)


def relu(bits: int = 4, **options: Any) -> nn.Module:
    settings = {"act_quant": Uint8ActPerTensorFloat, "bit_width": bits, **options}
    return qnn.QuantReLU(**settings)


def unsigned(bits: int = 4, **options: Any) -> nn.Module:
    settings = {"act_quant": Uint8ActPerTensorFloat, "bit_width": bits, **options}
    return qnn.QuantIdentity(**settings)


def signed(bits: int = 4, **options: Any) -> nn.Module:
    return qnn.QuantIdentity(bit_width=bits, return_quant_tensor=True, **options)


def bipolar() -> nn.Module:
    return qnn.QuantIdentity(act_quant=bq.SignedBinaryActPerTensorConst)


def net(*layers: nn.Module, first: nn.Module | None = None, last: int = 12) -> nn.Module:
    """An input quantizer, a convolution to 3x4x4, ``layers``, and a classifier of ``last``."""
    head = [entry(), conv(2, 3)] if first is None else [first]
    return nn.Sequential(*head, *layers, nn.Flatten(), linear(last))


def inner(*layers: nn.Module, act: nn.Module | None = None, last: int = 12) -> nn.Module:
    """``layers`` between a quantized ReLU of 3x4x4 and a 3x3 convolution to 3 channels."""
    return net(act or relu(), *layers, conv(3, 3), relu(), last=last)


def trunc(kernel: Any, rounding: str) -> nn.Module:
    return qnn.TruncAvgPool2d(kernel_size=kernel, bit_width=4, float_to_int_impl_type=rounding)


class Branches(nn.Module):
    """Two quantized branches that ``join`` makes one."""

    def __init__(
        self,
        join: Callable[[Tensor, Tensor], Tensor],
        first: nn.Module,
        second: nn.Module | None = None,
        *,
        third: nn.Module | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.entry, self.stem, self.branch = entry(), conv(2, 3), conv(3, 3, padding=1)
        self.first, self.second = first, second or first
        self.third = third or relu()
        self.head = nn.Sequential(nn.Flatten(), linear(16 * channels))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        kept = self.first(self.stem(self.entry(x)))
        joined = self.join(kept, self.second(self.branch(kept)))
        return self.head(self.third(joined))


def plain(x: Any) -> Tensor:
    return getattr(x, "value", x)


class Halve(nn.Module):
    """Multiplies by one number and adds another."""

    def forward(self, x: Tensor) -> Tensor:
        return plain(x) * 0.5 + 0.25


class Twice(nn.Module):
    """One tensor, quantized by two quantizers, joined again after a convolution."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(entry(), conv(2, 3), norm)
        self.one, self.shared, self.branch = relu(), signed(), conv(3, 3, padding=1)
        self.head = nn.Sequential(relu(), nn.Flatten(), linear(48))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(self.shared(y) + self.shared(self.branch(self.one(y))))


def cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([plain(a), plain(b)], 1)


def add(a: Tensor, b: Tensor) -> Tensor:
    return plain(a) + plain(b)


# --- what obeys, and what breaks one rule ------------------------------------------------------

OBEYS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: net(relu(), last=48),
    "BatchNorm": lambda: net(nn.BatchNorm2d(3), relu(), last=48),
    "scale per channel": lambda: net(
        relu(),
        first=nn.Sequential(entry(), conv(2, 3, weight_quant=Int4WeightPerChannelFloat)),
        last=48,
    ),
    "bias before a quantizer": lambda: net(
        relu(), first=nn.Sequential(entry(), conv(2, 3, bias=True)), last=48
    ),
    "signed activations, padded": lambda: net(
        nn.BatchNorm2d(3), signed(), conv(3, 3, padding=1), relu(), last=48
    ),
    "strided convolution": lambda: net(relu(), conv(3, 3, 2, stride=2), relu()),
    "1x1 convolution with stride": lambda: net(relu(), conv(3, 3, 1, stride=2), relu()),
    "dilated convolution": lambda: net(relu(), conv(3, 3, dilation=1), relu()),
    "asymmetric kernel": lambda: net(relu(), conv(3, 3, (1, 3), padding=(0, 1)), relu(), last=48),
    "one number after a quantizer": lambda: inner(Halve()),
    "flattened after the quantizer": lambda: net(relu(), nn.Flatten(), last=48),
}
BREAKING: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "Sigmoid": ("operator", lambda: net(qnn.QuantSigmoid(bit_width=4), last=48)),
    "Sigmoid at the end": ("operator", lambda: net(relu(), last=48).append(nn.Sigmoid())),
    "Upsample": ("operator", lambda: inner(nn.Upsample(scale_factor=2), last=108)),
    "Clip": ("operator", lambda: net(nn.ReLU6(), unsigned(), last=48)),
    "padding of its own": ("operator", lambda: inner(nn.ZeroPad2d((1, 0, 0, 1)), last=27)),
    "shifted weights": (
        "zero-point",
        lambda: net(relu(), conv(3, 3, weight_quant=bq.ShiftedUint8WeightPerTensorFloat), relu()),
    ),
    "shifted activations": (
        "zero-point",
        lambda: net(relu(act_quant=bq.ShiftedUint8ActPerTensorFloat), last=48),
    ),
    "activation scale per channel": (
        "activation-scale",
        lambda: net(
            relu(
                act_quant=bq.Uint8ActPerTensorFloat,
                scaling_per_output_channel=True,
                per_channel_broadcastable_shape=(1, 3, 1, 1),
                scaling_stats_permute_dims=(1, 0, 2, 3),
            ),
            last=48,
        ),
    ),
    "signed ReLU": ("relu-range", lambda: net(relu(act_quant=bq.Int8ActPerTensorFloat), last=48)),
    "narrow ReLU": ("relu-range", lambda: net(relu(narrow_range=True), last=48)),
    "10-bit activations": ("activation-bits", lambda: net(relu(10), last=48)),
    "floor": ("rounding", lambda: net(relu(float_to_int_impl_type="floor"), last=48)),
    "1-bit ReLU": ("bipolar-quantizer", lambda: net(relu(1), last=48)),
    "1-bit identity of a learned scale": ("bipolar-quantizer", lambda: net(signed(1), last=48)),
    "padded 1-bit activations": (
        "bipolar-padding",
        lambda: net(bipolar(), conv(3, 3, padding=1), relu(), last=48),
    ),
    "float convolution": ("float-weights", lambda: net(relu(), nn.Conv2d(3, 3, 3), relu())),
    "quantized bias": (
        "quantized-bias",
        lambda: net(
            relu(),
            conv(3, 3, bias=True, bias_quant=bq.Int8BiasPerTensorFloatInternalScaling),
            relu(),
        ),
    ),
    "no input quantizer": ("input-missing", lambda: net(relu(), first=conv(2, 3), last=48)),
    "ReLU without a quantizer": ("threshold-missing", lambda: inner(act=nn.ReLU())),
    "BatchNorm behind the quantizer": ("threshold-missing", lambda: inner(nn.BatchNorm2d(3))),
    "BatchNorm between convolutions": (
        "threshold-missing",
        lambda: inner(act=nn.BatchNorm2d(3)),
    ),
    "bias between convolutions": (
        "threshold-missing",
        lambda: net(relu(), conv(3, 3, bias=True), conv(3, 3, 1), relu()),
    ),
    "scale per channel between convolutions": (
        "threshold-missing",
        lambda: net(
            relu(), conv(3, 3, weight_quant=Int4WeightPerChannelFloat), conv(3, 3, 1), relu()
        ),
    ),
    "a number added before padding": (
        "threshold-missing",
        lambda: net(relu(), Halve(), conv(3, 3, padding=1), relu(), last=48),
    ),
    "flattened sums": ("flatten-order", lambda: net(nn.Flatten(), relu(), last=48)),
    "float average": ("average-pool", lambda: net(relu(), nn.AvgPool2d(2))),
    "requantized average": ("average-pool", lambda: net(relu(), nn.AvgPool2d(2), unsigned())),
    "global average": ("average-pool", lambda: net(relu(), nn.AdaptiveAvgPool2d(1), last=3)),
    "oblong average": (
        "average-pool-shape",
        lambda: net(relu(return_quant_tensor=True), trunc((2, 1), "floor"), last=24),
    ),
    "rounded average": (
        "trunc-rounding",
        lambda: net(relu(return_quant_tensor=True), trunc(2, "round")),
    ),
    "residual of two quantizers": (
        "join-scale",
        lambda: Branches(add, unsigned(), unsigned()),
    ),
    "residual of a quantizer and none": (
        "join-scale",
        lambda: Branches(add, unsigned(), nn.BatchNorm2d(3)),
    ),
    "concatenation of two quantizers": (
        "join-scale",
        lambda: Branches(cat, unsigned(), unsigned(), third=nn.Identity(), channels=6),
    ),
    "pooled BatchNorm": (
        "max-pool-order",
        lambda: net(nn.BatchNorm2d(3), nn.MaxPool2d(2), relu()),
    ),
    "pooled ReLU": ("max-pool-order", lambda: net(nn.ReLU(), nn.MaxPool2d(2), unsigned())),
    "pool with gaps": ("max-pool-shape", lambda: net(relu(), nn.MaxPool2d(1, 2))),
    "padded pool of signed values": (
        "max-pool-shape",
        lambda: net(nn.BatchNorm2d(3), signed(), nn.MaxPool2d(3, 2, 1)),
    ),
    "pool over the border": (
        "max-pool-shape",
        lambda: net(relu(), nn.MaxPool2d(3, ceil_mode=True)),
    ),
    "groups": (
        "grouped-conv",
        lambda: net(relu(), conv(3, 6, groups=3), relu(), last=24),
    ),
    "1-d convolution": (
        "conv-shape",
        lambda: net(
            relu(),
            nn.Flatten(2),
            qnn.QuantConv1d(3, 3, 3, bias=False, weight_quant=Int4WeightPerTensorFloat),
            relu(),
            last=42,
        ),
    ),
}

FALLING_BACK: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "unsigned weights": (
        "weight-sign",
        lambda: net(relu(), conv(3, 3, weight_signed=False, weight_narrow_range=False), relu()),
    ),
    "full range of weights": (
        "weight-narrow",
        lambda: net(relu(), conv(3, 3, weight_narrow_range=False), relu()),
    ),
    "3-bit weights": ("few-bits", lambda: net(relu(), conv(3, 3, weight_bit_width=3), relu())),
    "2-bit activations": ("few-bits", lambda: net(relu(2), last=48)),
    "1-bit weights": (
        "binary-weights",
        lambda: net(relu(), conv(3, 3, weight_quant=bq.SignedBinaryWeightPerTensorConst), relu()),
    ),
    "1-bit activations": ("binary-activation", lambda: net(bipolar(), last=48)),
    "two convolutions in a row": ("accumulator-input", lambda: inner(act=nn.Identity())),
    "flattened BatchNorm": (
        "threshold-apart",
        lambda: net(nn.BatchNorm2d(3), nn.Flatten(), relu(), last=48),
    ),
    "ReLU before BatchNorm": (
        "threshold-apart",
        lambda: net(nn.ReLU(), nn.BatchNorm2d(3), signed(), last=48),
    ),
    "BatchNorm of two quantizers": ("threshold-apart", lambda: Twice(nn.BatchNorm2d(3))),
    "residual": ("join", lambda: Branches(add, signed())),
    "unsigned residual": ("join", lambda: Branches(add, unsigned())),
    "max pool": ("max-pool", lambda: net(relu(), nn.MaxPool2d(2))),
    "padded max pool": ("max-pool", lambda: net(relu(), nn.MaxPool2d(3, 2, 1))),
    "max pool of sums": ("max-pool", lambda: net(nn.MaxPool2d(2), relu())),
    "average": (
        "trunc-pool",
        lambda: net(relu(return_quant_tensor=True), trunc(2, "floor")),
    ),
    "depthwise": ("depthwise", lambda: net(relu(), conv(3, 3, groups=3), relu())),
    "bias of the last layer": (
        "output-arithmetic",
        lambda: net(relu(), last=48)[:-1].append(linear(48, bias=True)),
    ),
    "BatchNorm at the end": (
        "output-arithmetic",
        lambda: net(relu(), last=48).append(nn.BatchNorm1d(3)),
    ),
    "Softmax": ("output-arithmetic", lambda: net(relu(), last=48).append(nn.Softmax(1))),
}

COSTING: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "signed input": (
        "input-quantizer",
        lambda: net(
            relu(), first=nn.Sequential(qnn.QuantIdentity(bit_width=8), conv(2, 3)), last=48
        ),
    ),
    "input of a learned scale": (
        "input-quantizer",
        lambda: net(relu(), first=nn.Sequential(unsigned(8), conv(2, 3)), last=48),
    ),
    "arithmetic before the input": (
        "input-quantizer",
        lambda: net(relu(), first=nn.Sequential(Halve(), entry(), conv(2, 3)), last=48),
    ),
    "8-bit activations": ("wide-activation", lambda: net(relu(8), last=48)),
    "a keyword that Brevitas drops": (
        "wide-weight",
        lambda: net(
            relu(),
            qnn.QuantConv2d(3, 3, 3, bias=False, bit_width=4),
            relu(),  # stays 8-bit
        ),
    ),
    "two quantizers in a row": ("double-quantizer", lambda: net(relu(), unsigned(), last=48)),
    "BatchNorm between quantizers": (
        "double-quantizer",
        lambda: net(relu(), nn.BatchNorm2d(3), signed(), last=48),
    ),
    "last layer's scales": (
        "output-scale",
        lambda: net(relu(), last=48)[:-1].append(
            linear(48, weight_quant=Int4WeightPerChannelFloat)
        ),
    ),
    "quantized output": ("output-quantizer", lambda: net(relu(), last=48).append(signed())),
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def rules(findings: list[Finding], *severities: str) -> set[str]:
    return {f.rule for f in findings if not severities or f.severity in severities}


@pytest.mark.parametrize("case", OBEYS)
def test_what_obeys_gives_no_finding(case: str) -> None:
    assert check(seeded(OBEYS[case]), SHAPE) == []


@pytest.mark.parametrize("case", BREAKING)
def test_what_breaks_one_rule_breaks_no_other(case: str) -> None:
    rule, make = BREAKING[case]
    findings = check(seeded(make), SHAPE)
    assert [f.rule for f in findings if f.severity == BREAKS] == [rule]


@pytest.mark.parametrize("case", FALLING_BACK)
def test_what_falls_back_breaks_nothing(case: str) -> None:
    rule, make = FALLING_BACK[case]
    findings = check(seeded(make), SHAPE)
    assert rules(findings, BREAKS, HLS) - {"join"} == {rule} - {"join"}
    assert rule in rules(findings, HLS)


@pytest.mark.parametrize("case", COSTING)
def test_what_costs_area_does_nothing_else(case: str) -> None:
    rule, make = COSTING[case]
    assert [f.rule for f in check(seeded(make), SHAPE)] == [rule]


# --- graphs that Brevitas does not write -------------------------------------------------------


def graph(
    *nodes: Any,
    shape: tuple[int, ...] = (1, 2, 6, 6),
    output: str = "y",
    **constants: Any,
) -> ModelWrapper:
    """Build a graph from ``x`` to ``y``, with its constants by name."""
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [
            helper.make_tensor(name, TensorProto.FLOAT, np.shape(value), np.ravel(value))
            for name, value in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("qonnx.custom_op.general", 1)]
    return ModelWrapper(helper.make_model(made, opset_imports=opsets))


def quant(source: str, scale: str, bits: str, output: str, *, kind: int = 0) -> Any:
    """Return a Quant node: signed and narrow where ``kind`` is 1, else unsigned."""
    return helper.make_node(
        "Quant",
        [source, scale, "zero", bits],
        [output],
        name=f"to_{output}",
        domain="qonnx.custom_op.general",
        signed=kind,
        narrow=kind,
        rounding_mode="ROUND",
    )


CONSTANTS = {
    "zero": 0.0,
    "pixel": 1 / 256,
    "eight": 8.0,
    "four": 4.0,
    "step": 0.25,
    "w": np.linspace(-1, 1, 18).reshape(1, 2, 3, 3),
}
ENTRY = quant("x", "pixel", "eight", "q")


def small_graph(
    *extra: Any, scale: Any = 0.25, layer: Any = None, **constants: Any
) -> ModelWrapper:
    weights = quant("w", "scale", "four", "wq", kind=1)
    layer = layer or helper.make_node("Conv", ["q", "wq"], ["y"], name="layer")
    return graph(ENTRY, weights, layer, **{**CONSTANTS, "scale": scale, **constants})


def test_graph_from_elsewhere_obeys_and_is_named_by_its_nodes() -> None:
    assert check_graph(small_graph()) == []
    (finding,) = check_graph(small_graph(w=np.ones((2, 2, 3, 3)), scale=np.ones((2, 1, 1, 1))))
    assert (finding.rule, finding.layer) == ("output-scale", "layer")


def test_weight_scale_finer_than_output_channels_breaks() -> None:
    findings = check_graph(small_graph(scale=np.full((1, 2, 1, 1), 0.25)))
    assert [f.rule for f in findings if f.severity == BREAKS] == ["weight-scale"]


@pytest.mark.parametrize(
    ("scale", "bits", "found"),
    [
        ("s", "eight", "scale computed at run time"),
        ("pixel", "s", "bit width computed at run time"),
        ("pixel", "widths", "several bit widths in one tensor"),
    ],
)
def test_scale_or_width_that_is_no_constant_breaks(scale: str, bits: str, found: str) -> None:
    made = graph(
        helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0),
        quant("x", scale, bits, "q"),
        quant("w", "step", "four", "wq", kind=1),
        helper.make_node("Conv", ["q", "wq"], ["y"]),
        **CONSTANTS,
        widths=np.array([4.0, 8.0]).reshape(1, 2, 1, 1),
    )
    findings = [f for f in check_graph(made) if f.severity == BREAKS]
    assert [(f.rule, f.found) for f in findings] == [("static-quantizer", found)]


def test_weight_quantizer_of_two_layers_breaks() -> None:
    second = helper.make_node("Conv", ["q", "wq"], ["z"], name="second")
    sum_ = helper.make_node("Concat", ["z", "c"], ["y"], axis=1, name="join")
    first = helper.make_node("Conv", ["q", "wq"], ["c"], name="first")
    made = graph(ENTRY, quant("w", "step", "four", "wq", kind=1), first, second, sum_, **CONSTANTS)
    shared = [f for f in check_graph(made) if f.rule == "shared-weights"]
    assert [f.found for f in shared] == ["one weight quantizer for first, second"]


def test_stride_beyond_the_input_breaks() -> None:
    layer = helper.make_node("Conv", ["q", "wq"], ["y"], strides=[7, 7])
    assert rules(check_graph(small_graph(layer=layer))) == {"conv-shape"}


def test_weights_of_run_time_break() -> None:
    layer = helper.make_node("MatMul", ["q", "q"], ["y"])
    assert rules(check_graph(small_graph(layer=layer)), BREAKS) == {"float-weights"}


def test_graph_without_quantizers_is_a_finding() -> None:
    made = graph(helper.make_node("Conv", ["x", "w"], ["y"]), **CONSTANTS)
    (finding,) = check_graph(made)
    assert (finding.rule, finding.severity) == ("no-quantizer", BREAKS)


# --- all findings together ---------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", ["lenet5", "cnv"])
def test_networks_of_this_package_break_nothing_before_training(name: str, bits: int) -> None:
    precision = Precision(weight=bits, activation=bits)
    model = seeded(lambda: build(name, (1, 28, 28), 10, precision=precision, width=0.25))
    expected = {"max-pool"} if bits == 4 else {"max-pool", "few-bits"}
    assert rules(check(model, (1, 28, 28))) == expected


def test_findings_come_worst_first_then_in_the_order_of_the_graph() -> None:
    model = seeded(
        lambda: net(
            relu(3), nn.MaxPool2d(2), conv(3, 3, 1, bias=True), conv(3, 3, 1, groups=3), relu(8)
        )
    )
    findings = check(model, SHAPE)
    assert [(f.severity, f.rule, f.layer) for f in findings] == [
        (BREAKS, "threshold-missing", "4"),
        (HLS, "max-pool", "3"),
        (HLS, "few-bits", "4"),
        (HLS, "depthwise", "5"),
        (AREA, "wide-activation", "6"),
    ]


def test_layers_that_break_one_rule_give_a_finding_each() -> None:
    model = seeded(lambda: net(relu(10), conv(3, 3), relu(12)))
    assert [f.layer for f in check(model, SHAPE)] == ["2", "4"]


def test_finding_is_one_line_that_names_the_layer_and_the_remedy() -> None:
    (finding,) = check(seeded(lambda: net(relu(10), last=48)), SHAPE)
    assert str(finding) == (
        "breaks FINN: 2: 10-bit activations (activation-bits): use 8 bits or fewer for activations"
    )
    assert all("\n" not in rule.remedy for rule in RULES.values())


def test_file_and_model_give_the_same_findings(tmp_path: Path) -> None:
    from brevitas_divqat.export import GraphMetadata, export_qonnx
    from brevitas_divqat.training import calibrate

    model = seeded(lambda: build("lenet5", (1, 8, 8), 3, precision=Precision(weight=2), width=0.25))
    findings = check(model, (1, 8, 8))
    calibrate(model, np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), np.uint8))
    path = export_qonnx(model, tmp_path / "m.onnx", GraphMetadata((1, 8, 8), 256.0, tuple("abc")))
    assert check_graph(path) == findings == check_graph(ModelWrapper(str(path)))
    assert findings[0].layer == "features.4"


def test_every_rule_is_documented_and_tested() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([\w ]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert dict(rows) == {name: rule.severity for name, rule in RULES.items()}
    tested = {rule for rule, _ in (BREAKING | FALLING_BACK | COSTING).values()}
    by_graph = {"static-quantizer", "weight-scale", "shared-weights", "no-quantizer", "export"}
    assert tested | by_graph == set(RULES)


# --- what stays as it was ----------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_model_and_generators_stay_as_they_were(training: bool) -> None:
    model = seeded(lambda: Branches(add, unsigned(), third=nn.Sequential(nn.Dropout(), relu())))
    model.train(training)
    scales = [m for m in model.modules() if hasattr(m, "collect_stats_steps")]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    buffers = [(m.counter, m.buffer.clone()) for m in scales]
    states = torch.get_rng_state(), str(np.random.get_state())
    check(model, torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all((m.counter, m.buffer) == old for m, old in zip(scales, buffers, strict=True))
    assert all(m.training is training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == states[1]


def test_graph_stays_as_it_was() -> None:
    made = small_graph()
    before = made.model.SerializeToString()
    check_graph(made)
    assert made.model.SerializeToString() == before


# --- what is refused ---------------------------------------------------------------------------


class Unexportable(nn.Module):
    """Computes what has no ONNX form."""

    def forward(self, x: Tensor) -> Tensor:
        return plain(x) + torch.linalg.svd(plain(x).flatten(2)).S.sum()


def test_model_that_cannot_be_exported_is_a_finding() -> None:
    (finding,) = check(seeded(lambda: net(Unexportable(), relu(), last=48)), SHAPE)
    assert (finding.rule, finding.severity) == ("export", BREAKS)
    assert "\n" not in str(finding)


def test_float_model_is_a_finding() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten()))
    assert [f.rule for f in check(model, SHAPE)] == ["no-quantizer"]


@pytest.mark.parametrize("example", [(6,), (2, 0, 6), (1, 2, 3, 4, 5), torch.zeros(3)])
def test_wrong_example_is_refused(example: Any) -> None:
    with pytest.raises(ConfigError, match=r"\(C, H, W\)"):
        check(nn.Identity(), example)


def test_model_that_fails_on_the_example_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fails on an input of shape \(1, 1, 6, 6\)") as caught:
        check(seeded(lambda: net(relu(), last=48)), (1, 6, 6))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the graph"),
        (b"no graph at all", "is not an ONNX graph"),
        (b"", "without nodes"),
        (small_graph().model.SerializeToString()[:-40], "is not an ONNX graph"),
    ],
)
def test_file_that_is_no_graph_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError, match=message) as caught:
        check_graph(path)
    assert "\n" not in str(caught.value)


def test_damaged_graph_is_refused() -> None:
    made = onnx.helper.make_node("Conv", ["nowhere", "w"], ["y"])
    with pytest.raises(GraphError, match="cannot be read"):
        check_graph(graph(quant("absent", "step", "four", "q"), made, **CONSTANTS))
