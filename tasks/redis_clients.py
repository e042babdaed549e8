"""Clients of Redis for callers that must not wait for it."""

from typing import Any

from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry


def impatient_client(app: Celery, seconds: float) -> Any:
    """Return a Redis client of `app` whose calls take or fail within `seconds`, without a retry."""
    limits = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    return app.backend._create_client(**{**app.backend.connparams, **limits})
