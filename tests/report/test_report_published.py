# SPDX-License-Identifier: BSD-3-Clause
"""The measurements that docs/results publishes load as its README says."""

from __future__ import annotations

from pathlib import Path

import pytest

from brevitas_divqat.report import load_batteries, load_tradeoff

RESULTS = Path(__file__).parents[2] / "docs" / "results"
POOLS = sorted(path.parent for path in RESULTS.glob("outliers/*/*/measurements"))


def test_there_are_published_pools() -> None:
    assert POOLS


@pytest.mark.parametrize("pool", POOLS, ids=lambda path: str(path.relative_to(RESULTS)))
def test_victims_of_a_pool_can_be_compared(pool: Path) -> None:
    assert load_tradeoff([pool]).attacks


def test_alphas_of_the_trade_off_can_be_compared() -> None:
    names = ("", "-alpha-0.02", "-alpha-0.08")
    network = "outliers/fashion-mnist-lenet5-w4a4"
    pools = [
        RESULTS / f"{network}{name}" / pool for name in names for pool in ("cifar10", "notmnist")
    ]
    assert [point.alpha for point in load_tradeoff(pools).points] == [0, 0.02, 0.04, 0.08]


@pytest.mark.parametrize("network", [path.name for path in RESULTS.glob("batteries/*")])
def test_batteries_can_be_compared(network: str) -> None:
    folders = sorted((RESULTS / "batteries" / network).iterdir())
    assert len(load_batteries(folders)) == 2  # plain QAT and DivQAT
