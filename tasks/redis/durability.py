"""The settings of a Redis server that decide whether it keeps the messages that it has confirmed.

They are read with INFO, which the users of docs/permissions.md and managed servers allow, in place
of CONFIG. A server that does not name a setting, or does not allow INFO, is not judged.
"""

from typing import Any

from redis.exceptions import ResponseError

KEEPS_ALL = "noeviction"


def risks(redis: Any) -> list[str]:
    """Return a line for each setting with which Redis may lose messages.

    Raises RedisError if Redis does not answer.
    """
    try:
        persistence, memory = redis.info("persistence"), redis.info("memory")
    except ResponseError:
        return []
    found = []
    if persistence.get("aof_enabled") == 0:
        found.append("appendonly is no: a restart of Redis loses messages")
    policy = memory.get("maxmemory_policy", KEEPS_ALL)
    if policy != KEEPS_ALL:
        found.append(
            f"maxmemory-policy is {policy}: a full Redis drops messages or records, set {KEEPS_ALL}"
        )
    return found
