# SPDX-License-Identifier: BSD-3-Clause
"""Progress of long work, shown where somebody looks and silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Progress", "Show", "bar", "silent"]

Show = Callable[[int, str], None]
"""(steps advanced, what to say beside the bar)."""

Progress = Callable[[str, int], AbstractContextManager[Show]]
"""(name of the work, number of steps) to a context in which to call a `Show`."""


@contextmanager
def silent(name: str, total: int) -> Iterator[Show]:
    """Show nothing."""
    yield lambda steps, text: None


@contextmanager
def bar(name: str, total: int) -> Iterator[Show]:
    """Show a bar with the time left on a terminal; one line at the end elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        last = ""

        def remember(steps: int, text: str) -> None:
            nonlocal last
            last = text

        yield remember
        console.print(f"{name}: done ({last})", soft_wrap=True, highlight=False)
        return
    with RichProgress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
    ) as shown:
        task = shown.add_task(name, total=total, text="")
        yield lambda steps, text: shown.update(task, advance=steps, text=text)
