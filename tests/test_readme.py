# SPDX-License-Identifier: BSD-3-Clause
"""The README's quick start runs as it stands."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_quick_start_runs_and_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(r"```pycon\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for line in block.splitlines() if line.startswith((">>>", "..."))]
    assert len(lines) <= 15
    with torch.random.fork_rng():
        failed, attempted = doctest.testfile(str(README), module_relative=False)
    assert failed == 0
    assert attempted >= 10
