# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tiny networks run fastest on one thread, in the tests' own process and in those that they start;
# set before torch is imported, which reads it then.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder with the real data sets, laid out as torchvision lays it out."""
    root = os.environ.get("BREVITAS_DIVQAT_DATA")
    if not root:
        pytest.skip("set BREVITAS_DIVQAT_DATA to the folder that holds the data sets")
    return Path(root)
