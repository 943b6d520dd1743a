# SPDX-License-Identifier: BSD-3-Clause
"""Reference logits kept by what the reference was given, for images that come again each epoch."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor

from brevitas_divqat.errors import ConfigError

__all__ = ["LogitCache", "fingerprints"]

DIGEST_BYTES = 16
"""Of a fingerprint: two different inputs of one fingerprint are a matter of 2^-128."""


def fingerprints(inputs: Tensor) -> list[bytes]:
    """Fingerprint each input of a batch by the bytes of its elements.

    Args:
        inputs: (N, …) of any dtype, on any device.

    Returns:
        N digests of `DIGEST_BYTES` bytes, which depend on nothing but the input itself.
    """
    rows = inputs.detach().cpu().contiguous().reshape(len(inputs), -1).view(torch.uint8).numpy()
    return [blake2b(row, digest_size=DIGEST_BYTES).digest() for row in rows]


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
        self._rows: dict[bytes, int] = {}
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

    def _keep(self, keys: list[bytes], logits: Tensor) -> None:
        if self._logits is None:
            self._logits = logits.new_empty((self._capacity, logits.shape[1]))
        start, chosen = len(self._rows), []
        for index, key in enumerate(keys):
            if key not in self._rows and len(self._rows) < self._capacity:
                self._rows[key] = len(self._rows)
                chosen.append(index)
        self._logits[start : start + len(chosen)] = logits[chosen]
