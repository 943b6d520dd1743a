# SPDX-License-Identifier: BSD-3-Clause
"""The executor of the integer graph: what the hardware computes, on 8-bit kernels or on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.errors import GraphError
from brevitas_divqat.executors.base import DEFAULT_BATCH, check_batch_size, check_images
from brevitas_divqat.executors.int8 import compile_int8
from brevitas_divqat.executors.loading import GraphExecutor, check_same_answers, load_graph, opening
from brevitas_divqat.executors.reference import ReferenceExecutor
from brevitas_divqat.executors.sessions import in_batches, open_session, thread_count
from brevitas_divqat.executors.torch_integer import TorchInteger

__all__ = ["IntegerExecutor"]

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class IntegerExecutor(GraphExecutor):
    """Runs an integer graph in integer arithmetic.

    Its integers are those of ``execute_onnx`` on the integer graph.

    Args:
        path: a graph that `to_integer_graph` gave.
        batch_size: images per pass.
        device: ``"cpu"`` for onnxruntime's 8-bit kernels; any device of torch, as ``"cuda"``, for
            exact matrix products there.
        threads: batches that run at the same time on the CPU; by default OMP_NUM_THREADS or the
            number of cores.
        verify: compare with the reference on `sample_images` before the first answer.

    Attributes:
        metadata: the graph's `GraphMetadata`.
        sha256: of the file.

    Raises:
        GraphError: if the file is no integer graph, or the integers differ from the reference's.
        ConfigError: if a number is below 1, or there is no such device.
    """

    name = "integer"

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int = DEFAULT_BATCH,
        device: str = "cpu",
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        check_batch_size(batch_size)
        path = Path(path)
        wrapper, self.sha256, self.metadata = load_graph(path)
        if self.metadata.form != "integer":
            raise GraphError(
                f"{path} is an exported graph with float scales: give the integer graph that "
                "`divqat export` wrote beside it, or use --executor fast"
            )
        self._batch_size, self._threads = batch_size, thread_count(threads)
        with opening(path):
            if device == "cpu":
                session = open_session(compile_int8(wrapper), path, optimised=True)
                self._run: Run = lambda batch: session.run(None, {"pixels": batch})[0]
            else:
                self._run = TorchInteger(wrapper, device)
                self._threads = 1
            if verify:
                check_same_answers(self, ReferenceExecutor(path))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, K) scores of (N, C, H, W) images: integers times the output scale."""
        return self._outputs(images) * np.float32(self.metadata.output_scale)

    def integers(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the (N, K) integers that leave the accelerator for (N, C, H, W) images."""
        return self._outputs(images).astype(np.int32)

    def _outputs(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        check_images(images, self.image_shape)
        outputs = np.empty((len(images), self.num_classes), np.float32)
        in_batches(self._run, images, outputs, self._batch_size, self._threads)
        return outputs
