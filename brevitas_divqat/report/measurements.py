# SPDX-License-Identifier: BSD-3-Clause
"""The measurements of one run, or of runs that differ only in seed, as typed rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.evaluation.config import CONFIG_FILE, PLACES, settings_of
from brevitas_divqat.report.records import Record, read_records, require_equal
from brevitas_divqat.report.stats import Stat, seeds_text

__all__ = [
    "ATTACK_KIND",
    "TITLES",
    "ExtractionRow",
    "Measurements",
    "VictimRow",
    "aggregate",
    "bits_text",
    "load_measurements",
    "value_of",
]

# The two victims that are compared, as people call them.
TITLES = {"qat": "plain QAT", "divqat": "DivQAT"}
_ORDER = ("qat", "divqat", "in", "ood", "soft", "hard")
ATTACK_KIND = {
    "attack": "knockoff", "policy": "random", "training": "plain", "copies": "1",
    "copy_kind": "shifted",
}  # fmt: skip
"""What sets attacks with one pool and one kind of labels apart, and what it is most often."""
_THIEF = ("pool_name", "pool_images", "interface", "surrogate", "images")
"""What an attack has in common at all its budgets."""
_ATTACK_SETTINGS = ("attack", "policy", *_THIEF, "queries", "budget")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What both kinds of rows have."""

    victim: str  # "qat", "divqat"
    graphs: Mapping[int, str]  # seed -> SHA-256 of the graph that was measured or attacked

    @property
    def title(self) -> str:
        """The victim's name for people."""
        return TITLES.get(self.victim, self.victim)


@dataclass(frozen=True, kw_only=True)
class VictimRow(_Row):
    """One victim, over the seeds at which it was measured."""

    method: Mapping[str, Any]  # how it was trained
    images: int  # that judged it, per seed
    parameters: int
    float_accuracy: Stat  # of the full-precision network; fractions, as all that follow
    brevitas_accuracy: Stat
    qonnx_accuracy: Stat  # of the exported graph, which is what the thief faces
    calibration_error: Stat
    labels_differing: int  # between Brevitas and QONNX, summed over the seeds
    images_differing: int  # likewise, images with any score that differs
    max_abs_difference: float  # largest difference of a score over all seeds


@dataclass(frozen=True, kw_only=True)
class ExtractionRow(_Row):
    """One attack on one victim at one budget, over the seeds at which it was carried out."""

    pool: str  # "in", "ood" or "none": where the thief's images come from
    labels: str  # "soft", "hard", ...: what is made of the victim's answers
    kind: Mapping[str, str]  # the attack's name, training and copies
    settings: Mapping[str, Any]  # of the attack; equal for every victim and seed
    accuracy: Stat  # of the surrogate on the images that judge
    fidelity: Stat  # agreement of surrogate and victim on them
    # Its accuracy once its classes are renamed by the true labels; of some seeds, or None, where
    # files of earlier versions lack it.
    renamed: Stat | None
    curve: Mapping[int, Stat]  # number of queries, ascending -> the surrogate's accuracy after them
    kl: Stat | None  # KL(Q||P), nats: victim Q against the float network P, on the query set
    entropy: Stat | None  # H(Q), nats, on the query set

    @property
    def attack(self) -> str:
        """The pool and the labels, and what else tells the attacks of one run apart."""
        own = {key: value for key, value in self.kind.items() if value != ATTACK_KIND[key]}
        first = [own["attack"]] if "attack" in own else []
        if own.get("policy", "none") != "none":
            first = [f"{self.kind['attack']}-{own['policy']}"]
        last = [own["training"]] if "training" in own else []
        if "copies" in own:
            last.append(f"{own['copies']} {self.kind['copy_kind']} copies")
        return "/".join([*first, self.pool, self.labels, *last])


@dataclass(frozen=True)
class Measurements:
    """All that the tables, the verdict and the plot are made of."""

    data: str
    model: str
    bits: Mapping[str, int]
    split: str  # "test" or "validation": the images that judged
    seeds: tuple[int, ...]
    executors: tuple[str, ...]
    victims: tuple[VictimRow, ...]
    extractions: tuple[ExtractionRow, ...]

    @property
    def bits_text(self) -> str:
        """The bit widths in short, for example ``W4A4, edge 8, input 8``."""
        return bits_text(self.bits)

    @property
    def seeds_text(self) -> str:
        """The seeds in words, for example ``seeds 0, 1, 2``."""
        return seeds_text(self.seeds)

    @property
    def setting(self) -> str:
        """What was measured, in words."""
        judged = "" if self.split == "test" else f", judged on {self.split} images"
        return f"{self.data}, {self.model}, {self.bits_text}, {self.seeds_text}{judged}"

    @property
    def curved(self) -> tuple[ExtractionRow, ...]:
        """The attacks that were measured after more than one number of queries."""
        return tuple(row for row in self.extractions if len(row.curve) > 1)


def bits_text(bits: Mapping[str, int]) -> str:
    """Write bit widths in short; nothing for a network that names none."""
    both = bits.keys() >= {"weight", "activation"}
    first = [f"W{bits['weight']}A{bits['activation']}"] if both else []
    others = [f"{k} {v}" for k, v in bits.items() if not both or k not in ("weight", "activation")]
    return ", ".join([*first, *others])


def load_measurements(runs: Sequence[Path]) -> Measurements:
    """Read the measurements of run folders and aggregate them over the seeds.

    An attack that was carried out at several budgets is one row: that of the largest budget that
    all victims share, with the others in its learning curve.

    Args:
        runs: One run folder, or several that differ only in seed.

    Returns:
        Rows in a fixed order: plain QAT before DivQAT, pool "in" before "ood", soft before hard.

    Raises:
        ConfigError: A folder holds no measurement, a file is damaged, two runs differ in more than
            the seed, a seed occurs twice, or an attack was not on the graph that was measured.
    """
    if not runs:
        raise ConfigError("no run folder was given; name at least one")
    _require_same_settings([Path(run) for run in runs])
    return aggregate([record for run in runs for record in read_records(Path(run))])


def aggregate(records: Sequence[Record]) -> Measurements:
    """Aggregate measurements over the seeds, as `load_measurements` does.

    Raises:
        ConfigError: Two records differ in more than the seed, a seed occurs twice, or an attack was
            not on the graph that was measured.
    """
    require_equal(records, ("data", "model", "bits", "split"))
    victims = [record for record in records if record["kind"] == "victim"]
    thefts = [record for record in records if record["kind"] == "extraction"]
    require_equal(victims, ("images",))
    _require_one_graph_per_seed([*victims, *thefts])
    # An attack is the same for all victims: without that the comparison would mean nothing.
    groups = _grouped(thefts, "pool", "labels", *ATTACK_KIND).values()
    attacks = [(group, _budget(group)) for group in groups]
    for group, budget in attacks:
        require_equal(group, _THIEF)
        require_equal(_compared(group, budget), _ATTACK_SETTINGS)
    return Measurements(
        data=records[0]["data"],
        model=records[0]["model"],
        bits=records[0]["bits"],
        split=records[0]["split"],
        seeds=tuple(sorted({record["seed"] for record in records})),
        executors=tuple(sorted({record["executor"] for record in victims})),
        victims=tuple(_victim_row(g) for g in _grouped(victims, "victim").values()),
        extractions=tuple(
            _extraction_row(own, budget)
            for (victim,) in _grouped(thefts, "victim")
            for group, budget in attacks
            if (own := [record for record in group if record["victim"] == victim])
        ),
    )


def _require_same_settings(runs: Sequence[Path]) -> None:
    """Refuse to average runs whose resolved configurations differ in more than the seed."""
    files = [run / CONFIG_FILE for run in runs if (run / CONFIG_FILE).is_file()]
    settings = [settings_of(file.parent) for file in files]
    for file, other in zip(files[1:], settings[1:], strict=True):
        for name in sorted(settings[0].keys() | other.keys()):
            first, own = settings[0].get(name), other.get(name)
            if first != own and name not in PLACES | {"seed"}:
                raise ConfigError(
                    f"{file}: {name} is {own}, but {first} in {files[0]}; only runs that differ in "
                    "seed can be averaged"
                )


def _grouped(records: Sequence[Record], *keys: str) -> dict[tuple[str, ...], list[Record]]:
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(value_of(record, key) for key in keys)].append(record)
    return dict(sorted(groups.items(), key=lambda item: [_rank(name) for name in item[0]]))


def value_of(record: Record, key: str) -> str:
    """Look up what sets attacks apart; measurements from before it could vary lack it."""
    if record["copies"] in (None, 1) and key == "copy_kind":
        return ATTACK_KIND[key]  # with a single copy it varies nothing
    value = record[key]
    return ATTACK_KIND.get(key, "") if value is None else str(value)


def _rank(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def _by_seed(group: Sequence[Record], key: str) -> dict[int, Any]:
    return {record["seed"]: record[key] for record in group}


def _stat(group: Sequence[Record], key: str) -> Stat:
    return Stat.of(_by_seed(group, key))


def _optional_stat(group: Sequence[Record], key: str) -> Stat | None:
    known = {seed: value for seed, value in _by_seed(group, key).items() if value is not None}
    return Stat.of(known) if known else None


def _require_distinct_seeds(group: Sequence[Record]) -> None:
    seen: dict[int, Path] = {}
    for record in group:
        first = seen.setdefault(record["seed"], record.path)
        if first is not record.path:
            raise ConfigError(
                f"{record.path}: seed {record['seed']} was already read from {first}; "
                "name each run once and give every run its own seed"
            )


def _once_per_seed(group: Sequence[Record]) -> list[Record]:
    """Keep one measurement per seed: each attack's folder has one of the victim, of one graph."""
    first: dict[int, Record] = {}
    for record in group:
        seen = first.setdefault(record["seed"], record)
        require_equal([seen, record], ("accuracy", "executor"))
    return list(first.values())


def _require_one_graph_per_seed(records: Sequence[Record]) -> None:
    """Refuse to join what was measured on one graph with attacks on another."""
    first: dict[tuple[str, int], Record] = {}
    for record in records:
        seen = first.setdefault((record["victim"], record["seed"]), record)
        if record["graph_sha256"] != seen["graph_sha256"]:
            raise ConfigError(
                f"{record.path}: graph_sha256 is not that of {seen.path}, so these are of another "
                "graph of the same victim and seed; measure and attack one of them again"
            )


def _victim_row(group: Sequence[Record]) -> VictimRow:
    require_equal(group, ("method", "parameters"))
    group = _once_per_seed(group)
    return VictimRow(
        victim=group[0]["victim"],
        method=group[0]["method"],
        images=group[0]["images"],
        parameters=group[0]["parameters"],
        float_accuracy=_stat(group, "accuracy.float"),
        brevitas_accuracy=_stat(group, "accuracy.brevitas"),
        qonnx_accuracy=_stat(group, "accuracy.qonnx"),
        calibration_error=_stat(group, "calibration_error"),
        labels_differing=sum(r["brevitas_vs_qonnx.labels_differing"] for r in group),
        images_differing=sum(r["brevitas_vs_qonnx.images_differing"] for r in group),
        max_abs_difference=max(r["brevitas_vs_qonnx.max_abs_difference"] for r in group),
        graphs=_by_seed(group, "graph_sha256"),
    )


def _budget(attack: Sequence[Record]) -> int:
    """Choose the largest budget at which every victim was attacked, or the largest of all."""
    every = [{record["budget"] for record in g} for g in _grouped(attack, "victim").values()]
    return int(max(set.intersection(*every) or set.union(*every)))


def _compared(attack: Sequence[Record], budget: int) -> list[Record]:
    """Return each victim's records at this budget, or all of a victim that has none there."""
    compared = [record for record in attack if record["budget"] == budget]
    victims = {record["victim"] for record in compared}
    # Victims without a common budget are refused, as attacks with other settings are.
    return compared + [record for record in attack if record["victim"] not in victims]


def _curve(group: Sequence[Record]) -> dict[int, Stat]:
    """Join the points of one attack.

    An attack that knew its budget goes before points on the way to a larger one: the questions of
    some depend on it, so the two are not averaged.
    """
    on_the_way: dict[int, dict[int, float]] = defaultdict(dict)
    whole: dict[int, dict[int, float]] = defaultdict(dict)
    for record in sorted(group, key=lambda record: -record["budget"]):
        for point in record["curve"] or []:
            on_the_way[point["queries"]].setdefault(record["seed"], point["accuracy"])
        whole[record["queries"]][record["seed"]] = record["accuracy"]
    values = on_the_way | whole
    return {queries: Stat.of(values[queries]) for queries in sorted(values)}


def _extraction_row(attack: Sequence[Record], compared: int) -> ExtractionRow:
    for budget in {record["budget"] for record in attack}:
        _require_distinct_seeds([record for record in attack if record["budget"] == budget])
    group = [record for record in attack if record["budget"] == compared]
    return ExtractionRow(
        victim=group[0]["victim"],
        pool=group[0]["pool"],
        labels=group[0]["labels"],
        kind={key: value_of(group[0], key) for key in ATTACK_KIND},
        settings={key: group[0][key] for key in _ATTACK_SETTINGS},
        accuracy=_stat(group, "accuracy"),
        fidelity=_stat(group, "fidelity"),
        renamed=_optional_stat(group, "renamed_accuracy"),
        curve=_curve(attack),
        kl=_optional_stat(group, "query_set.kl_to_float"),
        entropy=_optional_stat(group, "query_set.entropy"),
        graphs=_by_seed(group, "graph_sha256"),
    )
