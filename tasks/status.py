"""How the work stands, from what Redis has: queues, what is in hand, what came of it, and runs of backfills."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kombu.transport import redis as kombu_redis

from tasks import dead_letters, outcomes
from tasks.app import QUEUED_AT_HEADER, QUEUES
from tasks.publishing import RECIPE, connected

RUN = "veil:run:{}"
IN_HAND = kombu_redis.Channel.unacked_key  # a hash, an item for each message that a worker has not finished
DONE = ("anonymized", "skipped", "held")
FAILED = "dead"
AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """A queue: messages that wait there, and how long the next one has, in seconds; None if it doesn't say."""

    name: str
    waiting: int
    oldest_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """All of the work. `outcomes` counts pictures since this Redis is used, `dead` those that are given up now.

    `per_second` is the rate of the last minutes, `seconds_left` what the waiting messages take at it, if that is known.
    """

    queues: Sequence[QueueStatus]
    in_flight: int
    outcomes: Mapping[str, int]
    dead: int
    per_second: float
    seconds_left: float | None
    recipe: str | None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run of a backfill. `listed` sources, of which `skipped` needed nothing, and `enqueued` ones.

    Of these `done` and `failed` have ended and `left` have not; one whose message came twice counts twice. `percent`
    and `seconds_left`, at the rate `per_second` of all workers, are of what is listed: a `state` of ``finished`` says
    that this is all. Times are seconds since the epoch.
    """

    run: str
    state: str
    source: str
    destination: str
    listed: int
    skipped: int
    enqueued: int
    done: int
    failed: int
    left: int
    percent: float
    per_second: float
    seconds_left: float | None
    started: float | None
    updated: float | None


def read(redis: Any) -> Status:
    """How everything stands. Raises QueueUnavailable."""
    lists = [(queue, name) for queue in QUEUES for name in _lists(queue)]
    with connected():
        with redis.pipeline(transaction=False) as pipe:
            for _, name in lists:
                pipe.llen(name)
                pipe.lindex(name, -1)
            pipe.hlen(IN_HAND)
            pipe.hlen(dead_letters.KEY)
            pipe.get(RECIPE)
            *waiting, in_flight, dead, recipe = pipe.execute()
        totals, per_second = dict.fromkeys((*DONE, FAILED), 0) | outcomes.totals(redis), outcomes.per_second(redis)
    found = [
        (queue, *pair) for (queue, _), pair in zip(lists, zip(waiting[::2], waiting[1::2], strict=True), strict=True)
    ]
    queues = [_queue_status(queue, [(n, oldest) for name, n, oldest in found if name == queue]) for queue in QUEUES]
    return Status(
        queues=queues,
        in_flight=in_flight,
        outcomes=totals,
        dead=dead,
        per_second=per_second,
        seconds_left=_seconds(sum(queue.waiting for queue in queues), per_second),
        recipe=recipe.decode() if recipe else None,
    )


def read_run(redis: Any, run: str) -> RunStatus | None:
    """How the run `run` stands; None if Redis knows none of that name. Raises QueueUnavailable."""
    if not outcomes.RUN_NAME.fullmatch(run):
        return None
    with connected():
        found = redis.hgetall(RUN.format(run))
        if not found:
            return None
        ended, per_second = outcomes.of_run(redis, run), outcomes.per_second(redis)
    return _run_status(run, {name.decode(): value.decode() for name, value in found.items()}, ended, per_second)


def runs(redis: Any) -> list[RunStatus]:
    """The runs that Redis remembers, the one that moved last first. Raises QueueUnavailable."""
    prefix = RUN.format("")
    with connected():
        names = {key.decode().removeprefix(prefix) for key in redis.scan_iter(RUN.format("*"), count=AT_ONCE)}
    found = [status for name in names if (status := read_run(redis, name))]
    return sorted(found, key=lambda status: (-(status.updated or 0), status.run))


def _lists(queue: str) -> list[str]:
    """The Redis lists of a queue, by priority: the one that is taken from first is the first."""
    channel = kombu_redis.Channel
    return [f"{queue}{channel.sep}{step}" if step else queue for step in channel.priority_steps]


def _queue_status(queue: str, lists: Sequence[tuple[int, bytes | None]]) -> QueueStatus:
    """`lists` are the lengths of a queue's lists, and the next message of each."""
    ages = [_age(message) for _, message in lists if message is not None]
    known = [age for age in ages if age is not None]
    return QueueStatus(name=queue, waiting=sum(n for n, _ in lists), oldest_seconds=max(known, default=None))


def _age(message: bytes) -> float | None:
    """Seconds since `message` was first put on the queue; None for one that doesn't say, such as junk."""
    try:
        queued_at = float(json.loads(message)["headers"][QUEUED_AT_HEADER])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    age = time.time() - queued_at
    return round(max(age, 0), 1) if math.isfinite(age) else None


def _seconds(pictures: int, per_second: float) -> float | None:
    if not pictures:
        return 0.0
    return round(pictures / per_second, 1) if per_second else None


def _run_status(run: str, fields: Mapping[str, str], ended: Mapping[str, int], per_second: float) -> RunStatus:
    enqueued, skipped = _number(fields, "enqueued"), _number(fields, "skipped")
    done, failed = sum(ended.get(status, 0) for status in DONE), ended.get(FAILED, 0)
    left = max(enqueued - done - failed, 0)
    known = skipped + enqueued
    return RunStatus(
        run=run,
        state=fields.get("state", ""),
        source=fields.get("source", ""),
        destination=fields.get("destination", ""),
        listed=_number(fields, "listed"),
        skipped=skipped,
        enqueued=enqueued,
        done=done,
        failed=failed,
        left=left,
        percent=round(100 * (known - left) / known, 1) if known else 100.0,
        per_second=per_second,
        seconds_left=_seconds(left, per_second),
        started=_time(fields, "started"),
        updated=_time(fields, "updated"),
    )


def _number(fields: Mapping[str, str], name: str) -> int:
    try:
        return int(fields.get(name, 0))
    except ValueError:
        return 0


def _time(fields: Mapping[str, str], name: str) -> float | None:
    try:
        return float(fields[name])
    except (KeyError, ValueError):
        return None
