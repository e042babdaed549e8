"""Find uploads by listing: take the objects that are new since the previous listing.

The progress of listings is stored in Redis together with the messages, so an interrupted listing
continues where it stopped.

S3 dates a multipart upload by its start, and the clocks of the store's machines differ. Each
listing therefore starts an overlap before the newest known object, and Redis remembers the objects
that were taken within that overlap.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import structlog
from pydantic import BeforeValidator, InstanceOf, TypeAdapter

from ..addresses import PrefixUri
from ..backoff import Backoff
from ..errors import Permanent, QueueUnavailable, VeilError
from ..messages import BACKFILL, UPLOADS
from ..publishing import Wanted, wait_for_room
from ..redis.errors import connected
from ..storage.s3 import ObjectStore, StoredObject
from ..telemetry import metrics
from .events import Event, Parsed
from .stopping import Stop
from .trigger import Trigger

PAGE_SIZE = 1000  # objects, as many as S3 lists at once; the new ones are published together
MAX_QUEUED_MESSAGES = 10_000  # a listing pauses while as many messages wait on the queue
PROGRESS_KEY = "veil:poll:{}"  # a hash with the fields of Progress, for each prefix
# A sorted set for each prefix: the task ids of the objects that were taken within the overlap, with
# the times at which these objects were modified.
TAKEN_KEY = "veil:poll:{}:seen"

log = structlog.get_logger("veil")

StoredTime = Annotated[float | None, BeforeValidator(lambda text: None if text == "" else text)]


@dataclass
class Progress:
    """The progress of the listings of one prefix. Times are in seconds since the epoch.

    All objects older than `newest`, less the overlap, have been taken; `newest` is None until the
    first listing has ended. `begun` is the start of the current listing, and None between listings.
    The current listing has reached the key `after`, and `so_far` is the time of the newest object
    in it. No listing takes objects that were modified before `since`.
    """

    newest: StoredTime = None
    begun: StoredTime = None
    so_far: float = 0.0
    after: InstanceOf[str] = ""  # pydantic's own `str` refuses keys that are not valid Unicode
    since: StoredTime = None

    @classmethod
    def read(cls, redis: Any, prefix: PrefixUri) -> "Progress":
        """Return the progress that Redis has for `prefix`. Raises QueueUnavailable."""
        with connected():
            stored = redis.hgetall(PROGRESS_KEY.format(prefix))
        fields = {}
        for name, value in stored.items():
            fields[name.decode()] = value.decode(errors="surrogatepass")
        return STORED_PROGRESS.validate_python(fields)

    def write(self, pipe: Any, prefix: PrefixUri) -> None:
        """Add the storing of this progress to the pipeline `pipe`."""
        fields = {}
        for name, value in vars(self).items():
            if name == "since" and value is None:
                continue  # Earlier versions have no such field.
            text = "" if value is None else str(value)
            # A listed key is stored as it is, even if it is not valid Unicode.
            fields[name] = text.encode(errors="surrogatepass")
        pipe.hset(PROGRESS_KEY.format(prefix), mapping=fields)

    def newest_if_ended(self) -> float:
        """Return the value of `newest` if the current listing ended now.

        It is at most the start of the listing, because the listing may have missed objects that
        were uploaded while it ran.
        """
        return max(self.newest or 0.0, min(self.so_far, self.begun or 0.0))


STORED_PROGRESS = TypeAdapter(Progress)


class PollingSource:
    """Lists the prefixes of the trigger's filter in turn, again and again."""

    def __init__(
        self,
        store: ObjectStore,
        redis: Any,
        trigger: Trigger,
        interval: float,
        overlap: float,
        since: float | None = None,
    ) -> None:
        """Poll every `interval` seconds, measured from start to start, with `overlap` in seconds.

        `overlap` is how long before the newest known object each listing starts. A prefix that has
        not been listed before is listed without the objects that were modified before `since`, in
        seconds since the epoch.
        """
        self._store = store
        self._redis = redis
        self._trigger = trigger
        self._interval = interval
        self._overlap = overlap
        # Stores date objects in whole seconds.
        self._since = None if since is None else float(math.floor(since))
        self._redis_backoff = Backoff("redis")
        self._redis_pause_ends = 0.0
        self._backoffs = {
            prefix: Backoff("s3", place=str(prefix)) for prefix in trigger.filter.prefixes
        }
        self._errors: dict[PrefixUri, VeilError] = {}  # of prefixes whose last try has failed
        self._waiting: set[PrefixUri] = set()  # prefixes for whose objects there is no room
        self._has_listed = False
        metrics.set_source_up("poll", True)

    def run(self, stop: Stop) -> None:
        """Poll until `stop` is requested.

        All errors are retried, and a prefix that can't be listed keeps no other from it. But if
        none has been listed, and each of them fails with a Permanent error, such as ObjectNotFound
        for a missing bucket, one of these errors is raised.
        """
        due = dict.fromkeys(self._trigger.filter.prefixes, time.monotonic())
        while not stop.requested:
            prefix = min(due, key=due.__getitem__)
            pause = max(due[prefix], self._redis_pause_ends) - time.monotonic()
            if pause > 0 and stop.wait(pause):
                return
            others = [at for other, at in due.items() if other != prefix]
            # A first listing that has to wait for room may take days. Others go on meanwhile.
            due[prefix] = self._poll_or_pause(prefix, stop, min(others, default=math.inf))

    def _poll_or_pause(self, prefix: PrefixUri, stop: Stop, until: float) -> float:
        """Poll `prefix`, and return the time (time.monotonic()) at which it is due again."""
        begun = time.monotonic()
        try:
            has_ended = self.poll(prefix, stop, until)
        except VeilError as error:
            self._errors[prefix] = error
            metrics.set_source_up("poll", False)
            if self._is_unusable():
                raise
            if not isinstance(error, QueueUnavailable):
                return time.monotonic() + self._backoffs[prefix].failed(error)
            self._redis_pause_ends = time.monotonic() + self._redis_backoff.failed(error)
            return self._redis_pause_ends
        self._has_listed = True
        self._errors.pop(prefix, None)
        self._backoffs[prefix].succeeded()
        self._redis_backoff.succeeded()
        metrics.set_source_up("poll", not self._errors)
        return begun + self._interval if has_ended else time.monotonic()

    def _is_unusable(self) -> bool:
        """Return whether no prefix has been listed, and none can be before somebody acts."""
        if self._has_listed or len(self._errors) < len(self._backoffs):
            return False
        return all(isinstance(error, Permanent) for error in self._errors.values())

    def poll(self, prefix: PrefixUri, stop: Stop, until: float = math.inf) -> bool:
        """List `prefix` and put new objects on the queue; continue an interrupted listing.

        Objects found by the very first listing go to the queue of backfills, because they may have
        been uploaded long ago. That listing is interrupted at the time `until` (time.monotonic()).
        Returns whether the listing has ended.
        """
        progress = Progress.read(self._redis, prefix)
        is_first = progress.newest is None
        queue = BACKFILL if is_first else UPLOADS
        until = until if is_first else math.inf
        if progress.begun is None:
            progress.begun = time.time()
            if is_first and self._since is not None:
                # A restart, with a later time perhaps, must leave out nothing that came meanwhile.
                progress.since = self._since
                self._publish(prefix, [], queue, progress)
        while page := self._page(prefix, progress.after):
            new = self._new(prefix, page, progress)
            progress.so_far = max(progress.so_far, *map(_modified, page))
            progress.after = page[-1].uri.key
            if new:
                if not self._wait_for_capacity(prefix, queue, stop, until):
                    return False
                self._publish(prefix, new, queue, progress)
            if stop.requested:
                return False
            if len(page) < PAGE_SIZE:
                break
            # Progress is stored together with messages, so this is the place to interrupt.
            if new and time.monotonic() >= until:
                return False
        ended = Progress(newest=progress.newest_if_ended(), since=progress.since)
        self._publish(prefix, [], queue, ended)
        return True

    def _page(self, prefix: PrefixUri, after: str) -> list[StoredObject]:
        return list(islice(self._store.list(prefix.bucket, prefix.prefix, after), PAGE_SIZE))

    def _new(
        self, prefix: PrefixUri, page: Sequence[StoredObject], progress: Progress
    ) -> list[StoredObject]:
        """Return the objects of `page` that no listing has taken."""
        since = progress.since or 0.0
        page = [stored for stored in page if _modified(stored) >= since]
        if progress.newest is None:
            return list(page)
        floor = progress.newest - self._overlap
        recent = [stored for stored in page if _modified(stored) > floor]
        if not recent:
            return []
        ids = [_task_id(stored) for stored in recent]
        with connected():
            taken = self._redis.zmscore(TAKEN_KEY.format(prefix), ids)
        return [
            stored
            for stored, taken_time in zip(recent, taken, strict=True)
            if taken_time != _modified(stored)
        ]

    def _publish(
        self, prefix: PrefixUri, new: Sequence[StoredObject], queue: str, progress: Progress
    ) -> None:
        """Put the objects `new` on `queue`, and store `progress` in the same transaction."""
        events = [Event(stored.uri.bucket, stored.uri.key, stored.etag) for stored in new]
        pictures = self._trigger.choose(Parsed(written=events))
        newest = progress.newest
        if newest is None or not new:
            newest = progress.newest_if_ended()
        floor = newest - self._overlap
        taken = {}
        for stored in new:
            if _modified(stored) > floor:
                taken[_task_id(stored)] = _modified(stored)

        def store_progress(pipe: Any) -> None:
            progress.write(pipe, prefix)
            if taken:
                pipe.zadd(TAKEN_KEY.format(prefix), taken)
            pipe.zremrangebyscore(TAKEN_KEY.format(prefix), "-inf", floor)

        self._trigger.publish(pictures, queue, store_progress)

    def _wait_for_capacity(self, prefix: PrefixUri, queue: str, stop: Stop, until: float) -> bool:
        """Wait until `queue` is short enough for the objects of `prefix`.

        Returns False if `stop` is requested before, or it is the time `until`.
        """

        def report_full(waiting: int) -> None:
            if prefix not in self._waiting:
                log.info("queue is full", queue=queue, messages=waiting)
            self._waiting.add(prefix)

        def pause(seconds: float) -> bool:
            return stop.wait(seconds) or time.monotonic() >= until

        if stop.requested:
            return False
        has_room = wait_for_room(self._redis, queue, MAX_QUEUED_MESSAGES, report_full, pause)
        if has_room:
            self._waiting.discard(prefix)
        return has_room


def _modified(stored: StoredObject) -> float:
    assert stored.modified is not None
    return stored.modified.timestamp()


def _task_id(stored: StoredObject) -> str:
    return Wanted(stored.uri, etag=stored.etag).task_id
