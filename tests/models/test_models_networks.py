# SPDX-License-Identifier: BSD-3-Clause
"""Every network trains at every bit width that makes sense, and ends as integers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.executors import ExecutorConfig, open_executor
from brevitas_divqat.export import (
    GraphMetadata,
    check_graph,
    export_integer,
    export_qonnx,
    integer_path,
)
from brevitas_divqat.models import LEAST_BITS, MODELS, ModelConfig, Precision, build
from brevitas_divqat.seeding import seeded
from tests import networks

CLASSES = 5
SMALL: dict[str, tuple[tuple[int, int, int], float]] = {
    "lenet5": ((1, 20, 20), 0.3),
    "cnv": ((3, 32, 32), 0.05),
    "vgg_small": ((3, 8, 8), 0.03),
    "resnet8": ((3, 8, 8), 0.25),
    "resnet20": ((1, 8, 8), 0.25),
    "mobilenet_v1_tiny": ((3, 16, 16), 0.5),
    "tfc": ((1, 8, 8), 0.3),
    "sfc": ((1, 8, 8), 0.1),
    "lfc": ((3, 8, 8), 0.03),
}
"""Image shape and width factor of each network."""

ONE_BIT = {
    name: Precision(1, least.activation, 1 if least.activation == 1 else 8)
    for name, least in LEAST_BITS.items()
    if least.weight == 1
}
PRECISIONS = [(name, ONE_BIT[name]) for name in ONE_BIT] + [
    (name, Precision(bits, bits)) for name, bits in itertools.product(SMALL, (2, 3, 4, 8))
]
QUICK = {("lenet5", 1), ("cnv", 1), ("tfc", 1), ("tfc", 2), ("sfc", 3), ("lfc", 8), ("resnet8", 4)}
"""Networks and weight bits that become integers in a second or two."""
DEEP = {"resnet20", "mobilenet_v1_tiny"}


def cases(is_slow: Callable[[str, int], bool]) -> list[Any]:
    """Return all networks and precisions as parameters of a test."""
    return [
        pytest.param(
            name,
            precision,
            id=f"{name}-W{precision.weight}A{precision.activation}E{precision.edge}",
            marks=[pytest.mark.slow] if is_slow(name, precision.weight) else [],
        )
        for name, precision in PRECISIONS
    ]


TO_TRAIN = cases(lambda name, bits: name in DEEP and bits in (3, 8))
TO_INTEGERS = cases(lambda name, bits: (name, bits) not in QUICK)


def make(name: str, precision: Precision | None) -> nn.Module:
    shape, width = SMALL[name]
    with seeded(0, "networks"):
        return build(name, shape, CLASSES, precision=precision, width=width)


def batch(name: str, count: int = 10) -> Tensor:
    pixels: NDArray[np.uint8] = networks.images(SMALL[name][0], count)
    return torch.from_numpy(pixels).float() / 256


def test_every_registered_network_is_tested() -> None:
    assert set(SMALL) == set(MODELS) == set(LEAST_BITS)


@pytest.mark.parametrize(("name", "precision"), TO_TRAIN)
def test_every_weight_is_trained_without_calibration(name: str, precision: Precision) -> None:
    model = make(name, precision).train()
    weights = dict(make(name, None).named_parameters())  # without scales, which are statistics yet
    before = {key: value.detach().clone() for key, value in weights.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # of the 300 steps in which Brevitas collects statistics
        loss = F.cross_entropy(model(batch(name)), torch.arange(10) % CLASSES)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.isfinite()
    trained = dict(model.named_parameters())
    assert not [key for key in before if torch.equal(trained[key], before[key])]


@pytest.mark.parametrize("name", SMALL)
def test_twin_has_the_quantized_network_s_keys_shapes_and_first_weights(name: str) -> None:
    twin = make(name, None).state_dict()
    precision = ONE_BIT.get(name, Precision(2, 2))
    for model in (make(name, precision), make(name, Precision())):
        found = model.state_dict()
        assert set(twin) <= set(found)
        assert all(torch.equal(found[key], twin[key]) for key in twin)


@pytest.mark.parametrize("name", SMALL)
def test_state_has_one_name_for_each_tensor(name: str) -> None:
    model = networks.settle(make(name, Precision()), SMALL[name][0])
    pointers = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
    assert len(set(pointers)) == len(pointers)  # safetensors refuses two names for one tensor


@pytest.mark.parametrize(("name", "precision"), TO_INTEGERS)
def test_network_ends_as_integers(name: str, precision: Precision, tmp_path: Path) -> None:
    shape = SMALL[name][0]
    model = make(name, precision)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the mean of the batches: deep networks fade out otherwise
    with seeded(0, "networks"):
        networks.settle(model, shape)
    names = tuple(f"class {number}" for number in range(CLASSES))
    path = export_qonnx(model, tmp_path / "model.onnx", GraphMetadata(shape, 256.0, names))
    assert not [str(f) for f in check_graph(path) if f.severity == "breaks FINN"]
    export_integer(path)
    pixels = np.concatenate([networks.images(shape, 5, seed=1), networks.extreme_images(shape)])

    def scores(form: Path, executor: str) -> NDArray[np.float32]:
        return open_executor(form, ExecutorConfig(executor=executor))(pixels)  # type: ignore[arg-type]

    exported = scores(path, "reference")
    assert len(np.unique(exported)) > 1
    assert np.array_equal(scores(path, "fast"), exported)
    integers = scores(integer_path(path), "integer")
    assert np.array_equal(integers, scores(integer_path(path), "reference"))
    with torch.no_grad():
        trained = model(torch.from_numpy(pixels).float() / 256).numpy()
    # A sum that is rounded across a threshold moves some scores, not most.
    for others in (exported, integers):
        assert np.median(np.abs(others - trained)) < 1e-4 * np.abs(trained).max()


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("lenet5", "cnv")])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 16, 16)], ids=str)
def test_the_usual_images_fit(name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, shape, 7, precision=None, width=0.03).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


# --- what does not make sense ------------------------------------------------------------------

TOO_FEW = [
    (name, place, bits)
    for name, least in LEAST_BITS.items()
    for place in ("weight", "activation")
    for bits in range(1, getattr(least, place))
]


@pytest.mark.parametrize(("name", "place", "bits"), TOO_FEW)
def test_too_few_bits_are_refused_by_name(name: str, place: str, bits: int) -> None:
    precision = Precision(**{place: bits})  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        build(name, SMALL[name][0], CLASSES, precision=precision)
    message = str(caught.value)
    assert "\n" not in message
    option = {"weight": "use bits of 2", "activation": "use act_bits of 2"}[place]
    for part in (name, f"{bits}-bit {place}s", "because", option):
        assert part in message
    build(name, SMALL[name][0], CLASSES, precision=None, width=0.03)  # the twin has no bits


def test_settings_of_too_few_bits_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="resnet8 .* 1-bit activations"):
        ModelConfig(model="resnet8", bits=1)
    with pytest.raises(ConfigError, match="mobilenet_v1_tiny .* 1-bit weights"):
        ModelConfig(model="mobilenet_v1_tiny", bits=1, act_bits=2)
    assert ModelConfig(model="resnet8", bits=1, act_bits=2).precision == Precision(1, 2)
    assert ModelConfig(model="tfc", bits=1).precision == Precision(1, 1)


def test_images_that_would_pad_signs_are_refused() -> None:
    precision = Precision(1, 1)
    build("lenet5", (1, 20, 20), CLASSES, precision=precision)
    with pytest.raises(ConfigError, match="1-bit activations cannot be padded"):
        build("lenet5", (1, 8, 8), CLASSES, precision=precision)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vgg_small", (3, 7, 8)),
        ("resnet8", (3, 7, 7)),
        ("resnet8", (3, 8, 9)),
        ("resnet20", (3, 32, 28)),
        ("mobilenet_v1_tiny", (3, 15, 15)),
        ("mobilenet_v1_tiny", (3, 16, 17)),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused_by_name(name: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, shape, CLASSES, precision=None)
    message = str(caught.value)
    assert f"{name} needs images of" in message
    assert f"got {shape[1]}x{shape[2]}" in message


def test_help_names_every_network() -> None:
    assert ModelConfig.__doc__ is not None
    listed = ModelConfig.__doc__.split("model: ")[1].split("width:")[0]
    words = set(listed.replace(",", " ").replace(".", " ").split())
    assert set(MODELS) <= words
