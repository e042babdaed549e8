"""Backoff: an outage is logged at both ends, with its place, and pauses grow to a limit."""

from structlog.testing import capture_logs

from tasks.backoff import FIRST_PAUSE_SECONDS, Backoff
from tasks.errors import AccessDenied, QueueUnavailable, StorageUnavailable


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


def test_an_outage_of_a_place_names_it_at_both_ends_and_another_error_has_a_line_of_its_own():
    backoff = Backoff("s3", place="s3://raw/a/")
    with capture_logs() as lines:
        backoff.failed(AccessDenied("s3://raw/a/: not allowed"))
        backoff.failed(AccessDenied("s3://raw/a/: not allowed"))
        backoff.failed(StorageUnavailable("answers 503 after 1.5 s"))
        backoff.failed(StorageUnavailable("answers 503 after 2.5 s"))
        backoff.failed(AccessDenied("s3://raw/a/: not allowed"))
        backoff.succeeded()
    assert {line["place"] for line in lines} == {"s3://raw/a/"}
    assert [(line["event"], line.get("error")) for line in lines] == [
        ("away", "AccessDenied"),
        ("still away", "StorageUnavailable"),
        ("still away", "AccessDenied"),
        ("back", None),
    ]
