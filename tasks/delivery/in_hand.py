"""The messages that this worker has in hand, in the sets that Celery's threads keep of them."""

from collections.abc import Iterable
from typing import Any

from celery.worker import state


def scheduled_tags() -> set[str]:
    """Return the tags of the messages that wait for their time."""
    return _tags(_copy(state.scheduled_requests))


def waiting_tags() -> set[str]:
    """Return the tags of the messages that are not at work yet."""
    # Those at work are read first. Otherwise a message that ends meanwhile would count as waiting,
    # and go back to its queue.
    at_work = _copy(state.active_requests)
    waiting = _copy(state.scheduled_requests) | _copy(state.reserved_requests)
    return _tags(waiting - at_work)


def _tags(requests: Iterable[Any]) -> set[str]:
    return {request.message.delivery_tag for request in requests}


def _copy(requests: Iterable[Any]) -> set[Any]:
    """Return the members of a WeakSet, which other threads may change at any time."""
    while True:
        try:
            return set(requests)
        except RuntimeError:  # It has changed in these microseconds.
            continue
