# SPDX-License-Identifier: BSD-3-Clause
"""What a deployed graph carries so that it can be served without the code that trained it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from brevitas_divqat.errors import GraphError

__all__ = ["METADATA_KEY", "SCHEMA", "GraphForm", "GraphMetadata", "tool_versions"]

GraphForm = Literal["exported", "integer"]
METADATA_KEY = "brevitas_divqat"
SCHEMA = 1


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a graph computes."""
    names = ("brevitas-divqat", "brevitas", "torch", "onnx", "onnxruntime", "qonnx", "numpy")
    return {name: version(name) for name in names}


@dataclass(frozen=True)
class GraphMetadata:
    """How to serve a deployed graph, and where it comes from.

    Attributes:
        image_shape: (channels, height, width) of the 8-bit images that it takes.
        pixel_divisor: the graph's input is a pixel (0 … 255) divided by this.
        class_names: one name per score.
        form: ``"exported"``, with float scales, or ``"integer"``, what the hardware computes.
        output_scale: the host multiplies the graph's output by this.
        exported_sha256: of the file of the exported graph that an integer graph was made from.
        data: name of the data set that it was trained on.
        model: name of the architecture.
        width: its width factor.
        bits: bit widths, e.g. ``{"weight": 4, "activation": 4, "edge": 8, "input": 8}``.
        method: how it was trained, e.g. ``{"name": "divqat", "alpha": 0.04, …}``.
        versions: of the packages that made it.
    """

    image_shape: tuple[int, int, int]
    pixel_divisor: float
    class_names: tuple[str, ...]
    form: GraphForm = "exported"
    output_scale: float = 1.0
    exported_sha256: str = ""
    data: str = "unknown"
    model: str = "unknown"
    width: float = 1.0
    bits: dict[str, int] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=tool_versions)

    def to_json(self) -> str:
        """Serialise, with the schema version."""
        return json.dumps({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, source: str) -> GraphMetadata:
        """Read what `to_json` wrote.

        Args:
            text: the graph's metadata property; None where it has none.
            source: the graph's name, for messages.

        Raises:
            GraphError: if there is none, or it was written by another version of this package.
        """
        if text is None:
            raise GraphError(
                f"{source} does not say how it is to be served: export it with "
                "brevitas_divqat.export.export_qonnx"
            )
        try:
            content = json.loads(text)
            schema = content.pop("schema")
            if schema == SCHEMA:
                return cls._from_content(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GraphError(f"{source} carries damaged metadata: export it again") from error
        raise GraphError(
            f"{source} carries metadata of schema {schema}, this version reads {SCHEMA}: "
            "export it again"
        )

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> GraphMetadata:
        """Build it from parsed JSON; any of several built-in errors where that is damaged."""
        channels, height, width = (int(size) for size in content["image_shape"])
        content["image_shape"] = (channels, height, width)
        content["class_names"] = tuple(str(name) for name in content["class_names"])
        metadata = cls(**content)
        records = (metadata.bits, metadata.method, metadata.versions)
        if not (metadata.pixel_divisor > 0 and all(isinstance(part, dict) for part in records)):
            raise ValueError("a divisor of 0 or less, or a record that is none")
        return metadata
