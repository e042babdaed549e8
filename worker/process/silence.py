"""Silences native libraries, which write to standard error regardless of the log level."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2  # file descriptor


class _Silence:
    """The silence of this process, which several threads may want at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._kept = -1

    def begin(self) -> None:
        with self._lock:
            if not self._blocks:
                self._kept = os.dup(STDERR)
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, STDERR)
                os.close(null)
            self._blocks += 1

    def end(self) -> None:
        """End a block; the last one of all threads restores standard error."""
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                os.dup2(self._kept, STDERR)
                os.close(self._kept)


_silence = _Silence()


@contextmanager
def silenced() -> Iterator[None]:
    """Discard what this process writes to standard error within the block.

    Exceptions pass through.
    """
    _silence.begin()
    try:
        yield
    finally:
        _silence.end()
