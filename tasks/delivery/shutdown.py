"""Shutdown of a worker: finish the pictures at work in a grace period, and give back all others.

The exit code after a signal is 0, unless pictures at work were not finished. It is 2 if Redis
refuses a right that the worker needs, because another start would fail in the same way.
"""

import os
import signal
import sys
import threading
from typing import Any

import structlog
from celery import bootsteps
from celery.signals import worker_shutdown
from celery.worker import state

from ..early_stop import STOPPED
from ..redis.errors import lacks_right, queue_unavailable, tried
from ..settings import Settings
from . import in_hand
from .leases import Leases
from .steps import UNUSABLE, print_refusal
from .transport import Transport

EXIT_CUT_OFF = 1  # a picture at work was not finished; its message is back on the queue

log = structlog.get_logger("veil")


class ShutdownStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Signal handlers in place of Celery's, which wait for a thread pool without a limit.

    After the first SIGTERM or SIGINT the worker finishes the pictures at work, for at most the
    grace period. After a second one, or SIGQUIT, it exits at once. Unfinished messages are given
    back.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        self._leases: Leases = Transport.leases
        self._app = worker.app
        self._grace_seconds: float = worker.app.conf.worker_soft_shutdown_timeout
        self._begun = threading.Event()
        self._cut_off = threading.Event()
        self._log_lock = threading.Lock()
        self._has_logged = False
        super().__init__(worker, **options)

    def start(self, worker: Any) -> None:
        threading.Thread(target=self._exit_after_grace, name="grace", daemon=True).start()
        worker_shutdown.connect(self._close_leases, sender=worker, weak=False)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, self._on_signal)

    def close(self, worker: Any) -> None:
        """Give back messages that are not at work. The event loop has ended, so no work begins."""
        self._begun.set()
        worker.pool.executor.shutdown(wait=False, cancel_futures=True)
        self._leases.give_back(in_hand.waiting_tags())

    def stop(self, worker: Any) -> None:
        """Do nothing: the pool, which stops next, waits for its threads."""

    terminate = stop

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._begun.is_set() or number == signal.SIGQUIT:
            self._cut_off.set()
        self._begun.set()
        state.should_stop = os.EX_OK

    def _exit_after_grace(self) -> None:
        self._begun.wait()
        self._log_stopping()
        reason = f"not finished within {self._grace_seconds:g} s (VEIL_GRACE_SECONDS)"
        if self._cut_off.wait(self._grace_seconds):
            reason = "SIGQUIT or a second signal"
        self._leases.stop_taking()
        # A picture that is cut off has killed no process, so its attempt must not stay.
        unfinished = self._leases.give_back(attempts=self._app.work.deliveries.close())
        if not unfinished:
            log.info(STOPPED)
            os._exit(os.EX_OK)
        # Nothing is lost: the messages are delivered again.
        log.warning("cut off", unfinished=unfinished, reason=reason)
        os._exit(EXIT_CUT_OFF)

    def _log_stopping(self) -> None:
        """Log once that the worker stops. Whichever thread logs its end logs this before."""
        with self._log_lock:
            if not self._has_logged:
                at_work = len(state.active_requests)
                log.info("stopping", at_work=at_work, grace_seconds=self._grace_seconds)
            self._has_logged = True

    def _close_leases(self, sender: Any, **_: Any) -> None:
        self._leases.close()
        if self._begun.is_set():
            self._log_stopping()
        error = sys.exc_info()[1]  # that Celery is handling: it ends the worker
        if error is not None and lacks_right(error):
            reason = str(queue_unavailable(error))
            print_refusal(reason + tried(reason, Settings.load().redis_server()))
            sender.exitcode = UNUSABLE
        if not sender.exitcode:
            log.info(STOPPED)
