# SPDX-License-Identifier: BSD-3-Clause
"""The command line."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from brevitas_divqat.bnn_pynq import DivQATTrainer, checkpoints, train
from brevitas_divqat.bnn_pynq.arguments import help_text, parse
from brevitas_divqat.bnn_pynq.train import main


def test_the_defaults_are_those_of_brevitas() -> None:
    from brevitas_examples.bnn_pynq.bnn_pynq_train import parse_args

    args, settings = parse([])
    assert vars(args) == vars(parse_args([]))
    assert settings.loss.weight == 0
    assert (settings.reference, settings.full_precision, settings.validation) == (None, False, 0)


def test_flags_of_both_groups_may_be_mixed() -> None:
    text = "--lr=0.1 --divqat_alpha 0.2 --epochs 3 --divqat_direction p||q --divqat_preset F1"
    args, settings = parse([*text.split(), "--divqat_reference", "twin.tar", "--gpus", "None"])
    assert (args.lr, args.epochs, args.gpus) == (0.1, 3, None)
    assert (settings.loss.alpha, settings.loss.direction) == (0.2, "p||q")
    assert settings.loss.temperature == 1.0
    assert settings.reference == Path("twin.tar")


def test_outliers_are_named_one_after_the_other() -> None:
    text = "--divqat_outliers textures shapes --epochs 3 --divqat_alpha 0.2"
    args, settings = parse(text.split())
    assert args.epochs == 3
    assert settings.loss.outliers == ("textures", "shapes")
    assert settings.loss.outlier_share == 0.5
    _, settings = parse([*text.split(), "--divqat_outlier_share", "2"])
    assert settings.loss.outlier_share == 2.0


@pytest.mark.parametrize("flag", ["--help", "-h", "--hel"])
def test_help_shows_both_groups(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    shown = capsys.readouterr().out
    assert "--state_dict_to_pth" in shown
    assert "--divqat_reference" in shown
    assert shown.strip() == help_text().strip()


def test_the_module_runs_as_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--batch_size", "0"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(train.__file__), run_name="__main__")
    assert stop.value.code == 2
    assert "--batch_size is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--divqat_alhpa 0.1", "did you mean --divqat_alpha?"),
        ("--bach_size 4", "did you mean --batch_size?"),
        ("--epochs many", "invalid int value: 'many'"),
        ("--divqat_alpha", "expected one argument"),
        ("--divqat_alpha much", "invalid float value"),
        ("--divqat_alpha -1", "alpha is -1.0"),
        ("--divqat_alpha 2 --divqat_preset F1 --divqat_reference x", "must be below 1"),
        ("--divqat_preset F2", "invalid choice: 'F2'"),
        ("--divqat_temperature 2", "without --divqat_alpha"),
        ("--divqat_outliers textures", "without --divqat_alpha"),
        ("--divqat_outlier_share 0.5", "without --divqat_alpha"),
        ("--divqat_outliers", "expected at least one argument"),
        ("--divqat_alpha 0.1 --divqat_outliers clouds", "invalid choice: 'clouds'"),
        ("--divqat_alpha 0.1 --divqat_outliers shapes shapes", "name each kind once"),
        (
            "--divqat_alpha 0.1 --divqat_preset F3 --divqat_outlier_share 0.5",
            "0.5 without outliers",
        ),
        (
            "--divqat_alpha 0.1 --divqat_outliers shapes --divqat_outlier_share 0",
            "outlier_share is 0.0",
        ),
        ("--divqat_outlirs shapes", "did you mean --divqat_outliers?"),
        ("--divqat_alpha 0.04", "--divqat_float"),
        ("--divqat_alpha 0.04 --divqat_float", "diverges from nothing"),
        ("--divqat_validation -1", "--divqat_validation is -1"),
        ("--divqat_validation 1", "--divqat_validation is 1"),
        ("--divqat_alpha 0.04 --divqat_reference none.tar", "none.tar: No such file"),
        ("--resume gone/checkpoints/best.tar", "best.tar: No such file"),
        ("--resume best.tar", "`checkpoints`"),
        ("--network TFC_9W9A", "TFC_2W2A"),
        ("--network TFC_1W1A --export_qcdq_onnx", "--export_qonnx"),
        ("--batch_size 0", "--batch_size is 0"),
        ("--lr nan", "--lr is nan"),
        ("--log_freq 0", "--log_freq is 0"),
        ("--num_workers -1", "--num_workers is -1"),
        ("--optim LION", "choose from ['ADAM', 'SGD']"),
        ("--loss MSE", "--loss is MSE"),
        ("--scheduler None", "--scheduler is None"),
        ("--scheduler STEP --milestones soon", "--milestones is 'soon'"),
        ("--gpus first", "--gpus is 'first'"),
        ("--gpus 99", "--gpus is '99'"),
        ("--dry_run --state_dict_to_pth", "--dry_run"),
        ("--divqat_float --export_qonnx", "no quantizers"),
        ("--dry_run --export_qonnx", "which --dry_run does not keep"),
        ("--epochs 0 --export_qonnx", "--epochs is 0"),
        ("--epochs -1", "--epochs is -1"),
        (f"--random_seed {2**64}", "--random_seed is 18446744073709551616"),
        ("--divqat_alpha 0 --divqat_reference none.tar", "none.tar: No such file"),
        ("--divqat_alpha 0.1 --divqat_direction p||q --divqat_reference x", "no cap"),
    ],
)
def test_a_mistake_is_one_line(
    text: str, message: str, flags: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    network = [] if "--network" in text else ["--network", "TFC_2W2A"]
    assert main([*flags, *network, *text.split()]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("divqat-bnn-pynq-train: error: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert list((tmp_path / "experiments").iterdir()) == []


def test_several_gpus_are_refused_with_a_divergence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(["--gpus", "0,1", "--divqat_alpha", "0.04", "--divqat_reference", "x"]) == 2
    assert "DataParallel" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--datadir", "--experiments"])
def test_a_folder_that_cannot_be_is_refused(
    flag: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*flags, "--network", "TFC_1W1A", flag, str(tmp_path / "file" / "folder")]) == 2
    shown = capsys.readouterr().err
    assert flag in shown
    assert shown.count("\n") == 1


def test_the_experiments_folder_is_made(flags: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    arguments = ["--experiments", str(folder), "--network", "TFC_1W1A", "--epochs", "1"]
    assert main([*flags, *arguments]) == 0
    assert len(list(folder.glob("TFC_1W1A_1W1A_*/checkpoints/best.tar"))) == 1


def test_a_user_s_own_description_is_trained(
    description: str, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "Mine.ini").write_text(description)
    arguments = ["--network", str(tmp_path / "Mine.ini"), "--epochs", "1", "--export_qonnx"]
    assert main([*flags, *arguments]) == 0
    experiments = tmp_path / "experiments"
    assert len(list(experiments.glob("Mine_3W3A_*/checkpoints/best.tar"))) == 1
    assert len(list(experiments.glob("Mine_3W3A_*/onnx/mine-qonnx-*.onnx"))) == 1


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63)])
def test_every_seed_of_torch_is_taken(seed: int, flags: list[str]) -> None:
    text = f"--network TFC_1W1A --epochs 1 --dry_run --random_seed {seed}"
    assert main([*flags, *text.split()]) == 0


def test_no_epochs_train_nothing(flags: list[str], tmp_path: Path) -> None:
    assert main([*flags, "--network", "TFC_1W1A", "--epochs", "0"]) == 0
    (run,) = (tmp_path / "experiments").iterdir()
    assert list((run / "checkpoints").iterdir()) == []


def test_an_interruption_is_one_line(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DivQATTrainer, "train_model", interrupted)
    assert main([*flags, "--network", "TFC_1W1A"]) == 130
    # Nothing is written yet that a training could go on from.
    assert capsys.readouterr().err == "divqat-bnn-pynq-train: interrupted\n"


def test_an_interruption_names_the_file_to_resume(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        write = checkpoints.write_package

        def interrupted(path: Path, package: dict[str, Any]) -> None:
            if package["epoch"] == 2:
                raise KeyboardInterrupt
            write(path, package)

        patch.setattr(checkpoints, "write_package", interrupted)
        assert main([*flags, "--network", "TFC_1W1A"]) == 130
    shown = capsys.readouterr().err
    (latest,) = (tmp_path / "experiments").glob("*/checkpoints/checkpoint.tar")
    assert shown == f"divqat-bnn-pynq-train: interrupted; go on with --resume {latest}\n"
    text = f"--network TFC_1W1A --epochs 2 --resume {latest}"
    assert main([*flags, *text.split()]) == 0
