# SPDX-License-Identifier: BSD-3-Clause
"""The command ``divqat summary`` on checkpoint folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("absent", "no finished model in"),
        ("model.onnx", "is a file: give the folder of a model"),
    ],
)
def test_others_are_refused(argument: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
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
