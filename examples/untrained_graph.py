# SPDX-License-Identifier: BSD-3-Clause
"""Check a network before training, and see what its accelerator will compute.

Builds a network with random weights, checks it against FINN's rules, exports it, translates it to
integers, and asks both graphs about noise. With `cnv 1.0 4 cnv-w4a4.onnx` (name, width, bits, file)
it writes a graph for `divqat bench executor`, whose speed does not depend on the weights.

Without arguments, a 2-bit LeNet-5 that is not kept; prints::

    FINN: 0 findings break it, 6 fall back to HLS
    exported graph: the fast executor gives execute_onnx's bits
    integer graph: 5 layers, accumulators of up to 20 bits
    labels that differ between the graphs: 0 of 256
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from qonnx.core.modelwrapper import ModelWrapper

from brevitas_divqat.executors import FastExecutor, IntegerExecutor
from brevitas_divqat.export import GraphMetadata, check, export_integer, export_qonnx
from brevitas_divqat.models import Precision, build
from brevitas_divqat.training import calibrate

if len(sys.argv) == 5:
    name, width, bits, file = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
else:
    folder = tempfile.TemporaryDirectory()
    name, width, bits, file = "lenet5", 1.0, 2, Path(folder.name) / "model.onnx"

torch.manual_seed(0)
shape = (3, 32, 32) if name == "cnv" else (1, 28, 28)
model = build(name, shape, 10, precision=Precision(bits, bits), width=width)
findings = [finding.severity for finding in check(model, shape)]
print(
    f"FINN: {findings.count('breaks FINN')} findings break it, "
    f"{findings.count('falls back to HLS')} fall back to HLS"
)

noise = np.random.default_rng(0).integers(0, 256, (256, *shape), dtype=np.uint8)
model.train()
model(torch.from_numpy(noise).float() / 256)  # statistics for BatchNorm
calibrate(model, noise)
classes = tuple(f"class {i}" for i in range(10))
metadata = GraphMetadata(shape, 256.0, classes, model=name, width=width)
exported = FastExecutor(export_qonnx(model, file, metadata))  # or GraphError: it compares itself
print("exported graph: the fast executor gives execute_onnx's bits")

integer_file = export_integer(file)
graph = ModelWrapper(str(integer_file))
sums = [node.output[0] for node in graph.graph.node if node.op_type in ("Conv", "MatMul")]
widest = max(graph.get_tensor_datatype(tensor).bitwidth() for tensor in sums)
print(f"integer graph: {len(sums)} layers, accumulators of up to {widest} bits")

integer = IntegerExecutor(integer_file)
differing = (exported(noise).argmax(1) != integer(noise).argmax(1)).sum()
print(f"labels that differ between the graphs: {differing} of 256")
