"""Ends the process when work stalls: threads can't be stopped, and a new process is there in
seconds.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import structlog

EXIT_STALLED = 70
LOOK_SECONDS = 1.0
FROZEN_SECONDS = 120  # a library that keeps Python from running keeps this thread from it too

log = structlog.get_logger("veil")

Watch = Callable[[str, float], AbstractContextManager[None]]
"""What is done, and the seconds after which it has stalled, to the context in which it is done."""


def unwatched(_what: str, _seconds: float) -> AbstractContextManager[None]:
    """Watch nothing: a command that somebody runs by hand ends when they end it."""
    return nullcontext()


def _untold(_what: str) -> None:
    """Tell nobody but the log."""


class Watchdog:
    """Knows what must be over by when. What is in hand when the process ends comes back with its
    leases.
    """

    def __init__(
        self,
        exit_: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
        frozen_seconds: float = FROZEN_SECONDS,
        on_stall: Callable[[str], None] = _untold,
    ) -> None:
        """`on_stall` is told what has stalled, and must not take long."""
        self._exit = exit_
        self._clock = clock
        self._look_seconds = look_seconds
        self._frozen_seconds = frozen_seconds
        self._on_stall = on_stall
        self._lock = threading.Lock()
        self._watched: dict[Hashable, tuple[str, float, float]] = {}

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def begin(self, key: Hashable, what: str, seconds: float) -> None:
        """Expect ``end(key)`` within `seconds`, or end the process after a line in the log that
        names `what`.
        """
        with self._lock:
            self._watched[key] = what, self._clock(), seconds

    def end(self, key: Hashable) -> None:
        with self._lock:
            self._watched.pop(key, None)

    @contextmanager
    def watch(self, what: str, seconds: float) -> Iterator[None]:
        """`begin` and `end` around a block."""
        key = object()
        self.begin(key, what, seconds)
        try:
            yield
        finally:
            self.end(key)

    def look(self) -> None:
        """End the process if something has stalled."""
        now = self._clock()
        with self._lock:
            stalled = [
                (what, now - since)
                for what, since, seconds in self._watched.values()
                if now - since > seconds
            ]
        if stalled:
            what, seconds = max(stalled, key=lambda item: item[1])
            log.critical(
                "stalled", what=what, seconds=round(seconds, 1), action="this process ends"
            )
            self._on_stall(f"{what}, {seconds:.0f} s")
            self._exit(EXIT_STALLED)

    def _run(self) -> None:
        while True:
            # To file descriptor 2: Celery puts something that is no file in the place of
            # sys.stderr.
            faulthandler.dump_traceback_later(self._frozen_seconds, exit=True, file=2)
            self.look()
            time.sleep(self._look_seconds)
