# SPDX-License-Identifier: BSD-3-Clause
"""The attack battery: fixed, versioned lists of attacks. docs/attacks.md shows the standard one.

A change of an entry that can change a number is a new `VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from brevitas_divqat.attacks.answers import Labels
from brevitas_divqat.attacks.config import VICTIMS_OWN, SurrogateBits
from brevitas_divqat.attacks.inquiry import CopyKind
from brevitas_divqat.attacks.knockoff import Policy
from brevitas_divqat.attacks.registry import AttackName
from brevitas_divqat.attacks.trainings import NEED_SOFT, Training

__all__ = [
    "BATTERIES",
    "FLOOR",
    "VERSION",
    "BatteryName",
    "BatteryPool",
    "Entry",
]

VERSION = 2

BatteryName = Literal["quick", "standard", "full"]
BatteryPool = Literal["in", "ood", "none"]

FLOOR: tuple[AttackName, ...] = ("noise",)
"""What needs neither images nor skill: an attack that gains no more is none."""
MADE_UP: tuple[AttackName, ...] = (*FLOOR, "synthetic")
"""What asks about images that are made from random numbers alone."""

ATTACK_SOURCES: Mapping[AttackName, str] = {
    "knockoff": "KnockoffNets, CVPR 2019",
    "copycat": "Copycat CNN, IJCNN 2018",
    "activethief-uncertainty": "ActiveThief, AAAI 2020",
    "activethief-k-center": "ActiveThief, AAAI 2020",
    "activethief-deepfool": "ActiveThief, AAAI 2020",
    "activethief-deepfool-k-center": "ActiveThief, AAAI 2020",
    "jbda": "Papernot et al., AsiaCCS 2017",
    "jb-topk": "Prediction Poisoning, ICLR 2020",
    "jbtr": "PRADA, EuroS&P 2019",
    "dfme": "DFME, CVPR 2021",
    "maze": "MAZE, CVPR 2021",
    "dfms-hl": "DFMS-HL, CVPR 2022",
    "ripper": "Black-Box Ripper, NeurIPS 2020",
    "noise": "floor",
    "synthetic": "random process, after NeurIPS 2021",
}
LABEL_SOURCES: Mapping[Labels, str] = {
    "soft": "",
    "hard": "",
    "temperature": "fitted temperature",
    "recovered": "D-DAE, S&P 2023",
    "bayes": "ModelGuard, USENIX Security 2024",
    "sharpened": "inverts the published loss",
    "reranked": "inverts the published loss",
    "dropped": "inverts the published loss",
}
TRAINING_SOURCES: Mapping[Training, str] = {
    "plain": "",
    "smoothing-aware": "forward correction, CVPR 2017",
    "rotation": "S4L, ICCV 2019",
    "consistency": "FixMatch, NeurIPS 2020",
    "anti-nasty": "HTC and SCM, ECCV 2022",
    "skeptical": "Skeptical Students, NeurIPS 2021",
}


@dataclass(frozen=True)
class Entry:
    """One attack of a battery.

    Attributes:
        attack: what the victim is asked.
        pool: the thief's images: of the victim's distribution, foreign, or none.
        labels: what is made of an answer. Where the victim shows labels alone, soft ones are hard.
        budget: queries.
        epochs: of the surrogate's training on the answers.
        policy: of KnockoffNets.
        training: how the surrogate learns.
        copies: queries about each image.
        copy_kind: how they vary.
        surrogate: its architecture; ``victim`` is the victim's own.
        surrogate_bits: full precision, or the victim's bit widths.
        pretrained: whether its weights come from another labelled data set.
    """

    attack: AttackName
    pool: BatteryPool
    labels: Labels
    budget: int
    epochs: int
    policy: Policy = "random"
    training: Training = "plain"
    copies: int = 1
    copy_kind: CopyKind = "shifted"
    surrogate: str = VICTIMS_OWN
    surrogate_bits: SurrogateBits = "full"
    pretrained: bool = False

    @property
    def name(self) -> str:
        """What sets the entry apart from the others, and the name of its folder."""
        parts: list[str] = [self.attack]
        parts += [self.policy] if self.policy != "random" else []
        parts += [self.pool] if self.pool != "none" else []
        parts += [self.labels]
        parts += [self.training] if self.training != "plain" else []
        parts += [f"{self.copies}-{self.copy_kind}"] if self.copies > 1 else []
        parts += [self.surrogate] if self.surrogate != VICTIMS_OWN else []
        parts += ["victims-bits"] if self.surrogate_bits == "victim" else []
        parts += ["pretrained"] if self.pretrained else []
        return "-".join(parts)

    @property
    def source(self) -> str:
        """The papers."""
        copies = "ModelGuard, USENIX Security 2024" if self.copies > 1 else ""
        found = (
            ATTACK_SOURCES[self.attack],
            LABEL_SOURCES[self.labels],
            TRAINING_SOURCES[self.training],
            copies,
        )
        return "; ".join(dict.fromkeys(source for source in found if source))

    @property
    def questions(self) -> tuple[object, ...]:
        """What decides the questions of an attack that does not learn on its way."""
        return self.attack, self.policy, self.pool, self.budget, self.copies, self.copy_kind

    def record(self) -> dict[str, Any]:
        """Return the entry as measurements hold it."""
        return {"name": self.name, **asdict(self), "source": self.source}


POOLS: tuple[BatteryPool, ...] = ("ood", "in")
ACTIVE: tuple[AttackName, ...] = (
    "activethief-uncertainty",
    "activethief-k-center",
    "activethief-deepfool",
    "activethief-deepfool-k-center",
)
AUGMENTING: tuple[AttackName, ...] = ("jbda", "jb-topk", "jbtr")
CORRECTED: tuple[Labels, ...] = (
    "temperature",
    "recovered",
    "bayes",
    "sharpened",
    "reranked",
    "dropped",
)
LEARNING: tuple[Training, ...] = (
    "smoothing-aware",
    "rotation",
    "consistency",
    "anti-nasty",
    "skeptical",
)


def _quick() -> Iterator[Entry]:
    entry = partial(Entry, budget=2_000, epochs=8)
    for pool in POOLS:
        yield entry("knockoff", pool, "soft")
        yield entry("knockoff", pool, "hard")
        yield entry("knockoff", pool, "temperature")
    yield entry("knockoff", "ood", "sharpened")
    yield entry("activethief-k-center", "ood", "soft")
    yield entry("jbda", "in", "soft")
    for attack in MADE_UP:
        yield entry(attack, "none", "soft")


def _standard() -> Iterator[Entry]:
    entry = partial(Entry, budget=10_000, epochs=12)
    data_free = partial(Entry, budget=100_000, epochs=12)
    for pool in POOLS:
        yield entry("knockoff", pool, "soft")
        yield entry("knockoff", pool, "hard")
    yield entry("knockoff", "ood", "soft", policy="adaptive")
    yield entry("copycat", "ood", "hard")
    for attack in ACTIVE:
        yield entry(attack, "ood", "soft")
    yield entry("activethief-k-center", "in", "soft")
    for attack in AUGMENTING:
        yield entry(attack, "in", "soft")
    yield data_free("dfme", "none", "soft")
    yield data_free("maze", "none", "soft")
    yield data_free("dfms-hl", "none", "hard")
    yield data_free("ripper", "ood", "soft")
    for attack in MADE_UP:
        yield entry(attack, "none", "soft")
    for labels in CORRECTED:
        yield entry("knockoff", "ood", labels)
    yield entry("knockoff", "in", "temperature")
    yield entry("knockoff", "in", "recovered")
    for training in LEARNING:
        yield entry("knockoff", "ood", "soft", training=training)
    yield entry("knockoff", "in", "soft", training="consistency")
    yield from _varied(entry("knockoff", "ood", "soft"))
    yield entry("knockoff", "in", "soft", pretrained=True)


def _full() -> Iterator[Entry]:
    entry = partial(Entry, budget=50_000, epochs=30)
    data_free = partial(Entry, budget=2_000_000, epochs=30)
    for pool in POOLS:
        plain = entry("knockoff", pool, "soft")
        for attack in ("knockoff", *ACTIVE, *AUGMENTING):
            yield entry(attack, pool, "soft")
            yield entry(attack, pool, "hard")
        yield entry("copycat", pool, "hard")
        yield replace(plain, policy="adaptive")
        for attack in ("knockoff", "activethief-k-center", "jbtr"):
            for labels in CORRECTED:
                yield entry(attack, pool, labels)
        for training in LEARNING:
            yield replace(plain, training=training)
            yield replace(plain, training=training, labels="temperature")
            if training not in NEED_SOFT:
                yield replace(plain, training=training, labels="hard")
        yield from _varied(plain)
        yield replace(plain, surrogate="resnet8")
    yield data_free("dfme", "none", "soft")
    yield data_free("maze", "none", "soft")
    yield data_free("dfms-hl", "none", "hard")
    for pool in POOLS:
        yield entry("ripper", pool, "soft", budget=500_000)
    for attack in MADE_UP:
        yield entry(attack, "none", "soft")
        yield entry(attack, "none", "hard")


def _varied(plain: Entry) -> Iterator[Entry]:
    """Vary the questions about an image, and the surrogate."""
    for kind in get_args(CopyKind):
        yield replace(plain, copies=3, copy_kind=kind)
    yield replace(plain, surrogate="sfc")
    yield replace(plain, surrogate_bits="victim")
    yield replace(plain, pretrained=True)


BATTERIES: Mapping[BatteryName, tuple[Entry, ...]] = {
    "quick": tuple(_quick()),
    "standard": tuple(_standard()),
    "full": tuple(_full()),
}
"""The entries of each battery, in the order in which they are shown."""
