# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the DivQAT loss, with the named presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from brevitas_divqat.errors import ConfigError, check_choice
from brevitas_divqat.loss.functional import Direction, Weighting
from brevitas_divqat.loss.outliers import OutlierKind

__all__ = ["OF_PRESET", "PRESETS", "LossConfig", "Preset"]

Preset = Literal["F1", "F3", "outliers"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e4
MAX_VALUE = 1e30
"""Of alpha and the cap: well within float32."""
NUMBERS = ("alpha", "temperature", "cap", "warmup_steps", "label_smoothing", "outlier_share")
ALWAYS_GIVEN = ("warmup_steps", "label_smoothing")
"""Those of them that no preset stands in for."""
OUTLIER_SHARE = 0.5
MAX_OUTLIER_SHARE = 10.0

PRESETS: dict[str, dict[str, Any]] = {
    "F1": {
        "alpha": 0.5,
        "temperature": 1.0,
        "direction": "p||q",
        "weighting": "additive",
        "cap": 10.0,
        "outliers": (),
    },
    "F3": {
        "alpha": 0.04,
        "temperature": 4.0,
        "direction": "q||p",
        "weighting": "additive",
        "cap": None,
        "outliers": (),
    },
    "outliers": {
        "alpha": 0.04,
        "temperature": 4.0,
        "direction": "q||p",
        "weighting": "additive",
        "cap": None,
        "outliers": ("textures", "patches", "shapes"),
    },
}
"""F1, the plainest reading of DivQAT's abstract: ``CE - alpha KL(P||Q)``, with a cap of our own,
since a wrong class's logit that falls without end would earn without end. F3, the form of Nasty
Teacher (Ma et al., "Undistillable", ICLR 2021): ``CE - alpha T² KL(Q||P)``, with its values for
CIFAR-10; the reference's own logits bound it. ``outliers`` asks F3's divergence of images of no
class alone; docs/method.md has the evidence, and where it does not work."""

OF_PRESET = frozenset({*PRESETS["F3"], "outlier_share"})
"""The settings that follow from the preset where they are not given."""


@dataclass(frozen=True)
class LossConfig:
    """Settings of the DivQAT loss; what is left at None comes from the preset.

    Args:
        preset: F1 (KL of the original from the quantized model, T=1), F3 (the reverse, T=4), or
            outliers (F3 on images of no class that are made up).
        alpha: weight of the divergence, 0 (plain QAT) or more.
        temperature: softens both predictions in the divergence; from 0.001 to 10,000.
        direction: 'p||q' expects over the original's predictions, 'q||p' over the quantized ones'.
        weighting: 'additive' is CE - alpha D, 'convex' is (1 - alpha) CE - alpha D.
        cap: the most that one sample's divergence counts, in nats times T²; 10 in F1, none in F3.
        warmup_steps: steps over which alpha grows linearly from 0.
        label_smoothing: of the cross-entropy, in [0, 1).
        outliers: what images of no class are made in each step, of textures, patches, shapes,
            generated (sought by asking the network) and given (drawn from your own outlier_images);
            the divergence is then asked for on these, and not on the training images.
        outlier_share: how many of them, per training image; 0.5 by default.

    Raises:
        ConfigError: if a value is out of range, without effect, or so large that being wrong would
            pay.
    """

    preset: Preset = "outliers"
    alpha: float | None = None
    temperature: float | None = None
    direction: Direction | None = None
    weighting: Weighting | None = None
    cap: float | None = None
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    outliers: tuple[OutlierKind, ...] | None = None
    outlier_share: float | None = None

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, Preset)
        for name in NUMBERS:
            self._check_number(name)
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check_outliers()
        self._check_ranges()
        self._check_right_class_pays()

    def _check_number(self, name: str) -> None:
        """Refuse what is no number, and keep others than Python's own as such, for records."""
        value = getattr(self, name)
        if value is None and name not in ALWAYS_GIVEN:
            return
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigError(f"{name} is {value!r}: it must be a number")
        own = int(value) if isinstance(value, Integral) else float(value)
        object.__setattr__(self, name, own)

    def _check_outliers(self) -> None:
        if isinstance(self.outliers, str) or not isinstance(self.outliers, Sequence):
            raise ConfigError(f"outliers is {self.outliers!r}: give a list, for example [textures]")
        object.__setattr__(self, "outliers", tuple(self.outliers))
        for kind in self.kinds:
            check_choice("outliers", kind, OutlierKind)
        if not self.kinds and PRESETS[self.preset]["outliers"]:
            raise ConfigError(
                f"outliers is empty with preset {self.preset}, which then is F3 on the training "
                "images: say preset F3, or name kinds of outliers"
            )
        if len(set(self.kinds)) < len(self.kinds):
            raise ConfigError(f"outliers is {list(self.kinds)}: name each kind once")
        if not self.kinds and self.outlier_share is not None:
            raise ConfigError(
                f"outlier_share is {self.outlier_share} without outliers, which has no effect: "
                "name their kinds, or leave it out"
            )
        if self.kinds and self.outlier_share is None:
            object.__setattr__(self, "outlier_share", OUTLIER_SHARE)
        if self.kinds and not 0 < self.share <= MAX_OUTLIER_SHARE:
            raise ConfigError(
                f"outlier_share is {self.outlier_share}: it must be more than 0 and at most "
                f"{MAX_OUTLIER_SHARE:g}"
            )

    def _check_ranges(self) -> None:
        check_choice("direction", self.direction, Direction)
        check_choice("weighting", self.weighting, Weighting)
        if not 0 <= self.weight <= MAX_VALUE:
            raise ConfigError(
                f"alpha is {self.alpha}: it must be 0 (plain QAT) or more, at most {MAX_VALUE:g}"
            )
        if not MIN_TEMPERATURE <= self.softness <= MAX_TEMPERATURE:
            raise ConfigError(
                f"temperature is {self.temperature}: it must be from {MIN_TEMPERATURE:g} to "
                f"{MAX_TEMPERATURE:g}"
            )
        if self.cap is not None and not 0 < self.cap <= MAX_VALUE:
            raise ConfigError(
                f"cap is {self.cap}: it must be more than 0 and at most {MAX_VALUE:g}, or left out "
                "for no cap"
            )
        if not isinstance(self.warmup_steps, int) or self.warmup_steps < 0:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}: it must be 0 or more, a whole number"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}: it must be in [0, 1)")

    def _check_right_class_pays(self) -> None:
        """Refuse weights with which driving down the right class's logit would pay.

        With KL(P||Q) that costs the cross-entropy 1 per unit and earns the divergence up to
        alpha T, so alpha T must stay below the cross-entropy's weight. A wrong class's logit can
        fall without end at any alpha above 0: that costs nothing, and only a cap bounds what it
        earns. Outliers have no right class.
        """
        if self.weighting == "convex" and self.weight >= 1:
            raise ConfigError(
                f"alpha is {self.alpha} with convex weighting: it must be below 1, or nothing is "
                "left of the cross-entropy"
            )
        if self.weighting == "convex" and self.weight >= 0.5 and not self.kinds:
            raise ConfigError(
                f"alpha is {self.alpha} with convex weighting: it must be below 0.5, or the "
                "divergence outweighs the cross-entropy"
            )
        if self.direction == "p||q" and self.weight > 0 and self.cap is None:
            raise ConfigError(
                f"alpha is {self.alpha} with direction 'p||q' and no cap: the loss would have no "
                "lower bound, give a cap in nats, for example 10"
            )
        if self.kinds:
            return
        ce_weight = 1.0 if self.weighting == "additive" else 1.0 - self.weight
        if self.direction == "p||q" and self.weight * self.softness >= ce_weight:
            limit = 1 / self.softness if self.weighting == "additive" else 1 / (1 + self.softness)
            raise ConfigError(
                f"alpha is {self.alpha} with direction 'p||q' and temperature {self.temperature}: "
                f"it must be below {limit:g}, or driving down the right class pays"
            )

    @property
    def weight(self) -> float:
        """Alpha, resolved."""
        assert self.alpha is not None
        return self.alpha

    @property
    def kinds(self) -> tuple[OutlierKind, ...]:
        """Kinds of outliers, resolved; empty where the training images are diverged on."""
        assert self.outliers is not None
        return self.outliers

    @property
    def share(self) -> float:
        """How many outliers are made per training image; 0 without outliers."""
        return 0.0 if self.outlier_share is None else self.outlier_share

    @property
    def softness(self) -> float:
        """Temperature, resolved."""
        assert self.temperature is not None
        return self.temperature
