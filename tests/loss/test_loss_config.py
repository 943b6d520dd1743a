# SPDX-License-Identifier: BSD-3-Clause
"""Presets hold what they are named for, and a bad setting is refused with a remedy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import DivQATLoss, LossConfig, OutlierKind

KINDS: tuple[OutlierKind, ...] = ("textures", "patches", "shapes")

BAD = [
    # settings, what the message names, what it proposes
    ({"preset": "F2"}, "preset", "choose from ['F1', 'F3', 'outliers']"),
    ({"alpha": -0.1}, "alpha", "must be 0 (plain QAT) or more"),
    ({"alpha": math.nan}, "alpha", "must be 0 (plain QAT) or more"),
    ({"alpha": math.inf}, "alpha", "must be 0 (plain QAT) or more"),
    ({"temperature": 0.0}, "temperature", "must be from 0.001 to 10000"),
    ({"temperature": -1.0}, "temperature", "must be from 0.001 to 10000"),
    ({"temperature": math.nan}, "temperature", "must be from 0.001 to 10000"),
    ({"temperature": 1e-40}, "temperature", "must be from 0.001 to 10000"),
    ({"temperature": 2e4}, "temperature", "must be from 0.001 to 10000"),
    ({"alpha": 10**400}, "alpha", "at most 1e+30"),
    ({"alpha": "0.1"}, "alpha", "must be a number"),
    ({"preset": ["F1"]}, "preset", "choose from"),
    ({"label_smoothing": None}, "label_smoothing", "must be a number"),
    ({"warmup_steps": None}, "warmup_steps", "must be a number"),
    ({"warmup_steps": 2.0}, "warmup_steps", "a whole number"),
    ({"cap": 1e300}, "cap", "at most 1e+30"),
    ({"outliers": 5}, "outliers", "give a list"),
    ({"outliers": ()}, "outliers", "say preset F3"),
    ({"cap": 0.0}, "cap", "must be more than 0"),
    ({"cap": -2.0}, "cap", "must be more than 0"),
    ({"cap": math.nan}, "cap", "must be more than 0"),
    ({"direction": "q|p"}, "direction", "choose from"),
    ({"weighting": "product"}, "weighting", "choose from"),
    ({"preset": "F1", "alpha": 1.0}, "alpha", "must be below 1"),
    ({"preset": "F1", "alpha": 0.25, "temperature": 4.0}, "alpha", "must be below 0.25"),
    ({"preset": "F1", "alpha": 0.2, "temperature": 4.0, "weighting": "convex"}, "alpha", "0.2"),
    ({"preset": "F3", "alpha": 0.5, "weighting": "convex"}, "alpha", "must be below 0.5"),
    ({"preset": "F1", "alpha": 0.5, "weighting": "convex"}, "alpha", "must be below 0.5"),
    ({"label_smoothing": 1.0}, "label_smoothing", "must be in [0, 1)"),
    ({"label_smoothing": -0.1}, "label_smoothing", "must be in [0, 1)"),
    ({"warmup_steps": -1}, "warmup_steps", "must be 0 or more"),
    ({"alpha": 1.0, "weighting": "convex"}, "alpha", "must be below 1"),
    ({"outliers": ("noise",)}, "outliers", "choose from"),
    ({"outliers": "textures"}, "outliers", "give a list"),
    ({"outliers": ("patches", "patches")}, "outliers", "name each kind once"),
    ({"preset": "F3", "outlier_share": 0.5}, "outlier_share", "name their kinds"),
    ({"outliers": ("patches",), "outlier_share": 0.0}, "outlier_share", "must be more than 0"),
    ({"outliers": ("patches",), "outlier_share": math.nan}, "outlier_share", "more than 0"),
    ({"outliers": ("patches",), "outlier_share": 11}, "outlier_share", "at most 10"),
    (
        {"outliers": ("patches",), "preset": "F1", "alpha": 0.5, "direction": "p||q", "cap": -1.0},
        "cap",
        "must be more than 0",
    ),
]
GOOD = [
    {"alpha": 0.0},
    {"alpha": 3.0},
    {"preset": "F1", "alpha": 0.99},
    {"preset": "F1", "alpha": 0.24, "temperature": 4.0},
    {"preset": "F1", "alpha": 0.49, "weighting": "convex"},
    {"preset": "F1", "alpha": 0.19, "temperature": 4.0, "weighting": "convex"},
    {"alpha": 0.49, "weighting": "convex"},
    {"label_smoothing": 0.99},
    {"cap": 1e-3},
    {"outliers": ("patches",)},
    {"outliers": ("patches", "textures"), "outlier_share": 2},
    {"outliers": ("patches",), "alpha": 0.9, "weighting": "convex"},
    {"outliers": ("patches",), "preset": "F1", "alpha": 5.0},
]


def show(settings: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in settings.items())


@pytest.mark.parametrize(
    ("settings", "setting", "remedy"), [pytest.param(*row, id=show(row[0])) for row in BAD]
)
def test_bad_setting_is_refused_in_one_line(
    settings: dict[str, Any], setting: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        LossConfig(**settings)
    message = str(caught.value)
    assert setting in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize("settings", [pytest.param(row[0], id=show(row[0])) for row in BAD])
def test_module_refuses_what_the_configuration_refuses(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DivQATLoss(nn.Linear(2, 2), **settings)


@pytest.mark.parametrize("settings", GOOD, ids=show)
def test_setting_just_inside_its_range_is_kept(settings: dict[str, Any]) -> None:
    config = LossConfig(**settings)
    assert {key: getattr(config, key) for key in settings} == settings


@pytest.mark.parametrize(
    ("preset", "alpha", "temperature", "direction"),
    [("F1", 0.5, 1.0, "p||q"), ("F3", 0.04, 4.0, "q||p")],
    ids=["F1", "F3"],
)
def test_preset_values(preset: Any, alpha: float, temperature: float, direction: str) -> None:
    assert LossConfig(preset) == LossConfig(
        preset, alpha, temperature, direction, "additive", None, 0, 0.0
    )


def test_settings_override_the_preset() -> None:
    config = LossConfig("F3", temperature=2.0, cap=5.0)
    assert (config.alpha, config.temperature, config.cap) == (0.04, 2.0, 5.0)


def test_the_preset_of_outliers_is_f3_on_outliers() -> None:
    preset = LossConfig("outliers")
    assert preset == replace(LossConfig("F3", outliers=KINDS), preset="outliers")
    assert (preset.kinds, preset.share) == (KINDS, 0.5)
    assert LossConfig("outliers", outliers=("shapes",)).kinds == ("shapes",)
    assert LossConfig("F1").kinds == LossConfig("F3", outliers=()).kinds == LossConfig("F3").kinds
    assert (LossConfig("F3").kinds, LossConfig("F3").share) == ((), 0.0)


def test_numbers_of_other_types_are_kept_as_pythons_own() -> None:
    config = LossConfig(alpha=np.float32(0.5), warmup_steps=np.int64(5))  # type: ignore[arg-type]
    assert config == LossConfig(alpha=0.5, warmup_steps=5)
    assert (type(config.alpha), type(config.warmup_steps)) == (float, int)


def test_the_default_preset_is_that_of_outliers() -> None:
    assert LossConfig() == LossConfig("outliers")
    assert DivQATLoss(nn.Linear(2, 2)).config == LossConfig("outliers")


def test_misspelt_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="aplha"):
        DivQATLoss(nn.Linear(2, 2), aplha=0.1)  # type: ignore[call-arg]
