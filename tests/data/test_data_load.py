# SPDX-License-Identifier: BSD-3-Clause
"""Loading by name: the embedded digits, the real files, and what is said when they are bad."""

from __future__ import annotations

import pickle
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from sklearn.datasets import load_digits

import brevitas_divqat.data as data
from brevitas_divqat.data import DATASETS, DataConfig, Dataset, Labelled, Pool, load
from brevitas_divqat.data.catalogue import CATALOGUE
from brevitas_divqat.data.sources import read_cifar
from brevitas_divqat.errors import ConfigError, DataError, DivQATError


def one_line(error: pytest.ExceptionInfo[DivQATError], *parts: str) -> None:
    """Assert that the message is one line that holds all ``parts``."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def write_idx(file: Path, array: np.ndarray) -> None:
    """Write an uint8 array in the idx format of MNIST."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def write_fashion(
    root: Path, images: int = 6, labels: int = 6, label: int = 0
) -> tuple[Path, Path]:
    """Write a small train part of Fashion-MNIST and return its two files."""
    raw = root / "FashionMNIST" / "raw"
    files = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    write_idx(files[0], np.zeros((images, 28, 28)))
    write_idx(files[1], np.full(labels, label))
    return files


def write_cifar10(root: Path) -> Path:
    """Write all files of CIFAR-10 in their format, but with other images, and return the folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batch = {"data": np.arange(4 * 3072).reshape(4, 3072).astype(np.uint8), "labels": [0, 1, 2, 9]}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return folder


# The package


def test_all_names_resolve() -> None:
    assert all(hasattr(data, name) for name in data.__all__)
    assert tuple(sorted(DATASETS)) == DATASETS


def test_import_is_cheap() -> None:
    code = (
        "import sys, brevitas_divqat.data; "
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Digits, the default


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig())


def test_digits_are_the_default(digits: Dataset) -> None:
    assert digits.name == "digits"
    assert digits.image_shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert digits.augmentation == "none"
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [900, 150, 297]
    assert digits.pools["in"].images.shape == (450, 1, 8, 8)
    assert digits.pools["ood"].name == "photographs"


def test_digits_are_scaled_to_8_bits(digits: Dataset) -> None:
    levels = {round(level * 255 / 16) for level in range(17)}
    assert set(np.unique(digits.train.images).tolist()) == levels


def test_digits_keep_image_and_label_together(digits: Dataset) -> None:
    original = load_digits()
    scaled = np.rint(original.images * 255 / 16).astype(np.uint8)
    known = {image.tobytes(): label for image, label in zip(scaled, original.target, strict=True)}
    for part in (digits.train, digits.validation, digits.test):
        found = [known[image.tobytes()] for image in part.images]
        assert np.array_equal(found, part.labels)


def test_same_data_twice(digits: Dataset) -> None:
    again = load(DataConfig())
    assert np.array_equal(again.train.images, digits.train.images)
    assert np.array_equal(again.test.labels, digits.test.labels)
    assert np.array_equal(again.pools["ood"].images, digits.pools["ood"].images)


# The real data sets


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "ood"),
    [
        ("cifar10", "fashion-mnist"),
        ("fashion-mnist", "mnist"),
        ("mnist", "fashion-mnist"),
        ("notmnist", "mnist"),
    ],
)
def test_real_data(data_root: Path, name: str, ood: str) -> None:
    dataset = load(DataConfig(data=name, data_root=data_root, ood=ood, pool_images=50))
    sizes = CATALOGUE[name].sizes
    parts = (dataset.train, dataset.validation, dataset.pools["in"], dataset.test)
    assert tuple(len(part) for part in parts) == sizes
    assert dataset.pools["ood"].name == ood
    assert dataset.pools["ood"].images.shape == (50, *dataset.image_shape)
    assert {part.images.dtype for part in parts} == {np.dtype(np.uint8)}
    for labelled in (dataset.train, dataset.validation, dataset.test):
        assert set(np.unique(labelled.labels)) == set(range(dataset.num_classes))


@pytest.mark.data
def test_real_data_keeps_image_and_label_together(data_root: Path) -> None:
    from torchvision.datasets import CIFAR10

    original = CIFAR10(data_root, train=False)
    dataset = load(DataConfig(data="cifar10", data_root=data_root, ood="photographs"))
    assert np.array_equal(dataset.test.images.transpose(0, 2, 3, 1), original.data)
    assert np.array_equal(dataset.test.labels, original.targets)
    assert dataset.class_names == tuple(original.classes)


@pytest.mark.data
def test_default_foreign_pool_is_the_whole_official_train_split(data_root: Path) -> None:
    pool = load(DataConfig(data="notmnist", data_root=data_root)).pools["ood"]
    assert (pool.name, pool.images.shape) == ("mnist", (60_000, 1, 28, 28))


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_is_read_channels_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    dataset = getattr(datasets, name)
    monkeypatch.setattr(datasets.utils, "check_md5", lambda *_, **__: True)
    folder = write_cifar10(tmp_path)
    if name == "CIFAR100":
        folder = folder.rename(tmp_path / dataset.base_folder)
        batch = pickle.loads((folder / "test_batch").read_bytes())
        batch["fine_labels"] = batch.pop("labels")
        for file in ("train", "test"):
            (folder / file).write_bytes(pickle.dumps(batch))
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a"] * 100}))
    part = read_cifar(name, tmp_path, False, "test")
    assert part.images.shape == (4, 3, 32, 32)
    assert part.images[0, 0, 0, :3].tolist() == [0, 1, 2]
    assert part.labels.tolist() == [0, 1, 2, 9]


# Bad settings


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param({"data": "cifar-10"}, ("'cifar10'?", *DATASETS), id="close-name"),
        pytest.param({"data": "imagenet-21k"}, DATASETS, id="unknown-name"),
        pytest.param({"data": ""}, DATASETS, id="empty-name"),
        pytest.param({"data": "photographs"}, ("--ood", "digits"), id="data-without-labels"),
        pytest.param({"ood": "photograph"}, ("'photographs'?",), id="close-ood-name"),
        pytest.param({"data": "mnist", "ood": "mnist"}, ("ood", "another"), id="ood-is-data"),
        pytest.param(
            {"ood": "mnist", "pool": Path("x.npy")}, ("--ood", "--pool"), id="ood-and-pool"
        ),
        pytest.param({"pool_images": 0}, ("at least 1", "--pool-images"), id="no-pool-images"),
        pytest.param({"pool_images": -3}, ("-3", "at least 1"), id="negative-pool-images"),
    ],
)
def test_bad_setting(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        DataConfig(**settings)
    one_line(error, *parts)


def test_more_pool_images_than_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        load(DataConfig(pool_images=4_001))
    one_line(error, "4001", "4000", "--pool-images")


# Missing files


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("fashion-mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
    ],
)
def test_missing_files(
    name: str, file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as error:
        load(DataConfig(data=name, data_root=tmp_path / "nowhere"))
    one_line(error, str(tmp_path / "nowhere" / file), "--data-root", "--download")
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "nowhere").exists()


def test_missing_notmnist_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(DataConfig(data="notmnist", data_root=tmp_path, download=True))
    one_line(error, str(tmp_path / "notMNIST" / "raw"), "t10k-images-idx3-ubyte", "--data-root")


def test_missing_foreign_data_set_names_the_alternatives(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(DataConfig(ood="mnist", data_root=tmp_path))
    one_line(error, "MNIST", "--download", "--ood", "--pool")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist", "mnist"])
def test_failed_download(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> NoReturn:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(DataError) as error:
        load(DataConfig(data=name, data_root=tmp_path, download=True))
    one_line(error, "download", "no route to host", "network", str(tmp_path))


def test_files_that_are_there_are_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", None)  # a call would fail otherwise
    write_fashion(tmp_path)
    with pytest.raises(DataError, match="expected"):
        load(DataConfig(data="fashion-mnist", data_root=tmp_path, download=True))


# Damaged files


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("<html>404 not found</html>")


def other_rank(file: Path) -> None:
    write_idx(file, np.zeros((6, 6)))


@pytest.mark.parametrize("index", [0, 1], ids=["images", "labels"])
@pytest.mark.parametrize("damage", [cut, empty, text, other_rank])
def test_damaged_idx_file(tmp_path: Path, damage: Callable[[Path], None], index: int) -> None:
    file = write_fashion(tmp_path, labels=200)[index]
    damage(file)
    with pytest.raises(DataError) as error:
        load(DataConfig(data="fashion-mnist", data_root=tmp_path))
    one_line(error, str(file), "damaged", "--download")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param({"labels": 5}, ("6 images", "5 labels", "--download"), id="fewer-labels"),
        pytest.param({}, ("(6, 1, 28, 28)", "(60000, 1, 28, 28)"), id="other-count"),
        pytest.param({"images": 0, "labels": 0}, ("no", "--download"), id="no-images"),
    ],
)
def test_inconsistent_idx_files(
    tmp_path: Path, settings: dict[str, int], parts: tuple[str, ...]
) -> None:
    write_fashion(tmp_path, **settings)
    with pytest.raises(DataError) as error:
        load(DataConfig(data="fashion-mnist", data_root=tmp_path))
    one_line(error, *parts)


def test_label_without_class(tmp_path: Path) -> None:
    write_fashion(tmp_path, images=60_000, labels=60_000, label=10)
    with pytest.raises(DataError) as error:
        load(DataConfig(data="fashion-mnist", data_root=tmp_path))
    one_line(error, "label 10", "0 to 9", str(tmp_path))


def test_damaged_notmnist(tmp_path: Path) -> None:
    raw = tmp_path / "notMNIST" / "raw"
    write_idx(raw / "t10k-images-idx3-ubyte", np.zeros((4, 28, 28)))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(4))
    cut(raw / "t10k-images-idx3-ubyte")
    with pytest.raises(DataError) as error:
        load(DataConfig(data="notmnist", data_root=tmp_path))
    one_line(error, "t10k-images-idx3-ubyte", "intact copy")


def test_damaged_cifar_batch_is_named_and_not_unpickled(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    with pytest.raises(DataError) as error:
        load(DataConfig(data="cifar10", data_root=tmp_path))
    one_line(error, str(folder / "data_batch_1"), "checksum", "--download")


@pytest.mark.data
def test_one_damaged_batch_among_intact_ones(data_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (data_root / folder.name).iterdir():
        (folder / file.name).symlink_to(file)
    damaged = folder / "data_batch_3"
    damaged.unlink()
    damaged.write_bytes(b"\x80\x04")
    with pytest.raises(DataError) as error:
        load(DataConfig(data="cifar10", data_root=tmp_path))
    one_line(error, str(damaged), "--download")


# Records


IMAGES = np.zeros((3, 1, 8, 8), dtype=np.uint8)
LABELS = np.zeros(3, dtype=np.int64)


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        pytest.param(IMAGES, LABELS[:2], "3 images but 2 labels", id="lengths-differ"),
        pytest.param(IMAGES.astype(float), LABELS, "expected uint8", id="float-images"),
        pytest.param(IMAGES[:, 0], LABELS, "(N, C, H, W)", id="three-dimensions"),
        pytest.param(IMAGES[:0], LABELS[:0], "at least one", id="empty"),
        pytest.param(IMAGES, LABELS.astype(np.int32), "expected int64", id="int32-labels"),
        pytest.param(IMAGES, LABELS[:, None], "expected int64 (N,)", id="label-matrix"),
    ],
)
def test_bad_labelled(images: Any, labels: Any, part: str) -> None:
    with pytest.raises(DataError) as error:
        Labelled(images, labels)
    one_line(error, part)


def test_data_set_of_your_own_is_checked(digits: Dataset) -> None:
    def own(class_names: str, pool: Pool) -> Dataset:
        parts = (digits.train, digits.validation, digits.test)
        return Dataset("own", tuple(class_names), *parts, {"in": pool}, "none")

    assert own("0123456789", digits.pools["in"]).num_classes == 10
    with pytest.raises(DataError) as error:
        own("012345678", digits.pools["in"])
    one_line(error, "label 9", "0 to 8", "own, train split")
    with pytest.raises(DataError) as error:
        own("0123456789", Pool("wide", np.zeros((1, 3, 8, 8), dtype=np.uint8)))
    one_line(error, "(3, 8, 8)", "(1, 8, 8)", "conform")
