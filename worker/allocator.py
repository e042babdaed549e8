"""How the C library's allocator is told to keep less of what was freed."""

import ctypes
import os
import threading
import time
from functools import cache
from typing import Any

ARENAS = 2
M_ARENA_MAX = -8  # mallopt(3)
GIVE_BACK_SECONDS = 30


@cache
def keep_less() -> None:
    """Let threads share ARENAS arenas of glibc's, and give back what is free in them now and then.

    Each thread would get its own, up to eight for each core, and what one of them frees no other can use. With another
    C library nothing is done; where MALLOC_ARENA_MAX is set, it counts.
    """
    if not (library := _glibc()):
        return
    if "MALLOC_ARENA_MAX" not in os.environ:
        library.mallopt(M_ARENA_MAX, ARENAS)
    threading.Thread(target=_give_back_forever, name="allocator", daemon=True).start()


def give_back() -> None:
    """Give the system what is free between blocks that are in use: pictures of all sizes leave more and more of it."""
    if library := _glibc():
        library.malloc_trim(0)


def _give_back_forever() -> None:
    while True:
        time.sleep(GIVE_BACK_SECONDS)
        give_back()


def _glibc() -> Any:
    """The C library, if it is glibc; musl knows neither call."""
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
    except OSError:
        return None
