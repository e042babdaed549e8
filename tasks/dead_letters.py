"""Pictures that were given up, each with its reason, in one Redis hash keyed by the source's address."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

KEY = "veil:dead"
AT_ONCE = 500
SORTED_AT_MOST = 100_000  # in memory, 30 MB

# Removes a letter that is still as it was read: a worker may have written a newer one.
DROP = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
    return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
"""


@dataclass(frozen=True)
class DeadLetter:
    """Why a picture was given up. Times are seconds since the epoch.

    `first_time` is when it was first tried, `last_error` what is known of the last death of a process at work on it,
    `options` what the message held as such.
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
    options: Any = None


def record(redis: Any, letter: DeadLetter) -> None:
    """Keep `letter`, in the place of an older one of the same source."""
    redis.hset(KEY, letter.source, json.dumps(asdict(letter)))


def discard(redis: Any, source: str) -> None:
    """Forget the letter of `source`: it has been delivered after all."""
    redis.hdel(KEY, source)


def count(redis: Any) -> int:
    """How many there are."""
    return int(redis.hlen(KEY))


def entries(redis: Any) -> Iterator[DeadLetter]:
    """All letters, in no order. One that is replaced meanwhile can come twice."""
    for _, value in redis.hscan_iter(KEY, count=AT_ONCE):
        yield _parse(value)


def of(redis: Any, sources: Sequence[str]) -> dict[str, DeadLetter]:
    """The letters of `sources`, as far as there are any."""
    found = redis.hmget(KEY, list(sources)) if sources else ()
    return {source: _parse(value) for source, value in zip(sources, found, strict=True) if value is not None}


def oldest_first(redis: Any) -> Iterator[DeadLetter]:
    """All letters by their time, or in no order if there are more than SORTED_AT_MOST."""
    if count(redis) > SORTED_AT_MOST:
        yield from entries(redis)
        return
    dated = sorted({letter.source: letter.time for letter in entries(redis)}.items(), key=lambda item: item[1])
    for start in range(0, len(dated), AT_ONCE):
        yield from of(redis, [source for source, _ in dated[start : start + AT_ONCE]]).values()


def drop(redis: Any, sources: Sequence[str]) -> int:
    """Forget the letters of `sources`; how many there were."""
    return int(redis.hdel(KEY, *sources)) if sources else 0


def drop_error(redis: Any, error: str) -> int:
    """Forget every letter with this error; how many there were."""
    dropped = 0
    for source, value in redis.hscan_iter(KEY, count=AT_ONCE):
        if _parse(value).error == error:
            dropped += int(redis.eval(DROP, 1, KEY, source, value))
    return dropped


def drop_all(redis: Any) -> int:
    """Forget every letter; how many there were."""
    with redis.pipeline() as pipe:
        pipe.hlen(KEY)
        pipe.delete(KEY)
        return int(pipe.execute()[0])


def _parse(value: bytes) -> DeadLetter:
    return DeadLetter(**json.loads(value))
