# SPDX-License-Identifier: BSD-3-Clause
"""What a folder of generated RTL says about itself: `rtl.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.files import write_json

from ..records import record, record_list, table_of

__all__ = [
    "FILE_LIST",
    "LAYOUT_FILE",
    "SCHEMA",
    "Channel",
    "InputStream",
    "Layer",
    "Layout",
    "OutputStream",
    "listed_sources",
]

SCHEMA = 1
LAYOUT_FILE = "rtl.json"
FILE_LIST = "files.f"


@dataclass(frozen=True)
class InputStream:
    """The accelerator's input: unsigned pixels, channels last, the first one in the lowest bits.

    Attributes:
        bits: per element.
        signed: whether elements are two's complement.
        elements_per_word: pixels' channels that enter together.
        word_bits: of the port, a multiple of 8.
        words_per_frame: words of one image.
        shape: (height, width, channels).
    """

    bits: int
    signed: bool
    elements_per_word: int
    word_bits: int
    words_per_frame: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class OutputStream:
    """The accelerator's output: one score per word, sign-extended to whole bytes.

    Attributes:
        bits: that a score needs.
        signed: whether scores are two's complement.
        elements_per_word: always 1.
        word_bits: of the port, a multiple of 8.
        words_per_frame: words of one image.
        outputs: scores of one image.
    """

    bits: int
    signed: bool
    elements_per_word: int
    word_bits: int
    words_per_frame: int
    outputs: int


@dataclass(frozen=True)
class Channel:
    """A FIFO between two layers.

    Attributes:
        name: "producer -> consumer".
        fifo: its instance in the top.
        bits: of a word.
        depth: words that it holds.
    """

    name: str
    fifo: str
    bits: int
    depth: int


@dataclass(frozen=True)
class Layer:
    """A hardware layer.

    Attributes:
        name: of the node in the hardware graph.
        kind: its operation, without backend: ``"MVAU"``.
        layer: qualified name of the model's layer that it comes from; empty where it has none.
        instance: its instance in the top.
        module: of the instance.
        cycles: per image, estimated; 0 where it never limits.
        estimate: FINN's estimate: LUT, BRAM_18K, URAM, DSP.
    """

    name: str
    kind: str
    layer: str
    instance: str
    module: str
    cycles: int
    estimate: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A folder of generated RTL.

    Attributes:
        top: module name of the accelerator.
        input: its input stream.
        output: its output stream.
        channels: FIFOs, in the order of the probe ports.
        layers: in the order of the graph.
        cycles_per_frame: clock cycles from one image to the next, estimated.
        part: device that it was generated for.
        clock_ns: clock period that it was generated for.
        model_sha256: of the integer graph's file.
        exported_sha256: of the exported graph that it was made from.
    """

    top: str
    input: InputStream
    output: OutputStream
    channels: tuple[Channel, ...]
    layers: tuple[Layer, ...]
    cycles_per_frame: int
    part: str
    clock_ns: float
    model_sha256: str
    exported_sha256: str

    def write(self, folder: Path) -> None:
        """Write `rtl.json` into ``folder``."""
        write_json(folder / LAYOUT_FILE, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Read `rtl.json` of ``folder``.

        Raises:
            HardwareError: if there is none, it is damaged, or another version wrote it.
        """
        file = folder / LAYOUT_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            schema = content.pop("schema")
        except OSError as error:
            raise HardwareError(
                f"{folder} holds no generated RTL ({LAYOUT_FILE}: {error.strerror}): make it "
                "with `divqat build`"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HardwareError(f"{file} is damaged: build the folder again") from error
        if schema != SCHEMA:
            raise HardwareError(
                f"{file} has schema {schema}, this version reads {SCHEMA}: build the folder again"
            )
        try:
            layers = record_list(Layer, content["layers"], zero=("cycles",))
            for layer in layers:
                table_of(float, layer.estimate)
            return record(
                cls,
                content
                | {
                    "input": record(InputStream, _with_shape(content["input"])),
                    "output": record(OutputStream, content["output"]),
                    "channels": record_list(Channel, content["channels"]),
                    "layers": layers,
                },
            )
        except (ValueError, KeyError, TypeError) as error:
            raise HardwareError(f"{file} is damaged: build the folder again") from error


def _with_shape(stream: dict[str, Any]) -> dict[str, Any]:
    height, width, channels = stream["shape"]
    if not all(type(size) is int and size > 0 for size in (height, width, channels)):
        raise ValueError(f"shape is {stream['shape']}")
    return stream | {"shape": (height, width, channels)}


def listed_sources(rtl: Path) -> list[str]:
    """Return the names in `files.f`, each of which must be that of a file in ``rtl`` itself.

    Raises:
        HardwareError: if the list is missing or empty, or names another file.
    """
    try:
        lines = (rtl / FILE_LIST).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise HardwareError(
            f"{rtl / FILE_LIST} cannot be read ({error.strerror}): build the folder again"
        ) from error
    sources = [line.strip() for line in lines if line.strip()]
    missing = [n for n in sources if Path(n).name != n or not (rtl / n).is_file()]
    if missing or not sources:
        what = f"lacks {', '.join(missing[:3])}" if missing else f"has an empty {FILE_LIST}"
        raise HardwareError(f"{rtl} {what}: build the folder again")
    return sources
