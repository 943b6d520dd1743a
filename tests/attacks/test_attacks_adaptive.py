# SPDX-License-Identifier: BSD-3-Clause
"""Thieves who know the defence: what they put right where it is known what was done."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.attacks import AttackConfig, Extraction, Labels, Resources, recovery, shadows
from brevitas_divqat.attacks.corrections import CORRECTIONS
from brevitas_divqat.attacks.inversion import drop_favourites, favourites, invert_loss, rerank
from brevitas_divqat.attacks.recovery import keep_top, learned_answers, posterior_means
from brevitas_divqat.attacks.shadows import ShadowPairs, ShadowPlan, shadow_pairs
from brevitas_divqat.attacks.thief import Thief, ThiefConfig
from brevitas_divqat.data import DataConfig, Dataset, load
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import DivQATLoss, LossConfig, divqat_loss
from brevitas_divqat.models import Precision, build
from brevitas_divqat.training import FitConfig
from brevitas_divqat.victims import OutputInterface

Images = NDArray[np.uint8]
Floats = NDArray[np.float64]

SHAPE = (1, 8, 8)
CLASSES = 10
ADAPTIVE = ("recovered", "bayes", "sharpened", "reranked", "dropped")
TINY = ShadowPlan(train_images=48, seen_float=60, seen_quantized=60, most_epochs=1, answered=40)
FIT = FitConfig(epochs=1, batch_size=16, device="cpu")


class Digits:
    """A linear victim of 8x8 images, with the victims' protocol."""

    image_shape = SHAPE
    num_classes = CLASSES
    remaining = None

    def __init__(self, interface: OutputInterface | None = None) -> None:
        self.interface = interface or OutputInterface()
        self.asked = 0
        self._weights = np.random.default_rng(0).normal(0, 0.01, (64, CLASSES))

    def query(self, images: Images) -> Floats:
        self.asked += len(images)
        scores = images.reshape(len(images), -1) @ self._weights
        return self.interface.answer(scores.astype(np.float32))


def shadow(quantized: bool) -> nn.Module:
    precision = Precision() if quantized else None
    return build("lenet5", SHAPE, CLASSES, precision=precision, width=0.25)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig())


@pytest.fixture(scope="module")
def pool(digits: Dataset) -> Images:
    return digits.pools["in"].images[:120]


def thief_of(
    victim: Digits, pool: Images | None = None, *, seed: int = 0, defence: LossConfig | None = None
) -> Thief:
    resources = Resources(1, partial(shadow, False), seed, pool, shadow)
    return Thief(ThiefConfig(defence=defence or LossConfig()), resources, FIT, victim)


def steal(victim: Digits, pool: Images, labels: Any, **settings: Any) -> Extraction:
    make = settings.pop("shadow", shadow)
    config = AttackConfig(
        budget=60,
        surrogate="lenet5",
        surrogate_width=0.25,
        surrogate_epochs=1,
        surrogate_device="cpu",
        **settings,
    )
    factory = config.surrogate_factory(SHAPE, CLASSES, None)
    return config.prepared(labels, "none")(victim, Resources(60, factory, 0, pool, make))


def distance(first: Floats, second: Floats) -> float:
    """Mean l1 distance, 0 to 2."""
    return float(np.abs(first - second).sum(axis=1).mean())


def some_answers(count: int, classes: int = CLASSES, seed: int = 0) -> Floats:
    """Answers whose top class has half or more, and shares out the rest by likeness of classes.

    Likeness falls with the distance of the class numbers on a circle, the same both ways.
    """
    source = np.random.default_rng(seed)
    steps = np.abs(np.arange(classes)[:, None] - np.arange(classes))
    likeness = np.exp(-np.minimum(steps, classes - steps) / 2)
    np.fill_diagonal(likeness, 0)
    tops = source.integers(0, classes, count)
    rest = likeness[tops] * source.uniform(0.8, 1.25, (count, classes))
    left = source.uniform(0.1, 0.5, (count, 1))
    answers = left * rest / rest.sum(axis=1, keepdims=True)
    answers[np.arange(count), tops] = 1 - left[:, 0]
    return answers


# Recovery from shadow pairs, of a planted defence


def shifted_rest(answers: Floats) -> Floats:
    """Move each class's probability to the class 4 places on, past the top class, which stays."""
    defended = np.empty_like(answers)
    for row, top in enumerate(answers.argmax(axis=1)):
        others = np.delete(np.arange(answers.shape[1]), top)
        defended[row, np.roll(others, -4)] = answers[row, others]
        defended[row, top] = answers[row, top]
    return defended


def flattened(answers: Floats) -> Floats:
    powers: Floats = answers ** (1 / 3)
    return powers / powers.sum(axis=1, keepdims=True)


RECOVERIES: dict[str, Callable[[ShadowPairs, Floats], Floats]] = {
    "recovered": partial(learned_answers, seed=0),
    "bayes": posterior_means,
}


@pytest.mark.parametrize("labels", list(RECOVERIES))
@pytest.mark.parametrize("defend", [shifted_rest, flattened])
def test_a_planted_map_is_undone(
    labels: str, defend: Callable[[Floats], Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "EPOCHS", 40)
    theirs, clean = some_answers(2500), some_answers(300, seed=1)
    pairs = ShadowPairs(theirs, defend(theirs))
    corrected = RECOVERIES[labels](pairs, defend(clean))
    assert distance(corrected, clean) < distance(defend(clean), clean) / 3
    assert (corrected.argmax(axis=1) == clean.argmax(axis=1)).mean() > 0.99
    np.testing.assert_allclose(corrected.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("labels", list(RECOVERIES))
def test_a_planted_map_of_100_classes_is_undone(
    labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "EPOCHS", 12)
    theirs, clean = some_answers(2000, 100), some_answers(50, 100, seed=1)
    corrected = RECOVERIES[labels](ShadowPairs(theirs, flattened(theirs)), flattened(clean))
    assert corrected.shape == (50, 100)
    assert distance(corrected, clean) < 0.8 * distance(flattened(clean), clean)


@pytest.mark.parametrize("labels", list(RECOVERIES))
def test_the_label_is_what_its_shadow_pairs_teach_with_the_victims_top_class(
    labels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = some_answers(300)
    pairs = ShadowPairs(theirs, shifted_rest(theirs))
    monkeypatch.setattr(recovery, "EPOCHS", 5)
    monkeypatch.setattr(recovery, "shadow_pairs", lambda images, answers, thief: pairs)
    answers = some_answers(50, seed=2)
    targets = CORRECTIONS[labels](np.zeros((50, *SHAPE), np.uint8), answers, thief_of(Digits()))
    assert targets.dtype == np.float32
    assert (targets.argmax(axis=1) == answers.argmax(axis=1)).all()
    expected = keep_top(RECOVERIES[labels](pairs, answers), answers)
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_the_window_widens_to_the_nearest_pairs() -> None:
    clean = np.eye(4)[np.arange(100) % 4]
    defended = np.concatenate([np.full((50, 4), 0.25), np.eye(4)[np.zeros(50, int)]])
    means = posterior_means(ShadowPairs(clean, defended), np.array([[0.25] * 4, [0.0, 0, 0, 1]]))
    np.testing.assert_allclose(means[0], clean[:50].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(means[1], clean[:50].mean(axis=0), atol=1e-12)


def test_fewer_pairs_than_a_window_needs_are_all_averaged() -> None:
    clean = some_answers(5)
    means = posterior_means(ShadowPairs(clean, clean), clean[:2])
    np.testing.assert_allclose(means, np.stack([clean.mean(axis=0)] * 2), atol=1e-12)


def test_chunks_of_answers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = some_answers(60)
    pairs = ShadowPairs(clean, flattened(clean))
    at_once = posterior_means(pairs, clean)
    monkeypatch.setattr(recovery, "CHUNK_NUMBERS", 7 * 60)
    np.testing.assert_allclose(posterior_means(pairs, clean), at_once, atol=1e-12)


# Shadow pairs


@dataclass
class Shadowing:
    """What one call of `shadow_pairs` trained on and asked about, and what it returned."""

    pairs: ShadowPairs
    trained: list[set[bytes]] = field(default_factory=list)
    asked: list[set[bytes]] = field(default_factory=list)


@pytest.fixture(scope="module")
def shadowing(pool: Images) -> Shadowing:
    """Watch shadow pairs being made from 60 answers, with a pool of 120."""
    made = Shadowing(ShadowPairs(np.empty(0), np.empty(0)))
    real_fit, real_scores = shadows.fit, shadows._scores

    def fit(model: nn.Module, criterion: Any, images: Images, *args: Any, **kwargs: Any) -> Any:
        made.trained.append({image.tobytes() for image in images})
        return real_fit(model, criterion, images, *args, **kwargs)

    def scores(model: nn.Module, images: Images, thief: Thief) -> Any:
        made.asked.append({image.tobytes() for image in images})
        return real_scores(model, images, thief)

    victim = Digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shadows, "fit", fit)
        patch.setattr(shadows, "_scores", scores)
        torch.manual_seed(2)
        made.pairs = shadow_pairs(pool[:60], victim.query(pool[:60]), thief_of(victim, pool), TINY)
    return made


def test_shadow_pairs_are_answers_to_what_was_not_trained_on(
    shadowing: Shadowing, pool: Images
) -> None:
    assert shadowing.pairs.clean.shape == shadowing.pairs.defended.shape == (80, CLASSES)
    assert len(shadowing.trained) == 6, "three networks for each of two folds"
    assert len(shadowing.asked) == 4, "two of them answer"
    first, second = shadowing.trained[:3], shadowing.trained[3:]
    for trained, asked in ((first, shadowing.asked[:2]), (second, shadowing.asked[2:])):
        assert trained[0] == trained[1] == trained[2]
        assert asked[0] == asked[1]
        assert len(asked[0]) == 40
        assert not trained[0] & asked[0]
    assert first[0] | second[0] == {image.tobytes() for image in pool[:60]}
    assert not first[0] & second[0]


def test_same_seed_same_pairs_and_random_states_left_alone(
    shadowing: Shadowing, pool: Images
) -> None:
    victim = Digits()
    answers = victim.query(pool[:60])
    torch.manual_seed(1)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    again = shadow_pairs(pool[:60], answers, thief_of(victim, pool), TINY)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]
    assert again.defended.tobytes() == shadowing.pairs.defended.tobytes()
    assert again.clean.tobytes() == shadowing.pairs.clean.tobytes()


def test_other_seeds_give_other_pairs(shadowing: Shadowing, pool: Images) -> None:
    victim = Digits()
    other = shadow_pairs(pool[:60], victim.query(pool[:60]), thief_of(victim, pool, seed=1), TINY)
    assert other.clean.tobytes() != shadowing.pairs.clean.tobytes()


def test_a_single_answer_without_a_pool_is_enough(pool: Images) -> None:
    victim = Digits()
    pairs = shadow_pairs(pool[:1], victim.query(pool[:1]), thief_of(victim), TINY)
    assert pairs.clean.shape == (4, CLASSES)
    assert np.isfinite(pairs.clean).all()
    assert np.isfinite(pairs.defended).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_only_the_published_defence_tells_the_two_networks_apart(
    shadowing: Shadowing, pool: Images, alpha: float
) -> None:
    victim = Digits()
    thief = thief_of(victim, pool, defence=LossConfig(alpha=alpha))
    pairs = shadow_pairs(pool[:60], victim.query(pool[:60]), thief, TINY)
    np.testing.assert_array_equal(pairs.clean, shadowing.pairs.clean)
    apart = distance(pairs.clean, pairs.defended)
    assert apart < 1e-12 if alpha == 0 else apart > 1e-4
    assert distance(pairs.defended, shadowing.pairs.defended) > 1e-4


@pytest.mark.parametrize("kinds", [("given",), ("given", "shapes")])
def test_shadows_are_defended_without_the_defenders_images_and_with_his_augmentation(
    pool: Images, kinds: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[DivQATLoss] = []
    real = shadows.fit

    def fit(model: nn.Module, criterion: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(criterion)
        return real(model, criterion, *args, **kwargs)

    monkeypatch.setattr(shadows, "fit", fit)
    victim = Digits()
    resources = Resources(1, partial(shadow, False), 0, pool, shadow)
    config = ThiefConfig(defence=LossConfig(outliers=kinds))
    thief = Thief(config, resources, replace(FIT, augmentation="shift"), victim)
    shadow_pairs(pool[:20], victim.query(pool[:20]), thief, TINY)
    defended = made[2]
    assert defended.config.kinds == (kinds[1:] or ("textures", "patches", "shapes"))
    assert defended.outliers.augment is not None


def test_shadows_answer_through_the_victims_interface(pool: Images) -> None:
    victim = Digits(OutputInterface("top-k", top_k=3))
    pairs = shadow_pairs(pool[:20], victim.query(pool[:20]), thief_of(victim), TINY)
    assert ((pairs.defended > 0).sum(axis=1) == 3).all()
    assert (pairs.clean > 0).all()


# Inversion of the published loss


def defended_by(loss: LossConfig, clean: Floats) -> Floats:
    """Where gradient descent on the loss itself takes single answers that start at the originals.

    Labels are drawn as the original answers say, in the mean; a small disturbance, as rounding
    weights gives, takes the answers off the originals, where the divergence has no gradient.
    """
    reference = torch.from_numpy(np.log(clean))
    disturbance = np.random.default_rng(3).normal(0, 0.3, clean.shape)
    logits = (reference + torch.from_numpy(disturbance)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.04)
    for _ in range(800):
        optimizer.zero_grad()
        terms = divqat_loss(
            logits,
            torch.from_numpy(clean),
            reference,
            alpha=loss.weight,
            direction=loss.direction or "q||p",
            temperature=loss.softness,
            weighting=loss.weighting or "additive",
        )
        (terms.loss * len(clean)).backward()
        optimizer.step()
    return logits.detach().softmax(dim=1).numpy()


def rare_classes(count: int) -> Floats:
    """Answers with two likely classes and eight of a few thousandths."""
    source = np.random.default_rng(5)
    weights = source.uniform(0.002, 0.008, (count, CLASSES))
    weights[:, 0], weights[:, 1] = 0.8, source.uniform(0.1, 0.2, count)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(LossConfig("F3", alpha=0.15), id="F3"),
        pytest.param(LossConfig(alpha=0.13, weighting="convex"), id="F3-convex"),
    ],
)
def test_the_loss_is_inverted(loss: LossConfig) -> None:
    clean = rare_classes(40)
    answers = defended_by(loss, clean)
    driven = answers < clean / 10
    assert driven[:, 2:].mean() > 0.1, "the case at hand: classes that were driven off"
    inverted = invert_loss(answers, loss)
    np.testing.assert_allclose(inverted.sum(axis=1), 1, atol=1e-9)
    before, after = (np.abs(np.log(x[driven] / clean[driven])).mean() for x in (answers, inverted))
    assert after < before / 3
    assert distance(inverted, clean) < distance(answers, clean)


def test_a_loss_that_drives_off_nothing_is_inverted_to_what_there_is() -> None:
    answers = some_answers(20)
    for loss in (LossConfig(alpha=0.0), LossConfig("F1"), LossConfig(temperature=1.0)):
        np.testing.assert_array_equal(invert_loss(answers, loss), answers)


def test_likely_classes_keep_their_ratios() -> None:
    answers = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.05), 200) + 1e-14
    answers /= answers.sum(axis=1, keepdims=True)
    inverted = invert_loss(answers, LossConfig())
    tops = np.arange(len(answers)), answers.argmax(axis=1)
    ratios = [x / x[tops][:, None] for x in (answers, inverted)]
    likely = answers > 0.1
    np.testing.assert_allclose(ratios[1][likely], ratios[0][likely], rtol=1e-9)
    np.testing.assert_array_equal(inverted.argmax(axis=1), tops[1])
    assert (inverted[answers < 1e-6] > 1e-6).all(), "the rare ones are raised"


def test_extreme_answers_give_finite_estimates() -> None:
    answers = np.array([[1.0, 0, 0], [1 - 1e-300, 1e-300, 1e-310], [1 - 1e-15, 1e-15, 0]])
    for temperature in (1e-3, 4.0, 1e4):
        inverted = invert_loss(answers, LossConfig(temperature=temperature))
        assert np.isfinite(inverted).all()
    np.testing.assert_array_equal(inverted == 0, answers == 0)
    np.testing.assert_allclose(inverted.sum(axis=1), 1, atol=1e-12)


# Favourites and ranks


def favoured(clean: Floats, share: float) -> Floats:
    """Give ``share`` of everything to the class three on from the top class."""
    defended = clean * (1 - share)
    defended[np.arange(len(clean)), (clean.argmax(axis=1) + 3) % CLASSES] += share
    return defended


def test_planted_favourites_are_found_and_dropped() -> None:
    clean = some_answers(800)
    defended = favoured(clean, 0.25)
    expected = np.zeros((CLASSES, CLASSES), bool)
    expected[np.arange(CLASSES), (np.arange(CLASSES) + 3) % CLASSES] = True
    np.testing.assert_array_equal(favourites(defended), expected)
    dropped = drop_favourites(defended)
    assert distance(dropped, clean) < distance(defended, clean) / 3
    np.testing.assert_array_equal(dropped.argmax(axis=1), clean.argmax(axis=1))


def test_an_undefended_victim_has_no_favourites() -> None:
    clean = some_answers(800)
    assert not favourites(clean).any()
    np.testing.assert_allclose(drop_favourites(clean), clean, atol=1e-12)


def test_classes_that_are_rarely_on_top_are_not_judged() -> None:
    defended = favoured(some_answers(800), 0.25)
    few = np.concatenate([defended[defended.argmax(axis=1) != 4], defended[:20]])
    found = favourites(few)
    assert not found[4].any()
    assert not found[:, 4].any()
    assert found[0, 3]


def test_answers_are_sorted_by_the_similarity_of_classes() -> None:
    clean = some_answers(800)
    source = np.random.default_rng(6)
    defended = clean.copy()
    for row in source.choice(800, 300, replace=False):  # in single images, as the loss does it
        others = np.delete(np.arange(CLASSES), clean[row].argmax())
        defended[row, others] = clean[row, source.permutation(others)]
    reranked = rerank(defended)
    assert distance(reranked, clean) < 0.5 * distance(defended, clean)
    np.testing.assert_array_equal(reranked.argmax(axis=1), clean.argmax(axis=1))
    np.testing.assert_array_equal(np.sort(reranked, axis=1), np.sort(defended, axis=1))


# As labels


@pytest.mark.parametrize("labels", ["sharpened", "reranked", "dropped"])
@pytest.mark.parametrize(
    "interface",
    [
        OutputInterface("logits"),
        OutputInterface("probabilities", decimals=1),
        OutputInterface("top-k", top_k=1),
        OutputInterface("top-k", top_k=3),
    ],
    ids=lambda i: f"{i.interface}-{i.decimals}-{i.top_k}",
)
def test_targets_are_distributions_with_the_answers_top_class(
    pool: Images, labels: Any, interface: OutputInterface
) -> None:
    victim = Digits(interface)
    answers = victim.query(pool)
    before = answers.copy()
    targets = CORRECTIONS[labels](pool, answers, thief_of(victim))
    assert targets.dtype == np.float32
    assert targets.min() >= 0
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-5)
    rows = np.arange(len(targets))
    np.testing.assert_array_equal(targets[rows, answers.argmax(axis=1)], targets.max(axis=1))
    np.testing.assert_array_equal(answers, before)


@pytest.mark.parametrize("labels", ADAPTIVE)
def test_each_label_trains_a_surrogate_the_same_twice(
    shadowing: Shadowing, pool: Images, labels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "shadow_pairs", lambda images, answers, thief: shadowing.pairs)
    monkeypatch.setattr(recovery, "EPOCHS", 2)
    first, second = (steal(Digits(), pool, labels) for _ in range(2))
    a, b = (extraction.surrogate.state_dict() for extraction in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    soft = steal(Digits(), pool, "soft")
    assert soft.transcript.images.tobytes() == first.transcript.images.tobytes()
    if labels in ("recovered", "bayes", "reranked"):
        c = soft.surrogate.state_dict()
        assert any(not torch.equal(a[name], c[name]) for name in a)


def test_a_thief_trains_its_shadows_on_the_transcript_alone(
    pool: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "shadow_pairs", partial(shadow_pairs, plan=TINY))
    monkeypatch.setattr(recovery, "EPOCHS", 2)
    victim = Digits()
    extraction = steal(victim, pool, "recovered")
    assert victim.asked == len(extraction.transcript) == 60


def test_all_adaptive_labels_are_registered() -> None:
    assert set(ADAPTIVE) <= set(get_args(Labels))
    assert set(ADAPTIVE) <= set(CORRECTIONS)


# Refusals, before the first query


@pytest.mark.parametrize("labels", ["recovered", "bayes"])
def test_an_unknown_architecture_is_refused(pool: Images, labels: Any) -> None:
    victim = Digits()
    with pytest.raises(ConfigError, match=f"'{labels}'.*architecture") as caught:
        steal(victim, pool, labels, shadow=None)
    assert "\n" not in str(caught.value)
    assert victim.asked == 0


@pytest.mark.parametrize("labels", ["sharpened", "reranked", "dropped"])
def test_an_unknown_architecture_is_no_matter_without_shadows(pool: Images, labels: Any) -> None:
    assert len(steal(Digits(), pool, labels, shadow=None).transcript) == 60


@pytest.mark.parametrize("labels", ADAPTIVE)
@pytest.mark.parametrize("copies", [1, 2])
def test_an_interface_without_probabilities_is_refused(
    pool: Images, labels: Any, copies: int
) -> None:
    victim = Digits(OutputInterface("label"))
    with pytest.raises(ConfigError, match=f"'{labels}'.*'label'") as caught:
        steal(victim, pool, labels, copies=copies)
    assert "\n" not in str(caught.value)
    assert victim.asked == 0
