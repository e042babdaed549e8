"""What waits on the queues, since when, and what is in hand, as Redis has it."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kombu.transport import redis as kombu_redis

from tasks.messages import QUEUED_AT_HEADER, QUEUES, RUN_HEADER

IN_HAND = (
    kombu_redis.Channel.unacked_key
)  # a hash: [message, exchange, routing key] by delivery tag
SCANNED_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """A queue: messages that wait there, and how long the next one has, in seconds; None if it does
    not say.
    """

    name: str
    waiting: int
    oldest_seconds: float | None


def statuses(redis: Any) -> list[QueueStatus]:
    """How all queues stand."""
    lists = [(queue, name) for queue in QUEUES for name in _lists(queue)]
    with redis.pipeline(transaction=False) as pipe:
        for _, name in lists:
            pipe.llen(name)
            pipe.lindex(name, -1)
        answers = pipe.execute()
    found = list(zip((queue for queue, _ in lists), answers[::2], answers[1::2], strict=True))
    return [
        _status(queue, [(length, next_) for name, length, next_ in found if name == queue])
        for queue in QUEUES
    ]


def depth(redis: Any, queue: str) -> int:
    """How many messages wait on `queue`."""
    with redis.pipeline(transaction=False) as pipe:
        for name in _lists(queue):
            pipe.llen(name)
        return sum(pipe.execute())


def oldest(redis: Any, queue: str) -> float | None:
    """When the message that is taken next was put on `queue`, in seconds since the epoch; None if
    none waits.

    0 for a message that does not say it.
    """
    for name in _lists(queue):
        if message := redis.lindex(name, -1):
            return _queued_at(message) or 0.0
    return None


def in_hand(redis: Any, run: str | None = None) -> int:
    """How many messages the workers have and have not finished, of all or of one run."""
    if run is None:
        return int(redis.hlen(IN_HAND))
    records = (record for _, record in redis.hscan_iter(IN_HAND, count=SCANNED_AT_ONCE))
    return sum(_headers(_first(_parsed(record))).get(RUN_HEADER) == run for record in records)


def age(queued_at: Any) -> float | None:
    """Seconds since `queued_at`, as a message has it; None if that is no time."""
    begun = _time(queued_at)
    return None if begun is None else max(0.0, time.time() - begun)


def _lists(queue: str) -> list[str]:
    """The Redis lists of a queue, by priority: the one that is taken from first is the first."""
    channel = kombu_redis.Channel
    return [f"{queue}{channel.sep}{step}" if step else queue for step in channel.priority_steps]


def _status(queue: str, lists: Sequence[tuple[int, bytes | None]]) -> QueueStatus:
    """`lists` are the lengths of a queue's lists, and the next message of each."""
    ages = [age(_queued_at(message)) for _, message in lists if message is not None]
    known = [round(seconds, 1) for seconds in ages if seconds is not None]
    return QueueStatus(
        name=queue, waiting=sum(n for n, _ in lists), oldest_seconds=max(known, default=None)
    )


def _queued_at(message: bytes) -> float | None:
    return _time(_headers(_parsed(message)).get(QUEUED_AT_HEADER))


def _time(value: Any) -> float | None:
    """Return `value`, of any JSON type, as seconds since the epoch; None if it is no time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return seconds if math.isfinite(seconds) else None


def _parsed(text: bytes) -> Any:
    """None for junk, which a worker will throw out."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _first(record: Any) -> Any:
    return record[0] if isinstance(record, list) and record else None


def _headers(message: Any) -> dict[str, Any]:
    headers = message.get("headers") if isinstance(message, dict) else None
    return headers if isinstance(headers, dict) else {}
