"""Settings of the C library's memory allocator, which make it keep less of the freed memory."""

import ctypes
import os
from contextlib import suppress

# Each entry maps the environment variable of an option to the option's number and value, as in
# mallopt(3). docs/performance.md says what they save and cost.
#
# By default glibc gives each thread an arena, and memory that is freed in one arena cannot be used
# by threads of another.
ARENA_OPTIONS = {"MALLOC_ARENA_MAX": (-8, 2)}
RETURN_OPTIONS = {
    # A block of this many bytes or more is mapped by itself and unmapped when it is freed. By
    # default the limit grows with the freed blocks, up to 32 MiB. Blocks of pictures and canvases
    # then come from the heap and leave holes that other blocks do not fit.
    "MALLOC_MMAP_THRESHOLD_": (-3, 4 << 20),
    # The heap keeps up to this many free bytes at its end, which saves page faults.
    "MALLOC_TRIM_THRESHOLD_": (-1, 32 << 20),
}

VARIABLES = (*ARENA_OPTIONS, *RETURN_OPTIONS)
"""The environment variables that take precedence over the settings here."""


def share_arenas() -> None:
    """Limit all threads to two arenas. This costs no time."""
    _set(ARENA_OPTIONS)


def return_memory() -> None:
    """Return freed memory to the system sooner, which costs a few percent of time.

    Meant for processes that run for long.
    """
    _set(RETURN_OPTIONS)


def _set(options: dict[str, tuple[int, int]]) -> None:
    """Set each option unless its environment variable does; do nothing without glibc."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for variable, option in options.items():
            if variable not in os.environ:
                mallopt(*option)
