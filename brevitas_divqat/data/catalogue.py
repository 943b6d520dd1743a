# SPDX-License-Identifier: BSD-3-Clause
"""The table of data sets: where each comes from, how it is split, what its thief owns.

A further data set is one more row here, and one reader if none of the present ones fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from brevitas_divqat.data.records import Augmentation, ImageShape, Labelled
from brevitas_divqat.data.sources import Part, read_cifar, read_digits, read_idx, read_notmnist

DIGITS = tuple("0123456789")
LETTERS = tuple("ABCDEFGHIJ")
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 - a hundred quoted words on as many lines read worse
)


class Sizes(NamedTuple):
    """How many images each split has; ``pool`` is the thief's ``in`` pool."""

    train: int
    validation: int
    pool: int
    test: int


@dataclass(frozen=True)
class Entry:
    """Describe one data set.

    Args:
        read: reads a part of it from a folder, downloading it if the flag is set.
        class_names: one name for each class.
        image_shape: (C, H, W).
        sizes: images in each split.
        official_test: whether its authors fixed the test split; otherwise all is permuted.
        ood: where the foreign pool comes from unless the user says otherwise.
        augmentation: the augmentation that keeps the classes what they are.
    """

    read: Callable[[Path, bool, Part], Labelled]
    class_names: tuple[str, ...]
    image_shape: ImageShape
    sizes: Sizes
    official_test: bool
    ood: str
    augmentation: Augmentation

    def count(self, part: Part) -> int:
        """Return how many images that part has on disk."""
        if part == "test":
            return self.sizes.test
        return sum(self.sizes) - (self.sizes.test if self.official_test else 0)


CATALOGUE: dict[str, Entry] = {
    "cifar10": Entry(
        read=partial(read_cifar, "CIFAR10"),
        class_names=CIFAR10,
        image_shape=(3, 32, 32),
        sizes=Sizes(36_000, 2_000, 12_000, 10_000),
        official_test=True,
        ood="cifar100",
        augmentation="shift-flip",
    ),
    "cifar100": Entry(
        read=partial(read_cifar, "CIFAR100"),
        class_names=CIFAR100,
        image_shape=(3, 32, 32),
        sizes=Sizes(36_000, 2_000, 12_000, 10_000),
        official_test=True,
        ood="cifar10",
        augmentation="shift-flip",
    ),
    "digits": Entry(
        read=read_digits,
        class_names=DIGITS,
        image_shape=(1, 8, 8),
        sizes=Sizes(900, 150, 450, 297),
        official_test=False,
        ood="photographs",
        augmentation="none",  # a shift moves a stroke out of 8x8 pixels
    ),
    "fashion-mnist": Entry(
        read=partial(read_idx, "FashionMNIST"),
        class_names=CLOTHES,
        image_shape=(1, 28, 28),
        sizes=Sizes(40_000, 3_000, 17_000, 10_000),
        official_test=True,
        ood="mnist",
        augmentation="none",  # shifts cost LeNet-5 a point in 12 epochs
    ),
    "mnist": Entry(
        read=partial(read_idx, "MNIST"),
        class_names=DIGITS,
        image_shape=(1, 28, 28),
        sizes=Sizes(40_000, 3_000, 17_000, 10_000),
        official_test=True,
        ood="fashion-mnist",
        augmentation="none",
    ),
    "notmnist": Entry(
        read=read_notmnist,
        class_names=LETTERS,
        image_shape=(1, 28, 28),
        sizes=Sizes(5_000, 500, 2_500, 2_000),
        official_test=False,
        ood="mnist",
        augmentation="none",
    ),
}

DATASETS = tuple(sorted(CATALOGUE))
PHOTOGRAPHS = "photographs"
"""Patches of two photographs: no labels, hence a foreign pool and never a victim's data set."""
