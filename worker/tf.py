"""TensorFlow, set up before it is imported; importing this module takes seconds, and only what detects does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# oneDNN's kernels more than double the speed on processors without AVX-512, where TensorFlow leaves them
# off, and their results differ from the plain ones by rounding only. Read once, at TensorFlow's import.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

STDERR = 2  # file descriptor


@contextmanager
def _silent() -> Iterator[None]:
    """No standard error: oneDNN announces itself there, twice and in prose, whatever the log level."""
    kept = os.dup(STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)


with _silent():
    import tensorflow as tf

__all__ = ["tf"]
