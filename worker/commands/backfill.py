"""``veil backfill``: put an archive on the queue, show the progress, and wait for the outcomes."""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tasks.backoff import ReportingBackoff
from tasks.bulk import runs
from tasks.bulk.backfill import PAGE, Backfill, Selection, SourcePages
from tasks.bulk.inventory import Inventory
from tasks.bulk.places import Places
from tasks.bulk.runs import Run
from tasks.errors import (
    InvalidRequest,
    InventoryInvalid,
    NothingFound,
    QueueUnavailable,
    RunTakenOver,
)
from tasks.publishing import announced_recipe
from tasks.records import dead_letters, outcomes, queues
from tasks.records.dead_letters import DeadLetter
from tasks.redis.clients import refuse_unusable
from tasks.redis.errors import connected
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from tasks.telemetry import tracing
from worker.commands import waiting
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.inventories import Inventories, listed_from
from worker.commands.ledger_entries import iso_time
from worker.commands.options import Json, Suffix, recipe_digest, refuse_beside, utc_time
from worker.commands.queue import celery_app
from worker.commands.waiting import NOT_COUNTED, OUTCOMES, Endings
from worker.printing import best_effort, print_summary, quiet

if TYPE_CHECKING:
    from tasks.app import App

POLL_SECONDS = 1.0
# A message that a worker is just taking is in no list of Redis for a moment. So a run counts as
# through only after this many seconds without a message, if pictures are still uncounted.
QUIET_SECONDS = 10.0
STALE_SECONDS = 60.0  # age of the last page beyond which the progress bar shows it


Source = Annotated[
    str | None,
    typer.Argument(metavar="s3://BUCKET/PREFIX", help="Where the sources are.", show_default=False),
]
To = Annotated[
    str | None,
    typer.Option(
        metavar="s3://BUCKET/PREFIX",
        help="Where outputs go, below the route's destination; default: where the route leads.",
    ),
]


def _since(text: str) -> datetime:
    """Parse an ISO 8601 time. Raise BadParameter, also for ``now``, which `veil watch` takes."""
    if text == "now":
        raise typer.BadParameter(
            "no source is modified after now: a backfill takes those from a time of the past on"
        )
    return utc_time(text)


Since = Annotated[
    datetime | None,
    typer.Option(
        parser=_since,
        metavar="TIME",
        help="Only sources modified at this time or later: ISO 8601, UTC unless it has a zone.",
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=utc_time, metavar="TIME", help="Only sources modified before this time."),
]
Limit = Annotated[
    int | None, typer.Option(metavar="COUNT", min=1, help="Enqueue at most this many messages.")
]
MaxRate = Annotated[
    float | None,
    typer.Option(metavar="RATE", min=0.01, help="Enqueue at most this many messages a second."),
]
LowWater = Annotated[
    int,
    typer.Option(
        metavar="COUNT", min=0, help="Resume enqueueing at this many waiting messages or fewer."
    ),
]
HighWater = Annotated[
    int,
    typer.Option(metavar="COUNT", min=1, help="Pause enqueueing at this many waiting messages."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        callback=recipe_digest,
        metavar="DIGEST",
        help="The recipe that counts as done; default: that of the worker that started last.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count what would be enqueued.")]
Restart = Annotated[bool, typer.Option("--restart", help="Forget the progress of the run.")]
Wait = Annotated[
    bool,
    typer.Option(
        help="Wait until every picture has ended; exit with 1 if one died or was not counted."
    ),
]
Follow = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Only show this run, until every picture has ended."),
]
Cancel = Annotated[
    str | None,
    typer.Option(
        metavar="RUN", help="Only end this run, and take its waiting messages off the queue."
    ),
]

app = CommandApp()


@dataclass(frozen=True)
class Reading:
    """One reading of a run from Redis.

    `counts` has its pictures by outcome. `is_through` says that none of its messages is left.
    `abandoned_since` is set if its process was killed: the state of `run` is then ``abandoned``.
    """

    run: Run
    counts: Mapping[str, int]
    is_through: bool
    abandoned_since: float | None


@app.command(has_summary=True)
def backfill(
    source: Source = None,
    to: To = None,
    since: Since = None,
    until: Until = None,
    suffix: Suffix = None,
    limit: Limit = None,
    max_rate: MaxRate = None,
    low_water: LowWater = 5_000,
    high_water: HighWater = 20_000,
    recipe: Recipe = None,
    dry_run: DryRun = False,
    restart: Restart = False,
    wait: Wait = False,
    follow: Follow = None,
    cancel: Cancel = None,
    inventory: Inventories = None,
    as_json: Json = False,
) -> ExitCode:
    """Put every source that is not done yet on the queue.

    Sources whose output has their version and the workers' recipe are skipped. Messages wait on
    the queue `backfill`, behind every upload. After a stop or a kill the same command continues
    the run; once a run is through, it begins another pass.

    Exit with 1 if no source has the suffixes or, with --wait or --follow, if a picture died or was
    not counted. Exit with 3 after SIGTERM, if another process has taken the run over or cancelled
    it, or if a followed run was stopped, cancelled or killed.

    Example: veil backfill s3://camera-uploads/2026 --wait
    """
    if follow is not None or cancel is not None:
        others = {
            "s3://BUCKET/PREFIX": source,
            "--to": to,
            "--inventory": inventory,
            "--since": since,
            "--until": until,
            "--suffix": suffix or None,
            "--limit": limit,
            "--max-rate": max_rate,
            "--recipe": recipe,
            "--dry-run": dry_run,
            "--restart": restart,
            "--wait": wait,
        }
        refuse_beside("--cancel", cancel, others | {"--follow": follow})
        refuse_beside("--follow", follow, others)
        if follow is not None:
            return _follow(celery_app(), follow, as_json)
        assert cancel is not None
        return _cancel(celery_app(), cancel, as_json)
    refuse_beside("--dry-run", dry_run, {"--wait": wait})
    if not source:
        raise typer.BadParameter("give the address of the sources, or --follow a run")
    if low_water >= high_water:
        raise typer.BadParameter("must be below --high-water", param_hint="--low-water")
    if since and until and since >= until:
        raise typer.BadParameter("must be before --until", param_hint="--since")
    settings = Settings.load()
    places = Places.find(source, to, settings.parsed_routes(), settings.receipt_keys())
    celery = celery_app()
    refuse_unusable(celery)
    tracing.configure("veil-backfill")
    store = _connect(celery, settings)
    with (
        listed_from(store, inventory, places) as inventories,
        Display.opened(celery.backend.client, as_json, is_rehearsal=dry_run) as display,
    ):
        selection = Selection(
            since,
            until,
            tuple(sorted(places.route.suffixes_among(suffix or ()))),
            limit,
            _name(inventories, since or until),
        )
        # A prefix without objects may be mistyped. An inventory of the outputs may be empty.
        for each in inventories:
            if each.bucket == places.source.bucket:
                each.require_any()
        store.require_any(places.source)
        current_recipe = _recipe(celery, recipe, places, display)
        producer = Backfill(
            celery,
            store,
            places,
            selection,
            current_recipe,
            low_water=low_water,
            high_water=high_water,
            max_rate=max_rate or math.inf,
            tell=display.note,
        )
        if dry_run:
            return _rehearse(producer, display, restart)
        # An error here leaves no run: nothing was done. Later, the run stays and can be continued.
        SourcePages(store, places, selection, current_recipe).page(limit or PAGE)
        return _run(celery, producer, display, restart, wait)


def _connect(celery: "App", settings: Settings) -> ObjectStore:
    """Return the store. Raise QueueUnavailable if Redis can't be used.

    The run itself waits for servers; at its start an unreachable one is more likely a mistake.
    """
    with connected():
        celery.backend.client.ping()
    return ObjectStore.connect(settings)


def _name(inventories: Sequence[Inventory], time: datetime | None) -> str | None:
    """Return the part of the run's name that stands for `inventories`; None without any.

    Raise InventoryInvalid if `time` selects sources, and an inventory has no times.
    """
    for inventory in inventories:
        if time is not None and not inventory.has_times:
            raise InventoryInvalid(
                f"{inventory.name} has no LastModifiedDate: leave out --since and --until"
            )
    return " ".join(inventory.name for inventory in inventories) or None


def _run(
    celery: "App", producer: Backfill, display: "Display", restart: bool, wait: bool
) -> ExitCode:
    """Enqueue the run and, with `wait`, follow it to its end.

    Ctrl-C and SIGTERM, which becomes SystemExit, stop it where it is.
    """
    try:
        with _interruptible(producer, display):
            _enqueue(producer, display, restart)
            # Redis may have lost its last second, and with it the end of the run.
            while wait and not _wait(celery, producer, display):
                _enqueue(producer, display, restart=False)
    except RunTakenOver as error:
        display.note(str(error))
        return ExitCode.STOPPED
    lost = display.summarize()
    display.require_selected()
    return ExitCode.ok_if(not (wait and lost))


def _rehearse(producer: Backfill, display: "Display", restart: bool) -> ExitCode:
    """Show what the same command would enqueue without ``--dry-run``."""
    rehearsed = producer.rehearse(restart)
    display.begin(next(rehearsed))
    for page in rehearsed:
        display.show(page)
    display.summarize()
    display.require_selected()
    return ExitCode.OK


def _follow(celery: "App", name: str, as_json: bool) -> ExitCode:
    """Show the run `name` until it ends. Raise InvalidRequest if Redis has no such run."""
    redis = celery.backend.client
    with connected():
        runs.require(redis, name)
    with Display.opened(redis, as_json) as display:
        try:
            last = _show_until_through(redis, name, display)
        except KeyboardInterrupt:
            with best_effort():
                display.summarize_so_far()
            raise
        lost = display.summarize()
        if last.run.state != "finished":
            display.note(f"the run {name} {_interruption(last)}")
            return ExitCode.STOPPED
        display.require_selected()
    return ExitCode.ok_if(not lost)


def _interruption(reading: Reading) -> str:
    """Return how a run ended that did not finish, and what its command would do."""
    if reading.run.state == "cancelled":
        return "was cancelled: its command begins it anew"
    if reading.abandoned_since is None:
        return "was stopped: repeat its command to go on"
    return f"is abandoned since {iso_time(reading.abandoned_since)}: repeat its command to go on"


def _cancel(celery: "App", name: str, as_json: bool) -> ExitCode:
    """End the run `name`, and say how many messages were removed and how many are in hand."""
    redis = celery.backend.client
    with connected():
        removed = runs.cancel(redis, name)
        in_hand = queues.in_hand(redis, name)
    if as_json:
        print(json.dumps({"run": name, "removed": removed, "in_hand": in_hand}))
    else:
        print_summary(
            f"{name} is cancelled: {removed:,} waiting messages removed, "
            f"{in_hand:,} in hand of workers, which finish them"
        )
    return ExitCode.OK


def _recipe(celery: "App", given: str | None, places: Places, display: "Display") -> str | None:
    """Return the recipe that counts as done; None if outputs of any recipe do."""
    recipe = given or announced_recipe(celery.backend.client, places.route.name)
    if recipe is None:
        display.note("no worker has reported its recipe: outputs of any recipe count as done")
    return recipe


def _enqueue(producer: Backfill, display: "Display", restart: bool) -> None:
    current = producer.begin(restart)
    display.begin(current)
    for page in producer.pages(current):
        display.show(page)


def _wait(celery: "App", producer: Backfill, display: "Display") -> bool:
    """Wait until the run is through. Return False if Redis has lost its end: then it continues.

    Raise RunTakenOver if the run was cancelled.
    """
    redis = celery.backend.client
    last = _show_until_through(redis, producer.name, display, is_enqueued=True)
    if last.run.state == "cancelled":
        raise RunTakenOver(f"the run {producer.name} was cancelled")
    return last.run.state == "finished"


def _show_until_through(
    redis: Any, name: str, display: "Display", is_enqueued: bool = False
) -> Reading:
    """Show a run until none of its messages is left, or it is abandoned; return the last reading.

    Return at once if it is cancelled: workers finish what they have in hand. With `is_enqueued`,
    which says that all messages were put on the queue, return at once if the state of the run in
    Redis says otherwise.
    """
    backoff = ReportingBackoff(display.note)
    last_ended, quiet_since = -1, time.monotonic()
    while True:
        asked_at = time.monotonic()
        reading = _read(redis, name, backoff)
        was_away = time.monotonic() - asked_at > POLL_SECONDS
        current, ended = reading.run, sum(reading.counts.values())
        display.show(current, reading.counts, reading.is_through)
        if current.state == "cancelled" or (is_enqueued and current.state != "finished"):
            return reading
        is_abandoned = current.state == "abandoned"
        is_quiet = is_abandoned or (current.state != "running" and reading.is_through)
        # After an outage of Redis, a run shows its next sign of life within QUIET_SECONDS.
        if not is_quiet or ended != last_ended or was_away:
            last_ended, quiet_since = ended, time.monotonic()
        missing = current.enqueued - ended
        quiet_seconds = QUIET_SECONDS if missing > 0 or is_abandoned else POLL_SECONDS
        if time.monotonic() - quiet_since >= quiet_seconds:
            if missing > 0 and not is_abandoned:
                display.note(f"{missing:,} {NOT_COUNTED}")
            return reading
        time.sleep(POLL_SECONDS)


def _read(redis: Any, name: str, backoff: ReportingBackoff) -> Reading:
    """Return a reading of the run `name`.

    Wait while Redis is unavailable. Raise InvalidRequest if Redis has no such run any more.
    """

    def read() -> Reading:
        with connected():
            current = runs.read(redis, name)
            if current is None:
                raise InvalidRequest(f"Redis has lost the run {name}: start it again")
            abandoned_since = runs.abandoned_since(redis, name, current.state)
            # Read before the outcomes: each is counted before its message goes.
            is_through = runs.is_through(redis, current)
            if abandoned_since is not None:
                current = replace(current, state="abandoned")
            counts = outcomes.of_run(redis, name)
        return Reading(current, counts, is_through, abandoned_since)

    return backoff.until_reached(read)


@contextmanager
def _interruptible(producer: Backfill, display: "Display") -> Iterator[None]:
    """Stop the run on Ctrl-C and SIGTERM, with a note that says how to continue it."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(ExitCode.STOPPED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        producer.stop()
        with best_effort():
            display.summarize_stopped()
        with best_effort():
            display.note(f"stopped: the same command goes on with the run {producer.name}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class Display:
    """Shows a run as a progress bar on a terminal or as JSON lines, and sums it up at its end."""

    def __init__(self, redis: Any, progress: Progress, as_json: bool, is_rehearsal: bool) -> None:
        """`redis` has the outcomes of the run; those of a rehearsal are not read."""
        self._redis = redis
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._as_json = as_json
        self._is_rehearsal = is_rehearsal
        self._started = time.monotonic()
        self._first: Run | None = None
        self._before: Run | None = None
        self._last: Run | None = None
        self._counts: Mapping[str, int] = {}
        self._is_through = False
        self._counted_at = 0.0

    @classmethod
    @contextmanager
    def opened(cls, redis: Any, as_json: bool, is_rehearsal: bool = False) -> Iterator[Self]:
        console = Console(stderr=True, highlight=False)
        columns = (
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        is_hidden = quiet() or not console.is_terminal
        with Progress(
            *columns, console=console, disable=is_hidden, redirect_stdout=False
        ) as progress:
            yield cls(redis, progress, as_json, is_rehearsal)

    def note(self, line: str) -> None:
        """Print a note on standard error, above the progress bar."""
        self._progress.console.print(f"veil: {line}", markup=False, soft_wrap=True)

    def begin(self, current: Run) -> None:
        """Show a run to which this command adds messages: the summary has their number."""
        self._before = self._before or current
        self.show(current)

    def show(
        self, current: Run, counts: Mapping[str, int] | None = None, is_through: bool = False
    ) -> None:
        """Show a run. Its outcomes, if `counts` are not given, are read every POLL_SECONDS."""
        self._first = self._first or current
        if counts is not None:
            self._counts = counts
        self._is_through = is_through
        if self._as_json and (self._last is None or current.listed != self._last.listed):
            page = self._progress_of(current)
            self._print({"event": "page", **page, "cursor": current.cursor})
        self._last = current
        if counts is None and time.monotonic() - self._counted_at > POLL_SECONDS:
            self._count()
        self._draw(current)

    def summarize_so_far(self) -> None:
        """Print the outcomes so far, unless nothing was shown yet."""
        if self._last is not None:
            self.summarize()

    def summarize_stopped(self) -> None:
        """Print the outcomes of a run that this process has stopped.

        The last page may be on the queue and not yet shown, so the run is read again.
        """
        if self._last is not None:
            with suppress(QueueUnavailable), connected():
                self._last = runs.read(self._redis, self._last.name) or self._last
        if self._last is not None and self._last.state == "running":
            self._last = replace(self._last, state="stopped")
        self.summarize_so_far()

    def summarize(self) -> int:
        """Print the outcomes of the run so far, and return how many of its pictures were lost.

        These are the dead ones and, if no message of the run is left, those that were not counted.
        """
        current = self._last
        assert current is not None
        self._count()
        died = self._counts.get("dead", 0)
        is_uncounted = self._shown_state(current) == "uncounted"
        lost = died + (current.enqueued - self._ended if is_uncounted else 0)
        if self._as_json:
            self._print_summary(current)
            return lost
        if died:
            self._name_dead(current)
        if quiet():
            return lost
        listed = (
            f"{current.listed:,} listed, {current.skipped:,} done already, "
            f"{current.ignored:,} not selected"
        )
        if self._is_rehearsal:
            self.note(f"{listed}, {self._rehearsed(current)}")
            return lost
        # A cancelled run has the bytes of its removed messages too.
        size = f" ({decimal(current.source_bytes)})" if current.enqueued else ""
        share = ""
        if self._before is not None and self._before.enqueued:
            share = f", {self._newly_enqueued(current):,} of them by this command"
        endings = f"; {Endings(self._counts)}" if current.enqueued else ""
        self.note(f"{current.name}: {listed}, {current.enqueued:,}{size} enqueued{share}{endings}")
        return lost

    def require_selected(self) -> None:
        """Raise NothingFound if the run selects no source of the whole listing by its suffix.

        A time may select none: a regular run finds nothing new. It is only told then.
        """
        current = self._last
        assert current is not None
        if current.state != "finished" or current.listed != current.ignored:
            return
        fault = f"no object below {current.source} is selected, of {current.listed:,}"
        if not Selection.has_times(current.selection):
            raise NothingFound(f"{fault}: correct --suffix, or the suffixes of the route")
        self.note(f"{fault}, by --since, --until and the suffixes")

    def _rehearsed(self, current: Run) -> str:
        """Return what the command would enqueue, and to which run it would add that."""
        assert self._before is not None
        size = decimal(current.source_bytes - self._before.source_bytes)
        would = f"{self._newly_enqueued(current):,} ({size}) would be enqueued"
        if not self._before.enqueued:
            return f"{would}; the run would be {current.name}"
        return f"{would}; the run {current.name} has enqueued {self._before.enqueued:,} before"

    def _newly_enqueued(self, current: Run) -> int:
        """Return the number of messages that this command has added to the run."""
        if self._before is None:
            return 0
        # It is negative if Redis has lost the run meanwhile, and it began anew.
        return max(0, current.enqueued - self._before.enqueued)

    @property
    def _ended(self) -> int:
        return sum(self._counts.values())

    def _shown_state(self, current: Run) -> str:
        return runs.shown_state(current, self._ended, self._is_through)

    def _count(self) -> None:
        if self._is_rehearsal or self._last is None:
            return
        with suppress(QueueUnavailable), connected():
            self._counts = outcomes.of_run(self._redis, self._last.name)
        self._counted_at = time.monotonic()

    def _name_dead(self, current: Run) -> None:
        """Print the newest dead letters of the run."""
        letters: list[DeadLetter] = []
        with suppress(QueueUnavailable), connected():
            letters = dead_letters.of_run(self._redis, current.name)
        for letter in letters:
            waiting.print_dead(letter)
        if (others := self._counts["dead"] - len(letters)) > 0:
            self.note(f"{others:,} more died: veil dead list")

    def _draw(self, current: Run) -> None:
        assert self._first is not None
        counts = Endings(self._counts).counts
        parts = [
            f"{current.listed:,} listed",
            f"{current.skipped:,} done",
            f"{current.enqueued:,} enqueued",
            *(f"{counts[outcome]:,} {outcome}" for outcome in ("anonymized", "held", "dead")),
        ]
        if current.state == "running":
            seconds = max(time.monotonic() - self._started, 0.001)
            parts.append(f"{(current.enqueued - self._first.enqueued) / seconds:,.0f}/s")
            page_age = time.time() - current.updated
            if page_age > STALE_SECONDS:
                parts.append(f"no page for {page_age:,.0f} s")
        total = current.enqueued if current.state == "finished" else None
        self._progress.update(
            self._task, description=" · ".join(parts), total=total, completed=self._ended
        )

    def _print_summary(self, current: Run) -> None:
        self._print(
            {
                "event": "summary",
                **self._progress_of(current),
                "source": current.source,
                "destination": current.destination,
                "recipe": current.recipe or None,
                "newly_enqueued": self._newly_enqueued(current),
                "dry_run": self._is_rehearsal,
                "outcomes": {name: self._counts.get(name, 0) for name in OUTCOMES},
                "seconds": round(time.monotonic() - self._started, 1),
            }
        )

    def _print(self, values: Mapping[str, Any]) -> None:
        print(json.dumps(values), flush=True)

    def _progress_of(self, current: Run) -> dict[str, Any]:
        """Return the fields that every JSON object about a run has."""
        return {
            "run": current.name,
            "state": self._shown_state(current),
            "listed": current.listed,
            "ignored": current.ignored,
            "skipped": current.skipped,
            "enqueued": current.enqueued,
            "source_bytes": current.source_bytes,
        }
