# SPDX-License-Identifier: BSD-3-Clause
"""Ranges of integers and the smallest datatypes that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT_FLOAT32", "dot_range", "magnitude", "smallest_datatype"]

EXACT_FLOAT32 = 2**24
"""Every integer of a smaller magnitude is a float32, and so is every sum of some of them."""


def smallest_datatype(low: int, high: int) -> Any:
    """Return the smallest qonnx integer datatype that holds low … high: UINTn or INTn."""
    from qonnx.core.datatype import DataType

    if low >= 0:
        return DataType[f"UINT{max(1, int(high).bit_length())}"]
    bits = 1 + max(max(0, int(high)).bit_length(), int(-low - 1).bit_length())
    # INT1 does not exist: qonnx means BIPOLAR by one signed bit.
    return DataType[f"INT{max(2, bits)}"]


def dot_range(
    weights: NDArray[np.int64], low: int, high: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bound the accumulators of a dot product, whatever the order of its additions.

    Args:
        weights: (O, K) integers, one row per output channel.
        low: the least input.
        high: the greatest input.

    Returns:
        Least and greatest value, (O,) each, that a sum of any of the products can take; 0 lies
        between them, for zero padding and for the accumulator's start.
    """
    ends = np.stack([weights * min(low, 0), weights * max(high, 0)])
    return ends.min(axis=0).sum(axis=1), ends.max(axis=0).sum(axis=1)


def magnitude(weights: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """Bound the magnitude of every partial sum, whatever the order and grouping of the additions.

    Args:
        weights: (O, K) integers.
        low: the least input.
        high: the greatest input.

    Returns:
        (O,) integers.
    """
    return np.abs(weights).sum(axis=1) * max(abs(low), abs(high))
