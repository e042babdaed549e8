"""When a process is told to end: its waits are cut short, and what it has in hand is finished."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Stopped(BaseException):
    """Raised in a wait that is cut short; like KeyboardInterrupt, nothing on the way takes it for a
    failure.
    """


class Stop:
    """Whether the process was told to end. For the main thread, where Python delivers signals."""

    def __init__(self) -> None:
        self.requested = False
        self._cut = False

    def on_signals(self) -> None:
        """Take SIGTERM and SIGINT as the order to end."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._request)

    @contextmanager
    def cut_short(self) -> Iterator[None]:
        """A block that raises Stopped, wherever it is, when the process is told to end, or has
        been.
        """
        self._cut = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._cut = False

    def wait(self, seconds: float) -> bool:
        """Pause for so long, or until told to end; whether that was so."""
        with suppress(Stopped), self.cut_short():
            time.sleep(seconds)
        return self.requested

    def _request(self, *_: Any) -> None:
        self.requested = True
        if self._cut:
            self._cut = False
            raise Stopped
