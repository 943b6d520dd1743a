# SPDX-License-Identifier: BSD-3-Clause
"""Black-Box Ripper: search a generator's images for those that the victim calls each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor

from brevitas_divqat.attacks.answers import shares
from brevitas_divqat.attacks.autoencoder import Autoencoder, imitate
from brevitas_divqat.attacks.base import QueryStrategy
from brevitas_divqat.attacks.data_free import check_least, smallest_probability
from brevitas_divqat.attacks.inquiry import Inquiry
from brevitas_divqat.attacks.online import REMEMBERED
from brevitas_divqat.attacks.thief import Thief
from brevitas_divqat.attacks.transcript import QUERY_BATCH
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.seeding import generator
from brevitas_divqat.training.config import check_positive
from brevitas_divqat.victims import OutputInterface

__all__ = ["BlackBoxRipper"]


@dataclass(frozen=True)
class BlackBoxRipper(QueryStrategy):
    """Black-Box Ripper (Barbalau, Cosma, Ionescu, Popescu, NeurIPS 2020, arXiv 2010.11158).

    A generator learns the thief's foreign images without asking anyone. Then, for one target class
    c after another, an evolutionary search looks for latent vectors z whose images the victim calls
    c: of a population of K vectors the k fittest are kept, and K - k others are kept ones plus
    normal noise, until the squared distance of the best answer to c's one-hot vector is below a
    threshold, or for a number of generations. The surrogate learns from the answers.

    It is the thief that a victim must fear which answers one class to all that is not of its
    distribution: a search climbs out of that class wherever the answer shows a slope.

    Deviations; tournaments, u and the mutations were chosen by the surrogate's accuracy on
    validation images of Fashion-MNIST, with 10,000 queries and two foreign pools:

    - the generator is a variational autoencoder, not a GAN: steadier, and trained in half a minute
      on one core for 28x28 pixels;
    - a search does not start from vectors drawn uniformly from [-u, u]. A tenth of the budget is
      spent on such vectors; a search's first elite is made up of the winners of k tournaments among
      random earlier answers, whichever class those were meant for;
    - u is 6, not 3, and mutations have a standard deviation of 2, not 1: an autoencoder's images
      vary little within the paper's box, and the victim calls too many of them the same;
    - the fittest have the largest log-odds of c against the likeliest other class, not the smallest
      distance: a slope is left where all probabilities but one are next to 0. Of equally fit
      vectors the newest are kept, so that a search wanders where answers show no slope (labels
      alone, rounded ones); there it hits c by chance, and goes on from what it hit;
    - an elite is not asked about twice; searches go side by side, each replaced by the next one as
      it ends; classes take turns, in random order, instead of being drawn;
    - the surrogate is trained once, from scratch, on all answers that were paid for, those of the
      searches' ways included, not on new found images in each epoch. Sure answers alone teach no
      more; as many of them of each class teach more with one pool, less with the other.

    Args:
        population: K, vectors of a search.
        elite: k, of them that are kept, fewer than K.
        bound: u, of the entries of vectors drawn at random.
        mutation: standard deviation of the noise.
        threshold: squared distance to the one-hot vector, at which a search ends.
        generations: after which a search ends.
        searches: side by side, where the budget is enough for that many.
        tournament: earlier answers among which a first elite is the fittest.
        explored: share of the queries that is spent on vectors drawn at random, below 1; at first
            1000 queries at most.
        latent: entries of a vector.
        width: units of the generator's hidden layers.
        divergence: see `imitate`.
        generator_steps: of the generator's training.

    Raises:
        ConfigError: if a value is out of range.
    """

    name: ClassVar[str] = "ripper"

    population: int = 30
    elite: int = 10
    bound: float = 6.0
    mutation: float = 2.0
    threshold: float = 0.02
    generations: int = 10
    searches: int = 33
    tournament: int = 10
    explored: float = 0.1
    latent: int = 64
    width: int = 512
    divergence: float = 0.3
    generator_steps: int = 1200

    def __post_init__(self) -> None:
        for name in (
            "elite",
            "generations",
            "searches",
            "tournament",
            "latent",
            "width",
            "generator_steps",
        ):
            check_least(name, getattr(self, name), 1)
        check_least("population", self.population, self.elite + 1)
        for name in ("bound", "mutation", "threshold", "divergence"):
            check_positive(name, getattr(self, name))
        if not 0 <= self.explored < 1:
            raise ConfigError(f"explored is {self.explored}: it must be from 0 to below 1")

    @property
    def kids(self) -> int:
        """Mutated vectors of a search in each generation."""
        return self.population - self.elite

    def ask(self, inquiry: Inquiry, thief: Thief) -> None:
        """Spend the budget on generated images."""
        images = imitate(
            thief.pool,
            latent=self.latent,
            width=self.width,
            divergence=self.divergence,
            steps=self.generator_steps,
            seed=thief.seed,
            device=thief.device,
            progress=thief.progress,
        )
        evolution = _Evolution(self, images, inquiry, thief)
        while inquiry.left > 0:
            evolution.step()


class _Evolution:
    """Searches side by side, and what they start from: the last `REMEMBERED` answers."""

    def __init__(
        self, config: BlackBoxRipper, images: Autoencoder, inquiry: Inquiry, thief: Thief
    ) -> None:
        self._config = config
        self._images = images
        self._inquiry = inquiry
        self._interface = thief.interface
        self._random = generator(thief.seed, config.name)
        self._classes = thief.num_classes
        self._turns: list[int] = []
        size = min(inquiry.left, REMEMBERED)
        self._vectors = torch.empty(size, config.latent)
        self._logs = torch.empty(size, thief.num_classes)
        self._asked = self._drawn = 0
        first = max(1, min(QUERY_BATCH, int(config.explored * inquiry.left)))
        self._ask(self._draw(first))
        finished = inquiry.left // (config.kids * config.generations)
        slots = max(1, min(config.searches, finished))
        self._targets = torch.zeros(slots, dtype=torch.int64)
        self._ages = torch.full((slots,), config.generations)  # all to be replaced
        self._elites = torch.zeros(slots, config.elite, config.latent)
        self._answers = torch.zeros(slots, config.elite, thief.num_classes)

    def step(self) -> None:
        """Carry out one generation of every search, or as much as the budget allows."""
        self._replace()
        slots, kids = len(self._targets), self._config.kids
        parents = torch.randint(self._config.elite, (slots, kids), generator=self._random)
        noise = torch.randn(slots, kids, self._config.latent, generator=self._random)
        born = _pick(self._elites, parents) + self._config.mutation * noise
        logs = self._ask(torch.cat([born.flatten(0, 1), self._draw(self._due(slots * kids))]))
        if self._inquiry.left > 0:
            self._select(born, logs[: slots * kids].view(slots, kids, -1))

    def _due(self, born: int) -> int:
        """Return how many vectors drawn at random shall be asked about beside ``born`` others."""
        share = self._config.explored
        lacking = (share * (self._asked + born) - self._drawn) / (1 - share)
        return max(0, min(self._inquiry.left, int(lacking)))

    def _replace(self) -> None:
        """Begin new searches in place of those that have found their class, or grown old."""
        ended = self._ages >= self._config.generations
        best = self._answers[:, 0].exp()
        wanted = torch.eye(self._classes)[self._targets]
        found = (best - wanted).square().sum(dim=1) < self._config.threshold
        for slot in (ended | ((self._ages > 0) & found)).nonzero()[:, 0].tolist():
            self._turns = self._turns or self._shuffled()
            self._targets[slot], self._ages[slot] = self._turns.pop(), 0
            chosen = self._tournaments(int(self._targets[slot]))
            self._elites[slot], self._answers[slot] = self._vectors[chosen], self._logs[chosen]

    def _shuffled(self) -> list[int]:
        order: list[int] = torch.randperm(self._classes, generator=self._random).tolist()
        return order

    def _tournaments(self, target: int) -> Tensor:
        """Return the places of (elite,) earlier answers, each the fittest of some."""
        known = min(self._asked, len(self._logs))
        size = (self._config.elite, self._config.tournament)
        drawn = torch.randint(known, size, generator=self._random)
        fitness = _log_odds(self._logs[drawn], torch.full(size[:1], target))
        return drawn.gather(1, fitness.argmax(dim=1, keepdim=True))[:, 0]

    def _select(self, born: Tensor, logs: Tensor) -> None:
        """Keep each search's fittest, first the best; the newest of equally fit ones."""
        vectors = torch.cat([born, self._elites], dim=1)
        answers = torch.cat([logs, self._answers], dim=1)
        fitness = _log_odds(answers, self._targets)
        order = fitness.sort(dim=1, descending=True, stable=True).indices[:, : self._config.elite]
        self._elites, self._answers = _pick(vectors, order), _pick(answers, order)
        self._ages += 1

    def _draw(self, count: int) -> Tensor:
        """Return (count, latent) vectors drawn at random."""
        self._drawn += count
        shares = torch.rand(count, self._config.latent, generator=self._random)
        return (2 * shares - 1) * self._config.bound

    def _ask(self, vectors: Tensor) -> Tensor:
        """Ask about as many (N, latent) ``vectors`` as the budget allows, and remember the answers.

        Returns:
            (M, K) logarithms of probabilities.
        """
        vectors = vectors[: self._inquiry.left]
        answers = self._inquiry.ask(self._images.pixels(vectors).numpy())
        logs = torch.from_numpy(_logarithms(answers, self._interface))
        places = torch.arange(self._asked, self._asked + len(logs)) % len(self._logs)
        self._vectors[places], self._logs[places] = vectors, logs
        self._asked += len(logs)
        return logs


def _pick(groups: Tensor, chosen: Tensor) -> Tensor:
    """Return (S, M, D) members of (S, N, D) groups, by their (S, M) places in them."""
    return groups.gather(1, chosen[:, :, None].expand(-1, -1, groups.shape[2]))


def _log_odds(logs: Tensor, targets: Tensor) -> Tensor:
    """Return (S, N) log-odds of each search's class against the likeliest other one.

    Args:
        logs: (S, N, K) logarithms of probabilities.
        targets: (S,) classes.
    """
    places = targets[:, None, None].expand(-1, logs.shape[1], 1)
    others = logs.scatter(2, places, -torch.inf).amax(dim=2)
    return logs.gather(2, places)[:, :, 0] - others


def _logarithms(answers: NDArray[np.float64], interface: OutputInterface) -> NDArray[np.float32]:
    """Return (N, K) logarithms of the probabilities in (N, K) answers."""
    if interface.interface == "logits":
        logs: NDArray[np.float64] = log_softmax(answers, axis=1)
    else:
        logs = np.log(np.maximum(shares(answers, interface), smallest_probability(interface)))
    return logs.astype(np.float32)
