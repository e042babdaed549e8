"""Pictures, and messages that name none, that were given up, each with its reason."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from tasks import lua
from tasks.records.ledger import Ledger


@dataclass(frozen=True)
class DeadLetter:
    """Why a picture was given up. Times are seconds since the epoch.

    `first_time` is when it was first tried, `last_error` what is known of the last death of a
    process at work on it, `options` what the message held as such. `source` is ``message ID`` where
    the message has none. Of a message that could not be taken there is a `sample`, one line without
    values that may be secret.
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


MOST_WITHOUT_SOURCE = 1000
WITHOUT_SOURCE = (
    "veil:dead:without-source"  # a list: what those letters are called, the newest first
)
LETTERS = Ledger("veil:dead", DeadLetter)

RECORD_WITHOUT_SOURCE = lua.load(__package__, "record_without_source")


def record_without_source(redis: Any, letter: DeadLetter) -> None:
    """Keep a letter that names no picture.

    Only the newest MOST_WITHOUT_SOURCE of these are kept: any sender can cause more.
    """
    redis.eval(
        RECORD_WITHOUT_SOURCE, 2, LETTERS.key, WITHOUT_SOURCE,
        letter.source, json.dumps(asdict(letter)), MOST_WITHOUT_SOURCE,
    )  # fmt: skip
