# SPDX-License-Identifier: BSD-3-Clause
"""Thresholds give the levels that the exported nodes give, on either side of each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.custom_op.general.multithreshold import multithreshold

from brevitas_divqat.export.thresholds import Arithmetic, find_thresholds

OPSETS = {"": 13, "qonnx.custom_op.general": 2}
ROUNDING = ("ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN")
LIMIT = 2**24 - 1


@dataclass(frozen=True)
class Chain:
    """BatchNorm, bias, ReLU and Quant after a layer, as they would be exported.

    Attributes:
        gain, mean, variance, shift: of the BatchNorm, one of each per channel.
        epsilon: of the BatchNorm.
        bias: per channel; None for no Add.
        relu: whether there is one.
        step: the quantizer's scale.
        bits, signed, narrow, rounding: its other parameters.
        scale: of the accumulators, per channel.
    """

    gain: tuple[float, ...]
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    bias: tuple[float, ...] | None = None
    epsilon: float = 1e-5
    relu: bool = True
    step: float = 0.25
    bits: int = 3
    signed: bool = False
    narrow: bool = False
    rounding: str = "ROUND"

    @property
    def levels(self) -> range:
        """The integers of the quantizer."""
        if self.signed:
            return range(-(2 ** (self.bits - 1)) + self.narrow, 2 ** (self.bits - 1))
        return range(2**self.bits - self.narrow)

    @property
    def signs(self) -> NDArray[np.float64]:
        """The signs of the accumulators' scales that make the chain rise."""
        return np.where(np.asarray(self.gain) < 0, -1.0, 1.0)

    @property
    def scales(self) -> NDArray[np.float64]:
        return np.asarray(self.scale, np.float32).astype(np.float64) * self.signs

    @property
    def constants(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {
            name: np.asarray(getattr(self, name), np.float32)
            for name in ("gain", "shift", "mean", "variance", "step")
        }
        if self.bias is not None:
            found["bias"] = np.asarray(self.bias, np.float32).reshape(1, -1, 1, 1)
        return found | {
            "zero": np.zeros((), np.float32),
            "bits": np.full((), self.bits, np.float32),
        }

    @property
    def nodes(self) -> tuple[Any, ...]:
        chain = []
        if self.bias is not None:
            chain.append(helper.make_node("Add", ["a", "bias"], ["b"]))
        chain.append(
            helper.make_node(
                "BatchNormalization",
                ["b" if chain else "a", "gain", "shift", "mean", "variance"],
                ["c"],
                epsilon=self.epsilon,
            )
        )
        if self.relu:
            chain.append(helper.make_node("Relu", ["c"], ["d"]))
        chain.append(
            helper.make_node(
                "Quant",
                ["d" if self.relu else "c", "step", "zero", "bits"],
                ["e"],
                domain="qonnx.custom_op.general",
                signed=int(self.signed),
                narrow=int(self.narrow),
                rounding_mode=self.rounding,
            )
        )
        return tuple(chain)

    def arithmetic(self, rank: int = 4) -> Arithmetic:
        return Arithmetic(self.nodes, self.constants, OPSETS, rank)

    def level(self, integers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map (P, C) accumulators to levels, as the translation does."""
        values = self.arithmetic()(integers, self.scales).astype(np.float64)
        return np.rint(values / float(np.float32(self.step))).astype(np.int64)

    def thresholds(self, low: int, high: int) -> NDArray[np.int64]:
        least, most = (np.full(len(self.gain), end) for end in (low, high))
        return find_thresholds(self.level, least, most, self.levels[1:])

    def run(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Execute the nodes on one map of any shape; return the levels."""
        names = ["a", *(node.output[0] for node in self.nodes)]
        info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, values.shape) for n in names]
        graph = helper.make_graph(self.nodes, "chain", info[:1], info[-1:], value_info=info[1:-1])
        opsets = [helper.make_opsetid(*item) for item in OPSETS.items()]
        model = ModelWrapper(helper.make_model(graph, opset_imports=opsets))
        for name, value in self.constants.items():
            if any(name in node.input for node in self.nodes):
                model.set_initializer(name, value)
        answer = execute_onnx(model, {"a": values})["e"].astype(np.float64)
        return np.rint(answer / float(np.float32(self.step))).astype(np.int64)


def layouts(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Lay (P, C) values out as feature maps of several shapes; P is a multiple of 14."""
    count, channels = values.shape
    columns = values.T
    return {
        "1,C,P,1": columns.reshape(1, channels, count, 1),
        "1,C,1,P": columns.reshape(1, channels, 1, count),
        "P,C,1,1": values.reshape(count, channels, 1, 1),
        "1,C,7,P/7": columns.reshape(1, channels, 7, count // 7),
        "2,C,7,P/14": values.reshape(2, 7, count // 14, channels).transpose(0, 3, 1, 2).copy(),
    }


def check(chain: Chain, low: int, high: int, more: list[int]) -> None:
    """Compare thresholds with the exported nodes next to each threshold, at the ends and more."""
    thresholds = chain.thresholds(low, high)
    channels = len(chain.gain)
    assert thresholds.shape == (channels, len(chain.levels) - 1)
    assert (np.diff(thresholds, axis=1) >= 0).all()
    assert (thresholds >= low).all()
    assert (thresholds <= high + 1).all()
    near = np.concatenate([thresholds + offset for offset in (-1, 0, 1)], axis=1).T
    others = np.array([low, high, *more])[:, None].repeat(channels, axis=1)
    integers = np.clip(np.concatenate([near, others]), low, high)
    missing = -len(integers) % 14
    integers = np.concatenate([integers, integers[:1].repeat(missing, axis=0)])
    real = (integers * chain.scales).astype(np.float32)
    for name, sums in layouts(integers).items():
        counted = multithreshold(
            sums.astype(np.float32), thresholds.astype(np.float32), None, float(chain.levels[0])
        )
        levels = chain.run(layouts(real)[name])
        assert (counted == levels).all(), name


FLOATS = st.floats(-4, 4, width=32)
GAINS = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e-4, 1e6, -1e6]), FLOATS)
SCALES = st.one_of(
    st.sampled_from([2.0**-power for power in range(0, 20, 3)]),
    st.floats(2**-20, 1, width=32),
)
VARIANCES = st.one_of(st.sampled_from([1.0, 0.25]), st.floats(2**-14, 100, width=32))
STEPS = st.one_of(st.sampled_from([1.0, 0.5, 2.0**-8, 2.0**-4]), st.floats(2**-14, 8, width=32))


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    channels = draw(st.integers(1, 4))

    def some(strategy: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(draw(st.lists(strategy, min_size=channels, max_size=channels)))

    return Chain(
        gain=some(GAINS),
        mean=some(FLOATS),
        variance=some(VARIANCES),
        shift=some(FLOATS),
        scale=some(SCALES),
        bias=some(FLOATS) if draw(st.booleans()) else None,
        epsilon=draw(st.sampled_from([0.0, 1e-5, 1e-3])),
        relu=draw(st.booleans()),
        step=draw(STEPS),
        bits=draw(st.integers(2, 8)),
        signed=draw(st.booleans()),
        narrow=draw(st.booleans()),
        rounding=draw(st.sampled_from(ROUNDING)),
    )


RANGES = st.tuples(st.integers(-LIMIT, LIMIT), st.integers(-LIMIT, LIMIT)) | st.tuples(
    st.integers(-500, 0), st.integers(0, 500)
)


@settings(max_examples=40, deadline=None)
@given(chain=chains(), ends=RANGES, more=st.lists(st.integers(-LIMIT, LIMIT), max_size=40))
def test_levels_are_those_of_the_exported_nodes_in_every_layout(
    chain: Chain, ends: tuple[int, int], more: list[int]
) -> None:
    check(chain, min(ends), max(ends), more)


IDENTITY = Chain((1.0,), (0.0,), (1.0,), (0.0,), (0.125,), epsilon=0.0, step=0.25)


@pytest.mark.parametrize("rounding", ROUNDING)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_ties_fall_as_the_rounding_mode_says(rounding: str, signed: bool) -> None:
    """Every second accumulator lies in the middle between two levels."""
    chain = Chain(
        (1.0, -1.0),
        (0.0, 0.0),
        (1.0, 1.0),
        (0.0, 0.0),
        (0.125, 0.125),
        epsilon=0.0,
        step=0.25,
        bits=4,
        relu=not signed,
        signed=signed,
        rounding=rounding,
    )
    check(chain, -40, 40, list(range(-40, 41)))


def test_ties_to_even_are_where_numpy_has_them() -> None:
    """Levels 1, 2, 3 … begin at 0.5 (exclusive), 1.5 (inclusive), 2.5 (exclusive) …"""
    assert IDENTITY.thresholds(0, 100).tolist() == [[2, 3, 6, 7, 10, 11, 14]]


@settings(max_examples=15, deadline=None)
@given(chain=chains())
@example(chain=IDENTITY)
def test_every_accumulator_of_a_small_range(chain: Chain) -> None:
    check(chain, -150, 150, list(range(-150, 151)))


def test_a_channel_without_gain_is_constant() -> None:
    low, high = -100, 100
    chain = Chain((0.0,) * 3, (0.3,) * 3, (1.0,) * 3, (-1.0, 0.75, 50.0), (0.01,) * 3)
    expected = [[high + 1] * 7, [low] * 3 + [high + 1] * 4, [low] * 7]
    assert chain.thresholds(low, high).tolist() == expected
    check(chain, low, high, [])


def test_levels_out_of_the_range_are_never_reached() -> None:
    thresholds = IDENTITY.thresholds(0, 8)
    assert thresholds.tolist() == [[2, 3, 6, 7, 9, 9, 9]]
    assert IDENTITY.thresholds(-20, -10).tolist() == [[-9] * 7]
    assert IDENTITY.thresholds(20, 30).tolist() == [[20] * 7]


def test_a_range_of_one_integer() -> None:
    assert IDENTITY.thresholds(5, 5).tolist() == [[5, 5, 6, 6, 6, 6, 6]]


def test_channels_have_ranges_of_their_own() -> None:
    low, high = np.array([0, -3, 10]), np.array([8, 2, 20])
    chain = Chain((1.0,) * 3, (0.0,) * 3, (1.0,) * 3, (0.0,) * 3, (0.125,) * 3, epsilon=0.0)
    thresholds = find_thresholds(chain.level, low, high, chain.levels[1:])
    assert thresholds.tolist() == [
        [2, 3, 6, 7, 9, 9, 9],
        [2, 3, 3, 3, 3, 3, 3],
        [10, 10, 10, 10, 10, 11, 14],
    ]


@settings(max_examples=15, deadline=None)
@given(chain=chains(), sums=st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=20))
def test_vectors_and_maps_have_the_same_arithmetic(chain: Chain, sums: list[int]) -> None:
    integers = np.array(sums)[:, None].repeat(len(chain.gain), axis=1)
    by_vector = chain.arithmetic(2)(integers, chain.scales)
    by_map = chain.arithmetic(4)(integers, chain.scales)
    assert by_vector.shape == integers.shape
    np.testing.assert_array_equal(by_vector, by_map)


def test_no_nodes_leave_the_rounded_products() -> None:
    integers = np.array([[3, -5], [LIMIT, 0]])
    scale = np.array([1 / 3, 0.1])
    found = Arithmetic((), {}, OPSETS, 4)(integers, scale)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (integers * scale).astype(np.float32))


def test_a_constant_serves_two_nodes_in_two_shapes() -> None:
    """BatchNorm wants it flat, Add wants it spread over the map."""
    nodes = (
        helper.make_node("Add", ["a", "constant"], ["b"]),
        helper.make_node("BatchNormalization", ["b", *["constant"] * 4], ["c"], epsilon=0.0),
        helper.make_node("Mul", ["c", "scalar"], ["d"]),
    )
    constants = {
        "constant": np.array([1.0, 4.0], np.float32),
        "scalar": np.full((1, 1, 1, 1), 2, np.float32),
    }
    for rank in (2, 4):
        found = Arithmetic(nodes, constants, OPSETS, rank)(np.array([[3, 6]] * 5), np.array(1.0))
        # ((3 + 1 - 1) / 1 * 1 + 1) * 2 and ((6 + 4 - 4) / 2 * 4 + 4) * 2
        np.testing.assert_array_equal(found, np.array([[8, 32]] * 5, np.float32))
