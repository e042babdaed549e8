"""Pictures that were given up, each with its reason."""

from dataclasses import dataclass
from typing import Any

from tasks.ledger import Ledger


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


LETTERS = Ledger("veil:dead", DeadLetter)
