# SPDX-License-Identifier: BSD-3-Clause
"""The console script: flags, files, steps, and one clear line for every mistake."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml

from brevitas_divqat import __version__, cli
from brevitas_divqat.cli import main
from brevitas_divqat.evaluation import RunConfig

TRAINING = [
    *("--width", "0.5", "--float-epochs", "2", "--epochs", "1"),
    *("--batch-size", "32", "--device", "cpu"),
]
THEFT = [
    *("--budget", "64", "--surrogate-epochs", "1"),
    *("--surrogate-batch", "16", "--surrogate-device", "cpu"),
]
DATA = ["--pool-images", "200"]
TINY = [*DATA, *TRAINING, *THEFT]

Capture = pytest.CaptureFixture[str]
Folder = dict[str, bytes]


def status(*argv: str) -> int:
    """Run the command line and return its exit status, however it is given."""
    try:
        return main([*argv])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def content(folder: Path) -> Folder:
    """Return the bytes of every file, and an entry for every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<folder>"
        for path in sorted(folder.rglob("*"))
    }


def measurements(folder: Path) -> dict[str, Any]:
    """Read a run's measurements without what the clock decides."""
    found = {p.name: json.loads(p.read_text()) for p in (folder / "measurements").glob("*.json")}
    for record in found.values():
        del record["seconds"]
        record.pop("victim_seconds", None)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on digits."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert status("run", *TINY, "--out", str(folder)) == 0
    return folder


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "run"))


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Give a function that parses arguments of ``run`` and returns what the run would get."""

    def parse(*argv: str) -> Any:
        seen: list[Any] = []
        command = cli.COMMANDS["run"]
        patched = cli._Command(command.help, command.groups, seen.append, command.arguments)
        monkeypatch.setitem(cli.COMMANDS, "run", patched)
        assert status("run", *argv) == 0
        return seen[0]

    return parse


def refused(capfd: Capture, folder: Path, argv: list[str], *parts: str) -> None:
    """Assert status 2, one line on stderr that holds ``parts``, and an untouched ``folder``."""
    before = content(folder)
    capfd.readouterr()
    assert status(*argv) == 2
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    for part in parts:
        assert part in err
    assert content(folder) == before
    lines = [line for line in err.splitlines() if line.strip() and ": done (" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("divqat: error: ")


# Mistakes


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        pytest.param("--data minst", ["minst", "did you mean 'mnist'"], id="unknown-data"),
        pytest.param("--data mnist --data-root no", ["no/MNIST", "--data-root"], id="no-data"),
        pytest.param("--data cifar10 --data-root no", ["no/cifar", "--data-root"], id="no-cifar"),
        pytest.param("--data photographs", ["--ood"], id="no-labels"),
        pytest.param("--pool no.npy", ["no.npy", "not found"], id="no-pool"),
        pytest.param("--pool-images 1000000", ["pool_images"], id="more-than-the-pool"),
        pytest.param("--model alexnet", ["alexnet", "lenet5"], id="unknown-model"),
        pytest.param("--model cnv", ["cnv", "8x8"], id="model-for-other-images"),
        pytest.param("--surrogate alexnet", ["alexnet", "lenet5"], id="unknown-surrogate"),
        pytest.param("--surrogate cnv", ["cnv", "8x8"], id="surrogate-for-other-images"),
        pytest.param("--bits 0", ["bits", "0", "1 to 8"], id="bits-0"),
        pytest.param("--bits 1", ["1-bit activations", "act_bits"], id="bits-1-on-8x8"),
        pytest.param("--bits 9", ["bits", "9", "1 to 8"], id="bits-9"),
        pytest.param("--bits four", ["bits", "four"], id="bits-word"),
        pytest.param("--bits", ["bits"], id="bits-missing"),
        pytest.param("--width 0", ["width"], id="width-0"),
        pytest.param("--width nan", ["width"], id="width-nan"),
        pytest.param("--alpha -0.1", ["alpha", "-0.1"], id="alpha-negative"),
        pytest.param("--alpha nan", ["alpha", "nan"], id="alpha-nan"),
        pytest.param("--preset F1 --alpha 1", ["alpha", "below 1"], id="unbounded"),
        pytest.param(
            "--preset F3 --weighting convex --alpha 0.5", ["alpha", "0.5"], id="convex-half"
        ),
        pytest.param("--weighting convex --alpha 1", ["alpha", "below 1"], id="convex-1"),
        pytest.param("--preset F2", ["preset", "F2"], id="unknown-preset"),
        pytest.param(
            "--outliers textures",
            ["some of 'textures', 'patches', 'shapes', 'generated', 'given' in"],
            id="kind",
        ),
        pytest.param("--outliers [shape]", ["some of 'textures'", "'shape'"], id="unknown-kind"),
        pytest.param("--outliers []", ["say preset F3"], id="no-outliers"),
        pytest.param("--cap 1e300", ["cap", "at most 1e+30"], id="cap-beyond-float32"),
        pytest.param("--warmup-steps 1000000", ["alpha would never reach 0.04"], id="warm-up"),
        pytest.param("--preset=", ["empty"], id="empty-preset"),
        pytest.param("--outliers [given]", ["give --outlier-images"], id="given-nothing"),
        pytest.param("--outlier-images x.npy", ["x.npy", "name given"], id="given-in-vain"),
        pytest.param(
            "--outliers [given] --outlier-images x.npy",
            ["x.npy: not found; give --outlier-images"],
            id="given-missing",
        ),
        pytest.param("--budget 0", ["budget", "0"], id="budget-0"),
        pytest.param("--epochs 0", ["epochs", "0"], id="epochs-0"),
        pytest.param("--lr 0", ["lr", "0"], id="lr-0"),
        pytest.param("--seed -1", ["seed", "-1"], id="seed-negative"),
        pytest.param("--seed 1.5", ["seed", "1.5"], id="seed-fraction"),
        pytest.param("--interface top-k", ["top_k"], id="top-k-without-k"),
        pytest.param("--interface scores", ["interface", "scores"], id="unknown-interface"),
        pytest.param("--interface top-k --top-k 11", ["11", "10"], id="more-than-the-classes"),
        pytest.param("--decimals 16", ["decimals", "16"], id="decimals-16"),
        pytest.param("--device tpu", ["device", "tpu"], id="unknown-device"),
        pytest.param("--batch-size 1000", ["1000", "900"], id="batch-above-the-images"),
        pytest.param("--colour red", ["--colour"], id="unknown-flag"),
        pytest.param("--budge 5", ["--budge"], id="abbreviated-flag"),
        pytest.param("extra", ["extra"], id="stray-word"),
        pytest.param("--config no.yaml", ["no.yaml"], id="no-config"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    capfd: Capture, cwd: Path, flags: str, parts: list[str]
) -> None:
    # All are refused before any training: the small numbers are for the day that one is not.
    small = ("--float-epochs=1", "--epochs=1", "--surrogate-epochs=1", "--budget=2", "--width=0.2")
    quick = [flag for flag in small if flag.partition("=")[0] not in flags.split()]
    refused(capfd, cwd, ["run", *quick, *flags.split()], *parts)


def test_a_device_that_is_not_there_is_one_line(capfd: Capture, cwd: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    refused(capfd, cwd, ["run", *TINY, "--device", "cuda"], "cuda")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        pytest.param([], ["run", "train", "export", "attack", "report"], id="no-subcommand"),
        pytest.param(["steal"], ["steal", "attack"], id="unknown-subcommand"),
        pytest.param(["--colour", "run"], ["--colour"], id="unknown-flag-before"),
        pytest.param(["export"], ["checkpoint"], id="export-of-nothing"),
        pytest.param(["export", "no"], ["no", "divqat train"], id="export-of-no-checkpoint"),
        pytest.param(["attack", "no.onnx"], ["no.onnx", "divqat export"], id="attack-on-no-graph"),
        pytest.param(["attack", "no.onnx", "--out", "x"], ["no.onnx"], id="attack-with-out"),
        pytest.param(["report"], ["runs"], id="report-of-nothing"),
        pytest.param(["report", "no"], ["no"], id="report-of-no-folder"),
        pytest.param(["train", "--method", "ptq"], ["ptq"], id="unknown-method"),
        pytest.param(["train", "--data", "mnist"], ["--data-root"], id="train-without-data"),
    ],
)
def test_a_mistaken_command_is_one_line_and_writes_nothing(
    capfd: Capture, cwd: Path, argv: list[str], parts: list[str]
) -> None:
    refused(capfd, cwd, argv, *parts)


def test_a_report_of_an_empty_folder_is_refused(capfd: Capture, cwd: Path) -> None:
    (cwd / "empty").mkdir()
    refused(capfd, cwd, ["report", "empty"], "empty")


def test_a_damaged_data_file_is_named(capfd: Capture, cwd: Path) -> None:
    raw = cwd / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"\x00\x00\x08\x03 damaged")
    argv = ["run", "--data", "fashion-mnist", "--data-root", "root"]
    refused(capfd, cwd, argv, "train-images-idx3-ubyte", "damaged")


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_folder_under_a_file_is_refused(capfd: Capture, cwd: Path, command: str) -> None:
    (cwd / "file").write_text("x")
    refused(capfd, cwd, [command, *TINY, "--out", "file/run"], "file/run", "--out")


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_run_is_not_overwritten(capfd: Capture, copied: Path, command: str) -> None:
    argv = [command, *TINY, "--out", str(copied)]
    refused(capfd, copied, argv, "holds a run already", "--resume")


def test_a_run_takes_the_full_precision_network_of_another(
    capfd: Capture, copied: Path, tmp_path: Path
) -> None:
    out = ["--float-of", str(copied), "--out", str(tmp_path / "b")]
    refused(capfd, copied, ["train", *TINY, "--seed", "9", *out], "seed (0 -> 9)", "--float-of")
    assert not (tmp_path / "b").exists()
    argv = ["train", *TINY, "--method", "divqat", "--bits", "3", *out]
    assert status(*argv) == 0
    theirs, ours = (folder / "float" for folder in (copied, tmp_path / "b"))
    assert {f.name: f.read_bytes() for f in ours.iterdir()} == {
        f.name: f.read_bytes() for f in theirs.iterdir()
    }
    assert (tmp_path / "b" / "divqat" / "model.safetensors").exists()


def test_a_run_with_other_settings_is_not_resumed(capfd: Capture, copied: Path) -> None:
    argv = ["run", *TINY, "--bits", "3", "--out", str(copied), "--resume"]
    refused(capfd, copied, argv, "bits (4 -> 3)")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("bits: [1", ["not valid YAML"], id="no-yaml"),
        pytest.param("- bits", ["no settings"], id="list"),
        pytest.param("bist: 3", ["bist", "did you mean 'bits'"], id="misspelt"),
        pytest.param("zzzzz: 3", ["zzzzz", "--help"], id="unknown"),
        pytest.param("bits: four", ["bits", "four"], id="not-a-number"),
        pytest.param("bits: 0", ["bits", "0"], id="out-of-range"),
        pytest.param("bits: [4]", ["bits"], id="list-for-a-number"),
        pytest.param("model: alexnet", ["alexnet"], id="unknown-model"),
        pytest.param("interface: scores", ["interface", "scores"], id="unknown-interface"),
        pytest.param("seed: -1", ["seed", "-1"], id="negative-seed"),
    ],
)
def test_a_bad_configuration_file_is_refused(
    capfd: Capture, cwd: Path, text: str, parts: list[str]
) -> None:
    (cwd / "my.yaml").write_text(text)
    refused(capfd, cwd, ["run", "--config", "my.yaml"], *parts)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda graph: b"", id="empty"),
        pytest.param(lambda graph: b"no graph at all", id="text"),
        pytest.param(lambda graph: graph[: len(graph) // 2], id="truncated"),
    ],
)
def test_a_damaged_graph_is_refused(
    capfd: Capture, copied: Path, damage: Callable[[bytes], bytes]
) -> None:
    graph = copied / "qat" / "model.onnx"
    graph.write_bytes(damage(graph.read_bytes()))
    refused(capfd, copied, ["attack", str(graph), *DATA, *THEFT], "model.onnx", "divqat export")


def test_a_graph_of_another_data_set_is_refused(
    capfd: Capture, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from brevitas_divqat.data import Dataset, Labelled, Pool

    part = Labelled(np.zeros((3, 1, 28, 28), np.uint8), np.zeros(3, np.int64))
    pools = {name: Pool(name, part.images) for name in ("in", "ood")}
    names = tuple("0123456789")
    other = Dataset("letters", names, part, part, part, pools, "none")
    monkeypatch.setattr(cli, "_load", lambda config, **rest: other)
    argv = ["attack", str(copied / "qat" / "model.onnx"), *THEFT]
    refused(capfd, copied, argv, "trained on digits", "letters", "--data digits")


def test_soft_labels_of_a_label_interface_are_refused(capfd: Capture, copied: Path) -> None:
    graph, new = str(copied / "qat" / "model.onnx"), copied / "new"
    argv = ["attack", graph, *DATA, *THEFT, "--interface", "label", "--out", str(new)]
    refused(capfd, copied, argv, "soft", "hard")


def test_another_attack_does_not_overwrite_a_run_s_measurement(
    capfd: Capture, copied: Path
) -> None:
    argv = ["attack", str(copied / "qat" / "model.onnx"), *DATA, *THEFT, "--budget", "32"]
    refused(capfd, copied, argv, "budget (64 -> 32)", "--out")
    same = ["attack", str(copied / "qat" / "model.onnx"), *DATA, *THEFT]
    refused(capfd, copied, same, "extraction-qat-ood-soft", "--out")


def test_an_attack_on_a_run_whose_graph_is_not_its_checkpoint_s_keeps_measurements_apart(
    capfd: Capture, copied: Path
) -> None:
    other = copied.parent / "elsewhere"
    argv = ["attack", str(copied / "qat" / "model.onnx"), *DATA, *THEFT, "--out", str(other)]
    before = content(copied)
    assert status(*argv) == 0
    assert content(copied) == before
    assert json.loads(capfd.readouterr().out)["queries"] == 64
    assert sorted(measurements(other)) == ["extraction-qat-ood-soft.json", "victim-qat.json"]


def test_the_full_precision_checkpoint_is_not_exported(capfd: Capture, copied: Path) -> None:
    refused(capfd, copied, ["export", str(copied / "float")], "full precision", "qat")


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_not_exported(capfd: Capture, copied: Path, name: str) -> None:
    (copied / "qat" / name).write_bytes(b"damaged")
    refused(capfd, copied, ["export", str(copied / "qat")], name)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_state(
    capfd: Capture, cwd: Path
) -> None:
    assert status("run", *TINY, "--lr", "1e30", "--out", "run") == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert "epoch 1, step" in err
    assert "last.safetensors" in err
    assert (cwd / "run" / "qat" / "last.safetensors").stat().st_size > 0
    assert not (cwd / "run" / "qat" / "checkpoint.json").exists()
    assert not (cwd / "run" / "measurements").exists()


# Interruption


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    capfd: Capture, tiny: Path, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = importlib.import_module("brevitas_divqat.training.fit")
    steps, augment = [0], fit.augment

    def interrupted(*args: Any) -> Any:
        steps[0] += 1
        if steps[0] == 40:  # in the second of two epochs in full precision
            raise KeyboardInterrupt
        return augment(*args)

    argv = ["run", *TINY, "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(fit, "augment", interrupted)
        assert status(*argv) == 130
    err = capfd.readouterr().err
    assert "--resume" in err
    assert "Traceback" not in err
    assert not (cwd / "run" / "float" / "checkpoint.json").exists()
    assert status(*argv, "--resume") == 0
    assert measurements(cwd / "run") == measurements(tiny)


def test_an_interrupt_is_one_line_and_status_130(
    capfd: Capture, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupted)
    assert status("run", *TINY) == 130
    assert len(capfd.readouterr().err.splitlines()) == 1


# Steps


def test_the_steps_give_the_numbers_of_a_run(capfd: Capture, tiny: Path, cwd: Path) -> None:
    assert status("train", *TINY, "--out", "mine") == 0
    for victim in ("qat", "divqat"):
        assert status("export", f"mine/{victim}") == 0
        for pool, labels in (("in", "soft"), ("ood", "hard")):
            kind = ["--images", pool, "--labels", labels]
            assert status("attack", f"mine/{victim}/model.onnx", *DATA, *THEFT, *kind) == 0
    mine, expected = measurements(cwd / "mine"), measurements(tiny)
    assert len(mine) == 6
    assert mine == {name: expected[name] for name in mine}
    capfd.readouterr()
    assert status("report", "mine", "--out", "page") == 0
    out = capfd.readouterr().out
    assert "plain QAT" in out
    assert (cwd / "page" / "report.html").is_file()
    assert (cwd / "page" / "report.png").is_file()


def test_a_run_writes_its_report(tiny: Path) -> None:
    assert (tiny / "report.html").is_file()
    assert (tiny / "report.png").is_file()


def test_a_run_repeats_from_its_own_configuration_file(
    settings_of: Callable[..., Any], tiny: Path
) -> None:
    settings = settings_of("--config", str(tiny / "config.yaml"))
    before = yaml.safe_load((tiny / "config.yaml").read_text())
    assert cli._run_config(settings, cli.ALL_GROUPS).flat() == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_does_not_go_on_with_other_outlier_images(
    cwd: Path, capfd: Capture, finished: bool
) -> None:
    for name, level in (("first.npy", 0), ("other.npy", 9)):
        np.save(cwd / name, np.full((3, 8, 8), level, dtype=np.uint8))
    train = ["train", "--epochs", "1", "--float-epochs", "1", "--width", "0.25", "--device", "cpu"]
    train += ["--method", "divqat", "--outliers", "[given]", "--out", "own"]
    assert status(*train, "--outlier-images", "first.npy") == 0
    if not finished:
        (cwd / "own" / "divqat" / "checkpoint.json").unlink()
    before = content(cwd / "own")
    assert status(*train, "--outlier-images", "other.npy", "--resume") == 2
    assert "began with" in capfd.readouterr().err
    assert content(cwd / "own") == before
    assert status(*train, "--outlier-images", "first.npy", "--resume") == 0


def test_the_file_of_an_earlier_version_s_run_means_what_it_meant_then(
    settings_of: Callable[..., Any], tiny: Path, cwd: Path
) -> None:
    earlier = yaml.safe_load((tiny / "config.yaml").read_text()) | {"preset": "F3"}
    for name in ("select", "judged_on", "outliers", "outlier_share"):
        del earlier[name]
    (cwd / "config.yaml").write_text(yaml.safe_dump(earlier))
    assert settings_of("--config", "config.yaml").select == "late", "a user's own"
    shutil.copy(tiny / "environment.json", cwd)
    settings = settings_of("--config", "config.yaml")
    assert settings.select == "any"
    assert settings.judged_on == "test"
    assert cli._run_config(settings, cli.ALL_GROUPS).loss.kinds == ()


# Flags


@pytest.mark.parametrize(
    "flags",
    [["--data-root", "my_data"], ["--data_root", "my_data"], ["--data-root=my_data"]],
    ids=" ".join,
)
def test_flags_are_spelt_with_hyphens_or_underscores(
    settings_of: Callable[..., Any], flags: list[str]
) -> None:
    assert settings_of(*flags).data_root == Path("my_data")


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        pytest.param(["--out", "my_run_dir"], "out", Path("my_run_dir"), id="underscores"),
        pytest.param(["--out", "my-run-dir"], "out", Path("my-run-dir"), id="hyphens"),
        pytest.param(["--out=--my-run_dir"], "out", Path("--my-run_dir"), id="dashes-first"),
        pytest.param(["--out=a=b-c"], "out", Path("a=b-c"), id="equals"),
        pytest.param(["--out", "run"], "out", Path("run"), id="a-command-s-name"),
        pytest.param(["--pool", "top-k_pool.npy"], "pool", Path("top-k_pool.npy"), id="pool"),
        pytest.param(["--interface", "top-k", "--top-k=3"], "interface", "top-k", id="choice"),
        pytest.param(["--direction", "q||p"], "direction", "q||p", id="bars"),
        pytest.param(["--alpha", "1e-3"], "alpha", 1e-3, id="exponent"),
    ],
)
def test_values_arrive_as_they_were_given(
    settings_of: Callable[..., Any], flags: list[str], name: str, value: Any
) -> None:
    assert settings_of(*flags)[name] == value


def test_a_flag_comes_before_the_file_and_the_file_before_the_default(
    settings_of: Callable[..., Any], cwd: Path
) -> None:
    (cwd / "my.yaml").write_text("bits: 3\nbudget: 77\ndata-root: there\n")
    settings = settings_of("--config", "my.yaml", "--bits", "2")
    assert (settings.bits, settings.budget, settings.edge_bits) == (2, 77, 8)
    assert settings.data_root == Path("there")
    assert settings_of("--bits", "2", "--config=my.yaml").bits == 2
    assert settings_of().bits == RunConfig().model.bits == 4


def test_a_preset_flag_over_a_run_s_file_is_that_preset_or_refused(
    settings_of: Callable[..., Any], tiny: Path, capfd: Capture
) -> None:
    from brevitas_divqat.loss import LossConfig

    settings = settings_of("--config", str(tiny / "config.yaml"), "--preset", "F1")
    assert cli._run_config(settings, cli.ALL_GROUPS).loss == LossConfig("F1")


def test_defaults_are_those_of_the_dataclasses(settings_of: Callable[..., Any]) -> None:
    assert cli._run_config(settings_of(), cli.ALL_GROUPS).flat() == RunConfig().flat()


def test_the_default_folder_is_named_after_the_settings(
    capfd: Capture, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def stop(config: Any, folder: Path, *, resume: bool) -> NoReturn:
        seen.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr("brevitas_divqat.evaluation.open_folder", stop)
    assert status("run", "--bits", "3") == 130
    assert seen == [Path("runs/digits-lenet5-w3a3-seed0")]


# Help


def test_the_version_is_the_package_s(capfd: Capture) -> None:
    assert status("--version") == 0
    assert capfd.readouterr().out.strip() == f"divqat {__version__}"


def test_the_help_names_every_command(capfd: Capture) -> None:
    assert status("--help") == 0
    out = " ".join(capfd.readouterr().out.split())
    for name, command in cli.COMMANDS.items():
        assert name in out
        assert command.help in out


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help_with_hyphens(capfd: Capture, command: str) -> None:
    assert status(command, "--help") == 0
    words = capfd.readouterr().out.split()
    flags = [word.lstrip("[") for word in words if word.lstrip("[").startswith("--")]
    assert "--help" in " ".join(flags)
    assert [flag for flag in flags if "_" in flag.partition("=")[0]] == []


@pytest.mark.parametrize("group", cli.ALL_GROUPS)
def test_the_help_explains_every_setting(capfd: Capture, group: str) -> None:
    assert status("run", "--help") == 0
    out = " ".join(capfd.readouterr().out.split())
    kind = cli._groups()[group]
    lines = [line.strip() for line in (kind.__doc__ or "").splitlines()]
    for field in fields(kind):
        assert f"--{field.name.replace('_', '-')} " in out
        explained = next(line for line in lines if line.startswith(f"{field.name}: "))
        assert " ".join(explained.split()[1:5]) in out, field.name


def test_another_preset_replaces_what_the_file_s_preset_stood_for(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("preset: F3\nalpha: 0.04\ntemperature: 4.0\ndirection: q||p\n")
    _, other = cli._parse(["run", "--config", str(file), "--preset", "F1"])
    assert (other.preset, other.alpha, other.temperature) == ("F1", None, None)
    file.write_text("alpha: 0.1\n")
    for preset in ("outliers", "F3"):
        _, same = cli._parse(["run", "--config", str(file), "--preset", preset])
        assert (same.preset, same.alpha) == (preset, 0.1)


@pytest.mark.parametrize("argv", [["run", "--pool", ""], ["run", "--pool="], []])
def test_an_empty_argument_is_refused(argv: list[str], capfd: Capture) -> None:
    assert status(*argv) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--alpha nan", "--alpha: expected a number, got 'nan'"),
        ("--act-bits x", "--act-bits: expected a whole number, got 'x'"),
        ("--bits 3.5", "--bits: expected a whole number, got '3.5'"),
        ("--policy foo", "--policy: expected one of 'random', 'adaptive', got 'foo'"),
        ("--download maybe", "--download: expected true or false, got 'maybe'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_in_plain_words(
    capfd: Capture, arguments: str, complaint: str
) -> None:
    assert status("run", *arguments.split()) == 2
    assert capfd.readouterr().err == f"divqat: error: {complaint}\n"
