"""The circuit breaker: an outage of a route's store costs no picture its retries.

After a failed call the worker probes the route in the same way. If the probe fails too, there is an
outage; otherwise the failure concerns this picture alone. During an outage one thread for each
closed route probes with growing pauses, and pictures of the route are postponed without being
fetched. Failures during an outage do not count as tries. If all routes are closed, the worker takes
no messages.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable

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
from ..routes import Route

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REMINDER_SECONDS = 60.0  # between two lines of the log about the same outage
STORE_ERRORS = (StorageUnavailable, CredentialsRefused, DestinationUnavailable)

Probe = Callable[[Route], None]
"""A function that raises one of STORE_ERRORS during an outage of a route."""

log = structlog.get_logger("veil")


class CircuitBreaker:
    """The circuit breaker of a worker, shared by its threads: a circuit for each route."""

    def __init__(
        self,
        set_paused: Callable[[bool], None],
        probe: Probe,
        routes: Iterable[Route],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`set_paused` is called with True when the last route is closed, with False afterwards.

        `probe` is called with one of `routes` at a time in each thread.
        """
        self._set_paused = set_paused
        self._probe = probe
        self._sleep = sleep
        self._lock = threading.Lock()
        self._checking = threading.Lock()
        self._probing = {route: threading.Lock() for route in routes}
        self._failures: dict[Route, VeilError] = {}

    @property
    def is_open(self) -> bool:
        """True if all routes are closed, so that the worker takes no messages."""
        return len(self._failures) == len(self._probing)

    @property
    def closed_routes(self) -> int:
        """The number of routes with an outage."""
        return len(self._failures)

    @property
    def routes(self) -> tuple[Route, ...]:
        return tuple(self._probing)

    def is_up(self, route: Route) -> bool:
        """Return whether `route` has no outage."""
        return route not in self._failures

    def raise_if_closed(self, route: Route) -> None:
        """Raise the error of the outage of `route`, if there is one."""
        if failure := self._failures.get(route):
            # Many threads raise it, and each would add its frames to one traceback.
            raise type(failure)(str(failure))

    def is_outage(self, error: Transient, route: Route) -> bool:
        """Return whether `error` is part of an outage of `route`; close the route if it is new.

        Waits for the probe unless the route is closed already.
        """
        return isinstance(error, STORE_ERRORS) and self._is_closed(route)

    def check(self) -> None:
        """Probe all routes, and close those with an outage. Only one thread does so at a time."""
        if not self._checking.acquire(blocking=False):
            return
        try:
            for route in self._probing:
                self._is_closed(route)
        finally:
            self._checking.release()

    def _is_closed(self, route: Route) -> bool:
        """Return whether `route` is closed, by a probe unless that is known; close it if so."""
        with self._probing[route]:
            if route in self._failures:
                return True
            failure = self._failure(route)
            if failure is None:
                return False
            try:
                self._close(route, failure)
            except RuntimeError as error:
                # No thread can be started. The next failure closes the route.
                log.error("route not closed", **_fields(route), reason=str(error))
        return True

    def _close(self, route: Route, failure: VeilError) -> None:
        """Close `route` until the store is back; raise RuntimeError if no thread can be started."""
        with self._lock:
            # Without its thread the route would stay closed, so the thread starts first. It can't
            # open the route before the lock is released.
            threading.Thread(
                target=self._wait, args=(route, failure), name="circuit breaker", daemon=True
            ).start()
            self._failures[route] = failure
            self._set_paused(self.is_open)
            is_open = self.is_open
        action = "taking nothing until it is back" if is_open else "other routes go on"
        log.error("store away", **_fields(route), **log_fields(failure), action=action)
        # Other routes may have the same store.
        threading.Thread(target=self.check, name="routes", daemon=True).start()

    def _wait(self, route: Route, failure: VeilError) -> None:
        """Probe until the store is back, then open the route."""
        began = reminded = time.monotonic()
        probes = 0
        last: VeilError | None = failure
        while last is not None:
            longest = ceiling(probes, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            # Jitter keeps several workers from coming back at the same moment.
            self._sleep(max(random.uniform(longest / 2, longest), requested_pause(last)))
            last = self._failure(route)
            probes += 1
            now = time.monotonic()
            if last is not None and now - reminded >= REMINDER_SECONDS:
                away = round(now - began)
                log.error("store still away", **_fields(route), **log_fields(last), seconds=away)
                reminded = now
        log.warning("store back", **_fields(route), seconds=round(time.monotonic() - began, 1))
        with self._lock:
            del self._failures[route]
            self._set_paused(False)

    def _failure(self, route: Route) -> VeilError | None:
        """Return the error of the probe if it is an outage of the store."""
        try:
            self._probe(route)
        except STORE_ERRORS as error:
            return error
        except Exception as error:  # Neither another error nor a bug may stop the worker.
            log.error("probe failed", **_fields(route), error=type(error).__name__)
        return None


def _fields(route: Route) -> dict[str, str]:
    """Return the fields of a log line about `route`: its address, and its name if it has one."""
    return {"route": str(route)} | ({"route_name": route.name} if route.name else {})


def requested_pause(error: VeilError) -> float:
    """Return the pause in seconds that the store requested with `error`, or 0."""
    return (error.retry_after or 0.0) if isinstance(error, StorageUnavailable) else 0.0
