# SPDX-License-Identifier: BSD-3-Clause
"""The verdict: what DivQAT changed against plain quantization-aware training, in plain words.

The headline is the worst case for the defender: a thief takes the best attack there is, not the one
that the defence stops best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brevitas_divqat.report.measurements import TITLES, Measurements, VictimRow
from brevitas_divqat.report.stats import Stat, points

__all__ = ["sentences", "verdict"]

RENAMED = 0.03
"""By how much renaming its classes must raise a copy's accuracy to be worth a sentence."""
_ATTACKS = ("in/soft", "in/hard", "ood/soft", "ood/hard")


def verdict(m: Measurements) -> str:
    """Say what the measurements show, and what they do not.

    Args:
        m: The measurements.

    Returns:
        Two to five sentences: the worst case and its price, the changes of every attack, how far to
        trust them, a copy that names classes wrongly, and what was not measured.
    """
    return " ".join(sentences(m))


def sentences(m: Measurements) -> list[str]:
    """Build the sentences of the verdict, the headline first."""
    pairs = _pairs(m)
    if pairs:
        found = [_worst_case(pairs, m), _changes(pairs), _trust(pairs)]
    else:
        found = [*_worst_cases_alone(m), *_price_alone(m)]
    return [sentence for sentence in (*found, _renamed(m), _missing(m)) if sentence]


@dataclass(frozen=True)
class _Pair:
    """One attack on both victims, over the same seeds."""

    attack: str
    qat: Stat
    divqat: Stat

    @property
    def change(self) -> Stat:
        return self.divqat.minus(self.qat)


def _pairs(m: Measurements) -> list[_Pair]:
    """Pair the attacks that both victims faced, over the seeds that all of these have."""
    rows = {(row.victim, row.attack): row for row in m.extractions}
    attacks = [a for v, a in rows if v == "qat" and ("divqat", a) in rows]
    shared = [rows[victim, attack] for victim in TITLES for attack in attacks]
    seeds = set(m.seeds).intersection(*(row.accuracy.seeds for row in shared))
    if not seeds:
        return []
    return [
        _Pair(a, rows["qat", a].accuracy.at(seeds), rows["divqat", a].accuracy.at(seeds))
        for a in attacks
    ]


def _victims(m: Measurements) -> dict[str, VictimRow]:
    return {row.victim: row for row in m.victims}


def _noise(change: Stat) -> str:
    return " (within seed-to-seed noise)" if change.is_noise else ""


def _compared(change: Stat, up: str, down: str, same: str) -> str:
    """Put a signed change into words; up and down hold the place of the points."""
    size = abs(round(100 * change.mean, 1))
    if size == 0:
        return same
    return (up if change.mean > 0 else down).format(f"{size:.1f} points") + _noise(change)


def _worst_case(pairs: list[_Pair], m: Measurements) -> str:
    ours = max(pairs, key=lambda pair: pair.divqat.mean)
    theirs = max(pairs, key=lambda pair: pair.qat.mean)
    gap = _compared(
        ours.divqat.minus(theirs.qat),
        "{} higher, so DivQAT did not protect",
        "{} lower",
        "no difference",
    )
    if ours.attack == theirs.attack:
        thief, other = f"the best thief ({ours.attack})", ""
    else:
        thief, other = "the best thief", f" ({theirs.attack})"
    where = f" ({ours.attack})" if other else ""
    return (
        f"Worst case: {thief} reaches {ours.divqat.percent} % against DivQAT{where} and "
        f"{theirs.qat.percent} % against plain QAT{other}: {gap}{_price(m, set(ours.qat.seeds))}."
    )


def _price(m: Measurements, seeds: set[int]) -> str:
    victims = _victims(m)
    if not victims.keys() >= TITLES.keys():
        return ""
    change = (
        victims["divqat"].qonnx_accuracy.at(seeds).minus(victims["qat"].qonnx_accuracy.at(seeds))
    )
    if not change.n:
        return ""
    return ", " + _compared(
        change,
        "while the victim's own accuracy is {} higher",
        "for {} of the victim's own accuracy",
        "at no change of the victim's own accuracy",
    )


def _changes(pairs: list[_Pair]) -> str:
    best = min(pairs, key=lambda pair: pair.change.mean)
    others = ", ".join(
        f"{pair.attack} {points(pair.change.mean)}{' (noise)' if pair.change.is_noise else ''}"
        for pair in pairs
        if pair is not best
    )
    tail = f"; the others: {others}" if others else ""
    if round(100 * best.change.mean, 1) >= 0:
        return (
            "No attack got weaker; closest to it: "
            f"{best.attack} {points(best.change.mean)} points{_noise(best.change)}{tail}."
        )
    return (
        f"Largest gain: {best.attack}, {best.qat.percent} % -> {best.divqat.percent} % "
        f"({points(best.change.mean)} points){_noise(best.change)}{tail}."
    )


def _trust(pairs: list[_Pair]) -> str:
    seeds = pairs[0].qat.n
    if seeds == 1:
        return "One seed: differences of this size are not yet a claim."
    return (
        f"{seeds} paired seeds: a difference whose 95 % confidence interval holds 0 counts as "
        "seed-to-seed noise."
    )


def _worst_cases_alone(m: Measurements) -> list[str]:
    """Without a pair to compare, name the best thief of each victim."""
    found = []
    for victim, name in TITLES.items():
        rows = [row for row in m.extractions if row.victim == victim]
        if rows:
            best = max(rows, key=lambda row: row.accuracy.mean)
            found.append(
                f"Worst case: the best thief ({best.attack}) reaches {best.accuracy.percent} % "
                f"against {name}; there is nothing to compare it with yet."
            )
    return found


def _price_alone(m: Measurements) -> list[str]:
    words = [
        f"{TITLES[victim]} {row.qonnx_accuracy.percent} %"
        for victim, row in _victims(m).items()
        if victim in TITLES
    ]
    return [f"The victims' own accuracy: {', '.join(words)}."] if words else []


def _renamed(m: Measurements) -> str:
    """Name the copy that gains most by another naming of classes: accuracy alone hides it."""
    known = [(row, row.renamed) for row in m.extractions if row.renamed is not None]
    gains = [renamed.minus(row.accuracy).mean for row, renamed in known]
    if max(gains, default=0.0) < RENAMED:
        return ""
    row, renamed = known[gains.index(max(gains))]
    few = f" ({renamed.n} of {row.accuracy.n} seeds)" if renamed.n < row.accuracy.n else ""
    return (
        f"Some copies name classes wrongly: renamed by the true labels, that of {row.title} by "
        f"{row.attack} has {renamed.percent} % instead of "
        f"{row.accuracy.at(renamed.seeds).percent} %{few}."
    )


def _missing(m: Measurements) -> str:
    """Name what a full comparison needs and these measurements lack."""
    victims = _victims(m)
    rows = {(row.victim, row.attack): row for row in m.extractions}
    attacks = list(dict.fromkeys((*_ATTACKS, *(attack for _, attack in rows))))
    gaps = [f"the victim {name}" for victim, name in TITLES.items() if victim not in victims]
    if not rows:
        gaps.append("any extraction")
    else:
        for victim, name in TITLES.items():
            absent = [attack for attack in attacks if (victim, attack) not in rows]
            if absent:
                every = "every attack" if len(absent) == len(attacks) else ", ".join(absent)
                gaps.append(f"{every} on {name}")
    gaps += _missing_seeds(m)
    return f"Not measured: {'; '.join(gaps)}." if gaps else ""


def _missing_seeds(m: Measurements) -> list[str]:
    figures: Mapping[str, Stat] = {
        **{row.title: row.qonnx_accuracy for row in m.victims},
        **{f"{row.attack} on {row.title}": row.accuracy for row in m.extractions},
    }
    return [
        f"{name} at seed {', '.join(str(seed) for seed in m.seeds if seed not in figure.seeds)}"
        for name, figure in figures.items()
        if figure.n < len(m.seeds)
    ]
