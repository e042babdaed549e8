"""The sender: a thread that gives the events of the outbox to their target."""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import datetime

import structlog
from redis.exceptions import RedisError

from ..backoff import Backoff, ceiling
from ..line_limit import LineLimit
from .events import Event
from .outbox import Outbox
from .targets import EventRefused, NotAccepted, Target

AT_ONCE = 10  # events that are sent at the same time
IDLE_SECONDS = 1.0  # from one look into an empty outbox to the next
REDIS_PAUSE_SECONDS = 5.0  # after Redis failed, which has log lines of its own
LONGEST_OUTAGE_PAUSE_SECONDS = 60.0  # between tries of a target that accepts nothing
FIRST_REFUSED_SECONDS, LONGEST_REFUSED_SECONDS = 5.0, 600.0  # between tries of a refused event

log = structlog.get_logger("veil")


class Sender:
    """Sends events until its process ends. An event that is not accepted for `hours` is given up.

    A target that accepts nothing is tried with one event at a time, and growing pauses.
    """

    def __init__(
        self,
        outbox: Outbox,
        target: Target,
        hours: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._target = target
        self._seconds = hours * 3600
        self._backoff = Backoff("notifications", LONGEST_OUTAGE_PAUSE_SECONDS)
        self._is_away = False
        self._refusals: dict[str, int] = {}
        self._refused_lines = LineLimit(clock)

    def start(self) -> None:
        threading.Thread(target=self._run, name="notifications", daemon=True).start()

    def _run(self) -> None:
        asyncio.run(self._send_all())

    async def _send_all(self) -> None:
        while True:
            try:
                pause = await self.send_due()
            except (RedisError, OSError):
                pause = REDIS_PAUSE_SECONDS
            except Exception as error:  # Any error: without this thread no event would be sent.
                log.error("bug", error=type(error).__name__, exc_info=error)
                pause = LONGEST_OUTAGE_PAUSE_SECONDS
            await asyncio.sleep(pause)

    async def send_due(self) -> float:
        """Send the events that are due, and return the seconds until the next look."""
        events = self._outbox.take(1 if self._is_away else AT_ONCE)
        if more := self._refused_lines.take_left_out():
            log.warning("more notifications refused", notifications=more)
        if not events:
            return IDLE_SECONDS
        sends = [self._send(key, event) for key, event in events.items()]
        errors = await asyncio.gather(*sends)
        failures = [error for error in errors if isinstance(error, NotAccepted)]
        if failures:
            self._is_away = True
            return self._backoff.failed(failures[0])
        if None in errors:  # A target that refuses every event has not recovered from an outage.
            self._is_away = False
            self._backoff.succeeded()
        return 0.0

    async def _send(self, key: str, event: Event) -> NotAccepted | EventRefused | None:
        """Send `event`, and return the error if the target does not accept it."""
        try:
            await self._target.send(event)
        except EventRefused as error:
            self._postpone_refused(key, event, error)
            return error
        except NotAccepted as error:
            if not self._given_up(key, event, error):
                self._outbox.postpone([key], 0)
            return error
        self._outbox.remove(key)
        self._refusals.pop(key, None)
        return None

    def _postpone_refused(self, key: str, event: Event, error: EventRefused) -> None:
        if self._given_up(key, event, error):
            return
        refusals = self._refusals.get(key, 0)
        if not refusals and self._refused_lines.allows():
            log.warning(
                "notification refused", event_id=key, task_id=_task(event), message=f"{error}"
            )
        self._refusals[key] = refusals + 1
        pause = ceiling(refusals, FIRST_REFUSED_SECONDS, LONGEST_REFUSED_SECONDS)
        self._outbox.postpone([key], pause)

    def _given_up(self, key: str, event: Event, error: Exception) -> bool:
        """Remove an event that has waited too long, and return whether it has."""
        age = time.time() - datetime.fromisoformat(event["time"]).timestamp()
        if age < self._seconds:
            return False
        self._outbox.remove(key)
        self._refusals.pop(key, None)
        log.error("notification given up", event_id=key, task_id=_task(event), message=f"{error}")
        return True


def _task(event: Event) -> str:
    return str(event["data"].get("task_id", ""))
