# SPDX-License-Identifier: BSD-3-Clause
"""Networks rebuilt from the checkpoints of `divqat-bnn-pynq-train` alone."""

from __future__ import annotations

from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigFileError
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_divqat.bnn_pynq.checkpoints import load_weights, read_package, restore_statistics
from brevitas_divqat.bnn_pynq.networks import BIT_WIDTHS, CHANNELS, Network
from brevitas_divqat.errors import CheckpointError
from brevitas_divqat.seeding import seeded

__all__ = ["load_network"]

SIDES = {"MNIST": (1, 28, 28), "CIFAR10": (3, 32, 32)}
"""Shapes of the images, without the batch."""


def load_network(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """Rebuild the network that a checkpoint is of; the global generators stay as they are.

    Args:
        path: a ``.tar`` that `divqat-bnn-pynq-train` wrote. Those of Brevitas' own trainer do not
            say of which network they are.

    Returns:
        The network, on the CPU, in evaluation mode, its quantizers as far in their statistics as
        they were; and the shape of one image.

    Raises:
        CheckpointError: if it is no such file, or its weights do not fit what it says it is of.
    """
    package = read_package(path)
    own = package.get("divqat")
    if not isinstance(own, Mapping) or not isinstance(own.get("network"), Mapping):
        raise CheckpointError(f"{path} does not say of which network it is")
    try:
        network = _network(path, own["network"])
        shape = SIDES[network.config.get("MODEL", "DATASET")]
        with seeded(0):
            model = network.build(full_precision=bool(own["full_precision"]))
    except (ConfigFileError, KeyError, TypeError, ValueError, SyntaxError) as error:
        line = " ".join(str(error).split())
        raise CheckpointError(f"{path} is of a network that cannot be built ({line})") from error
    load_weights(model, package["state_dict"], path, strict=True)
    restore_statistics(model, own.get("statistics", {}))
    return model.eval(), shape


def _network(path: Path, identity: Mapping[str, Any]) -> Network:
    """Make the description again of which `Network.identity` is the part that matters."""
    arch = identity["ARCH"]
    bits = {key: value for key, value in identity.items() if key in BIT_WIDTHS[arch]}
    model = {key: value for key, value in identity.items() if key not in bits}
    if arch in CHANNELS:
        model["IN_CHANNELS"] = str(CHANNELS[arch])
    config = ConfigParser()
    config.read_dict({"MODEL": model, "QUANT": bits})
    return Network(path.stem, config, in_zoo=False)
