# SPDX-License-Identifier: BSD-3-Clause
"""The loop: same seed, same numbers; the best epoch is kept; divergence is reported."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brevitas.nn import QuantConv2d, QuantLinear, QuantReLU
from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_divqat.data import Dataset
from brevitas_divqat.errors import ConfigError, DataError, TrainingDiverged
from brevitas_divqat.loss import DivQATLoss
from brevitas_divqat.progress import Show
from brevitas_divqat.seeding import generator
from brevitas_divqat.training import FitConfig, augmentation_of, cross_entropy, fit
from brevitas_divqat.training.state import read_tensors

MakeModel = Callable[..., nn.Module]


def config(**changes: Any) -> FitConfig:
    return FitConfig(**{"epochs": 2, "batch_size": 16, "lr": 5e-3, "device": "cpu"} | changes)


def equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def trained(make_model: MakeModel, digits: Dataset, seed: int = 0, **changes: Any) -> nn.Module:
    model = make_model("small")
    data = digits.train
    fit(model, cross_entropy, data.images, data.labels, config=config(**changes), seed=seed)
    return model


# --- seeds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_same_seed_gives_the_same_weights(
    make_model: MakeModel, digits: Dataset, precision: str
) -> None:
    options = {"augmentation": "shift-flip", "precision": precision}
    first = trained(make_model, digits, **options).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(12345)  # the global generator decides nothing
        second = trained(make_model, digits, **options).state_dict()
    assert equal_states(first, second)
    assert all(torch.isfinite(tensor).all() for tensor in first.values())


@pytest.mark.parametrize("augmentation", ["none", "shift"])
def test_another_seed_gives_other_weights(
    make_model: MakeModel, digits: Dataset, augmentation: str
) -> None:
    first, second = (
        trained(make_model, digits, seed, augmentation=augmentation).state_dict() for seed in (0, 1)
    )
    assert not equal_states(first, second)


def test_augmentation_changes_the_training(make_model: MakeModel, digits: Dataset) -> None:
    plain = trained(make_model, digits).state_dict()
    varied = trained(make_model, digits, augmentation="shift").state_dict()
    assert not equal_states(plain, varied)


def test_random_layers_follow_the_seed(digits: Dataset) -> None:
    data = digits.train
    states = []
    for global_seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
            torch.manual_seed(global_seed)
            fit(model, cross_entropy, data.images, data.labels, config=config(), seed=0)
        states.append(model.state_dict())
    assert equal_states(*states)


@pytest.mark.usefixtures("global_random_state_untouched")
@pytest.mark.parametrize("augmentation", ["none", "shift-flip"])
def test_fit_leaves_the_global_random_state(
    make_model: MakeModel, digits: Dataset, augmentation: str, tmp_path: Path
) -> None:
    data = digits.train
    fit(
        make_model("small"),
        cross_entropy,
        data.images,
        data.labels,
        config=config(augmentation=augmentation),
        seed=0,
        validation=digits.validation,
        folder=tmp_path,
    )


# --- the same as a loop written by hand --------------------------------------------------------


def plain_brevitas() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {"weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": 4}
        relu = QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=4, collect_stats_steps=3)
        return nn.Sequential(
            QuantConv2d(1, 4, 3, bias=False, **weights),
            nn.BatchNorm2d(4),
            relu,
            nn.Flatten(),
            QuantLinear(4 * 6 * 6, 10, bias=False, **weights),
        )


def test_fit_equals_a_plain_loop_bit_for_bit(digits: Dataset) -> None:
    images, labels = digits.train.images, digits.train.labels
    seed, epochs, size, lr = 3, 3, 16, 5e-3
    by_hand = plain_brevitas()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=lr)
    x, y = torch.from_numpy(images).float() / 256, torch.from_numpy(labels)
    steps = len(images) // size
    by_hand.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator(seed, "order", epoch + 1))
        for step, chosen in enumerate(order[: steps * size].split(size)):
            part = (epoch * steps + step) / (epochs * steps)
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * part))
            optimizer.zero_grad()
            F.cross_entropy(by_hand(x[chosen]), y[chosen]).backward()
            optimizer.step()
    by_fit = plain_brevitas()
    fit(by_fit, cross_entropy, images, labels, config=config(epochs=epochs), seed=seed)
    assert equal_states(by_hand.state_dict(), by_fit.state_dict())
    by_divqat = plain_brevitas()
    criterion = DivQATLoss(nn.Identity(), alpha=0.0)
    fit(by_divqat, criterion, images, labels, config=config(epochs=epochs), seed=seed)
    assert equal_states(by_hand.state_dict(), by_divqat.state_dict())


def test_alpha_0_equals_plain_training_bit_for_bit(make_model: MakeModel, digits: Dataset) -> None:
    data = digits.train
    plain, divqat, defended = (make_model("quantized") for _ in range(3))
    reference, augment = make_model("float"), augmentation_of("shift")
    for model, criterion in (
        (plain, cross_entropy),
        (divqat, DivQATLoss(reference, alpha=0.0)),
        (defended, DivQATLoss(reference, alpha=0.04, augment=augment)),
    ):
        options = {"config": config(augmentation="shift"), "seed": 0}
        fit(model, criterion, data.images, data.labels, **options)
    assert equal_states(plain.state_dict(), divqat.state_dict())
    assert not equal_states(plain.state_dict(), defended.state_dict())


def test_outliers_that_stay_whole_beside_augmented_images_are_refused(
    make_model: MakeModel, digits: Dataset
) -> None:
    criterion = DivQATLoss(make_model("float"), alpha=0.04)
    settings, data = config(augmentation="shift"), digits.train
    with pytest.raises(ConfigError, match=r'make it with .*augmentation_of\("shift"\)'):
        fit(make_model("quantized"), criterion, data.images, data.labels, config=settings, seed=0)


def test_augmented_outliers_beside_whole_images_are_refused(
    make_model: MakeModel, digits: Dataset
) -> None:
    criterion = DivQATLoss(make_model("float"), alpha=0.04, augment=augmentation_of("shift"))
    data = digits.train
    with pytest.raises(ConfigError, match="leave augment= out"):
        fit(make_model("quantized"), criterion, data.images, data.labels, config=config(), seed=0)


def test_outliers_that_are_augmented_otherwise_are_refused(
    make_model: MakeModel, digits: Dataset
) -> None:
    criterion = DivQATLoss(make_model("float"), alpha=0.04, augment=augmentation_of("shift"))
    settings, data = config(augmentation="shift-flip"), digits.train
    with pytest.raises(ConfigError, match=r"by shift, .*augmentation_of\(.shift-flip.\)"):
        fit(make_model("quantized"), criterion, data.images, data.labels, config=settings, seed=0)


@pytest.mark.parametrize(
    "targets",
    [np.zeros(3, np.int64), np.zeros((3, 1), np.int64), np.zeros(3), np.full(3, "a")],
)
def test_targets_of_another_kind_are_refused(
    make_model: MakeModel, digits: Dataset, targets: np.ndarray
) -> None:
    images = digits.train.images[:2]
    with pytest.raises(DataError, match=r"targets: got .*, expected integers \(2,\)"):
        fit(make_model("small"), cross_entropy, images, targets, config=config(), seed=0)


def test_images_between_0_and_1_are_refused(make_model: MakeModel, digits: Dataset) -> None:
    images, labels = digits.train.images / 256, digits.train.labels
    with pytest.raises(DataError, match="images: got float64"):
        fit(make_model("small"), cross_entropy, images, labels, config=config(), seed=0)


def test_labels_of_32_bits_are_labels(make_model: MakeModel, digits: Dataset) -> None:
    expected, model = trained(make_model, digits), make_model("small")
    data = digits.train
    labels = data.labels.astype(np.int32)
    fit(model, cross_entropy, data.images, labels, config=config(), seed=0)
    assert equal_states(expected.state_dict(), model.state_dict())


def test_augmentation_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose from"):
        augmentation_of("flip")  # type: ignore[arg-type]


def test_soft_targets_equal_one_hot_labels(make_model: MakeModel, digits: Dataset) -> None:
    data = digits.train
    models = make_model("small"), make_model("small")
    one_hot = np.eye(10, dtype=np.float32)[data.labels]
    first, second = (
        fit(model, cross_entropy, data.images, targets, config=config(epochs=1), seed=0)
        for model, targets in zip(models, (data.labels, one_hot), strict=True)
    )
    # Two kernels of torch, which sum in another order: float32 rounding over four steps.
    assert first.history[0]["loss"] == pytest.approx(second.history[0]["loss"], rel=1e-4)


# --- what is returned --------------------------------------------------------------------------


def test_model_comes_back_on_the_cpu_in_evaluation_mode(
    make_model: MakeModel, digits: Dataset
) -> None:
    model = trained(make_model, digits, epochs=1)
    assert not any(module.training for module in model.modules())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_history_has_a_record_per_epoch_with_the_parts_of_the_loss(
    make_model: MakeModel, digits: Dataset
) -> None:
    data = digits.train
    criterion = DivQATLoss(make_model("small float"), preset="F1", alpha=0.5)
    result = fit(
        make_model("small"),
        criterion,
        data.images,
        data.labels,
        config=config(epochs=3),
        seed=0,
        validation=digits.validation,
    )
    assert len(result.history) == 3
    for record in result.history:
        parts = record["cross_entropy"] - 0.5 * record["divergence"]
        # Means of float32 steps: the sum of means differs from the mean of sums by rounding.
        assert record["loss"] == pytest.approx(parts, abs=1e-5)
        assert 0 <= record["validation_accuracy"] <= 1
        assert 0.1 <= record["max_probability"] <= 1
        assert 0 <= record["entropy"] <= math.log(10)


def test_without_validation_the_last_epoch_is_kept(make_model: MakeModel, digits: Dataset) -> None:
    data = digits.train
    options = {"config": config(epochs=3), "seed": 0}
    result = fit(make_model("small"), cross_entropy, data.images, data.labels, **options)
    assert (result.best_epoch, result.validation_accuracy) == (3, None)


class Spoiler:
    """Cross-entropy for so many steps, and then as if every image were of class 0."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        self.left -= 1
        return F.cross_entropy(logits, targets if self.left >= 0 else 0 * targets)


@pytest.mark.parametrize("select", ["any", "late"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
def test_weights_of_the_best_validation_epoch_are_kept(
    make_model: MakeModel, digits: Dataset, on_disk: bool, select: str, tmp_path: Path
) -> None:
    model, data = make_model("small"), digits.train
    after_epoch: list[dict[str, Tensor]] = []

    @contextmanager
    def watch(name: str, total: int) -> Iterator[Show]:
        done = 0

        def show(steps: int, text: str) -> None:
            nonlocal done
            done += steps
            if steps and done % 4 == 0:
                after_epoch.append(copy.deepcopy(model.state_dict()))

        yield show

    result = fit(
        model,
        Spoiler(steps=12),
        data.images,
        data.labels,
        config=config(epochs=6, lr=3e-2, select=select),
        seed=0,
        validation=digits.validation,
        folder=tmp_path if on_disk else None,
        progress=watch,
    )
    accuracies = [record["validation_accuracy"] for record in result.history]
    eligible = accuracies if select == "any" else accuracies[4:]
    assert accuracies[-1] < max(accuracies)  # or the test would show nothing
    assert select == "any" or max(eligible) < max(accuracies)
    assert result.validation_accuracy == max(eligible)
    assert accuracies[result.best_epoch - 1] == max(eligible)
    assert select == "any" or result.best_epoch > 4
    assert equal_states(model.state_dict(), after_epoch[result.best_epoch - 1])
    inputs = torch.from_numpy(digits.validation.images).float() / 256
    found = model(inputs).argmax(dim=1).numpy() == digits.validation.labels
    assert found.mean() == result.validation_accuracy


def test_last_smaller_batch_is_left_out(make_model: MakeModel, digits: Dataset) -> None:
    sizes = []

    def criterion(logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        sizes.append((len(logits), len(targets), len(inputs)))
        return F.cross_entropy(logits, targets)

    data = digits.train
    fit(
        make_model("small"),
        criterion,
        data.images,
        data.labels,
        config=config(batch_size=24),
        seed=0,
    )
    assert sizes == [(24, 24, 24)] * 4


def test_every_image_is_seen_once_per_epoch(make_model: MakeModel, digits: Dataset) -> None:
    seen = []

    def criterion(logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return F.cross_entropy(logits, targets)

    data = digits.train
    fit(make_model("small"), criterion, data.images, data.labels, config=config(epochs=1), seed=0)
    found = (torch.cat(seen) * 256).to(torch.uint8).numpy()
    assert sorted(image.tobytes() for image in found) == sorted(
        image.tobytes() for image in data.images
    )


# --- what goes wrong ---------------------------------------------------------------------------


class Poison:
    """Cross-entropy that turns bad at one step, counted from 1."""

    def __init__(self, at: int, value: float) -> None:
        self.steps, self.at, self.value = 0, at, value

    def __call__(self, logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        self.steps += 1
        loss = F.cross_entropy(logits, targets)
        return loss * self.value if self.steps == self.at else loss


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_divergence_names_epoch_step_and_file(
    make_model: MakeModel, digits: Dataset, tmp_path: Path, value: float
) -> None:
    data = digits.train
    with pytest.raises(TrainingDiverged) as caught:
        fit(
            make_model("small"),
            Poison(at=7, value=value),
            data.images,
            data.labels,
            config=config(),
            seed=0,
            folder=tmp_path,
            name="victim",
        )
    message = str(caught.value)
    assert "\n" not in message
    file = str(tmp_path / "last.safetensors")
    for part in ("victim", "epoch 2", "step 3", "lower the learning rate or alpha", file):
        assert part in message


@pytest.mark.parametrize("step", [2, 7], ids=["first epoch", "second epoch"])
def test_state_of_the_last_good_epoch_survives_divergence(
    make_model: MakeModel,
    digits: Dataset,
    tmp_path: Path,
    interrupt_after: Callable[[int], Any],
    interrupted: type[Exception],
    step: int,
) -> None:
    data = digits.train
    options = {"config": config(epochs=3), "seed": 0, "validation": digits.validation}
    model = make_model("small")
    criterion = Poison(step, math.nan)
    with pytest.raises(TrainingDiverged):
        fit(model, criterion, data.images, data.labels, folder=tmp_path / "nan", **options)
    with pytest.raises(interrupted):
        fit(
            make_model("small"),
            cross_entropy,
            data.images,
            data.labels,
            folder=tmp_path / "good",
            progress=interrupt_after(step),
            **options,
        )
    kept, _ = read_tensors(tmp_path / "nan" / "last.safetensors")
    good, _ = read_tensors(tmp_path / "good" / "last.safetensors")
    assert equal_states(kept, good)
    whole, resumed = make_model("small"), make_model("small")
    fit(whole, cross_entropy, data.images, data.labels, **options)
    folder = tmp_path / "nan"
    fit(resumed, cross_entropy, data.images, data.labels, folder=folder, resume=True, **options)
    assert equal_states(resumed.state_dict(), whole.state_dict())


def test_gradient_that_is_not_finite_never_reaches_the_result(
    make_model: MakeModel, digits: Dataset
) -> None:
    """In the last step no further loss would show it."""

    class NaNGradient(Poison):
        def __call__(self, logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
            loss = super().__call__(logits, targets, inputs)
            return loss + (0 * logits).sum().sqrt() if self.steps == self.at else loss

    model, data = make_model("small"), digits.train
    criterion = NaNGradient(at=8, value=1.0)
    with pytest.raises(TrainingDiverged, match="epoch 2, step 4"):
        fit(model, criterion, data.images, data.labels, config=config(), seed=0)


def test_fewer_images_than_a_batch_are_refused(make_model: MakeModel, digits: Dataset) -> None:
    data = digits.train
    with pytest.raises(DataError) as caught:
        fit(
            make_model("small"),
            cross_entropy,
            data.images,
            data.labels,
            config=config(batch_size=65),
            seed=0,
        )
    assert "\n" not in str(caught.value)
    assert "64 training images" in str(caught.value)
    assert "lower the batch size" in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_accelerator_is_a_user_error(make_model: MakeModel, digits: Dataset) -> None:
    data = digits.train
    with pytest.raises(ConfigError, match="cuda"):
        fit(
            make_model("small"),
            cross_entropy,
            data.images,
            data.labels,
            config=config(device="cuda"),
            seed=0,
        )
