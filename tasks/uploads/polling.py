"""Uploads found by looking: each look lists a place and takes what is new since the one before.

How far looks are is in Redis, written along with the messages, so one that is cut off is continued.
A store dates a multipart upload by its start, and the clocks of its machines differ: so each look
goes back, by an overlap, behind the newest object that is known, and what was taken from there is
remembered.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog

from tasks.addresses import PrefixUri
from tasks.backoff import Backoff
from tasks.errors import Permanent, VeilError
from tasks.messages import BACKFILL, UPLOADS
from tasks.publishing import Wanted, wait_for_room
from tasks.redis_errors import connected
from tasks.storage.s3 import ObjectStore, StoredObject
from tasks.uploads.events import Event, Parsed
from tasks.uploads.stopping import Stop
from tasks.uploads.trigger import Trigger

PAGE = 1000  # objects, as S3 lists them; what is new of them is published together
MOST_WAITING = 10_000  # messages in a queue, above which a look pauses
STATE = "veil:poll:{}"  # of a place
SEEN = (
    "veil:poll:{}:seen"  # what was taken within the overlap: a task id for each, by time of change
)

log = structlog.get_logger("veil")


@dataclass
class State:
    """How far looks at a place are. Times are seconds since the epoch.

    All before `newest`, less the overlap, has been taken; None before the end of the first look.
    The look under way began at `begun`, None between looks, has come to the key `after`, and the
    newest of its objects is of `so_far`.
    """

    newest: float | None = None
    begun: float | None = None
    so_far: float = 0.0
    after: str = ""

    @classmethod
    def read(cls, redis: Any, place: PrefixUri) -> "State":
        with connected():
            stored = redis.hgetall(STATE.format(place))
        found = {
            name.decode(): value.decode(errors="surrogatepass") for name, value in stored.items()
        }
        times = {
            name: float(found[name]) for name in ("newest", "begun", "so_far") if found.get(name)
        }
        return cls(**times, after=found.get("after", ""))

    def write(self, pipe: Any, place: PrefixUri) -> None:
        values = {name: "" if value is None else str(value) for name, value in vars(self).items()}
        # A key is noted as it was listed, also one that no message can hold.
        encoded = {name: value.encode(errors="surrogatepass") for name, value in values.items()}
        pipe.hset(STATE.format(place), mapping=encoded)

    def reached(self) -> float:
        """What `newest` would be if the look ended now: uploads that came while it ran may lie
        behind it.
        """
        return max(self.newest or 0.0, min(self.so_far, self.begun or 0.0))


class PollingSource:
    """Looks at the places of the trigger's selection, one after the other, again and again."""

    def __init__(
        self, store: ObjectStore, redis: Any, trigger: Trigger, interval: float, overlap: float
    ) -> None:
        """`interval` is seconds from the beginning of a round of looks to the next, `overlap` how
        far one goes back.
        """
        self._store = store
        self._redis = redis
        self._trigger = trigger
        self._interval = interval
        self._overlap = overlap
        self._backoff = Backoff("s3 or redis")

    def run(self, stop: Stop) -> None:
        """Until told to stop. Raises what its first look at a place can't get over, like a bucket
        that is not there.
        """
        known: set[PrefixUri] = set()
        while not stop.requested:
            began = time.monotonic()
            for place in self._trigger.selection.places:
                while not stop.requested:
                    try:
                        self.look(place, stop)
                        self._backoff.succeeded()
                        known.add(place)
                        break
                    except VeilError as error:
                        if isinstance(error, Permanent) and place not in known:
                            raise
                        stop.wait(self._backoff.failed(error))
            stop.wait(max(0.0, began + self._interval - time.monotonic()))

    def look(self, place: PrefixUri, stop: Stop) -> None:
        """List `place`, from where a look that was cut off had come to, and put on the queue what
        is new.

        What the very first look finds was not uploaded just now: it goes to the queue of backfills.
        """
        state = State.read(self._redis, place)
        if state.begun is None:
            state.begun = time.time()
        queue = BACKFILL if state.newest is None else UPLOADS
        while page := list(islice(self._store.list(place.bucket, place.prefix, state.after), PAGE)):
            new = self._new(place, page, state)
            state.so_far = max(state.so_far, *map(_modified, page))
            state.after = page[-1].uri.key
            if new and self._wait_for_room(queue, stop):
                self._publish(place, new, queue, state)
            if stop.requested:
                return
            if len(page) < PAGE:
                break
        self._publish(place, [], queue, State(newest=state.reached()))

    def _new(
        self, place: PrefixUri, page: Sequence[StoredObject], state: State
    ) -> list[StoredObject]:
        """The objects that no look has taken."""
        if state.newest is None:
            return list(page)
        recent = [stored for stored in page if _modified(stored) > state.newest - self._overlap]
        if not recent:
            return []
        with connected():
            times = self._redis.zmscore(SEEN.format(place), [_name(stored) for stored in recent])
        return [
            stored
            for stored, known in zip(recent, times, strict=True)
            if known != _modified(stored)
        ]

    def _publish(
        self, place: PrefixUri, new: Sequence[StoredObject], queue: str, state: State
    ) -> None:
        events = [Event(stored.uri.bucket, stored.uri.key, stored.etag) for stored in new]
        pictures = self._trigger.choose(Parsed(written=events))
        floor = (
            state.reached() if state.newest is None or not new else state.newest
        ) - self._overlap

        def along(pipe: Any) -> None:
            state.write(pipe, place)
            recent = {
                _name(stored): _modified(stored) for stored in new if _modified(stored) > floor
            }
            if recent:
                pipe.zadd(SEEN.format(place), recent)
            pipe.zremrangebyscore(SEEN.format(place), "-inf", floor)

        self._trigger.publish(pictures, queue, along)

    def _wait_for_room(self, queue: str, stop: Stop) -> bool:
        """Return True once `queue` can take more messages, False if told to stop before."""

        def report_full(waiting: int) -> None:
            log.info("waiting for room", queue=queue, messages=waiting)

        if stop.requested:
            return False
        return wait_for_room(self._redis, queue, MOST_WAITING, report_full, stop.wait)


def _modified(stored: StoredObject) -> float:
    assert stored.modified is not None
    return stored.modified.timestamp()


def _name(stored: StoredObject) -> str:
    return Wanted(stored.uri, etag=stored.etag).task_id
