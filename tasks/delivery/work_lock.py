"""The lock that pictures of one process hold while they are worked on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import Busy


class WorkLock:
    """A lock that many pictures share, or that one picture holds exclusively.

    A request for the exclusive lock goes before requests for the shared lock that come later.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._is_exclusive = False
        self._exclusive_requests = 0

    @contextmanager
    def shared(self, seconds: float) -> Iterator[None]:
        """Hold the lock together with other pictures.

        Raises Busy if the lock is held exclusively, or requested so, for longer than `seconds`.
        """
        with self._changed:
            self._wait(lambda: not self._is_exclusive and not self._exclusive_requests, seconds)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self, seconds: float) -> Iterator[None]:
        """Hold the lock alone. Raises Busy if others hold it for longer than `seconds`."""
        with self._changed:
            self._exclusive_requests += 1
            try:
                self._wait(lambda: not self._is_exclusive and not self._sharing, seconds)
                self._is_exclusive = True
            finally:
                self._exclusive_requests -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._is_exclusive = False
                self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        if not self._changed.wait_for(condition, seconds):
            raise Busy(f"this worker has been busy with other pictures for {seconds:g} s")
