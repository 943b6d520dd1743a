# SPDX-License-Identifier: BSD-3-Clause
"""The reference executor: QONNX's own ``execute_onnx``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import GraphError
from brevitas_divqat.executors.base import check_batch_size, check_images, filled_batches
from brevitas_divqat.executors.loading import GraphExecutor, load_graph, opening
from brevitas_divqat.executors.sessions import sessions_of, thread_count
from brevitas_divqat.export.graph_files import with_batch_size

__all__ = ["ReferenceExecutor"]


class ReferenceExecutor(GraphExecutor):
    """Runs a deployed graph node by node through ``qonnx.core.onnx_exec.execute_onnx``.

    The graph is set to one batch size, and the last batch is filled up with black images. Each
    node's session has one thread: with others the same sums are added in other blocks, and the last
    bits, which decide at a quantizer's threshold, depend on the number of cores.

    Args:
        path: an exported or an integer graph.
        batch_size: images per pass; larger is faster, since every pass builds its sessions anew.
        threads: of each node's session.

    Attributes:
        metadata: the graph's `GraphMetadata`.
        sha256: of the file.

    Raises:
        GraphError: if the file is missing, no ONNX graph, or does not say how to be served.
        ConfigError: if a number is below 1.
    """

    name = "reference"

    def __init__(self, path: Path, *, batch_size: int = 256, threads: int = 1) -> None:
        check_batch_size(batch_size)
        path = Path(path)
        wrapper, self.sha256, self.metadata = load_graph(path)
        self._batch_size, self._threads = batch_size, thread_count(threads)
        with opening(path):
            self._graph = with_batch_size(wrapper, batch_size)
            self._input = self._graph.graph.input[0].name
            self._output = self._graph.graph.output[0].name
            self._check_metadata(path)
            self._run(np.zeros((batch_size, *self.image_shape), np.uint8))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, K) scores of (N, C, H, W) images."""
        check_images(images, self.image_shape)
        scores = np.empty((len(images), self.num_classes), np.float32)
        for start, count, batch in filled_batches(images, self._batch_size):
            scores[start : start + count] = self._run(batch)[:count]
        return scores

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        from qonnx.core.onnx_exec import execute_onnx

        pixels = batch.astype(np.float32) / np.float32(self.metadata.pixel_divisor)
        with sessions_of(self._threads):
            answers = execute_onnx(self._graph, {self._input: pixels})[self._output]
        return answers * np.float32(self.metadata.output_scale)

    def _check_metadata(self, path: Path) -> None:
        for name, said in (
            (self._input, (self._batch_size, *self.image_shape)),
            (self._output, (self._batch_size, self.num_classes)),
        ):
            shape = tuple(self._graph.get_tensor_shape(name) or ())
            if shape != said:
                raise GraphError(
                    f"{path} carries damaged metadata: {name} has shape {shape}, the metadata say "
                    f"{said}; export it again"
                )
