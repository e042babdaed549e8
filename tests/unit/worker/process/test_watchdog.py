"""The watchdog ends the process for stalled work, and for nothing else."""

import subprocess
import sys

import pytest

from worker.process.watchdog import EXIT_STALLED, Watchdog


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def exits():
    return []


@pytest.fixture
def watchdog(clock, exits):
    return Watchdog(exits.append, clock)


def test_work_that_ends_in_time_is_forgotten(watchdog, clock, exits):
    with watchdog.watch("a batch", 10):
        clock.now += 9
        watchdog.check()
    clock.now += 100
    watchdog.check()
    assert exits == []


def test_work_that_fails_is_forgotten_too(watchdog, clock, exits):
    with pytest.raises(ValueError, match="bad"), watchdog.watch("a batch", 10):
        raise ValueError("bad")
    clock.now += 100
    watchdog.check()
    assert exits == []


def test_work_that_takes_too_long_ends_the_process_with_its_name_in_the_log(
    watchdog, clock, exits, capsys
):
    watchdog.begin("first", "a batch", 10)
    watchdog.begin("second", "another", 60)
    clock.now += 11
    watchdog.check()
    assert exits == [EXIT_STALLED]
    printed = capsys.readouterr()
    assert "a batch" in printed.out + printed.err
    assert "another" not in printed.out + printed.err


def test_stalled_work_is_reported_before_the_process_ends(clock, exits):
    reported = []
    watchdog = Watchdog(
        exits.append, clock, on_stall=lambda work: reported.append((work, list(exits)))
    )
    watchdog.begin("first", "a batch", 10)
    clock.now += 11
    watchdog.check()
    assert reported == [("a batch, 11 s", [])]
    assert exits == [EXIT_STALLED]


def test_work_that_begins_again_is_watched_anew(watchdog, clock, exits):
    watchdog.begin("picture", "a.jpg", 10)
    clock.now += 9
    watchdog.end("picture")
    watchdog.end("picture")
    watchdog.begin("picture", "a.jpg", 10)
    clock.now += 9
    watchdog.check()
    assert exits == []


def test_time_in_which_the_process_was_frozen_counts_for_no_work(watchdog, clock, exits, capsys):
    watchdog.begin("first", "a batch", 10)
    watchdog.check()
    clock.now += 36
    watchdog.check()
    assert exits == []
    printed = capsys.readouterr()
    assert "frozen" in printed.out + printed.err
    for _ in range(9):
        clock.now += 1
        watchdog.check()
    assert exits == []
    clock.now += 2
    watchdog.check()
    assert exits == [EXIT_STALLED]


def test_a_library_that_keeps_python_from_running_is_ended_too():
    script = """
import ctypes, time
from worker.process.watchdog import Watchdog
Watchdog(check_seconds=0.1, frozen_seconds=0.5).start()
time.sleep(1)
print("still here", flush=True)
ctypes.PyDLL(None).sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "still here\n"
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_a_report_that_fails_does_not_keep_the_process_alive(clock, exits):
    def fail(_work):
        raise MemoryError

    watchdog = Watchdog(exits.append, clock, on_stall=fail)
    watchdog.begin("first", "a batch", 10)
    clock.now += 11
    with pytest.raises(MemoryError):
        watchdog.check()
    assert exits == [EXIT_STALLED]


def test_it_goes_on_after_a_moment_without_memory_for_a_thread():
    script = """
import faulthandler, time
from worker.process.watchdog import Watchdog
def refuse(*_, **__):
    raise RuntimeError("unable to start watchdog thread")
faulthandler.dump_traceback_later = refuse
watchdog = Watchdog(check_seconds=0.1)
watchdog.start()
time.sleep(0.5)
watchdog.begin("first", "a batch", 0.1)
time.sleep(20)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == EXIT_STALLED
