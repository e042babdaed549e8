"""Growing pauses between tries of a server that is away, which is told once, and once more when it
is back.
"""

import random
import time

import structlog

from tasks.errors import VeilError

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 15.0

log = structlog.get_logger("veil")


def ceiling(tries: int, first: float, longest: float) -> float:
    """Return the longest pause, in seconds, after `tries` earlier pauses, each twice the one
    before.
    """
    return min(longest, first * 2.0 ** min(tries, 32))


class Backoff:
    """Tries of one server that may be away."""

    def __init__(self, server: str, longest_pause: float = LONGEST_PAUSE_SECONDS) -> None:
        self._server = server
        self._longest_pause = longest_pause
        self._tries = 0
        self._began = 0.0

    def failed(self, error: VeilError) -> float:
        """Note a try that failed with `error`; how many seconds to pause: twice as long each time,
        with jitter.
        """
        if not self._tries:
            self._began = time.monotonic()
            self.tell_away(error)
        longest = ceiling(self._tries, FIRST_PAUSE_SECONDS, self._longest_pause)
        self._tries += 1
        return random.uniform(longest / 2, longest)

    def over(self) -> None:
        """Note a try that went well."""
        if self._tries:
            self.tell_back(time.monotonic() - self._began)
            self._tries = 0

    def tell_away(self, error: VeilError) -> None:
        log.error("away", server=self._server, error=type(error).__name__, message=str(error))

    def tell_back(self, seconds: float) -> None:
        log.info("back", server=self._server, seconds=round(seconds, 1))
