# SPDX-License-Identifier: BSD-3-Clause
"""The summary of a model: effective bits, costs, warnings, and a model that stays as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    SignedBinaryActPerTensorConst,
    SignedBinaryWeightPerTensorConst,
)
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.inspection import Summary, recorded_keywords, summary, unwrapped
from brevitas_divqat.inspection.injectors import bits_origin
from brevitas_divqat.models import Precision, build


class UnnamedBits(Int8ActPerTensorFloat):
    """A quantizer whose 8 bits nobody chose: neither its name nor its body has them."""


class Branches(nn.Module):
    """QuantTensors, one shared quantizer, a truncating pool, a float layer, functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.quant_inp = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
        self.conv1 = qnn.QuantConv2d(3, 8, 3, padding=1, bias=False, weight_bit_width=4)
        self.relu = qnn.QuantReLU(bit_width=3, return_quant_tensor=True)
        self.shared = qnn.QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.plain = nn.Conv2d(8, 8, 1, groups=2)
        self.pool = qnn.TruncAvgPool2d(2, bit_width=4, float_to_int_impl_type="floor")
        self.up = qnn.QuantConvTranspose2d(8, 4, 2, stride=2, groups=2, weight_bit_width=4)
        self.quiet = qnn.QuantReLU(bit_width=2)
        self.fc = qnn.QuantLinear(4 * 4 * 4, 10, weight_quant=Int8WeightPerChannelFloat)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (N, 3, 8, 8) images."""
        x = self.relu(self.conv1(self.quant_inp(x)))
        both = self.shared(x) + self.shared(self.plain(x.value))  # type: ignore[attr-defined]
        x = self.quiet(self.up(self.pool(self.shared(both))))
        x = F.max_pool2d(F.dropout(x, 0.1, training=self.training), 2)
        scores: Tensor = self.fc(x.reshape(len(x), -1))
        return scores


def named(found: Summary) -> dict[str, Any]:
    return {layer.name: layer for layer in found.layers}


def kinds(found: Summary) -> list[tuple[str, str]]:
    return [(w.kind, w.module) for w in found.warnings if w.kind != "collecting statistics"]


def test_effective_formats_are_measured() -> None:
    rows = named(summary(Branches(), (3, 8, 8)))
    assert [*rows] == [
        *("quant_inp", "conv1", "relu", "shared", "plain", "pool", "up", "quiet", "fc"),
    ]
    told = {
        n: (str(r.weight or ""), r.input.name, str(r.activation or "")) for n, r in rows.items()
    }
    assert told == {
        "quant_inp": ("", "float32", "int8/tensor"),
        "conv1": ("int4/tensor", "int8", ""),
        "relu": ("", "float32", "uint3/tensor"),
        "shared": ("", "int5", "int4/tensor"),
        "plain": ("float32", "uint3", ""),
        "pool": ("", "int4", "int4/tensor"),
        "up": ("int4/tensor", "int4", ""),
        "quiet": ("", "float32", "uint2/tensor"),
        "fc": ("int8/channel", "uint2", ""),
    }
    assert rows["shared"].calls == 3


def test_costs() -> None:
    rows = named(summary(Branches(), (3, 8, 8)))
    assert rows["conv1"].macs == 8 * 64 * 3 * 9
    assert rows["plain"].macs == 8 * 64 * 4
    assert rows["up"].macs == 8 * 16 * (2 * 4)
    assert rows["fc"].macs == 640
    assert [rows[n].parameters for n in ("conv1", "plain", "up", "fc")] == [216, 40, 68, 650]
    assert [rows[n].bytes for n in ("conv1", "plain", "up", "fc")] == [108, 128, 32, 640]
    assert [rows[n].shape for n in ("conv1", "pool", "up", "fc")] == [
        (8, 8, 8),
        (8, 4, 4),
        (4, 8, 8),
        (10,),
    ]


def test_macs_agree_with_torch_s_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build("lenet5", (1, 28, 28), 10, precision=None).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 28, 28))
    found = summary(model, (1, 28, 28))
    assert found.macs == counter.get_total_flops() // 2
    assert found.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("transposed", [False, True])
def test_accumulators_hold_the_greatest_sums_and_not_much_more(transposed: bool) -> None:
    torch.manual_seed(0)
    cls = qnn.QuantConvTranspose2d if transposed else qnn.QuantConv2d
    layer = cls(4, 6, 2, groups=2, bias=False, weight_bit_width=3)
    model = nn.Sequential(qnn.QuantReLU(bit_width=2, return_quant_tensor=True), layer)
    row = named(summary(model, (4, 4, 4)))["1"]
    integers = layer.quant_weight().int().detach().double()
    operation = F.conv_transpose2d if transposed else F.conv2d
    greatest = 0.0
    for sign in (1, -1):
        used = (sign * integers).clamp(min=0)  # a 2-bit input of 3 wherever that adds to the sum
        inputs = torch.full((1, 4, 4, 4), 3.0, dtype=torch.double)
        greatest = max(greatest, float(operation(inputs, used, groups=2).max()))
    assert 2 ** (row.accumulator_exact - 2) - 1 < greatest < 2 ** (row.accumulator_exact - 1)
    most = (2 * 4) * 3 * 3  # two channels of a group times the kernel, weights and inputs of 3
    assert 2 ** (row.accumulator_bound - 2) <= most < 2 ** (row.accumulator_bound - 1)
    assert row.accumulator_exact <= row.accumulator_bound


def test_binary_networks() -> None:
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=SignedBinaryActPerTensorConst),
        qnn.QuantLinear(
            8, 4, bias=False, weight_quant=SignedBinaryWeightPerTensorConst, weight_bit_width=1
        ),
    )
    row = named(summary(model, (8,)))["1"]
    assert (row.weight.name, row.input.name, row.bytes) == ("bipolar", "bipolar", 4)
    assert row.accumulator_bound == row.accumulator_exact == 5  # -8 … 8
    assert not summary(model, (8,)).warnings


def state(model: nn.Module) -> Iterator[Any]:
    for name, module in model.named_modules():
        yield name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks)
        yield getattr(module, "counter", None), getattr(module, "init_done", None)
        yield from (
            t.tolist()
            for t in (*module._parameters.values(), *module._buffers.values())
            if t is not None
        )


@pytest.mark.parametrize("shape", [(3, 8, 8), None, (5, 8, 8)])
def test_the_model_stays_as_it_was(shape: tuple[int, ...] | None) -> None:
    model = Branches()
    model(torch.rand(4, 3, 8, 8))
    seen: list[str] = []
    model.fc.register_forward_hook(lambda *_: seen.append("called"))
    before, generator = list(state(model)), torch.get_rng_state()
    if shape == (5, 8, 8):
        with pytest.raises(ConfigError, match="shape \\(5, 8, 8\\) does not pass conv1"):
            summary(model, shape)
    else:
        summary(model, shape)
    assert list(state(model)) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert seen == []


def test_scales_from_statistics_of_the_weights_are_not_set_by_looking() -> None:
    layer = qnn.QuantLinear(4, 2, weight_scaling_impl_type="parameter_from_stats")
    summary(layer, (4,))
    assert not any(getattr(m, "init_done", False) for m in layer.modules())


def test_without_an_image_what_can_be_told_is_told() -> None:
    found = summary(Branches())
    rows = named(found)
    assert [*rows] == [n for n, _ in Branches().named_children()]
    assert str(rows["fc"].weight) == "int8/channel"
    assert str(rows["relu"].activation) == "uint3/tensor"
    assert (found.macs, rows["fc"].input, rows["fc"].accumulator_bound) == (None, None, None)
    assert "not run" in str(found)


def test_a_float_model_is_warned_of_once() -> None:
    found = summary(build("lenet5", (1, 8, 8), 10, precision=None), (1, 8, 8))
    assert kinds(found) == [("no quantizer", "")]
    assert found.bytes == 4 * sum(r.parameters for r in found.layers if r.weight is not None)


def test_our_own_networks_are_as_meant() -> None:
    model = build("lenet5", (1, 28, 28), 10, precision=Precision(weight=3, activation=2))
    found = summary(model, (1, 28, 28))
    assert kinds(found) == []
    assert len(found.warnings) == 4  # uncalibrated
    inner = named(found)["classifier.3"]
    assert (inner.weight.bits, inner.input.bits, inner.input.signed) == (3, 2, False)


def test_each_warning_names_module_value_and_remedy() -> None:
    class Careless(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                qnn.QuantIdentity(),
                qnn.QuantConv2d(3, 8, 3, bit_width=4),
                qnn.QuantReLU(bitwidth=4),
                qnn.QuantConv2d(8, 8, 3, weight_bit_width=8),
                nn.Conv2d(8, 8, 1),
                qnn.QuantReLU(act_quant=None),
                qnn.QuantConv2d(8, 8, 1, weight_bit_width=4),
                qnn.TruncAvgPool2d(2, bit_width=4, return_quant_tensor=False),
                qnn.QuantConv2d(8, 8, 1, weight_bit_width=4),
            )

    found = summary(Careless(), (3, 8, 8))
    expected = {
        ("swallowed keyword", "2"): ("bitwidth=4", "did you mean bit_width=4?"),
        ("swallowed keyword", ""): ("bit_width=4", "weight_bit_width=4"),
        ("default bits", "1"): ("8 bits", "weight_bit_width="),
        ("default bits", "2"): ("8 bits", "write bit_width="),
        ("8 bits", "3"): ("8 bits, as was asked for", "lower weight_bit_width"),
        ("float", "4"): ("float32 weights", "QuantConv2d"),
        ("float", "5"): ("output in float", "act_quant"),
        ("float", "6"): ("input arrives as float32", "QuantIdentity"),
        ("float", "7"): ("output in float", "return_quant_tensor=True"),
        ("float", "8"): ("input arrives as float32", "QuantIdentity"),
    }
    assert set(kinds(found)) == expected.keys()
    for warning in found.warnings:
        if warning.kind == "collecting statistics":
            assert "0 of 300 steps" in warning.found
            continue
        value, remedy = expected[warning.kind, warning.module]
        assert value in warning.found
        assert remedy in warning.remedy
        assert str(warning).startswith(warning.module or "the model")
        assert "\n" not in str(warning)


def test_a_network_of_8_bits_on_purpose_is_no_mistake() -> None:
    model = build("lenet5", (1, 8, 8), 10, precision=Precision(weight=8, activation=8))
    assert kinds(summary(model, (1, 8, 8))) == []


def test_recorded_keywords_are_listed_by_module() -> None:
    def make() -> nn.Module:
        return nn.Sequential(qnn.QuantReLU(bit_width=4), qnn.QuantConv2d(3, 8, 3, bit_width=4))

    with recorded_keywords():
        model = make()
    for found in (summary(model, (3, 8, 8)), summary(make, (3, 8, 8))):
        assert ("swallowed keyword", "1") in kinds(found)
    assert ("swallowed keyword", "1") not in kinds(summary(make(), (3, 8, 8)))
    assert ("default bits", "1") in kinds(summary(make(), (3, 8, 8)))


def test_it_prints_and_serialises() -> None:
    found = summary(Branches(), (3, 8, 8))
    text = str(found)
    for part in ("Branches", "one input of 3x8x8", "shared (3 times)", "uint3/tensor", "warnings"):
        assert part in text
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["layers"][1]["weight"]["bits"] == 4
    assert content["totals"] == {
        "parameters": found.parameters,
        "macs": found.macs,
        "bytes": found.bytes,
    }


def test_wrapped_models_and_shared_quantizers() -> None:
    first = qnn.QuantReLU(bit_width=4)
    second = qnn.QuantReLU(act_quant=first.act_quant)
    fc = qnn.QuantLinear(4, 4, weight_bit_width=4)
    model = nn.Sequential(first, fc, second, qnn.QuantLinear(4, 2, weight_bit_width=4))
    compiled: Any = torch.compile(model)
    for given in (model, compiled, nn.DataParallel(compiled), copy.deepcopy(model)):
        found = summary(given, (4,))
        assert [r.name for r in found.layers] == ["0", "1", "2", "3"]
        assert [str(r.activation) for r in found.layers if "ReLU" in r.layer] == [
            "uint4/tensor"
        ] * 2
        assert kinds(found) == []
        assert len(found.warnings) == 1  # one quantizer collects statistics


def test_wrappers_are_taken_off_in_any_order() -> None:
    inner = nn.Linear(2, 2)
    compiled: Any = torch.compile(inner)
    recompiled: Any = torch.compile(nn.DataParallel(compiled))
    for given in (inner, compiled, nn.DataParallel(inner), nn.DataParallel(compiled), recompiled):
        assert unwrapped(given) is inner


def test_distributed_models_are_looked_into(tmp_path: Path) -> None:
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(qnn.QuantLinear(4, 2, weight_bit_width=4))
        found = summary(model, (4,))
    finally:
        torch.distributed.destroy_process_group()
    assert (found.model, [r.name for r in found.layers]) == ("QuantLinear", [""])


class Rescaling(nn.Module):
    """Rescales the image before its input quantizer, as Brevitas' own networks do."""

    def __init__(self, **input_bits: int) -> None:
        super().__init__()
        self.quant_inp = qnn.QuantIdentity(**input_bits)
        self.conv1 = qnn.QuantConv2d(3, 4, 3, weight_bit_width=2)
        self.relu = qnn.QuantReLU(bit_width=2)
        self.conv2 = qnn.QuantConv2d(4, 4, 3, weight_bit_width=2)
        self.relu2 = qnn.QuantReLU(**input_bits)
        self.conv3 = qnn.QuantConv2d(4, 4, 3, weight_bit_width=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 8, 8) images to (N, 4, 2, 2) maps."""
        x = self.relu(self.conv1(self.quant_inp(2.0 * x - torch.tensor([1.0]))))
        maps: Tensor = self.conv3(self.relu2(self.conv2(x)))
        return maps


@pytest.mark.parametrize(
    ("input_bits", "kind"), [({}, "default bits"), ({"bit_width": 8}, "8 bits")]
)
def test_what_runs_before_the_first_weights_reads_the_image(
    input_bits: dict[str, int], kind: str
) -> None:
    assert kinds(summary(Rescaling(**input_bits), (3, 8, 8))) == [(kind, "relu2")]


def test_the_first_layer_s_output_is_no_input() -> None:
    layer = qnn.QuantConv2d(3, 4, 3, weight_bit_width=2, output_quant=Int8ActPerTensorFloat)
    assert bits_origin(layer, "output_quant") == "asked for"  # it has the bits in its name
    plain = qnn.QuantConv2d(3, 4, 3, weight_bit_width=2, output_quant=UnnamedBits)
    assert kinds(summary(plain, (3, 8, 8))) == [("default bits", "")]


@pytest.mark.parametrize(
    ("value", "mode", "warned"),
    [(0.3, "constant", True), (None, "constant", False), (0, "constant", False)]
    + [(None, "replicate", False)],
)
@pytest.mark.parametrize("by_keyword", [True, False])
def test_padding_with_other_values_gives_floats(
    value: float | None, mode: str, warned: bool, by_keyword: bool
) -> None:
    class Padding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = qnn.QuantLinear(4, 4, weight_bit_width=4)
            self.relu = qnn.QuantReLU(bit_width=4)
            self.fc2 = qnn.QuantLinear(6, 2, weight_bit_width=4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.fc1(x))
            x = (
                F.pad(x, (1, 1), mode=mode, value=value)
                if by_keyword
                else F.pad(x, (1, 1), mode, value)
            )
            scores: Tensor = self.fc2(x)
            return scores

    assert kinds(summary(Padding(), (4,))) == [("float", "fc2")] * warned


class Recurrent(nn.Module):
    """A recurrent layer between two others."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.fc1 = qnn.QuantLinear(8, 8, weight_bit_width=4)
        self.relu = qnn.QuantReLU(bit_width=4)
        self.recurrent = layer
        self.fc2 = qnn.QuantLinear(16, 2, weight_bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, steps, 8) to (N, steps, 2)."""
        scores: Tensor = self.fc2(self.recurrent(self.relu(self.fc1(x)))[0])
        return scores


@pytest.mark.parametrize(
    ("make", "remedy", "others"),
    [
        (lambda: qnn.QuantLSTM(8, 16), "all its bit widths", []),
        (lambda: qnn.QuantLSTM(8, 16, weight_bit_width=4), "all its bit widths", []),
        (lambda: qnn.QuantRNN(8, 16), "all its bit widths", []),
        (lambda: nn.LSTM(8, 16), "in float, use QuantLSTM", [("float", "fc2")]),
    ],
)
@pytest.mark.parametrize("shape", [(5, 8), None])
def test_recurrent_layers_are_not_looked_into(
    make: Any, remedy: str, others: list[tuple[str, str]], shape: tuple[int, ...] | None
) -> None:
    found = summary(Recurrent(make()), shape)
    behind = [] if shape is None else others
    assert kinds(found) == [("not looked into", "recurrent"), *behind]
    assert remedy in found.warnings[0].remedy
    assert found.macs is None
    alone = summary(make(), shape)
    assert ("not looked into", "") in kinds(alone)
    assert not {"default bits", "8 bits", "float"} & {kind for kind, _ in kinds(alone)}


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        (3, None, "got int: give a torch.nn.Module"),
        (dict, None, "returned dict: return a torch.nn.Module"),
        (nn.Linear(2, 2), (0,), "image_shape is \\(0,\\)"),
        (nn.Linear(2, 2), (), "image_shape is \\(\\)"),
        (nn.Linear(2, 2), 16, "image_shape is 16: give the sizes of one input"),
        (nn.Linear(2, 2), "3x8x8", "image_shape is '3x8x8': give"),
        (nn.Linear(2, 2), torch.rand(16, 16), "image_shape is tensor"),
        (nn.Linear(2, 2), (3,), "shape \\(3,\\) does not pass the model"),
    ],
)
def test_bad_input(given: Any, shape: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        summary(given, shape)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    model = Branches()
    expected = summary(model, (3, 8, 8))
    generator = torch.cuda.get_rng_state()
    assert summary(model.cuda(), (3, 8, 8)) == expected
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    assert next(model.parameters()).is_cuda
