"""How much waits in the queues."""

from typing import Any


def waiting(redis: Any, queue: str) -> int:
    """The messages in `queue` that no worker has taken."""
    return int(redis.llen(queue))
