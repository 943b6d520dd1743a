# SPDX-License-Identifier: BSD-3-Clause
"""Reference logits kept by what the reference was given, for images that come again each epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from brevitas_divqat.errors import ConfigError

__all__ = ["LogitCache", "fingerprints"]

WORDS = 2
"""64-bit words of a fingerprint. One word has at least 33 random bits for inputs that differ
anywhere (the factor 2^31 of a difference of two 32-bit words can cancel the others), two have 66:
among a million inputs, two of one fingerprint are a matter of 1 in 10^8."""


def fingerprints(inputs: Tensor) -> list[tuple[int, ...]]:
    """Fingerprint each input of a batch by the bits of its elements.

    The fingerprint is a random linear function of the elements, modulo 2^64: it does not depend on
    the input's place in the batch, the batch's size, or the device.

    Args:
        inputs: (N, …) of any dtype.

    Returns:
        N tuples of `WORDS` integers.
    """
    rows = inputs.detach().contiguous().reshape(len(inputs), -1)
    bits = rows.view(torch.uint8) if rows.element_size() < 4 else rows.view(torch.int32)
    generator = torch.Generator().manual_seed(bits.shape[1])
    factors = torch.randint(-(2**63), 2**63 - 1, (WORDS, bits.shape[1]), generator=generator)
    wide = bits.long()
    sums = [(wide * word).sum(dim=1).tolist() for word in factors.to(bits.device)]
    return list(zip(*sums, strict=True))


class LogitCache:
    """Logits of a frozen model, looked up by the inputs themselves.

    Inputs that are not found are computed, in one call with the whole batch, and kept until the
    cache is full. The last bits of a kept answer are those of the batch that it was computed in.

    Args:
        capacity: inputs that are kept; the number of training images suits.

    Raises:
        ConfigError: if the capacity is negative or no whole number.
    """

    def __init__(self, capacity: int) -> None:
        if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
            raise ConfigError(
                f"cache is {capacity!r}: give the number of training images to keep the "
                "reference's logits of, or leave it out"
            )
        self._capacity = capacity
        self._rows: dict[tuple[int, ...], int] = {}
        self._logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def look_up(self, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return the logits (N, C) of ``inputs`` (N, …), from ``compute()`` where some are new."""
        keys = fingerprints(inputs)
        known = [self._rows.get(key) for key in keys]
        if self._logits is not None and None not in known:
            return self._logits[torch.tensor(known, device=self._logits.device)]
        logits = compute()
        self._keep(keys, logits)
        return logits

    def _keep(self, keys: list[tuple[int, ...]], logits: Tensor) -> None:
        if self._logits is None:
            self._logits = logits.new_empty((self._capacity, logits.shape[1]))
        start, chosen = len(self._rows), []
        for index, key in enumerate(keys):
            if key not in self._rows and len(self._rows) < self._capacity:
                self._rows[key] = len(self._rows)
                chosen.append(index)
        self._logits[start : start + len(chosen)] = logits[chosen]
