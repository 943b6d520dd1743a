# SPDX-License-Identifier: BSD-3-Clause
"""A deployed network as a thief meets it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import BudgetExceeded, ConfigError
from brevitas_divqat.executors.base import Executor, check_images
from brevitas_divqat.victims.interface import OutputInterface

__all__ = ["QueryInterface", "Victim"]


class QueryInterface(Protocol):
    """All that an attack may touch of a victim."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def interface(self) -> OutputInterface:
        """What the answers show."""

    @property
    def remaining(self) -> int | None:
        """Queries left; None without a budget."""

    def query(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return one answer per image, (N, K), as ``interface`` shapes it."""


class Victim:
    """An executor behind an output interface, a query counter and a query budget.

    Args:
        executor: a deployed graph, or a Brevitas model through ``ModuleExecutor``.
        interface: what the answers show.
        budget: the most images that may be asked about, 1 or more; None for no limit.

    Raises:
        ConfigError: if the budget is below 1 or the interface does not fit the classes.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        interface: OutputInterface | None = None,
        budget: int | None = None,
    ) -> None:
        if budget is not None and budget < 1:
            raise ConfigError(f"the query budget is {budget}: it must be 1 or more")
        self.interface = OutputInterface() if interface is None else interface
        self.interface.check_classes(executor.num_classes)
        self._budget = budget
        self._executor = executor
        self._queries = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self._executor.image_shape

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._executor.num_classes

    @property
    def budget(self) -> int | None:
        """The most images that may be asked about; None for no limit."""
        return self._budget

    @property
    def queries(self) -> int:
        """Images answered so far."""
        return self._queries

    @property
    def remaining(self) -> int | None:
        """Queries left; None without a budget."""
        return None if self.budget is None else self.budget - self._queries

    def query(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Answer ``images``; every image counts, also one that was asked before.

        Args:
            images: (N, C, H, W) uint8.

        Returns:
            (N, K) float64, see ``OutputInterface.answer``.

        Raises:
            DataError: if the images have another type or shape; none is counted.
            BudgetExceeded: if they are more than the budget leaves; none is answered or counted.
        """
        check_images(images, self.image_shape)
        if self.budget is not None and self._queries + len(images) > self.budget:
            raise BudgetExceeded(
                f"{len(images)} queries asked with {self.remaining} of {self.budget} left: ask "
                "about fewer images or raise --budget"
            )
        scores = self._executor(images)
        self._queries += len(images)
        return self.interface.answer(scores)
