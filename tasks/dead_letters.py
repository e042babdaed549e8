"""Pictures that were given up, each with its reason, in one Redis hash keyed by the source's address."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

KEY = "veil:dead"


@dataclass(frozen=True)
class DeadLetter:
    """Why a picture was given up. `time` is seconds since the epoch."""

    source: str
    destination: str | None
    error: str
    message: str
    attempts: int
    task_id: str
    worker: str
    time: float


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
