# SPDX-License-Identifier: BSD-3-Clause
"""Output interfaces: how much of its scores an accelerator shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from brevitas_divqat.errors import ConfigError, check_choice

__all__ = ["InterfaceKind", "OutputInterface"]

InterfaceKind = Literal["logits", "probabilities", "top-k", "label"]


@dataclass(frozen=True)
class OutputInterface:
    """What an answer shows of the scores.

    Args:
        interface: 'logits', 'probabilities', 'top-k' probabilities, or the 'label' alone.
        top_k: number of probabilities that a top-k interface shows.
        decimals: digits after the point that logits and probabilities are rounded to; all by
            default.

    Raises:
        ConfigError: if a value is unknown or out of range.
    """

    interface: InterfaceKind = "probabilities"
    top_k: int | None = None
    decimals: int | None = None

    def __post_init__(self) -> None:
        check_choice("interface", self.interface, InterfaceKind)
        if (self.interface == "top-k") != (self.top_k is not None):
            raise ConfigError(
                f"interface is {self.interface!r} and top_k is {self.top_k}: give top_k with the "
                "interface 'top-k', and only with it"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}: it must be 1 or more")
        if self.decimals is not None and not 0 <= self.decimals <= 15:
            raise ConfigError(f"decimals is {self.decimals}: it must be 0 to 15")

    def check_classes(self, num_classes: int) -> None:
        """Raise ConfigError if this interface shows more probabilities than there are classes."""
        if self.top_k is not None and self.top_k > num_classes:
            raise ConfigError(f"top_k is {self.top_k}, but there are {num_classes} classes")

    def answer(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Turn (N, K) scores into (N, K) answers.

        Returns:
            (N, K) float64: logits; or probabilities; or probabilities of the k likeliest classes
            and 0 for the others; or 1 for the likeliest class and 0 for the others. Equal scores
            are ranked by class number, lowest first, as a hardware comparator tree does.
        """
        wide = scores.astype(np.float64)
        if self.interface == "label":
            return np.eye(scores.shape[1])[scores.argmax(axis=1)]
        if self.interface != "logits":
            wide = softmax(wide, axis=1)
        if self.interface == "top-k":
            hidden = np.argsort(-scores, axis=1, kind="stable")[:, self.top_k :]
            np.put_along_axis(wide, hidden, 0.0, axis=1)
        return wide if self.decimals is None else wide.round(self.decimals)
