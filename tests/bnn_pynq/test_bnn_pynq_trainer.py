# SPDX-License-Identifier: BSD-3-Clause
"""Training: equal to Brevitas' with alpha 0, exact when resumed, divergent with alpha above 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from brevitas_divqat.bnn_pynq import DivQATTrainer, checkpoints, float_twin, read_network
from brevitas_divqat.bnn_pynq.train import launch
from brevitas_divqat.errors import CheckpointError, ConfigError

Runner = Callable[[str], Path]
NETWORKS = {
    "TFC_1W1A": "--epochs 2",
    "tfc_2w2a": "--epochs 2 --loss CrossEntropy --optim SGD --scheduler STEP --milestones 1",
    "SFC_1W2A": "--epochs 1",
    "LFC_1W1A": "--epochs 1 --weight_decay 0.1",
    "CNV_1W1A": "--epochs 1",
    "CNV_1W2A": "--epochs 1 --loss CrossEntropy",
    "CNV_2W2A": "--epochs 1 --random_seed 7",
    "RESNET18_4W4A": "--epochs 1 --loss CrossEntropy",
}


def package(run: Path, name: str = "checkpoint.tar") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / name, weights_only=True)


def assert_same(a: Any, b: Any) -> None:
    """Hold two nested checkpoints to the same bits."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("name", NETWORKS)
def test_alpha_0_trains_the_weights_of_brevitas(name: str, ours: Runner, theirs: Runner) -> None:
    text = f"--network {name} {NETWORKS[name]}"
    expected, got = package(theirs(text), "best.tar"), package(ours(text), "best.tar")
    assert got.keys() - expected.keys() == {"divqat"}
    for key in expected:
        assert_same(got[key], expected[key])


@pytest.mark.parametrize(
    "text",
    [
        "--network TFC_1W1A",
        "--network TFC_2W2A --loss CrossEntropy --optim SGD --scheduler STEP --milestones 1,2",
        "--network TFC_2W2A --divqat_validation 5",
        "--network TFC_2W2A --divqat_float",
    ],
)
def test_a_resumed_training_equals_the_uninterrupted_one(text: str, ours: Runner) -> None:
    whole = package(ours(f"{text} --epochs 3"))
    part = ours(f"{text} --epochs 1")
    check_resume(text, part, whole, epochs=3)


def check_resume(text: str, part: Path, whole: dict[str, Any], *, epochs: int) -> None:
    experiments = part.parent
    shared = f"--datadir {experiments.parent / 'data'} --num_workers 0 --batch_size 4"
    latest = part / "checkpoints" / "checkpoint.tar"
    torch.manual_seed(5)
    launch(f"{shared} {text} --epochs {epochs} --resume {latest}".split())
    assert_same(package(part), whole)


def test_a_resumed_resnet_goes_on_with_its_statistics(ours: Runner) -> None:
    text = "--network RESNET18_4W4A"
    whole = package(ours(f"{text} --epochs 2"))
    part = ours(f"{text} --epochs 1")
    assert package(part)["divqat"]["statistics"]
    check_resume(text, part, whole, epochs=2)


def test_a_resumed_divqat_training_equals_the_uninterrupted_one(ours: Runner) -> None:
    twin = ours("--network TFC_2W2A --epochs 1 --divqat_float") / "checkpoints" / "best.tar"
    before = twin.read_bytes()
    text = (
        f"--network TFC_2W2A --divqat_alpha 0.3 --divqat_warmup_steps 8 --divqat_reference {twin}"
    )
    whole = package(ours(f"{text} --epochs 3"))
    plain = package(ours("--network TFC_2W2A --epochs 3"))
    part = ours(f"{text} --epochs 1")
    check_resume(text, part, whole, epochs=3)
    assert whole["divqat"]["step"] == 15
    assert whole["state_dict"].keys() == plain["state_dict"].keys()
    assert not torch.equal(
        whole["state_dict"]["features.2.weight"], plain["state_dict"]["features.2.weight"]
    )
    assert twin.read_bytes() == before


@pytest.mark.parametrize("loss", ["SqrHinge", "CrossEntropy"])
def test_a_resumed_training_with_outliers_equals_the_uninterrupted_one(
    loss: str, ours: Runner
) -> None:
    twin = ours("--network TFC_2W2A --epochs 1 --divqat_float") / "checkpoints" / "best.tar"
    shared = f"--network TFC_2W2A --loss {loss} --divqat_alpha 0.3 --divqat_reference {twin}"
    text = f"{shared} --divqat_outliers textures patches shapes generated"
    whole = package(ours(f"{text} --epochs 2"))
    part = ours(f"{text} --epochs 1")
    check_resume(text, part, whole, epochs=2)
    without = package(ours(f"{shared} --divqat_preset F3 --epochs 2"))
    assert whole["state_dict"].keys() == without["state_dict"].keys()
    key = "features.2.weight"
    assert not torch.equal(whole["state_dict"][key], without["state_dict"][key])


@pytest.mark.parametrize("network", ["CNV_2W2A", "RESNET18_4W4A"])
def test_outliers_are_seen_in_training_alone(
    network: str, flags: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "twin.pth"
    torch.save(float_twin(read_network(network).config).state_dict(), path)
    text = (
        f"--network {network} --epochs 1 --dry_run --divqat_alpha 0.3 --divqat_reference {path} "
        "--divqat_outliers patches shapes --divqat_outlier_share 0.75"
    )
    trainer = prepared([*flags, *text.split()])
    shifted = trainer.criterion.outliers.augment(torch.ones(200, 3, 32, 32))
    assert (shifted[:, :, 0] == 0).any(), "as Brevitas' trainer shifts its images of CIFAR-10"
    seen: list[tuple[bool, int]] = []

    def note(model: Any, inputs: Any, scores: Any) -> None:
        seen.append((model.training, len(inputs[0])))

    trainer.model.register_forward_hook(note)
    trainer.train_model()
    assert seen == [(True, 4 + 3), (True, 4 + 3), (False, 4)]
    trainer.model.train()
    trainer.model(torch.rand(4, 3, 32, 32))
    assert seen[-1] == (True, 4), "after the training the network is as it was"


def test_a_training_killed_between_two_writes_keeps_its_best_weights(
    ours: Runner, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second epoch, whose writes are interrupted, is the best one.
    monkeypatch.setattr(DivQATTrainer, "eval_model", lambda self, epoch: 5.0 - (epoch - 2) ** 2)
    text = "--network TFC_1W1A --epochs 3"
    expected = ours(text)
    write = checkpoints.write_package
    written: list[str] = []

    def killed(path: Path, package: dict[str, Any]) -> None:
        if package["epoch"] == 2 and len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, package)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_package", killed)
        with pytest.raises(KeyboardInterrupt):
            ours(text)
    (latest,) = set(expected.parent.glob("*/checkpoints/checkpoint.tar")) - {
        expected / "checkpoints" / "checkpoint.tar"
    }
    launch([*flags, *f"{text} --resume {latest}".split()])
    got = latest.parents[1]
    assert package(got, "best.tar")["epoch"] == 2
    for name in ("best.tar", "checkpoint.tar"):
        assert_same(package(got, name), package(expected, name))


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("", r"--divqat_alpha 0\.3, got 0\.0"),
        ("--divqat_alpha 0.2 --divqat_reference {twin}", r"--divqat_alpha 0\.3, got 0\.2"),
        (
            "--divqat_alpha 0.3 --divqat_warmup_steps 8 --divqat_reference {twin} "
            "--loss CrossEntropy",
            "--loss SqrHinge, got CrossEntropy",
        ),
        ("--divqat_alpha 0.3 --divqat_reference {twin}", "--divqat_warmup_steps 8, got 0"),
        (
            "--divqat_alpha 0.3 --divqat_warmup_steps 8 --divqat_cap 3 --divqat_reference {twin}",
            r"--divqat_cap None, got 3\.0",
        ),
        (
            "--divqat_alpha 0.3 --divqat_warmup_steps 8 --divqat_reference {twin} "
            "--divqat_outliers shapes",
            "--divqat_outliers textures patches shapes, got shapes",
        ),
        (
            "--divqat_alpha 0.3 --divqat_warmup_steps 8 --divqat_reference {other}",
            "--divqat_reference the SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}",
        ),
    ],
)
def test_another_objective_is_refused(
    then: str, message: str, ours: Runner, flags: list[str], tmp_path: Path
) -> None:
    twin = ours("--network TFC_2W2A --epochs 1 --divqat_float") / "checkpoints" / "best.tar"
    other = tmp_path / "other.pth"
    torch.save(float_twin(read_network("TFC_2W2A").config).state_dict(), other)
    text = "--network TFC_2W2A --epochs 1 --divqat_alpha 0.3 --divqat_warmup_steps 8"
    latest = ours(f"{text} --divqat_reference {twin}") / "checkpoints" / "checkpoint.tar"
    before = latest.read_bytes()
    given = f"--network TFC_2W2A {then.format(twin=twin, other=other)} --resume {latest}"
    with pytest.raises(CheckpointError, match=message):
        launch([*flags, *given.split()])
    assert latest.read_bytes() == before
    # What trains nothing needs no reference.
    launch([*flags, *f"--network TFC_2W2A --evaluate --resume {latest}".split()])


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("--divqat_preset F3", "--divqat_outliers shapes patches, got None"),
        ("", "--divqat_outliers shapes patches, got textures patches shapes"),
        ("--divqat_outliers shapes", "--divqat_outliers shapes patches, got shapes"),
        (
            "--divqat_outliers shapes patches --divqat_outlier_share 1",
            r"--divqat_outlier_share 0\.5, got 1\.0",
        ),
    ],
)
def test_other_outliers_are_another_objective(
    then: str, message: str, ours: Runner, flags: list[str], tmp_path: Path
) -> None:
    twin = tmp_path / "twin.pth"
    torch.save(float_twin(read_network("TFC_2W2A").config).state_dict(), twin)
    shared = f"--network TFC_2W2A --divqat_alpha 0.3 --divqat_reference {twin}"
    run = ours(f"{shared} --epochs 1 --divqat_outliers shapes patches")
    latest = run / "checkpoints" / "checkpoint.tar"
    with pytest.raises(CheckpointError, match=message):
        launch([*flags, *f"{shared} {then} --epochs 2 --resume {latest}".split()])


def test_defaults_that_are_spelt_out_are_the_same_objective(
    ours: Runner, flags: list[str], tmp_path: Path
) -> None:
    twin = ours("--network TFC_2W2A --epochs 1 --divqat_float") / "checkpoints" / "best.tar"
    shared = f"--network TFC_2W2A --divqat_alpha 0.3 --divqat_reference {twin}"
    latest = ours(f"{shared} --epochs 1") / "checkpoints" / "checkpoint.tar"
    spelt = f"{shared} --epochs 2 --divqat_preset outliers --divqat_temperature 4 --resume {latest}"
    assert launch([*flags, *spelt.split()]).starting_epoch == 2


def test_a_checkpoint_that_does_not_tell_its_objective_is_resumed(
    ours: Runner, flags: list[str]
) -> None:
    run = ours("--network TFC_1W1A --epochs 1")
    older = package(run)
    del older["divqat"]["objective"]
    latest = run / "checkpoints" / "checkpoint.tar"
    torch.save(older, latest)
    text = f"--network TFC_1W1A --epochs 2 --loss CrossEntropy --resume {latest}"
    assert launch([*flags, *text.split()]).starting_epoch == 2
    assert package(run)["divqat"]["objective"]["--loss"] == "CrossEntropy"


def test_the_learning_rate_of_the_checkpoint_is_kept_and_told(
    ours: Runner, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    latest = ours("--network TFC_1W1A --epochs 1 --lr 0.125") / "checkpoints" / "checkpoint.tar"
    text = f"--network TFC_1W1A --epochs 2 --lr 0.5 --resume {latest}"
    trainer = launch([*flags, *text.split()])
    assert trainer.optimizer.param_groups[0]["lr"] == 0.125
    assert "learning rate 0.125; --lr, --momentum" in capsys.readouterr().out


def test_brevitas_evaluates_our_checkpoints(ours: Runner, flags: list[str]) -> None:
    from brevitas_examples.bnn_pynq.bnn_pynq_train import launch as brevitas_launch

    best = ours("--network TFC_1W1A --epochs 1") / "checkpoints" / "best.tar"
    network = "--network TFC_1W1A --strict --evaluate --resume"
    brevitas_launch([*flags, *network.split(), str(best)])


def test_brevitas_checkpoints_are_resumed(theirs: Runner, flags: list[str]) -> None:
    best = theirs("--network TFC_1W1A --epochs 1") / "checkpoints" / "best.tar"
    trainer = launch([*flags, *f"--network TFC_1W1A --epochs 2 --resume {best}".split()])
    assert trainer.starting_epoch == 2
    latest = package(best.parents[1])
    assert latest["epoch"] == 2
    assert latest["optim_dict"]["state"][0]["step"] == 10


def test_a_data_parallel_checkpoint_loses_its_prefix(
    ours: Runner, flags: list[str], tmp_path: Path
) -> None:
    best = ours("--network TFC_1W1A --epochs 1") / "checkpoints" / "best.tar"
    content = torch.load(best, weights_only=True)
    state = content["state_dict"]
    path = tmp_path / "parallel.tar"
    torch.save(content | {"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    trainer = launch([*flags, *f"--network TFC_1W1A --evaluate --resume {path}".split()])
    assert_same(dict(trainer.model.state_dict()), dict(state))


# Held-out images


def test_the_held_out_images_are_not_trained_on(flags: list[str]) -> None:
    images = []
    for seed in (1, 2):
        text = f"--network CNV_1W1A --divqat_validation 2 --random_seed {seed} --dry_run"
        trainer = prepared([*flags, *text.split()])
        train, held = trainer.train_loader.dataset, trainer.test_loader.dataset
        assert (len(train), len(held)) == (6, 2)
        assert not set(train.indices) & set(held.indices)
        assert torch.equal(held[0][0], held[0][0])  # no random crop
        images.append(held.indices)
    assert images[0] == images[1]


def prepared(arguments: list[str]) -> DivQATTrainer:
    """Make a trainer that has not trained."""
    from brevitas_divqat.bnn_pynq.arguments import parse

    args, settings = parse(arguments)
    return DivQATTrainer(args, read_network(args.network), settings)


# Exports


@pytest.mark.parametrize("kind", ["qonnx", "qcdq_onnx"])
def test_the_best_weights_are_exported(
    kind: str, ours: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx.numpy_helper import to_array

    # The first epoch counts as the best.
    monkeypatch.setattr(DivQATTrainer, "eval_model", lambda self, epoch: 10.0 - epoch)
    run = ours(f"--network TFC_2W2A --epochs 2 --export_{kind}")
    best, last = package(run, "best.tar"), package(run)
    assert (best["epoch"], last["epoch"]) == (1, 2)
    (graph,) = (run / "onnx").iterdir()
    assert graph.name.startswith(f"tfc_2w2a-{kind.removesuffix('_onnx')}-")
    held = [to_array(t).tolist() for t in onnx.load(graph).graph.initializer]
    key = "features.15.running_mean"
    assert best["state_dict"][key].tolist() in held
    assert last["state_dict"][key].tolist() not in held


def test_evaluation_exports_beside_the_checkpoints(ours: Runner, flags: list[str]) -> None:
    run = ours("--network TFC_1W1A --epochs 1")
    best = run / "checkpoints" / "best.tar"
    text = f"--network TFC_1W1A --evaluate --export_qonnx --resume {best}"
    trainer = launch([*flags, *text.split()])
    assert [p.suffix for p in (run / "onnx").iterdir()] == [".onnx"]
    assert not trainer.model.training


def test_a_resnet_can_be_exported(ours: Runner, flags: list[str]) -> None:
    run = ours("--network RESNET18_4W4A --epochs 1 --export_qonnx")
    assert [p.suffix for p in (run / "onnx").iterdir()] == [".onnx"]


def test_a_state_dict_becomes_a_file(ours: Runner, flags: list[str]) -> None:
    run = ours("--network TFC_1W1A --epochs 1")
    best = run / "checkpoints" / "best.tar"
    with pytest.raises(SystemExit, match="0"):
        launch([*flags, *f"--network TFC_1W1A --state_dict_to_pth --resume {best}".split()])
    (path,) = (run / "checkpoints").glob("*.pth")
    assert_same(torch.load(path, weights_only=True), package(run)["state_dict"])


# Checkpoints that do not fit


def test_a_checkpoint_without_activation_scales_is_refused(
    ours: Runner, flags: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(read_network("RESNET18_4W4A").build().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"lacks relu\.act_quant.*scales"):
        launch([*flags, *f"--network RESNET18_4W4A --evaluate --resume {path}".split()])


@pytest.mark.parametrize(
    ("flags_then", "message"),
    [
        ("--network TFC_2W2A", "WEIGHT_BIT_WIDTH 1"),
        ("--network SFC_1W1A", "OUT_FEATURES"),
        ("--network TFC_1W1A --divqat_float", "of the quantized network"),
        ("--network TFC_1W1A --divqat_validation 2", "divqat_validation 0"),
        ("--network TFC_1W1A --optim SGD", "--optim SGD"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    flags_then: str, message: str, ours: Runner, flags: list[str]
) -> None:
    best = ours("--network TFC_1W1A --epochs 1") / "checkpoints" / "best.tar"
    with pytest.raises(CheckpointError, match=message):
        launch([*flags, *f"{flags_then} --resume {best}".split()])


@pytest.mark.parametrize(
    ("made_by", "message"),
    [
        ("--network SFC_2W2A --divqat_float", "does not fit TFC_2W2A"),
        ("--network TFC_2W2A", "of a quantized network"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(
    made_by: str, message: str, ours: Runner, flags: list[str]
) -> None:
    best = ours(f"{made_by} --epochs 1") / "checkpoints" / "best.tar"
    text = f"--network TFC_2W2A --divqat_alpha 0.04 --divqat_reference {best}"
    with pytest.raises(CheckpointError, match=message):
        launch([*flags, *text.split()])


@pytest.mark.parametrize("bare", [True, False])
def test_a_reference_that_cannot_be_verified_is_told(
    bare: bool, ours: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = ours("--network TFC_2W2A --epochs 1 --divqat_float") / "checkpoints" / "best.tar"
    if bare:
        torch.save(read_network("TFC_2W2A").build().state_dict(), tmp_path / "quantized.pth")
        twin = tmp_path / "quantized.pth"
    ours(f"--network TFC_2W2A --epochs 1 --divqat_alpha 0.04 --divqat_reference {twin}")
    assert ("cannot be verified" in capsys.readouterr().out) is bare


def test_a_reference_of_other_classes_is_refused(flags: list[str], tmp_path: Path) -> None:
    config = read_network("TFC_2W2A").config
    config.set("MODEL", "NUM_CLASSES", "12")
    path = tmp_path / "twin.pth"
    torch.save(float_twin(config).state_dict(), path)
    text = f"--network TFC_2W2A --divqat_alpha 0.04 --divqat_reference {path}"
    with pytest.raises(CheckpointError, match=r"twin\.pth"):
        launch([*flags, *text.split()])


def with_own(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what changes entries of a checkpoint's entry ``divqat``."""
    return lambda content: content | {"divqat": content["divqat"] | changes}


DAMAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "epoch": lambda content: content | {"epoch": "x"},
    "epoch below 1": lambda content: content | {"epoch": -5},
    "best_val_acc": lambda content: content | {"best_val_acc": float("nan")},
    "divqat: None": lambda content: content | {"divqat": None},
    "divqat: {}": lambda content: content | {"divqat": {}},
    "divqat: [1]": lambda content: content | {"divqat": [1]},
    "network": with_own(network={"ARCH": 1}),
    "objective": with_own(objective=None),
    "no step": lambda content: (
        content | {"divqat": {k: v for k, v in content["divqat"].items() if k != "step"}}
    ),
    "random": with_own(random={}),
    "random: torch": with_own(random={"python": (3, (1,), None), "torch": 1, "cuda": []}),
    "statistics": with_own(statistics={"nope": (1, torch.zeros(1), torch.zeros(1))}),
    "statistics: None": with_own(statistics={"features.2": None}),
    "criterion: None": with_own(criterion=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(
    damage: str, ours: Runner, flags: list[str], tmp_path: Path
) -> None:
    latest = ours("--network TFC_1W1A --epochs 1") / "checkpoints" / "checkpoint.tar"
    path = tmp_path / "checkpoints" / "damaged.tar"
    path.parent.mkdir()
    torch.save(DAMAGES[damage](torch.load(latest, weights_only=True)), path)
    with pytest.raises(CheckpointError, match="is damaged"):
        launch([*flags, *f"--network TFC_1W1A --epochs 2 --resume {path}".split()])
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("entry", ["first", "shape"])
@pytest.mark.parametrize("value", [torch.zeros(3), "x"])
def test_a_damaged_generator_is_refused(
    entry: str, value: Any, ours: Runner, flags: list[str], tmp_path: Path
) -> None:
    twin = ours("--network TFC_2W2A --epochs 1 --divqat_float") / "checkpoints" / "best.tar"
    text = (
        f"--network TFC_2W2A --divqat_alpha 0.3 --divqat_reference {twin} "
        "--divqat_outliers generated --epochs"
    )
    package = torch.load(ours(f"{text} 1") / "checkpoints" / "checkpoint.tar", weights_only=True)
    package["divqat"]["criterion"][f"outliers.seeker.{entry}"] = value
    path = tmp_path / "checkpoints" / "damaged.tar"
    path.parent.mkdir()
    torch.save(package, path)
    with pytest.raises(CheckpointError, match="its entry 'criterion' is not what"):
        launch([*flags, *f"{text} 2 --resume {path}".split()])


def test_a_file_that_was_cut_off_is_damaged(ours: Runner, tmp_path: Path) -> None:
    latest = ours("--network TFC_1W1A --epochs 1") / "checkpoints" / "checkpoint.tar"
    content = latest.read_bytes()
    path = tmp_path / "cut.tar"
    for size in (0, 1, 100, 5000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoints.read_package(path)


def test_images_left_alone_are_evaluated(ours: Runner, flags: list[str]) -> None:
    best = ours("--network TFC_1W1A --epochs 1") / "checkpoints" / "best.tar"
    text = f"--network TFC_1W1A --evaluate --resume {best} --batch_size"
    accuracy = {launch([*flags, *text.split(), n]).eval_model() for n in ("1", "5", "6")}
    assert len({round(a, 4) for a in accuracy}) == 1


def test_a_last_batch_of_one_image_is_refused(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match="last batch"):
        launch([*flags, "--network", "TFC_1W1A", "--batch_size", "19"])
