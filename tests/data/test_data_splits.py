# SPDX-License-Identifier: BSD-3-Clause
"""The splits are disjoint, of the promised sizes, and the same in every run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brevitas_divqat.data import DATASETS
from brevitas_divqat.data.catalogue import CATALOGUE
from brevitas_divqat.data.loading import split_indices

SIZES = {  # train, validation, pool, test
    "cifar10": (36_000, 2_000, 12_000, 10_000),
    "cifar100": (36_000, 2_000, 12_000, 10_000),
    "digits": (900, 150, 450, 297),
    "fashion-mnist": (40_000, 3_000, 17_000, 10_000),
    "mnist": (40_000, 3_000, 17_000, 10_000),
    "notmnist": (5_000, 500, 2_500, 2_000),
}
ON_DISK = {"digits": 1_797, "notmnist": 10_000, "cifar10": 50_000, "cifar100": 50_000}

names = st.sampled_from(DATASETS)


def test_every_data_set_is_in_the_table() -> None:
    assert tuple(sorted(SIZES)) == DATASETS


@given(names)
def test_splits_partition_the_train_part(name: str) -> None:
    indices = np.concatenate(list(split_indices(CATALOGUE[name]).values()))
    assert np.array_equal(np.sort(indices), np.arange(ON_DISK.get(name, 60_000)))


@given(names)
def test_splits_have_the_promised_sizes(name: str) -> None:
    entry = CATALOGUE[name]
    sizes = {split: len(indices) for split, indices in split_indices(entry).items()}
    promised = dict(zip(("train", "validation", "pool", "test"), SIZES[name], strict=True))
    if entry.official_test:
        assert entry.count("test") == promised.pop("test")
    assert sizes == promised


@given(names, st.integers(0, 2**32 - 1))
def test_splits_ignore_the_global_seed(name: str, seed: int) -> None:
    before = split_indices(CATALOGUE[name])
    state = np.random.get_state()
    np.random.seed(seed)
    after = split_indices(CATALOGUE[name])
    np.random.set_state(state)
    assert all(np.array_equal(before[split], after[split]) for split in before)


@pytest.mark.parametrize("name", DATASETS)
def test_splits_are_shuffled(name: str) -> None:
    train = split_indices(CATALOGUE[name])["train"]
    assert np.count_nonzero(np.diff(train) == 1) < 20


def test_the_permutation_is_the_one_that_results_were_measured_with() -> None:
    # numpy promises default_rng's bit stream, not permutation(): notice if a release changes it.
    assert split_indices(CATALOGUE["digits"])["train"][:6].tolist() == [
        1345,
        244,
        1556,
        803,
        1308,
        1043,
    ]
