# SPDX-License-Identifier: BSD-3-Clause
"""What a comparison of two forms of one network found, for people and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from brevitas_divqat.export.traces import Quantizer, SiteKind, Unit

__all__ = [
    "Diff",
    "LabelChange",
    "Margin",
    "Offender",
    "Pair",
    "ScoreDiff",
    "TensorDiff",
    "WeightDiff",
]

SCHEMA = 1

SCALE_TOLERANCE = 1e-6
"""Relative: scales that agree to this were rounded to float32 once."""

ROUNDING_STEPS = 1e-3
"""In steps: how near to a threshold float32 sums of some thousand products may err."""

SCORE_ROUNDING = 1e-5
"""Of the largest score: float32 sums of some hundred products in another order."""

LABELS_SHOWN = 10

Pair = tuple[int, int]


@dataclass(frozen=True)
class Margin:
    """What a quantizer read for one element, and the threshold that the two forms part at.

    Attributes:
        value: what it read.
        threshold: the least value that reaches the level between the two integers; None where this
            form's quantizer has no such level.
        unit: of both: ``"step"`` of the quantizer, or ``"accumulator"``, the integer graph's sum.
    """

    value: float
    threshold: float | None
    unit: Unit

    @property
    def distance(self) -> float | None:
        """Value less threshold."""
        return None if self.threshold is None else self.value - self.threshold


@dataclass(frozen=True)
class Offender:
    """One element that differs, of an image that does not differ before.

    Attributes:
        image: its number among the images.
        label: the image's true label, if labels were given.
        element: (channel, row, column), or (feature,).
        integers: in A and in B.
        margins: in A and in B; None where nothing is known of what the quantizer read.
    """

    image: int
    label: int | None
    element: tuple[int, ...]
    integers: Pair
    margins: tuple[Margin | None, Margin | None]


@dataclass(frozen=True)
class TensorDiff:
    """One quantized tensor in both forms.

    Attributes:
        layer: qualified name of the module whose quantizer made it.
        call: the module's how-many-th call, from 1.
        tensor: its name in the graph; empty where both forms are Brevitas models.
        kind: ``"activation"``, or ``"trunc"`` of an average pool; ``"absorbed"`` where both forms
            do without the quantizer.
        quantizers: in A and in B.
        size: elements of all images.
        elements: elements that differ.
        images: images that differ here.
        first_here: images that differ here and in no quantized tensor before.
        max_step: largest difference of two integers.
        farthest: largest distance to the threshold in A and in B, of the elements of the images
            counted in ``first_here``; None where there are none, or nothing is known of them.
        units: of ``farthest`` in A and in B, as in `Margin`.
        path: (layer, operator) since the quantized tensors before it, where a graph tells.
        offenders: examples, of the images counted in ``first_here``.
    """

    layer: str
    call: int
    tensor: str
    kind: SiteKind
    quantizers: tuple[Quantizer, Quantizer]
    size: int
    elements: int
    images: int
    first_here: int
    max_step: int
    farthest: tuple[float | None, float | None]
    units: tuple[Unit | None, Unit | None]
    path: tuple[tuple[str, str], ...]
    offenders: tuple[Offender, ...]

    @property
    def identical(self) -> bool:
        """Whether every integer is the same."""
        return self.elements == 0

    @property
    def same_quantizer(self) -> bool:
        """Whether equal integers stand for equal real numbers."""
        a, b = self.quantizers
        close = len(a.scale) == len(b.scale) and np.allclose(
            a.scale, b.scale, rtol=SCALE_TOLERANCE, atol=0
        )
        return bool(close and (a.bits, a.signed, a.zero_point) == (b.bits, b.signed, b.zero_point))


@dataclass(frozen=True)
class WeightDiff:
    """A layer whose integer weights are not those of the other form.

    Attributes:
        layer: its qualified name.
        elements: weights that differ.
        size: weights of the layer.
    """

    layer: str
    elements: int
    size: int


@dataclass(frozen=True)
class LabelChange:
    """An image that the two forms put into different classes.

    Attributes:
        image: its number among the images.
        labels: in A and in B.
        label: the true one, if labels were given.
        cause: layer where the image first differs; None where no quantized tensor differs.
        tied: whether the two classes have equal scores in A or in B: the order of the classes
            decides there, and nothing else.
    """

    image: int
    labels: Pair
    label: int | None
    cause: str | None
    tied: bool


@dataclass(frozen=True)
class ScoreDiff:
    """The scores of both forms.

    Attributes:
        images: images with a score that differs in any bit.
        images_in_steps: images with a score that differs by a step of the integer graph's scores;
            None where neither form is one.
        first_here: images whose scores differ so, or else in any bit, and no quantized tensor does.
        max_difference: largest absolute difference of two scores.
        largest: largest absolute score.
        ties: images with two equal highest scores, in A and in B.
        accuracy: of A and of B, if labels were given.
        changes: one for each image whose label differs.
    """

    images: int
    images_in_steps: int | None
    first_here: int
    max_difference: float
    largest: float
    ties: Pair
    accuracy: tuple[float, float] | None
    changes: tuple[LabelChange, ...]


@dataclass(frozen=True)
class Diff:
    """What two forms of one network compute on the same images.

    Attributes:
        forms: names of A and B.
        images: number of images.
        tensors: the quantized tensors, in the order of computation.
        scores: what comes out.
        weights: layers whose integer weights differ, where both forms tell them.
    """

    forms: tuple[str, str]
    images: int
    tensors: tuple[TensorDiff, ...]
    scores: ScoreDiff
    weights: tuple[WeightDiff, ...] = ()

    @property
    def first(self) -> TensorDiff | None:
        """The first quantized tensor that differs for any image."""
        return next((row for row in self.tensors if not row.identical), None)

    def to_json(self) -> dict[str, Any]:
        """Return numbers, texts, lists and dictionaries alone."""
        first = self.first
        content: dict[str, Any] = _plain(asdict(self))
        place = None if first is None else {"layer": first.layer, "call": first.call}
        return {"schema": SCHEMA, "kind": "diff", "first": place, **content}

    def lines(self) -> list[str]:
        """Explain it to somebody at a terminal."""
        return [
            f"A: {self.forms[0]}",
            f"B: {self.forms[1]}",
            "",
            *_table(self),
            "",
            *_verdict(self),
            *_labels(self.scores, self.images),
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


# Text


def _table(found: Diff) -> Iterator[str]:
    heads = ("layer", "tensor", "quantizer", "elements", "images", "first here", "max step")
    rows = [
        (
            f"{row.layer} (call {row.call})" if _is_repeated(row, found) else row.layer,
            row.tensor,
            _quantizer(row.quantizers[0]),
            *(f"{n:,}" for n in (row.elements, row.images, row.first_here, row.max_step)),
        )
        for row in found.tensors
    ]
    scores = found.scores
    rows.append(("scores", "", "", "", f"{scores.images:,}", f"{scores.first_here:,}", ""))
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _is_repeated(row: TensorDiff, found: Diff) -> bool:
    return sum(other.layer == row.layer for other in found.tensors) > 1


def _quantizer(quantizer: Quantizer) -> str:
    more = ", …" if len(quantizer.scale) > 1 else ""
    zero = f" - {quantizer.zero_point:g}" if quantizer.zero_point else ""
    name = f"{'int' if quantizer.signed else 'uint'}{quantizer.bits}"
    return f"{name}{zero} × {quantizer.scale[0]:.4g}{more}"


def _verdict(found: Diff) -> Iterator[str]:
    first = found.first
    count = f"{found.images:,} image{'s' * (found.images > 1)}"
    if first is None:
        yield f"All {len(found.tensors)} quantized tensors are equal on {count}."
    else:
        differing = sum(not row.identical for row in found.tensors)
        yield f"{differing} of {len(found.tensors)} quantized tensors differ on {count}."
        yield from _first(first)
    for row in found.tensors:
        if not row.same_quantizer:
            a, b = (_quantizer(q) for q in row.quantizers)
            yield f"The quantizer of {row.layer} is {a} in A and {b} in B."
    for weights in found.weights:
        yield (
            f"The weights of {weights.layer} differ: {weights.elements:,} of {weights.size:,} "
            "integers."
        )


def _first(row: TensorDiff) -> Iterator[str]:
    yield (
        f"First difference: {row.layer}, call {row.call}"
        f"{f' ({row.tensor})' if row.tensor else ''}: {row.elements:,} of {row.size:,} elements "
        f"in {row.images:,} image{'s' * (row.images > 1)}."
    )
    if row.path:
        between = ", ".join(f"{layer} ({operator})" for layer, operator in row.path)
        yield f"  computed by {between}"
    for offender in row.offenders:
        label = "" if offender.label is None else f" (label {offender.label})"
        place = ", ".join(
            f"{name} {index}"
            for name, index in zip(_axes(len(offender.element)), offender.element, strict=True)
        )
        yield (
            f"  image {offender.image}{label}, {place}: {offender.integers[0]} in A, "
            f"{offender.integers[1]} in B"
        )
        for name, margin in zip("AB", offender.margins, strict=True):
            if margin is not None:
                yield f"    {name}: {_margin(margin)}"
    if len(row.offenders) < row.elements:
        yield f"  … {len(row.offenders)} of {row.elements:,} elements shown"
    yield from _cause(row)


def _axes(count: int) -> Sequence[str]:
    return {1: ("feature",), 3: ("channel", "row", "column")}.get(count, ("axis",) * count)


def _margin(margin: Margin) -> str:
    what = "step" if margin.unit == "step" else "accumulator"
    value = f"{margin.value:.9g} steps" if what == "step" else f"accumulator {margin.value:.0f}"
    if margin.threshold is None or margin.distance is None:
        return f"{value}, and no threshold between the two"
    if margin.distance == 0:
        return f"{value}, exactly the threshold"
    side = "above" if margin.distance > 0 else "below"
    return f"{value}, {abs(margin.distance):.3g} {side} the threshold {margin.threshold:.9g}"


def _cause(row: TensorDiff) -> Iterator[str]:
    """Judge by the real numbers: an accumulator is exact and tells nothing about rounding."""
    told = [
        (far, unit) for far, unit in zip(row.farthest, row.units, strict=True) if far is not None
    ]
    real = [far for far, unit in told if unit == "step"]
    if real and max(real) <= ROUNDING_STEPS:
        yield (
            f"All of them lie within {max(real):.2g} steps of their threshold: the rounding of "
            "float32 sums explains that."
        )
    elif real:
        yield (
            f"Some lie {max(real):.2g} steps from their threshold, which rounding does not "
            "explain: weights, BatchNorm, scales or thresholds are not the same up to there."
        )
    elif len(told) == 2:
        yield (
            "Both forms count in integers, where nothing is rounded: weights or thresholds are "
            "not the same up to there."
        )


def _labels(scores: ScoreDiff, images: int) -> Iterator[str]:
    steps = scores.images_in_steps
    if scores.images:
        ratio = scores.max_difference / scores.largest if scores.largest else 0.0
        rounding = ": float32 rounding" if ratio <= SCORE_ROUNDING else ""
        yield (
            f"Scores of {scores.images:,} images differ, at most by {scores.max_difference:.3g} "
            f"({ratio:.1g} of the largest score{rounding})"
            + ("." if steps is None else f"; {steps:,} by a step of the integer graph's or more.")
        )
    else:
        yield "All scores are equal."
    if scores.accuracy is not None:
        yield f"Accuracy: {scores.accuracy[0]:.2%} in A, {scores.accuracy[1]:.2%} in B."
    if any(scores.ties):
        yield (
            f"Two highest scores are equal for {scores.ties[0]:,} images in A, {scores.ties[1]:,} "
            "in B: the lower class number wins there."
        )
    if not scores.changes:
        yield "All labels are equal."
        return
    yield f"Labels of {len(scores.changes):,} of {images:,} images differ."
    causes = Counter(change.cause for change in scores.changes)
    for cause, number in causes.most_common():
        tied = sum(c.tied for c in scores.changes if c.cause == cause)
        by_tie = f", {tied:,} of them by a tie" if tied else ""
        where = "in the scores alone" if cause is None else f"first in {cause}"
        yield f"  {number:,} differ {where}{by_tie}"
    for change in scores.changes[:LABELS_SHOWN]:
        truth = "" if change.label is None else f" (true {change.label})"
        tie = ", a tie" if change.tied else ""
        yield (
            f"  image {change.image}: {change.labels[0]} in A, {change.labels[1]} in B{truth}{tie}"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
