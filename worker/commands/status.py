"""``veil status``: queues, outcomes and runs, once or as a live table."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tasks import status as progress
from tasks.errors import QueueUnavailable, RunUnknown
from tasks.redis_errors import connected
from tasks.status import RunStatus, Status
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Json
from worker.commands.queue import celery_app
from worker.printing import print_note

if TYPE_CHECKING:
    from tasks.app import App

LIVE_SECONDS = 2.0  # between two refreshes, by default
PING_SECONDS = 1.0  # within which a worker must answer
PIPE_COLUMNS = 240  # wide enough that no table is cut where the output is not a terminal

app = CommandApp()


@dataclass(frozen=True)
class View:
    """One reading: the objects of ``--json``, and the tables for people."""

    lines: list[dict[str, Any]]
    tables: list[RenderableType]


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Show only this run of a backfill.")
    ] = None,
    runs: Annotated[bool, typer.Option("--runs", help="Show all runs of backfills.")] = False,
    workers: Annotated[
        bool, typer.Option("--workers", help="Also ask which workers are alive; takes a second.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Refresh after this many seconds; default: 2 on a terminal, else once."
        ),
    ] = None,
    as_json: Json = False,
) -> ExitCode:
    """Show queues, outcomes, rate and time left.

    The table is live on a terminal, and is printed once elsewhere.

    Example: veil status --json --interval 60
    """
    if runs and run is not None:
        raise typer.BadParameter("give a run, or --runs")
    celery = celery_app()
    redis = celery.backend.client

    def read() -> View:
        if runs:
            return _runs_view(progress.runs(redis))
        if run is not None:
            return _run_view(redis, run)
        return _work_view(progress.read(redis), _alive(celery) if workers else None)

    is_live = sys.stdout.isatty() and not as_json
    if is_live:
        _refresh(read, interval or LIVE_SECONDS)
    elif interval is None:
        _print(read(), as_json)
    else:
        _repeat(read, interval, as_json)
    return ExitCode.OK


def _repeat(read: Callable[[], View], interval: float, as_json: bool) -> None:
    """Print the status every `interval` seconds, and note an outage of Redis."""
    read()  # an error at the start ends the command
    while True:
        try:
            _print(read(), as_json)
        except QueueUnavailable as error:
            print_note(f"{type(error).__name__}: {error}")
        time.sleep(interval)


def _refresh(read: Callable[[], View], interval: float) -> None:
    """Show the status on the terminal, read anew every `interval` seconds."""
    shown: RenderableType = Group(*read().tables)
    with Live(shown, console=Console(), auto_refresh=False) as live:
        while True:
            live.update(shown, refresh=True)
            time.sleep(interval)
            try:
                shown = Group(*read().tables)
            except QueueUnavailable as error:
                shown = Text(f"{datetime.now():%H:%M:%S}  {error}; retrying", style="bold red")


def _print(view: View, as_json: bool) -> None:
    if as_json:
        for line in view.lines:
            print(json.dumps(line), flush=True)
        return
    console = Console(width=PIPE_COLUMNS)
    for table in view.tables:
        console.print(table)


def _alive(celery: "App") -> list[str]:
    """Return the names of the workers that answer within PING_SECONDS."""
    with connected():
        return sorted(celery.control.inspect(timeout=PING_SECONDS).ping() or ())


def _work_view(work: Status, alive: list[str] | None) -> View:
    queues = _table("queue", "waiting", "oldest")
    for queue in work.queues:
        queues.add_row(queue.name, f"{queue.waiting:,}", _duration(queue.oldest_seconds))
    pictures = _table(
        "in hand", *work.outcomes, "dead letters", "to review", "pictures/s", "time left", "recipe"
    )
    pictures.add_row(
        f"{work.in_flight:,}",
        *(f"{count:,}" for count in work.outcomes.values()),
        f"{work.dead:,}",
        f"{work.to_review:,}",
        f"{work.per_second:.2f}",
        _duration(work.seconds_left),
        work.recipe or "–",
    )
    line = asdict(work)
    tables: list[RenderableType] = [queues, pictures]
    if alive is not None:
        line["workers"] = alive
        answering = _table("workers that answer", "")
        answering.add_row(str(len(alive)), ", ".join(alive))
        tables.append(answering)
    return View([line], tables)


def _run_view(redis: Any, name: str) -> View:
    found = progress.read_run(redis, name)
    if found is None:
        raise RunUnknown(f"Redis knows no run {name!r:.100}: veil status --runs lists them")
    return _runs_view([found])


def _runs_view(runs: list[RunStatus]) -> View:
    table = _table(
        "run",
        "state",
        "listed",
        "skipped",
        "enqueued",
        "done",
        "failed",
        "left",
        "%",
        "pictures/s",
        "time left",
        "updated",
    )
    for run in runs:
        counts = (run.listed, run.skipped, run.enqueued, run.done, run.failed, run.left)
        table.add_row(
            run.run,
            run.state,
            *(f"{count:,}" for count in counts),
            f"{run.percent:g}",
            f"{run.per_second:.2f}",
            _duration(run.seconds_left),
            _moment(run.updated),
        )
    return View([asdict(run) for run in runs], [table])


def _table(*columns: str) -> Table:
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
