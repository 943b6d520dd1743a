# SPDX-License-Identifier: BSD-3-Clause
"""The victim's training: calibration, both methods from the same start, finished checkpoints."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantReLU
from torch import Tensor, nn

from brevitas_divqat.data import Dataset
from brevitas_divqat.errors import CheckpointError, ConfigError, DataError, RunExists
from brevitas_divqat.loss import DivQATLoss, LossConfig
from brevitas_divqat.models import ModelConfig, Precision, build, load_float_weights
from brevitas_divqat.training import (
    CheckpointInfo,
    TrainingConfig,
    calibrate,
    drawn_from,
    is_finished,
    load_checkpoint,
    recipe,
    save_checkpoint,
    train_float,
    train_quantized,
)
from brevitas_divqat.training.checkpoint import INFO_FILE, WEIGHTS_FILE
from brevitas_divqat.training.state import read_tensors

MakeModel = Callable[..., nn.Module]
MODEL = ModelConfig(width=0.25)
TRAINING = TrainingConfig(
    float_epochs=2, epochs=2, batch_size=16, lr=5e-3, calibration_images=48, device="cpu"
)
INFO = CheckpointInfo(
    model="lenet5",
    width=0.25,
    precision=Precision(),
    image_shape=(1, 8, 8),
    class_names=tuple("0123456789"),
    data="few-digits",
    method={"name": "divqat", "alpha": 0.04, "cap": None},
    seed=3,
    best_epoch=1,
    validation_accuracy=0.5,
    history=[{"loss": 2.25}],
)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def quantize(
    method: Any, reference: nn.Module, digits: Dataset, folder: Path, **options: Any
) -> nn.Module:
    loss = options.pop("loss", LossConfig(alpha=0.1))
    options = {"seed": 0} | options
    return train_quantized(method, reference, MODEL, TRAINING, loss, digits, folder, **options)


# --- calibration -------------------------------------------------------------------------------


def test_calibration_sets_every_activation_scale(make_model: MakeModel, digits: Dataset) -> None:
    model = make_model("uncalibrated")
    calibrate(model, digits.train.images)
    relus = [m for m in model.modules() if isinstance(m, QuantReLU)]
    scales = [m.act_quant.scale().item() for m in relus]
    assert len(set(scales)) == len(relus) == 4
    assert all(0 < scale != 1 for scale in scales)
    values = [v for key, v in model.state_dict().items() if key.endswith("scaling_impl.value")]
    assert [v.item() / 15 for v in values] == pytest.approx(scales)


def test_calibration_leaves_weights_and_statistics(make_model: MakeModel, digits: Dataset) -> None:
    model = make_model("uncalibrated")
    before = state_of(model)
    calibrate(model, digits.train.images)
    after = model.state_dict()
    assert equal_states(before, {key: after[key] for key in before})
    assert all(parameter.grad is None for parameter in model.parameters())


def test_calibration_leaves_the_quantizers_switched_on(
    make_model: MakeModel, digits: Dataset
) -> None:
    calibrated = make_model("uncalibrated")
    calibrate(calibrated, digits.train.images)
    loaded = make_model("uncalibrated")
    loaded.load_state_dict(calibrated.state_dict())
    inputs = torch.from_numpy(digits.test.images).float() / 256
    with torch.no_grad():
        assert torch.equal(calibrated.eval()(inputs), loaded.eval()(inputs))


def test_calibration_leaves_every_layer_s_mode(make_model: MakeModel, digits: Dataset) -> None:
    model = make_model("uncalibrated").train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    before = [module.training for module in model.modules()]
    calibrate(model, digits.train.images)
    assert [module.training for module in model.modules()] == before
    assert not frozen.training


# --- speed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["qat", "divqat"])
def test_faster_quantizers_train_the_same_weights(
    make_model: MakeModel,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    reference = make_model("float")
    fast = quantize(method, reference, digits, tmp_path / "fast")
    made: list[nn.Module] = []
    monkeypatch.setattr(recipe, "speed_up", made.append)
    plain = quantize(method, reference, digits, tmp_path / "plain")
    assert made == [plain]
    assert equal_states(fast.state_dict(), plain.state_dict())


# --- weights of the twin -----------------------------------------------------------------------


def test_float_weights_load_into_the_quantized_network(make_model: MakeModel) -> None:
    twin, model = make_model("float"), make_model("uncalibrated")
    with torch.no_grad():
        twin.features[1].weight.add_(1)
    load_float_weights(model, twin.state_dict())
    found = model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in twin.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "unexpected", "another width"])
def test_weights_of_another_network_are_refused(make_model: MakeModel, change: str) -> None:
    state = make_model("float").state_dict()
    if change == "missing":
        del state["features.1.weight"]
    elif change == "unexpected":
        state["features.99.weight"] = torch.zeros(1)
    else:
        state = build("lenet5", (1, 8, 8), 10, precision=None, width=0.5).state_dict()
    with pytest.raises(CheckpointError, match="another network") as caught:
        load_float_weights(make_model("uncalibrated"), state)
    assert "\n" not in str(caught.value)


# --- the trainings -----------------------------------------------------------------------------


def test_alpha_0_is_plain_qat_bit_for_bit(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    reference = make_model("float")
    plain = quantize("qat", reference, digits, tmp_path / "qat", loss=LossConfig(alpha=0.5))
    without = quantize(
        "divqat", reference, digits, tmp_path / "0", loss=LossConfig("F1", alpha=0.0)
    )
    assert equal_states(plain.state_dict(), without.state_dict())
    defended = quantize("divqat", reference, digits, tmp_path / "on", loss=LossConfig(alpha=0.5))
    assert not equal_states(plain.state_dict(), defended.state_dict())


def test_outliers_are_augmented_as_the_training_images_are(
    make_model: MakeModel, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[DivQATLoss] = []
    monkeypatch.setattr(
        "brevitas_divqat.training.recipe.DivQATLoss",
        lambda *args, **options: made.append(DivQATLoss(*args, **options)) or made[-1],
    )
    still, shifted = (replace(digits, augmentation=kind) for kind in ("none", "shift"))
    reference = make_model("float")
    quantize("divqat", reference, still, tmp_path / "whole")
    quantize("divqat", reference, shifted, tmp_path / "shifted")
    quantize("divqat", reference, shifted, tmp_path / "F3", loss=LossConfig("F3"))
    whole, varied, none = (criterion.outliers.augment for criterion in made)
    assert whole is None
    assert none is None
    borders = varied(torch.ones(200, 1, 8, 8))[:, :, 0]
    assert (borders == 0).any()
    assert (borders == 1).any()


def test_given_outliers_are_drawn_from_the_file(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    reference = make_model("float")
    loss = LossConfig(outliers=("given",))

    def trained(name: str, level: int) -> dict[str, Tensor]:
        images = np.full((5, 8, 8), level, dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", images)
        training = replace(TRAINING, outlier_images=tmp_path / f"{name}.npy")
        model = train_quantized(
            "divqat", reference, MODEL, training, loss, digits, tmp_path / name, seed=0
        )
        return model.state_dict()

    first, again, other = trained("first", 0), trained("again", 0), trained("other", 200)
    assert equal_states(first, again)
    assert not equal_states(first, other)


def test_given_outliers_are_the_same_after_a_resumption(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    file, folder = tmp_path / "own.npy", tmp_path / "run"
    loss = LossConfig(outliers=("given",))
    training = replace(TRAINING, outlier_images=file)

    def train(*, resume: bool) -> nn.Module:
        return train_quantized(
            "divqat",
            make_model("float"),
            MODEL,
            training,
            loss,
            digits,
            folder,
            seed=0,
            resume=resume,
        )

    np.save(file, np.zeros((5, 8, 8), dtype=np.uint8))
    first = train(resume=False)
    method = load_checkpoint(folder)[1].method
    assert method["outlier_images"] == 5
    assert method["outlier_images_crc32"] == f"{zlib.crc32(bytes(5 * 8 * 8)):08x}"
    (folder / INFO_FILE).unlink()
    assert equal_states(first.state_dict(), train(resume=True).state_dict())
    (folder / INFO_FILE).unlink()
    np.save(file, np.ones((5, 8, 8), dtype=np.uint8))
    with pytest.raises(ConfigError, match="began with .*give the same images to go on"):
        train(resume=True)
    (folder / "outlier-images.json").write_text("{")
    with pytest.raises(ConfigError, match=r"outlier-images\.json is damaged"):
        train(resume=True)


def test_a_finished_training_is_that_of_its_settings(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    reference = make_model("float")
    first = quantize("divqat", reference, digits, tmp_path)
    again = quantize("divqat", reference, digits, tmp_path, resume=True)
    assert equal_states(first.state_dict(), again.state_dict())
    other = LossConfig(alpha=0.2)
    with pytest.raises(ConfigError, match=r"other settings: alpha \(0.1 -> 0.2\)"):
        quantize("divqat", reference, digits, tmp_path, resume=True, loss=other)
    with pytest.raises(RunExists, match="holds a training: resume it"):
        quantize("divqat", reference, digits, tmp_path)


def test_bad_settings_are_refused_before_the_training(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    for method in ("DivQAT", "float"):
        with pytest.raises(ConfigError, match=r"method is .*: choose from \['qat', 'divqat'\]"):
            quantize(method, make_model("float"), digits, tmp_path / "run")
    long = LossConfig(warmup_steps=10**30)
    with pytest.raises(ConfigError, match="alpha would never reach 0.04, lower it"):
        quantize("divqat", make_model("float"), digits, tmp_path / "run", loss=long)
    assert not (tmp_path / "run").exists()


def test_images_that_nothing_draws_from_are_refused(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    training = replace(TRAINING, outlier_images=tmp_path / "own.npy")
    with pytest.raises(ConfigError, match="name given among --outliers"):
        train_quantized(
            "divqat",
            make_model("float"),
            MODEL,
            training,
            LossConfig(),
            digits,
            tmp_path / "run",
            seed=0,
        )


@pytest.mark.parametrize(
    "images",
    [np.zeros((0, 1, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8), np.zeros((3, 1, 8, 8))],
)
def test_draw_from_what_are_no_images_is_refused(images: np.ndarray) -> None:
    with pytest.raises(DataError, match="outlier_images"):
        drawn_from(images)


def test_draw_can_be_pickled() -> None:
    draw = drawn_from(np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8))
    again = pickle.loads(pickle.dumps(draw))
    torch.manual_seed(0)
    first = draw(4)
    torch.manual_seed(0)
    assert torch.equal(first, again(4))
    assert 63 / 256 <= first.max() <= 127 / 256


@pytest.mark.parametrize("method", ["qat", "divqat"])
def test_reference_is_unchanged(
    make_model: MakeModel, digits: Dataset, tmp_path: Path, method: str
) -> None:
    reference = make_model("float").train()
    before = state_of(reference)
    quantize(method, reference, digits, tmp_path)
    assert equal_states(before, reference.state_dict())
    assert all(module.training for module in reference.modules())
    assert all(parameter.requires_grad for parameter in reference.parameters())


@pytest.mark.usefixtures("global_random_state_untouched")
def test_train_float_leaves_the_global_random_state(digits: Dataset, tmp_path: Path) -> None:
    train_float(MODEL, TRAINING, digits, tmp_path, seed=0)


@pytest.mark.usefixtures("global_random_state_untouched")
def test_train_quantized_leaves_the_global_random_state(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    quantize("divqat", make_model("float"), digits, tmp_path)


@pytest.mark.usefixtures("global_random_state_untouched")
def test_load_checkpoint_leaves_the_global_random_state(
    make_model: MakeModel, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, make_model("quantized"), INFO)
    load_checkpoint(tmp_path)


def test_seed_decides_both_trainings(digits: Dataset, tmp_path: Path) -> None:
    states = []
    for i, (global_seed, seed) in enumerate([(1, 0), (2, 0), (1, 7)]):
        folder = tmp_path / str(i)
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            twin = train_float(MODEL, TRAINING, digits, folder / "float", seed=seed)
            model = quantize("divqat", twin, digits, folder / "divqat", seed=seed)
        states.append((twin.state_dict(), model.state_dict()))
    assert equal_states(states[0][0], states[1][0])
    assert equal_states(states[0][1], states[1][1])
    assert not equal_states(states[0][0], states[2][0])
    assert not equal_states(states[0][1], states[2][1])


@pytest.mark.parametrize("which", ["float", "divqat"])
def test_interrupted_training_is_resumed_bit_for_bit(
    make_model: MakeModel,
    digits: Dataset,
    tmp_path: Path,
    interrupt_after: Callable[[int], Any],
    interrupted: type[Exception],
    which: str,
) -> None:
    def train(folder: Path, **options: Any) -> nn.Module:
        if which == "float":
            return train_float(MODEL, TRAINING, digits, folder, seed=0, **options)
        loss = LossConfig("F1", warmup_steps=6)
        return quantize("divqat", make_model("float"), digits, folder, loss=loss, **options)

    with pytest.raises(interrupted):
        train(tmp_path / "parts", progress=interrupt_after(6))
    assert not is_finished(tmp_path / "parts")
    parts = train(tmp_path / "parts", resume=True)
    assert is_finished(tmp_path / "parts")
    assert equal_states(parts.state_dict(), train(tmp_path / "whole").state_dict())
    last = [read_tensors(tmp_path / part / "last.safetensors")[0] for part in ("parts", "whole")]
    assert equal_states(*last)  # also where the selected epoch lies before the interruption
    again = train(tmp_path / "parts", resume=True, progress=interrupt_after(0))
    assert equal_states(parts.state_dict(), again.state_dict())


def test_checkpoint_says_how_the_model_was_made(
    make_model: MakeModel, digits: Dataset, tmp_path: Path
) -> None:
    model = quantize("divqat", make_model("float"), digits, tmp_path, seed=5)
    loaded, info = load_checkpoint(tmp_path)
    assert equal_states(model.state_dict(), loaded.state_dict())
    assert (info.model, info.width, info.data, info.seed) == ("lenet5", 0.25, "few-digits", 5)
    assert info.bits == {"weight": 4, "activation": 4, "edge": 8, "input": 8}
    assert info.class_names == digits.class_names
    assert info.image_shape == (1, 8, 8)
    assert (info.method["name"], info.method["alpha"], info.method["preset"]) == (
        "divqat",
        0.1,
        "outliers",
    )
    assert len(info.history) == 2
    assert info.validation_accuracy == info.history[info.best_epoch - 1]["validation_accuracy"]


# --- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["quantized", "float"])
def test_checkpoint_round_trip_computes_the_same_bits(
    make_model: MakeModel, digits: Dataset, tmp_path: Path, kind: str
) -> None:
    model = make_model(kind).eval()
    info = INFO if kind == "quantized" else replace(INFO, precision=None)
    save_checkpoint(tmp_path, model, info)
    loaded, found = load_checkpoint(tmp_path)
    inputs = torch.from_numpy(digits.test.images).float() / 256
    assert found == info
    assert not any(module.training for module in loaded.modules())
    assert equal_states(model.state_dict(), loaded.state_dict())
    with torch.no_grad():
        assert torch.equal(model(inputs), loaded(inputs))
    for before, after in zip(model.modules(), loaded.modules(), strict=True):
        if isinstance(before, QuantReLU):
            assert torch.equal(before.act_quant.scale(), after.act_quant.scale())


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / INFO_FILE).read_text())
        change(content)
        (folder / INFO_FILE).write_text(json.dumps(content))

    return damage


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no record": (lambda folder: (folder / INFO_FILE).unlink(), "divqat train"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), WEIGHTS_FILE),
    "truncated record": (cut(INFO_FILE, 0.5), INFO_FILE),
    "empty record": (cut(INFO_FILE, 0), INFO_FILE),
    "binary record": (lambda folder: (folder / INFO_FILE).write_bytes(b"\xff\xfe"), INFO_FILE),
    "record is a list": (lambda folder: (folder / INFO_FILE).write_text("[]"), INFO_FILE),
    "no schema": (edit(lambda c: c.pop("schema")), INFO_FILE),
    "another schema": (edit(lambda c: c.update(schema=99)), "schema 99"),
    "no class names": (edit(lambda c: c.pop("class_names")), INFO_FILE),
    "unknown field": (edit(lambda c: c.update(colour="red")), INFO_FILE),
    "unknown model": (edit(lambda c: c.update(model="alexnet")), "alexnet"),
    "bits out of range": (edit(lambda c: c["precision"].update(weight=99)), INFO_FILE),
    "shape of two numbers": (edit(lambda c: c.update(image_shape=[8, 8])), INFO_FILE),
    "truncated weights": (cut(WEIGHTS_FILE, 0.9), WEIGHTS_FILE),
    "weights cut in the header": (cut(WEIGHTS_FILE, 0.01), WEIGHTS_FILE),
    "empty weights": (cut(WEIGHTS_FILE, 0), WEIGHTS_FILE),
    "weights of another width": (edit(lambda c: c.update(width=0.5)), WEIGHTS_FILE),
    "weights of the other twin": (edit(lambda c: c.update(precision=None)), WEIGHTS_FILE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_refused_in_one_line(
    make_model: MakeModel, tmp_path: Path, damage: str
) -> None:
    save_checkpoint(tmp_path, make_model("quantized"), INFO)
    spoil, part = DAMAGES[damage]
    spoil(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert part in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert not is_finished(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no finished model") as caught:
        load_checkpoint(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
