# SPDX-License-Identifier: BSD-3-Clause
"""A bad setting of a training is refused in one line that names it and the remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.training import FitConfig, TrainingConfig

SHARED = [
    ("epochs", 0, "must be 1 or more"),
    ("batch_size", 1, "needs 2 or more"),
    ("lr", 0.0, "must be more than 0"),
    ("lr", math.nan, "must be more than 0"),
    ("lr", math.inf, "must be more than 0"),
    ("weight_decay", -1e-4, "must be 0 or more"),
    ("weight_decay", math.nan, "must be 0 or more"),
    ("device", "tpu", "choose from ['auto', 'cpu', 'cuda']"),
    ("precision", "16", "choose from ['32-true', 'bf16-mixed']"),
    ("select", "early", "choose from ['late', 'any']"),
]
FIT = [
    ("optimizer", "adamw", "choose from ['adam', 'sgd']"),
    ("augmentation", "flip", "choose from ['none', 'shift', 'shift-flip']"),
]
FLOAT = [
    ("float_epochs", 0, "epochs is 0: it must be 1 or more"),
    ("float_lr", -1.0, "lr is -1.0: it must be more than 0"),
    ("float_lr", math.nan, "lr is nan: it must be more than 0"),
    ("float_decay", -1.0, "decay is -1.0: it must be 0 or more"),
    ("float_optimizer", "adamw", "optimizer is 'adamw': choose from ['adam', 'sgd']"),
]
TRAINING = [
    ("optimizer", "adamw", "choose from ['adam', 'sgd']"),
    ("calibration_images", 0, "must be 1 or more"),
    ("augmentation", "flip", "choose from"),
]


def assert_refused(config: type, name: str, value: Any, remedy: str) -> None:
    options = {"epochs": 1} | {name: value}
    with pytest.raises(ConfigError) as caught:
        config(**options)
    message = str(caught.value)
    assert message.startswith(f"{name} is {value!r}")
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value", "remedy"), SHARED + FIT)
def test_fit_config_refuses(name: str, value: Any, remedy: str) -> None:
    assert_refused(FitConfig, name, value, remedy)


@pytest.mark.parametrize(("name", "value", "remedy"), SHARED + TRAINING)
def test_training_config_refuses(name: str, value: Any, remedy: str) -> None:
    assert_refused(TrainingConfig, name, value, remedy)


@pytest.mark.parametrize(("name", "value", "complaint"), FLOAT)
def test_training_config_tells_the_full_precision_settings_apart(
    name: str, value: Any, complaint: str
) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**options)
    message = str(caught.value)
    assert "float" in message
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize(("epochs", "unselected"), [(1, 0), (2, 1), (3, 2), (5, 3), (12, 8)])
def test_late_epochs_are_the_last_third(epochs: int, unselected: int) -> None:
    assert FitConfig(epochs, select="late").unselected == unselected
    assert FitConfig(epochs).unselected == 0


def test_each_training_gets_its_own_settings() -> None:
    training = TrainingConfig(
        float_epochs=3,
        epochs=5,
        batch_size=7,
        float_optimizer="adam",
        float_lr=0.2,
        float_decay=1e-3,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        device="cpu",
    )
    in_float = training.fit_config(quantized=False, augmentation="shift")
    quantized = training.fit_config(quantized=True, augmentation="shift")
    assert in_float == FitConfig(3, 7, 0.2, "adam", 1e-3, "shift", "cpu", "32-true")
    assert quantized == FitConfig(5, 7, 0.1, "sgd", 1e-4, "shift", "cpu", "32-true", "late")


@pytest.mark.parametrize(
    ("choice", "suited", "expected"),
    [("auto", "shift-flip", "shift-flip"), ("none", "shift", "none"), ("shift", "none", "shift")],
)
def test_augmentation_is_the_data_set_s_unless_chosen(
    choice: Any, suited: Any, expected: str
) -> None:
    training = TrainingConfig(augmentation=choice)
    for quantized in (False, True):
        assert (
            training.fit_config(quantized=quantized, augmentation=suited).augmentation == expected
        )
