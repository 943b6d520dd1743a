# SPDX-License-Identifier: BSD-3-Clause
"""Two processes that share a batch by DistributedDataParallel train as one with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROCESS = """
import sys
from pathlib import Path
import torch
from torch import nn
from brevitas.nn import QuantLinear, QuantReLU
from brevitas_divqat.loss import DivQATLoss
from brevitas_divqat.quant import Int4WeightPerTensorFloat, Uint4ActPerTensorFloat

rank, world, folder, wrapped_first = (
    int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "ddp"
)
torch.manual_seed(0)
images, labels = torch.rand(3, 8, 4), torch.randint(5, (3, 8))
reference = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
class Two(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        features = self.inner[:2](x)
        return self.inner[2](features), features

model = nn.Sequential(
    QuantLinear(4, 8, bias=False, weight_quant=Int4WeightPerTensorFloat),
    QuantReLU(act_quant=Uint4ActPerTensorFloat, collect_stats_steps=1),
    QuantLinear(8, 5, bias=False, weight_quant=Int4WeightPerTensorFloat),
)
with torch.no_grad():
    model(images[0]), model(images[0])
model = Two(model)
trained = model
if world > 1:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world
    )
    trained = nn.parallel.DistributedDataParallel(model, static_graph=wrapped_first)
criterion = DivQATLoss(reference, preset="F3", model=trained if wrapped_first else model, alpha=0.3)
optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
for x, y in zip(images, labels):
    part = slice(rank, None, world)
    optimizer.zero_grad()
    logits, features = trained(x[part])
    criterion(logits, y[part]).backward()
    optimizer.step()
assert criterion.report.divergence > 0
torch.save(model.state_dict(), folder / f"weights-{world}-{rank}.pt")
if world > 1:
    torch.distributed.destroy_process_group()
"""


def train(world: int, folder: Path, watched: str) -> list[dict[str, torch.Tensor]]:
    """Run one process for each part of the batch and return their weights."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROCESS]
            + [str(rank), str(world), str(folder), watched],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [
        torch.load(folder / f"weights-{world}-{rank}.pt", weights_only=True)
        for rank in range(world)
    ]


@pytest.mark.parametrize("watched", ["ddp", "module"])
def test_two_processes_train_what_one_trains(tmp_path: Path, watched: str) -> None:
    first, second = train(2, tmp_path, watched)
    (alone,) = train(1, tmp_path, "module")
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        # Gradients are averages of two halves, which round otherwise than one mean.
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
