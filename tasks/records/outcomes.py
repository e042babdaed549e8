"""Counts of outcomes, which workers keep in Redis: in total, by minute, and by backfill run."""

import re
import time
from collections.abc import Mapping
from typing import Any

TOTALS = "veil:outcomes"
MINUTE = "veil:outcomes:{}"  # formatted with minutes since the epoch
RUN = "veil:run:{}:outcomes"  # formatted with the name of the run
RUN_NAME = re.compile(r"[a-z0-9-]{1,64}")
MINUTES_KEPT = 60
RUN_SECONDS_KEPT = 90 * 86_400
MALFORMED = "malformed"


def count(redis: Any, status: str, run: Any = None) -> None:
    """Count one picture with the outcome `status`, also for `run` if that is the name of a run.

    `redis` may be a pipeline. A picture whose message is delivered twice counts twice.
    """
    redis.hincrby(TOTALS, status, 1)
    minute = MINUTE.format(int(time.time()) // 60)
    redis.hincrby(minute, status, 1)
    redis.expire(minute, MINUTES_KEPT * 60)
    if isinstance(run, str) and RUN_NAME.fullmatch(run):
        redis.hincrby(RUN.format(run), status, 1)
        redis.expire(RUN.format(run), RUN_SECONDS_KEPT)


def count_malformed(redis: Any) -> None:
    """Count a malformed message, in addition to its outcome ``dead``. `redis` may be a pipeline."""
    redis.hincrby(TOTALS, MALFORMED, 1)


def totals(redis: Any) -> dict[str, int]:
    """Return the number of pictures by outcome, since this Redis is in use."""
    return _counts(redis.hgetall(TOTALS))


def of_run(redis: Any, run: str) -> dict[str, int]:
    """Return the number of pictures of `run` by outcome."""
    return _counts(redis.hgetall(RUN.format(run)))


def per_second(redis: Any, minutes: int = 5) -> float:
    """Return the number of pictures per second, of any outcome, over the last whole `minutes`."""
    now = int(time.time()) // 60
    with redis.pipeline(transaction=False) as pipe:
        for minute in range(now - minutes, now):
            pipe.hgetall(MINUTE.format(minute))
        answers = pipe.execute()
    ended = sum(sum(_counts(answer).values()) for answer in answers)
    return ended / (60 * minutes)


def _counts(answer: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in answer.items()}
