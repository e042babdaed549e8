"""Text on a terminal."""

import pytest

from worker import printing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0:00:00"),
        (11.4, "0:00:11"),
        (3725, "1:02:05"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_a_time_has_seconds_up_to_a_day(seconds, text):
    assert printing.duration(seconds) == text
