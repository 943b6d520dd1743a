# SPDX-License-Identifier: BSD-3-Clause
"""The protocol that turns a configuration into measurements."""

from __future__ import annotations

from brevitas_divqat.evaluation.config import RunConfig, read_yaml, settings_in, settings_of
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
    "settings_in",
    "settings_of",
    "take_float",
    "train",
]
