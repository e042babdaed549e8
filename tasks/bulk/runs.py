"""The runs of backfills, as they are stored in Redis."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError

from ..errors import InvalidRequest
from ..messages import BACKFILL
from ..publishing import Wanted
from ..records import outcomes, queues

KEY = "veil:run:{}"  # the Redis key of a run by its name
# A sorted set: the runs that are going on, with the times at which they were last stored.
RUNNING_KEY = "veil:runs:running"
LIFE = "veil:run:{}:life"  # a key that the process of a running run renews every BEAT_SECONDS
SECONDS_KEPT = 90 * 86_400  # since the last page of a run, or the last sign of life
BEAT_SECONDS = 5.0
ABANDONED_SECONDS = 60.0  # without a sign of life, after which a run counts as abandoned

# A run that is shown as abandoned is stored as running. One that is shown as listed or uncounted is
# stored as finished.
State = Literal["running", "finished", "stopped", "cancelled", "abandoned"]


@dataclass
class Page:
    """A part of the listing: its counts as in Run, and the pictures to publish."""

    cursor: str = ""
    listed: int = 0
    ignored: int = 0
    skipped: int = 0
    source_bytes: int = 0
    wanted: list[Wanted] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with its checkpoint, as it is stored in Redis.

    `cursor` is the last key that was listed, relative to the source. Of the keys `listed`, some
    were `ignored` because they were not selected, and some `skipped` because they are done.
    `enqueued` counts the messages, and `source_bytes` the bytes of their sources. Messages that
    `cancel` took back no longer count as enqueued. `owner` is the process that may go on with the
    run. Times are seconds since the epoch; `updated` of a finished run is its end.
    """

    name: str = ""
    source: str = ""
    destination: str = ""
    selection: str = ""
    recipe: str = ""
    owner: str = ""
    state: State = "running"
    cursor: str = ""
    listed: int = 0
    ignored: int = 0
    skipped: int = 0
    enqueued: int = 0
    source_bytes: int = 0
    started: float = 0.0
    updated: float = 0.0

    def after(self, page: Page) -> Self:
        """Return the run after `page`, updated now."""
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


RUN = TypeAdapter(Run)  # The hash in Redis has the fields of Run.
FIELDS = frozenset(one.name.encode() for one in fields(Run))


def read(redis: Any, name: str) -> Run | None:
    """Return the run `name`; None if Redis has none, or one that lacks a readable field."""
    stored = redis.hgetall(KEY.format(name))
    if FIELDS.difference(stored):
        return None
    try:
        return RUN.validate_strings(_decoded(stored))
    except ValidationError:
        return None


def read_leniently(redis: Any, name: str) -> Run | None:
    """Return the run `name`, with the defaults of fields that are missing or unreadable.

    Return None if Redis has none. This is for displays: a Backfill must not go on with such a run.
    """
    values = _decoded(redis.hgetall(KEY.format(name)))
    if not values:
        return None
    try:
        return RUN.validate_strings(values)
    except ValidationError as error:
        unreadable = {problem["loc"][0] for problem in error.errors()}
    readable = {key: value for key, value in values.items() if key not in unreadable}
    return RUN.validate_strings(readable)


def require(redis: Any, name: str) -> Run:
    """Return the run `name`. Raise InvalidRequest if Redis has none."""
    run = read(redis, name)
    if run is None:
        raise InvalidRequest(f"there is no run {name!r:.100}: veil status --runs lists them")
    return run


def names(redis: Any) -> list[str]:
    """Return the names of all runs in Redis, sorted."""
    prefix = KEY.format("")
    found = []
    for key in redis.scan_iter(KEY.format("*"), count=500):
        name = key.decode().removeprefix(prefix)
        if outcomes.RUN_NAME.fullmatch(name):
            found.append(name)
    return sorted(found)


def shown_state(run: Run, ended: int, is_through: bool) -> str:
    """Return the state of `run` for users, of whose pictures a number has `ended`.

    A run whose listing is complete is ``listed`` until every picture has ended. If it `is_through`
    before, as after an outage of Redis, it is ``uncounted``.
    """
    if run.state == "finished" and ended < run.enqueued:
        return "uncounted" if is_through else "listed"
    return run.state


def is_through(redis: Any, run: Run) -> bool:
    """Return whether no message of an ended run is waiting or in work, as far as Redis tells.

    Redis does not tell it while a worker takes a message, nor for a message that went back to the
    end of the queue for a retry.
    """
    oldest = queues.oldest(redis, BACKFILL)
    return (oldest is None or oldest > run.updated) and not queues.in_hand(redis, run.name)


def cancel(redis: Any, name: str) -> int:
    """End the run `name`, take its waiting messages off the queue, and return their number.

    A process that works on the run adds nothing more: the checkpoint is no longer its own.
    Messages in hand stay, and those of other runs. A cancelled run may be cancelled again. Raise
    InvalidRequest if there is no such run, or if it is finished and none of its messages is left.
    """

    def end(pipe: Any) -> Run:
        run = require(pipe, name)
        if run.state == "finished" and not queues.holds(redis, BACKFILL, name):
            raise InvalidRequest(f"no message of {name} is left: there is nothing to cancel")
        cancelled = replace(run, state="cancelled", owner="", updated=time.time())
        pipe.multi()
        write(pipe, cancelled)
        return cancelled

    key = KEY.format(name)
    cancelled = redis.transaction(end, key, value_from_callable=True)
    removed = queues.remove(redis, BACKFILL, name)

    def count(pipe: Any) -> None:
        if read(pipe, name) == cancelled:  # and has not begun anew
            pipe.multi()
            write(pipe, replace(cancelled, enqueued=max(0, cancelled.enqueued - removed)))

    redis.transaction(count, key)
    return removed


def show_life(redis: Any, name: str) -> None:
    """Record that a process works on the run `name`. `redis` may be a pipeline.

    The time is that of Redis: the key's time to live tells how long ago it was written.
    """
    redis.set(LIFE.format(name), "", ex=SECONDS_KEPT)


def abandoned_since(redis: Any, name: str, state: State) -> float | None:
    """Return when an abandoned run last showed a sign of life, in seconds since the epoch.

    Return None for a run that is not running, and for one whose process is alive as far as Redis
    tells. The processes of version 0.2.0 and before show no signs of life.
    """
    milliseconds_left = redis.pttl(LIFE.format(name))
    if state != "running" or milliseconds_left < 0:
        return None
    seconds = SECONDS_KEPT - milliseconds_left / 1000
    return time.time() - seconds if seconds > ABANDONED_SECONDS else None


def write(redis: Any, run: Run) -> None:
    """Store `run` for SECONDS_KEPT. `redis` may be a pipeline."""
    key = KEY.format(run.name)
    redis.hset(key, mapping=RUN.dump_python(run))
    redis.expire(key, SECONDS_KEPT)
    if run.state == "running":
        redis.zadd(RUNNING_KEY, {run.name: run.updated})
    else:
        redis.zrem(RUNNING_KEY, run.name)


def silent_seconds(redis: Any) -> float:
    """Return the time since a run that is going on was last stored; 0 if none is going on.

    Of several runs, it is the time of the one that has been silent longest.
    """
    oldest = redis.zrange(RUNNING_KEY, 0, 0, withscores=True)
    return max((time.time() - updated for _, updated in oldest), default=0.0)


def _decoded(stored: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in stored.items()}
