# SPDX-License-Identifier: BSD-3-Clause
"""Which steps of a folder are finished: an interrupted run goes on after the last of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brevitas_divqat.files import write_json

from .watching import file_hash

__all__ = ["Steps", "step_key"]

STEPS_FILE = "steps.json"


def step_key(*inputs: str | Path | Sequence[str] | Mapping[str, str]) -> str:
    """Return a hash of what goes into a step: texts, lists and tables of them, files' contents."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            digest.update(f"{item.name}\n{file_hash(item)}\n".encode())
        else:
            digest.update(json.dumps(item).encode())
    return digest.hexdigest()


class Steps:
    """The finished steps of a folder.

    A step counts as finished where what went in is the same (its key), and what came out is still
    there, unchanged.

    Args:
        folder: holds ``steps.json`` and the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self, step: str, key: str) -> dict[str, float] | None:
        """Return the numbers that were noted with a finished step, or None if it is to be done."""
        try:
            record = self._read()[step]
            files = {self.folder / name: digest for name, digest in record["files"].items()}
            numbers = dict(record["numbers"])
            same = record["key"] == key
        except (KeyError, TypeError, AttributeError, ValueError):
            return None  # not done, or the record is damaged
        whole = all(file.is_file() and file_hash(file) == digest for file, digest in files.items())
        return numbers if same and whole else None

    def finish(self, step: str, key: str, results: Sequence[str], **numbers: float) -> None:
        """Note that a step is finished."""
        record = {
            "key": key,
            "files": {name: file_hash(self.folder / name) for name in results},
            "numbers": numbers,
        }
        write_json(self.folder / STEPS_FILE, self._read() | {step: record})

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / STEPS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # nothing is finished
        return content if isinstance(content, dict) else {}
