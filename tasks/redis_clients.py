"""Clients of Redis for callers that must not wait for it."""

from typing import Any

from celery import Celery
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .errors import SettingsInvalid
from .redis_errors import refusal
from .settings import Settings

START_SECONDS = 5.0  # for Redis to answer when a worker or a trigger starts


def impatient_client(app: Celery, seconds: float) -> Any:
    """Return a Redis client of `app` whose calls take or fail within `seconds`, without a retry."""
    limits = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    return app.backend._create_client(**{**app.backend.connparams, **limits})


def check_accepted(app: Celery) -> None:
    """Raise SettingsInvalid if Redis refuses the password or the database of `app`.

    Another start would fail in the same way. A Redis that can't be reached is no error here,
    because workers and triggers wait for it.
    """
    try:
        impatient_client(app, START_SECONDS).ping()
    except (RedisError, OSError) as error:
        if reason := refusal(error):
            server = Settings.load().redis_server()
            raise SettingsInvalid(f"{reason} (tried {server})") from None
