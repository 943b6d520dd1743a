# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark of training steps: what its record says, that variants are what they say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from brevitas_divqat.cli import main
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.evaluation import bench_training as parent
from brevitas_divqat.evaluation import training_process as process
from brevitas_divqat.evaluation.bench_process import run_apart
from brevitas_divqat.evaluation.bench_training import bench_training, training_table
from brevitas_divqat.loss.seeker import CROWD

TASK = process.TrainingTask("lenet5", 0.25, 4, 2, "cpu", 1, 1e-3)
NAMES = [variant.name for variant in process.VARIANTS]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Answer at once, with durations that are known; list the tasks."""
    tasks: list[dict[str, Any]] = []

    def answer(module: str, task: dict[str, Any], folder: Path, *, threads: int) -> Any:
        assert threads == task["threads"]
        tasks.append(task)
        slower = len(tasks)
        seconds = {
            name: [0.001 * (number + 1) * slower * step for step in (1, 2, 3)]
            for number, name in enumerate(NAMES)
        }
        del seconds[NAMES[-1]]
        return {"seconds": seconds, "refused": {NAMES[-1]: "no such thing here"}}

    monkeypatch.setattr(parent, "run_apart", answer)
    return tasks


def test_the_record_says_what_was_measured_on_what(here: list[dict[str, Any]]) -> None:
    record = bench_training("cnv", width=0.25, threads=[1], seconds=0.5, rounds=2)
    assert (record["schema"], record["kind"]) == (1, "bench-training")
    assert record["model"] == {
        "model": "cnv",
        "width": 0.25,
        "bits": 4,
        "image_shape": [3, 32, 32],
        "float_parameters": record["model"]["float_parameters"],
    }
    assert record["settings"]["batch_size"] == 128
    assert set(record["machine"]) == {"processor", "cores", "flags", "gpu"}
    assert [row["variant"] for row in record["rows"]] == NAMES
    assert [r["variant"] for r in record["rows"] if r["outliers"]] == [
        "DivQAT, outliers",
        "DivQAT, outliers, generated too",
        "DivQAT, outliers, fast",
        "DivQAT, outliers, generated too, fast",
    ]
    assert [task["seconds"] for task in here] == [0.5, 0.5]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_ratios_are_of_neighbours_in_time(here: list[dict[str, Any]]) -> None:
    rows = bench_training(threads=[1], rounds=2)["rows"]
    base = NAMES.index(process.BASE)
    for number, row in enumerate(rows[:-1]):
        assert row["ratio_to_qat"] == pytest.approx((number + 1) / (base + 1))
        assert row["ratios_of_rounds"] == pytest.approx([(number + 1) / (base + 1)] * 2)
        assert row["steps"] == 6
        assert row["fastest_ms"] == pytest.approx(number + 1)
        assert row["median_ms"] == pytest.approx((number + 1) * 2.5)
    assert rows[-1]["status"] == "not available"
    assert rows[-1]["reason"] == "no such thing here"


def test_the_table_shows_every_row(here: list[dict[str, Any]]) -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(training_table(bench_training(threads=[1])))
    text = console.export_text()
    assert [name for name in NAMES if f" {name} " not in text] == []
    assert "not available" in text


def test_variants_take_turns_and_equally_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(
        process, "_step_of", lambda variant, task: lambda: taken.append(variant.name)
    )
    monkeypatch.setattr(process, "_timed", lambda step, device: step() or 1.0)
    answer = process.measure(TASK)
    taken = taken[process.WARM_UP * len(NAMES) :]
    assert {len(times) for times in answer["seconds"].values()} == {process.LEAST_CYCLES}
    cycles = [taken[n : n + len(NAMES)] for n in range(0, len(taken), len(NAMES))]
    assert [sorted(cycle) for cycle in cycles] == [sorted(NAMES)] * process.LEAST_CYCLES
    assert len({cycle[0] for cycle in cycles}) == process.LEAST_CYCLES


def model_of(step: Callable[[], None]) -> torch.nn.Module:
    """Return the model that a step trains."""
    held = [cell.cell_contents for cell in step.__closure__ or ()]
    (model,) = (content for content in held if isinstance(content, torch.nn.Module))
    return model


@pytest.mark.parametrize("variant", process.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_takes_steps(variant: process.Variant) -> None:
    step = process._step_of(variant, TASK)
    step()
    model = model_of(step)
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("RescalingIntQuant" in kinds) == (variant.quantized and not variant.fast)
    assert ("FusedIntQuant" in kinds) == variant.fast


@pytest.mark.parametrize("variant", process.VARIANTS, ids=lambda variant: variant.name)
def test_a_step_with_outliers_trains_on_more_rows_and_asks_the_original_about_these(
    variant: process.Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Watched(process.DivQATLoss):
        def __init__(self, reference: torch.nn.Module, **options: Any) -> None:
            super().__init__(reference, **options)
            self.reference.register_forward_pre_hook(lambda _, x: asked.append(len(x[0])))

    monkeypatch.setattr(process, "DivQATLoss", Watched)
    step = process._step_of(variant, replace(TASK, batch_size=6))
    asked.clear()  # what is cached is asked about once, before
    trained: list[int] = []
    model_of(step).register_forward_pre_hook(lambda _, x: trained.append(len(x[0])))
    step()
    extra = [3] if variant.outliers else []
    sought = [CROWD] if "generated" in variant.outliers else []
    assert trained == [*sought, 6 + sum(extra)]
    assert asked == (extra or ([6] if variant.reference == "each step" else []))


def test_a_variant_that_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: torch.nn.Module) -> list[str]:
        raise ConfigError("not with this Brevitas")

    monkeypatch.setattr(process, "speed_up", refuse)
    answer = process.measure(TASK)
    fast = {variant.name for variant in process.VARIANTS if variant.fast}
    assert answer["refused"] == dict.fromkeys(fast, "not with this Brevitas")
    assert set(answer["seconds"]) == set(NAMES) - fast


@pytest.mark.slow
def test_a_fresh_process_measures(tmp_path: Path) -> None:
    task = {**asdict(TASK), "model": "tfc"}
    answer = run_apart(parent.PROCESS, task, tmp_path, threads=1)
    assert set(answer["seconds"]) == set(NAMES)
    assert all(time > 0 for times in answer["seconds"].values() for time in times)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "lenet6"}, "lenet6"),
        ({"width": 0.0}, "width"),
        ({"bits": 99}, "99"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"device": "tpu"}, "'tpu'"),
        ({"threads": [0]}, "threads"),
        ({"seconds": 0.0}, "seconds"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_settings_out_of_range_are_refused(
    here: list[dict[str, Any]], wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        bench_training(**wrong)
    assert here == []


def test_without_a_gpu_cuda_is_refused_in_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "training", "--device", "cuda"]) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert said[-1] == "divqat: error: device is 'cuda', but torch finds no GPU: choose 'cpu'"


def test_the_command_writes_the_record(
    capfd: pytest.CaptureFixture[str], here: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "training.json"
    flags = ["--model", "cnv", "--width", "0.5", "--bits", "2", "--batch-size", "4"]
    argv = ["bench", "training", *flags, "--threads", "[1]", "--rounds", "1", "--out", str(out)]
    assert main(argv) == 0
    record = json.loads(out.read_text())
    assert record["model"]["bits"] == 2
    assert (here[0]["model"], here[0]["width"], here[0]["batch_size"]) == ("cnv", 0.5, 4)
    assert "QAT, fast" in capfd.readouterr().out
    assert main(argv) == 2


def test_what_can_be_measured_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu"]) == 2
    said = capfd.readouterr().err
    assert "say 'executor' or 'training' or 'attacks' or 'hardware' first, got 'gpu'" in said
    assert "--what" not in said
