"""How much waits on a queue, since when, and what is in hand, as Redis has it."""

import json
from collections.abc import Sequence
from typing import Any

from kombu.transport import redis as kombu_redis

from tasks.app import QUEUED_AT_HEADER, QUEUES, RUN_HEADER

IN_HAND = kombu_redis.Channel.unacked_key  # a hash: [message, exchange, routing key] by delivery tag
SCANNED_AT_ONCE = 500


def depth(redis: Any, queue: str) -> int:
    """How many messages wait on `queue`."""
    return depths(redis, (queue,))[queue]


def depths(redis: Any, queues: Sequence[str] = QUEUES) -> dict[str, int]:
    """How many messages wait, by queue."""
    with redis.pipeline(transaction=False) as pipe:
        for queue in queues:
            for name in _lists(queue):
                pipe.llen(name)
        lengths = iter(pipe.execute())
    return {queue: sum(next(lengths) for _ in _lists(queue)) for queue in queues}


def oldest(redis: Any, queue: str) -> float | None:
    """When the message that is taken next was put on `queue`, in seconds since the epoch; None if none waits.

    0 for a message that does not say it.
    """
    for name in _lists(queue):
        if message := redis.lindex(name, -1):
            return _queued_at(message)
    return None


def in_hand(redis: Any, run: str | None = None) -> int:
    """How many messages the workers have and have not finished, of all or of one run."""
    if run is None:
        return int(redis.hlen(IN_HAND))
    records = (record for _, record in redis.hscan_iter(IN_HAND, count=SCANNED_AT_ONCE))
    return sum(_headers(_first(_parsed(record))).get(RUN_HEADER) == run for record in records)


def _lists(queue: str) -> list[str]:
    """The Redis lists of a queue, by priority: the one that is taken from first is the first."""
    channel = kombu_redis.Channel
    return [f"{queue}{channel.sep}{step}" if step else queue for step in channel.priority_steps]


def _queued_at(message: bytes) -> float:
    try:
        return float(_headers(_parsed(message)).get(QUEUED_AT_HEADER, 0))
    except (ValueError, TypeError):
        return 0.0


def _parsed(text: bytes) -> Any:
    """None for junk, which a worker will throw out."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _first(record: Any) -> Any:
    return record[0] if isinstance(record, list) and record else None


def _headers(message: Any) -> dict[str, Any]:
    headers = message.get("headers") if isinstance(message, dict) else None
    return headers if isinstance(headers, dict) else {}
