# SPDX-License-Identifier: BSD-3-Clause
"""Load a data set by name, cut it into its fixed splits, and add the pools of its thief."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.data.catalogue import CATALOGUE, PHOTOGRAPHS, Entry
from brevitas_divqat.data.config import DataConfig
from brevitas_divqat.data.images import conform
from brevitas_divqat.data.photographs import photographs
from brevitas_divqat.data.pools import load_pool
from brevitas_divqat.data.records import Dataset, ImageShape, Labelled, Pool, check_labels
from brevitas_divqat.data.sources import Part
from brevitas_divqat.errors import ConfigError, DataError

SPLIT_SEED = 2025
"""Seed of the one permutation that the splits are cut from; changing it changes every result."""


def load(config: DataConfig, *, foreign: bool = True) -> Dataset:
    """Load the victim's data set and the pools of its thief.

    Args:
        config: which data set, where it is, and which foreign images the thief owns.
        foreign: load the foreign images too; training needs none.

    Returns:
        The data set; ``pools["in"]`` holds images of the same distribution that are in no split,
        ``pools["ood"]``, if asked for, foreign ones of the same shape.

    Raises:
        DataError: If files are missing or damaged.
        ConfigError: If more foreign images are asked for than there are.

    Example:
        >>> digits = load(DataConfig())
        >>> digits.image_shape, len(digits.train), digits.pools["ood"].images.shape
        ((1, 8, 8), 900, (4000, 1, 8, 8))
    """
    entry = CATALOGUE[config.data]
    everything = _read(config.data, config, "train")
    splits = {
        split: Labelled(everything.images[indices], everything.labels[indices])
        for split, indices in split_indices(entry).items()
    }
    return Dataset(
        name=config.data,
        class_names=entry.class_names,
        train=splits["train"],
        validation=splits["validation"],
        test=_read(config.data, config, "test") if entry.official_test else splits["test"],
        pools={"in": Pool(config.data, splits["pool"].images)}
        | ({"ood": _foreign_pool(config, entry)} if foreign else {}),
        augmentation=entry.augmentation,
        judged_on=config.judged_on,
    )


def split_indices(entry: Entry) -> dict[str, NDArray[np.int64]]:
    """Return which images of the train part belong to each split.

    Args:
        entry: the data set, of which only the sizes matter.

    Returns:
        Disjoint indices for ``train``, ``validation`` and ``pool``, and for ``test`` if the data
        set has no official test split.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(entry.count("train"))
    names = entry.sizes._fields[:3] if entry.official_test else entry.sizes._fields
    ends = np.cumsum(entry.sizes)[: len(names)]
    return dict(zip(names, np.split(order, ends[:-1]), strict=True))


def _read(name: str, config: DataConfig, part: Part) -> Labelled:
    entry = CATALOGUE[name]
    labelled = entry.read(Path(config.data_root), config.download, part)
    source = f"{name}, {part} split in {config.data_root}"
    expected = (entry.count(part), *entry.image_shape)
    if labelled.images.shape != expected:
        raise DataError(
            f"{source}: got images {labelled.images.shape}, expected {expected}; replace the files "
            "by the published ones, for example with --download"
        )
    check_labels(labelled.labels, len(entry.class_names), source)
    return labelled


def _foreign_pool(config: DataConfig, entry: Entry) -> Pool:
    if config.pool is not None:
        return _first(load_pool(config.pool, entry.image_shape), config.pool_images)
    name = config.ood or entry.ood
    if name == PHOTOGRAPHS:
        return _first(photographs(entry.image_shape), config.pool_images)
    try:
        labelled = _read(name, config, "train")
    except DataError as error:
        raise DataError(
            f"{error}; or let the thief use other images with --ood or --pool"
        ) from error
    # Cut before converting, which costs time for each image.
    return _conformed(_first(Pool(name, labelled.images), config.pool_images), entry.image_shape)


def _first(pool: Pool, count: int | None) -> Pool:
    if count is None:
        return pool
    if count > len(pool):
        raise ConfigError(
            f"pool_images: got {count}, but the pool {pool.name} has {len(pool)} images; "
            f"give --pool-images at most {len(pool)}, or another pool with --pool"
        )
    return Pool(pool.name, pool.images[:count])


def _conformed(pool: Pool, image_shape: ImageShape) -> Pool:
    return Pool(pool.name, conform(pool.images, image_shape))
