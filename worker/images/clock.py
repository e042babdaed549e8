"""The time limit for decoding one picture."""

import time

from tasks.errors import ImageTooLarge

# The default limit. A picture of VEIL_MAX_PIXELS decodes in far less, even on a busy machine.
DECODE_SECONDS = 300


class Clock:
    """A deadline that starts when the object is created."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise ImageTooLarge after the deadline."""
        if time.monotonic() > self._end:
            raise ImageTooLarge(
                f"decoding takes more than {self._seconds:g} s: save the picture smaller or again"
            )
