# SPDX-License-Identifier: BSD-3-Clause
"""Where two forms of one network part: layer by layer, image by image, on integers.

A Brevitas model, the exported graph and the integer graph compute the same but for float32 sums,
which may be rounded across a threshold. From there on everything may differ, and so each image's
difference counts for the first quantized tensor that shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.errors import ConfigError, DataError, GraphError
from brevitas_divqat.export.differences import (
    Diff,
    LabelChange,
    Margin,
    Offender,
    Pair,
    ScoreDiff,
    TensorDiff,
    WeightDiff,
)
from brevitas_divqat.export.graph_traces import GraphTracer, load_form
from brevitas_divqat.export.traces import (
    Form,
    Integers,
    ModelTracer,
    Observation,
    Site,
    Unit,
    Where,
)
from brevitas_divqat.progress import Progress, silent

__all__ = ["diff"]


def diff(
    a: Form | nn.Module | str | Path | Any,
    b: Form | nn.Module | str | Path | Any,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer[Any]] | None = None,
    *,
    examples: int = 10,
    batch_size: int = 64,
    progress: Progress = silent,
) -> Diff:
    """Walk two forms of one network in step and tell where they part.

    Each may be a Brevitas model or its checkpoint's folder, a graph or its file, or another `Form`.
    A Brevitas model that is given as it is takes pixels divided by 256: make a `ModelTracer` where
    that is not so.

    Args:
        a: one form.
        b: the other.
        images: (N, C, H, W) uint8.
        labels: (N,) true classes, to tell the accuracies.
        examples: number of elements to describe per tensor.
        batch_size: images per pass.
        progress: told about each batch.

    Raises:
        DataError: if there are no images, or images or labels of another shape or type.
        ConfigError: if a number is out of range.
        GraphError: if the two are not forms of one network, or one of them cannot be run.
    """
    if examples < 0:
        raise ConfigError(f"examples is {examples}: it must be 0 or more")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: it must be 1 or more")
    _check_pixels(images)
    first, second = _opened(a, b, images.shape[1:], batch_size)
    _check_images(images, first.image_shape)
    _check_labels(labels, len(images), first.num_classes)
    pairs = _matched(first, second)
    tallies = [_Tally(examples) for _ in pairs]
    scores = _Scores(first, second, labels)
    starts = range(0, len(images), batch_size)
    with progress("Comparing", len(starts)) as show:
        for start in starts:
            batch = images[start : start + batch_size]
            traces = first.trace(batch), second.trace(batch)
            origin = np.full(len(batch), -1)
            for number, (tally, (i, j)) in enumerate(zip(tallies, pairs, strict=True)):
                sites = first.sites[i], second.sites[j]
                seen = traces[0].observations[i], traces[1].observations[j]
                differs = tally.add(sites, seen, origin < 0, start, labels)
                origin[differs & (origin < 0)] = number
            scores.add(traces[0].scores[: len(batch)], traces[1].scores[: len(batch)], origin)
            differing = sum(tally.elements > 0 for tally in tallies)
            show(1, f"{differing} of {len(pairs)} tensors differ")
    rows = tuple(
        tally.row(first.sites[i], second.sites[j], len(images))
        for tally, (i, j) in zip(tallies, pairs, strict=True)
    )
    return Diff(
        (first.name, second.name),
        len(images),
        rows,
        scores.result([row.layer for row in rows]),
        _weights(first, second),
    )


# What is compared with what


def _opened(a: Any, b: Any, shape: tuple[int, ...], batch_size: int) -> tuple[Form, Form]:
    """Make forms of what was given; bare models learn the images' shape from the other form."""
    sources = [
        load_form(s, batch_size=batch_size) if isinstance(s, (str, Path)) else s for s in (a, b)
    ]
    for i, source in enumerate(sources):
        if hasattr(source, "get_metadata_prop"):
            sources[i] = GraphTracer(source, batch_size=batch_size)
    known = [s.image_shape for s in sources if not isinstance(s, nn.Module)]
    channels, height, width = known[0] if known else shape
    forms: list[Form] = [
        ModelTracer(s, (channels, height, width)) if isinstance(s, nn.Module) else s
        for s in sources
    ]
    for what in ("image_shape", "num_classes"):
        first, second = (getattr(form, what) for form in forms)
        if first != second:
            raise GraphError(
                f"A and B are different networks: {what.replace('_', ' ')} is {first} in A "
                f"({forms[0].name}) and {second} in B ({forms[1].name})"
            )
    return forms[0], forms[1]


def _matched(a: Form, b: Form) -> list[Pair]:
    """Pair the quantized tensors of two forms of one network, in A's order.

    Two graphs are matched by tensor and layer, else by the layer and its call's number. What the
    integer graph has absorbed is matched with the tensor that it read.

    Raises:
        GraphError: naming a layer that only one of them has, or whose shape differs.
    """
    pairs: dict[int, int] = {}
    backwards: dict[int, int] = {}

    def pair(i: int, j: int) -> None:
        pairs.setdefault(i, j)
        backwards.setdefault(j, i)

    names = {(s.tensor, s.layer): j for j, s in enumerate(b.sites) if s.tensor and s.layer}
    for i, site in enumerate(a.sites):
        if (site.tensor, site.layer) in names:
            pair(i, names[site.tensor, site.layer])
    _pair_absorbed(a, b, pairs, pair)
    _pair_absorbed(b, a, backwards, lambda j, i: pair(i, j))
    calls = {(s.layer, s.call): j for j, s in enumerate(b.sites) if s.layer and j not in backwards}
    for i, site in enumerate(a.sites):
        if i not in pairs and (site.layer, site.call) in calls:
            pair(i, calls[site.layer, site.call])
    # A Brevitas model does not tell which of its quantizers the integer graph does without.
    left = [i for i in range(len(a.sites)) if i not in pairs]
    over = [j for j in range(len(b.sites)) if j not in backwards]
    absorbed = [
        {form.sites[k].kind == "absorbed" for k in rest} for form, rest in ((a, left), (b, over))
    ]
    if len(left) == len(over) and {True} in absorbed:
        for i, j in zip(left, over, strict=True):
            pair(i, j)
    alone = [(a, s) for i, s in enumerate(a.sites) if i not in pairs]
    alone += [(b, s) for j, s in enumerate(b.sites) if j not in backwards]
    if alone:
        form, site = alone[0]
        raise GraphError(
            f"A and B are different networks: of {len(alone)} quantized tensors that only one of "
            f"them has, the first is call {site.call} of layer {site.layer or site.tensor}, in "
            f"{'A' if form is a else 'B'} ({form.name})"
        )
    found = sorted({*pairs.items(), *((i, j) for j, i in backwards.items())})
    for i, j in found:
        first, second = a.sites[i], b.sites[j]
        if first.shape != second.shape:
            raise GraphError(
                f"A and B are different networks: layer {first.layer or second.layer} gives shape "
                f"{first.shape} in A ({a.name}) and {second.shape} in B ({b.name})"
            )
    return found


def _pair_absorbed(
    form: Form, other: Form, pairs: dict[int, int], pair: Callable[[int, int], None]
) -> None:
    """Pair the quantizers that an integer graph has absorbed with the tensor that they would read.

    Such a one gives back every integer that it reads.
    """
    if other.score_scale is None:
        return
    own = {site.tensor: i for i, site in enumerate(form.sites) if site.tensor}
    others = {site.tensor: j for j, site in enumerate(other.sites)}
    for i, site in enumerate(form.sites):
        if i in pairs:
            continue
        if site.source in others:
            pair(i, others[site.source])
        elif own.get(site.source) in pairs:
            pair(i, pairs[own[site.source]])


def _weights(a: Form, b: Form) -> tuple[WeightDiff, ...]:
    """Compare the integer weights, up to the sign of an output channel.

    The integer graph turns the sign of a channel whose BatchNorm falls.
    """
    found = []
    others = b.weights()
    for layer, first in a.weights().items():
        second = others.get(layer)
        if second is None:
            continue
        if first.shape != second.shape:
            raise GraphError(
                f"A and B are different networks: layer {layer} has weights of shape {first.shape} "
                f"in A and {second.shape} in B, as (outputs, inputs)"
            )
        differing = (first != second).sum(axis=1)
        if a.score_scale is not None or b.score_scale is not None:
            differing = np.minimum(differing, (first != -second).sum(axis=1))
        if differing.any():
            found.append(WeightDiff(layer, int(differing.sum()), first.size))
    return tuple(found)


# Counting


@dataclass
class _Tally:
    """What is known of one tensor so far."""

    examples: int
    elements: int = 0
    images: int = 0
    first_here: int = 0
    max_step: int = 0
    farthest: list[float | None] = field(default_factory=lambda: [None, None])
    units: list[Unit | None] = field(default_factory=lambda: [None, None])
    offenders: list[Offender] = field(default_factory=list)

    def add(
        self,
        sites: tuple[Site, Site],
        seen: tuple[Observation, Observation],
        equal_so_far: NDArray[np.bool_],
        start: int,
        labels: NDArray[Any] | None,
    ) -> NDArray[np.bool_]:
        """Count a batch; return which of its images differ here."""
        count = len(equal_so_far)
        a, b = (o.integers(s)[:count] for o, s in zip(seen, sites, strict=True))
        differs = a != b
        images = differs.reshape(count, -1).any(axis=1)
        if not images.any():
            return images
        self.elements += int(differs.sum())
        self.images += int(images.sum())
        self.max_step = max(self.max_step, int(np.abs(a - b).max()))
        fresh = images & equal_so_far
        self.first_here += int(fresh.sum())
        if fresh.any():
            where = np.nonzero(differs & fresh.reshape(-1, *[1] * (differs.ndim - 1)))
            self._describe(seen, where, (a[where], b[where]), start, labels)
        return images

    def _describe(
        self,
        seen: tuple[Observation, Observation],
        where: Where,
        integers: tuple[Integers, Integers],
        start: int,
        labels: NDArray[Any] | None,
    ) -> None:
        wanted = min(self.examples - len(self.offenders), len(where[0]))
        margins: list[list[Margin | None]] = []
        for side, observation in enumerate(seen):
            before = observation.before
            if before is None:
                margins.append([None] * wanted)
                continue
            own, other = integers[side], integers[1 - side]
            values, thresholds = before.at(where, np.where(own < other, own + 1, own))
            known = ~np.isnan(thresholds)
            if known.any():
                far = float(np.abs(values - thresholds)[known].max())
                self.farthest[side] = max(far, self.farthest[side] or 0.0)
                self.units[side] = before.unit
            margins.append(
                [
                    Margin(float(v), float(t) if k else None, before.unit)
                    for v, t, k in zip(
                        values[:wanted], thresholds[:wanted], known[:wanted], strict=True
                    )
                ]
            )
        for k in range(wanted):
            image = start + int(where[0][k])
            self.offenders.append(
                Offender(
                    image,
                    None if labels is None else int(labels[image]),
                    tuple(int(axis[k]) for axis in where[1:]),
                    (int(integers[0][k]), int(integers[1][k])),
                    (margins[0][k], margins[1][k]),
                )
            )

    def row(self, a: Site, b: Site, count: int) -> TensorDiff:
        named = a if a.layer else b
        return TensorDiff(
            named.layer or "the input",
            named.call,
            named.tensor or a.tensor or b.tensor,
            named.kind,
            (a.quantizer, b.quantizer),
            count * int(np.prod(a.shape)),
            self.elements,
            self.images,
            self.first_here,
            self.max_step,
            (self.farthest[0], self.farthest[1]),
            (self.units[0], self.units[1]),
            max(a.path, b.path, key=len),
            tuple(self.offenders),
        )


class _Scores:
    """What is known of the scores so far."""

    def __init__(self, a: Form, b: Form, labels: NDArray[Any] | None) -> None:
        # An integer graph's scores tell the step; two with different steps have none in common.
        scales = {form.score_scale for form in (a, b)} - {None}
        self._scale = scales.pop() if len(scales) == 1 else None
        self._labels = labels
        self._done = 0
        self._images = self._in_steps = self._first_here = 0
        self._difference = self._largest = 0.0
        self._ties = [0, 0]
        self._right = [0, 0]
        self._changes: list[tuple[LabelChange, int]] = []

    def add(
        self, a: NDArray[np.float32], b: NDArray[np.float32], origin: NDArray[np.int64]
    ) -> None:
        differs = (a != b).any(axis=1)
        self._images += int(differs.sum())
        if self._scale is not None:
            differs = (np.rint(a / self._scale) != np.rint(b / self._scale)).any(axis=1)
            self._in_steps += int(differs.sum())
        self._first_here += int((differs & (origin < 0)).sum())
        self._difference = max(self._difference, float(np.abs(a.astype(np.float64) - b).max()))
        self._largest = max(self._largest, float(np.abs(a).max()), float(np.abs(b).max()))
        labels = a.argmax(axis=1), b.argmax(axis=1)
        for side, scores in enumerate((a, b)):
            highest = scores == scores.max(axis=1, keepdims=True)
            self._ties[side] += int((highest.sum(axis=1) > 1).sum())
            if self._labels is not None:
                truth = self._labels[self._done : self._done + len(a)]
                self._right[side] += int((labels[side] == truth).sum())
        for k in np.flatnonzero(labels[0] != labels[1]):
            first, second = int(labels[0][k]), int(labels[1][k])
            image = self._done + int(k)
            change = LabelChange(
                image,
                (first, second),
                None if self._labels is None else int(self._labels[image]),
                None,
                bool(a[k, first] == a[k, second] or b[k, first] == b[k, second]),
            )
            self._changes.append((change, int(origin[k])))
        self._done += len(a)

    def result(self, layers: Sequence[str]) -> ScoreDiff:
        accuracy = None
        if self._labels is not None:
            accuracy = (self._right[0] / self._done, self._right[1] / self._done)
        return ScoreDiff(
            self._images,
            None if self._scale is None else self._in_steps,
            self._first_here,
            self._difference,
            self._largest,
            (self._ties[0], self._ties[1]),
            accuracy,
            tuple(
                LabelChange(c.image, c.labels, c.label, layers[k] if k >= 0 else None, c.tied)
                for c, k in self._changes
            ),
        )


# Checks


def _check_pixels(images: Any) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"images are {got}: expected a numpy array of 8-bit pixels (uint8)")
    if images.ndim != 4:
        raise DataError(f"images have shape {images.shape}: expected (N, C, H, W)")
    if not len(images):
        raise DataError("there are no images: two forms are compared on one image or more")


def _check_images(images: NDArray[np.uint8], image_shape: tuple[int, int, int]) -> None:
    if images.shape[1:] != tuple(image_shape):
        raise DataError(f"images have shape {images.shape}: expected (N, *{image_shape})")


def _check_labels(labels: Any, count: int, classes: int) -> None:
    if labels is None:
        return
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        got = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise DataError(f"labels are {got}: expected a numpy array of integers")
    if labels.shape != (count,):
        raise DataError(f"labels have shape {labels.shape}: expected ({count},), one per image")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels range from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}"
        )
