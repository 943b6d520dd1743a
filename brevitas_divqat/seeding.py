# SPDX-License-Identifier: BSD-3-Clause
"""Randomness that depends on a seed alone and leaves the global generators as they were."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive_seed", "generator", "seeded"]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derive an independent 32-bit seed for a purpose, e.g. ``derive_seed(0, "order", 3)``."""
    return zlib.crc32("/".join(map(str, (seed, *purpose))).encode())


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Make a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, *purpose))
        yield
