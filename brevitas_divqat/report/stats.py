# SPDX-License-Identifier: BSD-3-Clause
"""A figure measured once per seed: its mean, its spread, and differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Stat", "points", "seeds_text"]


def seeds_text(seeds: Sequence[int]) -> str:
    """Name seeds in words, for example ``seeds 0, 1, 2``."""
    word = "seed" if len(seeds) == 1 else "seeds"
    return f"{word} {', '.join(map(str, seeds))}"


def points(value: float) -> str:
    """Write a difference of fractions in points of percent, for example ``-0.4``."""
    # Adding zero turns the "-0.0" of a small negative number into "+0.0".
    return f"{round(100 * value, 1) + 0.0:+.1f}"


@dataclass(frozen=True)
class Stat:
    """Hold one figure of every seed.

    Args:
        by_seed: (seed, value) pairs in ascending order of the seed, at least one.

    Example:
        >>> Stat.of({0: 0.90, 1: 0.91}).percent
        '90.5 ± 0.7'
    """

    by_seed: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, values: Mapping[int, float]) -> Stat:
        """Build the figure from a value per seed."""
        return cls(tuple(sorted(values.items())))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds at which the figure was measured."""
        return tuple(seed for seed, _ in self.by_seed)

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(value for _, value in self.by_seed)

    @property
    def sd(self) -> float | None:
        """The sample standard deviation over the seeds (n - 1), None with one seed."""
        return statistics.stdev(value for _, value in self.by_seed) if self.n > 1 else None

    @property
    def is_noise(self) -> bool:
        """Whether the mean's 95 % confidence interval (Student's t) holds 0; False with one seed.

        It is meant for paired differences. With two or three seeds the interval is wide: 12.7 and
        4.3 standard errors to either side.
        """
        return self.reach is not None and abs(self.mean) < self.reach

    @property
    def reach(self) -> float | None:
        """Half of the mean's 95 % confidence interval (Student's t), None with one seed."""
        if self.sd is None:
            return None
        from scipy.special import stdtrit

        return float(stdtrit(self.n - 1, 0.975)) * self.sd / math.sqrt(self.n)

    def at(self, seeds: Collection[int]) -> Stat:
        """Keep the values at these seeds."""
        return Stat(tuple(pair for pair in self.by_seed if pair[0] in seeds))

    def minus(self, other: Stat) -> Stat:
        """Subtract seed by seed, over the seeds that both figures have."""
        theirs = dict(other.by_seed)
        return Stat.of({seed: own - theirs[seed] for seed, own in self.by_seed if seed in theirs})

    def text(self, *, scale: float = 1.0, digits: int = 2) -> str:
        """Write the mean, and with several seeds the standard deviation after ±."""
        mean = f"{scale * self.mean:.{digits}f}"
        return mean if self.sd is None else f"{mean} ± {scale * self.sd:.{digits}f}"

    @property
    def interval_percent(self) -> str:
        """The mean in percent, and with several seeds half of its 95 % interval after ±."""
        mean = f"{100 * self.mean:.1f}"
        return mean if self.reach is None else f"{mean} ± {100 * self.reach:.1f}"

    @property
    def percent(self) -> str:
        """The figure, a fraction, written in percent with one decimal."""
        return self.text(scale=100.0, digits=1)
