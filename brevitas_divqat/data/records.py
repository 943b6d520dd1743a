# SPDX-License-Identifier: BSD-3-Clause
"""What the loaders return: labelled images, pools of unlabelled images, and a whole data set."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
ImageShape = tuple[int, int, int]
Augmentation = Literal["none", "shift", "shift-flip"]
JudgedOn = Literal["test", "validation"]


# Arrays have no single truth value, so these records compare by identity: eq=False.
@dataclass(frozen=True, eq=False)
class Labelled:
    """Hold images with one class index each.

    Args:
        images: uint8 (N, C, H, W), 0..255.
        labels: int64 (N,), class indices from 0.

    Raises:
        DataError: If a type or a shape is wrong, or the two lengths differ.
    """

    images: Images
    labels: Labels

    def __post_init__(self) -> None:
        check_images(self.images, "images")
        if self.labels.dtype != np.int64 or self.labels.ndim != 1:
            raise DataError(
                f"labels: got {describe(self.labels)}, expected int64 (N,); "
                "convert them with .astype(numpy.int64)"
            )
        if len(self.images) != len(self.labels):
            raise DataError(
                f"got {len(self.images)} images but {len(self.labels)} labels; "
                "give exactly one label for each image"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Pool:
    """Hold the unlabelled images that a thief may send to the victim.

    Args:
        name: where the images come from, such as ``mnist`` or ``street-signs.npy``.
        images: uint8 (N, C, H, W), 0..255.

    Raises:
        DataError: If the images are empty or of the wrong type or shape.
    """

    name: str
    images: Images

    def __post_init__(self) -> None:
        check_images(self.images, self.name)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Hold the splits of a victim's data set and the two pools of its thief.

    Args:
        name: one of ``DATASETS``, or any name for a data set of your own.
        class_names: one name for each class, in the order of the labels.
        train: what the victim is trained on.
        validation: what the victim's checkpoint is selected on.
        test: what is measured once, at the end.
        pools: ``in``: images of the same distribution that the victim never saw; ``ood``: foreign
            images.
        augmentation: the augmentation that suits the images; the training loop applies it.
        judged_on: the split that victims and stolen copies are measured on.

    Raises:
        DataError: If a label has no class, or the image shapes of splits and pools differ.
    """

    name: str
    class_names: tuple[str, ...]
    train: Labelled
    validation: Labelled
    test: Labelled
    pools: Mapping[str, Pool]
    augmentation: Augmentation
    judged_on: JudgedOn = "test"

    def __post_init__(self) -> None:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        for split, labelled in splits.items():
            check_labels(labelled.labels, self.num_classes, f"{self.name}, {split} split")
        for part, images in {
            **{f"{split} split": labelled.images for split, labelled in splits.items()},
            **{f"{key!r} pool": pool.images for key, pool in self.pools.items()},
        }.items():
            if images.shape[1:] != self.image_shape:
                raise DataError(
                    f"{self.name}, {part}: got images of {images.shape[1:]}, expected "
                    f"{self.image_shape} as in the train split; use conform() on them"
                )

    @property
    def judging(self) -> Labelled:
        """Return the images that victims and stolen copies are measured on."""
        return self.test if self.judged_on == "test" else self.validation

    @property
    def image_shape(self) -> ImageShape:
        """Return (C, H, W), the shape of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Return how many classes there are."""
        return len(self.class_names)


def describe(array: NDArray[np.generic]) -> str:
    """Name type and shape of an array as error messages do."""
    return f"{array.dtype} {array.shape}"


def check_images(images: NDArray[np.generic], source: str) -> None:
    """Refuse anything but a non-empty uint8 (N, C, H, W) array; ``source`` names it."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"{source}: got {describe(images)}, expected uint8 (N, C, H, W); "
            "give 8-bit pixels, 0 to 255"
        )
    if images.size == 0:
        raise DataError(f"{source}: got no images, shape {images.shape}; give at least one")


def check_labels(labels: Labels, num_classes: int, source: str) -> None:
    """Refuse labels outside 0..num_classes - 1; ``source`` names where they come from."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise DataError(
            f"{source}: got label {wrong[0]}, expected 0 to {num_classes - 1} for "
            f"{num_classes} classes; check that the labels belong to this data set"
        )


def checksum(images: Images) -> str:
    """Return what tells one pool from another, by its bytes."""
    return f"{zlib.crc32(np.ascontiguousarray(images).data):08x}"
