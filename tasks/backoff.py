"""Growing pauses between tries to reach a server, and one line at each end of an outage."""

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from .errors import QueueUnavailable, StorageUnavailable, VeilError, log_fields

Result = TypeVar("Result")

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 15.0
MAX_DOUBLINGS = 32  # keeps the power within the range of a float
TRIES = 6  # of a call while the store is unavailable, so that a long command outlives a disturbance
FIRST_TRY_SECONDS, LONGEST_TRY_SECONDS = 0.5, 10.0  # pauses between these tries
NUMBER = re.compile(r"\d+")

log = structlog.get_logger("veil")


def ceiling(pauses: int, first: float, longest: float) -> float:
    """Return the longest next pause in seconds, after a number of earlier `pauses`.

    It is `first` at the beginning, doubles with each pause, and never exceeds `longest`.
    """
    return min(longest, first * 2.0 ** min(pauses, MAX_DOUBLINGS))


def patiently(call: Callable[[], Result]) -> Result:
    """Return what `call` returns. Repeat it after a pause, up to TRIES, if it raises
    StorageUnavailable.
    """
    for pauses in range(TRIES - 1):
        try:
            return call()
        except StorageUnavailable:
            longest = ceiling(pauses, FIRST_TRY_SECONDS, LONGEST_TRY_SECONDS)
            time.sleep(random.uniform(longest / 2, longest))
    return call()


class Backoff:
    """The tries to reach one server, which may be unavailable."""

    def __init__(
        self,
        server: str,
        longest_pause: float = LONGEST_PAUSE_SECONDS,
        place: str | None = None,
    ) -> None:
        """Log outages as those of `server`, and of `place` there, if it is given."""
        self._names = {"server": server} if place is None else {"server": server, "place": place}
        self._longest_pause = longest_pause
        self._failures = 0
        self._began = 0.0
        self._reported = ""  # the outage that was reported last

    @property
    def is_away(self) -> bool:
        """True if the last try has failed."""
        return self._failures > 0

    def failed(self, error: VeilError) -> float:
        """Record a failed try, and return the pause in seconds before the next one.

        The pause doubles with each failed try, and includes jitter. The first failed try is logged,
        and each later one with another error.
        """
        reported = _without_numbers(error)
        if not self._failures:
            self._began = time.monotonic()
            self.report_outage(error)
        elif reported != self._reported:
            self.report_change(error)
        self._reported = reported
        longest = ceiling(self._failures, FIRST_PAUSE_SECONDS, self._longest_pause)
        self._failures += 1
        return random.uniform(longest / 2, longest)

    def succeeded(self) -> None:
        """Record a try that succeeded. The first one after an outage is logged."""
        if self._failures:
            self.report_recovery(time.monotonic() - self._began)
            self._failures = 0

    def report_outage(self, error: VeilError) -> None:
        log.error("away", **self._names, **log_fields(error))

    def report_change(self, error: VeilError) -> None:
        log.error("still away", **self._names, **log_fields(error))

    def report_recovery(self, seconds: float) -> None:
        log.info("back", **self._names, seconds=round(seconds, 1))


def _without_numbers(error: VeilError) -> str:
    """Return the class and the message of `error`, without numbers that change with each try."""
    return f"{type(error).__name__}: {NUMBER.sub('', str(error))}"


class ReportingBackoff(Backoff):
    """A backoff that reports outages to the user instead of the log."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` gets a line for each outage and each return."""
        super().__init__("s3 or redis")
        self._tell = tell

    def report_outage(self, error: VeilError) -> None:
        self._tell(f"{type(error).__name__}: {error}; waiting")

    def report_change(self, error: VeilError) -> None:
        """Report nothing: whoever looks on knows that the command waits."""

    def report_recovery(self, seconds: float) -> None:
        self._tell(f"goes on after {seconds:.1f} s")

    def until_reached(self, call: Callable[[], Result]) -> Result:
        """Return what `call` returns, which is repeated while Redis can't be used."""
        while True:
            try:
                result = call()
            except QueueUnavailable as error:
                time.sleep(self.failed(error))
                continue
            self.succeeded()
            return result
