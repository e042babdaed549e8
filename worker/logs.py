"""Structured logs on standard error, one line per outcome; Celery's lines take the same form."""

import logging
import os
import sys
from typing import Any

import structlog
from celery.signals import setup_logging, worker_ready
from celery.utils.log import worker_logger
from celery.worker.consumer import consumer
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from structlog.typing import EventDict, Processor

from tasks.errors import QueueUnavailable
from tasks.redis.errors import log_unavailable
from worker.printing import printable

QUIET_LOGGERS = ("celery.worker", "celery.apps.worker", "kombu")
CONNECTION_LOGGER = "urllib3.connectionpool"
FULL_POOL = "Connection pool is full"  # the start of a message of CONNECTION_LOGGER


def configure(form: str, redis_server: str | None = None, worker: str | None = None) -> None:
    """Send all logs to standard error in `form`: ``json``, ``console`` or ``auto``.

    ``auto`` is ``console`` if standard error is a terminal, else ``json``. Lines about Redis also
    have the field ``redis``, with `redis_server` (``HOST:PORT``), if it is given. All lines have
    the field ``worker`` if the name of a `worker` is given.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([_name_redis(redis_server)] if redis_server else []),
        *([_name_worker(worker)] if worker else []),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_for_console() if console else _for_json()),
            ],
        )
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
    _set_levels()
    logging.getLogger(consumer.__name__).addFilter(_name_outages)
    worker_logger.addFilter(_name_refusals)
    logging.getLogger(CONNECTION_LOGGER).addFilter(_is_no_full_pool)
    # Celery configures no logging if this signal has a receiver.
    setup_logging.connect(_keep_logging, weak=False)
    worker_ready.connect(_warn_of_root, weak=False)


def configure_command(form: str) -> None:
    """Send the warnings and errors of a command that ends by itself to standard error in `form`.

    What it has to say at its end is its summary, so it has no lines of the level ``info``.
    """
    configure(form)
    logging.getLogger("veil").setLevel(logging.WARNING)


def use_standard_library() -> None:
    """Send logs to the logger ``veil`` of the standard library, as a library does.

    Without a configuration structlog would print them to standard output, which belongs to the
    program. A program that has configured structlog keeps its configuration.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )


def _for_console() -> list[Processor]:
    from rich.console import Console  # Only the console form needs Rich.

    # Rich knows NO_COLOR, FORCE_COLOR and what the terminal can show.
    console = Console(stderr=True)
    renderer = structlog.dev.ConsoleRenderer(
        colors=console.color_system is not None and not console.no_color,
        # By default tracebacks show local variables, among them pixels, keys and passwords.
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [_escape, renderer]


def _for_json() -> list[Processor]:
    renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    return [structlog.processors.format_exc_info, renderer]


def _set_levels() -> None:
    logging.getLogger("veil").setLevel(logging.INFO)
    # Libraries warn of unusual pictures in prose. The outcome of a picture says what matters.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _name_redis(server: str) -> Processor:
    """Return a processor that adds `server` to lines about an unavailable Redis."""

    def add(_logger: Any, _method: str, line: EventDict) -> EventDict:
        if line.get("error") == QueueUnavailable.__name__:
            line["redis"] = server
        return line

    return add


def _name_worker(name: str) -> Processor:
    """Return a processor that adds the `name` of the worker to each line."""

    def add(_logger: Any, _method: str, line: EventDict) -> EventDict:
        line["worker"] = name
        return line

    return add


def _escape(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """Escape the control characters in values of messages, because a terminal would obey them.

    The JSON renderer needs no such step: JSON escapes them.
    """
    return {
        name: printable(value) if isinstance(value, str) else value for name, value in line.items()
    }


def _name_outages(record: logging.LogRecord) -> bool:
    """Replace Celery's paragraph about a lost Redis by one line that names the error."""
    arguments = record.args or ()
    if record.msg != consumer.CONNECTION_ERROR and consumer.CONNECTION_RETRY not in arguments:
        return True
    (error,) = [argument for argument in arguments if isinstance(argument, Exception)]
    log_unavailable(error)
    return False


def _name_refusals(record: logging.LogRecord) -> bool:
    """Replace Celery's traceback by one line if an error of Redis ends the worker.

    Such an error is a refusal, of a command or a channel that the user may not use.
    """
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, KombuError | RedisError):
        return True
    log_unavailable(error)
    return False


def _is_no_full_pool(record: logging.LogRecord) -> bool:
    """Drop the warning of a full connection pool: the request succeeded, and nothing is to do."""
    return not str(record.msg).startswith(FULL_POOL)


def _warn_of_root(**_: Any) -> None:
    """Log a warning if the worker runs as root. It replaces Celery's, which tasks.app silences."""
    if os.geteuid() == 0:
        structlog.get_logger("veil").warning(
            "worker runs as root",
            effect="a defect in a decoder of pictures endangers the machine: use another user",
        )


def _keep_logging(**_: Any) -> None:
    """Keep the logging that `configure` set up."""
