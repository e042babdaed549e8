"""Backoff: an outage is logged at both ends, and pauses grow to a limit."""

from structlog.testing import capture_logs

from tasks.backoff import FIRST_PAUSE_SECONDS, Backoff
from tasks.errors import QueueUnavailable


def test_an_outage_is_logged_when_it_begins_and_when_it_ends():
    backoff = Backoff("redis", longest_pause=2)
    with capture_logs() as lines:
        backoff.succeeded()
        pauses = [backoff.failed(QueueUnavailable("gone")) for _ in range(100)]
        backoff.succeeded()
        backoff.succeeded()
    assert [(line["event"], line["server"]) for line in lines] == [
        ("away", "redis"),
        ("back", "redis"),
    ]
    assert 0 < pauses[0] <= FIRST_PAUSE_SECONDS
    assert max(pauses) <= 2
    assert min(pauses[10:]) >= 1
