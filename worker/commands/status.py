"""``veil status``: how the work stands, once or as a live table."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tasks import status
from tasks.app import app
from tasks.errors import QueueUnavailable, RunUnknown
from tasks.redis_errors import connected
from tasks.status import RunStatus, Status

LIVE_SECONDS = 2.0
PING_SECONDS = 1.0
PIPE_WIDTH = 240  # characters; nothing is cut


@dataclass(frozen=True)
class View:
    """What is shown: as lines of JSON, and as tables."""

    lines: list[dict[str, Any]]
    tables: list[RenderableType]


def run(
    name: str | None, all_runs: bool, workers: bool, interval: float | None, as_json: bool
) -> None:
    """Show all of the work, or the run `name`, or all runs; again and again on a terminal or with
    an `interval`.
    """

    def look() -> View:
        if all_runs:
            return _runs_view(status.runs(app.backend.client))
        if name is not None:
            return _run_view(name)
        return _work_view(status.read(app.backend.client), _alive() if workers else None)

    if interval is None and (as_json or not sys.stdout.isatty()):
        _print(look(), as_json)
    elif as_json or not sys.stdout.isatty():
        _repeat(look, interval or LIVE_SECONDS, as_json)
    else:
        _live(look, interval or LIVE_SECONDS)


def _repeat(look: Callable[[], View], interval: float, as_json: bool) -> None:
    """A line, or tables, each `interval` seconds; an outage is told and waited for."""
    look()  # what is wrong from the start is the caller's to tell
    while True:
        try:
            _print(look(), as_json)
        except QueueUnavailable as error:
            print(f"veil: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        time.sleep(interval)


def _live(look: Callable[[], View], interval: float) -> None:
    shown: RenderableType = Group(*look().tables)
    with Live(shown, console=Console(), auto_refresh=False) as live:
        while True:
            live.update(shown, refresh=True)
            time.sleep(interval)
            try:
                shown = Group(*look().tables)
            except QueueUnavailable as error:
                shown = Text(f"{datetime.now():%H:%M:%S}  {error}; looking again", style="bold red")


def _print(view: View, as_json: bool) -> None:
    if as_json:
        for line in view.lines:
            print(json.dumps(line), flush=True)
        return
    console = Console(width=PIPE_WIDTH)
    for table in view.tables:
        console.print(table)


def _alive() -> list[str]:
    """The workers that answer at once."""
    with connected():
        return sorted(app.control.inspect(timeout=PING_SECONDS).ping() or ())


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
    line, tables = asdict(work), [queues, pictures]
    if alive is not None:
        line["workers"] = alive
        answering = _table("workers that answer", "")
        answering.add_row(str(len(alive)), ", ".join(alive))
        tables.append(answering)
    return View([line], list(tables))


def _run_view(name: str) -> View:
    found = status.read_run(app.backend.client, name)
    if found is None:
        raise RunUnknown(f"Redis knows no run {name!r:.100}: veil status --runs lists them")
    return _runs_view([found])


def _runs_view(found: list[RunStatus]) -> View:
    table = _table("run", "state", "listed", "skipped", "enqueued", "done", "failed", "left", "%", "pictures/s",
                   "time left", "updated")  # fmt: skip
    for one in found:
        counts = (one.listed, one.skipped, one.enqueued, one.done, one.failed, one.left)
        rate, left = f"{one.per_second:.2f}", _duration(one.seconds_left)
        table.add_row(
            one.run,
            one.state,
            *(f"{n:,}" for n in counts),
            f"{one.percent:g}",
            rate,
            left,
            _moment(one.updated),
        )
    return View([asdict(one) for one in found], [table])


def _table(*columns: str) -> Table:
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))


def _moment(seconds: float | None) -> str:
    return (
        "–"
        if seconds is None
        else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    )
