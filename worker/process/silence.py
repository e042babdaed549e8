"""Keeps native libraries from announcing themselves on standard error, in prose and whatever the
log level.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2  # file descriptor


@contextmanager
def silenced() -> Iterator[None]:
    """No standard error of this process within the block; exceptions are raised as ever."""
    kept = os.dup(STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)
