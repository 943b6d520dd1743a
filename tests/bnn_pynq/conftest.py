# SPDX-License-Identifier: BSD-3-Clause
"""Tiny data sets in the files of MNIST and CIFAR-10, and runs of both trainers on them."""

from __future__ import annotations

import hashlib
import logging
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

TRAIN, TEST = 20, 6
MINE = """[MODEL]
ARCH: FC
DATASET: MNIST
IN_CHANNELS: 1
OUT_FEATURES = [16]
NUM_CLASSES: 10

[QUANT]
WEIGHT_BIT_WIDTH: 3
ACT_BIT_WIDTH: 3
IN_BIT_WIDTH: 8
"""


def write_mnist(root: Path) -> None:
    """Write what torchvision's MNIST, of which Brevitas has a subclass, reads."""
    random = np.random.default_rng(0)
    raw = root / "MirrorMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">II", 0x801, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def write_cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Write what torchvision's CIFAR10 reads, and tell it these files' checksums."""
    from torchvision.datasets import CIFAR10

    random = np.random.default_rng(0)
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str, count: int) -> list[str]:
        images = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        return write(name, {"data": images, "labels": [i % 10 for i in range(count)]})

    patch.setattr(CIFAR10, "train_list", [batch("data_batch_1", 8)])
    patch.setattr(CIFAR10, "test_list", [batch("test_batch", 4)])
    _, md5 = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5})


@pytest.fixture
def description() -> str:
    """Return a network's description that is none of the zoo's."""
    return MINE


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with both data sets."""
    root = tmp_path / "data"
    write_mnist(root)
    write_cifar10(root, monkeypatch)
    return root


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Take away the handlers that Brevitas' own program leaves behind, and how it prints."""
    log = logging.getLogger("log")
    before = list(log.handlers)
    yield
    for handler in [h for h in log.handlers if h not in before]:
        log.removeHandler(handler)
        handler.close()
    torch.set_printoptions(profile="default")


@pytest.fixture
def flags(data: Path, tmp_path: Path) -> list[str]:
    """Return the flags that all runs share."""
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    return f"--datadir {data} --num_workers 0 --batch_size 4 --experiments {experiments}".split()


def run(launch: Callable[[list[str]], Any], arguments: list[str]) -> Path:
    """Train; return the new run's folder."""
    experiments = Path(arguments[arguments.index("--experiments") + 1])
    before = set(experiments.iterdir())
    launch(arguments)
    (made,) = set(experiments.iterdir()) - before
    # Brevitas names a folder after the second; the next run may begin within it.
    return made.rename(experiments / f"run{len(before)}")


@pytest.fixture
def ours(flags: list[str]) -> Callable[[str], Path]:
    """Run this program's training with the flags of a text; return its folder."""
    from brevitas_divqat.bnn_pynq.train import launch

    def train(text: str) -> Path:
        torch.seed()  # as in a new process: chance
        return run(launch, [*flags, *text.split()])

    return train


@pytest.fixture
def theirs(flags: list[str]) -> Callable[[str], Path]:
    """Run Brevitas' own training from a seed with the flags of a text; return its folder.

    Brevitas seeds after it has built the network; so the seed is set before, too.
    """
    from brevitas_examples.bnn_pynq.bnn_pynq_train import launch, parse_args

    def train(text: str) -> Path:
        arguments = [*flags, *text.split()]
        torch.manual_seed(parse_args(arguments).random_seed)
        return run(launch, arguments)

    return train
