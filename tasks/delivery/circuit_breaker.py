"""The circuit breaker: a store that is away stops the worker from taking messages, and spends no
picture's tries.

A try that failed is looked into: if the same way is closed to a probe too, it is an outage, else
the picture's own trouble. During an outage one thread probes, with growing pauses; pictures that
fail meanwhile are not held against.
"""

import random
import threading
import time
from collections.abc import Callable

import structlog

from tasks.backoff import ceiling
from tasks.errors import (
    CredentialsRefused,
    DestinationUnavailable,
    StorageUnavailable,
    Transient,
    VeilError,
)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REMINDER_SECONDS = 60.0
RETRY_SECONDS = 5.0  # within which pictures are tried again, once messages are taken again
OF_THE_STORE = (StorageUnavailable, CredentialsRefused, DestinationUnavailable)

Probe = Callable[[], None]
"""Raises a VeilError while the store is away."""

log = structlog.get_logger("veil")


class CircuitBreaker:
    """Whether the store is away, as this worker sees it. Threads share one."""

    def __init__(
        self, pause_taking: Callable[[bool], None], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """`pause_taking` is told True when no more messages are to be taken, and False at the
        end.
        """
        self._pause_taking = pause_taking
        self._sleep = sleep
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._over.set()

    @property
    def lasts(self) -> bool:
        return not self._over.is_set()

    def explains(self, error: Transient, probe: Probe) -> bool:
        """Whether `error` befell its picture because the store is away for all of them.

        Waits for `probe`. From the first time on that it does, nothing is taken until `probe`
        passes.
        """
        if not isinstance(error, OF_THE_STORE):
            return False
        with self._lock:
            if self.lasts:
                return True
            failure = _failure(probe)
            if failure is None:
                return False
            self._over.clear()
            self._pause_taking(True)
        log.error("store away", **_described(failure), action="taking nothing until it is back")
        threading.Thread(
            target=self._wait, args=(probe, failure), name="circuit breaker", daemon=True
        ).start()
        return True

    def _wait(self, probe: Probe, failure: VeilError) -> None:
        began = reminded = time.monotonic()
        probes = 0
        last: VeilError | None = failure
        while last is not None:
            # Several workers must not come back as one.
            longest = ceiling(probes, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            self._sleep(max(random.uniform(longest / 2, longest), asked_pause(last)))
            last = _failure(probe)
            probes += 1
            now = time.monotonic()
            if last is not None and now - reminded >= REMINDER_SECONDS:
                log.error("store still away", **_described(last), seconds=round(now - began))
                reminded = now
        log.warning("store back", seconds=round(time.monotonic() - began, 1))
        with self._lock:
            self._pause_taking(False)
            self._over.set()


def asked_pause(error: VeilError) -> float:
    """The seconds that the store asked to be left alone for."""
    return (error.retry_after or 0.0) if isinstance(error, StorageUnavailable) else 0.0


def _failure(probe: Probe) -> VeilError | None:
    try:
        probe()
    except OF_THE_STORE as error:
        return error
    except (
        Exception
    ) as error:  # neither that nor a bug in the probe may keep a worker from work for good
        log.error("probe failed", error=type(error).__name__)
    return None


def _described(error: VeilError) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}
