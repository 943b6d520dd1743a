# SPDX-License-Identifier: BSD-3-Clause
"""Kept reference logits are those of the very inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import DivQATLoss
from brevitas_divqat.loss.cache import LogitCache, fingerprints


class Counting(nn.Module):
    """A reference that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.inner = nn.Linear(4, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def test_a_fingerprint_is_the_input_s_own(batch: Any) -> None:
    whole = fingerprints(batch.inputs)
    assert len(set(whole)) == 6
    assert [fingerprints(batch.inputs[i : i + 1])[0] for i in range(6)] == whole
    assert fingerprints(batch.inputs.flip(0)) == whole[::-1]


@given(st.integers(0, 7), st.integers(0, 31), st.sampled_from([torch.float32, torch.float64]))
def test_one_bit_changes_the_fingerprint(element: int, bit: int, dtype: torch.dtype) -> None:
    inputs = torch.arange(8, dtype=dtype).reshape(1, 2, 4)
    changed = inputs.clone()
    words = changed.view(torch.int32)
    words.reshape(-1)[element] ^= -(2**31) if bit == 31 else 1 << bit
    assert fingerprints(inputs) != fingerprints(changed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_any_type_have_fingerprints(dtype: torch.dtype) -> None:
    inputs = torch.arange(12).reshape(3, 2, 2).to(dtype)
    assert len(set(fingerprints(inputs))) == 3


def test_kept_logits_are_served_in_any_order(batch: Any) -> None:
    reference = Counting()
    cache = LogitCache(6)
    first = cache.look_up(batch.inputs, lambda x: reference(x).detach())
    order = torch.tensor([3, 3, 0, 5])
    again = cache.look_up(batch.inputs[order], lambda x: pytest.fail("was computed again"))
    assert torch.equal(again, first[order])
    assert reference.calls == 1
    assert len(cache) == 6


def test_only_new_inputs_are_computed(batch: Any) -> None:
    asked: list[Tensor] = []

    def compute(x: Tensor) -> Tensor:
        asked.append(x)
        return x.sum(dim=1, keepdim=True).expand(-1, 5)

    cache = LogitCache(100)
    cache.look_up(batch.inputs[[1, 3, 5]], compute)
    answers = cache.look_up(batch.inputs, compute)
    assert torch.equal(answers, batch.inputs.sum(dim=1, keepdim=True).expand(-1, 5))
    assert torch.equal(asked[1], batch.inputs[[0, 2, 4]])
    assert torch.equal(cache.look_up(batch.inputs.flip(0), compute), answers.flip(0))
    assert len(asked) == 2


def test_a_full_cache_keeps_no_more(batch: Any) -> None:
    cache = LogitCache(4)
    cache.look_up(batch.inputs, lambda x: torch.zeros(6, 5))
    assert len(cache) == 4
    cache.look_up(batch.inputs[:4], lambda x: pytest.fail("was computed again"))
    again = cache.look_up(batch.inputs, lambda x: torch.ones(2, 5))
    assert torch.equal(again, torch.cat([torch.zeros(4, 5), torch.ones(2, 5)]))


def test_inputs_of_another_shape_or_type_are_others(batch: Any) -> None:
    shapes = (batch.inputs, batch.inputs.reshape(6, 2, 2), batch.inputs.view(torch.int32))
    assert len({key for inputs in shapes for key in fingerprints(inputs)}) == 18


def test_a_cache_does_not_round_to_the_precision_of_its_first_answers(batch: Any) -> None:
    cache = LogitCache(6)
    cache.look_up(batch.inputs[:3], lambda x: torch.zeros(3, 5, dtype=torch.bfloat16))
    fine = torch.full((3, 5), 1 / 3)
    assert torch.equal(cache.look_up(batch.inputs[3:], lambda x: fine), fine)
    assert torch.equal(cache.look_up(batch.inputs[3:], lambda x: pytest.fail("again")), fine)


def test_moving_the_criterion_empties_the_cache(batch: Any) -> None:
    criterion = DivQATLoss(Counting(), preset="F3", alpha=0.3, cache=6)
    criterion(batch.logits, batch.targets, batch.inputs)
    criterion.double()
    loss = criterion(batch.logits.double(), batch.targets, batch.inputs.double())
    assert loss.dtype == torch.float64
    assert criterion.reference.calls == 2


def test_the_criterion_runs_its_reference_once_per_image(batch: Any) -> None:
    reference = Counting()
    criterion = DivQATLoss(reference, preset="F3", alpha=0.3, cache=6)
    plain = DivQATLoss(reference, preset="F3", alpha=0.3)
    for order in ([0, 1, 2], [3, 4, 5], [5, 0, 3], [2, 4, 1]):
        logits, y, x = batch.logits[order], batch.targets[order], batch.inputs[order]
        # Another batch composition may round the reference's last bits otherwise.
        torch.testing.assert_close(criterion(logits, y, x), plain(logits, y, x))
    assert criterion.reference.calls == 2
    assert plain.reference.calls == 4


def test_given_reference_logits_replace_the_pass(never_called: nn.Module, batch: Any) -> None:
    kept = nn.Linear(4, 5)(batch.inputs).detach()
    criterion = DivQATLoss(never_called, preset="F3", alpha=0.3)
    loss = criterion(batch.logits, batch.targets, reference_logits=kept)
    reference = nn.Linear(4, 5)

    class Kept(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return kept

    assert torch.equal(
        loss, DivQATLoss(Kept(), preset="F3", alpha=0.3)(batch.logits, batch.targets, batch.inputs)
    )
    assert not torch.equal(
        loss,
        DivQATLoss(reference, preset="F3", alpha=0.3)(batch.logits, batch.targets, batch.inputs),
    )


@pytest.mark.parametrize("capacity", [0, -1, 2.5, True])
def test_a_capacity_is_a_whole_number(never_called: nn.Module, capacity: Any) -> None:
    with pytest.raises(ConfigError, match=r"cache is .*: give the number of training images"):
        DivQATLoss(never_called, preset="F3", cache=capacity)
