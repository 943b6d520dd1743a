# SPDX-License-Identifier: BSD-3-Clause
"""The HTML page: one file without scripts that needs nothing from the network."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.evaluation.config import ENVIRONMENT_FILE
from brevitas_divqat.files import make_folder, write_bytes, write_text
from brevitas_divqat.report.curves import plot_curves
from brevitas_divqat.report.figure import plot
from brevitas_divqat.report.grids import grids
from brevitas_divqat.report.measurements import (
    ExtractionRow,
    Measurements,
    VictimRow,
    load_measurements,
)
from brevitas_divqat.report.records import read_json
from brevitas_divqat.report.sentences import sentences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ReportFiles", "write_report"]


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report."""

    html: Path  # self-contained page
    png: Path  # the plot alone
    curves: Path | None  # the plot of learning curves, where there are any


def write_report(
    runs: Sequence[Path], out: Path, *, measurements: Measurements | None = None
) -> ReportFiles:
    """Render runs as ``report.html``, ``report.png`` and, with learning curves, ``curves.png``.

    Rendering the same runs twice gives the same page, byte for byte.

    Args:
        runs: One run folder, or several that differ only in seed.
        out: The folder to write to; it is made where it does not exist.
        measurements: Of these runs, where they are loaded already.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: The runs cannot be rendered, or the folder cannot be written to.
    """
    runs, out = [Path(run) for run in runs], Path(out)
    m = load_measurements(runs) if measurements is None else measurements
    figure, curves = plot(m), plot_curves(m)
    headline, *details = sentences(m)
    environment = Environment(
        loader=PackageLoader("brevitas_divqat.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("report.html.jinja").render(
        m=m,
        headline=headline,
        details=details,
        plots=[
            _svg(figure, "Bar chart of the extractions"),
            *([] if curves is None else [_svg(curves, "Learning curves of the extractions")]),
        ],
        grids=grids(m),
        facts=_facts(m, runs),
        configurations=_configurations(runs),
    )
    folder = make_folder(out)
    html, png, curves_png = (folder / f for f in ("report.html", "report.png", "curves.png"))
    write_bytes(png, _png(figure))
    if curves is not None:
        write_bytes(curves_png, _png(curves))
    else:
        curves_png.unlink(missing_ok=True)  # of an earlier report
    write_text(html, page)
    return ReportFiles(html=html, png=png, curves=None if curves is None else curves_png)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _svg(figure: Figure, label: str) -> Markup:
    """Draw the figure as an ``svg`` element to be placed into a page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Without salt and date, the same figure would be written differently each time.
    with rc_context({"svg.hashsalt": "brevitas_divqat", "svg.fonttype": "path"}):
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # matplotlib escapes what it writes; the label is for those who cannot see the picture.
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _facts(m: Measurements, runs: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """List how the figures came about: names, and one or more lines for each."""
    facts = [
        ("Data and model", [f"{m.data}, {m.model}, {m.bits_text}"]),
        ("Seeds", [", ".join(map(str, m.seeds))]),
        ("Executor of the graph", [", ".join(m.executors)]),
        ("Victims", [_victim_words(row) for row in m.victims]),
        (
            "Brevitas against QONNX",
            [
                f"{row.title}: labels of {row.labels_differing:,} and scores of "
                f"{row.images_differing:,} in {row.images * row.qonnx_accuracy.n:,} images differ, "
                f"by at most {row.max_abs_difference:.2g}"
                for row in m.victims
            ],
        ),
        ("Attacks", list(dict.fromkeys(_attack_words(row) for row in m.extractions))),
        ("Graphs (SHA-256)", _graph_words(m)),
        *_environment_facts(runs),
    ]
    return [(name, lines) for name, lines in facts if any(lines)]


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)


def _victim_words(row: VictimRow) -> str:
    settings = _words({key: value for key, value in row.method.items() if key != "name"})
    return f"{row.title}: {settings}" if settings else row.title


def _attack_words(row: ExtractionRow) -> str:
    s = row.settings
    return (
        f"{row.attack}: {s['attack']}, policy {s['policy']}; images: {s['pool_name']}, "
        f"{s['pool_images']:,}; answers: {_words(s['interface'])}; queries: {s['queries']:,} of a "
        f"budget of {s['budget']:,}; surrogate: {_words(s['surrogate'])}; judged on "
        f"{s['images']:,} images"
    )


def _graph_words(m: Measurements) -> list[str]:
    graphs = {
        (row.title, seed): digest
        for row in (*m.victims, *m.extractions)
        for seed, digest in row.graphs.items()
    }
    return [f"{title}, seed {seed}: {digest}" for (title, seed), digest in graphs.items()]


def _environment_facts(runs: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """Name the versions and machines; what all runs share is named once."""
    versions: dict[str, None] = {}
    machines: dict[str, None] = {}
    for path in (run / ENVIRONMENT_FILE for run in runs):
        if not path.exists():
            continue
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("versions", {}), dict):
            raise ConfigError(f"{path}: expected an object with 'versions'; delete or restore it")
        versions[_words(content.get("versions", {}))] = None
        machines[_words({key: content.get(key) for key in ("python", "platform")})] = None
    return [("Versions", list(versions)), ("Machine", list(machines))]


def _configurations(runs: Sequence[Path]) -> list[tuple[str, str]]:
    """Read the resolved configuration of each run that has one."""
    paths = [run / "config.yaml" for run in runs]
    try:
        return [
            (path.resolve().parent.name, path.read_text(encoding="utf-8"))
            for path in paths
            if path.exists()
        ]
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.yaml is not readable ({error}); restore or delete it") from error
