"""The results of tasks as producers read them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from celery.backends.redis import ResultConsumer

from .errors import QueueUnavailable
from .redis.errors import connected
from .redis.transport import PrimaryBackend

WORKERS_PACKAGE = "tasks"  # the name under which workers import this package
# The time that `get` waits for a Redis that went away, and the pause between its tries.
OUTAGE_SECONDS = 20.0
OUTAGE_PAUSE_SECONDS = 1.0


class Subscriptions(ResultConsumer):  # type: ignore[misc]
    """The subscriptions to results, which go on once a Redis that went away is back. Thread-safe.

    Celery's class tries for 20 s, in which it locks out all threads, and then wants the program to
    be restarted. This one tries once, and raises QueueUnavailable. A `get` tries again.
    """

    _lost_at: float | None = None

    def consume_from(self, task_id: str) -> None:
        """Subscribe to the result of a task. Raises QueueUnavailable."""
        key = self._get_key_for_task(task_id)
        with self._locked():
            is_new = key not in self.subscribed_to
            try:
                self._restore()
                with connected():
                    super().consume_from(task_id)
            except QueueUnavailable:
                if is_new:
                    self.subscribed_to.discard(key)
                raise

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for results. Raises QueueUnavailable once Redis has been away for a while."""
        try:
            with self._locked():
                self._restore()
            super().drain_events(timeout)
        except QueueUnavailable:
            now = time.monotonic()
            self._lost_at = self._lost_at or now
            if now - self._lost_at > OUTAGE_SECONDS:
                self._lost_at = None
                raise
            time.sleep(OUTAGE_PAUSE_SECONDS)
        else:
            self._lost_at = None

    @contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        """Connect again after an error of the connection. Raises QueueUnavailable."""
        try:
            yield
        except TimeoutError:  # Nothing was there to read.
            raise
        except self._connection_errors:
            self._reconnect()

    def _restore(self) -> None:
        """Subscribe again if the last try failed."""
        if self._pubsub is None and self.subscribed_to:
            self._reconnect()

    def _reconnect(self) -> None:
        try:
            with connected():
                self._reconnect_pubsub()
        except BaseException:
            self._pubsub = None  # It may lack subscriptions.
            raise

    def _flush_pending_unsubscribe(self) -> None:
        # The connection is closed in an outage, and its subscriptions with it.
        with suppress(QueueUnavailable):
            super()._flush_pending_unsubscribe()


class ProducerBackend(PrimaryBackend):
    """Celery's Redis backend for producers.

    A stored error names the module of its class as the worker knows it, ``tasks.errors``. Celery
    looks that name up among the modules of the producer, where it is missing or another module if
    this package was imported as ``veil.tasks``.
    """

    ResultConsumer = Subscriptions

    def get(self, key: str) -> Any:
        """Return the stored result. Raises QueueUnavailable."""
        with connected():
            return super().get(key)

    def mget(self, keys: Sequence[str]) -> Any:
        """Return the stored results. Raises QueueUnavailable."""
        with connected():
            return super().mget(keys)

    def exception_to_python(self, exc: Any) -> Any:
        """Return the stored exception `exc` as an instance of the class of this package."""
        if isinstance(exc, dict) and isinstance(module := exc.get("exc_module"), str):
            exc = {**exc, "exc_module": local_module(module)}
        return super().exception_to_python(exc)


def local_module(name: str) -> str:
    """Return the name of a worker's module in this process; other names are returned unchanged."""
    package, dot, rest = name.partition(".")
    if package != WORKERS_PACKAGE or not dot:
        return name
    return f"{__package__}.{rest}"
