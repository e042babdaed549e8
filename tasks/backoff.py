"""Growing pauses between tries to reach a server, and one log line at each end of an outage."""

import random
import time

import structlog

from .errors import VeilError, log_fields

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 15.0
MAX_DOUBLINGS = 32  # keeps the power within the range of a float

log = structlog.get_logger("veil")


def ceiling(pauses: int, first: float, longest: float) -> float:
    """Return the longest next pause in seconds, after a number of earlier `pauses`.

    It is `first` at the beginning, doubles with each pause, and never exceeds `longest`.
    """
    return min(longest, first * 2.0 ** min(pauses, MAX_DOUBLINGS))


class Backoff:
    """The tries to reach one server, which may be unavailable."""

    def __init__(self, server: str, longest_pause: float = LONGEST_PAUSE_SECONDS) -> None:
        self._server = server
        self._longest_pause = longest_pause
        self._failures = 0
        self._began = 0.0

    def failed(self, error: VeilError) -> float:
        """Record a failed try, and return the pause in seconds before the next one.

        The pause doubles with each failed try, and includes jitter. The first failed try is logged.
        """
        if not self._failures:
            self._began = time.monotonic()
            self.report_outage(error)
        longest = ceiling(self._failures, FIRST_PAUSE_SECONDS, self._longest_pause)
        self._failures += 1
        return random.uniform(longest / 2, longest)

    def succeeded(self) -> None:
        """Record a try that succeeded. The first one after an outage is logged."""
        if self._failures:
            self.report_recovery(time.monotonic() - self._began)
            self._failures = 0

    def report_outage(self, error: VeilError) -> None:
        log.error("away", server=self._server, **log_fields(error))

    def report_recovery(self, seconds: float) -> None:
        log.info("back", server=self._server, seconds=round(seconds, 1))
