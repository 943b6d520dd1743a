# SPDX-License-Identifier: BSD-3-Clause
"""The fast executor of the exported graph: one session, the reference's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import GraphError
from brevitas_divqat.executors.base import DEFAULT_BATCH, check_batch_size, check_images
from brevitas_divqat.executors.loading import GraphExecutor, check_same_answers, load_graph, opening
from brevitas_divqat.executors.lowering import lowered
from brevitas_divqat.executors.reference import ReferenceExecutor
from brevitas_divqat.executors.sessions import in_batches, open_session, thread_count

__all__ = ["FastExecutor"]

ROWS_AT_ONCE = 4
"""onnxruntime multiplies matrices by vectors (a layer of one output) in blocks of this many rows,
and rounds those that remain differently; batches of `ReferenceExecutor` leave none."""


class FastExecutor(GraphExecutor):
    """Runs an exported graph whole, in one onnxruntime session.

    The scores are those of `ReferenceExecutor`, bit for bit, whatever the batch: onnxruntime's
    kernels of single nodes are kept, each on one thread, and its optimisations, which round sums in
    other places, are off.

    Args:
        path: a graph that `export_qonnx` wrote.
        batch_size: images per pass; those of a few dozen images stay in the processor's caches.
        threads: batches that run at the same time; by default OMP_NUM_THREADS or the number of
            cores.
        verify: compare with the reference on `sample_images` before the first answer.

    Attributes:
        metadata: the graph's `GraphMetadata`.
        sha256: of the file.

    Raises:
        GraphError: if the file is no graph that this executor can run, or its scores differ from
            the reference's.
        ConfigError: if a number is below 1.
    """

    name = "fast"

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int = DEFAULT_BATCH,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        check_batch_size(batch_size)
        path = Path(path)
        wrapper, self.sha256, self.metadata = load_graph(path)
        if self.metadata.form != "exported":
            raise GraphError(f"{path} is an integer graph: use --executor integer, or reference")
        self._batch_size, self._threads = batch_size, thread_count(threads)
        with opening(path):
            self._session = open_session(lowered(wrapper), path, optimised=False)
            (self._input,) = (tensor.name for tensor in self._session.get_inputs())
            if verify:
                check_same_answers(self, ReferenceExecutor(path))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, K) scores of (N, C, H, W) images."""
        check_images(images, self.image_shape)
        scores = np.empty((len(images), self.num_classes), np.float32)
        in_batches(self._run, images, scores, self._batch_size, self._threads)
        return scores * np.float32(self.metadata.output_scale)

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(batch)
        filled = np.zeros((count + -count % ROWS_AT_ONCE, *self.image_shape), np.float32)
        filled[:count] = batch
        pixels = filled / np.float32(self.metadata.pixel_divisor)
        answers: NDArray[np.float32] = self._session.run(None, {self._input: pixels})[0]
        return answers[:count]
