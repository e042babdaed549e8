"""How the C library's allocator is told to keep less of what was freed."""

import ctypes
import os
from contextlib import suppress

# By the variable that sets the same: the number of each option and its value, see mallopt(3).
# docs/performance.md has what they bring and cost.
ARENAS = {
    "MALLOC_ARENA_MAX": (-8, 2)
}  # else one for each thread, and what one of them frees no other can use
LIMITS = {
    # From so many bytes on a block is mapped by itself, and given back when it is freed. Else this
    # limit rises with what is freed, up to 32 MiB, and blocks of a picture or a canvas leave holes
    # in the heap that others do not fit.
    "MALLOC_MMAP_THRESHOLD_": (-3, 4 << 20),
    "MALLOC_TRIM_THRESHOLD_": (
        -1,
        32 << 20,
    ),  # free bytes at the heap's end that are not given back: saves page faults
}


def share_arenas() -> None:
    """Two arenas for all threads, which costs no time."""
    _set(ARENAS)


def stay_small() -> None:
    """What is free is given back sooner, for processes that run for long; costs a few percent of
    the time.
    """
    _set(LIMITS)


def _set(options: dict[str, tuple[int, int]]) -> None:
    """Set `options` where their variables do not; with another C library than glibc, nothing."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for variable, option in options.items():
            if variable not in os.environ:
                mallopt(*option)
