"""The outbox: events in Redis that a target has not accepted yet.

An event is written in the transaction that records the outcome, so that none is missing. A sender
takes an event for TAKEN_SECONDS, and removes it when the target has accepted it. If the sender dies
in between, the event is due again, so a target may get it twice.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from ..redis import lua
from .events import Event

DUE_KEY = "veil:notifications"  # a sorted set of event ids by the times at which they are due
EVENTS_KEY = "veil:notifications:events"  # a hash of events by id
TAKEN_SECONDS = 60.0  # longer than the sending of a batch may take


class Outbox:
    """The events that wait for their target."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        now = lua.load(f"{__package__.rpartition('.')[0]}.delivery", "now")
        self._take_due = redis.register_script(f"{now}\n{lua.load(__package__, 'take_due')}")
        self._postpone = redis.register_script(f"{now}\n{lua.load(__package__, 'postpone')}")

    def take(self, at_most: int) -> dict[str, Event]:
        """Return due events by their ids, for TAKEN_SECONDS. Raises the errors of redis-py."""
        taken = self._take_due(keys=[DUE_KEY, EVENTS_KEY], args=[TAKEN_SECONDS, at_most])
        pairs = zip(taken[::2], taken[1::2], strict=True)
        return {key.decode(): json.loads(event) for key, event in pairs}

    def remove(self, key: str) -> None:
        """Remove an event that its target has accepted, or that is given up."""
        with self._redis.pipeline() as pipe:
            pipe.zrem(DUE_KEY, key).hdel(EVENTS_KEY, key).execute()

    def postpone(self, keys: Sequence[str], seconds: float) -> None:
        """Let events be due again in `seconds`."""
        if keys:
            self._postpone(keys=[DUE_KEY], args=[seconds, *keys])


def put(redis: Any, event: Event) -> None:
    """Put `event` into the outbox. `redis` may be a pipeline."""
    redis.hset(EVENTS_KEY, event["id"], json.dumps(event))
    redis.zadd(DUE_KEY, {event["id"]: 0})  # at once; `failed` tells such an event by the 0


def waiting(redis: Any) -> int:
    """Return the number of events that no target has accepted yet."""
    return int(redis.zcard(DUE_KEY))


def failed(redis: Any) -> int:
    """Return the number of events that were sent, not accepted, and are due again."""
    return int(redis.zcount(DUE_KEY, "(0", time.time()))
