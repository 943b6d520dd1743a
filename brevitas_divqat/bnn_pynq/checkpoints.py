# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints in the form of Brevitas' BNN-PYNQ trainer, with what a resumed training needs.

To Brevitas' four entries (``state_dict``, ``optim_dict``, ``epoch``, ``best_val_acc``), which it
goes on finding where it looks for them, comes a fifth, ``divqat``, that it does not look at.
"""

from __future__ import annotations

import io
import math
import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_divqat.bnn_pynq.networks import Network, plain
from brevitas_divqat.errors import CheckpointError
from brevitas_divqat.files import write_bytes
from brevitas_divqat.inspection import collecting
from brevitas_divqat.seeding import seeded

__all__ = [
    "Objective",
    "Reference",
    "check_resumable",
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
# The entry of this program. Older ones lack what was added.
OWN = {
    "network": Mapping,
    "full_precision": bool,
    "validation": int,
    "objective": Mapping,
    "step": int,
    "statistics": Mapping,
    "random": Mapping,
    "criterion": Mapping,
}
ADDED = {"objective", "criterion"}
# What torch.load raises, depending on where a file is damaged.
UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    pickle.UnpicklingError,
)
NAMED = 3

Objective = Mapping[str, str | float | None]
"""What a training minimises: the resolved value of each flag that says so, under its name; of
``--divqat_reference`` the SHA-256 of the file. Flags without effect are left out."""


@dataclass(frozen=True)
class Reference:
    """A full-precision twin, loaded.

    Attributes:
        model: on the CPU.
        digest: SHA-256 of its file, in hexadecimal digits.
        verified: whether the file says that it is of a full-precision twin.
    """

    model: nn.Module
    digest: str
    verified: bool


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
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    try:
        # Of bytes, so that an OSError means here what the others do.
        package = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
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
    if "divqat" in package and not _is_own_entry(package["divqat"]):
        raise _damaged(path, "divqat")
    return dict(package) | {"state_dict": {k.removeprefix(PREFIX): v for k, v in state.items()}}


def _is_own_entry(own: Any) -> bool:
    """Tell whether an entry ``divqat`` says what it is of, and what else it holds has its form."""
    if not isinstance(own, Mapping) or not {"network", "full_precision"} <= own.keys():
        return False
    if not all(isinstance(own[key], kind) for key, kind in OWN.items() if key in own):
        return False
    return all(isinstance(value, str) for value in own["network"].values())


def _damaged(path: Path, entry: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: its entry {entry!r} is not what a training writes; give another "
        "checkpoint"
    )


def check_resumable(package: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint after which a training cannot go on.

    Raises:
        CheckpointError: naming what is missing or damaged.
    """
    missing = {"optim_dict", "epoch", "best_val_acc"} - package.keys()
    if missing:
        raise CheckpointError(
            f"{path} lacks {sorted(missing)}, without which a training cannot go on: give a "
            "checkpoint.tar or best.tar of a training, or only --evaluate it"
        )
    epoch, accuracy = package["epoch"], package["best_val_acc"]
    if type(epoch) is not int or epoch < 1:
        raise _damaged(path, "epoch")
    if type(accuracy) not in (int, float) or not math.isfinite(accuracy):
        raise _damaged(path, "best_val_acc")
    if "divqat" in package and OWN.keys() - package["divqat"].keys() - ADDED:
        raise _damaged(path, "divqat")


def load_criterion(criterion: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load what a criterion has learnt, which is nothing in checkpoints without an entry of it.

    Raises:
        CheckpointError: if it is not of such a criterion.
    """
    try:
        criterion.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, "criterion") from error


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
    objective: Objective | None,
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
        objective: what must have been minimised; None where it does not matter. Files that do not
            say it pass.

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
        if plain(of["network"].get(key, "")) != value:
            raise CheckpointError(
                f"{path} is of a network with {key} {of['network'].get(key)}, {network.name} has "
                f"{value}: give the --network that it was trained with"
            )
    if validation is not None and of["validation"] != validation:
        raise CheckpointError(
            f"{path} was trained with --divqat_validation {of['validation']}, got {validation}: "
            "give the same, or images that were trained on would select the best weights"
        )
    if objective is not None and "objective" in of:
        _check_same_objective(of["objective"], objective, path)


def _check_same_objective(stored: Objective, given: Objective, path: Path) -> None:
    # Alpha comes before the flags that only have an effect with it.
    for flag in (*given, *stored):
        if stored.get(flag) != given.get(flag):
            kind = "the SHA-256 " if flag == "--divqat_reference" else ""
            raise CheckpointError(
                f"{path} was trained with {flag} {kind}{stored.get(flag)}, got {given.get(flag)}: "
                "give the --loss and the --divqat_* flags that it was trained with, or start a new "
                "training without --resume"
            )


def load_reference(path: Path, network: Network) -> Reference:
    """Load the full-precision twin of a network; the global generators stay as they are.

    A bare state_dict does not say what it is of. Those of FC and CNV networks and of their twins
    have the same names and shapes, so that a quantized one passes, as not verified.

    Raises:
        CheckpointError: if the file is missing or damaged, or of another or a quantized network.
    """
    package = read_package(path)
    remedy = f"train the twin with --network {network.name} --divqat_float and give its best.tar"
    verified = "divqat" in package and package["divqat"]["full_precision"]
    if not verified and ("divqat" in package or "optim_dict" in package):
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
    return Reference(model, sha256(path.read_bytes()).hexdigest(), verified)


def random_state() -> dict[str, Any]:
    """Return the state of the global generators, as what ``weights_only`` lets through."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators into the state that `random_state` returned.

    Raises:
        CheckpointError: if it is no such state.
    """
    try:
        random.setstate(state["python"])
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            "the checkpoint is damaged: its entry 'random' is no state of random generators; give "
            "another checkpoint"
        ) from error


def statistics(model: nn.Module) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Return what unfinished activation quantizers know beyond their ``state_dict``.

    In its first 300 training steps such a quantizer averages statistics. Brevitas saves the average
    as if it were the final scale, and a loaded quantizer would stop averaging.
    """
    return {
        name: (module.counter, module.buffer.clone(), module.value.detach().clone())
        for name, module in collecting(model)
    }


def restore_statistics(model: nn.Module, saved: Mapping[str, tuple[int, Tensor, Tensor]]) -> None:
    """Let the quantizers go on averaging where `statistics` found them.

    Raises:
        CheckpointError: if the network has no such quantizers.
    """
    for name, entry in saved.items():
        try:
            module: Any = model.get_submodule(name)
            module.counter, buffer, value = entry
            module.buffer.copy_(buffer)
            module.value.data.copy_(value)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint is damaged: its entry 'statistics' does not fit {name!r} of the "
                "network; give another checkpoint"
            ) from error
