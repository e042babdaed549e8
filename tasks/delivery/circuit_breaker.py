"""The circuit breaker: an outage of the store stops a worker, and costs no picture its retries.

After a failed call the worker probes the store in the same way. If the probe fails too, there is an
outage; otherwise the failure concerns this picture alone. During an outage the worker takes no
messages, and one thread probes the store with growing pauses. Failures of other pictures in the
meantime do not count as tries.
"""

import random
import threading
import time
from collections.abc import Callable

import structlog

from ..backoff import ceiling
from ..errors import (
    CredentialsRefused,
    DestinationUnavailable,
    StorageUnavailable,
    Transient,
    VeilError,
    log_fields,
)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REMINDER_SECONDS = 60.0  # between two lines of the log about the same outage
STORE_ERRORS = (StorageUnavailable, CredentialsRefused, DestinationUnavailable)

Probe = Callable[[], None]
"""A function that raises one of STORE_ERRORS during an outage of the store."""

log = structlog.get_logger("veil")


class CircuitBreaker:
    """The circuit breaker of a worker, shared by its threads. It is open during an outage."""

    def __init__(
        self, set_paused: Callable[[bool], None], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """`set_paused` is called with True when an outage begins, and with False when it ends."""
        self._set_paused = set_paused
        self._sleep = sleep
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._closed.set()

    @property
    def is_open(self) -> bool:
        return not self._closed.is_set()

    def is_outage(self, error: Transient, probe: Probe) -> bool:
        """Return whether `error` is part of an outage of the store; open the breaker if it is new.

        Waits for `probe` unless the breaker is open already.
        """
        if not isinstance(error, STORE_ERRORS):
            return False
        with self._lock:
            if self.is_open:
                return True
            failure = _failure(probe)
            if failure is None:
                return False
            self._closed.clear()
            self._set_paused(True)
        log.error("store away", **log_fields(failure), action="taking nothing until it is back")
        threading.Thread(
            target=self._wait, args=(probe, failure), name="circuit breaker", daemon=True
        ).start()
        return True

    def _wait(self, probe: Probe, failure: VeilError) -> None:
        """Probe until the store is back, then close the breaker."""
        began = reminded = time.monotonic()
        probes = 0
        last: VeilError | None = failure
        while last is not None:
            longest = ceiling(probes, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            # Jitter keeps several workers from coming back at the same moment.
            self._sleep(max(random.uniform(longest / 2, longest), requested_pause(last)))
            last = _failure(probe)
            probes += 1
            now = time.monotonic()
            if last is not None and now - reminded >= REMINDER_SECONDS:
                log.error("store still away", **log_fields(last), seconds=round(now - began))
                reminded = now
        log.warning("store back", seconds=round(time.monotonic() - began, 1))
        with self._lock:
            self._set_paused(False)
            self._closed.set()


def requested_pause(error: VeilError) -> float:
    """Return the pause in seconds that the store requested with `error`, or 0."""
    return (error.retry_after or 0.0) if isinstance(error, StorageUnavailable) else 0.0


def _failure(probe: Probe) -> VeilError | None:
    """Return the error of `probe` if it is an outage of the store."""
    try:
        probe()
    except STORE_ERRORS as error:
        return error
    except Exception as error:  # Neither another error nor a bug in the probe may stop the worker.
        log.error("probe failed", error=type(error).__name__)
    return None
