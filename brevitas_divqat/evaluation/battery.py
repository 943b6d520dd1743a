# SPDX-License-Identifier: BSD-3-Clause
"""The attack battery against one deployed graph: all entries, and the worst case for the defender.

::

    DIR/battery.json  battery.png          the measurements and the verdict
    DIR/battery/settings.json              what was attacked, with which seed
    DIR/battery/ENTRY/transcript           questions and answers, where no other entry asked them
    DIR/battery/ENTRY/surrogate            the stolen model
    DIR/battery/ENTRY/measurement.json     written last
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brevitas_divqat.attacks.battery import BATTERIES, FLOOR, Entry
from brevitas_divqat.errors import AttackError, ConfigError, RunExists
from brevitas_divqat.evaluation import metrics
from brevitas_divqat.evaluation.battery_crew import do_jobs
from brevitas_divqat.evaluation.battery_plan import as_shown, plan
from brevitas_divqat.evaluation.battery_process import (
    Job,
    Opened,
    Setting,
    identity,
    open_setting,
)
from brevitas_divqat.evaluation.theft import (
    check_fits,
    check_no_file_in_the_way,
    is_measured,
)
from brevitas_divqat.files import locked, write_json
from brevitas_divqat.progress import Progress, silent

__all__ = ["BATTERY_FILE", "SCHEMA", "run_battery"]

SCHEMA = 1
BATTERY_FILE = "battery.json"


def run_battery(
    setting: Setting,
    *,
    entries: Sequence[Entry] | None = None,
    resume: bool = False,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Path:
    """Carry out all attacks of a battery, measure them, and write the verdict.

    More than one job at a time needs worker processes, which import the calling program: as a
    script, it must start its work under ``if __name__ == "__main__":``.

    Args:
        setting: what is attacked, and with what.
        entries: in place of the battery's own.
        resume: go on with a battery that was interrupted; no answer is asked for again.
        jobs: entries at a time; by default the number of cores, and 1 for hardware.
        progress: shows entries and queries.

    Returns:
        ``battery.json``, see docs/measurements.md.

    Raises:
        RunExists: if the folder holds a battery and ``resume`` is not given.
        ConfigError: if it holds another one, another process is at work in it, or a number is out
            of its range.
        AttackError: naming the entries that failed; what is finished is kept.
    """
    workers = _workers(setting, jobs)
    opened = open_setting(setting)
    check_fits(opened.graph, opened.dataset)
    setting.interface.check_classes(opened.graph.num_classes)
    chosen = BATTERIES[setting.battery] if entries is None else tuple(entries)
    folder = setting.folder / "battery"
    check_no_file_in_the_way(folder)
    if folder.exists() and not resume:
        raise RunExists(f"{folder} holds a battery: go on with --resume or choose another --out")
    expected = identity(setting, opened)
    settings = folder / "settings.json"
    _is_this(settings, expected)
    planned, skipped = plan(setting, opened, chosen)  # what is refused here leaves no folder
    with locked(folder):
        if not _is_this(settings, expected):
            write_json(settings, expected)
        left = [
            job
            for job in planned
            if not is_measured(
                setting.measurement(job.entry.name), {**expected, "entry": job.entry.record()}
            )
        ]
        failed = _work(setting, opened, planned, left, workers, progress)
        if failed:
            name, reason = next(iter(failed.items()))
            more = f" (and {len(failed) - 1} more failed)" if len(failed) > 1 else ""
            raise AttackError(
                f"the entry {name} failed{more}: {reason}; the other entries' results are kept, "
                "go on with --resume"
            )
        record = _record(setting, opened, chosen, planned, skipped)
        write_json(setting.folder / BATTERY_FILE, record)
    return setting.folder / BATTERY_FILE


def _workers(setting: Setting, jobs: int | None) -> int:
    if jobs is None:
        return 1 if setting.hardware else len(os.sched_getaffinity(0))
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}: it must be 1 or more")
    if jobs > 1 and setting.hardware:
        raise ConfigError(
            f"jobs is {jobs}, but {setting.hardware} answers one thief at a time: leave --jobs out"
        )
    return jobs


def _is_this(settings: Path, expected: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds this battery, and refuse another one."""
    return is_measured(settings, expected, remedy="choose another --out")


# The work


def _work(
    setting: Setting,
    opened: Opened,
    planned: Sequence[Job],
    left: Sequence[Job],
    workers: int,
    progress: Progress,
) -> dict[str, str]:
    """Work on what is left; return why entries failed."""
    failed: dict[str, str] = {}
    waiting = {job.entry.name for job in left}
    ready = [replace(job, after=job.after & waiting) for job in left]
    total = sum(job.entry.budget for job in planned)
    asked = total - sum(job.entry.budget for job in left)
    if not ready:
        return failed
    with progress(f"battery {setting.battery}", len(planned)) as show:

        def report(what: str, entry: str, queries: int, reason: str) -> None:
            nonlocal asked
            if what == "failed":
                failed[entry] = reason
            asked += queries
            said = f"; failed: {', '.join(failed)}" if failed else f"; {entry}"
            show(int(what != "asked"), f"{asked:,} of {total:,} answers used{said}")

        show(len(planned) - len(left), f"{asked:,} of {total:,} answers used")
        do_jobs(setting, opened, ready, min(workers, len(ready)), report)
    return failed


# The record


def _record(
    setting: Setting,
    opened: Opened,
    entries: Sequence[Entry],
    planned: Sequence[Job],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    graph, judging = opened.graph, opened.dataset.judging
    jobs = {job.entry.name: job for job in planned}
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if entry.name in skipped:
            row = {"entry": entry.record(), "status": "skipped", "reason": skipped[entry.name]}
        else:
            job = jobs.get(entry.name) or jobs[as_shown(entry, setting.interface).name]
            row = {"status": "measured", **_read(setting.measurement(job.entry.name))}
        rows.append(row)
    measured = [row for row in rows if row["status"] == "measured"]
    asked = {row["transcript"]: row["queries"] for row in measured}
    return {
        "schema": SCHEMA,
        "kind": "battery",
        "victim": graph.metadata.method.get("name", "unknown"),
        **identity(setting, opened),
        "model": graph.metadata.model,
        "bits": graph.metadata.bits,
        "method": graph.metadata.method,
        "images": len(judging),
        "victim_accuracy": metrics.accuracy(graph.judge(judging.images), judging.labels),
        "queries": sum(asked.values()),
        "answers_used": sum(row["queries"] for row in measured),
        "verdict": _verdict(measured),
        "entries": rows,
        "seconds": sum(row["seconds"] for row in measured),
        "victim_seconds": sum(row["victim_seconds"] for row in measured),
    }


def _read(path: Path) -> dict[str, Any]:
    """Read an entry's measurement, whose identity `is_measured` has checked."""
    measured: dict[str, Any] = json.loads(path.read_text())
    for key in ("queries", "accuracy", "fidelity", "seconds", "victim_seconds"):
        value = measured.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ConfigError(
                f"{path} is damaged, {key} is {value!r}: delete it and go on with --resume"
            )
    if not {"transcript", "attack"} <= measured.keys():
        raise ConfigError(f"{path} is damaged: delete it and go on with --resume")
    return measured


def _verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Find the worst case for the defender, and what needs no skill."""
    floor = [row for row in rows if row["attack"] in FLOOR]
    return {
        key: {"worst": _best(rows, key), "floor": _best(floor, key)}
        for key in ("accuracy", "fidelity")
    }


def _best(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    if not rows:
        return None
    row = max(rows, key=lambda row: row[key])
    return {"value": row[key], "entry": row["entry"]["name"]}
