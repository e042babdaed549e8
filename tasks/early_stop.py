"""A stop of a process that has not begun its work: a signal ends it at once, as a clean stop."""

import os
import signal
import threading
from typing import Any

import structlog

STOPPED = "stopped"  # the last line of the log of a process that a signal has stopped

log = structlog.get_logger("veil")


def stop_at_once_on_signals() -> None:
    """Let SIGTERM and SIGINT end this process with exit code 0, because it has no message yet.

    The process replaces these handlers before it takes its first message.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)


def _stop(*_: Any) -> None:
    if structlog.is_configured():  # otherwise the line would not have the form of the log
        log.info(STOPPED, reason="a signal during the start")
    os._exit(os.EX_OK)
