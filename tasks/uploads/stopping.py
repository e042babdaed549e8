"""Stop a process on a signal: interrupt its waits, and let work in progress finish."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Stopped(BaseException):
    """Raised to interrupt a wait.

    Like KeyboardInterrupt it is no Exception, so code that handles failures does not catch it.
    """


class Stop:
    """The request to stop this process.

    Only for the main thread, to which Python delivers signals.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interruptible = False

    def on_signals(self) -> None:
        """Treat SIGTERM and SIGINT as requests to stop."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._request)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Stopped anywhere in the block when a stop is requested, or at its start if one was.

        The block must not contain work that has to be finished.
        """
        self._interruptible = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._interruptible = False

    def wait(self, seconds: float) -> bool:
        """Wait for `seconds` or until a stop is requested; return whether it was requested."""
        with suppress(Stopped), self.interruptible():
            time.sleep(seconds)
        return self.requested

    def _request(self, *_: Any) -> None:
        self.requested = True
        if self._interruptible:
            self._interruptible = False
            raise Stopped
