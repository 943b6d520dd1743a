# SPDX-License-Identifier: BSD-3-Clause
"""What a network really is, layer by layer, and what is probably not meant.

Bits are measured on the tensors that the layers compute with, not taken from what was asked for:
Brevitas leaves a layer at 8 bits, or in floating point, without a word where a keyword is misspelt.
The columns and warnings are explained in docs/summary.md.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.inspection.findings import SummaryWarning, warnings_of
from brevitas_divqat.inspection.keywords import recorded_keywords
from brevitas_divqat.inspection.rows import LayerSummary, row_of
from brevitas_divqat.inspection.tracing import checked_shape, copied, trace
from brevitas_divqat.inspection.wrappers import unwrapped
from brevitas_divqat.seeding import seeded

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["LayerSummary", "Summary", "SummaryWarning", "summary"]

SCHEMA = 1
TEXT_COLUMNS = 140


@dataclass(frozen=True)
class Summary:
    """A network's layers and what is probably not meant; prints as a table.

    Attributes:
        model: its class.
        image_shape: of one input; None where the model was not run.
        layers: in the order of their first calls, then those that never ran.
        warnings: in the same order, kind by kind.
    """

    model: str
    image_shape: tuple[int, ...] | None
    layers: tuple[LayerSummary, ...]
    warnings: tuple[SummaryWarning, ...]

    @property
    def parameters(self) -> int:
        """Weights, biases and BatchNorm's; without the quantizers' scales."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one image; None where those of a layer are not known."""
        counts = [layer.macs for layer in self.layers]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def bytes(self) -> int:
        """Memory of the weights at their bit widths."""
        return sum(layer.bytes for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return numbers, texts, lists and dictionaries alone."""
        content = asdict(self)
        totals = {"parameters": self.parameters, "macs": self.macs, "bytes": self.bytes}
        plain: dict[str, Any] = _plain({"schema": SCHEMA, "kind": "summary", **content})
        return plain | {"totals": totals}

    def __str__(self) -> str:
        """Return the table and the warnings as plain text."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=TEXT_COLUMNS, color_system=None).print(self)
        return text.getvalue().rstrip("\n")

    def __rich__(self) -> Group:
        """Return the table and the warnings for rich's console."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        shape = (
            "not run" if self.image_shape is None else f"one input of {_shape(self.image_shape)}"
        )
        table = Table(title=Text(f"{self.model}, {shape}"), show_footer=True)
        for name, total, right in (
            ("layer", "", False),
            ("class", "", False),
            ("weight", "", False),
            ("input", "", False),
            ("sums", "", False),
            ("output", "", False),
            ("shape", "", False),
            ("parameters", f"{self.parameters:,}", True),
            ("MACs", _count(self.macs), True),
            ("bytes", f"{self.bytes:,}", True),
        ):
            table.add_column(name, total, overflow="fold", justify="right" if right else "left")
        for layer in self.layers:
            table.add_row(*(Text(cell) for cell in _cells(layer)))
        lines = [Text(f"- {warning}") for warning in self.warnings]
        heading = Text(f"{len(lines)} warning{'s' * (len(lines) != 1)}" if lines else "no warnings")
        return Group(table, heading, *lines)


def _cells(layer: LayerSummary) -> list[str]:
    name = layer.name if layer.calls < 2 else f"{layer.name} ({layer.calls} times)"
    exact, bound = layer.accumulator_exact, layer.accumulator_bound
    return [
        name or "(the model)",
        layer.layer,
        str(layer.weight or ""),
        layer.input.name if layer.input else "?" * (layer.calls == 0),
        "" if bound is None else f"{exact} of {bound}",
        str(layer.activation or ""),
        _shape(layer.shape) if layer.shape is not None else "",
        f"{layer.parameters:,}" if layer.parameters else "",
        _count(layer.macs) if layer.macs != 0 else "",
        f"{layer.bytes:,}" if layer.bytes else "",
    ]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def summary(
    model: nn.Module | Callable[[], nn.Module], image_shape: Sequence[int] | None = None
) -> Summary:
    """Describe a network layer by layer, and name what is probably not meant.

    It works for Brevitas models however they are written, for models in full precision, and for
    those that mix both; trained or not, calibrated or not. A copy is looked at: the model, its
    mode, its statistics and hooks, and the random generators stay as they are.

    Args:
        model: the network, also in ``DataParallel``, ``DistributedDataParallel`` or ``compile``; or
            a function without arguments that builds it, and then every keyword that Brevitas
            swallows on the way is known (see `recorded_keywords`).
        image_shape: shape of one input without the batch, e.g. (channels, height, width), of which
            one is run through a copy; without it the order is that of registration, and inputs,
            sums, shapes and MACs stay unknown.

    Raises:
        ConfigError: if it is no model, cannot be copied, or cannot take such an input.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> found = summary(QuantConv2d(3, 8, 3, weight_bit_width=4), (3, 8, 8))
        >>> found.layers[0].weight.bits, found.parameters, found.macs, found.bytes
        (4, 224, 7776, 108)
    """
    shape = None if image_shape is None else checked_shape(image_shape)
    with seeded(0):  # neither building nor running is to move the global generators
        if not isinstance(model, nn.Module):
            model = _built(model)
        model = unwrapped(model)
        copy = copied(model)
        visits = trace(copy, shape)
        rows = tuple(row_of(visit) for visit in visits)
        warnings = tuple(warnings_of(model, visits, rows))
    return Summary(type(model).__name__, shape, rows, warnings)


def _built(factory: Any) -> nn.Module:
    if not callable(factory):
        raise ConfigError(
            f"summary got {type(factory).__name__}: give a torch.nn.Module or a function that "
            "builds one"
        )
    with recorded_keywords():
        model = factory()
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"the function given to summary returned {type(model).__name__}: return a "
            "torch.nn.Module"
        )
    return model
