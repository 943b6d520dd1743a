# SPDX-License-Identifier: BSD-3-Clause
"""A battery on the embedded digits: what it leaves, what it skips, that it goes on."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brevitas_divqat.attacks import AttackConfig, read_transcript
from brevitas_divqat.attacks.battery import Entry
from brevitas_divqat.data import DataConfig, load
from brevitas_divqat.errors import AttackError, ConfigError, RunExists
from brevitas_divqat.evaluation import (
    RunConfig,
    battery_crew,
    battery_process,
    export,
    open_folder,
    train,
)
from brevitas_divqat.evaluation.battery import run_battery
from brevitas_divqat.evaluation.battery_plan import plan
from brevitas_divqat.evaluation.battery_process import Job, Setting, open_setting
from brevitas_divqat.executors import ExecutorConfig
from brevitas_divqat.files import locked
from brevitas_divqat.models import ModelConfig
from brevitas_divqat.progress import Progress, Show
from brevitas_divqat.training import TrainingConfig, is_finished
from brevitas_divqat.victims import OutputInterface

DATA = DataConfig(pool_images=200)
CONFIG = RunConfig(
    DATA,
    ModelConfig(width=0.5),
    TrainingConfig(float_epochs=2, epochs=1, batch_size=32, device="cpu"),
)
ENTRIES = (
    Entry("knockoff", "in", "soft", 64, 2),
    Entry("knockoff", "in", "hard", 64, 2),
    Entry("knockoff", "ood", "soft", 64, 1, policy="adaptive"),
    Entry("knockoff", "ood", "soft", 64, 1),
    Entry("knockoff", "in", "soft", 64, 2, surrogate="tfc"),
    Entry("noise", "none", "soft", 64, 1),
)
NAMES = [entry.name for entry in ENTRIES]
TIMES = {"seconds", "victim_seconds"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    open_folder(CONFIG, folder, resume=False)
    train(CONFIG, load(DATA, foreign=False), folder, ["divqat"])
    export(folder / "divqat")
    return folder


@pytest.fixture
def setting(trained: Path, tmp_path: Path) -> Setting:
    return Setting(
        graph=trained / "divqat" / "model-integer.onnx",
        hardware=None,
        executor=ExecutorConfig(),
        interface=OutputInterface(),
        data=DATA,
        reference=trained / "float",
        seed=0,
        folder=tmp_path / "out",
        battery="quick",
        device="cpu",
    )


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted battery."""
    folder = tmp_path_factory.mktemp("whole")
    setting = Setting(
        trained / "divqat" / "model-integer.onnx",
        None,
        ExecutorConfig(),
        OutputInterface(),
        DATA,
        trained / "float",
        0,
        folder,
        "quick",
        "cpu",
    )
    assert run_battery(setting, entries=ENTRIES, jobs=1) == folder / "battery.json"
    return folder


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "battery.json").read_text())
    return content


def timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k not in TIMES}
    return [timeless(v) for v in content] if isinstance(content, list) else content


def weights(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("model.safetensors"))
    }


def watching(events: list[tuple[int, str]]) -> Progress:
    @contextmanager
    def progress(name: str, total: int) -> Iterator[Show]:
        yield lambda steps, text: events.append((steps, text))

    return progress


# What a battery leaves


def test_each_entry_is_measured_in_a_folder_of_its_own(whole: Path) -> None:
    record = read(whole)
    assert (record["schema"], record["kind"], record["victim"]) == (1, "battery", "divqat")
    assert record["battery"] == {"version": 2, "name": "quick"}
    assert [row["entry"]["name"] for row in record["entries"]] == NAMES
    for row in record["entries"]:
        place = whole / "battery" / row["entry"]["name"]
        assert row["status"] == "measured"
        assert {"status": "measured", **json.loads((place / "measurement.json").read_text())} == row
        assert is_finished(place / "surrogate")
        assert (row["kind"], row["queries"], row["seed"]) == ("extraction", 64, 0)
        assert row["graph_sha256"] == record["graph_sha256"]
    none = record["entries"][-1]
    assert (none["pool"], none["pool_name"], none["pool_images"]) == ("none", "none", 0)


def test_the_verdict_is_the_worst_case_for_the_defender(whole: Path) -> None:
    record = read(whole)
    for key in ("accuracy", "fidelity"):
        best = max(record["entries"], key=lambda row: row[key])
        assert record["verdict"][key]["worst"] == {
            "value": best[key],
            "entry": best["entry"]["name"],
        }
        floor = record["entries"][-1]
        assert record["verdict"][key]["floor"] == {"value": floor[key], "entry": "noise-soft"}
    assert record["victim_accuracy"] > 0.2, "an untrained victim would prove nothing"


def test_entries_that_ask_the_same_share_one_transcript(whole: Path) -> None:
    record = read(whole)
    shared = {row["entry"]["name"]: row["transcript"] for row in record["entries"]}
    assert shared["knockoff-in-hard"] == shared["knockoff-in-soft-tfc"] == "knockoff-in-soft"
    assert shared["knockoff-adaptive-ood-soft"] == "knockoff-adaptive-ood-soft"
    for name, folder in shared.items():
        assert (whole / "battery" / name / "transcript").exists() == (name == folder)
        told = read_transcript(whole / "battery" / folder / "transcript")
        assert told is not None
        assert len(told) == 64
    assert record["queries"] == 4 * 64
    assert record["answers_used"] == 6 * 64
    by_name = {row["entry"]["name"]: row for row in record["entries"]}
    assert by_name["knockoff-in-hard"]["victim_seconds"] == 0


def test_the_thread_count_is_left_as_it_was(setting: Setting) -> None:
    import torch

    before = torch.get_num_threads()
    run_battery(setting, entries=ENTRIES[:1], jobs=1)
    assert torch.get_num_threads() == before


def test_progress_counts_entries_and_answers(setting: Setting) -> None:
    events: list[tuple[int, str]] = []
    run_battery(setting, entries=ENTRIES[:2], jobs=1, progress=watching(events))
    assert sum(steps for steps, _ in events) == 2
    assert "128 of 128 answers used" in events[-1][1]


# What cannot be carried out


def skipped(setting: Setting, *entries: Entry) -> dict[str, str]:
    record = read(run_battery(setting, entries=entries, jobs=1).parent)
    assert len(record["entries"]) == len(entries)
    return {
        row["entry"]["name"]: row["reason"]
        for row in record["entries"]
        if row["status"] == "skipped"
    }


def test_what_a_victim_of_labels_cannot_answer_is_skipped_with_the_reason(
    setting: Setting,
) -> None:
    soft, hard = ENTRIES[:2]
    alone = replace(ENTRIES[3], epochs=2)
    sharpened = replace(soft, labels="sharpened")
    setting = replace(setting, interface=OutputInterface("label"))
    reasons = skipped(setting, soft, hard, alone, sharpened)
    assert reasons.keys() == {soft.name, sharpened.name}
    assert hard.name in reasons[soft.name]
    assert "label" in reasons[sharpened.name]
    made_do = read(setting.folder)["entries"][2]
    assert (made_do["labels"], made_do["entry"]["name"]) == ("hard", "knockoff-ood-hard")


def test_weights_of_photographs_and_the_own_architecture_are_skipped(setting: Setting) -> None:
    pretrained = replace(ENTRIES[0], pretrained=True)
    own = replace(ENTRIES[0], surrogate="lenet5")
    large = replace(ENTRIES[0], surrogate="cnv")
    reasons = skipped(setting, ENTRIES[1], pretrained, own, large)
    assert "photographs have no labels" in reasons[pretrained.name]
    assert "own architecture" in reasons[own.name]
    assert "cnv needs" in reasons[large.name]
    assert all("\n" not in reason for reason in reasons.values())


def test_surrogates_of_an_unknown_architecture_are_skipped(setting: Setting) -> None:
    opened = open_setting(setting)
    opened.graph.metadata = replace(opened.graph.metadata, model="homemade", bits={})
    jobs, reasons = plan(setting, opened, ENTRIES)
    assert [job.entry.surrogate for job in jobs] == ["tfc"]
    assert all("'homemade' is not known" in reason for reason in reasons.values())
    shadows = replace(ENTRIES[4], labels="recovered")
    bits = replace(ENTRIES[4], surrogate_bits="victim")
    jobs, reasons = plan(setting, opened, [shadows, bits])
    assert jobs == []
    assert "shadow models" in reasons[shadows.name]
    assert "bit widths are not known" in reasons[bits.name]


def test_a_battery_of_which_nothing_is_possible_has_no_verdict(setting: Setting) -> None:
    own = replace(ENTRIES[0], surrogate="lenet5")
    assert skipped(setting, own).keys() == {own.name}
    assert read(setting.folder)["verdict"]["accuracy"] == {"worst": None, "floor": None}


def test_weights_of_another_data_set_are_trained_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load(DATA, foreign=False)
    asked: list[DataConfig] = []
    monkeypatch.setattr(
        battery_process, "load", lambda data, **_: (asked.append(data), load(DATA))[1]
    )
    setting = replace(setting, data=replace(DATA, ood="mnist"))
    entries = [replace(e, pretrained=True) for e in ENTRIES[:2]]
    record = read(run_battery(setting, entries=entries, jobs=1).parent)
    place = setting.folder / "battery" / "pretrained-lenet5"
    assert is_finished(place)
    assert sum(data.data == "mnist" for data in asked) == 3, "twice to plan, once to train"
    for row in record["entries"]:
        assert row["status"] == "measured"
        assert row["surrogate"]["weights"] == "mnist"
    assert str(setting.folder) not in (setting.folder / "battery.json").read_text()
    assert digits.num_classes == 10


# Going on


def test_a_battery_that_was_interrupted_ends_as_if_it_were_not(
    setting: Setting, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steal, calls = battery_process.steal, 0

    def interrupted(*args: Any, **options: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        record = steal(*args, **options)
        if calls % 2 == 0:  # after its work, before it is written
            raise KeyboardInterrupt
        return record

    monkeypatch.setattr(battery_process, "steal", interrupted)
    for _ in range(len(ENTRIES) - 1):
        with pytest.raises(KeyboardInterrupt):
            run_battery(setting, entries=ENTRIES, jobs=1, resume=True)
        assert not (setting.folder / "battery.json").exists()
    run_battery(setting, entries=ENTRIES, jobs=1, resume=True)
    assert calls < 2 * len(ENTRIES), "what was finished is not done again"
    assert timeless(read(setting.folder)) == timeless(read(whole))
    assert weights(setting.folder) == weights(whole)


def test_a_finished_battery_is_left_as_it_is(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_battery(setting, entries=ENTRIES[:2], jobs=1)
    before = (setting.folder / "battery.json").read_bytes()
    monkeypatch.delattr(battery_process, "steal")
    run_battery(setting, entries=ENTRIES[:2], jobs=1, resume=True)
    assert (setting.folder / "battery.json").read_bytes() == before


def test_a_battery_is_not_overwritten(setting: Setting) -> None:
    run_battery(setting, entries=ENTRIES[:1], jobs=1)
    with pytest.raises(RunExists, match="--resume"):
        run_battery(setting, entries=ENTRIES[:1], jobs=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 1}, "seed is 0, here 1"),
        ({"interface": OutputInterface("logits")}, "interface is"),
        ({"battery": "full"}, "battery is"),
        ({"executor": ExecutorConfig("reference")}, "executor is integer, here reference"),
        ({"device": "cuda"}, "surrogate_device is cpu, here cuda"),
        ({"data": DataConfig(pool_images=201)}, "pools is"),
    ],
)
def test_another_battery_is_not_gone_on_with(
    setting: Setting, change: dict[str, Any], match: str
) -> None:
    run_battery(setting, entries=ENTRIES[:1], jobs=1)
    with pytest.raises(ConfigError, match=match) as caught:
        run_battery(replace(setting, **change), entries=ENTRIES[:1], jobs=1, resume=True)
    assert "\n" not in str(caught.value)


def test_other_images_of_the_same_name_are_another_pool(setting: Setting, tmp_path: Path) -> None:
    images = np.zeros((70, 8, 8), np.uint8)
    np.save(tmp_path / "pool.npy", images)
    setting = replace(setting, data=DataConfig(pool=tmp_path / "pool.npy"))
    record = read(run_battery(setting, entries=ENTRIES[5:], jobs=1).parent)
    pool = record["pools"]["ood"]
    assert (pool["name"], pool["images"]) == ("pool.npy", 70)
    assert record["pools"]["in"]["images"] == 450
    run_battery(setting, entries=ENTRIES[5:], jobs=1, resume=True)
    images[3, 2, 1] = 1
    np.save(tmp_path / "pool.npy", images)
    with pytest.raises(ConfigError, match="settings.json is of another run: pools is"):
        run_battery(setting, entries=ENTRIES[5:], jobs=1, resume=True)
    (setting.folder / "battery" / "settings.json").unlink()
    with pytest.raises(ConfigError, match="measurement.json is of another run: pools is"):
        run_battery(setting, entries=ENTRIES[5:], jobs=1, resume=True)


def test_a_battery_that_another_process_works_on_is_left_alone(setting: Setting) -> None:
    with locked(setting.folder / "battery"):
        with pytest.raises(ConfigError, match="in use by another process"):
            run_battery(setting, entries=ENTRIES[5:], jobs=1, resume=True)
        assert [p.name for p in (setting.folder / "battery").iterdir()] == [".lock"]
    run_battery(setting, entries=ENTRIES[5:], jobs=1)


@pytest.mark.parametrize("change", [{"accuracy": "high"}, {"seconds": None}])
def test_a_damaged_measurement_is_named(setting: Setting, change: dict[str, Any]) -> None:
    run_battery(setting, entries=ENTRIES[:1], jobs=1)
    path = setting.measurement(ENTRIES[0].name)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=r"measurement.json is damaged, .*--resume") as caught:
        run_battery(setting, entries=ENTRIES[:1], jobs=1, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_begin_leaves_no_folder(setting: Setting) -> None:
    with pytest.raises(ConfigError, match="finds no GPU"):
        run_battery(replace(setting, device="cuda"), entries=ENTRIES[:1], jobs=1)
    run_battery(setting, entries=ENTRIES[:1], jobs=1)


def test_an_entry_with_other_settings_is_not_taken_over(setting: Setting) -> None:
    run_battery(setting, entries=ENTRIES[:1], jobs=1)
    other = replace(ENTRIES[0], epochs=3)
    with pytest.raises(ConfigError, match="entry is"):
        run_battery(setting, entries=[other], jobs=1, resume=True)


# Failures


@pytest.mark.parametrize("error", [AttackError("the board is gone"), RuntimeError("a\ndefect")])
def test_an_entry_that_fails_is_named_and_the_others_stay(
    setting: Setting, whole: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    steal = battery_process.steal

    def failing(graph: Any, config: AttackConfig, *args: Any, **options: Any) -> dict[str, Any]:
        if config.policy == "adaptive":
            raise error
        return steal(graph, config, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(battery_process, "steal", failing)
        with pytest.raises(AttackError, match="knockoff-adaptive-ood-soft failed") as caught:
            run_battery(setting, entries=ENTRIES, jobs=1)
    assert "\n" not in str(caught.value)
    assert not (setting.folder / "battery.json").exists()
    kept = {path.parent.name for path in setting.folder.rglob("measurement.json")}
    assert kept == set(NAMES) - {"knockoff-adaptive-ood-soft"}
    run_battery(setting, entries=ENTRIES, jobs=1, resume=True)
    assert timeless(read(setting.folder)) == timeless(read(whole))


def test_jobs_out_of_range_are_refused(setting: Setting) -> None:
    with pytest.raises(ConfigError, match="jobs is 0"):
        run_battery(setting, jobs=0)
    hardware = replace(setting, graph=None, hardware="rtl:build")
    with pytest.raises(ConfigError, match="one thief at a time"):
        run_battery(hardware, jobs=2)


# Processes


class Crew(battery_crew._Crew):
    """Workers whose other end of the pipe the test holds."""

    def __init__(self, setting: Setting, jobs: list[Job]) -> None:
        super().__init__(setting, list(jobs), lambda *_: None)
        self.theirs: dict[str, Any] = {}

    def _hire(self) -> Any:
        ours, theirs = multiprocessing.Pipe()
        worker = battery_crew._Worker(None, ours)  # type: ignore[arg-type]
        self.theirs[str(len(self._workers))] = theirs
        self._workers.append(worker)
        return worker

    def working(self) -> list[str]:
        self._hand_out(3)
        return sorted(worker.job.entry.name for worker in self._workers if worker.job)

    def ends(self, entry: str, what: str) -> None:
        (number,) = (n for n, w in enumerate(self._workers) if w.job and w.job.entry.name == entry)
        self.theirs[str(number)].send((what, entry, 0, ""))
        self._listen()


def test_entries_whose_asker_failed_ask_one_at_a_time(setting: Setting) -> None:
    asker, trainer = "knockoff-in-soft", "noise-soft"
    other = Job(ENTRIES[5], trainer)
    jobs = [Job(ENTRIES[0], asker), other]
    waiting = [replace(ENTRIES[0], labels=labels) for labels in ("bayes", "dropped", "hard")]
    jobs += [Job(entry, asker, frozenset([asker])) for entry in waiting]
    first, second, third = (entry.name for entry in waiting)
    crew = Crew(setting, jobs)
    assert crew.working() == sorted([asker, trainer])
    crew.ends(asker, "failed")
    assert crew.working() == sorted([first, trainer])
    crew.ends(trainer, "done")
    assert crew.working() == [first], "the others would ask what it asks"
    crew.ends(first, "failed")
    assert crew.working() == [second]
    crew.ends(second, "done")
    assert crew.working() == [third]

    crew = Crew(setting, jobs)
    crew.working()
    crew.ends(asker, "failed")
    crew.working()
    crew.ends(first, "done")
    assert crew.working() == sorted([second, third, trainer]), "now the answers are there"


def test_entries_begin_together_once_their_asker_is_done(setting: Setting) -> None:
    jobs = [Job(ENTRIES[0], "knockoff-in-soft")]
    after = frozenset(["knockoff-in-soft"])
    jobs += [Job(entry, "knockoff-in-soft", after) for entry in (ENTRIES[1], ENTRIES[4])]
    crew = Crew(setting, jobs)
    assert crew.working() == ["knockoff-in-soft"]
    crew.ends("knockoff-in-soft", "done")
    assert crew.working() == ["knockoff-in-hard", "knockoff-in-soft-tfc"]


@pytest.mark.slow
def test_two_processes_give_the_same_numbers_as_none(
    setting: Setting, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_battery(setting, entries=ENTRIES, jobs=2)
    assert capfd.readouterr().err == "", "other packages' notes"
    assert timeless(read(setting.folder)) == timeless(read(whole))
    assert weights(setting.folder) == weights(whole)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_process_that_is_killed_is_reported_and_the_others_go_on(
    setting: Setting, whole: Path
) -> None:
    killed: list[int] = []

    @contextmanager
    def killing(name: str, total: int) -> Iterator[Show]:
        def show(steps: int, text: str) -> None:
            if not killed and multiprocessing.active_children():
                victim = multiprocessing.active_children()[0]
                killed.append(victim.pid or 0)
                victim.kill()

        yield show

    with pytest.raises(AttackError, match="by signal 9") as caught:
        run_battery(setting, entries=ENTRIES, jobs=2, progress=killing)
    assert "\n" not in str(caught.value)
    assert len(list(setting.folder.rglob("measurement.json"))) >= len(ENTRIES) - 1
    run_battery(setting, entries=ENTRIES, jobs=2, resume=True)
    assert timeless(read(setting.folder)) == timeless(read(whole))


@pytest.mark.slow
def test_an_interruption_ends_the_processes(setting: Setting, whole: Path) -> None:
    @contextmanager
    def stopping(name: str, total: int) -> Iterator[Show]:
        def show(steps: int, text: str) -> None:
            if multiprocessing.active_children():
                raise KeyboardInterrupt

        yield show

    with pytest.raises(KeyboardInterrupt):
        run_battery(setting, entries=ENTRIES, jobs=2, progress=stopping)
    assert multiprocessing.active_children() == []
    run_battery(setting, entries=ENTRIES, jobs=1, resume=True)
    assert timeless(read(setting.folder)) == timeless(read(whole))
