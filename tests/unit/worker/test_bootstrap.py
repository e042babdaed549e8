"""The composition root connects the watchdog with the tasks."""

import pytest
from celery.signals import task_postrun, task_prerun

from worker import bootstrap
from worker.process.watchdog import EXIT_STALLED, Watchdog
from worker.settings import PICTURE_SECONDS


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def receivers():
    """Restore the receivers of the signals after the test."""
    before = [(signal, list(signal.receivers)) for signal in (task_prerun, task_postrun)]
    yield
    for signal, kept in before:
        signal.receivers[:] = kept
        signal.sender_receivers_cache.clear()


def test_a_picture_that_outlasts_all_its_deadlines_ends_the_process(receivers):
    clock, exits = Clock(), []
    watchdog = Watchdog(exits.append, clock)
    bootstrap._watch_pictures(watchdog)

    task_prerun.send(sender=None, task_id="done", args=["s3://raw/a.jpg"])
    task_postrun.send(sender=None, task_id="done", args=["s3://raw/a.jpg"])
    task_prerun.send(sender=None, task_id="hangs", args=["s3://raw/b.jpg"])
    clock.now = PICTURE_SECONDS - 1
    watchdog.check()
    assert exits == []

    clock.now = PICTURE_SECONDS + 1
    watchdog.check()
    assert exits == [EXIT_STALLED]
