# SPDX-License-Identifier: BSD-3-Clause
"""Data sets by name, with fixed splits, and the unlabelled images that a thief owns.

Everything is 8-bit: images are uint8 of shape (N, C, H, W), labels int64 of shape (N,). The splits
depend on neither the seed nor the machine of a run, so results of different runs compare.
"""

from __future__ import annotations

from brevitas_divqat.data.catalogue import DATASETS
from brevitas_divqat.data.config import DataConfig
from brevitas_divqat.data.images import conform
from brevitas_divqat.data.loading import load
from brevitas_divqat.data.pools import load_pool
from brevitas_divqat.data.records import Augmentation, Dataset, Labelled, Pool, checksum

__all__ = [
    "DATASETS",
    "Augmentation",
    "DataConfig",
    "Dataset",
    "Labelled",
    "Pool",
    "checksum",
    "conform",
    "load",
    "load_pool",
]
