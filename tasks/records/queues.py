"""The state of the queues in Redis: waiting messages, their age, and leased messages.

Stray messages wait in a list that no worker reads.
"""

import base64
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kombu.transport import redis as kombu_redis

from ..messages import QUEUED_AT_HEADER, QUEUES, RUN_HEADER, TASK

LEASED = kombu_redis.Channel.unacked_key  # a hash: [message, priority, queue] by delivery tag
BATCH_SIZE = 500  # records in one answer of Redis
RECIPE = "veil:recipe"  # the Redis key of the recipe of the worker that started last
DEFAULT_QUEUE = "celery"  # of a Celery app that sets no queue
SCAN_KEYS = 2000  # keys that Redis examines for one answer
MAX_SCANS = 50  # answers, after which the search for stray messages ends
MAX_LISTS = 200  # lists in which stray messages are searched
MAX_AGE_SECONDS = 366 * 86_400.0  # of a message; a time before that is none
MAX_AHEAD_SECONDS = 60.0  # of the clock of a sender; a later time, as in milliseconds, is none
SEARCHED_MESSAGES = 100_000  # among the next ones of a list, to find one that was seen before


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """The number of messages that wait on a queue, and the age of its next message in seconds.

    The age is None if no message waits, or if the next one contains no plausible time.
    """

    name: str
    waiting: int
    oldest_seconds: float | None


class Watch:
    """A memory of messages seen in the lists of queues, and since when.

    It tells how long a message without a time has waited at least.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[bytes, float]] = {}

    def seconds(self, redis: Any, name: str) -> float:
        """Return for how many seconds the next message of the list `name` has waited at least.

        A message that was seen and still waits came after the next one, so that waited longer.
        """
        if name in self._seen:
            message, since = self._seen[name]
            position = redis.lpos(name, message, rank=-1, maxlen=SEARCHED_MESSAGES)
            if position is not None:
                return time.monotonic() - since
        place = min(redis.llen(name), SEARCHED_MESSAGES)
        if place and (message := redis.lindex(name, -place)) is not None:
            self._seen[name] = message, time.monotonic()
        return 0.0


def statuses(redis: Any, watch: Watch | None = None) -> list[QueueStatus]:
    """Return the status of every queue. `watch` tells ages that messages do not contain."""
    lists = [_lists(queue) for queue in QUEUES]
    with redis.pipeline(transaction=False) as pipe:
        for names in lists:
            for name in names:
                pipe.llen(name)
                pipe.lindex(name, -1)
        answers = iter(pipe.execute())
    found = []
    for queue, names in zip(QUEUES, lists, strict=True):
        ends = [(next(answers), next(answers)) for _ in names]
        watched = [
            watch.seconds(redis, name)
            for name, (_, message) in zip(names, ends, strict=True)
            if watch is not None and message is not None and _queued_at(message) is None
        ]
        found.append(_status(queue, ends, watched))
    return found


class StrayMessages:
    """The lists that no worker reads and that hold a message for Veil.

    A list counts if its first or its last message is for Veil, because other projects may use the
    same Redis. Besides Celery's default queue, which its clients use if they name none, the search
    covers about SCAN_KEYS × MAX_SCANS keys and MAX_LISTS lists. Within `search_seconds` of a search
    only what it found is read again.
    """

    def __init__(self, search_seconds: float = 0.0) -> None:
        self._search_seconds = search_seconds
        self._searched: float | None = None
        self._found: list[str] = []

    def read(self, redis: Any) -> list[QueueStatus]:
        """Return the status of each such list."""
        now = time.monotonic()
        if self._searched is None or now - self._searched >= self._search_seconds:
            found = _strays(redis, _other_names(redis))
            self._found, self._searched = [queue.name for queue in found], now
            return found
        return _strays(redis, sorted({DEFAULT_QUEUE, *self._found}))


def _other_names(redis: Any) -> list[str]:
    """Return the names of the lists that may be queues, but none of this or another installation.

    Another installation is one whose prefix begins with that of this one.
    """
    names: set[str] = set()
    cursor = 0
    for _ in range(MAX_SCANS):
        cursor, keys = redis.scan(cursor, count=SCAN_KEYS, _type="list")
        names.update(_queue_name(key) for key in keys)
        if not cursor or len(names) > MAX_LISTS:
            break
    names -= {DEFAULT_QUEUE, *QUEUES}
    return [DEFAULT_QUEUE, *_without_other_installations(redis, sorted(names)[:MAX_LISTS])]


def _without_other_installations(redis: Any, names: list[str]) -> list[str]:
    """Return the `names` of queues that are not those of an installation with another prefix.

    Its workers have announced their recipe under this prefix.
    """
    prefixes = {
        name: name.removesuffix(queue) for name in names for queue in QUEUES if name.endswith(queue)
    }
    with redis.pipeline(transaction=False) as pipe:
        for prefix in prefixes.values():
            pipe.exists(f"{prefix}{RECIPE}")
        has_workers = dict(zip(prefixes, pipe.execute(), strict=True))
    return [name for name in names if not has_workers.get(name)]


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


def _status(
    queue: str, lists: list[tuple[int, bytes | None]], other_ages: Iterable[float] = ()
) -> QueueStatus:
    """Return the status of `queue` from the length and the next message of each of its lists.

    `other_ages` are those, in seconds, that these messages do not contain.
    """
    ages = [round(seconds, 1) for seconds in other_ages]
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
    """Return a JSON value as seconds since the epoch; None if it is no plausible time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    now = time.time()  # Python compares it with integers of any size, and NaN is in no range.
    is_plausible = now - MAX_AGE_SECONDS <= value <= now + MAX_AHEAD_SECONDS
    return float(value) if is_plausible else None


def _parsed(text: bytes) -> Any:
    """Return the JSON value of `text`; None if it is junk, which a worker will refuse."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _headers(message: Any) -> dict[str, Any]:
    headers = message.get("headers") if isinstance(message, dict) else None
    return headers if isinstance(headers, dict) else {}
