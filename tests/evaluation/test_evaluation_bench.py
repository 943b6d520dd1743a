# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark of executors: what its record says, what it compares, what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from brevitas_divqat.errors import ConfigError, GraphError
from brevitas_divqat.evaluation import bench, bench_process
from brevitas_divqat.evaluation.bench import bench_executors, bench_table
from brevitas_divqat.executors import sample_images
from brevitas_divqat.executors.loading import load_graph
from brevitas_divqat.executors.sessions import sessions_of
from brevitas_divqat.export import export_qonnx, to_integer_graph
from brevitas_divqat.models import Precision, build
from brevitas_divqat.seeding import seeded
from tests import networks

SHAPE = (1, 28, 28)
SECONDS = 0.01
APART = bench_process.measure_apart
ROWS = [
    ("reference", 1),
    ("reference", 8),
    ("reference", 64),
    ("reference", 256),
    ("onnxruntime QCDQ", 64),
    ("fast", 32),
    ("fast", 256),
    ("integer", 32),
    ("integer", 256),
]


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lenet") / "lenet.onnx"
    with seeded(0):
        made = build("lenet5", SHAPE, 10, precision=Precision(2, 2), width=0.5)
        model = networks.settle(made, SHAPE)
    told = replace(
        networks.metadata(SHAPE, 10), model="lenet5", width=0.5, bits={"weight": 2, "activation": 2}
    )
    export_qonnx(model, path, told)
    return path


@pytest.fixture(scope="module")
def here() -> Iterator[list[Any]]:
    """Measure in the tests' own process, which has torch at hand already; list the tasks."""
    tasks = []

    def measure(task: Any, folder: Path) -> Any:
        tasks.append(task)
        return bench_process._measure(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "measure_apart", measure)
        yield tasks


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the reference at one batch size alone, and compare few of its images."""
    monkeypatch.setattr(bench, "REFERENCE_BATCHES", (1,))
    monkeypatch.setattr(bench, "COMPARED_ONE_BY_ONE", 2)


@pytest.fixture(scope="module")
def record(lenet: Path, here: list[Any]) -> dict[str, Any]:
    return bench_executors(lenet, threads=[1], seconds=SECONDS)


def row_of(record: dict[str, Any], executor: str, batch: int | None = None) -> dict[str, Any]:
    row, *_ = (
        row
        for row in record["rows"]
        if row["executor"] == executor and batch in (None, row["batch"])
    )
    return dict(row)


def shown(record: dict[str, Any]) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(bench_table(record))
    return console.export_text()


def test_the_record_says_what_was_measured_on_what(record: dict[str, Any], lenet: Path) -> None:
    assert (record["schema"], record["kind"]) == (1, "bench-executor")
    assert record["model"] == {
        "name": "lenet.onnx",
        "sha256": hashlib.sha256(lenet.read_bytes()).hexdigest(),
        "model": "lenet5",
        "width": 0.5,
        "bits": {"weight": 2, "activation": 2},
        "image_shape": [1, 28, 28],
        "macs": record["model"]["macs"],
    }
    assert set(record["machine"]) == {"processor", "cores", "flags"}
    assert {"onnxruntime", "qonnx"} <= set(record["versions"])
    assert record["idle_mib"] > 1
    assert [(row["executor"], row["batch"]) for row in record["rows"]] == ROWS


def test_the_record_is_json_and_names_no_folder(record: dict[str, Any], lenet: Path) -> None:
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record
    assert str(lenet.parent) not in text


def test_every_row_is_measured_and_compared(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        assert row["status"] == "measured"
        assert 0 < row["median_images_per_second"] <= row["images_per_second"]
        assert row["passes"] >= 3
        assert row["images_per_pass"] % row["batch"] == 0
        assert row["peak_mib"] > 1
        assert row["compared"]["images"] == (64 if row["batch"] == 1 else 256)
        assert row["identical"] is (row["compared"]["differing"] == 0)


def test_ratios_are_to_the_reference(record: dict[str, Any]) -> None:
    rates = {row["batch"]: row["images_per_second"] for row in record["rows"][:4]}
    for row in record["rows"]:
        assert row["ratio_to_batch_1"] == row["images_per_second"] / rates[1]
        assert row["ratio_to_best_reference"] == row["images_per_second"] / max(rates.values())


@pytest.mark.parametrize(
    ("executor", "batch"), [("reference", 8), ("reference", 256), ("fast", 32), ("integer", 32)]
)
def test_scores_are_identical(record: dict[str, Any], executor: str, batch: int) -> None:
    row = row_of(record, executor, batch)
    assert row["identical"]
    assert row["compared"]["differing"] == 0


def test_the_integer_row_is_also_compared_with_the_exported_graph(record: dict[str, Any]) -> None:
    compared = row_of(record, "integer")["compared"]
    assert compared["output_step"] > 0
    assert 0 <= compared["beyond_half_step"] <= 256
    assert 0 <= compared["labels_differing"] <= 256


def test_images_are_seeded_and_tell_scores_apart(record: dict[str, Any], lenet: Path) -> None:
    images = sample_images(SHAPE, 256)
    assert images.shape == (256, *SHAPE)
    assert (images == sample_images(SHAPE, 256)).all()
    scores = bench_process.FastExecutor(lenet, verify=False)(images)
    assert len(np.unique(scores, axis=0)) > 100, "a constant network would prove nothing"


def test_the_table_shows_every_row(record: dict[str, Any]) -> None:
    text = shown(record)
    for executor, batch in ROWS:
        assert any(f" {executor} " in line and f" {batch} " in line for line in text.splitlines())
    assert "yes (256)" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_later_round_keeps_the_faster_one_and_the_comparison(
    short: None, lenet: Path, here: list[Any]
) -> None:
    here.clear()
    got = bench_executors(lenet, threads=[1], seconds=SECONDS, rounds=2)
    assert all("compared" in row for row in got["rows"])
    timed = [task for task in here if task.seconds is not None and task.kind != "idle"]
    assert [task.compared for task in timed] == [2, *[256] * 5, *[0] * 6]
    slow = {"images_per_second": 1.0, "identical": True}
    fast = {"images_per_second": 2.0}
    assert bench._faster(slow, fast) == {"images_per_second": 2.0, "identical": True}
    assert bench._faster({**fast, "identical": True}, {"images_per_second": 1.0}) == {
        "images_per_second": 2.0,
        "identical": True,
    }


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("binary_weights", "no rule for BipolarQuant in 1, and leaves 1 more"),
        ("average_pools", "no rule for Trunc"),
        ("quantized_bias", "no rule for Quant of 32 bits"),
    ],
)
def test_what_qonnx_leaves_is_named(network: str, reason: str, tmp_path: Path) -> None:
    graph = load_graph(networks.export(network, tmp_path / "model.onnx"))[0]
    with pytest.raises(GraphError, match=reason):
        bench._to_qcdq(graph)


def test_what_cannot_be_converted_is_a_row_with_its_reason(
    short: None, here: list[Any], tmp_path: Path
) -> None:
    path = networks.export("average_pools", tmp_path / "model.onnx")
    got = bench_executors(path, threads=[1], seconds=SECONDS)
    row = row_of(got, "onnxruntime QCDQ")
    assert row["status"] == "not convertible"
    assert "Trunc" in row["reason"]
    assert set(row) == {"executor", "batch", "threads", "status", "reason"}
    assert "not convertible" in shown(got)
    assert row_of(got, "fast")["identical"]


def test_a_graph_without_an_integer_form_says_so(
    short: None, lenet: Path, here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_integers(graph: Any) -> Any:
        raise GraphError(f"layer 3 of {lenet} has no\ninteger form")

    monkeypatch.setattr(bench, "to_integer_graph", no_integers)
    row = row_of(bench_executors(lenet, threads=[1], seconds=SECONDS), "integer")
    assert row["status"] == "not convertible"
    assert row["reason"] == "layer 3 of lenet.onnx has no integer form"


def test_differences_are_counted(
    short: None, lenet: Path, here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = bench_process.FastExecutor.__call__

    def wrong(self: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = asked(self, images)
        scores[:3] = np.nextafter(scores[:3], np.float32(np.inf))
        return scores

    monkeypatch.setattr(bench_process.FastExecutor, "__call__", wrong)
    got = bench_executors(lenet, threads=[1], seconds=SECONDS)
    row = row_of(got, "fast")
    assert not row["identical"]
    assert row["compared"]["differing"] == 3
    assert "no: 3 of 256" in shown(got)


def test_multiplications_are_counted_from_the_graph(tmp_path: Path) -> None:
    path = networks.export("depthwise", tmp_path / "model.onnx")
    expected = 6 * 6 * 6 * 27 + 6 * 6 * 6 * 9 + 5 * 6 * 6 * 6 + 5 * 180
    assert bench._count_macs(load_graph(path)[0]) == expected


def test_sessions_without_options_get_the_number_of_threads() -> None:
    import onnxruntime

    before = onnxruntime.InferenceSession
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])],
            "relu",
            [onnx.helper.make_tensor_value_info("x", 1, [1])],
            [onnx.helper.make_tensor_value_info("y", 1, [1])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 13)],
    )
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with sessions_of(2):
        opened = onnxruntime.InferenceSession(model.SerializeToString())
        given = onnxruntime.InferenceSession(model.SerializeToString(), options)
    assert opened.get_session_options().intra_op_num_threads == 2
    assert given.get_session_options().intra_op_num_threads == 1
    assert onnxruntime.InferenceSession is before


def test_a_fresh_process_has_a_peak_of_its_own(lenet: Path, tmp_path: Path) -> None:
    ballast = torch.ones(1500 * 2**18)  # 1500 MiB, which the other process must not be told
    task = bench_process.Task("fast", str(lenet), 32, 1, SHAPE, 256.0, SECONDS, 8)
    answer = APART(task, tmp_path)
    assert 50 < answer.content["peak_mib"] < 1500
    assert len(ballast) > 0
    here = bench_process._measure(task)
    assert answer.scores is not None
    assert here.scores is not None
    assert answer.scores.tobytes() == here.scores.tobytes()


def test_a_process_that_is_killed_says_so(
    lenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = tmp_path / "killer"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(bench_process.sys, "executable", str(killer))
    task = bench_process.Task("fast", str(lenet), 32, 1, SHAPE, 256.0, SECONDS, 8)
    assert "signal 9" in APART(task, tmp_path).content["refused"]


@pytest.mark.parametrize(
    ("threads", "seconds", "rounds", "said"),
    [
        ([0], 1.0, 1, "threads"),
        ([1, 100_000], 1.0, 1, "threads"),
        ([], 1.0, 1, "threads"),
        ([1], 0.0, 1, "seconds"),
        ([1], float("nan"), 1, "seconds"),
        ([1], 1.0, 0, "rounds"),
    ],
)
def test_numbers_out_of_range_are_refused(
    threads: Sequence[int], seconds: float, rounds: int, said: str, lenet: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        bench_executors(lenet, threads=threads, seconds=seconds, rounds=rounds)


def test_what_is_no_exported_graph_is_refused(lenet: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="cannot read"):
        bench_executors(tmp_path / "nothing.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    with pytest.raises(GraphError, match="write it with"):
        bench_executors(text)
    integer = tmp_path / "integer.onnx"
    to_integer_graph(lenet).save(str(integer))
    with pytest.raises(GraphError, match="give the exported graph"):
        bench_executors(integer)
