# SPDX-License-Identifier: BSD-3-Clause
"""The networks that can be trained: those of Brevitas' zoo, and a user's own ``.ini`` file."""

from __future__ import annotations

import ast
import math
from configparser import ConfigParser
from configparser import Error as ConfigFileError
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from brevitas_examples.bnn_pynq.models import (  # type: ignore[import-untyped]
    get_model_cfg,
    model_impl,
    model_with_cfg,
)
from torch import hub, nn

from brevitas_divqat.bnn_pynq.twins import float_twin
from brevitas_divqat.errors import CheckpointError, ConfigError

__all__ = ["Network", "plain", "read_network", "zoo_names"]

BIT_WIDTHS = {
    "FC": ("WEIGHT_BIT_WIDTH", "ACT_BIT_WIDTH", "IN_BIT_WIDTH"),
    "CNV": ("WEIGHT_BIT_WIDTH", "ACT_BIT_WIDTH", "IN_BIT_WIDTH"),
    "RESNET18": ("WEIGHT_BIT_WIDTH", "ACT_BIT_WIDTH"),
}
# What the architectures' own numbers fit: image sizes and channels are fixed in their classes.
DATASETS = {"FC": "MNIST", "CNV": "CIFAR10", "RESNET18": "CIFAR10"}
CHANNELS = {"FC": 1, "CNV": 3}
CLASSES = 10
MAX_BITS = 32


@dataclass(frozen=True)
class Network:
    """A network as an ``.ini`` file describes it.

    Attributes:
        name: in the names of folders and files.
        config: the file's content, checked.
        in_zoo: whether Brevitas finds it by its name.
    """

    name: str
    config: ConfigParser
    in_zoo: bool

    @property
    def arch(self) -> str:
        """FC, CNV or RESNET18."""
        return self.config.get("MODEL", "ARCH")

    @property
    def bit_widths(self) -> dict[str, int]:
        """Bits of weights, activations and, for FC and CNV, inputs."""
        return {key: self.config.getint("QUANT", key) for key in BIT_WIDTHS[self.arch]}

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree with to be of this network."""
        keys = ("ARCH", "DATASET", "NUM_CLASSES", "OUT_FEATURES")
        there = (key for key in keys if self.config.has_option("MODEL", key))
        model = {key: plain(self.config.get("MODEL", key)) for key in there}
        return model | {key: str(bits) for key, bits in self.bit_widths.items()}

    def build(self, *, pretrained: bool = False, full_precision: bool = False) -> nn.Module:
        """Build the network, quantized or as its full-precision twin.

        It draws on torch's global generator exactly as Brevitas does.

        Args:
            pretrained: load the weights that PRETRAINED_URL names.
            full_precision: build the twin instead.

        Raises:
            CheckpointError: if the pretrained weights cannot be fetched or do not fit.
        """
        if full_precision:
            return float_twin(self.config)
        try:
            if self.in_zoo:
                return model_with_cfg(self.name, pretrained)[0]
            model = model_impl[self.arch](self.config)
            if pretrained:
                url = self.config.get("MODEL", "PRETRAINED_URL")
                model.load_state_dict(hub.load_state_dict_from_url(url, map_location="cpu"))
            return model
        except (OSError, RuntimeError, ConfigFileError) as error:
            if not pretrained:
                raise
            raise CheckpointError(
                f"cannot load the pretrained weights of {self.name} "
                f"({' '.join(str(error).split())}): leave out --pretrained, or give a file with "
                "--resume"
            ) from error


def plain(value: str) -> str:
    """Write a value as Python does, so that ``[32,16]`` and ``[32, 16]  # comment`` are equal."""
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value


def zoo_names() -> list[str]:
    """List the networks that come with Brevitas."""
    folder = resources.files("brevitas_examples.bnn_pynq") / "cfg"
    names = (Path(entry.name) for entry in folder.iterdir())
    return sorted(name.stem.upper() for name in names if name.suffix == ".ini")


def read_network(name: str) -> Network:
    """Read a network's description.

    Args:
        name: of the zoo, in either case, or the path of an ``.ini`` file.

    Raises:
        ConfigError: if there is none of that name, or the file does not describe a network.
    """
    if name.lower().endswith(".ini"):
        network = Network(Path(name).stem, _read(Path(name)), in_zoo=False)
    elif name.upper() in zoo_names():
        network = Network(name, get_model_cfg(name), in_zoo=True)
    else:
        raise ConfigError(
            f"unknown --network {name!r}: choose from {', '.join(zoo_names())}, or give the path "
            "of an .ini file"
        )
    _check(network, name)
    return network


def _read(path: Path) -> ConfigParser:
    config = ConfigParser(interpolation=None)  # a % is a %
    try:
        config.read_string(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read --network {path}: {error.strerror}") from error
    except (ConfigFileError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--network {path} is no .ini file: {' '.join(str(error).split())}"
        ) from error
    return config


def _check(network: Network, where: str) -> None:
    """Refuse what the architecture's class would trip over."""

    def text(section: str, key: str) -> str:
        try:
            return network.config.get(section, key)
        except ConfigFileError as error:
            raise ConfigError(f"{where}: {key} is missing in section [{section}]") from error

    def number(section: str, key: str, least: int, most: float = math.inf) -> int:
        value = text(section, key)
        if not value.isdecimal() or not least <= int(value) <= most:
            limit = f" and at most {most}" if math.isfinite(most) else ""
            raise ConfigError(
                f"{where}: {key} is {value!r}, it must be a whole number of at least {least}{limit}"
            )
        return int(value)

    arch = text("MODEL", "ARCH")
    if arch not in DATASETS:
        raise ConfigError(f"{where}: ARCH is {arch!r}, choose from {list(DATASETS)}")
    if text("MODEL", "DATASET") != DATASETS[arch]:
        raise ConfigError(
            f"{where}: DATASET is {text('MODEL', 'DATASET')!r}, the images that ARCH {arch} takes "
            f"are those of {DATASETS[arch]}"
        )
    number("MODEL", "NUM_CLASSES", CLASSES)
    if arch in CHANNELS and number("MODEL", "IN_CHANNELS", 1) != CHANNELS[arch]:
        raise ConfigError(f"{where}: IN_CHANNELS must be {CHANNELS[arch]} for ARCH {arch}")
    if arch == "FC":
        _check_features(text("MODEL", "OUT_FEATURES"), where)
    for key in BIT_WIDTHS[arch]:
        number("QUANT", key, 1, MAX_BITS)


def _check_features(value: str, where: str) -> None:
    try:
        features = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        features = None
    if not isinstance(features, list) or not all(type(f) is int and f > 0 for f in features):
        raise ConfigError(f"{where}: OUT_FEATURES is {value!r}, it must be like [64, 64, 64]")
