"""Clients of Redis for callers that must not wait for it."""

from typing import Any

from celery import Celery
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry

from .. import tls_errors
from ..errors import SettingsInvalid
from ..messages import UPLOADS
from ..settings import Settings
from .errors import IS_CLUSTER, queue_unavailable, refusal, right_refusal, tried

START_SECONDS = 5.0  # for Redis to answer when a worker or a trigger starts
NO_LIST = "veil:no-list"  # a key that never exists


def impatient_client(app: Celery, seconds: float) -> Any:
    """Return a Redis client of `app` whose calls take or fail within `seconds`, without a retry."""
    limits = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    return app.backend._create_client(**{**app.backend.connparams, **limits})


def try_writing(redis: Any) -> None:
    """Raise an error of redis-py if Redis does not answer, or takes no writes, as a full one.

    Redis refuses this command then, and otherwise does nothing.
    """
    redis.lpushx(NO_LIST, "")


def check_accepted(app: Celery) -> None:
    """Raise SettingsInvalid if Redis is a cluster, or refuses the password, the database or rights.

    The rights are those to put messages on a queue. Another start would fail in the same way. A
    Redis that can't be reached is no error here, because workers and triggers wait for it.
    """
    settings = Settings.load()
    try:
        client = impatient_client(app, START_SECONDS)
        with client.pipeline() as pipe:
            try_writing(pipe)
            pipe.llen(UPLOADS)  # A sentinel has no such command, and answers PING.
            pipe.execute()
        reason = IS_CLUSTER if _is_cluster(client) else None
    except (RedisError, OSError) as error:
        reason = refusal(error) or right_refusal(error, f"{settings.redis_prefix}{UPLOADS}")
    if reason:
        raise SettingsInvalid(reason + tried(reason, settings.redis_server()))


def refuse_unusable(app: Celery) -> None:
    """Raise an error if Redis can never be used, before a command puts anything there.

    Raises SettingsInvalid for a cluster, and QueueUnavailable if TLS fails in a way that lasts.
    Other errors of Redis are left to the command, which meets them itself.
    """
    try:
        is_cluster = _is_cluster(impatient_client(app, START_SECONDS))
    except (RedisError, OSError) as error:
        if tls_errors.is_lasting(error):
            raise queue_unavailable(error) from None
        return
    if is_cluster:
        raise SettingsInvalid(IS_CLUSTER + tried(IS_CLUSTER, Settings.load().redis_server()))


def _is_cluster(client: Any) -> bool:
    """Return whether Redis runs in cluster mode; False if the user must not ask."""
    try:
        return bool(client.info("cluster").get("cluster_enabled"))
    except NoPermissionError:
        return False
