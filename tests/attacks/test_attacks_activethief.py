# SPDX-License-Identifier: BSD-3-Clause
"""ActiveThief: what it spends, and that the questions are what each strategy's definition says."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brevitas_divqat.attacks import (
    ATTACKS,
    ActiveThiefDeepFool,
    ActiveThiefUncertainty,
    AttackConfig,
    Extraction,
    Resources,
    activethief,
)
from brevitas_divqat.attacks.activethief import ActiveThief
from brevitas_divqat.attacks.base import Attack
from brevitas_divqat.attacks.deepfool import deepfool
from brevitas_divqat.attacks.kcenter import k_center
from brevitas_divqat.attacks.substitute import Substitute
from brevitas_divqat.data import DataConfig, Dataset, load
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.victims import OutputInterface, Victim

Images = NDArray[np.uint8]

SHAPE = (1, 8, 8)
NAMES = [
    "activethief-uncertainty",
    "activethief-k-center",
    "activethief-deepfool",
    "activethief-deepfool-k-center",
]
EACH = pytest.mark.parametrize("name", NAMES)


class Linear:
    """A linear executor with ten classes."""

    name, image_shape, num_classes = "linear", SHAPE, 10
    weights = np.random.default_rng(0).normal(0, 0.01, (64, 10))

    def __call__(self, images: Images) -> NDArray[np.float32]:
        return (images.reshape(len(images), -1) @ self.weights).astype(np.float32)


class Layer(nn.Module):
    """A linear surrogate."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


@pytest.fixture(scope="session")
def pool() -> Images:
    """70 distinct images."""
    return np.random.default_rng(1).integers(0, 256, (70, *SHAPE), dtype=np.uint8)


def steal(
    pool: Images,
    *,
    name: Any = "activethief-uncertainty",
    budget: int = 50,
    seed: int = 0,
    labels: Any = "soft",
    interface: OutputInterface | None = None,
    rounds: int = 3,
    copies: int = 1,
) -> Extraction:
    config = AttackConfig(budget=budget, copies=copies, surrogate_epochs=1, surrogate_device="cpu")
    strategy = replace(ATTACKS[name](), rounds=rounds)  # type: ignore[call-arg]
    victim = Victim(Linear(), interface=interface or OutputInterface(), budget=budget)
    attack = Attack(strategy, config.fit_config("none"), config.thief(labels))
    extraction = attack(victim, Resources(budget, Layer, seed, pool))
    assert victim.remaining == 0
    return extraction


def rows(images: Images) -> list[bytes]:
    return [image.tobytes() for image in images]


@EACH
@pytest.mark.parametrize("budget", [10, 37, 71, 200])
def test_exactly_the_budget_is_spent(pool: Images, name: str, budget: int) -> None:
    extraction = steal(pool, name=name, budget=budget)
    assert len(extraction.transcript) == extraction.queries == budget


@EACH
def test_copies_of_each_image_fit_into_the_budget(pool: Images, name: str) -> None:
    extraction = steal(pool, name=name, budget=63, copies=3)
    assert (len(extraction.transcript), extraction.queries) == (21, 63)


@EACH
def test_a_budget_without_a_seed_is_refused(pool: Images, name: str) -> None:
    with pytest.raises(ConfigError, match="needs 10 images.*budget is 9") as caught:
        steal(pool, name=name, budget=9)
    assert "\n" not in str(caught.value)


@EACH
def test_each_image_is_asked_once_before_shifted_copies_are(pool: Images, name: str) -> None:
    images = steal(pool, name=name, budget=150).transcript.images
    assert sorted(rows(images[:70])) == sorted(rows(pool))
    assert not set(rows(images[70:])) & set(rows(pool))
    pixels = np.sort(pool.reshape(70, -1), axis=1)
    for copy in images[70:140]:
        kept = np.sort(copy[copy > 0])
        assert sum(np.isin(kept, one).all() for one in pixels) >= 1


@EACH
def test_same_seed_same_transcript_and_surrogate(pool: Images, name: str) -> None:
    first, second, other = (steal(pool, name=name, seed=seed) for seed in (3, 3, 4))
    assert first.transcript.images.tobytes() == second.transcript.images.tobytes()
    assert first.transcript.images.tobytes() != other.transcript.images.tobytes()
    a, b = (e.surrogate.state_dict() for e in (first, second))
    assert all(torch.equal(a[key], b[key]) for key in a)


@EACH
def test_the_global_random_states_and_the_pool_are_left_as_they_were(
    pool: Images, name: str
) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate(), pool.copy()
    first = steal(pool, name=name)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]
    np.testing.assert_array_equal(pool, before[3])
    torch.manual_seed(2)
    assert rows(first.transcript.images) == rows(steal(pool, name=name).transcript.images)


@EACH
@pytest.mark.parametrize(
    ("interface", "labels"),
    [
        (OutputInterface("logits"), "soft"),
        (OutputInterface("probabilities", decimals=1), "soft"),
        (OutputInterface("top-k", top_k=2), "soft"),
        (OutputInterface("label"), "hard"),
    ],
    ids=lambda value: getattr(value, "interface", value),
)
def test_every_interface_will_do(
    pool: Images, name: str, interface: OutputInterface, labels: str
) -> None:
    assert len(steal(pool, name=name, interface=interface, labels=labels).transcript) == 50


@EACH
def test_the_questions_depend_on_the_answers(pool: Images, name: str) -> None:
    soft, hard = (steal(pool, name=name, labels=labels).transcript for labels in ("soft", "hard"))
    assert rows(soft.images[:5]) == rows(hard.images[:5]), "the seed set"
    assert rows(soft.images) != rows(hard.images)
    assert ATTACKS[name]().learns  # type: ignore[index]


def test_the_substitute_costs_less_than_ten_epochs_of_the_budget() -> None:
    seen: list[int] = []

    class Counting:
        device = torch.device("cpu")

        def new_surrogate(self, *purpose: str) -> nn.Module:
            return Layer()

        def fit_config(self, images: int) -> Any:
            return AttackConfig(surrogate_epochs=15).fit_config("none")

        def learn(self, model: nn.Module, images: Images, *rest: Any, **options: Any) -> None:
            seen.append(len(images) * options["epochs"])

    class Answering:
        def ask(self, images: Images) -> NDArray[np.float64]:
            return np.zeros((len(images), 10))

    substitute = Substitute(Answering(), Counting())  # type: ignore[arg-type]
    substitute.ask(np.zeros((2_000, *SHAPE), np.uint8))
    for _ in range(10):
        substitute.learn()
        substitute.ask(np.zeros((1_800, *SHAPE), np.uint8))
    assert len(substitute.images) == 20_000
    assert sum(seen) < 10 * 20_000


@pytest.mark.parametrize("bad", [{"seed_share": 0.0}, {"seed_share": 1.1}, {"rounds": 0}])
def test_values_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ActiveThiefUncertainty(**bad)


# What is chosen


class Fixed:
    """A substitute with the weights and questions that it is given."""

    device = torch.device("cpu")

    def __init__(self, model: nn.Module, images: Images) -> None:
        self.model = model.eval()
        self.images = images

    logits = Substitute.logits
    batches = Substitute.batches

    @property
    def _model(self) -> nn.Module:
        return self.model


def chosen(name: Any, model: nn.Module, images: Images, asked: Images, count: int) -> Tensor:
    strategy = ATTACKS[name]()  # type: ignore[index]
    assert isinstance(strategy, ActiveThief)
    rows = strategy.select(Fixed(model, asked), images, count)  # type: ignore[arg-type]
    assert rows.dtype == torch.int64
    assert len(set(rows.tolist())) == len(rows) == count
    return rows


@pytest.fixture(scope="module")
def scene() -> tuple[nn.Module, Images, Images]:
    """Give a fixed linear substitute, 400 candidates in random order, and 20 asked images."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Layer()
    with torch.no_grad():
        model.layer.weight *= 4
    images = np.random.default_rng(2).integers(0, 256, (420, *SHAPE), dtype=np.uint8)
    return model, images[:400], images[400:]


def test_uncertainty_takes_the_highest_entropies(scene: tuple[nn.Module, Images, Images]) -> None:
    model, images, asked = scene
    picked = chosen("activethief-uncertainty", model, images, asked, 40)
    with torch.no_grad():
        probabilities = model(torch.from_numpy(images).float() / 256).softmax(dim=1)
    entropy = torch.distributions.Categorical(probabilities).entropy()
    rest = np.setdiff1d(np.arange(400), picked.numpy())
    assert entropy[picked].min() >= entropy[rest].max()
    assert entropy[picked].mean() > entropy[:40].mean() + 0.1


def test_k_center_covers_better_than_chance(scene: tuple[nn.Module, Images, Images]) -> None:
    model, images, asked = scene
    picked = chosen("activethief-k-center", model, images, asked, 40)
    with torch.no_grad():
        points = model(torch.from_numpy(images).float() / 256).softmax(dim=1)
        centres = model(torch.from_numpy(asked).float() / 256).softmax(dim=1)

    def radius(extra: Tensor) -> float:
        return float(torch.cdist(points, torch.cat([centres, extra])).amin(dim=1).max())

    assert radius(points[picked]) < 0.8 * radius(points[:40])


def test_k_center_is_the_farthest_first_traversal() -> None:
    points = torch.tensor([[0.0], [1.0], [5.0], [9.0], [10.0]])
    assert k_center(points, torch.tensor([[0.0]]), 4).tolist() == [4, 2, 1, 3]


def test_k_center_takes_no_point_twice_though_all_are_equal() -> None:
    points = torch.full((6, 3), 1 / 3)
    assert sorted(k_center(points, points[:1], 6).tolist()) == list(range(6))


def test_k_center_takes_many_centres_into_account() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0]])
    centres = torch.cat([torch.zeros(1500, 1), torch.full((1500, 1), 2.0)])
    assert k_center(points, centres, 1).tolist() == [1]


def boundary_distances(model: Layer, images: Images) -> Tensor:
    """Compute each image's distance to a linear model's nearest boundary."""
    with torch.no_grad():
        logits = model(torch.from_numpy(images).float() / 256)
        own = logits.argmax(dim=1, keepdim=True)
        gaps = logits.gather(1, own) - logits
        lengths = (model.layer.weight[own[:, 0]][:, None] - model.layer.weight[None]).norm(dim=2)
        return (gaps / lengths).scatter(1, own, torch.inf).amin(dim=1)


def test_deepfool_finds_a_linear_model_s_distances(scene: tuple[Any, Images, Images]) -> None:
    model, images, _ = scene
    inputs = torch.from_numpy(images).float() / 256
    exact = boundary_distances(model, images)
    torch.testing.assert_close(deepfool(model, inputs, rivals=9, steps=1), exact)
    torch.testing.assert_close(deepfool(model, inputs, rivals=50, steps=5), exact)
    few = deepfool(model, inputs, rivals=1, steps=1)
    assert (few >= exact - 1e-6).all()
    assert not inputs.requires_grad


def test_deepfool_goes_on_where_one_step_does_not_cross() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            position = x[:, 0, 0, 0]
            return torch.stack([position**2 - 0.04, torch.zeros_like(position)], dim=1)

    inputs = torch.zeros(2, 1, 8, 8)
    inputs[:, 0, 0, 0] = torch.tensor([1.0, 0.6])  # the boundary is at 0.2
    exact = torch.tensor([0.8, 0.4])
    errors = [
        (deepfool(Square(), inputs, rivals=1, steps=steps) - exact).abs().max()
        for steps in (1, 2, 5)
    ]
    assert errors[0] > 0.3 > errors[1] > 0.02 > errors[2]


def test_deepfool_sees_no_boundary_where_nothing_depends_on_the_input() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, 1.0, 2.0]) + 0 * x.flatten(1).sum(dim=1, keepdim=True)

    assert deepfool(Constant(), torch.ones(3, 1, 8, 8), rivals=2, steps=2).isinf().all()


def test_deepfool_takes_images_near_the_boundary(scene: tuple[Any, Images, Images]) -> None:
    model, images, asked = scene
    picked = chosen("activethief-deepfool", model, images, asked, 40)
    distances = boundary_distances(model, images)
    assert distances[picked].mean() < 0.4 * distances.mean()
    nearest = set(distances[:160].argsort()[:40].tolist())
    assert len(nearest & set(picked.tolist())) >= 30


def test_deepfool_with_k_center_is_near_the_boundary_and_covers_it(
    scene: tuple[Any, Images, Images],
) -> None:
    model, images, asked = scene
    picked = chosen("activethief-deepfool-k-center", model, images, asked, 40)
    alone = chosen("activethief-deepfool", model, images, asked, 60)
    assert set(picked.tolist()) != set(alone[:40].tolist())
    distances = boundary_distances(model, images)
    assert distances[picked].mean() < 0.6 * distances.mean()


def test_candidates_are_random_images_of_the_whole_pool(
    pool: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers: list[Images] = []

    class Watching(ActiveThiefDeepFool):
        def select(self, substitute: Substitute, images: Images, count: int) -> Tensor:
            offers.append(images)
            return super().select(substitute, images, count)

    monkeypatch.setattr(activethief, "CANDIDATES", 12)
    config = AttackConfig(budget=30, surrogate_epochs=1, surrogate_device="cpu")
    Attack(Watching(), config.fit_config("none"))(Victim(Linear()), Resources(30, Layer, 0, pool))
    assert [len(offer) for offer in offers] == [12] * 10
    assert len({row for offer in offers for row in rows(offer)}) > 40


# As a whole


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(pool_images=1))


@EACH
def test_a_linear_victim_of_digits_is_stolen(name: str, digits: Dataset) -> None:
    flat = digits.train.images.reshape(len(digits.train), -1).astype(np.float32)
    means = np.stack([flat[digits.train.labels == k].mean(axis=0) for k in range(10)])

    class Nearest:
        """The nearest class mean."""

        name, image_shape, num_classes = "nearest", SHAPE, 10

        def __call__(self, images: Images) -> NDArray[np.float32]:
            points = images.reshape(len(images), -1).astype(np.float32)
            scores = points @ means.T - (means**2).sum(axis=1) / 2
            return (scores / 10_000).astype(np.float32)

    config = AttackConfig(
        attack=name,  # type: ignore[arg-type]
        budget=250,
        surrogate_epochs=8,
        surrogate_batch=32,
        surrogate_device="cpu",
    )
    resources = Resources(250, Layer, 0, digits.pools["in"].images)
    extraction = config.prepared("soft", "none")(Victim(Nearest()), resources)
    with torch.no_grad():
        logits = extraction.surrogate(torch.from_numpy(digits.validation.images).float() / 256)
    theirs = Nearest()(digits.validation.images).argmax(axis=1)
    assert (logits.argmax(dim=1).numpy() == theirs).mean() > 0.8
