"""Claims: each picture is shown to one reviewer at a time.

A claim is a Redis key that expires unless the reviewer's page renews it.
"""

from collections.abc import Sequence
from typing import Any

KEY = "veil:review:claim:"
SECONDS = 90  # The page renews its claim every 30 seconds.


def claim(redis: Any, picture: str, holder: str) -> bool:
    """Claim the picture with the id `picture`, or renew the claim; return whether it is held."""
    if redis.set(KEY + picture, holder, nx=True, ex=SECONDS):
        return True
    if not is_held(redis, picture, holder):
        return False
    redis.expire(KEY + picture, SECONDS)
    return True


def is_held(redis: Any, picture: str, holder: str) -> bool:
    """Return whether `holder` has the claim on a picture."""
    return bool(redis.get(KEY + picture) == holder.encode())


def release(redis: Any, picture: str, holder: str) -> None:
    """End the claim of `holder`; that of another reviewer stays."""
    if is_held(redis, picture, holder):
        redis.delete(KEY + picture)


def free(redis: Any, pictures: Sequence[str], holder: str) -> list[str]:
    """Return the `pictures` that no other reviewer has claimed."""
    if not pictures:
        return []
    holders = redis.mget([KEY + picture for picture in pictures])
    own = holder.encode()
    return [
        picture
        for picture, held_by in zip(pictures, holders, strict=True)
        if held_by in (None, own)
    ]
