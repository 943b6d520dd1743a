# SPDX-License-Identifier: BSD-3-Clause
"""What a build folder says about itself: `manifest.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.files import write_json

__all__ = ["FORMAT", "MANIFEST_FILE", "Manifest", "build_versions"]

FORMAT = 1
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A build folder.

    Attributes:
        model: name of the network's architecture.
        data: name of the data set that it was trained on; ``"unknown"`` where nobody said.
        model_sha256: of the integer graph, ``model.onnx``.
        exported_sha256: of the exported graph that it was made from.
        board: its name.
        part: the board's device.
        fps: frames per second that were asked for.
        clock_ns: clock period in ns.
        fifos: how the depths of the FIFOs were chosen.
        versions: of what made the folder.
        steps: those that are finished, in order.
    """

    model: str
    data: str
    model_sha256: str
    exported_sha256: str
    board: str
    part: str
    fps: float
    clock_ns: float
    fifos: str
    versions: dict[str, str] = field(default_factory=dict)
    steps: tuple[str, ...] = ()

    def differences(self, other: Manifest) -> list[str]:
        """Name the settings in which another build differs; steps do not count."""
        mine, theirs = (asdict(replace(m, steps=())) for m in (self, other))
        return [
            f"{name} {mine[name]!r} instead of {theirs[name]!r}"
            for name in mine
            if name not in ("steps", "exported_sha256") and mine[name] != theirs[name]
        ]

    def finish(self, step: str, folder: Path) -> Manifest:
        """Return the manifest with one more finished step, and write it into ``folder``."""
        finished = replace(self, steps=(*self.steps, step))
        finished.write(folder)
        return finished

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into ``folder``."""
        write_json(folder / MANIFEST_FILE, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `manifest.json` of ``folder``.

        Raises:
            HardwareError: if there is none, it is damaged, or has another format.
        """
        file = folder / MANIFEST_FILE
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found = content.pop("format")
        except OSError as error:
            raise HardwareError(
                f"{folder} is no build folder ({MANIFEST_FILE}: {error.strerror}): make one with "
                "`divqat build`"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HardwareError(f"{file} is damaged: build into another folder") from error
        if found != FORMAT:
            raise HardwareError(
                f"{folder} is a build folder of format {found}, this version reads {FORMAT}: "
                "build into another folder"
            )
        try:
            if not isinstance(content["steps"], list):
                raise TypeError(content["steps"])
            return cls(**content | {"steps": tuple(content["steps"])})
        except (KeyError, TypeError) as error:
            raise HardwareError(f"{file} is damaged: build into another folder") from error

    def require(self, step: str, folder: Path) -> None:
        """Raise HardwareError unless a step is finished."""
        if step not in self.steps:
            raise HardwareError(
                f"{folder} is not built to the end (finished: {', '.join(self.steps) or 'nothing'}"
                f"; needed: {step}): go on with `divqat build` and the same settings"
            )


def build_versions() -> dict[str, str]:
    """Return the versions of what decides how a network is built."""
    from brevitas_divqat import __version__

    from ..finn_environment import finn_version

    return {"brevitas-divqat": __version__, "finn-plus": finn_version()}
