# SPDX-License-Identifier: BSD-3-Clause
"""The victim: every query counts, and none beyond the budget is answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from brevitas_divqat.data import DataConfig, load
from brevitas_divqat.errors import BudgetExceeded, ConfigError, DataError
from brevitas_divqat.executors import ModuleExecutor, ReferenceExecutor
from brevitas_divqat.export import GraphMetadata, export_qonnx
from brevitas_divqat.models import Precision, build
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import calibrate
from brevitas_divqat.victims import OutputInterface, QueryInterface, Victim

SIDE = 3


class Script:
    """Answers image number i, written in its first pixel, with row i of ``scores``."""

    name = "scripted"
    image_shape = (1, SIDE, SIDE)

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self.scores = np.asarray(scores, np.float32)
        self.num_classes = self.scores.shape[1]
        self.asked = 0

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.asked += len(images)
        return self.scores[images[:, 0, 0, 0] % len(self.scores)]


@pytest.fixture
def scripted() -> Callable[[NDArray[np.float32]], Script]:
    return Script


@pytest.fixture
def numbered() -> Callable[[int], NDArray[np.uint8]]:
    """Give a function that makes N images for ``Script``, numbered from 0."""

    def make(count: int) -> NDArray[np.uint8]:
        images = np.zeros((count, 1, SIDE, SIDE), np.uint8)
        images[:, 0, 0, 0] = np.arange(count)
        return images

    return make


SCORES = np.array([[0, 1, 2], [5, 4, 3], [1, 3, 2]], np.float32)
Numbered = Callable[[int], NDArray[np.uint8]]
Scripted = Callable[[NDArray[np.float32]], Any]


@pytest.mark.parametrize(
    "interface",
    [
        OutputInterface("logits"),
        OutputInterface("probabilities", decimals=2),
        OutputInterface("top-k", top_k=2),
        OutputInterface("label"),
    ],
    ids=lambda i: i.interface,
)
def test_answers_are_the_scores_through_the_interface(
    scripted: Scripted, numbered: Numbered, interface: OutputInterface
) -> None:
    answers = Victim(scripted(SCORES), interface=interface).query(numbered(3))
    np.testing.assert_array_equal(answers, interface.answer(SCORES))


def test_probabilities_are_shown_unless_asked_otherwise(scripted: Scripted) -> None:
    assert Victim(scripted(SCORES)).interface == OutputInterface("probabilities")


def test_every_image_counts_also_one_asked_before(scripted: Scripted, numbered: Numbered) -> None:
    victim = Victim(scripted(SCORES), budget=10)
    assert (victim.queries, victim.remaining) == (0, 10)
    for asked in (3, 3, 1, 0):
        victim.query(numbered(asked))
    assert (victim.queries, victim.remaining) == (7, 3)


def test_without_a_budget_queries_are_counted_all_the_same(
    scripted: Scripted, numbered: Numbered
) -> None:
    victim = Victim(scripted(SCORES))
    victim.query(numbered(200))
    victim.query(numbered(100))
    assert (victim.queries, victim.remaining, victim.budget) == (300, None, None)


def test_a_query_over_the_budget_is_neither_answered_nor_counted(
    scripted: Scripted, numbered: Numbered
) -> None:
    executor = scripted(SCORES)
    victim = Victim(executor, budget=5)
    victim.query(numbered(3))
    with pytest.raises(BudgetExceeded, match="3 queries asked with 2 of 5 left") as caught:
        victim.query(numbered(3))
    assert "\n" not in str(caught.value)
    assert (executor.asked, victim.queries, victim.remaining) == (3, 3, 2)
    assert victim.query(numbered(2)).shape == (2, 3)
    assert (executor.asked, victim.queries, victim.remaining) == (5, 5, 0)
    with pytest.raises(BudgetExceeded):
        victim.query(numbered(1))
    assert victim.query(numbered(0)).shape == (0, 3)


@given(budget=st.integers(1, 20), asked=st.lists(st.integers(0, 9), max_size=12))
def test_the_budget_is_exact_for_any_sequence_of_queries(budget: int, asked: list[int]) -> None:
    class Executor:
        name, image_shape, num_classes, answered = "counting", (1, 1, 1), 2, 0

        def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.answered += len(images)
            return np.zeros((len(images), 2), np.float32)

    executor = Executor()
    victim, spent = Victim(executor, budget=budget), 0
    for count in asked:
        images = np.zeros((count, 1, 1, 1), np.uint8)
        if spent + count > budget:
            with pytest.raises(BudgetExceeded):
                victim.query(images)
        else:
            assert len(victim.query(images)) == count
            spent += count
        assert victim.queries == executor.answered == spent
        assert victim.remaining == budget - spent


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: x.astype(np.float32), id="float32"),
        pytest.param(lambda x: x.tolist(), id="list"),
        pytest.param(lambda x: x[0], id="one-image"),
        pytest.param(lambda x: x[..., :2], id="narrow"),
        pytest.param(lambda x: x.repeat(3, axis=1), id="rgb"),
    ],
)
def test_rejected_images_are_not_counted(
    scripted: Scripted, numbered: Numbered, spoil: Callable[[Any], Any]
) -> None:
    executor = scripted(SCORES)
    victim = Victim(executor, budget=2)
    with pytest.raises(DataError, match="expected"):
        victim.query(spoil(numbered(2)))
    assert (executor.asked, victim.queries, victim.remaining) == (0, 0, 2)


def test_a_failing_executor_is_not_counted(scripted: Scripted, numbered: Numbered) -> None:
    class Broken(type(scripted(SCORES))):  # type: ignore[misc]
        def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            raise OSError("the board is off")

    victim = Victim(Broken(SCORES), budget=2)
    with pytest.raises(OSError, match="board"):
        victim.query(numbered(1))
    assert victim.queries == 0


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_1_is_refused(scripted: Scripted, budget: int) -> None:
    with pytest.raises(ConfigError, match=f"budget is {budget}"):
        Victim(scripted(SCORES), budget=budget)


def test_an_interface_that_shows_more_than_there_is_is_refused(scripted: Scripted) -> None:
    with pytest.raises(ConfigError, match="top_k is 4, but there are 3"):
        Victim(scripted(SCORES), interface=OutputInterface("top-k", top_k=4))


def test_the_counter_cannot_be_set_from_outside(scripted: Scripted) -> None:
    victim = Victim(scripted(SCORES), budget=1)
    for name in ("queries", "remaining"):
        with pytest.raises(AttributeError):
            setattr(victim, name, 0)


def test_a_brevitas_model_and_its_graph_serve_the_same_protocol(tmp_path: Path) -> None:
    images = load(DataConfig(pool_images=1)).validation.images[:32]
    with seeded(0, "tests"):
        model = build("lenet5", (1, 8, 8), 10, precision=Precision(), width=0.5)
    calibrate(model, images)
    metadata = GraphMetadata((1, 8, 8), 256.0, tuple("0123456789"))
    graph = ReferenceExecutor(export_qonnx(model, tmp_path / "model.onnx", metadata))
    victims: list[QueryInterface] = [
        Victim(executor, budget=40)
        for executor in (ModuleExecutor(model, image_shape=(1, 8, 8), num_classes=10), graph)
    ]
    answers = []
    for victim in victims:
        assert (victim.image_shape, victim.num_classes) == ((1, 8, 8), 10)
        answers.append(victim.query(images))
        assert victim.remaining == 8
        with pytest.raises(BudgetExceeded):
            victim.query(images)
    assert answers[0].shape == answers[1].shape == (32, 10)
    # The two differ in the order of float32 sums.
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
