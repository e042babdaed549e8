"""Dead letters: pictures, and messages that name no picture, that no retry will help."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InvalidRequest, MalformedMessage
from ..messages import AnonymizeOptions, AnonymizeReport
from ..redis import lua
from ..routes import Routed
from .ledger import Ledger, has_all, name_of
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
    - `is_whole`: False if the message asked for something that the letter does not have, such as an
      argument that no worker knows; None if an earlier version of Veil recorded the letter.
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
    is_whole: bool | None = None

    @property
    def is_refused(self) -> bool:
        """True for a message that no worker accepts, so that its picture was never tried."""
        return self.error in REFUSED

    @property
    def name(self) -> str:
        """The name of the letter: a refused message has one of its own, others that of an output.

        A picture that comes through says nothing about a message that was refused.
        """
        if self.is_refused:
            return f"{name_of(self.source, self.destination or '')}\n{self.task_id}"
        return name_of(self.source, self.destination)


def nameless(task_id: str) -> str:
    """Return what stands for the source in the letter of a message that names none."""
    return f"message {task_id}"


REFUSED = (InvalidRequest.__name__, MalformedMessage.__name__)
MAX_OF_RUN = 20
OF_RUN = "veil:run:{}:dead"  # formatted with the name of the run: a list of names of its letters
MAX_REFUSED = 1000
REFUSED_KEY = "veil:dead:without-source"  # a list of the names of refused letters, newest first
LETTERS = Ledger("veil:dead", DeadLetter)

RECORD_REFUSED = lua.load(__package__, "record_refused")


def record(redis: Any, letter: DeadLetter) -> None:
    """Record a letter. `redis` may be a pipeline.

    Only the newest MAX_REFUSED of refused messages are kept, because any sender can cause more.
    """
    if not letter.is_refused:
        LETTERS.record(redis, letter)
        return
    keys = (LETTERS.key, REFUSED_KEY)
    value = json.dumps(asdict(letter))
    redis.eval(RECORD_REFUSED, len(keys), *keys, letter.name, value, MAX_REFUSED)


def ask_for_more(redis: Any, routed: Routed, report: AnonymizeReport) -> bool:
    """Return whether a letter of this output asks for options that `report` does not have."""
    names = [name_of(report.source, named) for named in routed.destinations]
    letters = LETTERS.find(redis, names).values()
    return any(not has_all(report.options or {}, _options(letter)) for letter in letters)


def _options(letter: DeadLetter) -> Any:
    """Return the options of a letter as a report has them, or unchanged if they are invalid."""
    try:
        return AnonymizeOptions.of(letter.options or {}).to_json()
    except InvalidRequest:
        return letter.options


def assign_to_run(redis: Any, letter: DeadLetter, run: str) -> None:
    """Record that the picture of `letter` belongs to `run`. `redis` may be a pipeline.

    Only the newest MAX_OF_RUN letters are kept: they are named at the end of the run.
    """
    key = OF_RUN.format(run)
    redis.lpush(key, letter.name)
    redis.ltrim(key, 0, MAX_OF_RUN - 1)
    redis.expire(key, RUN_SECONDS_KEPT)


def of_run(redis: Any, run: str) -> list[DeadLetter]:
    """Return the newest dead letters of `run`, at most MAX_OF_RUN, without those handled since."""
    names = [name.decode() for name in redis.lrange(OF_RUN.format(run), 0, -1)]
    return list(LETTERS.find(redis, names).values())
