# SPDX-License-Identifier: BSD-3-Clause
"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import ConfigError

__all__ = ["make_folder", "write_bytes", "write_json", "write_text"]


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents, and make sure that files can be written there.

    Raises:
        ConfigError: if the folder cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create the folder {path} ({error.strerror}): choose another with --out"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to the folder {path}: choose another with --out")
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: a reader sees the old file or the new one.

    Raises:
        ConfigError: if the folder cannot be written to.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror}): free or change it") from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` atomically, as indented JSON that refuses NaN and infinity."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
