# SPDX-License-Identifier: BSD-3-Clause
"""The protocol that turns a configuration into measurements."""

from __future__ import annotations

from brevitas_divqat.evaluation.config import RunConfig, read_yaml
from brevitas_divqat.evaluation.run import (
    METHODS,
    POOLS,
    attack,
    check_float,
    check_folder,
    check_settings,
    export,
    measure_victim,
    open_folder,
    run,
    take_float,
    train,
)

__all__ = [
    "METHODS",
    "POOLS",
    "RunConfig",
    "attack",
    "check_float",
    "check_folder",
    "check_settings",
    "export",
    "measure_victim",
    "open_folder",
    "read_yaml",
    "run",
    "take_float",
    "train",
]
