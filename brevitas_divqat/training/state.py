# SPDX-License-Identifier: BSD-3-Clause
"""The state of an unfinished training in one file, so that it can go on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from brevitas_divqat.errors import CheckpointError
from brevitas_divqat.files import write_bytes

__all__ = ["State", "load_state", "read_tensors", "save_state", "write_tensors"]


def write_tensors(path: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write tensors and a JSON-serialisable record into one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, metadata={"info": json.dumps(info)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})["info"])
            return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged or was not written by divqat: delete its "
            "folder and train again"
        ) from error


def save_state(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: object,
    info: dict[str, Any],
) -> None:
    """Write all that the next epoch depends on.

    Args:
        path: the file.
        model: its ``state_dict`` is kept.
        optimizer: its per-parameter tensors are kept; its settings come from the configuration.
        criterion: its ``state_dict`` is kept where it is a module.
        info: the epoch and the history.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    if isinstance(criterion, nn.Module):
        tensors |= {f"criterion.{name}": t for name, t in criterion.state_dict().items()}
    write_tensors(path, tensors, info)


@dataclass(frozen=True)
class State:
    """What `save_state` wrote: tensors by the part they belong to, and the record beside them."""

    path: Path
    parts: Mapping[str, Mapping[str, Tensor]]
    info: dict[str, Any]

    def restore_model(self, model: nn.Module) -> None:
        """Load the weights, before an optimizer is made.

        Brevitas makes its quantizers anew in ``load_state_dict``, and with them the parameters that
        are their scales: an optimizer made earlier would go on with the old ones.
        """
        self._load(model, self.parts["model"])

    def restore_training(self, optimizer: torch.optim.Optimizer, criterion: object) -> None:
        """Load the optimizer's tensors and the criterion's state."""
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.parts["optimizer"].items():
            index, _, rest = name.partition(".")
            moments.setdefault(int(index), {})[rest] = tensor
        groups = optimizer.state_dict()["param_groups"]
        self._load(optimizer, {"state": moments, "param_groups": groups})
        if isinstance(criterion, nn.Module):
            self._load(criterion, self.parts["criterion"])

    def _load(self, target: Any, state: Mapping[str, Any]) -> None:
        try:
            target.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint {self.path} is of another model or loss: delete its folder "
                "and train again"
            ) from error


def load_state(path: Path) -> State:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: if the file is missing, damaged, or no state of a training.
    """
    tensors, info = read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "criterion": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts or "history" not in info:
            raise CheckpointError(
                f"{path} is no state of a training: delete its folder and train again"
            )
        parts[part][rest] = tensor
    return State(path, parts, info)
