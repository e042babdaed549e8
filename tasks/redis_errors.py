"""Errors of Redis and of the libraries in front of it, translated into QueueUnavailable."""

from collections.abc import Iterator
from contextlib import contextmanager

from kombu.exceptions import KombuError
from redis.exceptions import (
    AuthenticationError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    WatchError,
)

from tasks.errors import QueueUnavailable


def queue_unavailable(error: BaseException) -> QueueUnavailable:
    """Return the QueueUnavailable for an error of redis-py, or of kombu, which may wrap one."""
    causes = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    if any(isinstance(cause, AuthenticationError) for cause in causes):
        return QueueUnavailable("Redis refuses the password: check VEIL_REDIS_PASSWORD")
    if any(isinstance(cause, WatchError) for cause in causes):
        return QueueUnavailable("Redis went away, or another process changed what was read there")
    if any(isinstance(cause, OutOfMemoryError) for cause in causes):
        return QueueUnavailable(
            "Redis is full (maxmemory): let the workers catch up, or give it more"
        )
    last = causes[-1]
    if isinstance(last, ResponseError):
        return QueueUnavailable(f"Redis refuses a command: {last!s:.200}")
    return QueueUnavailable(f"Redis can't be used ({type(last).__name__}): check VEIL_REDIS_URL")


@contextmanager
def connected() -> Iterator[None]:
    """Raise QueueUnavailable for any error of Redis or of the transport."""
    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        raise queue_unavailable(error) from None
