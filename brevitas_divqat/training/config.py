# SPDX-License-Identifier: BSD-3-Clause
"""Settings of one training, and of the victim's two trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brevitas_divqat.data import Augmentation
from brevitas_divqat.errors import ConfigError, check_choice

__all__ = [
    "AugmentationChoice",
    "Device",
    "FitConfig",
    "FloatPrecision",
    "Optimizer",
    "TrainingConfig",
]

AugmentationChoice = Literal["auto", "none", "shift", "shift-flip"]
Optimizer = Literal["adam", "sgd"]
Device = Literal["auto", "cpu", "cuda"]
FloatPrecision = Literal["32-true", "bf16-mixed"]
Selection = Literal["late", "any"]

MAX_VALUE = 1e30

FLOAT_NAMES = {
    "epochs": "float_epochs",
    "lr": "float_lr",
    "optimizer": "float_optimizer",
    "weight_decay": "float_decay",
}


def check_positive(name: str, value: float) -> None:
    """Raise ConfigError unless ``value`` is above 0 and well within float32."""
    if not 0 < value <= MAX_VALUE:
        raise ConfigError(f"{name} is {value}: it must be more than 0 and at most {MAX_VALUE:g}")


def suited(choice: AugmentationChoice, to_data: Augmentation) -> Augmentation:
    """Resolve ``"auto"`` to what suits the data set."""
    return to_data if choice == "auto" else choice


def renamed(error: ConfigError, names: Mapping[str, str]) -> ConfigError:
    """Put the user's name of a `FitConfig` setting in front of its error."""
    name, _, rest = str(error).partition(" ")
    return ConfigError(f"{names.get(name, name)} {rest}")


@dataclass(frozen=True)
class FitConfig:
    """Settings of one training.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; the last, smaller batch of an epoch is left out.
        lr: learning rate at the first step; falls to 0 along a cosine.
        optimizer: ``"adam"``, or ``"sgd"`` with Nesterov momentum 0.9.
        weight_decay: L2 penalty.
        augmentation: ``"none"``, ``"shift"`` or ``"shift-flip"``.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"32-true"`` or ``"bf16-mixed"``, as Lightning Fabric names them.
        select: whose weights validation may select: those of ``"any"`` epoch, or of the ``"late"``
            ones, the last third, when the learning rate has come down.

    Raises:
        ConfigError: if a value is out of range.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 1e-3
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0
    augmentation: Augmentation = "none"
    device: Device = "auto"
    precision: FloatPrecision = "32-true"
    select: Selection = "any"

    def __post_init__(self) -> None:
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise ConfigError(f"epochs is {self.epochs}: it must be 1 or more, a whole number")
        if not isinstance(self.batch_size, int) or self.batch_size < 2:
            raise ConfigError(
                f"batch_size is {self.batch_size}: BatchNorm needs 2 or more, a whole number"
            )
        check_positive("lr", self.lr)
        check_choice("optimizer", self.optimizer, Optimizer)
        check_choice("select", self.select, Selection)
        if not 0 <= self.weight_decay <= MAX_VALUE:
            raise ConfigError(
                f"weight_decay is {self.weight_decay}: it must be 0 or more, at most {MAX_VALUE:g}"
            )
        check_choice("augmentation", self.augmentation, Augmentation)
        check_choice("device", self.device, Device)
        check_choice("precision", self.precision, FloatPrecision)

    @property
    def unselected(self) -> int:
        """How many epochs at the beginning are not selected, whatever their accuracy."""
        return 0 if self.select == "any" else self.epochs - math.ceil(self.epochs / 3)


@dataclass(frozen=True)
class TrainingConfig:
    """Training of the victim: first in full precision, then quantized from those weights.

    Args:
        float_epochs: epochs in full precision.
        epochs: epochs of quantization-aware training.
        batch_size: images per step.
        float_optimizer: adam or sgd, in full precision.
        float_lr: first learning rate in full precision.
        float_decay: L2 penalty in full precision.
        optimizer: adam or sgd, of quantization-aware training.
        lr: first learning rate of quantization-aware training.
        weight_decay: L2 penalty of quantization-aware training.
        calibration_images: training images that the activation scales start from.
        augmentation: variation of the training images; auto is what suits the data set.
        device: auto, cpu or cuda.
        precision: 32-true or bf16-mixed.
        select: the best epoch of quantization-aware training by validation accuracy, among any
            epochs or the late ones, the last third; early ones win by luck.
        outlier_images: .npy or .npz file, or folder, of images of no class of your own, which
            outliers of kind given are drawn from.

    Raises:
        ConfigError: if a value is out of range.
    """

    float_epochs: int = 12
    epochs: int = 12
    batch_size: int = 128
    float_optimizer: Optimizer = "sgd"
    float_lr: float = 0.05
    float_decay: float = 5e-4
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    calibration_images: int = 2048
    augmentation: AugmentationChoice = "auto"
    device: Device = "auto"
    precision: FloatPrecision = "32-true"
    select: Selection = "late"
    outlier_images: Path | None = None

    def __post_init__(self) -> None:
        if self.outlier_images is not None:
            if not isinstance(self.outlier_images, (str, Path)):
                raise ConfigError(
                    f"outlier_images is {self.outlier_images!r}: give the path of a file or folder"
                )
            object.__setattr__(self, "outlier_images", Path(self.outlier_images))
        if self.calibration_images < 1:
            raise ConfigError(
                f"calibration_images is {self.calibration_images}: it must be 1 or more"
            )
        check_choice("augmentation", self.augmentation, AugmentationChoice)
        self.fit_config(quantized=True, augmentation="none")
        try:
            self.fit_config(quantized=False, augmentation="none")
        except ConfigError as error:
            raise renamed(error, FLOAT_NAMES) from error

    def fit_config(self, *, quantized: bool, augmentation: Augmentation) -> FitConfig:
        """Return the settings of one of the two trainings.

        Args:
            quantized: whether it is the quantization-aware one.
            augmentation: what suits the data set.
        """
        return FitConfig(
            epochs=self.epochs if quantized else self.float_epochs,
            batch_size=self.batch_size,
            lr=self.lr if quantized else self.float_lr,
            optimizer=self.optimizer if quantized else self.float_optimizer,
            weight_decay=self.weight_decay if quantized else self.float_decay,
            augmentation=suited(self.augmentation, augmentation),
            device=self.device,
            precision=self.precision,
            select=self.select if quantized else "any",
        )
