# SPDX-License-Identifier: BSD-3-Clause
"""What of a battery can be carried out against a victim, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from brevitas_divqat.attacks import AttackConfig
from brevitas_divqat.attacks.battery import Entry
from brevitas_divqat.attacks.config import VICTIMS_OWN
from brevitas_divqat.errors import ConfigError, DataError
from brevitas_divqat.evaluation.battery_process import Job, Opened, Setting, foreign_labelled
from brevitas_divqat.evaluation.theft import published_defence, resources_of
from brevitas_divqat.models import MODELS
from brevitas_divqat.training import check_fit
from brevitas_divqat.victims import OutputInterface, Victim

__all__ = ["as_shown", "plan"]


def plan(
    setting: Setting, opened: Opened, entries: Sequence[Entry]
) -> tuple[list[Job], dict[str, str]]:
    """Decide which entries can be carried out, and in which order.

    Args:
        setting: of the battery.
        opened: the same, opened.
        entries: of the battery.

    Returns:
        The jobs, and why each of the other entries is skipped.
    """
    device = AttackConfig(surrogate_device=setting.device).fit_config("none")
    check_fit(device, device.batch_size)
    skipped: dict[str, str] = {}
    possible: list[Entry] = []
    for entry in entries:
        allowed = as_shown(entry, setting.interface)
        if allowed != entry and allowed in entries:
            reason = f"the victim shows labels alone, which makes it {allowed.name}"
        else:
            reason = _reason_against(setting, opened, allowed)
        if reason:
            skipped[entry.name] = reason
        else:
            possible.append(allowed)
    return _ordered(possible), skipped


def as_shown(entry: Entry, interface: OutputInterface) -> Entry:
    """Let a thief that wants soft labels make do with hard ones where there are no others."""
    if interface.interface == "label" and entry.labels == "soft" and entry.copies == 1:
        return replace(entry, labels="hard")
    return entry


def _reason_against(setting: Setting, opened: Opened, entry: Entry) -> str:
    """Say why an entry cannot be carried out, or nothing."""
    graph, dataset = opened.graph, opened.dataset
    if entry.surrogate == VICTIMS_OWN and graph.metadata.model not in MODELS:
        return (
            f"the victim's architecture {graph.metadata.model!r} is not known: register_model of "
            "brevitas_divqat.models makes it so"
        )
    try:
        config = setting.config(entry, graph)
        if config.surrogate == graph.metadata.model and entry.surrogate == config.surrogate:
            return f"{config.surrogate} is the victim's own architecture"
        if entry.pretrained:
            foreign_labelled(setting.data)
            config = replace(config, surrogate_weights=None)  # trained when it is the entry's turn
        resources = resources_of(graph, config, dataset, pool=entry.pool, seed=setting.seed)
        attack = config.prepared(
            entry.labels, dataset.augmentation, published_defence(graph.metadata)
        )
        attack.check(Victim(graph, interface=setting.interface), resources)
    except (ConfigError, DataError) as error:
        return " ".join(str(error).split())
    return ""


def _ordered(entries: Sequence[Entry]) -> list[Job]:
    """Make jobs: first those that ask what others train on, then the longest."""
    asks: dict[tuple[object, ...], str] = {}
    trains: dict[str, str] = {}
    jobs: list[Job] = []
    for entry in entries:
        after = set()
        transcript = entry.name
        if not _strategy_learns(entry):
            transcript = asks.setdefault(entry.questions, entry.name)
        if entry.pretrained:
            after.add(trains.setdefault(entry.surrogate, entry.name))
        after |= {transcript}
        jobs.append(Job(entry, transcript, frozenset(after - {entry.name})))
    first = {name for job in jobs for name in job.after}
    return sorted(jobs, key=lambda job: (job.entry.name not in first, -_length(job.entry)))


def _strategy_learns(entry: Entry) -> bool:
    config = AttackConfig(attack=entry.attack, policy=entry.policy, surrogate="lenet5")
    return config.strategy().learns


def _length(entry: Entry) -> int:
    """Estimate how long an entry takes, by images that are trained on."""
    again = 3 if _strategy_learns(entry) or entry.training != "plain" else 1
    return again * entry.budget * entry.epochs
