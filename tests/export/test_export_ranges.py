# SPDX-License-Identifier: BSD-3-Clause
"""Ranges of dot products and datatypes, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from qonnx.core.datatype import DataType

from brevitas_divqat.export.ranges import EXACT_FLOAT32, dot_range, magnitude, smallest_datatype

Weights = NDArray[np.int64]
WEIGHTS = arrays.arrays(
    np.int64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=4), elements=st.integers(-9, 9)
)
ENDS = st.tuples(st.integers(-9, 9), st.integers(-9, 9)).map(sorted)


def all_sums(row: Weights, low: int, high: int) -> list[int]:
    """Return every sum of the products of some of the inputs, each at one of its ends."""
    return [
        int(np.dot(row, choice)) for choice in itertools.product((low, 0, high), repeat=len(row))
    ]


@given(weights=WEIGHTS, ends=ENDS)
def test_dot_range_is_reached_and_never_left(weights: Weights, ends: list[int]) -> None:
    low, high = ends
    least, greatest = dot_range(weights, low, high)
    assert least.shape == greatest.shape == (len(weights),)
    for row, a, b in zip(weights, least, greatest, strict=True):
        sums = all_sums(row, low, high)
        assert (min(sums), max(sums)) == (a, b)


@given(weights=WEIGHTS, ends=ENDS)
def test_magnitude_bounds_every_partial_sum(weights: Weights, ends: list[int]) -> None:
    low, high = ends
    bounds = magnitude(weights, low, high)
    for row, bound in zip(weights, bounds, strict=True):
        products = [max((w * low, w * high), key=abs) for w in row]
        subsets = itertools.product((0, 1), repeat=len(row))
        assert max(abs(int(np.dot(products, subset))) for subset in subsets) <= bound
        # Every product may count with its own sign: a sum may be split into differences.
        assert sum(abs(int(product)) for product in products) == bound


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [
        (0, 0, "UINT1"),
        (0, 1, "UINT1"),
        (0, 2, "UINT2"),
        (0, 255, "UINT8"),
        (0, 256, "UINT9"),
        (5, 7, "UINT3"),
        (-1, 0, "INT2"),
        (-1, 1, "INT2"),
        (-2, 1, "INT2"),
        (-2, 2, "INT3"),
        (-3, -1, "INT3"),
        (-8, 7, "INT4"),
        (-8, 8, "INT5"),
        (-9, 7, "INT5"),
        (-128, 0, "INT8"),
        (-(2**23), 2**23 - 1, "INT24"),
        (-EXACT_FLOAT32 + 1, EXACT_FLOAT32 - 1, "INT25"),
    ],
)
def test_smallest_datatype_of(low: int, high: int, name: str) -> None:
    assert smallest_datatype(low, high) == DataType[name]


@settings(max_examples=300)
@given(st.tuples(st.integers(-(2**24), 2**24), st.integers(-(2**24), 2**24)).map(sorted))
def test_smallest_datatype_holds_the_range_and_no_smaller_one_does(ends: list[int]) -> None:
    low, high = ends
    found = smallest_datatype(low, high)
    assert found.min() <= low
    assert high <= found.max()
    kind = "UINT" if low >= 0 else "INT"
    bits = found.bitwidth()
    assert found == DataType[f"{kind}{bits}"]
    if bits > (1 if kind == "UINT" else 2):
        smaller = DataType[f"{kind}{bits - 1}"]
        assert low < smaller.min() or high > smaller.max()


def test_float32_sums_below_the_limit_are_exact_and_the_limit_is_sharp() -> None:
    below = np.float32(EXACT_FLOAT32 - 1)
    assert int(below) == EXACT_FLOAT32 - 1
    assert below + np.float32(1) == EXACT_FLOAT32
    assert np.float32(EXACT_FLOAT32) + np.float32(1) == EXACT_FLOAT32  # lost
