# SPDX-License-Identifier: BSD-3-Clause
"""The tables fit a terminal; the page stands alone, is safe, and is always the same."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from brevitas_divqat.cli import main
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.report import (
    load_measurements,
    plot,
    plot_curves,
    tables,
    write_report,
)
from brevitas_divqat.report import measurements as measurements_module
from brevitas_divqat.report.records import Record, read_records

HOSTILE = "<script>alert('$x_1')</script>[red]"


def rendered(runs: list[Path]) -> str:
    console = Console(file=io.StringIO(), width=100)
    for table in tables(load_measurements(runs)):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def hostile_run(write_run: Callable[..., Path], edit_json: Callable[..., None]) -> Path:
    run = write_run()
    for path in (run / "measurements").iterdir():
        edit_json(path, data=HOSTILE)
        if path.stem.endswith(("soft", "hard")):
            edit_json(path, pool_name=HOSTILE)
    return run


def test_rows_are_not_broken_at_100_columns(write_run: Callable[..., Path]) -> None:
    text = rendered([write_run(0), write_run(1)])
    row = r"DivQAT +4/4 +90\.6 ± 0\.0 +89\.7 ± 0\.0 +89\.7 ± 0\.0 +2 +24 +5\.0 ± 0\.0 +61,000"
    assert re.search(row, text)
    row = r"DivQAT +ood \(mnist\) +soft +20,000 +22\.2 ± 0\.0 +24\.2 ± 0\.0 +0\.40 ± 0\.00 +0\.90"
    assert re.search(row, text)
    assert len(re.findall(r"in \(fashion-mnist\)", text)) == 4
    assert "seeds 0, 1, executor reference" in text


def test_tables_without_rows_are_left_out(write_run: Callable[..., Path]) -> None:
    assert len(tables(load_measurements([write_run(attacks=())]))) == 1


def test_names_are_no_markup(hostile_run: Path) -> None:
    assert "[red]" in rendered([hostile_run])


def test_the_page_stands_alone(write_run: Callable[..., Path], tmp_path: Path) -> None:
    run = write_run()
    environment = {"versions": {"torch": "2.9.1"}, "python": "3.11.9", "platform": "Linux"}
    (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    (run / "config.yaml").write_text("alpha: 0.04\n", encoding="utf-8")
    files = write_report([run], tmp_path / "new" / "report")
    assert files.png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    page = files.html.read_text(encoding="utf-8")
    loads = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page)
    for load in ("http:", "https:", "<script", "<link", "<img", "@import", "url(http"):
        assert load not in loads
    assert "<svg role=" in page
    for fact in ("Worst case", "torch 2.9.1", "alpha: 0.04", "preset F3", "qat-0", "epochs 20"):
        assert fact in page


def test_hostile_names_are_escaped(hostile_run: Path, tmp_path: Path) -> None:
    page = write_report([hostile_run], tmp_path).html.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_same_run_gives_the_same_page(write_run: Callable[..., Path], tmp_path: Path) -> None:
    run = write_run()
    first, second = (write_report([run], tmp_path / name) for name in ("a", "b"))
    assert first.html.read_bytes() == second.html.read_bytes()


def test_measurements_that_are_given_are_not_read_again(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_run()
    read = write_report([run], tmp_path / "read").html.read_bytes()
    measurements = load_measurements([run])
    shutil.rmtree(run / "measurements")
    given = write_report([run], tmp_path / "given", measurements=measurements)
    assert given.html.read_bytes() == read


def test_divqat_report_reads_the_measurements_once(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write_run(seed) for seed in (0, 1)]
    read: list[Path] = []

    def watched(run: Path) -> list[Record]:
        read.append(run)
        return read_records(run)

    monkeypatch.setattr(measurements_module, "read_records", watched)
    assert main(["report", *map(str, runs), "-o", str(tmp_path / "out")]) == 0
    assert read == runs
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_plot_shows_every_attack_and_victim(write_run: Callable[..., Path]) -> None:
    (axes,) = plot(load_measurements([write_run(0), write_run(1)])).axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(
        [88.7, 87.2, 33.9, 30.1, 88.1, 87.3, 22.2, 24.9]
    )
    assert axes.get_ylim() == (0, 100)
    own = [line.get_ydata()[0] for line in axes.lines if "itself" in str(line.get_label())]
    assert own == pytest.approx([90.4, 89.7])


@pytest.mark.parametrize("content", ["{", "[]", '{"versions": 3}'])
def test_a_damaged_environment_is_named(
    write_run: Callable[..., Path], tmp_path: Path, content: str
) -> None:
    run = write_run()
    (run / "environment.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"environment\.json"):
        write_report([run], tmp_path)


@pytest.mark.parametrize("victims", [("qat",), ("divqat",)])
def test_incomplete_runs_are_rendered(
    write_run: Callable[..., Path], tmp_path: Path, victims: tuple[str, ...]
) -> None:
    run = write_run(victims=victims, attacks=())
    assert "Not measured" in write_report([run], tmp_path).html.read_text(encoding="utf-8")


def test_importing_the_report_does_not_import_matplotlib() -> None:
    code = "import sys, brevitas_divqat.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def curved_runs(write_run: Callable[..., Path], edit_json: Callable[..., None]) -> list[Path]:
    runs = [write_run(seed) for seed in (0, 1)]
    for run in runs:
        for victim in ("qat", "divqat"):
            path = run / "measurements" / f"{victim}-ood-soft.json"
            last = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
            points = [(1000, 0.1), (5000, 0.15), (20000, last)]
            if victim == "divqat":
                points[1] = (5312, 0.14)  # a batch later
            curve = [{"queries": queries, "accuracy": accuracy} for queries, accuracy in points]
            edit_json(path, curve=curve)
    return runs


def test_learning_curves_have_a_table(curved_runs: list[Path]) -> None:
    text = rendered(curved_runs)
    assert re.search(r"victim +attack +1,000 +5,000 +20,000", text)
    assert re.search(r"plain QAT +ood/soft +10\.0 ± 0\.0 +15\.0 ± 0\.0 +33\.9 ± 0\.0", text)
    assert re.search(r"DivQAT +ood/soft +10\.0 ± 0\.0 +14\.0 ± 0\.0 +22\.2 ± 0\.0", text)


def test_a_point_of_fewer_seeds_says_so(
    curved_runs: list[Path], edit_json: Callable[..., None]
) -> None:
    edit_json(curved_runs[1] / "measurements" / "qat-ood-soft.json", curve=None)
    assert re.search(r"plain QAT +ood/soft +10\.0 \(1\) +15\.0 \(1\)", rendered(curved_runs))


def test_learning_curves_are_drawn_a_panel_per_victim(
    curved_runs: list[Path], tmp_path: Path
) -> None:
    figure = plot_curves(load_measurements(curved_runs))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["plain QAT", "DivQAT"]
    (curve,) = figure.axes[1].containers
    assert list(curve.lines[0].get_xdata()) == [1000, 5312, 20000]
    assert list(curve.lines[0].get_ydata()) == pytest.approx([10, 14, 22.2])
    files = write_report(curved_runs, tmp_path)
    assert files.curves is not None
    assert files.curves.read_bytes().startswith(b"\x89PNG")
    assert 'aria-label="Learning curves' in files.html.read_text(encoding="utf-8")


def test_without_learning_curves_there_is_no_plot_of_them(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_run()
    assert plot_curves(load_measurements([run])) is None
    assert write_report([run], tmp_path).curves is None
    assert not (tmp_path / "curves.png").exists()


def test_a_report_without_curves_takes_away_the_plot_of_an_earlier_one(
    curved_runs: list[Path], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_report(curved_runs, out)
    write_report([write_run(0, name="plain")], out)
    assert not (out / "curves.png").exists()


def test_points_of_one_curve_have_columns_of_their_own(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    run = write_run(victims=("qat",), attacks=("ood/soft",))
    points = [100, 105, 109, 200, 300, 400, 500, 600]
    curve = [{"queries": queries, "accuracy": 0.1} for queries in points]
    edit_json(run / "measurements" / "qat-ood-soft.json", curve=curve)
    text = rendered([run])
    assert re.search(r"attack +100 +105 +109 +200 +300 +400 ", text)
    assert re.search(r"attack +500 +600 +20,000 ", text)


def test_seeds_that_pass_a_point_differently_share_its_column(
    write_run: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    runs = [write_run(seed, victims=("qat",), attacks=("ood/soft",)) for seed in (0, 1)]
    for run, queries, accuracy in zip(runs, (500, 520), (0.2, 0.4), strict=True):
        curve = [{"queries": queries, "accuracy": accuracy}]
        edit_json(run / "measurements" / "qat-ood-soft.json", curve=curve)
    assert re.search(r"attack +500 +20,000 ", rendered(runs))
    assert re.search(r"30\.0 ± 14\.1 +33\.9 ± 0\.0", rendered(runs))
