# SPDX-License-Identifier: BSD-3-Clause
"""Victims over alpha and bits: what is joined, what is refused, what is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from brevitas_divqat.cli import main
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.report import load_tradeoff, tradeoff_plot, tradeoff_tables

Write = Callable[..., Path]


@pytest.fixture
def folders(write_run: Write, edit_json: Callable[..., None]) -> list[Path]:
    """Return plain QAT and two alphas at 4 bits, of two seeds, and one seed at 2 bits."""
    made = []
    for seed in (0, 1):
        for alpha, own, stolen in ((0.04, 0.90, 0.3), (0.08, 0.88, 0.2 + 0.02 * seed)):
            thefts = {"qat": (0.9, 0.9, 0.5, 0.5), "divqat": (0.9, 0.9, stolen, stolen)}
            run = write_run(
                seed,
                name=f"a{alpha}-{seed}",
                victims=("qat", "divqat") if alpha == 0.04 else ("divqat",),
                own={"qat": 0.91, "divqat": own},
                thefts=thefts,
            )
            edit_json(run / "measurements" / "divqat.json", method__alpha=alpha)
            made.append(run)
    narrow = write_run(2, name="narrow", attacks=("ood/soft",))
    for path in (narrow / "measurements").glob("*.json"):
        edit_json(path, bits__weight=2, bits__activation=2)
    return [*made, narrow]


def test_victims_are_joined_by_bits_and_alpha(folders: list[Path]) -> None:
    tradeoff = load_tradeoff(folders)
    assert [(p.bits, p.alpha, p.victim.seeds) for p in tradeoff.points] == [
        ((4, 4), 0.0, (0, 1)),
        ((4, 4), 0.04, (0, 1)),
        ((4, 4), 0.08, (0, 1)),
        ((2, 2), 0.0, (2,)),
        ((2, 2), 0.04, (2,)),
    ]
    foreign = "ood/soft\n(mnist)"
    assert [round(p.thefts[foreign].mean, 3) for p in tradeoff.points] == [
        0.5,
        0.3,
        0.21,
        0.339,
        0.222,
    ]
    assert len(tradeoff.attacks) == 4
    assert list(tradeoff.points[-1].thefts) == [foreign]


def test_the_tables_give_95_percent_intervals(folders: list[Path]) -> None:
    console = Console(width=200, record=True)
    for table in tradeoff_tables(load_tradeoff(folders)):
        console.print(table)
    wide, narrow = console.export_text().split("W2A2")
    # Values 20 and 22: sd 1.414, over sqrt(2), times 12.706 of Student's t with 1 degree of freedom
    row = next(line for line in wide.splitlines() if "ood/soft (mnist)" in line)
    assert row.split()[2:] == ["50.0", "±", "0.0", "30.0", "±", "0.0", "21.0", "±", "12.7"]
    assert "in/soft" in wide
    assert "in/soft" not in narrow, "an attack that was not carried out there"
    row = next(line for line in narrow.splitlines() if "ood/soft (mnist)" in line)
    assert row.split()[2:] == ["33.9", "22.2"]


def test_the_plot_has_a_panel_per_attack_and_a_line_per_bit_width(folders: list[Path]) -> None:
    figure = tradeoff_plot(load_tradeoff(folders))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == list(load_tradeoff(folders).attacks)
    assert [len(axes.containers) for axes in panels] == [1, 1, 2, 1]
    line = panels[2].containers[0].lines[0]
    assert line.get_xdata() == pytest.approx([9, 10, 12])
    assert line.get_ydata() == pytest.approx([50, 70, 79])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["W4A4", "W2A2"]


def test_an_attack_at_one_alpha_alone_is_in_the_table_and_not_in_the_plot(
    folders: list[Path],
) -> None:
    for path in (p for folder in folders for p in folder.glob("measurements/*-in-soft.json")):
        if path.parent.parent != folders[0] or path.name.startswith("qat"):
            path.unlink()
    tradeoff = load_tradeoff(folders)
    (lonely,) = (name for name in tradeoff.attacks if name.startswith("in/soft"))
    titles = [axes.get_title() for axes in tradeoff_plot(tradeoff).axes if axes.get_visible()]
    assert titles == [name for name in tradeoff.attacks if name != lonely]
    console = Console(width=200, record=True)
    console.print(tradeoff_tables(tradeoff)[0])
    assert "in/soft" in console.export_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method__temperature": 2.0}, "temperature is 2.0, but 4.0"),
        ({"method__outliers": ["shapes"]}, r"outliers is \['shapes'\], but None"),
        ({"method__alpha": None}, "alpha is None, expected a number above 0"),
        ({"method__alpha": 0}, "alpha is 0, expected a number above 0"),
        ({"method__alpha": True}, "alpha is True, expected a number above 0"),
        ({"split": "validation"}, "split is 'validation', but 'test'"),
        ({"parameters": 7}, "parameters is 7, but "),
        ({"bits__edge": 2}, "bits.edge is 2, but 8"),
    ],
)
def test_victims_that_differ_in_more_than_alpha_are_refused(
    folders: list[Path], edit_json: Callable[..., None], changes: dict[str, object], said: str
) -> None:
    edit_json(folders[1] / "measurements" / "divqat.json", **changes)
    with pytest.raises(ConfigError, match=said):
        load_tradeoff(folders)


def test_a_preset_and_the_same_settings_by_hand_are_one_method(
    folders: list[Path], edit_json: Callable[..., None]
) -> None:
    by_hand = {"method__preset": "F1", "method__outliers": []}
    for folder in folders:
        if "0.08" in folder.name:
            edit_json(folder / "measurements" / "divqat.json", **by_hand)
    assert len(load_tradeoff(folders).points) == 5


@pytest.mark.parametrize(
    "changes",
    [{"budget": 5}, {"interface__kind": "label"}, {"surrogate__epochs": 1}, {"pool_images": 9}],
)
def test_attacks_of_another_thief_are_not_compared(
    folders: list[Path], edit_json: Callable[..., None], changes: dict[str, object]
) -> None:
    for folder in folders:
        if "0.08" in folder.name:
            edit_json(folder / "measurements" / "divqat-ood-soft.json", **changes)
    with pytest.raises(ConfigError, match="at one alpha or bit width, and .* at another"):
        load_tradeoff(folders)


def test_one_victim_may_lie_in_several_folders(
    folders: list[Path], edit_json: Callable[..., None], tmp_path: Path
) -> None:
    whole = load_tradeoff(folders)
    copied = Path(shutil.copytree(folders[0], tmp_path / "copy"))
    for path in (copied / "measurements").glob("*-*.json"):
        path.unlink()
    assert load_tradeoff([copied, *folders]).points == whole.points
    edit_json(copied / "measurements" / "qat.json", accuracy__qonnx=0.5)
    with pytest.raises(ConfigError, match="accuracy is"):
        load_tradeoff([copied, *folders])


def test_an_older_file_of_the_same_attack_is_the_same_attack(
    folders: list[Path], tmp_path: Path
) -> None:
    older = shutil.copytree(folders[0], tmp_path / "older")
    for path in (older / "measurements").glob("*.json"):
        record = json.loads(path.read_text())
        for key in ("training", "copies", "copy_kind"):
            record.pop(key, None)
        path.write_text(json.dumps(record))
    assert load_tradeoff([*folders, older]).points == load_tradeoff(folders).points


def test_attacks_with_other_pools_are_panels_of_their_own(
    folders: list[Path], edit_json: Callable[..., None], tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folders[-1], tmp_path / "copy"))
    for path in (copied / "measurements").glob("*-*.json"):
        edit_json(path, pool_name="notmnist")
    tradeoff = load_tradeoff([*folders, copied])
    assert {"ood/soft\n(mnist)", "ood/soft\n(notmnist)"} <= set(tradeoff.attacks)


def test_an_attack_on_another_graph_is_refused(
    folders: list[Path], edit_json: Callable[..., None]
) -> None:
    edit_json(folders[1] / "measurements" / "divqat-ood-soft.json", graph_sha256="0" * 64)
    with pytest.raises(ConfigError, match="a victim that was not measured in"):
        load_tradeoff(folders)


def test_other_networks_and_folders_without_victims_are_refused(
    folders: list[Path], edit_json: Callable[..., None]
) -> None:
    for path in (folders[-1] / "measurements").glob("*.json"):
        edit_json(path, model="cnv")
    with pytest.raises(ConfigError, match="model is 'cnv', but 'lenet5'"):
        load_tradeoff(folders)
    for path in (folders[0] / "measurements").glob("*.json"):
        if json.loads(path.read_text())["kind"] == "victim":
            path.unlink()
    with pytest.raises(ConfigError, match="holds no measurement of a victim"):
        load_tradeoff(folders[:1])


def test_the_command_prints_the_table_and_keeps_the_plot(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plot.png"
    argv = ["tradeoff", *map(str, folders), "-o", str(out)]
    assert main(argv) == 0
    assert "Trade-off over alpha: fashion-mnist, lenet5" in capsys.readouterr().out
    before = out.read_bytes()
    assert main([*argv[:-1], "plot"]) == 2
    assert "plot: expected a file name that ends in .png" in capsys.readouterr().err
    assert main(argv) == 2
    assert "exists: choose another file" in capsys.readouterr().err
    assert out.read_bytes() == before
