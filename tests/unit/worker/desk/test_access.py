"""Who may use the desk: tokens, a password, names and sessions."""

from types import SimpleNamespace

import pytest

from worker.desk import access
from worker.desk.access import IDLE_SECONDS, MAX_FAILURES, MAX_NAME, Access, reviewer_name

PASSWORD = "a password of many characters"


@pytest.fixture
def clock(monkeypatch):
    """The clock of sessions: ``clock.now`` is the present time in seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" ana ", "ana"),
        ("Zoë Łuk", "Zoë Łuk"),
        ("a" * MAX_NAME, "a" * MAX_NAME),
        ("a" * (MAX_NAME + 1), ""),
        ("ana\nben", ""),
        ("ana\u202eneb", ""),
        ("\ud800", ""),
        ("", ""),
    ],
)
def test_a_name_is_short_and_printable(text, name):
    assert reviewer_name(text) == name


@pytest.mark.parametrize("secret", ["", "x", PASSWORD[:-1], PASSWORD + "x", "\ud800"])
def test_a_wrong_password_admits_nobody(secret):
    assert Access(password=PASSWORD).log_in(secret, "ana") is None


def test_without_a_password_an_empty_one_admits_nobody():
    assert Access().log_in("", "ana") is None


def test_after_too_many_failures_a_token_still_admits_and_the_password_does_not(clock):
    desk = Access({"token": "eva"}, PASSWORD)
    for _ in range(MAX_FAILURES):
        assert desk.log_in("x", "ana") is None
    assert desk.is_throttled
    assert desk.log_in(PASSWORD, "ana") is None
    assert desk.log_in("token", "").reviewer == "eva"
    assert desk.log_in("token", "") is None
    clock.now += access.FAILURE_SECONDS + 1
    assert desk.log_in(PASSWORD, "ana").reviewer == "ana"


def test_a_session_that_only_its_page_asks_for_expires(clock):
    desk = Access()
    left, used = desk.begin("ana"), desk.begin("ben")
    for _ in range(2):
        clock.now += IDLE_SECONDS * 0.6
        desk.session(left.id, is_used=False)
        desk.session(used.id)
    assert desk.session(left.id) is None
    assert desk.session(used.id) is used
