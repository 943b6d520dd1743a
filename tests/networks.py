# SPDX-License-Identifier: BSD-3-Clause
"""A zoo of small Brevitas networks, one for each thing that an exported graph can hold.

All are seeded and calibrated on random images; their BatchNorms have gains of either sign. Names in
``NETWORKS`` go with everything that tests need: ``build``, ``export``, ``images``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import brevitas.nn as qnn
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int16Bias,
    Int32Bias,
    SignedBinaryWeightPerTensorConst,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from brevitas_divqat.export import GraphMetadata, export_qonnx
from brevitas_divqat.quant import (
    Int4WeightPerChannelFloat,
    Int4WeightPerTensorFloat,
    SignedBinaryActPerTensorConst,
    SignedBinaryWeightPerChannelFloat,
    SignedBinaryWeightPerTensorFloat,
    Uint8ActPerTensorFloat,
    Uint8InputPerTensorConst,
)
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import calibrate

__all__ = ["NETWORKS", "Network", "build", "export", "extreme_images", "images", "metadata"]

CLASSES = 5


class Network(NamedTuple):
    """How to make a network and what it takes.

    Attributes:
        make: builds the untrained layers.
        image_shape: (channels, height, width).
        edit: changes the exported graph; ``build`` then gives another network than ``export``.
    """

    make: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    edit: Callable[[onnx.ModelProto], None] | None = None


# --- layers ------------------------------------------------------------------------------------


def entry(**options: Any) -> nn.Module:
    """Return the 8-bit input quantizer of scale 1/256."""
    return qnn.QuantIdentity(act_quant=Uint8InputPerTensorConst, **options)


def conv(inputs: int, outputs: int, kernel: int = 3, *, bits: int = 3, **options: Any) -> nn.Module:
    """Return a convolution, by default with a scale per channel and no bias."""
    chosen = {"weight_quant": Int4WeightPerChannelFloat, "bias": False, **options}
    return qnn.QuantConv2d(inputs, outputs, kernel, weight_bit_width=bits, **chosen)


def linear(inputs: int, outputs: int = CLASSES, *, bits: int = 4, **options: Any) -> nn.Module:
    """Return a fully connected layer, by default with one scale and no bias."""
    chosen = {"weight_quant": Int4WeightPerTensorFloat, "bias": False, **options}
    return qnn.QuantLinear(inputs, outputs, weight_bit_width=bits, **chosen)


def relu(bits: int = 3, **options: Any) -> nn.Module:
    """Return a ReLU with unsigned integers behind it."""
    return qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=bits, **options)


def signed(bits: int = 3, *, narrow: bool = False, **options: Any) -> nn.Module:
    """Return a quantizer to signed integers."""
    return qnn.QuantIdentity(
        act_quant=Int8ActPerTensorFloat, bit_width=bits, narrow_range=narrow, **options
    )


def pool_by_shifting(kernel: int, bits: int, **options: Any) -> nn.Module:
    """Return an average pool that truncates its sum."""
    return qnn.TruncAvgPool2d(
        kernel_size=kernel, bit_width=bits, float_to_int_impl_type="floor", **options
    )


def block(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> list[nn.Module]:
    """Return convolution, BatchNorm and ReLU."""
    return [conv(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs), relu()]


def head(features: int, **options: Any) -> list[nn.Module]:
    """Return what follows the last feature map."""
    return [nn.Flatten(), linear(features, **options)]


# --- networks of one path ----------------------------------------------------------------------


def plain() -> nn.Module:
    return nn.Sequential(entry(), *block(3, 7, padding=1), *block(7, 4, stride=2), *head(4 * 3 * 3))


def depthwise() -> nn.Module:
    return nn.Sequential(
        entry(), *block(3, 6), *block(6, 6, groups=6, padding=1), *block(6, 5, 1), *head(5 * 6 * 6)
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        entry(), *block(2, 6, groups=2), *block(6, 4, groups=2, stride=2), *head(4 * 2 * 2)
    )


def kernels() -> nn.Module:
    """5x5, 1x1, 1x3 and 3x1 kernels, a stride that differs by axis."""
    return nn.Sequential(
        entry(),
        *block(1, 3, 5, padding=2),
        *block(3, 13, 1),
        *block(13, 3, (1, 3), padding=(0, 1)),  # type: ignore[arg-type]
        *block(3, 2, (3, 1), stride=(2, 1)),  # type: ignore[arg-type]
        *head(2 * 3 * 8),
    )


def dilated() -> nn.Module:
    return nn.Sequential(
        entry(), *block(2, 3, dilation=2), *block(3, 3, padding=2, dilation=2), *head(3 * 4 * 4)
    )


def same_padding() -> nn.Module:
    """Kernels of even size, which ``padding="same"`` pads on one side more than on the other."""
    return nn.Sequential(
        entry(),
        *block(2, 3, 2, padding="same"),
        *block(3, 4, 4, padding="same"),
        *head(4 * 8 * 8),
    )


def strided_padding() -> nn.Module:
    return nn.Sequential(entry(), *block(2, 5, padding=1, stride=2), *head(5 * 4 * 4))


def pad_at_the_end(model: onnx.ModelProto) -> None:
    """Move the rows and columns of zeros, of which strides leave two unused, to other sides."""
    (layer,) = (node for node in model.graph.node if node.op_type == "Conv")
    (pads,) = (attribute for attribute in layer.attribute if attribute.name == "pads")
    pads.ints[:] = [1, 0, 0, 1]


def odd_channels() -> nn.Module:
    bottleneck = [conv(13, 1), nn.BatchNorm2d(1), signed(4)]
    return nn.Sequential(
        entry(), *block(1, 13), *bottleneck, *block(1, 7), nn.Flatten(), linear(7 * 2 * 2, 1)
    )


def per_tensor() -> nn.Module:
    one: dict[str, Any] = {"weight_quant": Int4WeightPerTensorFloat}
    return nn.Sequential(
        entry(), *block(3, 4, **one), *block(4, 4, bits=2, **one), *head(4 * 4 * 4, bits=8)
    )


def binary_weights() -> nn.Module:
    one = {"weight_quant": SignedBinaryWeightPerTensorConst, "bits": 1}
    return nn.Sequential(entry(), *block(2, 4, **one), *block(4, 3, **one), *head(3 * 4 * 4))


def no_norm() -> nn.Module:
    return nn.Sequential(entry(), conv(2, 4), relu(), conv(4, 3), relu(2), *head(3 * 4 * 4))


def float_bias() -> nn.Module:
    return nn.Sequential(
        entry(),
        conv(2, 4, bias=True),
        relu(),
        conv(4, 3, bias=True),
        nn.BatchNorm2d(3),
        relu(),
        *head(3 * 4 * 4),
    )


def quantized_bias() -> nn.Module:
    biased = {"bias": True, "bias_quant": Int32Bias}
    return nn.Sequential(
        entry(return_quant_tensor=True),
        conv(2, 4, **biased),
        nn.BatchNorm2d(4),
        relu(return_quant_tensor=True),
        conv(4, 3, **{**biased, "bias_quant": Int16Bias}),
        relu(return_quant_tensor=True),
        nn.Flatten(),
        linear(3 * 4 * 4, **biased),
    )


def float_bias_1x1() -> nn.Module:
    """A biased convolution to one pixel, flattened before its quantizer."""
    return nn.Sequential(
        entry(), *block(1, 4), conv(4, 6, 6, bias=True), nn.Flatten(), relu(), linear(6)
    )


def flattened_sums() -> nn.Module:
    """A convolution with one scale whose sums are flattened before their quantizer."""
    one: dict[str, Any] = {"weight_quant": Int4WeightPerTensorFloat}
    return nn.Sequential(entry(), conv(2, 4, **one), nn.Flatten(), relu(), linear(4 * 6 * 6))


def norm_after_flatten() -> nn.Module:
    """A convolution to one pixel whose BatchNorm and quantizer come after flattening."""
    return nn.Sequential(
        entry(), *block(1, 4), conv(4, 6, 6), nn.Flatten(), nn.BatchNorm1d(6), relu(), linear(6)
    )


def fully_connected() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        entry(),
        linear(2 * 4 * 4, 13),
        nn.BatchNorm1d(13),
        relu(),
        linear(13, 7, bias=True, weight_quant=Int4WeightPerChannelFloat),
        relu(4),
        linear(7, 7, bias=True),
        nn.BatchNorm1d(7),
        relu(2),
        linear(7),
    )


def signed_activations() -> nn.Module:
    return nn.Sequential(
        entry(),
        conv(2, 4),
        nn.BatchNorm2d(4),
        signed(3),
        conv(4, 4, padding=1),
        nn.BatchNorm2d(4),
        signed(4, narrow=True),
        conv(4, 3),
        nn.BatchNorm2d(3),
        qnn.QuantHardTanh(bit_width=2, min_val=-1.0, max_val=1.0),
        *head(3 * 4 * 4),
    )


def signs() -> nn.Module:
    """1-bit activations of scale 1 and of another, one of them pooled and padded."""
    return nn.Sequential(
        entry(),
        conv(2, 6),
        nn.BatchNorm2d(6),
        qnn.QuantIdentity(act_quant=SignedBinaryActPerTensorConst),
        nn.MaxPool2d(2),
        conv(6, 4, padding=1, bits=1, weight_quant=SignedBinaryWeightPerChannelFloat),
        nn.BatchNorm2d(4),
        signed(1),
        *head(4 * 3 * 3, bits=1, weight_quant=SignedBinaryWeightPerTensorFloat),
    )


def wide_activations() -> nn.Module:
    return nn.Sequential(
        entry(),
        conv(1, 2),
        nn.BatchNorm2d(2),
        relu(8),
        conv(2, 2),
        signed(8),
        *head(2 * 4 * 4),
    )


def quantized_scores() -> nn.Module:
    return nn.Sequential(entry(), *block(1, 2), *head(2 * 6 * 6), signed(8))


def pool_after_quantizer() -> nn.Module:
    return nn.Sequential(
        entry(), *block(2, 4), nn.MaxPool2d(2), *block(4, 3, 2), nn.MaxPool2d(3, 2, 1), *head(3)
    )


def pool_before_quantizer() -> nn.Module:
    """Max pools, padded ones too, between BatchNorm and quantizer: negative gains turn signs."""
    return nn.Sequential(
        entry(),
        conv(2, 6),
        nn.BatchNorm2d(6),
        nn.MaxPool2d(3, stride=2, padding=1),
        relu(),
        conv(6, 5, 2, bias=True),
        nn.BatchNorm2d(5),
        nn.MaxPool2d(2),
        signed(4),
        *head(5),
    )


def pool_of_accumulators() -> nn.Module:
    """A max pool right after the convolution; the BatchNorm behind it has positive gains only."""
    norm = nn.BatchNorm2d(4)
    norm.positive = True  # type: ignore[assignment]
    return nn.Sequential(entry(), conv(2, 4), nn.MaxPool2d(2), norm, relu(), *head(4 * 3 * 3))


def average_pools() -> nn.Module:
    return nn.Sequential(
        entry(),
        conv(2, 4, padding=1),
        nn.BatchNorm2d(4),
        relu(4, return_quant_tensor=True),
        pool_by_shifting(2, 4),
        conv(4, 6, 2),
        nn.BatchNorm2d(6),
        relu(3, return_quant_tensor=True),
        pool_by_shifting(3, 5),
        *head(6),
    )


def signed_average_pools() -> nn.Module:
    return nn.Sequential(
        entry(),
        conv(2, 4),
        nn.BatchNorm2d(4),
        signed(4, return_quant_tensor=True),
        pool_by_shifting(3, 4, stride=1),
        conv(4, 3),
        nn.BatchNorm2d(3),
        signed(3, narrow=True, return_quant_tensor=True),
        pool_by_shifting(2, 3),
        *head(3),
    )


def global_average_pool() -> nn.Module:
    return nn.Sequential(
        entry(),
        conv(2, 4),
        nn.BatchNorm2d(4),
        relu(4, return_quant_tensor=True),
        qnn.TruncAdaptiveAvgPool2d(1, bit_width=4, float_to_int_impl_type="floor"),
        *head(4),
    )


def normalised_input() -> nn.Module:
    """Pixels shifted and scaled per channel, then a 4-bit signed quantizer."""
    return nn.Sequential(Normalise(), signed(4), *block(3, 4), *head(4 * 6 * 6))


class Normalise(nn.Module):
    """``x * a - b`` with a value for each of three channels."""

    gain: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor([4.0, 3.3, 5.1]).reshape(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor([2.0, 1.5, 2.7]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain - self.shift


# --- networks of several paths -----------------------------------------------------------------


class Residual(nn.Module):
    """Two additions with one shared signed quantizer each; the second has a layer on its skip."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = entry()
        self.stem = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4))
        self.first = nn.Sequential(conv(4, 4, padding=1), nn.BatchNorm2d(4))
        self.second = nn.Sequential(conv(4, 6, padding=1, stride=2), nn.BatchNorm2d(6))
        self.skip = nn.Sequential(conv(4, 6, 1, stride=2), nn.BatchNorm2d(6))
        self.shared = nn.ModuleList([signed(4, return_quant_tensor=True) for _ in range(2)])
        self.relu = relu()
        self.last = linear(6 * 3 * 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared[0](self.stem(self.entry(x)))
        x = self.relu(x + self.shared[0](self.first(x)))
        x = self.shared[1](self.second(x)) + self.shared[1](self.skip(x))
        return self.last(x.flatten(1))


class ResidualWithPool(nn.Module):
    """An unsigned addition whose sum passes a functional ReLU and a global average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = entry()
        self.stem = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4))
        self.branch = nn.Sequential(conv(4, 4, padding=1), nn.BatchNorm2d(4))
        self.shared = relu(4, return_quant_tensor=True)
        self.pool = pool_by_shifting(4, 4)
        self.last = linear(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.stem(self.entry(x)))
        x = x + self.shared(self.branch(x))
        return self.last(self.pool(x).flatten(1))


class Forked(nn.Module):
    """A BatchNorm's output that two quantizers read."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = entry()
        self.stem = nn.Sequential(conv(2, 6), nn.BatchNorm2d(6))
        self.quantizers = nn.ModuleList([relu(3), signed(3)])
        self.branches = nn.ModuleList([conv(6, 3), conv(6, 3)])
        self.shared = signed(4, return_quant_tensor=True)
        self.last = linear(3 * 4 * 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.entry(x))
        pairs = zip(self.branches, self.quantizers, strict=True)
        left, right = (self.shared(branch(quantizer(x))) for branch, quantizer in pairs)
        return self.last((left + right).flatten(1))


class Functional(nn.Module):
    """Functional ReLU and max pool; ``view`` and ``reshape``."""

    def __init__(self, flatten: str) -> None:
        super().__init__()
        self.flatten = flatten
        self.entry = entry()
        self.conv = conv(2, 4)
        self.norm = nn.BatchNorm2d(4)
        self.quantizer = relu()
        self.hidden = linear(4 * 3 * 3, 6)
        self.norm1d = nn.BatchNorm1d(6)
        self.quantizer1d = relu()
        self.last = linear(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.quantizer(F.relu(self.norm(self.conv(self.entry(x))))), 2)
        x = x.view(x.shape[0], -1) if self.flatten == "view" else x.reshape(-1, 4 * 3 * 3)
        return self.last(self.quantizer1d(self.norm1d(self.hidden(x))))


class Reused(nn.Module):
    """One convolution, without a BatchNorm, applied twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = entry()
        self.stem = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4), relu())
        self.conv = conv(4, 4, padding=1)
        self.quantizer = relu()
        self.last = linear(4 * 6 * 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.entry(x))
        for _ in range(2):
            x = self.quantizer(self.conv(x))
        return self.last(x.flatten(1))


NETWORKS: dict[str, Network] = {
    "plain": Network(plain, (3, 8, 8)),
    "depthwise": Network(depthwise, (3, 8, 8)),
    "grouped": Network(grouped, (2, 8, 8)),
    "kernels": Network(kernels, (1, 8, 8)),
    "dilated": Network(dilated, (2, 8, 8)),
    "same_padding": Network(same_padding, (2, 8, 8)),
    "asymmetric_padding": Network(strided_padding, (2, 8, 8), pad_at_the_end),
    "odd_channels": Network(odd_channels, (1, 8, 8)),
    "per_tensor": Network(per_tensor, (3, 8, 8)),
    "binary_weights": Network(binary_weights, (2, 8, 8)),
    "no_norm": Network(no_norm, (2, 8, 8)),
    "float_bias": Network(float_bias, (2, 8, 8)),
    "quantized_bias": Network(quantized_bias, (2, 8, 8)),
    "float_bias_1x1": Network(float_bias_1x1, (1, 8, 8)),
    "flattened_sums": Network(flattened_sums, (2, 8, 8)),
    "norm_after_flatten": Network(norm_after_flatten, (1, 8, 8)),
    "fully_connected": Network(fully_connected, (2, 4, 4)),
    "signed_activations": Network(signed_activations, (2, 8, 8)),
    "signs": Network(signs, (2, 8, 8)),
    "wide_activations": Network(wide_activations, (1, 8, 8)),
    "quantized_scores": Network(quantized_scores, (1, 8, 8)),
    "pool_after_quantizer": Network(pool_after_quantizer, (2, 8, 8)),
    "pool_before_quantizer": Network(pool_before_quantizer, (2, 8, 8)),
    "pool_of_accumulators": Network(pool_of_accumulators, (2, 8, 8)),
    "average_pools": Network(average_pools, (2, 8, 8)),
    "signed_average_pools": Network(signed_average_pools, (2, 9, 9)),
    "global_average_pool": Network(global_average_pool, (2, 8, 8)),
    "normalised_input": Network(normalised_input, (3, 8, 8)),
    "residual": Network(Residual, (2, 8, 8)),
    "residual_with_pool": Network(ResidualWithPool, (2, 6, 6)),
    "forked": Network(Forked, (2, 8, 8)),
    "functional_view": Network(functools.partial(Functional, "view"), (2, 8, 8)),
    "functional_reshape": Network(functools.partial(Functional, "reshape"), (2, 8, 8)),
    "reused": Network(Reused, (2, 8, 8)),
}


# --- what tests do with them -------------------------------------------------------------------


def images(shape: tuple[int, int, int], count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw uniformly distributed images, (count, *shape)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def extreme_images(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Return images at the ends: black, white, stripes, boards, single points, random 0 and 255."""
    rows, columns = np.indices(shape[1:])
    patterns = [rows * 0, rows * 0 + 1, rows % 2, columns % 2, (rows + columns) % 2]
    patterns += [1 - pattern for pattern in patterns[2:]]
    patterns += [(rows == 0) & (columns == 0), (rows == rows.max()) & (columns == columns.max())]
    found = [np.broadcast_to(pattern, shape) for pattern in patterns]
    found += list(np.random.default_rng(seed).integers(0, 2, (8, *shape)))
    found += [
        np.broadcast_to((np.arange(shape[0]) == channel)[:, None, None], shape)
        for channel in range(shape[0])
    ]
    return np.stack(found).astype(np.uint8) * np.uint8(255)


def settle(model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Give a network BatchNorms of either sign and activation scales, in place.

    A BatchNorm with an attribute ``positive`` keeps positive gains.
    """
    pixels = images(shape, 64)
    inputs = torch.from_numpy(pixels).float() / 256
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(inputs)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                module.weight.uniform_(0.4, 1.6)
                if not hasattr(module, "positive"):
                    module.weight.mul_(torch.where(torch.rand(module.num_features) < 0.4, -1, 1))
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.mul_(1.1)
        calibrate(model, pixels)
    return model.eval()


@functools.cache
def build(name: str) -> nn.Module:
    """Return a network of the zoo, calibrated, in evaluation mode; one for all tests: read only."""
    network = NETWORKS[name]
    with seeded(0, "zoo", name):
        return settle(network.make(), network.image_shape)


def metadata(shape: tuple[int, int, int], classes: int = CLASSES) -> GraphMetadata:
    """Return how a network of the zoo is served."""
    return GraphMetadata(
        image_shape=shape,
        pixel_divisor=256.0,
        class_names=tuple(f"class {number}" for number in range(classes)),
    )


def export(name: str, path: Path) -> Path:
    """Export a network of the zoo with its metadata to a path."""
    _, shape, edit = NETWORKS[name]
    model = build(name)
    with torch.no_grad():
        (scores,) = model(torch.zeros(1, *shape))
    export_qonnx(model, path, metadata(shape, len(scores)))
    if edit is not None:
        graph = onnx.load(path)
        edit(graph)
        onnx.save(graph, path)
    return path
