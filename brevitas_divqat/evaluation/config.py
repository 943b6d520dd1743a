# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a run: one dataclass per concern, one flat file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from brevitas_divqat.attacks import AttackConfig
from brevitas_divqat.data import DataConfig
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.executors import ExecutorConfig
from brevitas_divqat.files import write_text
from brevitas_divqat.loss import LossConfig
from brevitas_divqat.models import ModelConfig
from brevitas_divqat.training import TrainingConfig, check_outlier_images
from brevitas_divqat.victims import OutputInterface

__all__ = ["RunConfig", "read_yaml", "settings_in", "settings_of"]

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
PLACES = frozenset({"data_root", "download", "outlier_images"})
"""Settings that decide where the data come from, and no number: a training checks by itself that it
goes on with the same outlier images."""


@dataclass(frozen=True)
class RunConfig:
    """All that decides the numbers of a run.

    Attributes:
        data: the victim's data set and the thief's pools.
        model: architecture and bit widths.
        training: of the victims.
        loss: of DivQAT.
        interface: what the deployed graph shows.
        executor: what computes it.
        attack: the thief's resources.
        seed: of everything random but the splits of the data.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    interface: OutputInterface = field(default_factory=OutputInterface)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: it must be 0 or more")
        check_outlier_images(self.training.outlier_images, self.loss)

    def flat(self) -> dict[str, Any]:
        """Return every setting under its own name, as the command line names it."""
        settings: dict[str, Any] = {}
        for group in fields(self):
            value = getattr(self, group.name)
            settings |= {group.name: value} if group.name == "seed" else asdict(value)
        return {name: _plain(value) for name, value in settings.items()}

    @property
    def title(self) -> str:
        """A name for the run's folder, e.g. ``fashion-mnist-lenet5-w4a4-seed0``."""
        precision = self.model.precision
        bits = f"w{precision.weight}a{precision.activation}"
        return f"{self.data.data}-{self.model.model}-{bits}-seed{self.seed}"

    def write(self, folder: Path) -> None:
        """Write the resolved configuration into a run's folder."""
        write_text(folder / CONFIG_FILE, yaml.safe_dump(self.flat(), sort_keys=False))

    def names_in(self, *groups: str) -> set[str]:
        """Return the names of the settings of some fields of this class, and the seed's."""
        return {"seed"} | {f.name for g in groups for f in fields(getattr(self, g))}

    def check_same(self, folder: Path, names: Collection[str] | None = None) -> None:
        """Refuse to go on in a folder whose run had other settings.

        Where the data lie and how they got there may change; see also `settings_of`.

        Args:
            folder: of the run.
            names: of the settings that are compared; all by default.

        Raises:
            ConfigError: naming the settings that differ.
        """
        before, now = settings_of(folder), self.flat()
        changed = [
            f"{name} ({before.get(name)} -> {now.get(name)})"
            for name in sorted(before.keys() | now.keys() if names is None else names)
            if before.get(name) != now.get(name) and name not in PLACES
        ]
        if changed:
            raise ConfigError(
                f"{folder} holds a run with other settings: {', '.join(changed)}; give the same "
                "settings to go on in it, or another --out"
            )


def _plain(value: Any) -> Any:
    """Turn a setting into what YAML gives back."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def settings_of(folder: Path) -> dict[str, Any]:
    """Read the settings of the run in ``folder``.

    Executors, attacks, their choices and the images that judge came one after the other: a run from
    before one of them counts as having had its default; epochs were selected among all.

    Raises:
        ConfigError: see `read_yaml`.
    """
    groups = (ExecutorConfig(), AttackConfig(), LossConfig("F3"))
    later = {name: value for group in groups for name, value in asdict(group).items()}
    later |= {"judged_on": DataConfig().judged_on, "select": "any", "outlier_images": None}
    return {k: _plain(v) for k, v in later.items()} | dict(read_yaml(folder / CONFIG_FILE))


def settings_in(file: Path) -> Mapping[str, Any]:
    """Read settings from a file; a run's own stands for all that the run was made with.

    Raises:
        ConfigError: see `read_yaml`.
    """
    if file.name == CONFIG_FILE and (file.parent / ENVIRONMENT_FILE).is_file():
        return settings_of(file.parent)
    return read_yaml(file)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Read a mapping of setting names to values.

    Raises:
        ConfigError: if the file is missing, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: expected lines of the form `name: value`")
    return content
