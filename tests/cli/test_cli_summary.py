# SPDX-License-Identifier: BSD-3-Clause
"""The command ``divqat summary`` on checkpoint folders, and on files of the BNN-PYNQ trainer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from brevitas_divqat.cli import main
from brevitas_divqat.inspection import summary
from brevitas_divqat.models import Precision, build
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import CheckpointInfo, calibrate, load_checkpoint, save_checkpoint

Capture = pytest.CaptureFixture[str]
SHAPE = (1, 8, 8)


@pytest.fixture(params=[Precision(weight=3, activation=2), None], ids=["quantized", "float"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of an untrained LeNet-5."""
    folder, precision = tmp_path / "model", request.param
    with seeded(0):
        model = build("lenet5", SHAPE, 10, precision=precision, width=0.5)
    if precision is not None:
        calibrate(model, np.arange(4 * 64, dtype=np.uint8).reshape(4, *SHAPE))
    info = CheckpointInfo(
        model="lenet5",
        width=0.5,
        precision=precision,
        image_shape=SHAPE,
        class_names=tuple("0123456789"),
        data="digits",
        method={"name": "qat"},
        seed=0,
        best_epoch=1,
        validation_accuracy=None,
    )
    save_checkpoint(folder, model, info)
    return folder


def test_it_shows_what_the_function_returns(
    checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "summary.json"
    assert main(["summary", str(checkpoint), "--json", str(file)]) == 0
    expected = summary(load_checkpoint(checkpoint)[0], SHAPE)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.rstrip() == str(expected)
    assert json.loads(file.read_text()) == json.loads(json.dumps(expected.to_json()))
    assert ("no warnings" in out) == (expected.layers[0].activation is not None)


def bnn_pynq_package(name: str, *, steps: int, full_precision: bool = False) -> dict[str, Any]:
    """Return what `divqat-bnn-pynq-train` would write of a network of the zoo."""
    from brevitas_divqat.bnn_pynq import read_network
    from brevitas_divqat.bnn_pynq.checkpoints import statistics

    network = read_network(name)
    with seeded(1):
        model = network.build(full_precision=full_precision)
        for _ in range(steps):
            model(torch.rand(2, 3, 32, 32))
    own = {
        "network": network.identity,
        "full_precision": full_precision,
        "statistics": statistics(model),
    }
    return {"state_dict": model.state_dict(), "divqat": own}


@pytest.mark.parametrize(
    ("name", "full_precision", "weight", "shape"),
    [
        ("TFC_1W2A", False, "bipolar", "1x28x28"),
        ("TFC_1W2A", True, "float32", "1x28x28"),
        ("CNV_2W2A", False, "int2", "3x32x32"),
    ],
)
def test_checkpoints_of_the_bnn_pynq_trainer(
    name: str, full_precision: bool, weight: str, shape: str, tmp_path: Path, capsys: Capture
) -> None:
    package = bnn_pynq_package(name, steps=0, full_precision=full_precision)
    weights: dict[str, Tensor] = package["state_dict"]
    torch.save(package, tmp_path / "best.tar")
    generator = torch.get_rng_state()
    file = tmp_path / "summary.json"
    assert main(["summary", str(tmp_path / "best.tar"), "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"one input of {shape}" in out
    content = json.loads(file.read_text())
    found = {r["name"]: r["weight"]["name"] for r in content["layers"] if r["weight"]}
    assert found == {n.removesuffix(".weight"): weight for n, t in weights.items() if t.dim() > 1}
    expected = ["no quantizer"] if full_precision else []
    assert [w["kind"] for w in content["warnings"]] == expected
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_bnn_pynq_checkpoint_s_statistics_are_where_they_were(
    tmp_path: Path, capsys: Capture
) -> None:
    torch.save(bnn_pynq_package("RESNET18_4W4A", steps=2), tmp_path / "checkpoint.tar")
    assert main(["summary", str(tmp_path / "checkpoint.tar")]) == 0
    assert "2 of 300 steps so far" in capsys.readouterr().out


def test_other_packages_notes_stay_off_the_terminal(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "best.tar"
    torch.save(bnn_pynq_package("TFC_2W2A", steps=0), file)
    # In a process of its own: here the tests have imported what warns, and pytest records it.
    script = (
        "import sys; from brevitas_divqat.cli import main; "
        "sys.exit(max(main(['summary', path]) for path in sys.argv[1:]))"
    )
    arguments = [sys.executable, "-c", script, str(checkpoint), str(file)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("absent", "no finished model in"),
        ("model.onnx", "`divqat check` reads graphs"),
        ("damaged.tar", "is damaged or no checkpoint"),
        ("weights.pth", "weights.pth does not say of which network it is"),
        ("weights.pth", "build it in Python and print brevitas_divqat.summary(model)"),
        ("foreign.tar", "foreign.tar is of a network that cannot be built ('ARCH')"),
        ("other.tar", "other.tar is of another network"),
    ],
)
def test_others_are_refused(argument: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    for name in ("model.onnx", "damaged.tar"):
        (tmp_path / name).write_bytes(b"")
    state = {"weight": torch.zeros(1)}
    torch.save(state, tmp_path / "weights.pth")
    foreign = {"network": {"MODEL": "x"}, "full_precision": False}
    torch.save({"state_dict": state, "divqat": foreign}, tmp_path / "foreign.tar")
    package = bnn_pynq_package("TFC_2W2A", steps=0)
    package["state_dict"]["features.2.weight"] = torch.zeros(3, 3)
    torch.save(package, tmp_path / "other.tar")
    assert main(["summary", str(tmp_path / argument)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_file_is_not_overwritten(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "summary.json"
    file.write_text("mine")
    assert main(["summary", str(checkpoint), "--json", str(file)]) == 2
    assert "exists: choose another file" in capsys.readouterr().err
    assert file.read_text() == "mine"
