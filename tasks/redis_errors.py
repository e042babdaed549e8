"""Translation of errors of Redis and of its client libraries into QueueUnavailable."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from kombu.exceptions import KombuError
from redis.exceptions import (
    AuthenticationError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    WatchError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .errors import QueueUnavailable, log_fields

log = structlog.get_logger("veil")


def queue_unavailable(error: BaseException) -> QueueUnavailable:
    """Return the QueueUnavailable for an error of redis-py, or of kombu, which may wrap one."""
    causes = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    if any(isinstance(cause, AuthenticationError) for cause in causes):
        return QueueUnavailable("Redis refuses the password: check VEIL_REDIS_PASSWORD")
    if any(isinstance(cause, WatchError) for cause in causes):
        return QueueUnavailable(
            "the connection to Redis was lost, or another process changed the values that were read"
        )
    if any(isinstance(cause, OutOfMemoryError) for cause in causes):
        return QueueUnavailable(
            "Redis is full (maxmemory): let the workers catch up, or give it more"
        )
    root = causes[-1]
    if isinstance(root, ResponseError):
        hint = ": check the database in VEIL_REDIS_URL" if "DB index" in str(root) else ""
        return QueueUnavailable(f"Redis refuses a command: {root!s:.200}{hint}")
    # The text of these two errors says what failed, and names at most the host and the port.
    if isinstance(root, RedisConnectionError | RedisTimeoutError):
        reason = f"{root!s:.200}".rstrip(".")
    else:
        reason = type(root).__name__
    return QueueUnavailable(f"Redis can't be used ({reason}): check VEIL_REDIS_URL")


def log_unavailable(error: BaseException) -> None:
    """Log the line ``queue unavailable`` for an error of redis-py or kombu."""
    log.error("queue unavailable", **log_fields(queue_unavailable(error)))


@contextmanager
def connected() -> Iterator[None]:
    """Raise QueueUnavailable for any error of Redis or of the transport."""
    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        raise queue_unavailable(error) from None
