"""The state of the queues in Redis: waiting messages, their age, and leased messages."""

import json
import math
import time
from dataclasses import dataclass
from typing import Any

from kombu.transport import redis as kombu_redis

from tasks.messages import QUEUED_AT_HEADER, QUEUES, RUN_HEADER

LEASED = kombu_redis.Channel.unacked_key  # a hash: [message, exchange, routing key] by delivery tag
BATCH_SIZE = 500  # records in one answer of Redis


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """The number of messages that wait on a queue, and the age of its next message in seconds.

    The age is None if no message waits or the next one does not contain the time.
    """

    name: str
    waiting: int
    oldest_seconds: float | None


def statuses(redis: Any) -> list[QueueStatus]:
    """Return the status of every queue."""
    lists = [_lists(queue) for queue in QUEUES]
    with redis.pipeline(transaction=False) as pipe:
        for names in lists:
            for name in names:
                pipe.llen(name)
                pipe.lindex(name, -1)
        answers = iter(pipe.execute())
    found = []
    for queue, names in zip(QUEUES, lists, strict=True):
        waiting = [(next(answers), next(answers)) for _ in names]
        found.append(_status(queue, waiting))
    return found


def depth(redis: Any, queue: str) -> int:
    """Return the number of messages that wait on `queue`."""
    with redis.pipeline(transaction=False) as pipe:
        for name in _lists(queue):
            pipe.llen(name)
        return sum(pipe.execute())


def oldest(redis: Any, queue: str) -> float | None:
    """Return when the next message was put on `queue`, in seconds since the epoch.

    The time is 0 if the message does not contain it, and None if no message waits.
    """
    for name in _lists(queue):
        if message := redis.lindex(name, -1):
            return _queued_at(message) or 0.0
    return None


def in_hand(redis: Any, run: str | None = None) -> int:
    """Return the number of leased messages, of all runs or of one."""
    if run is None:
        return int(redis.hlen(LEASED))
    count = 0
    for _, text in redis.hscan_iter(LEASED, count=BATCH_SIZE):
        record = _parsed(text)
        message = record[0] if isinstance(record, list) and record else None
        count += _headers(message).get(RUN_HEADER) == run
    return count


def age(queued_at: Any) -> float | None:
    """Return the seconds since `queued_at`, a value in a message; None if it is no time."""
    begun = _time(queued_at)
    return None if begun is None else max(0.0, time.time() - begun)


def _lists(queue: str) -> list[str]:
    """Return the Redis lists of `queue`, by priority: workers take from the first one first."""
    channel = kombu_redis.Channel
    return [f"{queue}{channel.sep}{step}" if step else queue for step in channel.priority_steps]


def _status(queue: str, lists: list[tuple[int, bytes | None]]) -> QueueStatus:
    """Return the status of `queue` from the length and the next message of each of its lists."""
    ages = []
    for _, message in lists:
        seconds = None if message is None else age(_queued_at(message))
        if seconds is not None:
            ages.append(round(seconds, 1))
    return QueueStatus(
        name=queue,
        waiting=sum(length for length, _ in lists),
        oldest_seconds=max(ages, default=None),
    )


def _queued_at(message: bytes) -> float | None:
    return _time(_headers(_parsed(message)).get(QUEUED_AT_HEADER))


def _time(value: Any) -> float | None:
    """Return a JSON value as seconds since the epoch; None if it is no time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:  # an integer with hundreds of digits
        return None
    return seconds if math.isfinite(seconds) else None


def _parsed(text: bytes) -> Any:
    """Return the JSON value of `text`; None if it is junk, which a worker will refuse."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _headers(message: Any) -> dict[str, Any]:
    headers = message.get("headers") if isinstance(message, dict) else None
    return headers if isinstance(headers, dict) else {}
