# SPDX-License-Identifier: BSD-3-Clause
"""Keywords that Brevitas swallows: found at construction, in the source, and in quantizers."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
from brevitas.inject import value
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerTensorFloat,
    SignedBinaryWeightPerTensorConst,
)
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.inspection import recorded_keywords, strict_keywords
from brevitas_divqat.inspection.accepted import accepted_keywords, layer_classes, nearest_keyword
from brevitas_divqat.inspection.injectors import bits_origin, unused_keywords
from brevitas_divqat.inspection.sources import swallowed_in_sources
from brevitas_divqat.models import build
from brevitas_divqat.models.layers import Precision

LAYERS = sorted(
    (cls for cls in layer_classes() if hasattr(qnn, cls.__name__)), key=lambda cls: cls.__name__
)


class MisspeltQuantizer(Int8WeightPerTensorFloat):
    """A quantizer whose bit width is misspelt."""

    bit_widht = 4


class HalvedQuantizer(Int8WeightPerTensorFloat):
    """A quantizer with an attribute of its own, which it makes use of."""

    twice_the_bits = 8

    @value
    def bit_width(twice_the_bits: int) -> int:
        return twice_the_bits // 2


class Careless(nn.Module):
    """Drops one keyword, and one more through functools.partial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = qnn.QuantConv2d(3, 4, 3, bit_width=4)
        make = partial(qnn.QuantLinear, narrow_range=True)
        self.fc = make(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        scores: Tensor = self.fc(self.conv(x).mean((2, 3)))
        return scores


def conv(**keywords: Any) -> nn.Module:
    layer: nn.Module = qnn.QuantConv2d(3, 8, 3, **keywords)
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv(bit_width=4), "QuantConv2d(bit_width=4) # is dropped: weight_bit_width=4"),
        (lambda: conv(bitwidth=4), "QuantConv2d(bitwidth=4) # is dropped: weight_bit_width=4"),
        (
            lambda: conv(wieght_bit_width=4),
            "QuantConv2d(wieght_bit_width=4) # is dropped: weight_bit_width=4",
        ),
        (
            lambda: conv(weight_bitwidth=4),
            "QuantConv2d(weight_bitwidth=4) # nothing reads it: weight_bit_width=4",
        ),
        (
            lambda: conv(weight_narow_range=True),
            "QuantConv2d(weight_narow_range=True) # nothing reads it: weight_narrow_range=True",
        ),
        (
            lambda: qnn.QuantReLU(bitwidth=4),
            "QuantReLU(bitwidth=4) # nothing reads it: bit_width=4",
        ),
        (
            lambda: qnn.TruncAvgPool2d(2, bitwidth=4),
            "TruncAvgPool2d(bitwidth=4) # nothing reads it: bit_width=4",
        ),
        (
            lambda: qnn.QuantReLU(act_quant=None, bit_width=4),
            "QuantReLU(bit_width=4) # switched off: remove bit_width",
        ),
        (
            lambda: conv(weight_quant=None, weight_bit_width=4),
            "QuantConv2d(weight_bit_width=4) # switched off: remove weight_bit_width",
        ),
        (
            lambda: conv(weight_quant=SignedBinaryWeightPerTensorConst, weight_bit_width=4),
            "QuantConv2d(weight_bit_width=4) # is fixed: remove weight_bit_width",
        ),
        (
            lambda: qnn.QuantLSTM(3, 4, bit_width=4),
            "QuantLSTM(bit_width=4) # is dropped: bit_width=4",
        ),
        (
            lambda: qnn.QuantMultiheadAttention(8, 2, in_proj_bit_width=4),
            "QuantMultiheadAttention(in_proj_bit_width=4) # is dropped: in_proj_",
        ),
        (
            lambda: conv(weight_quant=MisspeltQuantizer),
            "bit_widht=4 # nothing reads it: bit_width=4",
        ),
    ],
)
def test_a_swallowed_keyword_is_refused(make: Any, message: str) -> None:
    call, _, rest = message.partition(" # ")
    reason, _, remedy = rest.partition(": ")
    with pytest.raises(ConfigError) as caught, strict_keywords():
        make()
    line = str(caught.value)
    assert "\n" not in line
    for part in (call, reason, remedy, "test_inspection_keywords.py:"):
        assert part in line


@pytest.mark.parametrize(
    "make",
    [
        lambda: conv(weight_bit_width=4, weight_narrow_range=True, return_quant_tensor=False),
        lambda: conv(input_quant=Int8ActPerTensorFloat, input_bit_width=4, output_bit_width=None),
        lambda: conv(weight_quant=SignedBinaryWeightPerTensorConst, weight_bit_width=1),
        lambda: conv(weight_quant=HalvedQuantizer),
        lambda: conv(weight_quant=HalvedQuantizer, weight_twice_the_bits=6),
        lambda: qnn.QuantReLU(bit_width=4, max_val=6.0, input_quant=None),
        lambda: qnn.QuantReLU(input_quant=Int8ActPerTensorFloat, input_bit_width=4, bit_width=3),
        lambda: qnn.QuantHardTanh(bit_width=2, min_val=-1.0, max_val=1.0),
        lambda: qnn.QuantLSTM(3, 4, io_bit_width=4, weight_bit_width=3, sigmoid_bit_width=5),
        lambda: qnn.QuantMultiheadAttention(8, 2, in_proj_weight_bit_width=4, v_bit_width=4),
        lambda: qnn.TruncAvgPool2d(2, bit_width=4, float_to_int_impl_type="floor"),
        lambda: build("lenet5", (1, 8, 8), 10, precision=Precision()),
        lambda: build("cnv", (3, 32, 32), 10, precision=Precision(), width=0.125),
    ],
)
def test_what_has_an_effect_is_no_mistake(make: Any) -> None:
    with recorded_keywords() as swallowed:
        make()
    assert swallowed == []


@pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)
def test_every_layer_s_keywords_can_be_told(cls: type) -> None:
    accepted = accepted_keywords(cls)
    assert not accepted.anything
    assert accepted.prefixes
    assert accepted.takes("return_quant_tensor") or cls is qnn.QuantScaledDotProductAttention


def test_nothing_similar_is_suggested_for_nonsense() -> None:
    assert nearest_keyword(qnn.QuantConv2d, "zzzz") is None


def test_constructors_are_as_before_after_the_block() -> None:
    before = {cls: cls.__init__ for cls in LAYERS}  # type: ignore[misc]
    with strict_keywords():
        assert qnn.QuantConv2d.__init__ is not before[qnn.QuantConv2d]
        with recorded_keywords() as inner:
            conv(bit_width=4)
        with pytest.raises(ConfigError):
            conv(bit_width=4)
    assert len(inner) == 1
    with pytest.raises(ZeroDivisionError), recorded_keywords():
        raise ZeroDivisionError
    assert {cls: cls.__init__ for cls in LAYERS} == before  # type: ignore[misc]
    conv(bit_width=4)


def test_another_thread_is_not_checked() -> None:
    built: list[nn.Module] = []
    with strict_keywords():
        thread = threading.Thread(target=lambda: built.append(conv(bit_width=4)))
        thread.start()
        thread.join()
    assert len(built) == 1


def test_recording_builds_the_same_layer() -> None:
    torch.manual_seed(1)
    plain = conv(bit_width=4)
    torch.manual_seed(1)
    with recorded_keywords():
        recorded = conv(bit_width=4)
    first, second = plain.state_dict(), recorded.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_keyword_with_the_wrong_type_of_call_is_still_a_type_error() -> None:
    with pytest.raises(TypeError), strict_keywords():
        qnn.QuantConv2d(3, 8)


def test_the_source_tells_what_was_dropped() -> None:
    found = swallowed_in_sources(nn.Sequential(Careless(), Careless()))
    assert [(name, keyword.keyword, keyword.nearest) for name, keyword in found] == [
        ("0", "bit_width", "weight_bit_width"),
        ("0", "narrow_range", "weight_narrow_range"),
    ]
    lines = [keyword.where for _, keyword in found]
    assert all(str(line).startswith("test_inspection_keywords.py:") for line in lines)
    with recorded_keywords() as recorded:
        Careless()
    assert recorded[0].where == lines[0]


def test_without_source_nothing_is_said() -> None:
    namespace: dict[str, Any] = {"__name__": "made_up", "nn": nn, "qnn": qnn}
    exec(
        "class Hidden(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = qnn.QuantConv2d(3, 4, 3, bit_width=4)\n",
        namespace,
    )
    assert swallowed_in_sources(namespace["Hidden"]()) == []


def test_finished_layers_tell_what_reached_their_quantizers() -> None:
    (found,) = unused_keywords(conv(weight_bitwidth=4))
    assert (found.keyword, found.value, found.nearest) == (
        "weight_bitwidth",
        "4",
        "weight_bit_width",
    )
    assert unused_keywords(nn.Conv2d(3, 8, 3)) == ()


@pytest.mark.parametrize(
    ("make", "origin"),
    [
        (lambda: conv(), "default"),
        (lambda: conv(bit_width=4), "default"),
        (lambda: conv(weight_bit_width=8), "asked for"),
        (lambda: conv(weight_quant=HalvedQuantizer), "asked for"),
        (lambda: conv(weight_quant=MisspeltQuantizer), "default"),
        (lambda: conv(weight_quant=None), "unknown"),
    ],
)
def test_who_chose_the_bits(make: Any, origin: str) -> None:
    assert bits_origin(make(), "weight_quant") == origin
