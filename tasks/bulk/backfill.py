"""A backfill: everything below a place that is not done yet, onto the queue, a page at a time.

The messages of a page and the checkpoint after it are one transaction in Redis, which is made only
if Redis still has the checkpoint before it, and by one process. So whatever is killed, wherever, a
run puts no key on the queue twice and leaves none out; and where Redis itself loses its last
second, it loses messages and checkpoint together.
"""

import hashlib
import json
import math
import re
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, Self

from celery import Celery
from redis.exceptions import WatchError

from tasks.backoff import Backoff
from tasks.bulk.comparison import Compared, compare
from tasks.bulk.places import Places
from tasks.errors import QueueUnavailable, RunTakenOver, SettingsInvalid, Transient, VeilError
from tasks.messages import BACKFILL
from tasks.publishing import Publisher, Wanted
from tasks.records import outcomes, queues
from tasks.redis_errors import connected
from tasks.storage.s3 import ObjectStore, StoredObject

KEY = "veil:run:{}"
SECONDS_KEPT = 90 * 86_400
PAGE = 1000  # keys listed, and messages of a transaction, at most
LISTING_SECONDS = 300.0  # a listing that rested longer begins anew, at the checkpoint
POLL_SECONDS = 0.2

State = Literal["running", "finished", "stopped"]


@dataclass(frozen=True)
class Selection:
    """Which sources are wanted: modified from `since` on and before `until`, with one of
    `suffixes`, and how many.
    """

    since: datetime | None = None
    until: datetime | None = None
    suffixes: tuple[str, ...] = ()
    limit: int | None = None

    def takes(self, source: StoredObject) -> bool:
        if self.suffixes and not source.uri.key.lower().endswith(
            tuple(suffix.lower() for suffix in self.suffixes)
        ):
            return False
        assert source.modified is not None  # of an object in a listing
        return (self.since is None or source.modified >= self.since) and (
            self.until is None or source.modified < self.until
        )

    def to_json(self) -> str:
        times = {
            name: when and when.isoformat()
            for name, when in (("since", self.since), ("until", self.until))
        }
        return json.dumps({**times, "suffixes": self.suffixes, "limit": self.limit})


def run_name(places: Places, selection: Selection) -> str:
    """The name of the run: the same for the same source, destination and selection."""
    asked = "\n".join((str(places.source), str(places.output), selection.to_json()))
    slug = re.sub(r"[^a-z0-9]+", "-", f"{places.source.bucket}-{places.source.prefix}".lower())[
        :48
    ].strip("-")
    return f"{slug}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as Redis has it: what was asked, and the checkpoint.

    `cursor` is the last key that was listed, below the source. Of the `listed`, some were `ignored`
    (not selected) and some `skipped` (done already); `enqueued` are the messages, of sources with
    so many `source_bytes`. Times are seconds since the epoch; `updated` of a run that ended is its
    end.
    """

    name: str
    source: str
    destination: str
    selection: str
    recipe: str
    owner: str
    state: State = "running"
    cursor: str = ""
    listed: int = 0
    ignored: int = 0
    skipped: int = 0
    enqueued: int = 0
    source_bytes: int = 0
    started: float = 0.0
    updated: float = 0.0

    @classmethod
    def of(cls, found: Mapping[bytes, bytes]) -> Self | None:
        """The run in a hash of Redis; None if that is empty."""
        values = {name.decode(): value.decode() for name, value in found.items()}
        kinds: dict[Any, Callable[[str], Any]] = {int: int, float: float}
        try:
            return cls(
                **{one.name: kinds.get(one.type, str)(values[one.name]) for one in fields(cls)}
            )
        except KeyError:
            return None

    def after(self, page: "Page") -> Self:
        return replace(
            self,
            cursor=page.cursor,
            listed=self.listed + page.listed,
            ignored=self.ignored + page.ignored,
            skipped=self.skipped + page.skipped,
            enqueued=self.enqueued + len(page.wanted),
            source_bytes=self.source_bytes + page.source_bytes,
            updated=time.time(),
        )


@dataclass
class Page:
    """A stretch of the listing."""

    cursor: str = ""
    listed: int = 0
    ignored: int = 0
    skipped: int = 0
    source_bytes: int = 0
    wanted: list[Wanted] = field(default_factory=list)


class Reading:
    """The listing of `places`, from the key `after` on, page by page."""

    def __init__(
        self,
        store: ObjectStore,
        places: Places,
        selection: Selection,
        recipe: str | None,
        after: str = "",
    ) -> None:
        self._places = places
        self._selection = selection
        # What is in the way of the outputs only is nothing that a backfill could do.
        self._compared = (
            (each, each.source) for each in compare(store, places, recipe, after) if each.source
        )
        self._ahead = next(self._compared, None)

    @property
    def at_end(self) -> bool:
        return self._ahead is None

    def page(self, most: int) -> Page:
        """The next keys, until `most` of them are wanted or PAGE are listed. It may end after any
        key.
        """
        page = Page()
        while self._ahead is not None and page.listed < PAGE and len(page.wanted) < most:
            self._add(page, *self._ahead)
            self._ahead = next(self._compared, None)
        return page

    def _add(self, page: Page, compared: Compared, source: StoredObject) -> None:
        page.cursor = compared.key
        page.listed += 1
        if not self._selection.takes(source):
            page.ignored += 1
        elif compared.is_current:
            page.skipped += 1
        else:
            self._check_keys(compared)
            page.source_bytes += source.size
            page.wanted.append(wanted(self._places, source))

    def _check_keys(self, compared: Compared) -> None:
        """Raise SettingsInvalid where a picture may be done, and only a key could tell.

        With a key that is another one, the workers tell.
        """
        marks = self._places.marks
        if not marks.are_keyed and (
            key := marks.missing_key(*(made.etag for made in compared.made))
        ):
            raise SettingsInvalid(
                f"{self._places.destination(compared.key)} has a receipt by the key {key}: set VEIL_RECEIPT_KEY"
            )


def wanted(places: Places, source: StoredObject) -> Wanted:
    """What to ask for so that the output of `source` is where `places` have it."""
    return Wanted(source.uri, places.asked_destination(places.key(source.uri)), source.etag)


class _Moved(Exception):
    """Redis has another checkpoint than this process: it lost its last second, or took what was
    taken for lost.
    """


class ToldBackoff(Backoff):
    """Told to whoever looks on, not to the log."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__("s3 or redis")
        self._tell = tell

    def report_outage(self, error: VeilError) -> None:
        self._tell(f"{type(error).__name__}: {error}; waiting")

    def report_recovery(self, seconds: float) -> None:
        self._tell(f"goes on after {seconds:.1f} s")


class Backfill:
    """One process's part in a run."""

    def __init__(
        self,
        app: Celery,
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
        """`recipe` is what counts as current, None for any; the queue is kept between the water
        marks, in messages.

        `max_rate` is in messages a second. `tell` gets a line where the user should know something.
        """
        self.name = run_name(places, selection)
        self._redis = app.backend.client
        self._publisher = Publisher(app)
        self._store = store
        self._places = places
        self._selection = selection
        self._recipe = recipe or ""
        self._low_water, self._high_water, self._max_rate = low_water, high_water, max_rate
        self._tell = tell
        self._clock, self._sleep = clock, sleep
        self._owner = uuid.uuid4().hex
        self._next_at = 0.0
        self._fills = True  # the queue, up to high water; not, while it runs down to low water

    def begin(self, restart: bool = False) -> Run:
        """Take the run over from whoever had it: where it was, or, if it is through, for another
        pass.

        What is finished, but waits or is in hand, stays finished. With `restart` nothing is
        remembered.
        """
        with connected(), self._redis.pipeline() as pipe:
            while True:
                pipe.watch(KEY.format(self.name))
                known = None if restart else read(pipe, self.name)
                run = self._chosen(known)
                pipe.multi()
                if run.listed == 0:
                    pipe.delete(outcomes.RUN.format(self.name))
                _write(pipe, run)
                try:
                    pipe.execute()
                    return run
                except WatchError:
                    continue

    def pages(self, run: Run) -> Iterator[Run]:
        """Put what is not done onto the queue; the run after each page, and now and then while it
        waits for room.

        Waits for servers that are away. Raises RunTakenOver when another process began with this
        run.
        """
        backoff = ToldBackoff(self._tell)
        known: Run | None = run
        while known is None or known.state != "finished":
            try:
                begun = known or self._reread()
                for known in self._go_on(begun):
                    backoff.succeeded()
                    yield known
            except _Moved:
                known = None
            except Transient as error:
                self._sleep(backoff.failed(error))
                known = None

    def stop(self) -> None:
        """Note that the run goes no further for now, unless somebody else has it."""
        try:
            with connected(), self._redis.pipeline() as pipe:
                pipe.watch(KEY.format(self.name))
                known = read(pipe, self.name)
                pipe.multi()
                if known is not None and known.owner == self._owner and known.state == "running":
                    _write(pipe, replace(known, state="stopped", updated=time.time()))
                pipe.execute()
        except QueueUnavailable:
            pass  # a note, no more

    def _chosen(self, known: Run | None) -> Run:
        """What to do about the run that Redis knows."""
        if known is not None and known.state == "finished":
            if not is_through(self._redis, known):
                self._tell(
                    f"the last pass of {self.name} is still being worked off; --restart lists everything again"
                )
                return replace(known, owner=self._owner)
        elif known is not None:
            if self._recipe in ("", known.recipe) or not known.recipe:
                return replace(known, owner=self._owner, state="running")
            self._tell(f"the recipe was {known.recipe} and is {self._recipe}: begins anew")
        return new_run(self._places, self._selection, self._recipe, self._owner)

    def _reread(self) -> Run:
        """The run as Redis has it now."""
        with connected():
            known = read(self._redis, self.name)
        if known is None:
            return self.begin()  # Redis has lost everything, the messages too
        if known.owner != self._owner:
            raise RunTakenOver(f"another process goes on with the run {self.name}")
        return known

    def _go_on(self, run: Run) -> Iterator[Run]:
        reading = Reading(
            self._store, self._places, self._selection, run.recipe or None, run.cursor
        )
        limit = math.inf if self._selection.limit is None else self._selection.limit
        while not reading.at_end and run.enqueued < limit:
            asked = self._clock()
            room = yield from self._room(run)
            if self._clock() - asked > LISTING_SECONDS:
                return
            page = reading.page(int(min(room, limit - run.enqueued)))
            after = run.after(page)
            self._keep(run, after, page.wanted)
            run = after
            yield run
        finished = replace(run, state="finished", updated=time.time())
        self._keep(run, finished)
        yield finished

    def _room(self, run: Run) -> Generator[Run, None, int]:
        """How many messages may be put on the queue now. Waits for their time, and, once it is
        full, for low water.
        """
        most = int(min(PAGE, math.ceil(min(self._max_rate, PAGE))))
        while True:
            with connected():
                depth = queues.depth(self._redis, BACKFILL)
            self._fills = depth <= self._low_water or (self._fills and depth < self._high_water)
            pause = self._next_at - self._clock()
            if self._fills and pause <= 0:
                room = self._high_water - depth
                self._fills = room > most
                return min(most, room)
            yield run
            self._sleep(min(POLL_SECONDS, pause) if self._fills else POLL_SECONDS)

    def _keep(self, before: Run, after: Run, pictures: Sequence[Wanted] = ()) -> None:
        """Put `pictures` on the queue and keep the checkpoint after them, if Redis still has the
        one before them.
        """

        def check(pipe: Any) -> None:
            pipe.watch(KEY.format(self.name))
            if read(pipe, self.name) != before:
                raise _Moved

        self._publisher.publish(
            pictures, BACKFILL, self.name, lambda pipe: _write(pipe, after), first=check
        )
        self._next_at = max(self._next_at, self._clock()) + len(pictures) / self._max_rate


def read(redis: Any, name: str) -> Run | None:
    """The run `name`; None if Redis has none."""
    return Run.of(redis.hgetall(KEY.format(name)))


def names(redis: Any) -> list[str]:
    """The runs that Redis remembers."""
    prefix = KEY.format("")
    keys = (
        key.decode().removeprefix(prefix) for key in redis.scan_iter(KEY.format("*"), count=500)
    )
    return sorted(name for name in keys if outcomes.RUN_NAME.fullmatch(name))


def is_through(redis: Any, run: Run) -> bool:
    """Whether no message of a run that ended waits or is in hand, as far as Redis can tell.

    It can't where a message is just being taken, nor where one went to the end of the queue for
    another try.
    """
    oldest = queues.oldest(redis, BACKFILL)
    return (oldest is None or oldest > run.updated) and not queues.in_hand(redis, run.name)


def rehearse(
    store: ObjectStore, places: Places, selection: Selection, recipe: str | None
) -> Iterator[Run]:
    """What a new run would do, page by page, without doing it."""
    run = new_run(places, selection, recipe or "")
    reading = Reading(store, places, selection, recipe)
    limit = math.inf if selection.limit is None else selection.limit
    while not reading.at_end and run.enqueued < limit:
        run = run.after(reading.page(int(min(PAGE, limit - run.enqueued))))
        yield run
    yield replace(run, state="finished")


def new_run(places: Places, selection: Selection, recipe: str, owner: str = "") -> Run:
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


def _write(redis: Any, run: Run) -> None:
    key = KEY.format(run.name)
    redis.hset(key, mapping=asdict(run))
    redis.expire(key, SECONDS_KEPT)
