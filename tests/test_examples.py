# SPDX-License-Identifier: BSD-3-Clause
"""The examples run and print what they say they print."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from brevitas_divqat.evaluation import RunConfig, read_yaml

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
CONFIGURATIONS = sorted(FOLDER.rglob("*.yaml"))


def without_digits(text: str) -> list[str]:
    """Return the lines with every number replaced, since numbers depend on the machine."""
    return [re.sub(r"\d+(\.\d+)?", "N", line.strip()) for line in text.strip().splitlines()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_the_lines_of_its_docstring(example: Path, tmp_path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(example.read_text()))
    assert docstring is not None
    promised = re.findall(r"^    (.*)$", docstring, flags=re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert without_digits(done.stdout) == without_digits("\n".join(promised))


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_configuration_holds_settings_of_a_run(file: Path) -> None:
    given = read_yaml(file)
    known: set[str] = set()
    for group in fields(RunConfig):
        part = getattr(RunConfig(), group.name)
        if group.name != "seed":
            own = {f.name: given[f.name] for f in fields(part) if f.name in given}
            type(part)(**own)  # refuses values that are out of range
            known |= set(own)
    assert known == set(given)
