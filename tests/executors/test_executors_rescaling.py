# SPDX-License-Identifier: BSD-3-Clause
"""Rescalings are the thresholds' own function on every integer, or there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from brevitas_divqat.executors.rescaling import Rescaling, fit_parts, fit_rescaling

Integers = NDArray[np.int64]
Case = tuple[Integers, Integers, Integers]
"""Thresholds (C, L), least and greatest integers (C,)."""


def numbers(thresholds: Integers, integers: Integers) -> Integers:
    """Return how many thresholds each of (P,) integers reaches, (P, C)."""
    return (integers[:, None, None] >= thresholds[None]).sum(axis=2)


def in_range(low: Integers, high: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """Return all integers of all channels' ranges, and which channel has which."""
    integers = np.arange(low.min(), high.max() + 1)
    return integers, (integers[:, None] >= low) & (integers[:, None] <= high)


def rescaled(found: Rescaling, integers: Integers, levels: int, divide: bool) -> Integers:
    """Return what the kernels compute: exact integers, one float32 product, one rounding."""
    sums = found.multiplier * integers[:, None] + found.offset
    assert (sums == np.rint(sums)).all()
    real = sums.astype(np.float32)
    scaled = real / found.factor if divide else real * found.factor
    assert scaled.dtype == np.float32
    return np.clip(np.rint(scaled), 0, levels).astype(np.int64)


def assert_equals_thresholds(case: Case, multiplier: Integers, divide: bool) -> bool:
    """Compare a rescaling, if there is one, with the thresholds on all integers in range."""
    thresholds, low, high = case
    found = fit_rescaling(thresholds, low, high, multiplier, divide=divide)
    if found is None:
        return False
    assert (found.factor.dtype, found.factor.shape) == (np.float32, (len(thresholds),))
    assert (found.factor > 0).all()
    integers, counts = in_range(low, high)
    got = rescaled(found, integers, thresholds.shape[1], divide)
    np.testing.assert_array_equal(got[counts], numbers(thresholds, integers)[counts])
    return True


def assert_parts_equal_thresholds(case: Case) -> int:
    thresholds, low, high = case
    parts = fit_parts(thresholds, low, high)
    assert sum(part.levels for part in parts) == thresholds.shape[1]
    integers, counts = in_range(low, high)
    total = np.zeros((len(integers), len(thresholds)), np.int64)
    for part in parts:
        assert part.levels > 0
        assert part.offset.dtype == part.divisor.dtype == np.float32
        shifted = integers[:, None].astype(np.float32) + part.offset
        quotient = shifted / part.divisor
        assert quotient.dtype == np.float32
        total += np.clip(np.rint(quotient), 0, min(part.levels, 255)).astype(np.int64)
    np.testing.assert_array_equal(total[counts], numbers(thresholds, integers)[counts])
    return len(parts)


@st.composite
def ranges(draw: st.DrawFn, channels: int) -> tuple[Integers, Integers]:
    centre = draw(st.sampled_from([0, 0, -5, 1000, 2**23, -(2**24) + 4000]))
    widths = st.lists(st.integers(0, 2000), min_size=channels, max_size=channels)
    return centre - np.int64(draw(widths)), centre + np.int64(draw(widths))


@st.composite
def affine(draw: st.DrawFn) -> Case:
    """Thresholds at equal real distances, rounded up, as quantizers have them."""
    channels = draw(st.integers(1, 4))
    low, high = draw(ranges(channels))
    levels = draw(st.sampled_from([1, 2, 3, 7, 15, 60, 255]))
    rows = []
    for least, most in zip(low, high, strict=True):
        step = draw(st.floats(0.01, max(0.02, 2.0 * (most - least) / levels)))
        first = draw(st.floats(least - levels * step, most + 10.0))
        rows.append(np.ceil(first + step * np.arange(levels)))
    thresholds = np.int64(rows)
    if draw(st.booleans()):  # as the integer graph tells what is never reached
        thresholds = np.clip(thresholds, low[:, None], high[:, None] + 1)
    return thresholds, low, high


@st.composite
def arbitrary(draw: st.DrawFn) -> Case:
    """Thresholds anywhere: equal ones, far outside the range."""
    channels = draw(st.integers(1, 4))
    low, high = draw(ranges(channels))
    levels = draw(st.integers(1, 20))
    anywhere = st.one_of(
        st.integers(int(low.min()) - 50, int(high.max()) + 50),
        st.sampled_from([-(2**24), 2**24, -(2**31), 2**31 - 1, 2**40, 0, 1]),
    )
    row = st.lists(anywhere, min_size=levels, max_size=levels).map(sorted)
    return np.int64(draw(st.lists(row, min_size=channels, max_size=channels))), low, high


@settings(max_examples=150, deadline=None)
@given(case=st.one_of(affine(), arbitrary()), data=st.data())
def test_a_rescaling_equals_the_thresholds_on_every_integer(
    case: Case, data: st.DataObject
) -> None:
    channels = len(case[0])
    rooms = st.lists(st.sampled_from([1, 2, 3, 18, 64, 127]), min_size=channels, max_size=channels)
    assert_equals_thresholds(case, np.int64(data.draw(rooms)), data.draw(st.booleans()))


@settings(max_examples=100, deadline=None)
@given(case=affine())
def test_parts_of_equidistant_thresholds_equal_them(case: Case) -> None:
    assert_parts_equal_thresholds(case)


@settings(max_examples=100, deadline=None)
@given(case=arbitrary())
@example(case=(np.int64([[5, 5, 5, 5]]), np.int64([-10]), np.int64([10])))
@example(case=(np.int64([[-99, -99, 99, 99]]), np.int64([-10]), np.int64([10])))
@example(case=(np.int64([[0]]), np.int64([0]), np.int64([0])))
@example(case=(np.int64([[2**24] * 3]), np.int64([0]), np.int64([10])))
@example(case=(np.int64([[-(2**24) + 1, 2**24 - 1]]), np.int64([-10]), np.int64([10])))
@example(case=(np.int64([range(255)]), np.int64([0]), np.int64([255])))
@example(case=(np.int64([[0] * 255]), np.int64([-1]), np.int64([1])))
def test_parts_of_any_thresholds_equal_them(case: Case) -> None:
    assert_parts_equal_thresholds(case)


@settings(max_examples=60, deadline=None)
@given(
    step=st.integers(1, 90),
    first=st.integers(-500, 500),
    levels=st.integers(1, 22),
    multiplier=st.sampled_from([1, 2, 127]),
    divide=st.booleans(),
)
def test_thresholds_at_a_whole_distance_have_a_rescaling(
    step: int, first: int, levels: int, multiplier: int, divide: bool
) -> None:
    """Of two levels' thresholds at whole distances, round((a + b) / step) is a clear solution."""
    thresholds = (first + step * np.arange(levels))[None]
    low, high = np.int64([-2500]), np.int64([2500])
    assert assert_equals_thresholds((thresholds, low, high), np.int64([multiplier]), divide)
    assert assert_parts_equal_thresholds((thresholds, low, high)) == 1


def test_uneven_thresholds_have_no_rescaling() -> None:
    thresholds = np.int64([[0, 1, 2, 50, 51, 52]])
    low, high = np.int64([-100]), np.int64([100])
    for divide in (False, True):
        assert fit_rescaling(thresholds, low, high, np.int64([127]), divide=divide) is None
    assert assert_parts_equal_thresholds((thresholds, low, high)) == 2


def test_one_uneven_channel_of_many_has_none_for_all() -> None:
    """Also where channels are fitted a few at a time."""
    even = np.arange(0, 60, 10)
    for channels in (1, 64, 65, 130):
        thresholds = np.tile(even, (channels, 1))
        ends = np.full(channels, -200), np.full(channels, 200)
        multiplier = np.full(channels, 9)
        assert assert_equals_thresholds((thresholds, *ends), multiplier, False)
        for channel in {0, channels // 2, channels - 1}:
            spoiled = thresholds.copy()
            spoiled[channel] = [0, 1, 2, 50, 51, 52]
            assert fit_rescaling(spoiled, *ends, multiplier) is None
            assert_parts_equal_thresholds((spoiled, *ends))


@pytest.mark.parametrize("centre", [2**24 - 300, -(2**24) + 300])
def test_at_the_end_of_float32_s_integers(centre: int) -> None:
    rng = np.random.default_rng(centre % 97)
    for _ in range(20):
        thresholds = np.sort(rng.integers(centre - 320, centre + 320, (2, 6)), axis=1)
        ends = np.full(2, centre - 299), np.full(2, centre + 299)
        assert_equals_thresholds((thresholds, *ends), np.int64([1, 64]), False)
        assert_parts_equal_thresholds((thresholds, *ends))
