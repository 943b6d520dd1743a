# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints in the form of Brevitas' BNN-PYNQ trainer, with what a resumed training needs.

To Brevitas' four entries (``state_dict``, ``optim_dict``, ``epoch``, ``best_val_acc``), which it
goes on finding where it looks for them, comes a fifth, ``divqat``, that it does not look at.
"""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_divqat.bnn_pynq.networks import Network
from brevitas_divqat.errors import CheckpointError
from brevitas_divqat.files import write_bytes
from brevitas_divqat.seeding import seeded

__all__ = [
    "check_same_training",
    "load_reference",
    "load_weights",
    "random_state",
    "read_package",
    "restore_random_state",
    "restore_statistics",
    "statistics",
    "write_package",
]

PREFIX = "module."
NAMED = 3


def write_package(path: Path, package: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    content = io.BytesIO()
    torch.save(dict(package), content)
    write_bytes(path, content.getvalue())


def read_package(path: Path) -> dict[str, Any]:
    """Read a checkpoint, of this program or of Brevitas', or a bare state_dict, onto the CPU.

    Returns:
        At least ``state_dict``, without the prefix of ``DataParallel``.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds no state_dict.
    """
    try:
        package = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of PyTorch tensors: give a best.tar, a "
            "checkpoint.tar or a .pth with a state_dict"
        ) from error
    if isinstance(package, Mapping) and "state_dict" not in package:
        package = {"state_dict": package}
    state = package.get("state_dict") if isinstance(package, Mapping) else None
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise CheckpointError(f"{path} holds no state_dict: give a best.tar or a checkpoint.tar")
    return dict(package) | {"state_dict": {k.removeprefix(PREFIX): v for k, v in state.items()}}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path, *, strict: bool) -> int:
    """Load a state_dict, before an optimizer is made: Brevitas re-creates quantizers here.

    Args:
        model: changed in place.
        state: its weights.
        path: where they come from, for the messages.
        strict: refuse entries that the model does not have, too.

    Returns:
        How many entries were of no use to the model.

    Raises:
        CheckpointError: if entries are missing or have other shapes.
    """
    try:
        result = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        shapes = str(error).partition("\n")[2]
        raise CheckpointError(
            f"{path} is of another network ({' '.join(shapes.split())[:200]}): give the --network "
            "that it was trained with"
        ) from error
    if result.missing_keys:
        raise CheckpointError(
            f"{path} lacks {_named(result.missing_keys)}: it is of another --network, or was "
            "written before the activation scales were there; give one that was written later"
        )
    if strict and result.unexpected_keys:
        raise CheckpointError(
            f"{path} holds {_named(result.unexpected_keys)}, which the network does not have: give "
            "the --network that it was trained with, or leave out --strict"
        )
    return len(result.unexpected_keys)


def _named(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def check_same_training(
    package: Mapping[str, Any],
    path: Path,
    network: Network,
    *,
    full_precision: bool,
    validation: int | None,
) -> None:
    """Refuse a checkpoint whose tensors would fit a training that it is not of.

    The quantizers of FC and CNV hold no tensors, so that the names and shapes in a checkpoint tell
    neither its bit widths nor whether it is of the full-precision twin.

    Args:
        package: what `read_package` returned; one of Brevitas' own does not say what it is of.
        path: its file.
        network: that it must be of.
        full_precision: whether it must be of the twin.
        validation: how many images must have been held out; None where it does not matter.

    Raises:
        CheckpointError: naming what differs.
    """
    of = package.get("divqat")
    if of is None:
        # Brevitas trains quantized networks, on all images.
        of = {"full_precision": False, "validation": 0, "network": network.identity}
    if of["full_precision"] != full_precision:
        raise CheckpointError(
            f"{path} is of the full-precision twin: add --divqat_float, or give a quantized one"
            if of["full_precision"]
            else f"{path} is of the quantized network: leave out --divqat_float, or give the twin's"
        )
    quantized = {} if full_precision else network.identity
    for key, value in quantized.items():
        if of["network"].get(key) != value:
            raise CheckpointError(
                f"{path} is of a network with {key} {of['network'].get(key)}, {network.name} has "
                f"{value}: give the --network that it was trained with"
            )
    if validation is not None and of["validation"] != validation:
        raise CheckpointError(
            f"{path} was trained with --divqat_validation {of['validation']}, got {validation}: "
            "give the same, or images that were trained on would select the best weights"
        )


def load_reference(path: Path, network: Network) -> nn.Module:
    """Load the full-precision twin of a network; the global generators stay as they are.

    Raises:
        CheckpointError: if the file is missing or damaged, or of another or a quantized network.
    """
    package = read_package(path)
    remedy = f"train the twin with --network {network.name} --divqat_float and give its best.tar"
    if not package.get("divqat", {}).get("full_precision", "optim_dict" not in package):
        raise CheckpointError(
            f"--divqat_reference {path} is of a quantized network, not of a full-precision twin: "
            + remedy
        )
    with seeded(0):
        model = network.build(full_precision=True)
    try:
        load_weights(model, package["state_dict"], path, strict=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"--divqat_reference does not fit {network.name}: {remedy}; {error}"
        ) from error
    return model


def random_state() -> dict[str, Any]:
    """Return the state of the global generators, as what ``weights_only`` lets through."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators into the state that `random_state` returned."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def statistics(model: nn.Module) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Return what unfinished activation quantizers know beyond their ``state_dict``.

    In its first 300 training steps such a quantizer averages statistics. Brevitas saves the average
    as if it were the final scale, and a loaded quantizer would stop averaging.
    """
    return {
        name: (module.counter, module.buffer.clone(), module.value.detach().clone())
        for name, module in model.named_modules()
        if hasattr(module, "collect_stats_steps") and module.counter <= module.collect_stats_steps
    }


def restore_statistics(model: nn.Module, saved: Mapping[str, tuple[int, Tensor, Tensor]]) -> None:
    """Let the quantizers go on averaging where `statistics` found them."""
    for name, (counter, buffer, value) in saved.items():
        module: Any = model.get_submodule(name)
        module.counter = counter
        module.buffer.copy_(buffer)
        module.value.data.copy_(value)
