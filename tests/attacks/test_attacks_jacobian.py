# SPDX-License-Identifier: BSD-3-Clause
"""JBDA, JB-topk and JBTR: what they spend, and that their questions follow their equations."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brevitas_divqat.attacks import (
    ATTACKS,
    JBDA,
    JBTR,
    AttackConfig,
    Extraction,
    JBTopK,
    QueryStrategy,
    Resources,
    jacobian,
)
from brevitas_divqat.attacks.ascent import ascend
from brevitas_divqat.attacks.base import Attack
from brevitas_divqat.attacks.jacobian import JacobianAugmentation
from brevitas_divqat.data import DataConfig, Dataset, load
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.victims import OutputInterface, Victim

Images = NDArray[np.uint8]

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")
SMALL: dict[str, JacobianAugmentation] = {
    "jbda": JBDA(seeds=8),
    "jb-topk": JBTopK(seeds=8),
    "jbtr": JBTR(seeds=8),
}
EACH = pytest.mark.parametrize("name", SMALL)
RADIUS = 25
"""Whole pixel levels of 256 in 0.1."""


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
    """40 distinct images."""
    return np.random.default_rng(1).integers(0, 256, (40, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> Layer:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Layer().eval()


def steal(
    pool: Images,
    strategy: QueryStrategy,
    *,
    budget: int = 50,
    seed: int = 0,
    labels: Any = "soft",
    interface: OutputInterface | None = None,
    copies: int = 1,
) -> Extraction:
    config = AttackConfig(budget=budget, copies=copies, surrogate_epochs=1, surrogate_device="cpu")
    victim = Victim(Linear(), interface=interface or OutputInterface(), budget=budget)
    attack = Attack(strategy, config.fit_config("none"), config.thief(labels))
    extraction = attack(victim, Resources(budget, Layer, seed, pool))
    assert victim.remaining == 0
    return extraction


def rows(images: Images) -> list[bytes]:
    return [image.tobytes() for image in images]


def probabilities(model: nn.Module, images: Images) -> Tensor:
    with torch.no_grad():
        shares: Tensor = model(torch.from_numpy(images).float() / 256).softmax(dim=1)
    return shares


@EACH
@pytest.mark.parametrize("budget", [9, 10, 32, 41, 200])
def test_exactly_the_budget_is_spent(pool: Images, name: str, budget: int) -> None:
    extraction = steal(pool, SMALL[name], budget=budget)
    assert len(extraction.transcript) == extraction.queries == budget


@EACH
def test_copies_of_each_image_fit_into_the_budget(pool: Images, name: str) -> None:
    extraction = steal(pool, SMALL[name], budget=90, copies=3)
    assert (len(extraction.transcript), extraction.queries) == (30, 90)


@EACH
def test_a_budget_below_the_seed_set_is_refused(pool: Images, name: str) -> None:
    with pytest.raises(ConfigError, match="needs 101 images.*budget is 100") as caught:
        steal(pool, ATTACKS[name](), budget=100)  # type: ignore[index]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "budget", "seeds"),
    [
        (JBDA(), 100, 100),
        (JBDA(), 1_000, 150),
        (JBTR(), 1_000, 250),
        (JBTR(), 5_000, 1_000),
        (JBTopK(), 50_000, 1_000),
        (JBDA(seeds=3), 20, 3),
    ],
)
def test_the_seed_set_is_the_paper_s_where_the_budget_allows(
    strategy: JacobianAugmentation, budget: int, seeds: int
) -> None:
    class Stop(Exception):
        pass

    class Inquiry:
        left = budget

        def ask(self, images: Images) -> NDArray[np.float64]:
            assert len(images) == seeds
            raise Stop

    class Thief:
        pool, seed = np.zeros((1000, *SHAPE), np.uint8), 0

        def new_surrogate(self, purpose: str) -> nn.Module:
            return Layer()

    with pytest.raises(Stop):
        strategy.ask(Inquiry(), Thief())  # type: ignore[arg-type]


@EACH
def test_questions_begin_with_seeds_from_the_pool(pool: Images, name: str) -> None:
    images = steal(pool, SMALL[name], budget=32).transcript.images
    assert len(set(rows(images[:8])) & set(rows(pool))) == 8
    assert not set(rows(images[8:])) & set(rows(pool))


def test_every_round_varies_all_images_and_the_last_one_a_sample(pool: Images) -> None:
    images = steal(pool, JBDA(seeds=8), budget=40).transcript.images.astype(int)
    for start, stop in ((8, 16), (16, 32), (32, 40)):
        distances = np.abs(images[start:stop, None] - images[None, :start]).max(axis=(2, 3, 4))
        parents = distances.argmin(axis=1)
        assert (distances.min(axis=1) <= 26).all()
        assert len(set(parents.tolist())) == stop - start


@EACH
def test_same_seed_same_transcript_and_surrogate(pool: Images, name: str) -> None:
    first, second, other = (steal(pool, SMALL[name], seed=seed) for seed in (3, 3, 4))
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
    first = steal(pool, SMALL[name])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]
    np.testing.assert_array_equal(pool, before[3])
    torch.manual_seed(2)
    assert rows(first.transcript.images) == rows(steal(pool, SMALL[name]).transcript.images)


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
    extraction = steal(pool, SMALL[name], interface=interface, labels=labels)
    assert len(extraction.transcript) == 50


@EACH
def test_the_attack_is_registered_with_its_paper_s_values(name: str) -> None:
    strategy = ATTACKS[name]()  # type: ignore[index]
    assert isinstance(strategy, JacobianAugmentation)
    assert (strategy.name, strategy.learns) == (name, True)
    expected = {"seeds": 150, "step": 0.1} if name == "jbda" else {"seeds": 1000, "k": 3}
    assert expected.items() <= vars(strategy).items()


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (JBDA, {"seeds": 0}),
        (JBDA, {"step": 0.0}),
        (JBDA, {"step": float("nan")}),
        (JBTR, {"k": 0}),
        (JBTR, {"epsilon": 1.5}),
        (JBTopK, {"steps": 0}),
    ],
)
def test_values_out_of_range_are_refused(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        kind(**bad)


# The equations


def probability_gradient(model: Layer, images: Images, classes: Tensor) -> NDArray[np.float64]:
    """Compute d s_y / d x = s_y (w_y - sum_k s_k w_k) of a linear model."""
    shares = probabilities(model, images).double()
    weights = model.layer.weight.detach().double()
    own = shares.gather(1, classes[:, None])
    return (own * (weights[classes] - shares @ weights)).reshape(images.shape).numpy()


def test_jbda_takes_one_step_of_lambda_along_the_sign_and_clips(pool: Images, model: Layer) -> None:
    classes = torch.arange(40) % 10
    new = ascend(model, pool, classes[None], step=0.1, device=CPU)
    signs = np.sign(probability_gradient(model, pool, classes))
    expected = np.clip(pool / 256 + 0.1 * signs, 0, 255 / 256)
    np.testing.assert_allclose(new / 256, expected, atol=0.5 / 256)
    assert (new[signs > 0] >= pool[signs > 0]).all()
    assert set(np.unique(np.abs(new.astype(int) - pool)[(pool > 26) & (pool < 229)])) == {26}


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_jbda_goes_towards_the_class_that_the_victim_said(
    pool: Images, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[bytes, int] = {}

    def watched(model: nn.Module, images: Images, targets: Tensor, **options: Any) -> Images:
        assert targets.shape == (1, len(images))
        wanted.update(zip(rows(images), targets[0].tolist(), strict=True))
        return ascend(model, images, targets, **options)

    monkeypatch.setattr(jacobian, "ascend", watched)
    transcript = steal(pool, JBDA(seeds=40), budget=80, labels=labels).transcript
    said = Linear()(transcript.images[:40]).argmax(axis=1)
    assert wanted == dict(zip(rows(transcript.images[:40]), said.tolist(), strict=True))


def test_the_gradient_does_not_vanish_where_the_probability_is_one(
    pool: Images, model: Layer
) -> None:
    certain = Layer().eval()
    with torch.no_grad():
        certain.layer.weight.copy_(model.layer.weight)
        certain.layer.bias.copy_(torch.tensor([200.0] + [0.0] * 9))
    classes = torch.zeros(40, dtype=torch.int64)
    assert (probabilities(certain, pool)[:, 0] == 1).all()
    new = ascend(certain, pool, classes[None], step=0.1, device=CPU)
    assert (new != pool).mean() > 0.9


def test_batches_do_not_matter(model: Layer) -> None:
    images = np.random.default_rng(3).integers(0, 256, (1203, *SHAPE), dtype=np.uint8)
    targets = torch.arange(1203).remainder(10).expand(4, -1)
    together = ascend(model, images, targets, step=0.05, radius=0.1, device=CPU)
    alone = ascend(model, images[1100:], targets[:, 1100:], step=0.05, radius=0.1, device=CPU)
    np.testing.assert_array_equal(together[1100:], alone)


class Fixed:
    """A substitute with the weights that it is given."""

    device = CPU

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.answers = np.zeros((1, 10))

    def logits(self, images: Images) -> Tensor:
        return probabilities(self.model, images).log()


@pytest.mark.parametrize(
    "strategy", [JBTR(), JBTR(steps=1), JBTopK()], ids=["jbtr", "jbtr-one-target", "jb-topk"]
)
def test_variations_stay_in_the_ball_and_go_towards_their_targets(
    pool: Images, model: Layer, strategy: JBTR | JBTopK
) -> None:
    substitute: Any = Fixed(model)
    classes = probabilities(model, pool).argmax(dim=1)
    new = strategy.vary(substitute, pool, classes, torch.Generator().manual_seed(0))
    targets = strategy.targets(substitute, pool, classes, torch.Generator().manual_seed(0))
    old = pool.repeat(3, axis=0)
    assert new.dtype == np.uint8
    assert targets.shape == (strategy.steps, len(new)) == (strategy.steps, 120)
    assert np.abs(new.astype(int) - old).max() == RADIUS
    assert (targets != classes.repeat_interleave(3)).all(), "never the victim's class"
    before, after = (probabilities(model, images) for images in (old, new))
    gain = after.gather(1, targets.T) - before.gather(1, targets.T)
    assert gain.mean() > 0.005
    if (targets == targets[0]).all():  # else one step undoes what another did
        assert gain.min() > 0
    own = classes.repeat_interleave(3)[:, None]
    assert (after.gather(1, own) < before.gather(1, own)).float().mean() > 0.9


def test_random_targets_are_drawn_anew_at_each_step_and_are_uniform(model: Layer) -> None:
    images = np.zeros((600, *SHAPE), np.uint8)
    own = torch.arange(600) % 10
    substitute: Any = Fixed(model)
    targets = JBTR().targets(substitute, images, own, torch.Generator().manual_seed(0))
    assert (targets[0] != targets[1]).float().mean() > 0.8
    counts = torch.bincount(targets[:, own.repeat_interleave(3) == 4].flatten(), minlength=10)
    assert counts[4] == 0
    others = counts[counts > 0]
    assert len(others) == 9
    assert others.min() > 0.6 * others.max()


def test_top_targets_are_the_likeliest_classes_but_the_victim_s(pool: Images, model: Layer) -> None:
    substitute: Any = Fixed(model)
    order = probabilities(model, pool).argsort(dim=1, descending=True)
    said = order[:, 1]  # the victim and the substitute disagree
    targets = JBTopK().targets(substitute, pool, said, torch.Generator())
    assert (targets == targets[0]).all()
    torch.testing.assert_close(targets[0].reshape(40, 3), order[:, [0, 2, 3]])


def test_with_few_classes_all_but_the_victim_s_are_targets() -> None:
    assert [JBTopK().copies(classes) for classes in (2, 3, 4, 10)] == [1, 2, 3, 3]
    assert [JBTR().copies(classes) for classes in (2, 10)] == [3, 3]

    class Two:
        name, image_shape, num_classes = "two", SHAPE, 2

        def __call__(self, images: Images) -> NDArray[np.float32]:
            return Linear()(images)[:, :2]

    config = AttackConfig(budget=41, surrogate_epochs=1, surrogate_device="cpu")
    images = np.random.default_rng(4).integers(0, 256, (9, *SHAPE), dtype=np.uint8)
    for strategy in (JBTopK(seeds=8), JBTR(seeds=8)):
        victim = Victim(Two(), budget=41)
        attack = Attack(strategy, config.fit_config("none"))
        attack(victim, Resources(41, lambda: Layer(2), 0, images))
        assert victim.remaining == 0


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
        budget=400,
        surrogate_epochs=10,
        surrogate_batch=32,
        surrogate_device="cpu",
    )
    resources = Resources(400, Layer, 0, digits.pools["in"].images)
    extraction = config.prepared("soft", "none")(Victim(Nearest()), resources)
    theirs = Nearest()(digits.validation.images).argmax(axis=1)
    own = probabilities(extraction.surrogate, digits.validation.images).argmax(dim=1).numpy()
    assert (own == theirs).mean() > 0.7
