"""A progress bar on standard error, shown on a terminal only."""

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

from worker.printing import quiet


class Bar:
    """A progress bar, and the count that it shows."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.count = 0

    def advance(self, count: int = 1) -> None:
        self.count += count
        self._progress.advance(self._task, count)

    def expect(self, total: int) -> None:
        """Show the bar for `total` steps, whose number was not known before."""
        self._progress.update(self._task, total=total)


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Bar]:
    """Show a bar for `total` steps that are `what`, or a counter if their number is not known."""
    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # Rich prints redirected output above the bar. Output into a pipe must not be redirected.
    is_terminal = sys.stdout.isatty()
    is_hidden = quiet() or not console.is_terminal
    with Progress(
        *columns, console=console, disable=is_hidden, redirect_stdout=is_terminal
    ) as progress:
        yield Bar(progress, progress.add_task(what, total=total))
