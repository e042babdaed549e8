"""The composition root connects the watchdog with the tasks."""

import pytest
from celery.signals import task_postrun, task_prerun
from structlog.testing import capture_logs

from worker import bootstrap
from worker.process.processors import MINIMUM_MEMORY
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


@pytest.mark.parametrize("missing", [0, 1])
def test_a_worker_warns_once_of_a_limit_below_the_memory_that_it_needs(missing):
    with capture_logs() as lines:
        bootstrap._warn_of_memory(MINIMUM_MEMORY - missing)
    assert [line["event"] for line in lines] == ["little memory"] * missing
