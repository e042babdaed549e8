"""The watchdog: it ends the process when work stalls.

A thread that is stuck in a library cannot be stopped, and a new process starts in seconds. Messages
in hand are delivered again when their leases end.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import structlog

EXIT_STALLED = 70
CHECK_SECONDS = 1.0  # the pause between two checks
LATE_SECONDS = 5.0  # a check that is later than this shows that the process did not run
# A library that never releases Python's global interpreter lock stops the watchdog's thread too.
# faulthandler ends the process then, from a thread that needs no lock.
FROZEN_SECONDS = 120

log = structlog.get_logger("veil")


def _ignore(_stalled: str) -> None:
    """Do nothing about stalled work beyond its line in the log."""


@dataclass(frozen=True)
class _Watched:
    work: str
    began: float
    seconds: float


class Watchdog:
    """Ends the process when a piece of work exceeds its time limit."""

    def __init__(
        self,
        exit_: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
        check_seconds: float = CHECK_SECONDS,
        frozen_seconds: float = FROZEN_SECONDS,
        on_stall: Callable[[str], None] = _ignore,
    ) -> None:
        """Call `on_stall` with the stalled work before the process ends. It must return quickly."""
        self._exit = exit_
        self._clock = clock
        self._check_seconds = check_seconds
        self._frozen_seconds = frozen_seconds
        self._on_stall = on_stall
        self._lock = threading.Lock()
        self._watched: dict[Hashable, _Watched] = {}
        self._due: float | None = None  # when the next check is due

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def begin(self, key: Hashable, work: str, seconds: float) -> None:
        """Expect ``end(key)`` within `seconds`; otherwise log `work` and end the process."""
        with self._lock:
            self._watched[key] = _Watched(work, self._clock(), seconds)

    def end(self, key: Hashable) -> None:
        with self._lock:
            self._watched.pop(key, None)

    @contextmanager
    def watch(self, work: str, seconds: float) -> Iterator[None]:
        """Call `begin` before the block and `end` after it."""
        key = object()
        self.begin(key, work, seconds)
        try:
            yield
        finally:
            self.end(key)

    def check(self) -> None:
        """End the process if a piece of work has stalled.

        The time in which the whole process did not run counts for no work.
        """
        now = self._clock()
        late = 0.0 if self._due is None else now - self._due
        self._due = now + self._check_seconds
        if late > LATE_SECONDS:
            self._forgive(late)
        with self._lock:
            watched = list(self._watched.values())
        stalled = [entry for entry in watched if now - entry.began > entry.seconds]
        if not stalled:
            return
        longest = min(stalled, key=lambda entry: entry.began)
        seconds = now - longest.began
        try:
            log.critical(
                "stalled", what=longest.work, seconds=round(seconds, 1), action="this process ends"
            )
            self._on_stall(f"{longest.work}, {seconds:.0f} s")
        finally:
            self._exit(EXIT_STALLED)

    def _forgive(self, seconds: float) -> None:
        """Give all work `seconds` more, and log that the process was frozen."""
        with self._lock:
            self._watched = {
                key: replace(entry, began=entry.began + seconds)
                for key, entry in self._watched.items()
            }
        log.warning("frozen", seconds=round(seconds, 1), action="this process goes on")

    def _run(self) -> None:
        while True:
            # When memory is short, no thread can be started, and the next round tries again.
            with suppress(RuntimeError):
                # The file descriptor is given because Celery replaces sys.stderr by an object that
                # is no file.
                faulthandler.dump_traceback_later(self._frozen_seconds, exit=True, file=2)
            with suppress(MemoryError):
                self.check()
            time.sleep(self._check_seconds)
