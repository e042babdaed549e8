"""SIGTERM ends a command as Ctrl-C does, so that it says what was done until then."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, so that it ends a command as Ctrl-C does."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated in the block if SIGTERM arrives, unless the block handles it itself."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
