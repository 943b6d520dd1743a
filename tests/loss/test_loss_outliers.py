# SPDX-License-Identifier: BSD-3-Clause
"""Outliers: what they are, that they alone are diverged on, and that a training draws them anew."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from brevitas.nn import QuantLinear
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import DivQATLoss, OutlierKind, Outliers, divergence, outliers_like
from brevitas_divqat.loss.outliers import MAKERS
from brevitas_divqat.training import FitConfig, augmentation_of, fit

KINDS: Sequence[OutlierKind] = tuple(MAKERS)  # those that nobody need be asked for
ALL: Sequence[OutlierKind] = (*KINDS, "generated")
IMAGES, CLASSES = 12, 5


class Classifier(nn.Module):
    """Linear, quantized or not."""

    def __init__(self, quantized: bool) -> None:
        super().__init__()
        layer = QuantLinear(48, CLASSES, bias=True) if quantized else nn.Linear(48, CLASSES)
        self.layer = layer
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        logits: Tensor = self.layer(x.flatten(1))
        return logits


@pytest.fixture
def images() -> Tensor:
    return torch.rand(IMAGES, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def targets() -> Tensor:
    return torch.arange(IMAGES) % CLASSES


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


# --- the images --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (1, 2, 2)])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_outliers_are_images_like_the_given_ones(
    kind: OutlierKind, shape: tuple[int, int, int], count: int
) -> None:
    images = torch.rand(6, *shape, dtype=torch.float64) * 3 - 1
    made = outliers_like(images, [kind], count)
    assert made.shape == (count, *shape)
    assert made.dtype == images.dtype
    if count:
        low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
        assert (made.amin(dim=(0, 2, 3)) >= low - 1e-6).all()
        assert (made.amax(dim=(0, 2, 3)) <= high + 1e-6).all()
        assert not any(torch.equal(a, b) for a in made for b in images)


def test_kinds_share_the_number(images: Tensor) -> None:
    torch.manual_seed(0)
    both = outliers_like(images, ["textures", "patches"], 7)
    torch.manual_seed(0)
    textures = outliers_like(images, ["textures"], 4)
    assert len(both) == 7
    assert torch.equal(both[:4], textures)


def test_small_batches_meet_every_kind_in_turn() -> None:
    torch.manual_seed(0)
    flat = torch.zeros(2, 1, 4, 4)
    flat[0] = 1  # patches of images of one level have two levels at the most, textures many
    made = torch.cat([outliers_like(flat, ["textures", "patches"], 1) for _ in range(40)])
    patches = [len(image.unique()) <= 2 for image in made]
    assert any(patches)
    assert not all(patches)


@pytest.mark.parametrize(("number", "share", "count"), [(100, 0.29, 29), (1, 0.5, 1), (5, 0.5, 2)])
def test_the_number_of_outliers_is_rounded_down(number: int, share: float, count: int) -> None:
    assert len(Outliers(KINDS, share)(torch.rand(number, 1, 4, 4))) == count


def test_the_same_seed_makes_the_same_outliers(images: Tensor) -> None:
    made = []
    for number in (0, 0, 1):
        torch.manual_seed(number)
        made.append(outliers_like(images, KINDS, 20))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_patches_are_quarters_of_the_images() -> None:
    images = torch.arange(6 * 4).float().view(6, 4, 1, 1).repeat(1, 1, 2, 2)  # (image, quarter)
    images = images.view(6, 2, 2, 2, 2).permute(0, 1, 3, 2, 4).reshape(6, 1, 4, 4)
    made = outliers_like(images, ["patches"], 200).view(200, 2, 2, 2, 2).permute(0, 1, 3, 2, 4)
    quarters = made.reshape(800, 4)
    assert (quarters == quarters[:, :1]).all(), "each is one quarter of one image"
    assert set(quarters[:, 0].tolist()) == set(range(24)), "every quarter of every image"


def test_textures_differ_in_roughness_contrast_and_colour() -> None:
    made = outliers_like(torch.rand(2, 3, 16, 16), ["textures"], 200)
    steps = (made[..., 1:] - made[..., :-1]).abs().mean(dim=(1, 2, 3))
    roughness = steps / made.std(dim=(1, 2, 3)).clamp_min(1e-3)
    assert roughness.quantile(0.05) < 0.4 < 0.9 < roughness.quantile(0.95)
    contrast = made.std(dim=(1, 2, 3))
    assert contrast.quantile(0.05) < 0.15 < 0.3 < contrast.quantile(0.95)
    colour = (made - made.mean(dim=1, keepdim=True)).abs().mean(dim=(1, 2, 3)) / contrast
    assert colour.quantile(0.05) < 0.1 < 0.3 < colour.quantile(0.95)


def test_most_shapes_lie_before_black() -> None:
    images = torch.rand(4, 1, 16, 16)
    made = outliers_like(images, ["shapes"], 300)
    dark = (made <= images.min() + 0.05).float().mean(dim=(1, 2, 3))
    assert 0.35 < (dark > 0.3).float().mean() < 0.85
    assert (made.amax(dim=(1, 2, 3)) - made.amin(dim=(1, 2, 3))).quantile(0.3) > 0.1


@pytest.mark.parametrize("kind", ["textures", "shapes"])
def test_outliers_of_8_bit_images_are_8_bit(kind: OutlierKind) -> None:
    images = torch.arange(256).float().view(1, 1, 16, 16) / 256
    made = outliers_like(images, [kind], 10) * 256
    torch.testing.assert_close(made, made.round(), rtol=0, atol=1e-4)


# --- the criterion -----------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_outliers_alone(images: Tensor, targets: Tensor) -> None:
    reference, model = Classifier(False), Classifier(True)
    criterion = DivQATLoss(reference, alpha=0.3, outliers=KINDS, outlier_share=0.75)
    batch = criterion.with_outliers(images)
    assert torch.equal(batch[:IMAGES], images)
    assert len(batch) == IMAGES + 9
    logits = model(batch)
    loss = criterion(logits, targets, batch)
    expected = F.cross_entropy(logits[:IMAGES], targets)
    away = divergence(logits[IMAGES:], reference(batch[IMAGES:]), temperature=4.0)
    assert torch.equal(loss, expected - 0.3 * away)
    assert criterion.reference.seen == 9, "the reference is asked about the outliers alone"
    loss.backward()
    assert model.layer.weight.grad is not None


@pytest.mark.parametrize("keyword", [False, True])
def test_a_watched_model_meets_the_outliers_unseen_by_the_loop(
    images: Tensor, targets: Tensor, keyword: bool
) -> None:
    reference, model = Classifier(False), Classifier(True)
    explicit = DivQATLoss(reference, alpha=0.3, outliers=KINDS, outlier_share=0.75)
    criterion = DivQATLoss(reference, model=model, alpha=0.3, outliers=KINDS, outlier_share=0.75)
    assert criterion.with_outliers(images) is images
    torch.manual_seed(5)
    batch = explicit.with_outliers(images)
    expected = explicit(model(batch), targets, batch)  # of a pass that the hook extends again
    torch.manual_seed(5)
    model.seen = 0
    logits = model(x=images) if keyword else model(images)
    assert len(logits) == IMAGES
    assert model.seen == IMAGES + 9
    criterion.reference.seen = 0
    loss = criterion(logits, targets)
    assert torch.equal(loss, expected)
    assert criterion.reference.seen == 9
    loss.backward()
    with torch.no_grad():
        assert len(model(images)) == IMAGES
    model.eval()
    model.seen = 0
    assert len(model(images)) == IMAGES == model.seen
    logits = model.train()(images)
    with pytest.raises(ConfigError, match="make the criterion without model="):
        criterion(logits, targets, images)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("kinds", [KINDS, ALL])
def test_outliers_are_augmented_as_asked_and_training_images_are_not(
    images: Tensor, watched: bool, kinds: list[OutlierKind]
) -> None:
    reference, model = Classifier(False), Classifier(True)
    seen: list[Tensor] = []

    def halved(outliers: Tensor) -> Tensor:
        seen.append(outliers)
        return outliers / 2

    model.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    criterion = DivQATLoss(
        reference, model=model if watched else None, outliers=kinds, augment=halved
    )
    model(criterion.with_outliers(images, model))
    made, batch = [x for x in seen if len(x) == IMAGES // 2][0], seen[-1]
    assert torch.equal(batch[:IMAGES], images)
    assert torch.equal(batch[IMAGES:], made / 2)
    assert copy.deepcopy(criterion).outliers.augment is halved


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x: x[1:], r"augment returns torch.float32 of shape \(5, 3, 4, 4\) on cpu"),
        (lambda x: x.double(), "augment returns torch.float64"),
        (lambda x: None, "augment returns a NoneType"),
    ],
)
def test_an_augmentation_that_makes_something_else_is_refused(
    images: Tensor, augment: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DivQATLoss(Classifier(False), augment=augment).with_outliers(images)


def test_an_augmentation_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match="augment is 'flip': give a function"):
        DivQATLoss(Classifier(False), augment="flip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="preset F3, which makes no outliers"):
        DivQATLoss(Classifier(False), preset="F3", augment=torch.neg)


@pytest.mark.parametrize("watched", [False, True])
def test_given_outliers_are_what_is_drawn_in_equal_parts_with_others(
    images: Tensor, watched: bool
) -> None:
    own = torch.rand(5, 3, 4, 4)
    asked: list[int] = []
    seen: list[Tensor] = []

    def draw(count: int) -> Tensor:
        asked.append(count)
        return own[torch.randint(len(own), (count,))]

    model = Classifier(True)
    model.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    criterion = DivQATLoss(
        Classifier(False),
        model=model if watched else None,
        outliers=["shapes", "given"],
        outlier_images=draw,
        augment=torch.neg,
    )
    model(criterion.with_outliers(images))
    assert asked == [3]
    drawn = [image for image in seen[0][IMAGES:] if any(torch.equal(-image, o) for o in own)]
    assert len(drawn) == 3
    assert len(seen[0]) == IMAGES + 6


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda n: torch.rand(n + 1, 3, 4, 4), r"returns torch.float32 of shape \(7, 3, 4, 4\)"),
        (lambda n: torch.zeros(n, 3, 4, 4, dtype=torch.uint8), "returns torch.uint8 of shape"),
        (lambda n: [0] * n, "outlier_images returns a list, expected torch.float32 of shape"),
    ],
)
def test_images_drawn_otherwise_are_refused(images: Tensor, draw: Any, message: str) -> None:
    criterion = DivQATLoss(Classifier(False), outliers=["given"], outlier_images=draw)
    with pytest.raises(ConfigError, match=message):
        criterion.with_outliers(images)


def test_given_outliers_and_images_to_draw_from_go_together(images: Tensor) -> None:
    reference = Classifier(False)
    with pytest.raises(ConfigError, match="no images to draw them from: give outlier_images="):
        DivQATLoss(reference, outliers=["given"])
    with pytest.raises(ConfigError, match="name given among them"):
        DivQATLoss(reference, outlier_images=torch.rand)
    with pytest.raises(ConfigError, match="outlier_images is a Tensor: give a function"):
        DivQATLoss(
            reference,
            outliers=["given"],
            outlier_images=images,  # type: ignore[arg-type]
        )
    without = DivQATLoss(reference, outliers=["given"], alpha=0)
    assert without.with_outliers(images) is images
    with pytest.raises(ConfigError, match="leave given out of outliers"):
        outliers_like(images, ["given"], 2)


@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "torch.compile"])
def test_a_wrapped_model_meets_outliers_too(
    images: Tensor, targets: Tensor, wrapper: str, tmp_path: Path
) -> None:
    reference, model = Classifier(False), Classifier(True)
    gradients = []
    for wrapped in (False, True):
        trained: Any = model
        if wrapped and wrapper == "torch.compile":
            trained = torch.compile(model, backend="aot_eager")
        elif wrapped:
            meeting = f"file://{tmp_path / 'meeting'}"
            torch.distributed.init_process_group("gloo", meeting, rank=0, world_size=1)
            trained = nn.parallel.DistributedDataParallel(model)
        criterion = DivQATLoss(reference, model=trained, outliers=KINDS)
        model.zero_grad()
        torch.manual_seed(0)
        # Dynamo cannot trace Brevitas' QuantTensor (torch 2.12, Brevitas 0.13): it may fall back.
        with torch._dynamo.config.patch(suppress_errors=True):
            criterion(trained(images), targets).backward()
        gradients.append(model.layer.weight.grad)
        del criterion
    if wrapper == "DistributedDataParallel":
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_models_of_more_than_a_batch_or_other_answers_are_refused(images: Tensor) -> None:
    class Pair(Classifier):
        def forward(self, x: Tensor, other: Any = None) -> Any:
            return (super().forward(x),) if other == "tuple" else super().forward(x)

    model = Pair(True)
    criterion = DivQATLoss(Classifier(False), model=model, outliers=KINDS)
    with pytest.raises(ConfigError, match="Pair takes 2 tensors"):
        model(images, images)
    with pytest.raises(ConfigError, match="returns no logits of shape"):
        model(images, "tuple")
    with pytest.raises(ConfigError, match="Pair takes 1 tensors, 0 of them bare"):
        model(UserDict(x=images))
    assert len(model(images, 3)) == IMAGES
    assert len(copy.deepcopy(model)(images)) == IMAGES, "a copy has hooks that do nothing"
    del criterion
    model.seen = 0
    model(images)
    assert model.seen == IMAGES, "without its criterion a model meets no outliers"


@pytest.mark.parametrize(("first", "second"), [((), KINDS), (KINDS, ()), (KINDS, KINDS)])
def test_a_model_with_outliers_has_one_criterion(
    images: Tensor, targets: Tensor, first: Sequence[OutlierKind], second: Sequence[OutlierKind]
) -> None:
    reference, model = Classifier(False), Classifier(True)
    old = DivQATLoss(reference, model=model, preset="F3", outliers=first)
    new = DivQATLoss(reference, model=model, preset="F3", outliers=second)
    with pytest.raises(ConfigError, match="is watched by 2 DivQATLoss, and outliers"):
        model(images)
    del old
    new(model(images), targets)


def test_where_hooks_see_too_little_the_inputs_are_handed_over(
    images: Tensor, targets: Tensor
) -> None:
    reference, model = Classifier(False), Classifier(True)
    watching = DivQATLoss(reference, model=model, outliers=KINDS)
    advice = "without model=, and call criterion.model.inputs., targets, inputs. with inputs = "
    with pytest.raises(ConfigError, match=advice):
        watching(torch.rand(IMAGES, CLASSES, requires_grad=True), targets)
    first = model(images)
    model(images)
    with pytest.raises(ConfigError, match=advice):
        watching(first, targets)
    del watching
    criterion = DivQATLoss(reference, outliers=KINDS)
    inputs = criterion.with_outliers(images)
    criterion(model(inputs), targets, inputs)


def test_reference_logits_of_the_outliers_may_be_given(images: Tensor, targets: Tensor) -> None:
    reference, model = Classifier(False), Classifier(True)
    criterion = DivQATLoss(reference, alpha=0.3, outliers=["patches"])
    batch = criterion.with_outliers(images)
    logits, theirs = model(batch), reference(batch[IMAGES:])
    given = criterion(logits, targets, reference_logits=theirs)
    assert torch.equal(given, criterion(logits, targets, batch))
    with pytest.raises(ConfigError, match="both need the same images"):
        criterion(logits, targets, reference_logits=reference(batch))


def test_soft_targets_are_counted_like_labels(images: Tensor, targets: Tensor) -> None:
    reference, model = Classifier(False), Classifier(True)
    criterion = DivQATLoss(reference, outliers=["patches"])
    batch = criterion.with_outliers(images)
    logits = model(batch)
    one_hot = F.one_hot(targets, CLASSES).float()
    torch.testing.assert_close(criterion(logits, one_hot, batch), criterion(logits, targets, batch))


def test_only_training_with_an_alpha_has_outliers(images: Tensor, targets: Tensor) -> None:
    reference, model = Classifier(False), Classifier(True)
    without = DivQATLoss(reference, alpha=0.0, outliers=KINDS)
    assert without.with_outliers(images) is images
    assert DivQATLoss(reference, preset="F3").with_outliers(images) is images
    criterion = DivQATLoss(reference, outliers=KINDS)
    with torch.no_grad():
        assert criterion.with_outliers(images) is images
    criterion.eval()
    assert criterion.with_outliers(images) is images
    logits = model(images)
    plain = F.cross_entropy(logits, targets)
    assert torch.equal(criterion(logits, targets), plain)
    assert torch.equal(without(logits, targets), plain)
    for few in (criterion, without, DivQATLoss(reference, model=model, outliers=KINDS)):
        with pytest.raises(ValueError, match="batch_size"):
            few(model(images), targets[:-2])


def test_a_batch_without_its_outliers_is_refused(images: Tensor, targets: Tensor) -> None:
    criterion, model = DivQATLoss(Classifier(False), outliers=KINDS), Classifier(True)
    given = criterion.with_outliers(images)
    for logits, wanted, inputs in (
        (model(images), targets, images),
        (model(given), targets, images),
        (model(given), targets[:2], given),
        (model(given)[:-1], targets, given),
    ):
        with pytest.raises(ConfigError, match="call criterion.model.given., targets") as caught:
            criterion(logits, wanted, inputs)
        assert "\n" not in str(caught.value)
        assert f"{len(wanted)} targets, logits {len(logits)}, inputs {len(inputs)}" in str(
            caught.value
        )


def test_a_copy_of_a_watching_criterion_makes_no_outliers(images: Tensor, targets: Tensor) -> None:
    model = Classifier(True)
    copied = copy.deepcopy(DivQATLoss(Classifier(False), model=model, outliers=KINDS))
    with pytest.raises(ConfigError, match="is a copy, and watches no model"):
        copied.with_outliers(images)
    with pytest.raises(ConfigError, match="is a copy, and watches no model"):
        copied(model(images), targets, images)


def test_inputs_of_another_type_are_refused(images: Tensor) -> None:
    with pytest.raises(ConfigError, match="the inputs are a ndarray"):
        DivQATLoss(Classifier(False), outliers=KINDS).with_outliers(images.numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "inputs",
    [
        torch.rand(4, 9),
        torch.rand(4, 3, 1, 5),
        torch.rand(0, 1, 4, 4),
        torch.zeros(4, 1, 4, 4, dtype=torch.uint8),
    ],
)
def test_outliers_are_made_of_images_alone(inputs: Tensor) -> None:
    criterion = DivQATLoss(Classifier(False), outliers=KINDS)
    with pytest.raises(ConfigError, match="give one or more floating-point images"):
        criterion.with_outliers(inputs)


def test_a_cache_of_outliers_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave the cache out"):
        DivQATLoss(Classifier(False), outliers=KINDS, cache=10)


# --- a training --------------------------------------------------------------------------------


def test_augmented_images_beside_outliers_that_are_not_are_refused() -> None:
    pixels, labels = np.zeros((8, 3, 4, 4), dtype=np.uint8), np.zeros(8, dtype=np.int64)
    config = FitConfig(1, batch_size=8, device="cpu", augmentation="shift-flip")
    criterion = DivQATLoss(Classifier(False), outliers=KINDS)
    with pytest.raises(ConfigError, match="tell by their whole borders: make it with DivQATLoss"):
        fit(Classifier(True), criterion, pixels, labels, config=config, seed=0)
    vary = augmentation_of("shift-flip")
    for harmless in (
        DivQATLoss(Classifier(False), outliers=KINDS, augment=vary),
        DivQATLoss(Classifier(False), preset="F3"),
    ):
        fit(Classifier(True), harmless, pixels, labels, config=config, seed=0)


def test_a_training_with_outliers_goes_on_bit_for_bit(tmp_path: Any) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)
    labels = random.integers(0, CLASSES, 40)
    torch.manual_seed(1)
    reference = Classifier(False)

    def trained(epochs: int, folder: Any, alpha: float = 0.2) -> dict[str, Tensor]:
        torch.manual_seed(2)
        model = Classifier(True)
        criterion = DivQATLoss(reference, alpha=alpha, outliers=ALL)
        config = FitConfig(epochs, batch_size=8, device="cpu")
        fit(model, criterion, pixels, labels, config=config, seed=0, folder=folder, resume=True)
        return {**model.state_dict(), **criterion.state_dict()}

    class Stopped(Exception):
        pass

    whole = trained(3, tmp_path / "whole")
    again = trained(3, tmp_path / "again")
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    with pytest.MonkeyPatch.context() as patch:
        module = import_module("brevitas_divqat.training.fit")
        saved, calls = module.save_state, []

        def save(*args: Any, **options: Any) -> None:
            saved(*args, **options)
            calls.append(1)
            if len(calls) == 3:  # the beginning and two epochs
                raise Stopped

        patch.setattr(module, "save_state", save)
        with pytest.raises(Stopped):
            trained(3, tmp_path / "broken")
    resumed = trained(3, tmp_path / "broken")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert "outliers.seeker.first" in whole, "the search goes on too"
    plain = trained(3, tmp_path / "plain", alpha=0.0)
    assert any(not torch.equal(whole[key], plain[key]) for key in plain)
