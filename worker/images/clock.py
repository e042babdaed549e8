"""The time that decoding one picture may take."""

import time

from tasks.errors import ImageTooLarge

DECODE_SECONDS = 300  # far beyond what a picture of VEIL_MAX_PIXELS takes on a busy machine


class Clock:
    """A deadline that begins when it is made."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise ImageTooLarge if the time is over."""
        if time.monotonic() > self._end:
            raise ImageTooLarge(
                f"decoding takes more than {self._seconds:g} s: save the picture smaller or anew"
            )
