# SPDX-License-Identifier: BSD-3-Clause
"""Output interfaces: what an answer shows of the scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.victims import OutputInterface

CLASSES = 5
ROUNDING = 1e-12  # float64 sums of a few terms

finite = st.floats(-(2.0**120), 2.0**120, width=32)
moderate = st.floats(-30, 30, width=32)


def scores(elements: st.SearchStrategy[float]) -> st.SearchStrategy[NDArray[np.float32]]:
    shape = st.tuples(st.integers(0, 6), st.just(CLASSES))
    return arrays.arrays(np.float32, shape, elements=elements)


def plain_softmax(row: NDArray[np.float32]) -> list[float]:
    """Softmax in plain Python, term by term."""
    powers = [np.exp(np.float64(s) - np.float64(max(row))) for s in row]
    return [p / sum(powers) for p in powers]


@given(scores(finite))
def test_logits_are_the_scores(values: NDArray[np.float32]) -> None:
    answers = OutputInterface("logits").answer(values)
    assert answers.dtype == np.float64
    np.testing.assert_array_equal(answers, values.astype(np.float64))


@given(scores(moderate))
def test_probabilities_are_the_softmax_of_the_scores(values: NDArray[np.float32]) -> None:
    answers = OutputInterface().answer(values)
    assert answers.shape == values.shape
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=ROUNDING)
    for answer, row in zip(answers, values, strict=True):
        np.testing.assert_allclose(answer, plain_softmax(row), rtol=1e-10)


@given(scores(moderate), st.integers(1, CLASSES))
def test_top_k_shows_the_k_largest_probabilities_and_nothing_else(
    values: NDArray[np.float32], k: int
) -> None:
    answers = OutputInterface("top-k", top_k=k).answer(values)
    whole = OutputInterface().answer(values)
    for answer, row in zip(answers, whole, strict=True):
        shown = np.flatnonzero(answer)
        assert len(shown) == k
        np.testing.assert_array_equal(answer[shown], row[shown])
        np.testing.assert_array_equal(np.sort(answer[shown]), np.sort(row)[-k:])


@given(scores(finite))
def test_the_label_is_a_one_for_the_arg_max(values: NDArray[np.float32]) -> None:
    answers = OutputInterface("label").answer(values)
    assert answers.shape == values.shape
    assert set(np.unique(answers)) <= {0.0, 1.0}
    np.testing.assert_array_equal(answers.sum(axis=1), 1)
    for answer, row in zip(answers, values, strict=True):
        assert answer.tolist().index(1.0) == row.tolist().index(max(row))


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        pytest.param(OutputInterface("label"), [0, 1, 0, 0], id="label"),
        pytest.param(OutputInterface("top-k", top_k=1), [0, 1, 0, 0], id="top-1"),
        pytest.param(OutputInterface("top-k", top_k=2), [0, 1, 1, 0], id="top-2"),
    ],
)
def test_ties_go_to_the_lowest_class(interface: OutputInterface, expected: list[int]) -> None:
    tied = np.array([[-1, 2, 2, 2]], np.float32)
    assert (interface.answer(tied) > 0).astype(int).tolist() == [expected]


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        pytest.param(OutputInterface("logits", decimals=1), [0.1, -2.2, 3.0], id="logits"),
        pytest.param(OutputInterface("logits", decimals=0), [0.0, -2.0, 3.0], id="whole-logits"),
        pytest.param(OutputInterface(decimals=2), [0.05, 0.01, 0.94], id="probabilities"),
        pytest.param(OutputInterface("top-k", top_k=2, decimals=1), [0.1, 0, 0.9], id="top-k"),
        pytest.param(OutputInterface("label", decimals=0), [0, 0, 1], id="label"),
    ],
)
def test_answers_are_rounded_to_the_decimals(
    interface: OutputInterface, expected: list[float]
) -> None:
    answers = interface.answer(np.array([[0.125, -2.21, 3.0]], np.float32))
    np.testing.assert_array_equal(answers, [expected])


@pytest.mark.parametrize(
    "interface",
    [
        OutputInterface("logits"),
        OutputInterface("logits", decimals=15),
        OutputInterface("probabilities"),
        OutputInterface("top-k", top_k=2),
        OutputInterface("label"),
    ],
    ids=lambda i: f"{i.interface}-{i.decimals}",
)
@given(values=scores(finite))
def test_huge_scores_have_finite_answers(
    interface: OutputInterface, values: NDArray[np.float32]
) -> None:
    largest = np.full((1, CLASSES), np.finfo(np.float32).max, np.float32)
    largest[0, 3] *= -1
    answers = interface.answer(np.concatenate([values, largest]))
    assert np.isfinite(answers).all()
    if interface.interface != "logits":
        assert answers.min() >= 0
        assert answers.max() <= 1


@given(scores(moderate))
def test_the_scores_are_left_as_they_are(values: NDArray[np.float32]) -> None:
    before = values.copy()
    for interface in (OutputInterface("logits", decimals=0), OutputInterface("top-k", top_k=1)):
        interface.answer(values)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        pytest.param({"interface": "scores"}, "interface", id="unknown-interface"),
        pytest.param({"interface": "Label"}, "interface", id="capital"),
        pytest.param({"interface": "top-k"}, "top_k", id="top-k-without-k"),
        pytest.param({"interface": "label", "top_k": 1}, "top_k", id="k-without-top-k"),
        pytest.param({"top_k": 3}, "top_k", id="k-with-probabilities"),
        pytest.param({"interface": "top-k", "top_k": 0}, "top_k", id="k-0"),
        pytest.param({"interface": "top-k", "top_k": -1}, "top_k", id="k-negative"),
        pytest.param({"decimals": -1}, "decimals", id="decimals-negative"),
        pytest.param({"decimals": 16}, "decimals", id="decimals-beyond-float64"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        OutputInterface(**options)
    assert "\n" not in str(caught.value)


def test_more_probabilities_than_classes_are_refused() -> None:
    OutputInterface("top-k", top_k=10).check_classes(10)
    with pytest.raises(ConfigError, match="top_k is 11, but there are 10"):
        OutputInterface("top-k", top_k=11).check_classes(10)
