"""A limit on log lines of one kind, so that a sender that errs does not flood the log."""

import time
from collections.abc import Callable

MAX_LINES = 10  # one by one, before the others are counted
COUNT_SECONDS = 60.0  # between two counts; after this time without a line, lines are free again


class LineLimit:
    """The first MAX_LINES lines are written, and the others counted, once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written = 0
        self._left_out = 0
        self._last_asked = self._next_count = clock()

    def allows(self) -> bool:
        """Return whether one more line may be written. It is counted if not."""
        now = self._clock()
        if now - self._last_asked >= COUNT_SECONDS:
            self._written = 0
        self._last_asked = now
        if self._written < MAX_LINES:
            self._written += 1
            return True
        self._left_out += 1
        return False

    def take_left_out(self) -> int:
        """Return the number of lines that are to be counted now; 0 before a minute is over."""
        now = self._clock()
        if not self._left_out or now < self._next_count:
            return 0
        self._next_count = now + COUNT_SECONDS
        left_out, self._left_out = self._left_out, 0
        return left_out
