"""Structured logs, one line per outcome, on standard error; Celery's own lines take the same form."""

import logging
import sys
from typing import Any

import structlog
from celery.signals import setup_logging


def configure(form: str) -> None:
    """Send all logs to standard error, as ``json`` or ``console``; ``auto`` is ``console`` on a terminal."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not console:
        final.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*final, renderer]))
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
    # With a receiver on this signal Celery leaves logging alone.
    setup_logging.connect(_leave_alone, weak=False)


def _leave_alone(**_: Any) -> None:
    """Logging is configured already."""
