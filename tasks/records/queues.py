"""The state of the queues in Redis: waiting messages, their age, and leased messages.

Stray messages wait in a list that no worker reads.
"""

import base64
import json
import math
import time
from dataclasses import dataclass
from typing import Any

from kombu.transport import redis as kombu_redis

from ..messages import QUEUED_AT_HEADER, QUEUES, RUN_HEADER, TASK

LEASED = kombu_redis.Channel.unacked_key  # a hash: [message, priority, queue] by delivery tag
BATCH_SIZE = 500  # records in one answer of Redis
DEFAULT_QUEUE = "celery"  # of a Celery app that sets no queue
SCAN_KEYS = 2000  # keys that Redis examines for one answer
MAX_SCANS = 50  # answers, after which the search for stray messages ends
MAX_LISTS = 200  # lists in which stray messages are searched


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


def stray_in_default_queue(redis: Any) -> int:
    """Return the number of stray messages in Celery's default queue.

    Celery's own clients use this queue if they name none.
    """
    return sum(queue.waiting for queue in _strays(redis, [DEFAULT_QUEUE]))


def stray(redis: Any) -> list[QueueStatus]:
    """Return the status of each list that no worker reads and that holds a message for Veil.

    A list counts if its first or its last message is for Veil, because other projects may use the
    same Redis. Besides Celery's default queue, the search covers about SCAN_KEYS × MAX_SCANS keys
    and MAX_LISTS lists.
    """
    names = {DEFAULT_QUEUE}
    cursor = 0
    for _ in range(MAX_SCANS):
        cursor, keys = redis.scan(cursor, count=SCAN_KEYS, _type="list")
        names.update(_queue_name(key) for key in keys)
        if not cursor or len(names) > MAX_LISTS:
            break
    others = sorted(names - {DEFAULT_QUEUE, *QUEUES})
    return _strays(redis, [DEFAULT_QUEUE, *others[:MAX_LISTS]])


def depth(redis: Any, queue: str) -> int:
    """Return the number of messages that wait on `queue`."""
    with redis.pipeline(transaction=False) as pipe:
        for name in _lists(queue):
            pipe.llen(name)
        return sum(pipe.execute())


def oldest(redis: Any, queue: str) -> float | None:
    """Return when the next message of `queue` was put there, in seconds since the epoch.

    Each priority has a next message; the time is that of the oldest one. It is 0 if a message does
    not contain its time, and None if no message waits.
    """
    with redis.pipeline(transaction=False) as pipe:
        for name in _lists(queue):
            pipe.lindex(name, -1)
        waiting = [message for message in pipe.execute() if message is not None]
    return min((_queued_at(message) or 0.0 for message in waiting), default=None)


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


def holds(redis: Any, queue: str, run: str) -> bool:
    """Return whether a message of `run` waits on `queue`, or is in hand. This reads all of both."""
    for name in _lists(queue):
        # New messages come in at this end of the list: what moves is read twice, none left out.
        for start in range(0, redis.llen(name), BATCH_SIZE):
            batch = redis.lrange(name, start, start + BATCH_SIZE - 1)
            if any(_is_of(message, run) for message in batch):
                return True
    return in_hand(redis, run) > 0  # read last, because workers take messages meanwhile


def remove(redis: Any, queue: str, run: str) -> int:
    """Remove the messages of `run` that wait on `queue`, and return their number.

    A message that a worker takes meanwhile is not removed, and not counted.
    """
    removed = 0
    for name in _lists(queue):
        start = 0
        while messages := redis.lrange(name, start, start + BATCH_SIZE - 1):
            with redis.pipeline(transaction=False) as pipe:
                for message in messages:
                    if _is_of(message, run):
                        pipe.lrem(name, 1, message)
                gone = sum(pipe.execute())
            # New messages come in at this end of the list: what moved is read twice, none left out.
            start += len(messages) - gone
            removed += gone
    return removed


def age(queued_at: Any) -> float | None:
    """Return the seconds since `queued_at`, a value in a message; None if it is no time."""
    begun = _time(queued_at)
    return None if begun is None else max(0.0, time.time() - begun)


def _strays(redis: Any, names: list[str]) -> list[QueueStatus]:
    """Return the status of those of the queues `names` that hold a message for Veil."""
    lists = [_lists(name) for name in names]
    with redis.pipeline(transaction=False) as pipe:
        for name in (name for steps in lists for name in steps):
            pipe.llen(name)
            pipe.lindex(name, 0)
            pipe.lindex(name, -1)
        answers = iter(pipe.execute(raise_on_error=False))
    found = []
    for name, steps in zip(names, lists, strict=True):
        ends = [(next(answers), next(answers), next(answers)) for _ in steps]
        if any(_is_for_veil(newest) or _is_for_veil(oldest) for _, newest, oldest in ends):
            messages = [(length, oldest) for length, _, oldest in ends if isinstance(length, int)]
            found.append(_status(name, messages))
    return found


def _queue_name(key: bytes) -> str:
    """Return the name of the queue that the Redis list `key` belongs to, without its priority."""
    return key.decode(errors="replace").partition(kombu_redis.Channel.sep)[0]


def _is_for_veil(message: Any) -> bool:
    """Return whether `message` names Veil's task, in the form of protocol 1 or 2."""
    if not isinstance(message, bytes):  # an empty list, or a key that is no list
        return False
    parsed = _parsed(message)
    if _headers(parsed).get("task") == TASK:
        return True
    body = parsed.get("body") if isinstance(parsed, dict) else None
    if not isinstance(body, str):
        return False
    try:
        request = json.loads(base64.b64decode(body, validate=True))
    except (ValueError, RecursionError):
        return False
    return isinstance(request, dict) and request.get("task") == TASK


def _is_of(message: bytes, run: str) -> bool:
    """Return whether `message`, as it waits in a list, belongs to `run`."""
    return bool(_headers(_parsed(message)).get(RUN_HEADER) == run)


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
