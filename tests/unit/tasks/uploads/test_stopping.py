"""A request to stop interrupts waits, but not work."""

import os
import signal
import threading
import time

import pytest

from tasks.uploads.stopping import Stop, Stopped


@pytest.fixture
def stop():
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    installed = Stop()
    installed.on_signals()
    yield installed
    for name, handler in before.items():
        signal.signal(name, handler)


def signal_after(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


def test_a_wait_is_cut_short(stop):
    signal_after(0.05)
    began = time.monotonic()
    assert stop.wait(60)
    assert time.monotonic() - began < 30
    assert stop.wait(60), "later waits end at once"


def test_a_wait_that_nobody_cuts_short_ends_by_itself(stop):
    assert not stop.wait(0.01)


def test_what_must_not_be_cut_short_is_finished(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    done = sum(range(1000))
    assert stop.requested
    assert done
    with pytest.raises(Stopped), stop.interruptible():
        pytest.fail("the stop was requested before")


def test_a_block_that_waits_is_left_at_once(stop):
    signal_after(0.05)
    with pytest.raises(Stopped), stop.interruptible():
        threading.Event().wait(60)
