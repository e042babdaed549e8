"""The end of a worker: pictures in hand are finished within a grace period, everything else goes
back at once.
"""

import os
import signal
import threading
from typing import Any

import structlog
from celery import bootsteps
from celery.signals import worker_shutdown
from celery.worker import state

from tasks.delivery.leases import Leases
from tasks.delivery.transport import Transport

EXIT_CUT_OFF = 1  # not every picture in hand was finished; all are back in the queue

log = structlog.get_logger("veil")


class ShutdownStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Takes the place of Celery's handlers of signals, which wait for a pool of threads without
    limit.

    The first SIGTERM or SIGINT ends the worker after the pictures in hand, or after the grace
    period if they take longer; the second one, or SIGQUIT, now. Whatever is not finished then is
    given back.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        self._leases: Leases = Transport.leases
        self._grace_seconds: float = worker.app.conf.worker_soft_shutdown_timeout
        self._begun = threading.Event()
        self._cut_off = threading.Event()
        super().__init__(worker, **options)

    def start(self, worker: Any) -> None:
        threading.Thread(target=self._end_after_grace, name="grace", daemon=True).start()
        worker_shutdown.connect(self._leave, sender=worker, weak=False)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, self._on_signal)

    def close(self, worker: Any) -> None:
        """Give back what has not begun. The event loop has ended, so nothing new begins."""
        self._begun.set()
        worker.pool.executor.shutdown(wait=False, cancel_futures=True)
        waiting = {*state.scheduled_requests, *state.reserved_requests} - {*state.active_requests}
        self._leases.give_back({request.message.delivery_tag for request in waiting})

    def stop(self, worker: Any) -> None:
        """The pool, which stops next, waits for its threads."""

    terminate = stop

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._begun.is_set() or number == signal.SIGQUIT:
            self._cut_off.set()
        self._begun.set()
        state.should_stop = os.EX_OK

    def _end_after_grace(self) -> None:
        self._begun.wait()
        again = self._cut_off.wait(self._grace_seconds)
        unfinished = self._leases.give_back()
        reason = (
            "told again"
            if again
            else f"not finished within {self._grace_seconds:g} s (VEIL_GRACE_SECONDS)"
        )
        log.error("cut off", unfinished=unfinished, reason=reason)
        os._exit(EXIT_CUT_OFF)

    def _leave(self, **_: Any) -> None:
        self._leases.close()
