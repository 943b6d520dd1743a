# SPDX-License-Identifier: BSD-3-Clause
"""The reference executor: QONNX's own ``execute_onnx``."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.executors.base import check_images
from brevitas_divqat.export.metadata import METADATA_KEY, GraphMetadata

__all__ = ["ReferenceExecutor"]


class ReferenceExecutor:
    """Runs a deployed graph node by node through ``qonnx.core.onnx_exec.execute_onnx``.

    The graph is set to one batch size, and the last batch is filled up with black images: an
    image's scores then come from the same kernels whatever it is asked together with.

    Args:
        path: a graph that `export_qonnx` wrote.
        batch_size: images per pass; larger is faster, since every pass builds its sessions anew.

    Attributes:
        metadata: the graph's `GraphMetadata`.
        sha256: of the file.

    Raises:
        GraphError: if the file is missing, no ONNX graph, or does not say how to be served.
        ConfigError: if the batch size is below 1.
    """

    name = "reference"

    def __init__(self, path: Path, *, batch_size: int = 256) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: it must be 1 or more")
        wrapper, self.sha256 = _load(path)
        self.metadata = GraphMetadata.from_json(wrapper.get_metadata_prop(METADATA_KEY), str(path))
        self._batch_size = batch_size
        self._graph = _with_batch_size(wrapper, batch_size)
        self._input = self._graph.graph.input[0].name
        self._output = self._graph.graph.output[0].name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.metadata.image_shape

    @property
    def num_classes(self) -> int:
        """Number of scores."""
        return len(self.metadata.class_names)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, K) scores of (N, C, H, W) images."""
        check_images(images, self.image_shape)
        scores = np.empty((len(images), self.num_classes), np.float32)
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            scores[start : start + len(batch)] = self._run(batch)
        return scores

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        from qonnx.core.onnx_exec import execute_onnx

        pixels = np.zeros((self._batch_size, *self.image_shape), np.float32)
        pixels[: len(batch)] = batch
        pixels /= np.float32(self.metadata.pixel_divisor)
        result = execute_onnx(self._graph, {self._input: pixels})[self._output]
        return result[: len(batch)]


def _load(path: Path) -> tuple[Any, str]:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto
    from qonnx.core.modelwrapper import ModelWrapper

    try:
        content = path.read_bytes()
    except OSError as error:
        raise GraphError(
            f"cannot read the graph {path} ({error.strerror}): write it with `divqat export`"
        ) from error
    try:
        model = ModelProto.FromString(content)
    except DecodeError as error:
        raise GraphError(f"{path} is not an ONNX graph: write it with `divqat export`") from error
    if not model.graph.node:
        raise GraphError(f"{path} is an ONNX file without nodes: write it with `divqat export`")
    return ModelWrapper(model), hashlib.sha256(content).hexdigest()


def _with_batch_size(wrapper: Any, batch_size: int) -> Any:
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_shapes import InferShapes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return wrapper.transform(ChangeBatchSize(batch_size)).transform(InferShapes())
