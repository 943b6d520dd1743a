# SPDX-License-Identifier: BSD-3-Clause
"""A training that was interrupted and resumed equals the uninterrupted one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_divqat.data import Dataset
from brevitas_divqat.errors import CheckpointError, ConfigError, RunExists
from brevitas_divqat.loss import DivQATLoss
from brevitas_divqat.training import FitConfig, FitResult, cross_entropy, fit
from brevitas_divqat.training.state import read_tensors

MakeModel = Callable[..., nn.Module]
STEPS_PER_EPOCH = 4


class Spoiler(nn.Module):
    """Cross-entropy for eight steps, and then as if every image were of class 0: the best epoch is
    one of the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        self.steps += 1
        return F.cross_entropy(logits, targets if self.steps <= 8 else 0 * targets)


class Case(NamedTuple):
    """One interruption."""

    after: int
    loss: str = "cross-entropy"
    optimizer: str = "adam"
    validation: bool = True
    augmentation: str = "none"

    @property
    def id(self) -> str:
        parts = [self.loss, self.optimizer, self.augmentation]
        chosen = "selected" if self.validation else "last"
        return "-".join([*parts, chosen, f"step {self.after}"])


CASES = [
    Case(after=2),
    Case(after=4),
    Case(after=9, augmentation="shift-flip"),
    Case(after=15, validation=False),
    Case(after=6, optimizer="sgd"),
    Case(after=6, loss="divqat"),
    Case(after=13, loss="divqat", optimizer="sgd", augmentation="shift"),
    Case(after=15, loss="spoiled"),
    Case(after=14, loss="spoiled", optimizer="sgd"),
]


def make_criterion(case: Case, make_model: MakeModel) -> Any:
    if case.loss == "divqat":
        return DivQATLoss(make_model("small float"), preset="F1", alpha=0.5, warmup_steps=10)
    return Spoiler() if case.loss == "spoiled" else cross_entropy


def run(
    case: Case, make_model: MakeModel, digits: Dataset, kind: str = "small", **options: Any
) -> tuple[dict[str, Tensor], FitResult]:
    model = make_model(kind)
    result = fit(
        model,
        make_criterion(case, make_model),
        digits.train.images,
        digits.train.labels,
        config=FitConfig(
            epochs=4,
            batch_size=16,
            lr=3e-2,
            optimizer=case.optimizer,  # type: ignore[arg-type]
            augmentation=case.augmentation,  # type: ignore[arg-type]
            device="cpu",
        ),
        seed=0,
        validation=digits.validation if case.validation else None,
        **options,
    )
    return model.state_dict(), result


def without_speed(result: FitResult) -> list[dict[str, float]]:
    return [
        {key: value for key, value in record.items() if key != "images_per_second"}
        for record in result.history
    ]


def assert_equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def assert_same_run(
    first: tuple[dict[str, Tensor], FitResult], second: tuple[dict[str, Tensor], FitResult]
) -> None:
    assert without_speed(first[1]) == without_speed(second[1])
    assert first[1].best_epoch == second[1].best_epoch
    assert first[1].validation_accuracy == second[1].validation_accuracy
    assert_equal_states(first[0], second[0])


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_resumed_run_equals_the_uninterrupted_one(
    case: Case,
    make_model: MakeModel,
    digits: Dataset,
    interrupt_after: Callable[[int], Any],
    interrupted: type[Exception],
    tmp_path: Path,
) -> None:
    whole = run(case, make_model, digits, folder=tmp_path / "whole")
    folder = tmp_path / "parts"
    with pytest.raises(interrupted):
        run(case, make_model, digits, folder=folder, progress=interrupt_after(case.after))
    parts = run(case, make_model, digits, folder=folder, resume=True)
    assert_same_run(whole, parts)
    if case.loss == "spoiled":  # the best epoch lies before the interruption
        assert whole[1].best_epoch <= (case.after - 1) // STEPS_PER_EPOCH
    states = [read_tensors(tmp_path / part / "last.safetensors")[0] for part in ("whole", "parts")]
    assert_equal_states(*states)  # optimiser and criterion too


def test_folder_changes_nothing(make_model: MakeModel, digits: Dataset, tmp_path: Path) -> None:
    case = Case(after=0, loss="divqat")
    kept = run(case, make_model, digits, folder=tmp_path)
    assert_same_run(run(case, make_model, digits), kept)


def test_run_can_be_interrupted_again_and_again(
    make_model: MakeModel,
    digits: Dataset,
    interrupt_after: Callable[[int], Any],
    interrupted: type[Exception],
    tmp_path: Path,
) -> None:
    case = Case(after=0, loss="divqat")
    for _ in range(3):
        options = {"folder": tmp_path, "resume": True, "progress": interrupt_after(6)}
        with pytest.raises(interrupted):
            run(case, make_model, digits, **options)
    last = run(case, make_model, digits, folder=tmp_path, resume=True)
    assert_same_run(run(case, make_model, digits), last)


def test_resuming_a_finished_run_gives_it_back(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    case = Case(after=0, loss="spoiled")
    whole = run(case, make_model, digits, folder=tmp_path)
    assert_same_run(whole, run(case, make_model, digits, folder=tmp_path, resume=True))


def test_without_resume_an_old_state_is_not_overwritten(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    case = Case(after=0)
    run(case, make_model, digits, folder=tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RunExists, match="holds a training: resume it, or choose another"):
        run(case, make_model, digits, folder=tmp_path)
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_resume_needs_a_folder(make_model: MakeModel, digits: Dataset) -> None:
    with pytest.raises(ConfigError, match="resume is given without a folder"):
        run(Case(after=0), make_model, digits, resume=True)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_validation_is_there_from_the_beginning_or_not_at_all(
    make_model: MakeModel, digits: Dataset, tmp_path: Path, before: bool, after: bool
) -> None:
    def train(validated: bool, epochs: int, resume: bool) -> None:
        fit(
            make_model("small"),
            cross_entropy,
            digits.train.images,
            digits.train.labels,
            config=FitConfig(epochs=epochs, batch_size=16, device="cpu"),
            seed=0,
            validation=digits.validation if validated else None,
            folder=tmp_path,
            resume=resume,
        )

    train(before, 1, resume=False)
    began = "with" if before else "without"
    with pytest.raises(ConfigError, match=f"began {began} validation images, and is to go on"):
        train(after, 2, resume=True)
    train(before, 2, resume=True)


def test_interruption_in_the_criterion_is_the_same(
    make_model: MakeModel, digits: Dataset, interrupted: type[Exception], tmp_path: Path
) -> None:
    class Stops(Spoiler):
        def forward(self, logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
            if self.steps == 6:  # the second epoch
                raise interrupted
            return super().forward(logits, targets, inputs)

    case, data = Case(after=6, loss="spoiled"), digits.train
    with pytest.raises(interrupted):
        fit(
            make_model("small"),
            Stops(),
            data.images,
            data.labels,
            config=FitConfig(epochs=4, batch_size=16, lr=3e-2, device="cpu"),
            seed=0,
            validation=digits.validation,
            folder=tmp_path,
        )
    resumed = run(case, make_model, digits, folder=tmp_path, resume=True)
    assert_same_run(run(case, make_model, digits), resumed)


def test_network_that_still_collects_its_scales_is_no_resumable_training(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    """Brevitas' running statistics of the first 300 steps are in no ``state_dict``."""
    with pytest.raises(ConfigError, match=r"scaling_impl: call calibrate\(\)"):
        run(Case(after=0), make_model, digits, "small uncalibrated", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_state_of_another_network_is_refused(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    case = Case(after=0)
    run(case, make_model, digits, "small float", folder=tmp_path)
    with pytest.raises(CheckpointError, match="another model") as caught:
        run(case, make_model, digits, folder=tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"short", None], ids=["empty", "text", "truncated"])
def test_damaged_state_is_refused(
    make_model: MakeModel, digits: Dataset, tmp_path: Path, content: bytes | None
) -> None:
    case = Case(after=0)
    run(case, make_model, digits, folder=tmp_path)
    file = tmp_path / "last.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(CheckpointError, match="last.safetensors") as caught:
        run(case, make_model, digits, folder=tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_best_weights_in_place_of_the_state_are_refused(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    case = Case(after=0)
    run(case, make_model, digits, folder=tmp_path)
    (tmp_path / "best.safetensors").replace(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError):
        run(case, make_model, digits, folder=tmp_path, resume=True)
