"""Silences native libraries, which write to standard error regardless of the log level."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2  # file descriptor


@contextmanager
def silenced() -> Iterator[None]:
    """Discard what this process writes to standard error within the block.

    Exceptions pass through.
    """
    kept = os.dup(STDERR)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(null)
