"""The right to subscribe to broadcasts, by which workers get commands and tell of events.

Redis compares the patterns of PSUBSCRIBE with the rules of a user as texts: `&team-a:*` admits
each channel with this prefix, but no pattern of channels.
"""

from collections.abc import Iterable
from contextlib import closing
from typing import Any

from celery import Celery
from redis.exceptions import NoPermissionError

from ..errors import QueueUnavailable
from .clients import impatient_client
from .errors import connected

ANSWER_SECONDS = 5.0


def refused(error: NoPermissionError, patterns: Iterable[str]) -> QueueUnavailable:
    """Return the error of a subscription to `patterns` that Redis refuses its user."""
    rules = " ".join(f"'&{pattern}'" for pattern in patterns)
    return QueueUnavailable(
        f"Redis refuses a subscription: {error!s:.200}: give the user in VEIL_REDIS_URL these "
        f"rules, word for word, as a rule with another star does not include them: {rules}"
    )


def check_subscription(app: Celery) -> None:
    """Raise QueueUnavailable if Redis refuses its user the subscription of workers to commands."""
    with connected(), closing(impatient_client(app, ANSWER_SECONDS).pubsub()) as subscriptions:
        with app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            pattern = channel._get_publish_topic(app.control.mailbox.exchange.name, "")
            prefix = channel.global_keyprefix
        subscriptions.psubscribe(pattern)
        try:
            subscriptions.parse_response()
        except NoPermissionError as error:
            raise refused(error, [f"{prefix}{pattern}"]) from None
