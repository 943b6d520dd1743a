# SPDX-License-Identifier: BSD-3-Clause
"""The settings of the data: what the victim learns from and what its thief owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from brevitas_divqat.data.catalogue import DATASETS, PHOTOGRAPHS
from brevitas_divqat.data.records import JudgedOn
from brevitas_divqat.errors import ConfigError, check_choice


@dataclass(frozen=True)
class DataConfig:
    """Name the data set of the victim and the foreign images of its thief.

    Args:
        data: data set of the victim: cifar10, cifar100, digits, fashion-mnist, mnist or notmnist.
        data_root: folder that holds the data sets, laid out as torchvision lays it out.
        download: fetch a data set that is missing from that folder.
        ood: data set that the thief's foreign images come from, or "photographs"; each data set of
            the victim has its own default.
        pool: .npy or .npz file, or folder, of images that the thief owns instead of those.
        pool_images: use only the first so many of the thief's foreign images.
        judged_on: 'test' images judge victims and stolen copies, or 'validation' images, while
            settings are still being chosen.

    Raises:
        ConfigError: If a name is unknown, a number is out of range, or two settings contradict.
    """

    data: str = "digits"
    """One of ``DATASETS``."""
    data_root: Path = Path("data")
    """Folder with ``MNIST/raw``, ``cifar-10-batches-py`` and so on; digits need none."""
    download: bool = False
    """Fetch a missing data set through torchvision."""
    ood: str | None = None
    """One of ``DATASETS`` or ``photographs``; None is the default for ``data``."""
    pool: Path | None = None
    """File or folder for ``load_pool``; replaces the foreign pool."""
    pool_images: int | None = None
    """At least 1; None is all."""
    judged_on: JudgedOn = "test"
    """Which labelled images every measurement is made on."""

    def __post_init__(self) -> None:
        if self.data == PHOTOGRAPHS:
            raise ConfigError(
                f"data: {PHOTOGRAPHS} have no labels to train on; use them with --ood, and give "
                f"--data one of {', '.join(DATASETS)}"
            )
        _check_name("data", self.data, DATASETS)
        if self.ood is not None:
            _check_name("ood", self.ood, (*DATASETS, PHOTOGRAPHS))
        if self.ood == self.data:
            raise ConfigError(
                f"ood: got {self.ood}, which the victim itself is trained on; name another data "
                "set (the thief's images of the victim's own distribution are the pool 'in')"
            )
        if self.ood is not None and self.pool is not None:
            raise ConfigError(
                f"got --ood {self.ood} and --pool {self.pool}, which both name the thief's foreign "
                "images; give one of them"
            )
        check_choice("judged_on", self.judged_on, JudgedOn)
        if self.pool_images is not None and self.pool_images < 1:
            raise ConfigError(
                f"pool_images: got {self.pool_images}, expected at least 1; "
                "leave --pool-images out to use all"
            )


def _check_name(setting: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = get_close_matches(name.lower(), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"{setting}: unknown data set {name!r}, expected one of {', '.join(known)}{hint}"
    )
