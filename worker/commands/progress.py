"""A progress bar on a terminal, silence in a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Bar:
    """Counts; shows on standard error if that is a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.count = 0

    def advance(self, count: int = 1) -> None:
        self.count += count
        self._progress.advance(self._task, count)


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Bar]:
    """A bar for `total` things, or a counter if their number is not known."""
    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # What is printed to the same terminal goes above the bar; what goes into a pipe is left alone.
    both = sys.stdout.isatty()
    with Progress(
        *columns, console=console, disable=not console.is_terminal, redirect_stdout=both
    ) as progress:
        yield Bar(progress, progress.add_task(what, total=total))
