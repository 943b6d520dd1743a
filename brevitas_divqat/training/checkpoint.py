# SPDX-License-Identifier: BSD-3-Clause
"""A finished model on disk: weights as safetensors, everything else as JSON beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_divqat.errors import CheckpointError, ConfigError
from brevitas_divqat.files import write_json
from brevitas_divqat.models import Precision, build
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training.state import read_tensors, write_tensors

__all__ = ["CheckpointInfo", "is_finished", "load_checkpoint", "save_checkpoint"]

SCHEMA = 1
WEIGHTS_FILE, INFO_FILE = "model.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a finished model is.

    Attributes:
        model: name of the architecture.
        width: its width factor.
        precision: bit widths; None in full precision.
        image_shape: (channels, height, width) of its images.
        class_names: one per logit.
        data: name of the data set.
        method: how it was trained, e.g. ``{"name": "divqat", "alpha": 0.04, …}``.
        seed: of the training.
        best_epoch: whose weights these are, from 1.
        validation_accuracy: of that epoch; None where no validation images were given.
        history: one record per epoch.
    """

    model: str
    width: float
    precision: Precision | None
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    data: str
    method: dict[str, Any]
    seed: int
    best_epoch: int
    validation_accuracy: float | None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def bits(self) -> dict[str, int]:
        """Bit widths by place; empty in full precision."""
        if self.precision is None:
            return {}
        return {
            "weight": self.precision.weight,
            "activation": self.precision.activation,
            "edge": self.precision.edge,
            "input": 8,
        }


def save_checkpoint(folder: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Write the weights, then the record that marks the model as finished."""
    write_tensors(folder / WEIGHTS_FILE, model.state_dict(), {})
    write_json(folder / INFO_FILE, {"schema": SCHEMA, **asdict(info)})


def is_finished(folder: Path) -> bool:
    """Tell whether ``folder`` holds a finished model."""
    return (folder / INFO_FILE).exists()


def load_checkpoint(folder: Path) -> tuple[nn.Module, CheckpointInfo]:
    """Rebuild a finished model, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: if the folder holds none, or it is damaged or of another version.
    """
    folder = Path(folder)
    info = _read_info(folder / INFO_FILE)
    try:
        with seeded(0):  # the weights are replaced; the global generator is not to move
            model = build(
                info.model,
                info.image_shape,
                len(info.class_names),
                precision=info.precision,
                width=info.width,
            )
    except (ConfigError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / INFO_FILE} is damaged: {error}; delete {folder} and train again"
        ) from error
    tensors, _ = read_tensors(folder / WEIGHTS_FILE)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} does not hold the weights that {INFO_FILE} describes: "
            f"delete {folder} and train again"
        ) from error
    return model.eval(), info


def _read_info(path: Path) -> CheckpointInfo:
    try:
        content = json.loads(path.read_text())
        schema = content.pop("schema")
        if content["precision"] is not None:
            content["precision"] = Precision(**content["precision"])
        content["image_shape"] = tuple(content["image_shape"])
        content["class_names"] = tuple(content["class_names"])
        if schema == SCHEMA:
            return CheckpointInfo(**content)
    except OSError as error:
        raise CheckpointError(
            f"no finished model in {path.parent} ({error.strerror}: {path.name}): make one with "
            "`divqat train`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: delete {path.parent} and train again") from error
    raise CheckpointError(f"{path} has schema {schema}, this version reads {SCHEMA}: train again")
