# SPDX-License-Identifier: BSD-3-Clause
"""Networks come by name, for the image sizes that they promise, as quantized or float twins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models import (
    LEAST_BITS,
    MODELS,
    LeastBits,
    LeNet5,
    ModelConfig,
    Precision,
    build,
    register_model,
)
from brevitas_divqat.training import calibrate

SHAPES = [
    ("lenet5", (1, 28, 28)),
    ("lenet5", (3, 32, 32)),
    ("lenet5", (1, 8, 8)),
    ("lenet5", (1, 19, 9)),
    ("lenet5", (1, 20, 21)),
    ("cnv", (3, 32, 32)),
    ("cnv", (1, 28, 28)),
]
PRECISIONS = [
    pytest.param(None, id="float"),
    pytest.param(Precision(), id="quantized"),
]
WRONG_SIZES = [
    ("lenet5", (1, 7, 8)),
    ("lenet5", (1, 8, 7)),
    ("lenet5", (3, 1, 1)),
    ("cnv", (3, 31, 31)),
    ("cnv", (3, 32, 28)),
    ("cnv", (1, 8, 8)),
]


@pytest.fixture
def restored_registry() -> Iterator[None]:
    """Put the registry back after the test."""
    before = [(registry, dict(registry)) for registry in (MODELS, LEAST_BITS)]
    yield
    for registry, entries in before:
        registry.clear()  # type: ignore[attr-defined]
        registry.update(entries)  # type: ignore[attr-defined]


def assert_one_line(error: Exception, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "shape"), SHAPES, ids=str)
def test_output_is_one_logit_per_class(
    name: str, shape: tuple[int, int, int], precision: Precision | None
) -> None:
    model = build(name, shape, 7, precision=precision, width=0.05).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(("name", "shape"), SHAPES, ids=str)
def test_float_keys_are_the_quantized_ones_without_the_scales(
    name: str, shape: tuple[int, int, int]
) -> None:
    twin = build(name, shape, 7, precision=None, width=0.05).state_dict()
    model = build(name, shape, 7, precision=Precision(), width=0.05)
    calibrate(model, np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8))
    quantized = model.state_dict()
    extra = [key for key in quantized if key not in twin]
    relus = 4 if name == "lenet5" else 8
    assert set(twin) < set(quantized)
    assert len(extra) == relus
    assert all(key.endswith("scaling_impl.value") for key in extra)
    assert all(quantized[key].shape == twin[key].shape for key in twin)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_width_scales_the_channels(precision: Precision | None) -> None:
    half = build("lenet5", (1, 28, 28), 10, precision=precision, width=0.5).state_dict()
    assert half["features.1.weight"].shape == (3, 1, 5, 5)
    assert half["features.5.weight"].shape == (8, 3, 5, 5)
    assert half["classifier.0.weight"].shape == (60, 8 * 5 * 5)
    assert half["classifier.3.weight"].shape == (42, 60)
    assert half["classifier.6.weight"].shape == (10, 42)


def test_equal_seeds_give_equal_twins() -> None:
    twins = []
    for precision in (None, Precision()):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            twins.append(build("lenet5", (1, 8, 8), 10, precision=precision).state_dict())
    assert all(torch.equal(twins[1][key], twins[0][key]) for key in twins[0])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "shape"), WRONG_SIZES, ids=str)
def test_images_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, int, int], precision: Precision | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, shape, 10, precision=precision)
    assert_one_line(caught.value, name, f"{shape[1]}x{shape[2]}", "needs images of")


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), 17.0], ids=str)
def test_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(ConfigError) as caught:
        build("lenet5", (1, 8, 8), 10, precision=None, width=width)
    assert_one_line(caught.value, "width", "must be")
    with pytest.raises(ConfigError, match="width"):
        ModelConfig(width=width)


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        build("alexnet", (1, 8, 8), 10, precision=None)
    assert_one_line(caught.value, "alexnet", "lenet5", "cnv")
    with pytest.raises(ConfigError, match="alexnet"):
        ModelConfig(model="alexnet")


def test_single_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 2 or more"):
        build("lenet5", (1, 8, 8), 1, precision=None)


@pytest.mark.parametrize("bits", [9, 0, -4])
@pytest.mark.parametrize("place", ["weight", "activation", "edge"])
def test_bit_width_out_of_range_is_refused(place: str, bits: int) -> None:
    settings: dict[str, Any] = {place: bits}
    with pytest.raises(ConfigError) as caught:
        Precision(**settings)
    assert_one_line(caught.value, place, str(bits), "choose 1 to 8")


@pytest.mark.parametrize(
    ("settings", "place"),
    [({"bits": 0}, "weight"), ({"act_bits": 9}, "activation"), ({"edge_bits": 0}, "edge")],
    ids=["bits", "act_bits", "edge_bits"],
)
def test_model_config_refuses_bit_widths_at_once(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        ModelConfig(**settings)


def test_unknown_weight_scale_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Precision(weight_scale="row")  # type: ignore[arg-type]
    assert_one_line(caught.value, "weight_scale", "channel", "tensor")


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        (ModelConfig(), Precision(4, 4, 8, "channel")),
        (ModelConfig(bits=2), Precision(2, 2, 8, "channel")),
        (ModelConfig(bits=1, edge_bits=1), Precision(1, 1, 1, "channel")),
        (ModelConfig(bits=2, act_bits=4, edge_bits=3), Precision(2, 4, 3, "channel")),
        (ModelConfig(weight_scale="tensor"), Precision(4, 4, 8, "tensor")),
    ],
    ids=["default", "bits", "1 bit", "each place", "per tensor"],
)
def test_model_config_gives_the_precision(config: ModelConfig, precision: Precision) -> None:
    assert config.precision == precision


@pytest.mark.usefixtures("restored_registry")
def test_registered_model_can_be_built() -> None:
    register_model("lenet5-again", LeNet5)
    assert isinstance(build("lenet5-again", (1, 8, 8), 3, precision=None, width=0.1), LeNet5)
    assert ModelConfig(model="lenet5-again").model == "lenet5-again"


@pytest.mark.usefixtures("restored_registry")
def test_registry_refuses_a_taken_name_unless_forced() -> None:
    def builder(*_: Any) -> nn.Module:
        return nn.Flatten()

    with pytest.raises(ConfigError, match="force=True"):
        register_model("lenet5", builder)
    assert MODELS["lenet5"] is LeNet5
    register_model("lenet5", builder, force=True)
    assert isinstance(build("lenet5", (1, 8, 8), 10, precision=None), nn.Flatten)


@pytest.mark.usefixtures("restored_registry")
def test_registered_model_says_the_fewest_bits() -> None:
    least = LeastBits(weight=3, reason="it is picky")
    register_model("picky", LeNet5, least_bits=least)
    build("picky", (1, 8, 8), 3, precision=Precision(3, 2), width=0.1)
    with pytest.raises(
        ConfigError, match="picky .* 2-bit weights, because it is picky: use bits of 3"
    ):
        build("picky", (1, 8, 8), 3, precision=Precision(2, 2), width=0.1)
    register_model("picky", LeNet5, force=True)
    build("picky", (1, 8, 8), 3, precision=Precision(2, 2), width=0.1)
