"""Counts of outcomes, which workers keep in Redis: in total, by minute, and by backfill run.

The times of the last outcomes are kept too, so that the rate is known within seconds.
"""

import re
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

TOTALS = "veil:outcomes"
MINUTE = "veil:outcomes:{}"  # formatted with minutes since the epoch
RECENT = "veil:outcomes:recent"  # a list: seconds since the epoch of the last outcomes
ROUTES = "veil:outcomes:routes"  # a hash: the name of a route, a space and an outcome
RUN = "veil:run:{}:outcomes"  # formatted with the name of the run
RUN_NAME = re.compile(r"[a-z0-9-]{1,64}")
MINUTES_KEPT = 60
RUN_SECONDS_KEPT = 90 * 86_400
MALFORMED = "malformed"
RECENT_KEPT = 500  # times in the list, about 10 kB of Redis memory
RATE_SECONDS = 300  # age up to which an outcome counts for the rate
PAUSE_SECONDS = 30  # without an outcome; outcomes before it belong to earlier work
MIN_RATE_SECONDS = 1.0  # workers finish the first pictures at once, which is no rate yet


def run_name(value: Any) -> str | None:
    """Return `value`, which comes from a message, if it can be the name of a run; else None."""
    return value if isinstance(value, str) and RUN_NAME.fullmatch(value) else None


def count(redis: Any, status: str, run: str | None = None, route: str | None = None) -> None:
    """Count one picture with the outcome `status`, also for its `run` if it belongs to one.

    It counts for the route with the name `route` too, if there is one. `redis` may be a pipeline. A
    picture whose message is delivered twice counts twice.
    """
    now = time.time()
    redis.hincrby(TOTALS, status, 1)
    redis.lpush(RECENT, round(now, 3))
    redis.ltrim(RECENT, 0, RECENT_KEPT - 1)
    minute = MINUTE.format(int(now) // 60)
    redis.hincrby(minute, status, 1)
    redis.expire(minute, MINUTES_KEPT * 60)
    if route is not None:
        redis.hincrby(ROUTES, f"{route} {status}", 1)
    if run is not None:
        redis.hincrby(RUN.format(run), status, 1)
        redis.expire(RUN.format(run), RUN_SECONDS_KEPT)


def count_malformed(redis: Any) -> None:
    """Count a malformed message, in addition to its outcome ``dead``. `redis` may be a pipeline."""
    redis.hincrby(TOTALS, MALFORMED, 1)


def totals(redis: Any) -> dict[str, int]:
    """Return the number of pictures by outcome, since this Redis is in use."""
    return _counts(redis.hgetall(TOTALS))


def totals_and_routes(redis: Any) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Return the totals and, of the same moment, those of each route that has a name."""
    with redis.pipeline() as pipe:
        pipe.hgetall(TOTALS)
        pipe.hgetall(ROUTES)
        all_counts, counts = map(_counts, pipe.execute())
    found: dict[str, dict[str, int]] = {}
    for name, number in counts.items():
        route, _, status = name.partition(" ")
        found.setdefault(route, {})[status] = number
    return all_counts, found


def of_run(redis: Any, run: str) -> dict[str, int]:
    """Return the number of pictures of `run` by outcome."""
    return _counts(redis.hgetall(RUN.format(run)))


def per_second(redis: Any, is_idle: bool) -> float:
    """Return the present number of pictures per second, of any outcome; 0 if it is unknown.

    It is unknown until two pictures have ended within RATE_SECONDS, and after a pause. If the
    workers are idle, it is the rate until their last outcome.
    """
    now = time.time()
    times = [float(text) for text in redis.lrange(RECENT, 0, -1)]
    if any(at > now - RATE_SECONDS for at in times):
        return recent_rate(times, now, is_idle)
    return _mean_rate(redis, int(now) // 60)


def _mean_rate(redis: Any, present_minute: int) -> float:
    """Return the mean rate of the whole minutes within RATE_SECONDS.

    Workers of version 0.2.0 and before count outcomes by minute, and store no times.
    """
    minutes = RATE_SECONDS // 60
    with redis.pipeline(transaction=False) as pipe:
        for minute in range(present_minute - minutes, present_minute):
            pipe.hgetall(MINUTE.format(minute))
        answers = pipe.execute()
    ended = sum(sum(_counts(answer).values()) for answer in answers)
    return ended / RATE_SECONDS


def recent_rate(times: Sequence[float], now: float, is_idle: bool = False) -> float:
    """Return the rate of the outcomes at `times`, in pictures per second; 0 if it is unknown.

    The rate is that of the work that is being done at the time `now`. It starts at its first
    outcome: the first one within RATE_SECONDS, or the first one after a pause. One outcome only
    marks the start, so a rate needs two. If the workers are idle, the work ended with its last
    outcome. After a pause, also for slow pictures, the rate of the next work is unknown.
    """
    newest_first = sorted((at for at in times if at > now - RATE_SECONDS), reverse=True)
    work = newest_first[: _length_of_work(newest_first)]
    if len(work) < 2:
        return 0.0
    longest_gap = max(later - earlier for later, earlier in pairwise(work))
    if now - work[0] > max(2 * longest_gap, PAUSE_SECONDS):
        return 0.0
    end = work[0] if is_idle else now
    return (len(work) - 1) / max(end - work[-1], MIN_RATE_SECONDS)


def _length_of_work(newest_first: Sequence[float]) -> int:
    """Return the number of the newest outcomes before which there was a pause.

    A gap only counts as a pause if two outcomes or more follow it. Otherwise a worker that needs
    more than PAUSE_SECONDS for each picture would have no rate.
    """
    for number, (later, earlier) in enumerate(pairwise(newest_first), 1):
        if number >= 2 and later - earlier > PAUSE_SECONDS:
            return number
    return len(newest_first)


def _counts(answer: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in answer.items()}
