# SPDX-License-Identifier: BSD-3-Clause
"""Readers of data sets on disk, and of the digits that scikit-learn carries.

torchvision downloads the files and parses them; what is added here is that each failure names the
file and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from brevitas_divqat.data.records import Labelled
from brevitas_divqat.errors import DataError

Part = Literal["train", "test"]


@contextmanager
def explained(failure: str, remedy: str) -> Iterator[None]:
    """Turn whatever is raised within the block into one line: failure, reason, remedy."""
    try:
        yield
    except DataError:
        raise
    # Parsers of damaged bytes raise nearly anything (assertions, struct, zlib and memory errors),
    # and downloads add network and archive errors.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{failure} ({reason[:200]}); {remedy}") from error


def read_idx(name: str, root: Path, download: bool, part: Part) -> Labelled:
    """Read one part of a torchvision data set in the format of MNIST.

    Args:
        name: ``MNIST`` or ``FashionMNIST``.
        root: the folder that holds the folder ``name``.
        download: whether to fetch missing files.
        part: ``train`` or ``test``.

    Returns:
        Images (N, 1, H, W) and their labels.

    Raises:
        DataError: If a file is missing or damaged, or the download fails.
    """
    folder = root / name / "raw"
    images, labels = _idx_files(folder, "train" if part == "train" else "t10k")
    missing = [file for file in (images, labels) if not file.is_file()]
    if missing and not download:
        raise _missing(name, missing[0], root)
    if missing:
        _download(name, root)
    return _parse_idx(images, labels, f"delete {folder} and fetch it again with --download")


def read_notmnist(root: Path, download: bool, part: Part) -> Labelled:
    """Read the 10,000 letters of notMNIST, which exist in the format of MNIST as one part.

    Args:
        root: the folder that holds ``notMNIST/raw``.
        download: not used: torchvision does not know this data set.
        part: not used: there is one part, whose files are named like a test split.

    Returns:
        Images (10000, 1, 28, 28) and their labels.

    Raises:
        DataError: If a file is missing or damaged.
    """
    folder = root / "notMNIST" / "raw"
    images, labels = _idx_files(folder, "t10k")
    for file in (images, labels):
        if not file.is_file():
            raise DataError(
                f"{file}: not found, and notMNIST cannot be downloaded; put {images.name} and "
                f"{labels.name} (letters A-J, not gzipped) into {folder}, or correct --data-root"
            )
    return _parse_idx(images, labels, "put an intact copy there")


def read_cifar(name: str, root: Path, download: bool, part: Part) -> Labelled:
    """Read one part of CIFAR-10 or CIFAR-100, whose checksums torchvision knows.

    Args:
        name: ``CIFAR10`` or ``CIFAR100``.
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        download: whether to fetch missing or damaged files.
        part: ``train`` or ``test``.

    Returns:
        Images (N, 3, 32, 32) and their labels.

    Raises:
        DataError: If a file is missing or damaged, or the download fails.
    """
    from torchvision.datasets.utils import check_integrity

    dataset = _torchvision(name)
    folder = root / dataset.base_folder
    meta = (dataset.meta["filename"], dataset.meta["md5"])
    # torchvision checks the same, but its error says neither which file nor what is wrong.
    checksums = {
        folder / file: md5 for file, md5 in (*dataset.train_list, *dataset.test_list, meta)
    }
    bad = [file for file, md5 in checksums.items() if not check_integrity(file, md5)]
    remedy = f"delete {folder} and fetch it again with --download"
    if bad and not download:
        if not bad[0].is_file():
            raise _missing(name, bad[0], root)
        raise DataError(f"{bad[0]}: damaged, its checksum is not that of {name}; {remedy}")
    if bad:
        _download(name, root)
    with explained(f"{folder}: cannot be read", remedy):
        data = dataset(root, train=part == "train")
        images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
        return Labelled(images, np.array(data.targets, dtype=np.int64))


def read_digits(root: Path, download: bool, part: Part) -> Labelled:
    """Return scikit-learn's 1,797 digits, their 17 grey levels spread over 0..255.

    Args:
        root: not used: the images are part of scikit-learn.
        download: not used.
        part: not used: there is one part.

    Returns:
        Images (1797, 1, 8, 8) and their labels.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Labelled(images[:, None], digits.target.astype(np.int64))


def _idx_files(folder: Path, prefix: str) -> tuple[Path, Path]:
    return folder / f"{prefix}-images-idx3-ubyte", folder / f"{prefix}-labels-idx1-ubyte"


def _parse_idx(image_file: Path, label_file: Path, remedy: str) -> Labelled:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    with explained(f"{image_file}: damaged, not an idx file of images", remedy):
        images = read_image_file(str(image_file)).numpy()
    with explained(f"{label_file}: damaged, not an idx file of labels", remedy):
        labels = read_label_file(str(label_file)).numpy()
    if len(images) != len(labels):
        raise DataError(
            f"{image_file}: got {len(images)} images, but {len(labels)} labels in "
            f"{label_file.name}; {remedy}"
        )
    return Labelled(images[:, None], labels)


def _torchvision(name: str) -> Any:
    from torchvision import datasets  # takes seconds to import

    return getattr(datasets, name)


def _missing(name: str, file: Path, root: Path) -> DataError:
    return DataError(
        f"{file}: not found; correct --data-root (now {root}) or fetch {name} with --download"
    )


def _download(name: str, root: Path) -> None:
    with explained(
        f"{name}: download into {root} failed",
        "check the network and the free space, or copy the files there by hand",
    ):
        _torchvision(name)(root, download=True)
