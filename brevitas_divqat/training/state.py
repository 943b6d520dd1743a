# SPDX-License-Identifier: BSD-3-Clause
"""The state of an unfinished training in one file, so that it can go on bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from brevitas_divqat.errors import CheckpointError
from brevitas_divqat.files import write_bytes

__all__ = ["load_state", "read_tensors", "save_state", "write_tensors"]


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
            f"the checkpoint {path} is damaged or was not written by divqat: train again"
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


def load_state(
    path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, criterion: object
) -> dict[str, Any]:
    """Restore what `save_state` wrote, in place, and return its ``info``.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another model.
    """
    tensors, info = read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "criterion": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, rest = name.partition(".")
        moments.setdefault(int(index), {})[rest] = tensor
    try:
        model.load_state_dict(parts["model"])
        optimizer.load_state_dict(
            {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
        )
        if isinstance(criterion, nn.Module):
            criterion.load_state_dict(parts["criterion"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {path} is of another model: {error}") from error
    return info
