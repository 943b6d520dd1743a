# SPDX-License-Identifier: BSD-3-Clause
"""Reference logits kept by what the reference was given, for images that come again each epoch."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss.functional import wide

__all__ = ["LogitCache", "fingerprints"]

DIGEST_BYTES = 16
"""Of a fingerprint: two different inputs of one fingerprint are a matter of 2^-128."""


def fingerprints(inputs: Tensor) -> list[bytes]:
    """Fingerprint each input of a batch by its type, shape and bytes.

    Args:
        inputs: (N, …) of any dtype, on any device.

    Returns:
        N digests of `DIGEST_BYTES` bytes, which depend on nothing but the input itself.
    """
    kind = f"{inputs.dtype} {tuple(inputs.shape[1:])}".encode()
    rows = inputs.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    digests = []
    for row in rows:
        digest = blake2b(kind, digest_size=DIGEST_BYTES)
        digest.update(row)
        digests.append(digest.digest())
    return digests


class LogitCache:
    """Logits of a frozen model, looked up by the inputs themselves.

    Inputs that are not found are computed together and kept, until the cache is full. A kept answer
    has the last bits of the batch that it was computed in.

    Args:
        capacity: inputs that are kept; the number of training images suits.

    Raises:
        ConfigError: if the capacity is no whole number above 0.
    """

    def __init__(self, capacity: int) -> None:
        if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
            raise ConfigError(
                f"cache is {capacity!r}: give the number of training images to keep the "
                "reference's logits of, or leave it out"
            )
        self._capacity = capacity
        self.clear()

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        """Forget everything."""
        self._rows: dict[bytes, int] = {}
        self._logits: Tensor | None = None

    def look_up(self, inputs: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits (N, C) of inputs (N, …), asking ``compute`` for those of new ones.

        They are float32, or float64 where ``compute`` gives that.
        """
        keys = fingerprints(inputs)
        new = [index for index, key in enumerate(keys) if key not in self._rows]
        if not new:
            return self._kept(keys)
        known = [index for index, key in enumerate(keys) if key in self._rows]
        computed = wide(compute(inputs[new] if known else inputs))
        logits = computed.new_empty((len(keys), computed.shape[1]))
        logits[new] = computed
        if known:
            logits[known] = self._kept([keys[index] for index in known])
        self._keep([keys[index] for index in new], computed)
        return logits

    def _kept(self, keys: list[bytes]) -> Tensor:
        assert self._logits is not None
        rows = torch.tensor([self._rows[key] for key in keys], device=self._logits.device)
        return self._logits[rows]

    def _keep(self, keys: list[bytes], logits: Tensor) -> None:
        if self._logits is None:
            self._logits = logits.new_empty((self._capacity, logits.shape[1]))
        start, chosen = len(self._rows), []
        for index, key in enumerate(keys):
            if key not in self._rows and len(self._rows) < self._capacity:
                self._rows[key] = len(self._rows)
                chosen.append(index)
        self._logits[start : start + len(chosen)] = logits[chosen]
