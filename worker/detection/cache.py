"""The cache of models, which must belong to the user of the process."""

import errno
from pathlib import Path

import platformdirs

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def folder() -> Path:
    """Return the folder of Veil in the cache of this user, which may not exist yet."""
    return platformdirs.user_cache_path("veil")


def advice(error: OSError) -> str | None:
    """Return what to do about an `error` of writing to the cache, if this user may not write."""
    if error.errno in NOT_WRITABLE:
        return "set XDG_CACHE_HOME to a folder that this user may write"
    return None
