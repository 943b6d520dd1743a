# SPDX-License-Identifier: BSD-3-Clause
"""Reading a deployed graph's file, and what every executor of one has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.export.graph_files import check_finite, layer_name, read_graph
from brevitas_divqat.export.metadata import METADATA_KEY, GraphMetadata
from brevitas_divqat.export.quantgraph import QUANTIZERS

__all__ = [
    "GraphExecutor",
    "check_same_answers",
    "load_graph",
    "opening",
    "sample_images",
]

WITH_CONSTANTS = QUANTIZERS | {"MultiThreshold"}
SAMPLE_IMAGES = 67
"""Enough for a full batch of every executor and a ragged one."""


class GraphExecutor(ABC):
    """An executor of a deployed graph's file.

    Attributes:
        name: kind of executor, recorded with every result.
        metadata: how the graph is to be served, and where it comes from.
        sha256: of the file.
    """

    name: str
    metadata: GraphMetadata
    sha256: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.metadata.image_shape

    @property
    def num_classes(self) -> int:
        """Number of scores."""
        return len(self.metadata.class_names)

    @property
    def judge(self) -> GraphExecutor:
        """The executor of the same scores for whoever measures: itself, unless it is slow."""
        return self

    @abstractmethod
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, K) scores of (N, C, H, W) images."""


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn whatever qonnx, onnx and onnxruntime raise at a damaged graph into a GraphError."""
    try:
        yield
    except (ConfigError, GraphError):
        raise
    except Exception as error:  # of any of many kinds; the cause is this file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise GraphError(f"{path} cannot be executed ({reason}): export it again") from error


def load_graph(path: Path) -> tuple[Any, str, GraphMetadata]:
    """Read a deployed graph.

    Args:
        path: a file that `export_qonnx` or `divqat export` wrote.

    Returns:
        The graph as a ``ModelWrapper``, the file's SHA-256, its metadata.

    Raises:
        GraphError: if the file is missing, truncated or no ONNX graph, keeps tensors outside its
            folder, holds no quantizer or no scale that is known beforehand, or does not say how to
            be served.
    """
    path = Path(path)
    with opening(path):
        wrapper, sha256 = read_graph(path)
    text = wrapper.get_metadata_prop(METADATA_KEY)
    quantized = any(node.op_type in WITH_CONSTANTS for node in wrapper.graph.node)
    if text is not None or quantized:
        metadata = GraphMetadata.from_json(text, str(path))
        quantized |= metadata.form == "integer"  # of one layer, which no thresholds follow
    if not quantized:
        raise GraphError(f"{path} holds no quantizer: export a model of Brevitas layers")
    _check_static(wrapper, path)
    check_finite(wrapper, str(path))
    return wrapper, sha256, metadata


def _check_static(model: Any, path: Path) -> None:
    """Refuse quantizers whose scale, zero-point or bit width a layer computes."""
    known = {tensor.name for tensor in model.graph.initializer}
    known |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        if node.op_type not in WITH_CONSTANTS:
            continue
        computed = [name for name in node.input[1:] if name not in known]
        if computed:
            raise GraphError(
                f"{path}: quantizer {layer_name(node)} ({node.op_type}) takes {computed[0]} from "
                "another node: use static scales, zero-points and bit widths"
            )


def sample_images(
    image_shape: tuple[int, int, int], count: int = SAMPLE_IMAGES
) -> NDArray[np.uint8]:
    """Return ``count`` seeded images on which executors are compared, 2 or more.

    Black, white, noise of every pixel, and noise of coarse patches under a random contrast, which
    drive a network into its saturated and its usual ranges.
    """
    rng = np.random.default_rng(0)
    channels, height, width = image_shape
    noisy = (count - 2) // 2
    noise = rng.integers(0, 256, (noisy, *image_shape))
    patched = count - 2 - noisy
    coarse = rng.integers(0, 256, (patched, channels, -(-height // 4), -(-width // 4)))
    patches = coarse.repeat(4, axis=2).repeat(4, axis=3)[..., :height, :width]
    contrast = rng.uniform(0.1, 1.0, (len(patches), 1, 1, 1))
    ends = np.stack([np.zeros(image_shape), np.full(image_shape, 255)])
    return np.concatenate([ends, noise, patches * contrast]).astype(np.uint8)


def check_same_answers(executor: GraphExecutor, reference: GraphExecutor) -> None:
    """Compare the scores of two executors of one graph on seeded images.

    Raises:
        GraphError: if a single bit differs.
    """
    images = sample_images(executor.image_shape)
    got, expected = executor(images), reference(images)
    different = (got.view(np.uint32) != expected.view(np.uint32)).any(axis=1)
    if different.any():
        gap = float(np.abs(got - expected).max())
        raise GraphError(
            f"the {executor.name} executor gives other scores than execute_onnx for "
            f"{int(different.sum())} of {len(images)} sample images (up to {gap:.3g}): use "
            "--executor reference, and report this graph"
        )
