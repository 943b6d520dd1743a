# SPDX-License-Identifier: BSD-3-Clause
"""Black-Box Ripper: what it spends, what its search finds, what it refuses."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.attacks import Attack, BlackBoxRipper, Extraction, Resources, ThiefConfig
from brevitas_divqat.attacks.autoencoder import imitate
from brevitas_divqat.attacks.ripper import _log_odds
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models import build
from brevitas_divqat.seeding import generator
from brevitas_divqat.training import FitConfig
from brevitas_divqat.training.calibration import to_input
from brevitas_divqat.victims import OutputInterface

SHAPE = (1, 8, 8)
CLASSES = 10
FIT = FitConfig(epochs=1, batch_size=32, lr=0.05, optimizer="sgd", weight_decay=5e-4, device="cpu")
TINY = BlackBoxRipper(
    population=6, elite=2, generations=2, searches=3, latent=4, width=16, generator_steps=3
)
SMALL = BlackBoxRipper(latent=8, width=256, divergence=0.05, generator_steps=120)
STUBBORN = 9
"""The class that the victim answers to what it does not know."""


class NetVictim:
    """Tells in which of nine places an image is bright, behind the protocol; counts its questions.

    Args:
        reserve: how much brighter than the others, of 1, a place must be for its class; what is not
            is of the class `STUBBORN`.
        interface: what the answers show.
    """

    def __init__(self, reserve: float = 0.2, interface: OutputInterface | None = None) -> None:
        self.image_shape = SHAPE
        self.num_classes = CLASSES
        self.interface = interface or OutputInterface()
        self.remaining = None
        self.asked: list[int] = []
        self._reserve = reserve

    def query(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        self.asked.append(len(images))
        places = F.adaptive_avg_pool2d(to_input(torch.from_numpy(images)), 3).flatten(1)
        contrasts = (9 * places - places.sum(dim=1, keepdim=True)) / 8
        scores = 20 * F.pad(contrasts, (0, 1), value=self._reserve)
        return self.interface.answer(scores.numpy())


def pool(count: int = 200) -> NDArray[np.uint8]:
    """Bright rectangles before black, each in one of nine places or across two."""
    drawn = np.random.default_rng(0)
    images = np.zeros((count, *SHAPE), np.uint8)
    for image in images:
        top, left = 3 * drawn.integers(0, 3, 2)
        height, width = drawn.integers(2, 5, 2)
        image[0, top : top + height, left : left + width] = 255
    return images


def lenet() -> nn.Module:
    return build("lenet5", SHAPE, CLASSES, precision=None, width=0.5)


def steal(
    attack: BlackBoxRipper,
    budget: int,
    victim: NetVictim | None = None,
    *,
    seed: int = 0,
    images: NDArray[np.uint8] | None = None,
    folder: Path | None = None,
    **thief: Any,
) -> Extraction:
    resources = Resources(budget, lenet, seed, pool() if images is None else images)
    theft = Attack(attack, FIT, ThiefConfig(**thief))
    return theft(victim or NetVictim(), resources, folder=folder)


def state(model: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


@pytest.mark.parametrize("budget", [1, 2, 9, 97, 1203])
def test_the_budget_is_spent_to_the_last_query(budget: int) -> None:
    victim = NetVictim()
    extraction = steal(TINY, budget, victim)
    assert extraction.queries == sum(victim.asked) == len(extraction.transcript) == budget


def test_the_same_seed_gives_the_same_theft_and_another_seed_another() -> None:
    first, second, other = (steal(TINY, 100, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.transcript.images, second.transcript.images)
    assert state(first.surrogate) == state(second.surrogate)
    assert not np.array_equal(first.transcript.images, other.transcript.images)


def test_global_random_states_stay_as_they_were() -> None:
    def states() -> tuple[Any, ...]:
        kind, keys, *rest = np.random.get_state(legacy=True)
        return torch.get_rng_state().tolist(), kind, list(keys), rest, random.getstate()

    before = states()
    steal(TINY, 40)
    assert states() == before


def test_an_interrupted_theft_goes_on_with_its_answers(tmp_path: Path) -> None:
    whole = steal(TINY, 100)
    steal(TINY, 100, folder=tmp_path)
    for path in sorted(tmp_path.glob("*.npz"))[-2:]:
        path.unlink()
    again = NetVictim()
    resumed = steal(TINY, 100, again, folder=tmp_path)
    assert 0 < sum(again.asked) < 100
    np.testing.assert_array_equal(resumed.transcript.images, whole.transcript.images)
    assert state(resumed.surrogate) == state(whole.surrogate)


def test_copies_are_queries() -> None:
    victim = NetVictim()
    extraction = steal(TINY, 101, victim, copies=2)
    assert sum(victim.asked) == extraction.queries == 100
    assert len(extraction.transcript) == 50


@pytest.mark.parametrize("images", [1, 3])
def test_a_pool_of_next_to_nothing_is_enough(images: int) -> None:
    assert steal(TINY, 50, images=pool(images)).queries == 50


def surest(extraction: Extraction) -> NDArray[np.float64]:
    """The mean answer for each class on the 50 images that are answered by it most surely."""
    means: NDArray[np.float64] = np.sort(extraction.transcript.answers, axis=0)[-50:].mean(axis=0)
    return means


def told(extraction: Extraction, part: slice) -> float:
    """The share of a part of the answers that are of another class than `STUBBORN`."""
    return float((extraction.transcript.answers[part].argmax(axis=1) != STUBBORN).mean())


def test_evolution_raises_the_answer_of_the_classes_above_that_of_random_latents() -> None:
    bred = surest(steal(SMALL, 2000, NetVictim(0.4)))[:STUBBORN]
    blind = replace(SMALL, explored=0.999, searches=1)
    drawn = surest(steal(blind, 2000, NetVictim(0.4)))[:STUBBORN]
    assert (bred > drawn).sum() >= 7
    assert bred.mean() > 1.3 * drawn.mean()


def test_a_victim_that_answers_one_class_to_nearly_everything_is_searched_for_the_others() -> None:
    extraction = steal(SMALL, 2000, NetVictim(0.4))
    assert told(extraction, slice(200)) < 0.1, "drawn at random"
    assert told(extraction, slice(-500, None)) > 0.4


def test_where_answers_show_labels_alone_the_search_goes_on_from_what_it_hit() -> None:
    victim = NetVictim(0.4, OutputInterface("label"))
    extraction = steal(SMALL, 2000, victim, labels="hard")
    assert told(extraction, slice(-500, None)) > 1.5 * told(extraction, slice(200)) > 0


@pytest.mark.parametrize(
    ("interface", "labels"),
    [
        (OutputInterface("logits"), "soft"),
        (OutputInterface("logits"), "hard"),
        (OutputInterface("probabilities", decimals=1), "soft"),
        (OutputInterface("top-k", top_k=1, decimals=0), "soft"),
        (OutputInterface("top-k", top_k=3), "soft"),
        (OutputInterface("label"), "hard"),
    ],
)
def test_every_interface_will_do(interface: OutputInterface, labels: str) -> None:
    extraction = steal(TINY, 100, NetVictim(0.2, interface), labels=labels)
    assert extraction.queries == 100
    assert all(bool(v.isfinite().all()) for v in extraction.surrogate.state_dict().values())


def test_what_is_asked_does_not_depend_on_what_is_made_of_the_answers() -> None:
    assert not TINY.learns
    soft, hard = (steal(TINY, 100, labels=labels) for labels in ("soft", "hard"))
    np.testing.assert_array_equal(soft.transcript.images, hard.transcript.images)


def test_a_thief_without_a_pool_is_refused_before_a_query() -> None:
    victim = NetVictim()
    with pytest.raises(ConfigError, match="pool"):
        Attack(TINY, FIT)(victim, Resources(50, lenet, 0))
    assert victim.asked == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elite": 0}, "elite is 0"),
        ({"elite": 30}, "population is 30"),
        ({"generations": 0}, "generations is 0"),
        ({"searches": 0}, "searches is 0"),
        ({"tournament": 0}, "tournament is 0"),
        ({"generator_steps": 0}, "generator_steps is 0"),
        ({"mutation": 0.0}, "mutation"),
        ({"bound": float("nan")}, "bound"),
        ({"threshold": -1.0}, "threshold"),
        ({"explored": 1.0}, r"explored is 1\.0"),
    ],
)
def test_values_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(BlackBoxRipper(), **settings)


def test_log_odds_are_against_the_likeliest_other_class() -> None:
    logs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]).log()
    odds = _log_odds(torch.stack([logs, logs]), torch.tensor([0, 1]))
    torch.testing.assert_close(odds.exp(), torch.tensor([[7 / 2, 1 / 6], [2 / 7, 1 / 2]]))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 9)])
def test_the_generator_makes_images_like_the_pool_s(shape: tuple[int, int, int]) -> None:
    drawn = np.random.default_rng(0)
    levels = drawn.integers(0, 2, (100, shape[0], 1, 1)) * 255  # each channel black or white
    images = np.broadcast_to(levels, (100, *shape)).astype(np.uint8)
    imitation = imitate(
        images,
        latent=4,
        width=256,
        divergence=0.1,
        steps=150,
        seed=0,
        device=torch.device("cpu"),
    )
    made = imitation.pixels(torch.randn(200, 4, generator=generator(0, "latent")))
    assert made.shape == (200, *shape)
    assert made.dtype == torch.uint8
    flat = made.float().flatten(2)
    assert float(flat.std(dim=2).mean()) < 10, "one level per channel"
    extreme = (flat.mean(dim=2) < 64) | (flat.mean(dim=2) > 191)
    assert float(extreme.float().mean()) > 0.6, "black or white"
