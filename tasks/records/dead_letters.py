"""Dead letters: pictures, and messages that name no picture, that no retry will help."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from .. import lua
from .ledger import Ledger


@dataclass(frozen=True)
class DeadLetter:
    """The reason why a message was given up. Times are in seconds since the epoch.

    - `source`: the address of the source, or ``message ID`` if the message has none.
    - `options`: the options as they are in the message.
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


MAX_WITHOUT_SOURCE = 1000
WITHOUT_SOURCE = "veil:dead:without-source"  # a list of the names of those letters, newest first
LETTERS = Ledger("veil:dead", DeadLetter)

RECORD_WITHOUT_SOURCE = lua.load(__package__, "record_without_source")


def record_without_source(redis: Any, letter: DeadLetter) -> None:
    """Record a letter that names no picture. `redis` may be a pipeline.

    Only the newest MAX_WITHOUT_SOURCE are kept, because any sender can cause more.
    """
    value = json.dumps(asdict(letter))
    keys = (LETTERS.key, WITHOUT_SOURCE)
    redis.eval(RECORD_WITHOUT_SOURCE, len(keys), *keys, letter.source, value, MAX_WITHOUT_SOURCE)
