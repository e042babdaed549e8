"""The messages in hand, which other threads change while they are read."""

import sys
import threading
from types import SimpleNamespace

import pytest
from celery.worker import state

from tasks.delivery import in_hand


class Request:
    def __init__(self, tag):
        self.message = SimpleNamespace(delivery_tag=tag)


@pytest.fixture
def requests():
    """Requests, which the sets of Celery hold weakly, by the name of their set."""
    made = {
        name: [Request(f"{name}-{number}") for number in range(100)]
        for name in ("scheduled", "reserved", "active")
    }
    for name, members in made.items():
        held = getattr(state, f"{name}_requests")
        for request in members:
            held.add(request)
    for request in made["active"]:  # Those at work are among the reserved ones.
        state.reserved_requests.add(request)
    yield made
    state.reset_state()


def tags(requests, *names):
    return {request.message.delivery_tag for name in names for request in requests[name]}


def test_messages_wait_unless_they_are_at_work(requests):
    assert in_hand.scheduled_tags() == tags(requests, "scheduled")
    assert in_hand.waiting_tags() == tags(requests, "scheduled", "reserved")


def test_other_threads_may_change_the_sets_while_they_are_read(requests):
    ended = threading.Event()
    others = [Request("another") for _ in range(100)]

    def change():
        while not ended.is_set():
            for request in others:
                state.reserved_requests.add(request)
            for request in others:
                state.reserved_requests.discard(request)

    switched_after = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(1500):
            waiting = in_hand.waiting_tags() - {"another"}
            assert waiting == tags(requests, "scheduled", "reserved")
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(switched_after)
