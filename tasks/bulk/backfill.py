"""A backfill: publish messages for all sources below a prefix that are not done yet, page by page.

The messages of a page and the checkpoint after it are one Redis transaction. It fails if Redis no
longer has the checkpoint before the page, so only one process can go on with a run. Whatever is
killed, a run publishes every key once. If Redis loses its last second, it loses the messages and
the checkpoint together.
"""

import hashlib
import json
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from redis.exceptions import WatchError

from ..backoff import ReportingBackoff
from ..errors import AccessDenied, QueueUnavailable, RunTakenOver, SettingsInvalid, Transient
from ..messages import BACKFILL
from ..publishing import Backpressure, Publisher, Wanted
from ..records import dead_letters, outcomes
from ..redis.errors import connected
from ..storage.s3 import ObjectStore, StoredObject
from . import runs
from .comparison import Compared, compare, settle
from .places import Places
from .runs import Page, Run

if TYPE_CHECKING:
    from ..app import App

PAGE = 1000  # the most keys of a page, and the most messages of a transaction
LISTING_SECONDS = 300.0  # the longest pause in a listing; after it, list again from the checkpoint
POLL_SECONDS = 0.2  # from one check of a full queue to the next


@dataclass(frozen=True)
class Selection:
    """A choice of sources by their time and suffix.

    It takes sources that were modified at or after `since` and before `until`, whose keys end with
    one of `suffixes` in upper or lower case, and at most `limit` messages. `inventory` names the
    inventories that are read in place of listings.
    """

    since: datetime | None = None
    until: datetime | None = None
    suffixes: tuple[str, ...] = ()
    limit: int | None = None
    inventory: str | None = None

    def takes(self, source: StoredObject) -> bool:
        if self.suffixes and not source.uri.key.lower().endswith(
            tuple(suffix.lower() for suffix in self.suffixes)
        ):
            return False
        if self.since is None and self.until is None:
            return True
        assert source.modified is not None, "listings have the times of all objects"
        if self.since is not None and source.modified < self.since:
            return False
        return self.until is None or source.modified < self.until

    @property
    def max_messages(self) -> float:
        """The limit, or infinity."""
        return math.inf if self.limit is None else self.limit

    def to_json(self) -> str:
        """Return the selection as JSON. The names of runs depend on its bytes."""
        fields: dict[str, Any] = {
            "since": self.since and self.since.isoformat(),
            "until": self.until and self.until.isoformat(),
            "suffixes": self.suffixes,
            "limit": self.limit,
        }
        if self.inventory is not None:
            fields["inventory"] = self.inventory
        return json.dumps(fields)

    @staticmethod
    def has_times(selection: str) -> bool:
        """Return whether `selection`, the JSON of one, chooses sources by their time."""
        fields = json.loads(selection)
        return bool(fields["since"] or fields["until"])


def run_name(places: Places, selection: Selection) -> str:
    """Return the name of a run, the same for the same source, destination and selection.

    Sources have another order with hashed names, and so another run.
    """
    parts = [str(places.source), str(places.output), selection.to_json()]
    if key := places.route.names.hash_key:
        parts.append(key.id)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    source = f"{places.source.bucket}-{places.source.prefix}".lower()
    slug = re.sub(r"[^a-z0-9]+", "-", source)[:48].strip("-")
    return f"{slug}-{digest}"


class SourcePages:
    """The sources of `places` after the key `after`, page by page."""

    def __init__(
        self,
        store: ObjectStore,
        places: Places,
        selection: Selection,
        recipe: str | None,
        after: str = "",
    ) -> None:
        self._store = store
        self._places = places
        self._selection = selection
        self._recipe = recipe
        self._may_read = True
        self._sources = _with_source(compare(store, places, recipe, after, with_orphans=False))
        self._next = next(self._sources, None)

    @property
    def at_end(self) -> bool:
        return self._next is None

    def page(self, max_wanted: int) -> Page:
        """Return the next page: at most PAGE keys, of which at most `max_wanted` are published.

        A page may end after any key.
        """
        page = Page()
        while self._next is not None and page.listed < PAGE and len(page.wanted) < max_wanted:
            self._add(page, *self._next)
            self._next = next(self._sources, None)
        return page

    def _add(self, page: Page, compared: Compared, source: StoredObject) -> None:
        page.cursor = self._places.source.relative(source.uri)
        page.listed += 1
        if not self._selection.takes(source):
            page.ignored += 1
        elif compared.is_current or self._was_released(compared):
            page.skipped += 1
        else:
            self._check_keys(compared)
            page.source_bytes += source.size
            page.wanted.append(wanted(self._places, source))

    def _was_released(self, compared: Compared) -> bool:
        """Return whether a picture is current that was held before.

        A user who may only list does not know: then it is enqueued, and a worker skips it.
        """
        if not (compared.may_be_released and self._may_read):
            return False
        try:
            settled = settle(self._store, self._places, self._recipe, compared)
        except AccessDenied:
            self._may_read = False
            return False
        return settled is not None and settled.state == "current"

    def _check_keys(self, compared: Compared) -> None:
        """Raise SettingsInvalid if only a receipt key can tell whether a picture is done.

        It only does so without receipt keys. With other keys, the workers raise it.
        """
        marks = self._places.marks
        if marks.are_keyed:
            return
        if key := marks.missing_key(*(name.etag for name in compared.receipts)):
            raise SettingsInvalid(
                f"{self._places.destination(compared.key)} has a receipt by the key {key}: "
                "set VEIL_RECEIPT_KEY"
            )


def _with_source(pictures: Iterator[Compared]) -> Iterator[tuple[Compared, StoredObject]]:
    """Yield the pictures that have a source, with it. A backfill can't repair orphans."""
    for compared in pictures:
        if compared.source is not None:
            yield compared, compared.source


def wanted(places: Places, source: StoredObject) -> Wanted:
    """Return the picture to publish so that the output of `source` goes where `places` have it."""
    return Wanted(source.uri, places.asked_destination(places.key(source.uri)), source.etag or None)


class _CheckpointChanged(Exception):
    """Redis has another checkpoint than this process.

    It lost its last second, or it has taken a page whose answer was lost.
    """


class Backfill:
    """The work of one process on a run."""

    def __init__(
        self,
        app: "App",
        store: ObjectStore,
        places: Places,
        selection: Selection,
        recipe: str | None,
        *,
        low_water: int,
        high_water: int,
        max_rate: float = math.inf,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare the work. Nothing is read or written before `begin`.

        Outputs of `recipe`, or of any if it is None, are done. The queue is kept between the water
        marks, in messages. `max_rate` is in messages a second. `tell` gets lines for the user.
        """
        self.name = run_name(places, selection)
        self._redis = app.backend.client
        self._publisher = Publisher(app)
        self._backpressure = Backpressure(self._redis, BACKFILL, high_water, low_water)
        self._store = store
        self._places = places
        self._selection = selection
        self._recipe = recipe or ""
        self._max_rate = max_rate
        self._tell = tell
        self._clock, self._sleep = clock, sleep
        self._owner = uuid.uuid4().hex
        self._next_at = 0.0  # the clock's time before which the rate allows no message

    def begin(self, restart: bool = False) -> Run:
        """Take over the run from any other process, and return it.

        An interrupted run goes on at its checkpoint. A cancelled run begins again. A finished run
        does so if all of its messages have ended, and else it stays finished. With `restart` it
        begins again anyway.
        """
        with connected(), self._redis.pipeline() as pipe:
            while True:
                pipe.watch(runs.KEY.format(self.name))
                stored = None if restart else runs.read(pipe, self.name)
                run = self._chosen(stored)
                pipe.multi()
                if run.listed == 0:
                    pipe.delete(outcomes.RUN.format(self.name))
                    pipe.delete(dead_letters.OF_RUN.format(self.name))
                runs.write(pipe, run)
                runs.show_life(pipe, self.name)
                try:
                    pipe.execute()
                    return run
                except WatchError:
                    continue

    def rehearse(self, restart: bool = False) -> Iterator[Run]:
        """Yield what `begin` and `pages` would, without publishing or writing anything.

        Nothing is retried: raises the errors of the store, and QueueUnavailable.
        """
        with connected():
            run = self._chosen(None if restart else runs.read(self._redis, self.name))
        yield run
        if run.state != "finished":
            yield from rehearse(self._store, self._places, self._selection, run)

    def pages(self, run: Run) -> Iterator[Run]:
        """Publish the sources that are not done. Yield the run after each page.

        It also yields the run from time to time while the queue is full, and waits for servers that
        can't be reached. Raises RunTakenOver when another process has begun with this run, or
        cancelled it.
        """
        backoff = ReportingBackoff(self._tell)
        known: Run | None = run
        with self._signs_of_life():
            while known is None or known.state != "finished":
                try:
                    begun = known or self._reread()
                    for known in self._go_on(begun):
                        backoff.succeeded()
                        yield known
                except _CheckpointChanged:
                    known = None
                except Transient as error:
                    self._sleep(backoff.failed(error))
                    known = None

    def stop(self) -> None:
        """Record that the run is stopped, unless another process has taken it over."""
        # Without Redis the run stays "running", and goes on at its checkpoint all the same.
        with suppress(QueueUnavailable), connected(), self._redis.pipeline() as pipe:
            pipe.watch(runs.KEY.format(self.name))
            stored = runs.read(pipe, self.name)
            pipe.multi()
            if stored is not None and stored.owner == self._owner and stored.state == "running":
                runs.write(pipe, replace(stored, state="stopped", updated=time.time()))
            pipe.execute()

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Show during the block that this process is alive, also while it waits or lists."""
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.wait(runs.BEAT_SECONDS):
                with suppress(QueueUnavailable), connected():
                    runs.show_life(self._redis, self.name)

        threading.Thread(target=beat, name="signs-of-life", daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def _chosen(self, stored: Run | None) -> Run:
        """Return the run to go on with: the stored one as it applies, or a new one."""
        if stored is not None and stored.state == "finished":
            if not runs.is_through(self._redis, stored):
                self._tell(
                    f"messages of the last pass of {self.name} are still waiting or in work; "
                    "--restart lists everything again"
                )
                return replace(stored, owner=self._owner)
        elif stored is not None and stored.state != "cancelled":
            if self._recipe in ("", stored.recipe) or not stored.recipe:
                return replace(stored, owner=self._owner, state="running")
            self._tell(f"the recipe was {stored.recipe} and is {self._recipe}: the run begins anew")
        return new_run(self._places, self._selection, self._recipe, self._owner)

    def _reread(self) -> Run:
        """Return the run as Redis has it now."""
        with connected():
            stored = runs.read(self._redis, self.name)
        if stored is None:
            return self.begin()  # Redis has lost everything, with the messages.
        if stored.state == "cancelled":
            raise RunTakenOver(f"the run {self.name} was cancelled")
        if stored.owner != self._owner:
            raise RunTakenOver(f"another process goes on with the run {self.name}")
        return stored

    def _go_on(self, run: Run) -> Iterator[Run]:
        """Publish pages from the checkpoint of `run` on.

        It ends early after a pause that was too long for the listing.
        """
        sources = SourcePages(
            self._store, self._places, self._selection, run.recipe or None, run.cursor
        )
        limit = self._selection.max_messages
        while not sources.at_end and run.enqueued < limit:
            paused_at = self._clock()
            free = yield from self._wait_for_room(run)
            if self._clock() - paused_at > LISTING_SECONDS:
                return
            page = sources.page(int(min(free, limit - run.enqueued)))
            after = run.after(page)
            self._commit(run, after, page.wanted)
            run = after
            yield run
        finished = replace(run, state="finished", updated=time.time())
        self._commit(run, finished)
        yield finished

    def _wait_for_room(self, run: Run) -> Generator[Run, None, int]:
        """Wait for the rate and for room on the queue; return how many messages may be published.

        Yields `run` before each pause.
        """
        max_messages = math.ceil(min(self._max_rate, PAGE))
        while True:
            free = self._backpressure.free()
            pause = self._next_at - self._clock()
            if free and pause <= 0:
                return self._backpressure.claim(max_messages)
            yield run
            self._sleep(min(POLL_SECONDS, pause) if free else POLL_SECONDS)

    def _commit(self, before: Run, after: Run, pictures: Sequence[Wanted] = ()) -> None:
        """Publish `pictures` and write the checkpoint after them, in one transaction.

        Raises _CheckpointChanged if Redis no longer has the checkpoint before them.
        """

        def check(pipe: Any) -> None:
            pipe.watch(runs.KEY.format(self.name))
            if runs.read(pipe, self.name) != before:
                raise _CheckpointChanged

        self._publisher.publish(
            pictures, BACKFILL, self.name, lambda pipe: runs.write(pipe, after), watch=check
        )
        self._next_at = max(self._next_at, self._clock()) + len(pictures) / self._max_rate


def rehearse(store: ObjectStore, places: Places, selection: Selection, run: Run) -> Iterator[Run]:
    """Yield `run` after each further page, without publishing or writing anything."""
    sources = SourcePages(store, places, selection, run.recipe or None, run.cursor)
    limit = selection.max_messages
    while not sources.at_end and run.enqueued < limit:
        run = run.after(sources.page(int(min(PAGE, limit - run.enqueued))))
        yield run
    yield replace(run, state="finished")


def new_run(places: Places, selection: Selection, recipe: str, owner: str = "") -> Run:
    """Return a run that has listed nothing and starts now."""
    now = time.time()
    return Run(
        name=run_name(places, selection),
        source=str(places.source),
        destination=str(places.output),
        selection=selection.to_json(),
        recipe=recipe,
        owner=owner,
        started=now,
        updated=now,
    )
