"""Structured logs, one line per outcome, on standard error; Celery's own lines take the same
form.
"""

import logging
import sys
from typing import Any

import structlog
from celery.signals import setup_logging
from celery.worker.consumer import consumer

from tasks.redis_errors import queue_unavailable
from worker.printing import printable


def configure(form: str) -> None:
    """Send all logs to standard error, as ``json`` or ``console``; ``auto`` is ``console`` on a
    terminal.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # By default the console's tracebacks show local variables: pixels, keys and passwords.
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    final.append(_escape if console else structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*final, renderer])
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("veil").setLevel(logging.INFO)
    # Libraries warn of odd pictures in prose; what matters of a picture is in its outcome.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    for name in ("celery.worker", "celery.apps.worker", "kombu"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(consumer.__name__).addFilter(_name_outages)
    # With a receiver on this signal Celery leaves logging alone.
    setup_logging.connect(_leave_alone, weak=False)


def _escape(_logger: Any, _method: str, line: dict[str, Any]) -> dict[str, Any]:
    """Escape what a message brought: a terminal obeys control characters. JSON escapes them by
    itself.
    """
    return {
        name: printable(value) if isinstance(value, str) else value for name, value in line.items()
    }


def _name_outages(record: logging.LogRecord) -> bool:
    """Put a line with the name of the error in the place of the paragraph with which Celery reports
    a lost Redis.
    """
    if record.msg != consumer.CONNECTION_ERROR and consumer.CONNECTION_RETRY not in (
        record.args or ()
    ):
        return True
    (error,) = [part for part in record.args or () if isinstance(part, Exception)]
    failure = queue_unavailable(error)
    structlog.get_logger("veil").error(
        "queue unavailable", error=type(failure).__name__, message=str(failure)
    )
    return False


def _leave_alone(**_: Any) -> None:
    """Logging is configured already."""
