"""Dead letters: pictures, and messages that name no picture, that no retry will help."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from .. import lua
from .ledger import Ledger, name_of
from .outcomes import RUN_SECONDS_KEPT


@dataclass(frozen=True)
class DeadLetter:
    """The reason why a message was given up. Times are in seconds since the epoch.

    - `source`: the address of the source, or ``message ID`` if the message has none.
    - `destination` and `options`: those in the message.
    - `attempts`: the number of tries, including those whose process died.
    - `first_time`: when the picture was first tried.
    - `last_error`: the reason, if known, why a process that worked on the picture last died.
    - `sample`: one line that describes a malformed message, without values that may be secret.
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
    queue: str | None = None
    sample: str | None = None


MAX_OF_RUN = 20
OF_RUN = "veil:run:{}:dead"  # formatted with the name of the run: a list of names of its letters
MAX_WITHOUT_SOURCE = 1000
WITHOUT_SOURCE = "veil:dead:without-source"  # a list of the names of those letters, newest first
LETTERS = Ledger("veil:dead", DeadLetter)

RECORD_WITHOUT_SOURCE = lua.load(__package__, "record_without_source")


def assign_to_run(redis: Any, letter: DeadLetter, run: str) -> None:
    """Record that the picture of `letter` belongs to `run`. `redis` may be a pipeline.

    Only the newest MAX_OF_RUN letters are kept: they are named at the end of the run.
    """
    key = OF_RUN.format(run)
    redis.lpush(key, name_of(letter.source, letter.destination))
    redis.ltrim(key, 0, MAX_OF_RUN - 1)
    redis.expire(key, RUN_SECONDS_KEPT)


def of_run(redis: Any, run: str) -> list[DeadLetter]:
    """Return the newest dead letters of `run`, at most MAX_OF_RUN, without those handled since."""
    names = [name.decode() for name in redis.lrange(OF_RUN.format(run), 0, -1)]
    return list(LETTERS.find(redis, names).values())


def record_without_source(redis: Any, letter: DeadLetter) -> None:
    """Record a letter that names no picture. `redis` may be a pipeline.

    Only the newest MAX_WITHOUT_SOURCE are kept, because any sender can cause more.
    """
    value = json.dumps(asdict(letter))
    keys = (LETTERS.key, WITHOUT_SOURCE)
    redis.eval(RECORD_WITHOUT_SOURCE, len(keys), *keys, letter.source, value, MAX_WITHOUT_SOURCE)
