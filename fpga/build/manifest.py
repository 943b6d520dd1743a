# SPDX-License-Identifier: BSD-3-Clause
"""What a build folder says about itself: `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.files import write_json

from ..records import record, table_of
from ..rtl.layout import Layout

__all__ = [
    "FORMAT",
    "MANIFEST_FILE",
    "MODEL_FILE",
    "RTL_FOLDER",
    "Manifest",
    "build_versions",
]

FORMAT = 2
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
RTL_FOLDER = "rtl"
WITHOUT_HASHES = 1
"""The format that did not say which files a step left."""


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
        files: SHA-256 of each file that a finished step left, by step and by name in the folder.
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
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    def differences(self, other: Manifest) -> list[str]:
        """Name the settings and versions in which another build differs; steps do not count."""
        mine, theirs = asdict(self), asdict(other)
        found = [
            f"{name} {mine[name]!r} instead of {theirs[name]!r}"
            for name in mine
            if name not in ("versions", "steps", "files", "exported_sha256")
            and mine[name] != theirs[name]
        ]
        for package in sorted(self.versions.keys() | other.versions.keys()):
            one, two = (m.versions.get(package, "none") for m in (self, other))
            if one != two:
                found.append(f"{package} {one} instead of {two}")
        return found

    def finish(self, step: str, folder: Path, patterns: Iterable[str]) -> Manifest:
        """Return the manifest with one more finished step, and write it into ``folder``.

        Args:
            step: its name.
            folder: of the build.
            patterns: of the files that the step left, relative to ``folder``.
        """
        names = sorted(
            {
                path.relative_to(folder).as_posix()
                for pattern in patterns
                for path in folder.glob(pattern)
                if path.is_file()
            }
        )
        hashes = {name: _file_sha256(folder / name) for name in names}
        finished = replace(self, steps=(*self.steps, step), files=self.files | {step: hashes})
        finished.write(folder)
        return finished

    def intact(self, folder: Path, order: Sequence[str]) -> tuple[Manifest, str]:
        """Keep the finished steps whose files are all there as they were left.

        Args:
            folder: of the build.
            order: of the steps. Where a step is not kept, none behind it is.

        Returns:
            The manifest with the steps that are kept, and what is wrong with the first finished
            one that is not; empty where all are kept.
        """
        hashes: dict[str, str] = {}
        for step in self.steps:  # of a file that several steps wrote, the last one counts
            hashes |= self.files.get(step, {})
        kept: list[str] = []
        reason = ""
        for step in order:
            if step not in self.steps:
                break
            reason = _damage(folder, step, {n: hashes[n] for n in self.files.get(step, {})})
            if reason:
                break
            kept.append(step)
        files = {step: self.files[step] for step in kept}
        if not reason and len(kept) < len(self.steps):
            reason = f"{MANIFEST_FILE} names steps out of order ({', '.join(self.steps)})"
        return replace(self, steps=tuple(kept), files=files), reason

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
            without = ", without hashes of its files" if found == WITHOUT_HASHES else ""
            raise HardwareError(
                f"{folder} is a build folder of format {found}{without}; this version reads "
                f"{FORMAT}: build into another folder"
            )
        try:
            if not isinstance(content["steps"], list):
                raise TypeError(content["steps"])
            if not all(isinstance(step, str) for step in content["steps"]):
                raise TypeError(content["steps"])
            table_of(str, content["versions"])
            for hashes in table_of(dict, content["files"]).values():
                table_of(str, hashes)
            return record(cls, content | {"steps": tuple(content["steps"])})
        except (ValueError, KeyError, TypeError) as error:
            raise HardwareError(f"{file} is damaged: build into another folder") from error

    def require(self, step: str, folder: Path) -> None:
        """Raise HardwareError unless a step is finished."""
        if step not in self.steps:
            raise HardwareError(
                f"{folder} is not built to the end (finished: {', '.join(self.steps) or 'nothing'}"
                f"; needed: {step}): go on with `divqat build` and the same settings"
            )

    def require_rtl(self, folder: Path) -> None:
        """Raise HardwareError unless the RTL is finished, and is that of the graph beside it."""
        self.require("rtl", folder)
        if self.fifos == "measured":
            self.require("fifos", folder)
        file = folder / MODEL_FILE
        if not file.is_file():
            raise HardwareError(f"{file} is missing: build the folder again")
        found = _file_sha256(file)
        if found != self.model_sha256:
            raise HardwareError(
                f"{file} is not the graph that was built ({found[:12]} instead of "
                f"{self.model_sha256[:12]}): build the folder again"
            )
        if Layout.read(folder / RTL_FOLDER).model_sha256 != found:
            raise HardwareError(
                f"{folder / RTL_FOLDER} was made from another graph than {MODEL_FILE} beside it: "
                "build the folder again"
            )


def _file_sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _damage(folder: Path, step: str, hashes: dict[str, str]) -> str:
    """Say which file of a step is not as it was left; empty if all are."""
    if not hashes:
        return f"{MANIFEST_FILE} names no file of step {step}"
    for name, expected in hashes.items():
        try:
            if _file_sha256(folder / name) != expected:
                return f"{name} is changed"
        except (OSError, ValueError):  # no file, or no name of one
            return f"{name} is missing"
    return ""


def build_versions() -> dict[str, str]:
    """Return the versions of what decides how a network is built."""
    from brevitas_divqat import __version__

    from ..finn_environment import finn_version

    return {"brevitas-divqat": __version__, "finn-plus": finn_version()}
