"""Counts of what came of the pictures, kept in Redis by the workers: in all, by minute, and by run
of a backfill.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

TOTALS = "veil:outcomes"
MINUTE = "veil:outcomes:{}"  # minutes since the epoch
RUN = "veil:run:{}:outcomes"
RUN_NAME = re.compile(r"[a-z0-9-]{1,64}")
MINUTES_KEPT = 60
RUN_SECONDS_KEPT = 90 * 86_400
MALFORMED = "malformed"


def count(redis: Any, status: str, run: Any = None) -> None:
    """Count one picture that ended as `status`, for `run` too if it is the name of one.

    `redis` may be a pipeline. A picture whose message was delivered twice counts twice.
    """
    redis.hincrby(TOTALS, status, 1)
    minute = MINUTE.format(int(time.time()) // 60)
    redis.hincrby(minute, status, 1)
    redis.expire(minute, MINUTES_KEPT * 60)
    if isinstance(run, str) and RUN_NAME.fullmatch(run):
        redis.hincrby(RUN.format(run), status, 1)
        redis.expire(RUN.format(run), RUN_SECONDS_KEPT)


def count_malformed(redis: Any) -> None:
    """Count, beside ``dead``, a message that no worker can take. `redis` may be a pipeline."""
    redis.hincrby(TOTALS, MALFORMED, 1)


def totals(redis: Any) -> dict[str, int]:
    """All pictures since this Redis is used, by status."""
    return _counts(redis.hgetall(TOTALS))


def of_run(redis: Any, run: str) -> dict[str, int]:
    """The pictures of `run`, by status."""
    return _counts(redis.hgetall(RUN.format(run)))


def per_second(redis: Any, minutes: int = 5) -> float:
    """Pictures a second over the last whole `minutes`, whatever came of them."""
    now = int(time.time()) // 60
    with redis.pipeline(transaction=False) as pipe:
        for minute in range(now - minutes, now):
            pipe.hgetall(MINUTE.format(minute))
        ended = sum(sum(_counts(found).values()) for found in pipe.execute())
    return ended / (60 * minutes)


def _counts(found: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in found.items()}
