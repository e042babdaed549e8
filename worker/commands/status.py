"""``veil status``: queues, outcomes and runs, once or as a live table."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tasks import status as progress
from tasks.errors import QueueUnavailable, RunUnknown
from tasks.messages import FACE, QUEUES
from tasks.records.queues import QueueStatus
from tasks.redis.broadcasts import check_subscription
from tasks.redis.clients import impatient_client
from tasks.status import RouteStatus, RunStatus, Status
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Json, refuse_beside
from worker.commands.queue import REDIS_SECONDS, answering_workers, celery_app
from worker.commands.waiting import NOT_COUNTED
from worker.printing import UNKNOWN, duration, print_note, printable

if TYPE_CHECKING:
    from tasks.app import App

LIVE_SECONDS = 2.0  # between two refreshes, by default
PIPE_COLUMNS = 240  # wide enough that no table is cut where the output is not a terminal
WARNING = "bold yellow"
NO_ROUTE = "(no route)"  # in place of a name, which has no such signs
MAX_STRAY_SHOWN = 5  # stray lists, each on a line
NO_WORKER = "no worker answers, so the time left is unknown: start `veil worker`"
# The rows of the table of all work: the name of a figure, and its meaning.
MEANINGS = {
    "in hand": "messages that workers hold",
    "anonymized": "outputs written",
    "skipped": "the output was there already",
    "held": "not published, to be reviewed",
    "dead": "all failures since this Redis is in use",
    "malformed": "the dead whose message no worker can read",
    "dead letters": "failures to handle: veil dead list",
    "to review": "held or flagged: veil review list",
    "review desk": "to decide on them in the browser",
    "pictures/s": "of all workers, in the present work",
    "time left": "for the queues and what is in hand",
    "recipe": "of the worker that started last",
    "labels": "that it finds and hides",
}

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
        typer.Option(min=0.1, metavar="SECONDS", help="Show it again after this many seconds."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once, also on a terminal.")] = False,
    as_json: Json = False,
) -> ExitCode:
    """Show queues, outcomes, rate and time left.

    If you start it in a terminal, the table is live. In a script or a pipe it is printed once.

    Example: veil status --json --interval 60
    """
    if runs and run is not None:
        raise typer.BadParameter("give a run, or --runs")
    if once and interval is not None:
        raise typer.BadParameter("give --once, or --interval")
    refuse_beside("a run", run, {"--workers": workers})
    refuse_beside("--runs", runs, {"--workers": workers})
    celery = celery_app()
    redis = impatient_client(celery, REDIS_SECONDS)

    def read() -> View:
        if runs:
            return _runs_view(celery, progress.runs(redis))
        if run is not None:
            return _run_view(celery, redis, run)
        work = progress.read(redis)
        if not workers:
            return _work_view(work)
        return _work_view_with_workers(work, _alive(celery, work.refusal))

    is_shown_again = interval is not None or (not once and _is_used_by_a_person())
    if is_shown_again and sys.stdout.isatty() and not as_json:
        _refresh(read, interval or LIVE_SECONDS)
    elif interval is None:
        _print(read(), as_json)
    else:
        _repeat(read, interval, as_json)
    return ExitCode.OK


def _is_used_by_a_person() -> bool:
    """Return whether this command was typed into the shell of a terminal.

    Such a shell gives each command a process group of its own. A script does not, and would wait
    for a live table forever.
    """
    return sys.stdin.isatty() and os.getpgrp() == os.getpid()


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
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    for table in view.tables:
        console.print(table)


def _alive(celery: "App", refusal: str | None) -> list[str] | None:
    """Return the names of the workers that answer, or None if Redis takes no question.

    `refusal` says why it takes none. Raise QueueUnavailable for another reason.
    """
    try:
        alive = answering_workers(celery)
    except QueueUnavailable:
        if refusal is None:
            raise
        return None
    if not alive:
        check_subscription(celery)
    return alive


def _work_view_with_workers(work: Status, alive: list[str] | None) -> View:
    """Return the view of all work with the workers that are `alive`; None if that is unknown."""
    if alive == []:  # The rate is that of workers that are gone.
        work = progress.without_rate(work)
    view = _work_view(work)
    line = {**view.lines[0], "workers": alive}
    names = alive or []
    count = UNKNOWN if alive is None else f"{len(alive):,}"
    table = _figures_table({"workers": count}, {"workers": ", ".join(names)})
    return View([line], [*view.tables, table, *_shared_name_lines(names)])


def _work_view(work: Status) -> View:
    figures = {
        "in hand": f"{work.in_flight:,}",
        **{outcome: f"{count:,}" for outcome, count in work.outcomes.items()},
        "dead letters": f"{work.dead:,}",
        "to review": f"{work.to_review:,}",
        "pictures/s": _rate(work.per_second),
        "time left": duration(work.seconds_left),
        "recipe": work.recipe or UNKNOWN,
    }
    if set(work.labels) - {FACE}:
        figures["labels"] = printable(", ".join(work.labels))
    if work.review_desk is not None:
        figures["review desk"] = work.review_desk
    tables: list[RenderableType] = [_queues_table(work.queues)]
    tables += _stray_lines(work.stray)
    if work.refusal is not None:
        tables.append(Text(work.refusal, style=WARNING))
    tables += [Text(f"Redis: {risk}", style=WARNING) for risk in work.risks]
    tables.append(_figures_table(figures))
    if work.routes:
        tables.append(_routes_table(work.routes))
    return View([asdict(work)], tables)


def _queues_table(queues: Sequence[QueueStatus]) -> Table:
    table = _table("queue", "waiting", "oldest")
    for queue in queues:
        table.add_row(queue.name, f"{queue.waiting:,}", duration(queue.oldest_seconds))
    return table


def _routes_table(routes: Sequence[RouteStatus]) -> Table:
    table = _table("route", *progress.DONE, progress.FAILED, "recipe")
    for one in routes:
        counts = [f"{one.outcomes[outcome]:,}" for outcome in (*progress.DONE, progress.FAILED)]
        name = NO_ROUTE if one.route is None else printable(one.route)
        table.add_row(name, *counts, one.recipe or UNKNOWN)
    return table


def _stray_lines(stray: Sequence[QueueStatus]) -> list[RenderableType]:
    """Return a warning for each list with messages that no worker reads."""
    lines = [
        f"{printable(queue.name):.40}: {queue.waiting:,} waiting, but no worker reads this queue. "
        f"Send to {' or '.join(QUEUES)}."
        for queue in stray[:MAX_STRAY_SHOWN]
    ]
    if len(stray) > MAX_STRAY_SHOWN:
        lines.append(f"{len(stray) - MAX_STRAY_SHOWN} more such queues: veil status --json")
    return [Text(line, style=WARNING) for line in lines]


def _shared_name_lines(alive: Sequence[str]) -> list[RenderableType]:
    """Return a warning for each name that several workers have."""
    return [
        Text(
            f"{count} workers have the name {name}, and Flower shows them as one: "
            "give each its own --name",
            style=WARNING,
        )
        for name, count in Counter(alive).items()
        if count > 1
    ]


def _run_view(celery: "App", redis: Any, name: str) -> View:
    found = progress.read_run(redis, name)
    if found is None:
        raise RunUnknown(f"Redis knows no run {name!r:.100}: veil status --runs lists them")
    is_worked_on = _is_worked_on(celery, [found])
    if not is_worked_on:
        found = progress.run_without_rate(found)
    figures = {
        "run": found.run,
        "state": found.state,
        "listed": f"{found.listed:,}",
        "skipped": f"{found.skipped:,}",
        "enqueued": f"{found.enqueued:,}",
        "done": f"{found.done:,}",
        "failed": f"{found.failed:,}",
        "left": f"{found.left:,}",
        "uncounted": f"{found.uncounted:,}",
        "%": _percent(found),
        "pictures/s": _rate(found.per_second),
        "time left": duration(found.seconds_left),
        "updated": _moment(found.updated),
    }
    meanings = {
        "skipped": "needed no work",
        "failed": "became dead letters: veil dead list",
        "uncounted": "ended while Redis took no counts",
        "%": "of all sources, once they are listed",
        "pictures/s": MEANINGS["pictures/s"],
    }
    tables = [_figures_table(figures, meanings), *_repair_lines([found], is_worked_on)]
    return View([asdict(found)], tables)


def _runs_view(celery: "App", runs: list[RunStatus]) -> View:
    is_worked_on = _is_worked_on(celery, runs)
    if not is_worked_on:
        runs = [progress.run_without_rate(run) for run in runs]
    table = _table("run", "state", "listed", "left", "failed", "%", "time left")
    for run in runs:
        table.add_row(
            run.run,
            run.state,
            f"{run.listed:,}",
            f"{run.left:,}",
            f"{run.failed:,}",
            _percent(run),
            duration(run.seconds_left),
        )
    return View([asdict(run) for run in runs], [table, *_repair_lines(runs, is_worked_on)])


def _is_worked_on(celery: "App", runs: Sequence[RunStatus]) -> bool:
    """Return False if a picture of `runs` is left and no worker answers.

    The rate is then that of workers that are gone. Workers are asked only if a picture is left.
    """
    if not any(run.left for run in runs):
        return True
    try:
        return bool(answering_workers(celery))
    except QueueUnavailable:  # A full Redis takes no question.
        return True


def _repair_lines(runs: Sequence[RunStatus], is_worked_on: bool) -> list[RenderableType]:
    """Return a line for each run whose process was killed, or that has uncounted pictures.

    There is one more if none `is_worked_on`.
    """
    lines = [] if is_worked_on else [NO_WORKER]
    for run in runs:
        if run.abandoned_since is not None:
            since = _moment(run.abandoned_since)
            lines.append(
                f"{run.run} is abandoned since {since}: repeat the command that began it to go on"
            )
        if run.uncounted:
            lines.append(f"{run.run}: {run.uncounted:,} {NOT_COUNTED}")
    return [Text(line, style=WARNING) for line in lines]


def _figures_table(figures: Mapping[str, str], meanings: Mapping[str, str] = MEANINGS) -> Table:
    """Return a table with a row for each of the `figures`, which fits into 80 columns."""
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    table.add_column(style="dim")
    for name, figure in figures.items():
        table.add_row(name, Text(figure), meanings.get(name, ""))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _percent(run: RunStatus) -> str:
    return UNKNOWN if run.percent is None else f"{run.percent:g}"


def _rate(per_second: float) -> str:
    return f"{per_second:.2f}" if per_second else UNKNOWN


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
