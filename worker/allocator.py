"""How the C library's allocator is told to keep less of what was freed."""

import ctypes
import os
from contextlib import suppress

ARENAS = 2
M_ARENA_MAX = -8  # mallopt(3)


def keep_less() -> None:
    """Let threads share ARENAS arenas of glibc's; with another C library, or where MALLOC_ARENA_MAX is set, nothing.

    Each thread would get its own, up to eight for each core, and what one of them frees no other can use.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, ARENAS)
