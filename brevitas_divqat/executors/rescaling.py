# SPDX-License-Identifier: BSD-3-Clause
"""Thresholds as one multiplication and one rounding, where that is the same function.

A quantizer's thresholds on an accumulator a lie, but for their own rounding, at equal distances.
If numbers k, b and m exist with round(m * (k * a + b)) = number of thresholds that a reaches, for
every integer a in range, the integer kernels of onnxruntime compute thresholds on the way. Both
sides are monotone in a, so that checking each threshold and its predecessor proves equality for all
a; the check uses the very float32 arithmetic of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "Rescaling", "fit_parts", "fit_rescaling"]

OFFSETS_TRIED = 129
CHANNELS_AT_ONCE = 64


@dataclass(frozen=True)
class Rescaling:
    """round(factor * (multiplier * a + offset)) = count of thresholds that a reaches.

    Attributes:
        multiplier: (C,) integers, or 1 / granularity where offsets are fractions.
        offset: (C,) float64.
        factor: (C,) float32.
    """

    multiplier: NDArray[np.int64]
    offset: NDArray[np.float64]
    factor: NDArray[np.float32]


def fit_rescaling(
    thresholds: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    multiplier: NDArray[np.int64],
    *,
    divide: bool = False,
) -> Rescaling | None:
    """Find a rescaling that equals thresholds on every integer in range.

    Args:
        thresholds: (C, L), non-decreasing along L.
        low: (C,) least accumulators.
        high: (C,) greatest accumulators.
        multiplier: (C,) positive integers k: offsets are integers beside k * a.
        divide: the kernel divides by a float32 instead of multiplying by one; ``factor`` is then
            the divisor.

    Returns:
        None where a channel has no such rescaling.
    """
    factors = np.empty(len(thresholds), np.float32)
    offsets = np.empty(len(thresholds), np.float64)
    for start in range(0, len(thresholds), CHANNELS_AT_ONCE):
        part = slice(start, start + CHANNELS_AT_ONCE)
        found = _fit(thresholds[part], low[part], high[part], multiplier[part], divide)
        if found is None:
            return None
        factors[part], offsets[part] = found
    return Rescaling(multiplier, offsets, factors)


@dataclass(frozen=True)
class Part:
    """Consecutive levels that round((a + offset) / divisor) counts, clipped at 0 and ``levels``.

    Attributes:
        levels: how many.
        offset: (C,) float32 values, so that float32 adds them.
        divisor: (C,) float32.
    """

    levels: int
    offset: NDArray[np.float32]
    divisor: NDArray[np.float32]


def fit_parts(
    thresholds: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> list[Part]:
    """Cut thresholds into the longest runs of levels that have a rescaling, lowest level first.

    A single level has one, and so every list of thresholds is such a sum.

    Args:
        thresholds: (C, L), non-decreasing along L.
        low: (C,) least integers, of magnitude below 2^24.
        high: (C,) greatest integers, likewise.
    """
    parts = []
    while thresholds.shape[1]:
        parts.append(_longest_part(thresholds, low, high))
        thresholds = thresholds[:, parts[-1].levels :]
    return parts


def _longest_part(
    thresholds: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> Part:
    whole = _part(thresholds, low, high)
    if whole is not None:
        return whole
    first = (1 - thresholds[:, 0]).astype(np.float32)  # a reaches t: a + 1 - t is 1 or more
    best = Part(1, first, np.ones_like(first))
    fits, fails = 1, thresholds.shape[1]
    while fails - fits > 1:
        middle = (fits + fails) // 2
        tried = _part(thresholds[:, :middle], low, high)
        if tried is None:
            fails = middle
        else:
            best, fits = tried, middle
    return best


def _part(
    thresholds: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> Part | None:
    largest = np.maximum(np.maximum(np.abs(low), np.abs(high)), np.abs(thresholds).max(axis=1))
    # Offsets are fractions of an integer, as fine as float32 can add to the integers.
    room = 2 ** np.maximum(0, 23 - np.ceil(np.log2(largest + 1))).astype(np.int64)
    fitted = fit_rescaling(thresholds, low, high, room, divide=True)
    if fitted is None:
        return None
    offset = (fitted.offset / room).astype(np.float32)
    if (offset.astype(np.float64) * room != fitted.offset).any():
        return None
    return Part(thresholds.shape[1], offset, fitted.factor / room.astype(np.float32))


def _fit(
    thresholds: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    multiplier: NDArray[np.int64],
    divide: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float64]] | None:
    levels = np.arange(1, thresholds.shape[1] + 1)
    halves = levels - 0.5
    k = multiplier[:, None]
    # The least accumulator that reaches a level, and the greatest that does not; where a level is
    # reached by all or none, the nearest end of the range tells all there is.
    reaches = np.maximum(thresholds, low[:, None])
    misses = np.minimum(thresholds - 1, high[:, None])
    is_reached = (thresholds <= high[:, None]).T[None]
    is_missed = (thresholds > low[:, None]).T[None]
    offsets = _candidates(thresholds, low, high, k)  # (T, C)
    shape = (len(offsets), len(levels), len(thresholds))
    up = (k * reaches).T[None] + offsets[:, None]  # (T, L, C)
    down = (k * misses).T[None] + offsets[:, None]
    rise = np.broadcast_to(halves[None, :, None], shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        least = np.where(is_reached, np.where(up > 0, rise / up, np.inf), 0.0).max(axis=1)
        most = np.where(is_missed & (down > 0), rise / down, np.inf).min(axis=1)
    feasible = (least < most) & np.isfinite(least)  # (T, C)
    least = np.where(feasible, least, 0.0)
    most = np.where(np.isfinite(most), most, 2 * least + 1)
    width = np.where(feasible, (most - least) / np.maximum(most, 1e-300), -1.0)
    best = width.argmax(axis=0)
    channels = np.arange(len(thresholds))
    if not feasible[best, channels].all():
        return None
    offset = offsets[best, channels]
    middle = (least[best, channels] + most[best, channels]) / 2
    factor = (1 / middle if divide else middle).astype(np.float32)
    for ends, sought, counted in (
        (reaches, is_reached[0].T, 0),
        (misses, is_missed[0].T, 1),
    ):
        scaled = (k * ends + offset[:, None]).astype(np.float32)
        by = factor[:, None]
        count = np.rint(scaled / by if divide else scaled * by)
        right = count >= levels if counted == 0 else count < levels
        if not right[sought].all():
            return None
    return factor, offset


def _candidates(
    thresholds: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    k: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return (T, C) integer offsets around the one that the thresholds' regression line implies."""
    inside = (thresholds > low[:, None]) & (thresholds <= high[:, None])
    levels = np.arange(1, thresholds.shape[1] + 1) - 0.5
    weights = inside.astype(np.float64)
    count = np.maximum(weights.sum(axis=1), 1)
    mean_t = (weights * thresholds).sum(axis=1) / count
    mean_l = (weights * levels).sum(axis=1) / count
    spread = (weights * (levels - mean_l[:, None]) ** 2).sum(axis=1)
    slope = (weights * (levels - mean_l[:, None]) * (thresholds - mean_t[:, None])).sum(axis=1)
    step = np.where(spread > 0, slope / np.maximum(spread, 1e-300), 1.0)
    step = np.maximum(step, 1e-3)
    # A threshold is the first integer at or above the real one: half an integer more on average.
    centre = np.rint(k[:, 0] * (mean_l * step - mean_t + 0.5))
    around = np.arange(OFFSETS_TRIED) - OFFSETS_TRIED // 2
    # The more levels, the narrower the interval of offsets that suit them all.
    spacing = np.maximum(1, k[:, 0] // (2 * len(levels)))
    offsets: NDArray[np.float64] = centre[None, :] + around[:, None] * spacing
    return offsets
