"""Pictures that were given up, each with its reason, in one Redis hash keyed by the source's address."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

KEY = "veil:dead"


@dataclass(frozen=True)
class DeadLetter:
    """Why a picture was given up. Times are seconds since the epoch.

    `first_time` is when it was first tried, `last_error` what is known of the last death of a process at work on it.
    """

    source: str
    destination: str | None
    error: str
    message: str
    attempts: int
    task_id: str
    worker: str
    time: float
    first_time: float | None = None
    last_error: str | None = None


def record(redis: Any, letter: DeadLetter) -> None:
    """Keep `letter`, in the place of an older one of the same source."""
    redis.hset(KEY, letter.source, json.dumps(asdict(letter)))


def discard(redis: Any, source: str) -> None:
    """Forget the letter of `source`: it has been delivered after all."""
    redis.hdel(KEY, source)


def entries(redis: Any) -> Iterator[DeadLetter]:
    """All letters, in no order."""
    for _, value in redis.hscan_iter(KEY, count=500):
        yield DeadLetter(**json.loads(value))
