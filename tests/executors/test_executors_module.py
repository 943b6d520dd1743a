# SPDX-License-Identifier: BSD-3-Clause
"""The module executor: a copy of a torch model in evaluation mode behind the same protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.errors import ConfigError, DataError
from brevitas_divqat.executors import Executor, ModuleExecutor, ReferenceExecutor
from brevitas_divqat.victims import Victim

SUMMATION_ORDER = 1e-5
"""torch sums in another order at another place in the batch; scores are of order 1 to 10."""


def wrap(model: nn.Module, **options: Any) -> ModuleExecutor:
    return ModuleExecutor(model, image_shape=(1, 8, 8), num_classes=10, **options)


def test_scores_are_those_of_the_model_in_evaluation_mode(
    model: nn.Module, images: NDArray[np.uint8]
) -> None:
    with torch.no_grad():
        direct = model.eval()(torch.from_numpy(images).float() / 256)
    np.testing.assert_array_equal(wrap(model)(images), direct.numpy())


def test_the_pixel_divisor_divides_the_pixels(images: NDArray[np.uint8]) -> None:
    means = nn.Sequential(nn.Flatten(), nn.LazyLinear(10, bias=False))
    means(torch.zeros(1, 1, 8, 8))
    whole = wrap(means, pixel_divisor=1.0)(images)
    np.testing.assert_array_equal(wrap(means, pixel_divisor=2.0)(images) * 2, whole)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_copied_and_left_as_it_is(
    model: nn.Module, images: NDArray[np.uint8], training: bool
) -> None:
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    executor = wrap(model)
    executor(images)
    assert model.training is training
    assert all(m.training is training for m in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_later_changes_of_the_model_do_not_reach_the_executor(images: NDArray[np.uint8]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    executor = wrap(model)
    before = executor(images)
    with torch.no_grad():
        model[1].weight.zero_()
    np.testing.assert_array_equal(executor(images), before)


@pytest.mark.parametrize(
    "cuts", [[1], [1, 2, 4, 19], [16, 32], [15, 16, 17, 39]], ids=lambda c: "-".join(map(str, c))
)
def test_scores_depend_on_the_split_into_calls_in_their_last_bits_alone(
    model: nn.Module, images: NDArray[np.uint8], cuts: list[int]
) -> None:
    executor = wrap(model, batch_size=16)
    parts = np.concatenate([executor(part) for part in np.split(images, cuts)])
    np.testing.assert_allclose(parts, executor(images), rtol=0, atol=SUMMATION_ORDER)


def test_no_images_have_no_scores(model: nn.Module, images: NDArray[np.uint8]) -> None:
    assert wrap(model)(images[:0]).shape == (0, 10)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_is_refused(model: nn.Module, batch_size: int) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        wrap(model, batch_size=batch_size)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: x.astype(np.float32), id="float32"),
        pytest.param(lambda x: torch.from_numpy(x), id="tensor"),
        pytest.param(lambda x: x[0], id="three-dimensions"),
        pytest.param(lambda x: x[..., :7], id="narrow"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(
    model: nn.Module, images: NDArray[np.uint8], spoil: Callable[[NDArray[np.uint8]], Any]
) -> None:
    with pytest.raises(DataError, match="expected"):
        wrap(model)(spoil(images))


class Constant:
    """The least that is an executor."""

    name = "constant"
    image_shape = (1, 2, 2)
    num_classes = 3

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.tile(np.float32([0, 2, 1]), (len(images), 1))


def test_a_victim_takes_any_object_with_the_protocol_s_members() -> None:
    executor: Executor = Constant()
    victim = Victim(executor)
    answers = victim.query(np.zeros((2, 1, 2, 2), np.uint8))
    assert answers.argmax(axis=1).tolist() == [1, 1]
    assert (victim.image_shape, victim.num_classes) == ((1, 2, 2), 3)


def test_both_executors_have_the_protocol_s_members(model: nn.Module, graph_file: Path) -> None:
    members = {name for name in vars(Executor) if not name.startswith("_")} | {"__call__"}
    assert members == {"name", "image_shape", "num_classes", "__call__"}
    for executor in (wrap(model), ReferenceExecutor(graph_file)):
        assert {name for name in members if not hasattr(executor, name)} == set()
