# SPDX-License-Identifier: BSD-3-Clause
"""What every extraction attack is made of, takes and returns."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from brevitas_divqat.attacks.inquiry import Inquiry
from brevitas_divqat.attacks.shadows import check_adaptive
from brevitas_divqat.attacks.thief import Resources, Thief, ThiefConfig
from brevitas_divqat.attacks.transcript import Recorder, Transcript
from brevitas_divqat.data import checksum
from brevitas_divqat.errors import ConfigError, DataError
from brevitas_divqat.executors import check_images
from brevitas_divqat.progress import Progress, silent
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import FitConfig, check_fit
from brevitas_divqat.victims import QueryInterface

__all__ = ["Attack", "CurvePoint", "Extraction", "QueryStrategy"]

LEARNED_AGAIN = 50_000
"""The last images that a student of a data-free attack learns from once more, where the thief does
more with answers than such an attack can do on its way."""


@dataclass(frozen=True)
class QueryStrategy(ABC):
    """Decides what to ask. A subclass is a frozen dataclass of the paper's parameters.

    Attributes:
        name: of the attack, as the command line and measurements spell it.
        needs_pool: whether it asks about the thief's images.
    """

    name: ClassVar[str]
    needs_pool: ClassVar[bool] = True

    @property
    def learns(self) -> bool:
        """Whether the questions depend on what the thief makes of the answers."""
        return False

    @property
    def least_images(self) -> int:
        """The fewest images that make this strategy what it is: more than its seed set, say."""
        return 1

    def check(self, victim: QueryInterface, resources: Resources, config: ThiefConfig) -> None:
        """Check, before the first query, that this strategy can be carried out.

        Raises:
            ConfigError: if the budget or the output interface does not allow it.
        """
        images = resources.budget // config.copies
        if images < self.least_images:
            copies = "" if config.copies == 1 else f", {config.copies} queries each"
            raise ConfigError(
                f"the attack {self.name!r} needs {self.least_images} images{copies}, but the query "
                f"budget is {resources.budget}: raise --budget"
            )

    @abstractmethod
    def ask(self, inquiry: Inquiry, thief: Thief) -> nn.Module | None:
        """Spend the budget: ask until ``inquiry.left`` is 0.

        Returns:
            The student that was trained along the way, where that is the surrogate; else None.
        """


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """One point of the learning curve.

    Attributes:
        queries: that were answered by then: whole images' copies. Where the surrogate is trained
            along the way, it is the number after the batch with which the wanted point was reached.
        surrogate: trained on those answers, on the CPU, in evaluation mode.
        history: one record per epoch of its training; none where it was trained along the way.
    """

    queries: int
    surrogate: nn.Module
    history: list[dict[str, float]]


@dataclass(frozen=True, eq=False)
class Extraction:
    """What an attack returns.

    Attributes:
        transcript: the images that were asked about, and their answers (means, with copies).
        curve: surrogates over the budget, the last one from all of it.
        queries: that the victim was asked.
        seconds: of the whole attack.
        victim_seconds: of them in the victim.
    """

    transcript: Transcript
    curve: tuple[CurvePoint, ...]
    queries: int
    seconds: float
    victim_seconds: float

    @property
    def surrogate(self) -> nn.Module:
        """The model that the whole budget bought."""
        return self.curve[-1].surrogate

    @property
    def history(self) -> list[dict[str, float]]:
        """One record per epoch of that model's training."""
        return self.curve[-1].history


class Attack:
    """An extraction attack: a query strategy and a thief, configured once, called per victim.

    Args:
        queries: decides what to ask.
        fit: of the surrogate's training.
        thief: what is done with the answers.
    """

    def __init__(
        self, queries: QueryStrategy, fit: FitConfig, thief: ThiefConfig | None = None
    ) -> None:
        self.queries = queries
        self.fit = fit
        self.thief = ThiefConfig() if thief is None else thief

    def __call__(
        self,
        victim: QueryInterface,
        resources: Resources,
        *,
        points: Sequence[int] = (),
        folder: Path | None = None,
        graph_sha256: str | None = None,
        progress: Progress = silent,
    ) -> Extraction:
        """Spend the budget on ``victim`` and train a surrogate.

        Args:
            victim: all that the thief sees of the network.
            resources: what it owns.
            points: numbers of queries, below the budget, at which the curve is drawn, rounded down
                to whole images where each has copies; the last point is all that was asked.
            folder: where the transcript is kept, batch by batch. One that holds the beginning of
                this very attack is gone on with: its answers are not asked for again.
            graph_sha256: of the victim's graph, if it has one: kept beside the transcript, which
                belongs to that graph alone.
            progress: shows queries and epochs.

        Returns:
            The surrogates and the transcript.

        Raises:
            ConfigError: if the budget, the interface or the device does not allow the attack, or
                the folder holds another one.
            DataError: if the pool does not fit the victim.
            AttackError: if the victim fails on the way; the answers so far are kept.
        """
        started = time.perf_counter()
        self.check(victim, resources, points)
        copies = self.thief.copies
        points = sorted({n // copies * copies for n in points})
        thief = Thief(self.thief, resources, self.fit, victim, progress)
        with progress("queries", resources.budget) as show:
            recorder = Recorder(
                victim,
                budget=resources.budget,
                folder=folder,
                identity={**self._identity(victim, resources), "graph_sha256": graph_sha256},
                show=show,
            )
            inquiry = Inquiry(
                recorder,
                seed=resources.seed,
                copies=copies,
                copy_kind=self.thief.copy_kind,
                points=points,
            )
            student = self.queries.ask(inquiry, thief)
        transcript = inquiry.transcript()
        if student is None:
            curve = [
                self._learned(thief, transcript, n // copies, n)
                for n in (*(n for n in points if n < recorder.asked), recorder.asked)
            ]
        else:
            kept = {**inquiry.kept, recorder.asked: student}
            curve = [self._graduated(thief, transcript, m, n) for n, m in sorted(kept.items())]
        return Extraction(
            transcript=transcript,
            curve=tuple(curve),
            queries=recorder.asked,
            seconds=time.perf_counter() - started,
            victim_seconds=recorder.victim_seconds,
        )

    def check(
        self, victim: QueryInterface, resources: Resources, points: Sequence[int] = ()
    ) -> None:
        """Check that this attack can be carried out, without a query; calling does so first.

        Raises:
            ConfigError: if the budget, the interface or the device does not allow it.
            DataError: if the pool does not fit the victim.
        """
        self.queries.check(victim, resources, self.thief)
        shows_none = victim.interface.interface == "label" and self.thief.copies == 1
        if self.thief.labels != "hard" and shows_none:
            raise ConfigError(
                f"labels are {self.thief.labels!r} but the interface 'label' shows none: choose "
                "labels 'hard', another interface, or several copies, whose mean is soft"
            )
        check_adaptive(self.thief.labels, victim.interface, resources)
        if victim.remaining is not None and victim.remaining < resources.budget:
            raise ConfigError(
                f"the thief wants {resources.budget} queries, the victim has {victim.remaining} "
                "left: lower --budget"
            )
        if not all(isinstance(n, int) for n in points):
            raise ConfigError(f"points are {list(points)}: give whole numbers of queries")
        outside = [n for n in points if not self.thief.copies <= n < resources.budget]
        if outside:
            raise ConfigError(
                f"a point of the curve is at {outside[0]} queries: give points from "
                f"{self.thief.copies}, and below the budget of {resources.budget}"
            )
        answers = max(2, resources.budget)  # a single answer is trained on twice
        check_fit(self.fit, max(answers, self.fit.batch_size))
        if self.queries.needs_pool or resources.pool is not None:
            _check_pool(self.queries, victim, resources)
        _check_surrogate(Thief(self.thief, resources, self.fit, victim), victim)

    def _identity(self, victim: QueryInterface, resources: Resources) -> Mapping[str, Any]:
        """Name all that decides the questions."""
        own = {
            "attack": self.queries.name,
            **asdict(self.queries),
            "seed": resources.seed,
            "budget": resources.budget,
            "image_shape": victim.image_shape,
            "classes": victim.num_classes,
            "interface": asdict(victim.interface),
            "pool_images": None if resources.pool is None else len(resources.pool),
            "pool_crc32": None if resources.pool is None else checksum(resources.pool),
            "copies": self.thief.copies,
            "copy_kind": self.thief.copy_kind,
        }
        if self.queries.learns:
            own |= {
                "labels": self.thief.labels,
                "training": self.thief.training,
                "fit": asdict(self.fit),
            }
        return own

    def _learned(
        self, thief: Thief, transcript: Transcript, images: int, queries: int
    ) -> CurvePoint:
        surrogate = thief.new_surrogate()
        history = thief.learn(surrogate, transcript.images[:images], transcript.answers[:images])
        return CurvePoint(queries, surrogate, history)

    def _graduated(
        self, thief: Thief, transcript: Transcript, student: nn.Module, queries: int
    ) -> CurvePoint:
        """Let the student of a data-free attack learn once more, where the thief can do better."""
        if self.thief.training == "plain" and self.thief.labels in ("soft", "hard"):
            return CurvePoint(queries, student.cpu().eval(), [])
        last = slice(
            max(0, queries // self.thief.copies - LEARNED_AGAIN), queries // self.thief.copies
        )
        history = thief.learn(student, transcript.images[last], transcript.answers[last])
        return CurvePoint(queries, student, history)


def _check_surrogate(thief: Thief, victim: QueryInterface) -> None:
    """Find out before a query is spent whether the surrogate takes such images."""
    surrogate = thief.new_surrogate()
    blank = torch.zeros(2, *victim.image_shape)  # BatchNorm needs two
    try:
        with torch.no_grad(), seeded(thief.seed):
            logits = surrogate(blank)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the surrogate cannot take images of shape {victim.image_shape}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    if getattr(logits, "shape", None) != (2, victim.num_classes):
        raise ConfigError(
            f"the surrogate gives {tuple(getattr(logits, 'shape', ()))} for 2 images, the victim "
            f"has {victim.num_classes} classes: give a surrogate with as many"
        )


def _check_pool(queries: QueryStrategy, victim: QueryInterface, resources: Resources) -> None:
    if resources.pool is None:
        raise ConfigError(f"the attack {queries.name!r} asks about images of a pool: give one")
    check_images(resources.pool, victim.image_shape)
    if len(resources.pool) == 0:
        raise DataError("the thief's pool is empty: it needs 1 image or more")
