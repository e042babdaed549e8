"""``veil backfill``: a run onto the queue, its progress, and the wait for what came of it."""

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tasks.app import app
from tasks.bulk import backfill, runs
from tasks.bulk.backfill import Backfill, ReportingBackoff, Selection
from tasks.bulk.places import Places
from tasks.bulk.runs import Run
from tasks.errors import InvalidRequest, QueueUnavailable
from tasks.publishing import announced_recipe
from tasks.records import outcomes
from tasks.redis_errors import connected
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore

EXIT_STOPPED = 3  # before the end; the same command goes on
POLL_SECONDS = 1.0
QUIET_SECONDS = (
    10.0  # without a message of the run anywhere, until those that were not counted are given up
)
SILENT_SECONDS = 60.0  # without a page, after which that is shown
OUTCOMES = ("anonymized", "skipped", "held", "dead")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a user asks for."""

    source: str
    to: str | None
    selection: Selection
    recipe: str | None
    low_water: int
    high_water: int
    max_rate: float
    restart: bool
    wait: bool


def run(settings: Settings, order: Order, as_json: bool) -> int:
    """Put what is not done onto the queue and, if asked, wait for it; the number of pictures that
    died, if it waited.

    KeyboardInterrupt and SIGTERM, which becomes SystemExit, leave the run where it is.
    """
    places = Places.find(order.source, order.to, settings.parsed_routes(), settings.receipt_keys())
    with connected():
        app.backend.client.ping()
    store = ObjectStore.connect(settings)
    next(
        store.list(places.source.bucket, places.source.prefix), None
    )  # what can't be listed now is not waited for
    with Display.opened(as_json) as display:
        producer = Backfill(
            app,
            store,
            places,
            order.selection,
            _recipe(order.recipe, display),
            low_water=order.low_water,
            high_water=order.high_water,
            max_rate=order.max_rate,
            tell=display.say,
        )
        with _interruptible(producer, display):
            _work(producer, order, display)
        failed = display.summary()
    return failed if order.wait else 0


def rehearse(settings: Settings, order: Order, as_json: bool) -> None:
    """Say what `run` would put on the queue."""
    places = Places.find(order.source, order.to, settings.parsed_routes(), settings.receipt_keys())
    store = ObjectStore.connect(settings)
    with Display.opened(as_json, is_rehearsal=True) as display:
        for page in backfill.rehearse(
            store, places, order.selection, _recipe(order.recipe, display)
        ):
            display.show(page)
        display.summary()


def follow(name: str, as_json: bool) -> int:
    """Show the run `name` until its pictures are through; the exit code."""
    redis = app.backend.client
    with connected():
        if runs.read(redis, name) is None:
            known = ", ".join(runs.names(redis)) or "none"
            raise InvalidRequest(f"there is no run {name!r:.100}: known are {known}")
    with Display.opened(as_json) as display:
        last = _follow(name, display)
        failed = display.summary()
        if last.state != "finished":
            display.say(f"the run {name} was stopped: the command that began it goes on")
            return EXIT_STOPPED
    return 1 if failed else 0


def _recipe(given: str | None, display: "Display") -> str | None:
    recipe = given or announced_recipe(app.backend.client)
    if recipe is None:
        display.say(
            "no worker has said yet what its recipe is: outputs of any recipe count as done"
        )
    return recipe


def _work(producer: Backfill, order: Order, display: "Display") -> None:
    restart = order.restart
    while True:
        current = producer.begin(restart)
        display.show(current)
        for page in producer.pages(current):
            display.show(page)
        # Redis may have lost the end of the run since.
        if not order.wait or _follow(producer.name, display, is_mine=True).state == "finished":
            return
        restart = False


def _follow(name: str, display: "Display", is_mine: bool = False) -> Run:
    """Show a run until no message of it is left, or, if it `is_mine`, until it is not finished any
    more.
    """
    redis = app.backend.client
    backoff = ReportingBackoff(display.say)
    ended, quiet_since = -1, time.monotonic()
    while True:
        try:
            with connected():
                current = runs.read(redis, name)
                counts = outcomes.of_run(redis, name)
                through = current is not None and runs.is_through(redis, current)
        except QueueUnavailable as error:
            time.sleep(backoff.failed(error))
            continue
        backoff.succeeded()
        if current is None:
            raise InvalidRequest(f"Redis has forgotten the run {name}: start it again")
        display.show(current, counts)
        if is_mine and current.state != "finished":
            return current
        if current.state == "running" or not through or ended != sum(counts.values()):
            ended, quiet_since = sum(counts.values()), time.monotonic()
        # A message that is just being taken is nowhere for a moment.
        if time.monotonic() - quiet_since >= (
            POLL_SECONDS if ended >= current.enqueued else QUIET_SECONDS
        ):
            if ended < current.enqueued:
                display.say(
                    f"{current.enqueued - ended:,} were not counted: veil reconcile says whether they are done"
                )
            return current
        time.sleep(POLL_SECONDS)


@contextmanager
def _interruptible(producer: Backfill, display: "Display") -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command at once, with a line that says how to go on."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(EXIT_STOPPED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        producer.stop()
        display.say(f"stopped: the same command goes on with the run {producer.name}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class Display:
    """Shows a run on standard error if that is a terminal, as JSON lines if asked, and in one line
    at its end.
    """

    def __init__(self, progress: Progress, as_json: bool, is_rehearsal: bool) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._as_json = as_json
        self._is_rehearsal = is_rehearsal
        self._started = time.monotonic()
        self._first: Run | None = None
        self._last: Run | None = None
        self._counts: Mapping[str, int] = {}
        self._counted_at = 0.0

    @classmethod
    @contextmanager
    def opened(cls, as_json: bool, is_rehearsal: bool = False) -> Iterator[Self]:
        console = Console(stderr=True, highlight=False)
        columns = (
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=console, disable=not console.is_terminal, redirect_stdout=False
        ) as progress:
            yield cls(progress, as_json, is_rehearsal)

    def say(self, line: str) -> None:
        self._progress.console.print(f"veil: {line}", markup=False, soft_wrap=True)

    def show(self, current: Run, counts: Mapping[str, int] | None = None) -> None:
        """Show a run. Its `counts` are read now and then if they are not given."""
        self._first = self._first or current
        if self._as_json and (self._last is None or current.listed != self._last.listed):
            self._print({"event": "page", **_stable(current), "cursor": current.cursor})
        self._last = current
        if counts is not None:
            self._counts = counts
        elif time.monotonic() - self._counted_at > POLL_SECONDS:
            self._count()
        self._draw(current)

    def summary(self) -> int:
        """Print what came of the run so far; the number of its pictures that died."""
        current = self._last
        assert current is not None
        self._count()
        dead = self._counts.get("dead", 0)
        seconds = time.monotonic() - self._started
        if self._as_json:
            counted = {name: self._counts.get(name, 0) for name in OUTCOMES}
            asked = {
                "source": current.source,
                "destination": current.destination,
                "recipe": current.recipe or None,
            }
            self._print(
                {"event": "summary", **_stable(current), **asked, "dry_run": self._is_rehearsal}
                | {"outcomes": counted, "seconds": round(seconds, 1)}
            )
            return dead
        listed = f"{current.listed:,} listed, {current.skipped:,} done already, {current.ignored:,} not selected"
        size = f"{current.enqueued:,} ({decimal(current.source_bytes)})"
        if self._is_rehearsal:
            self.say(f"{listed}, {size} would be enqueued; the run would be {current.name}")
        else:
            self.say(
                f"{current.name}: {listed}, {size} enqueued, {self._ended - dead:,} came through, {dead:,} died"
            )
        return dead

    @property
    def _ended(self) -> int:
        return sum(self._counts.values())

    def _count(self) -> None:
        if self._is_rehearsal or self._last is None:
            return
        with suppress(QueueUnavailable), connected():
            self._counts = outcomes.of_run(app.backend.client, self._last.name)
        self._counted_at = time.monotonic()

    def _draw(self, current: Run) -> None:
        assert self._first is not None
        dead = self._counts.get("dead", 0)
        shown = [
            f"{current.listed:,} listed",
            f"{current.skipped:,} done",
            f"{current.enqueued:,} enqueued",
            f"{self._ended - dead:,} through",
            f"{dead:,} died",
        ]
        if current.state == "running":
            seconds = time.monotonic() - self._started
            shown.append(
                f"{(current.enqueued - self._first.enqueued) / max(seconds, 0.001):,.0f}/s"
            )
            if (silent := time.time() - current.updated) > SILENT_SECONDS:
                shown.append(f"no page for {silent:,.0f} s")
        total = current.enqueued if current.state == "finished" else None
        self._progress.update(
            self._task, description=" · ".join(shown), total=total, completed=self._ended
        )

    def _print(self, values: Mapping[str, Any]) -> None:
        print(json.dumps(values), flush=True)


def _stable(current: Run) -> dict[str, Any]:
    """What every JSON object of a run has."""
    return {
        "run": current.name,
        "state": current.state,
        "listed": current.listed,
        "ignored": current.ignored,
        "skipped": current.skipped,
        "enqueued": current.enqueued,
        "source_bytes": current.source_bytes,
    }
