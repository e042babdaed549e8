"""What is an outage and what is one picture's trouble, without a store."""

import threading

import pytest

from tasks.delivery.circuit_breaker import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    CircuitBreaker,
)
from tasks.errors import (
    Busy,
    CredentialsRefused,
    DestinationUnavailable,
    DetectorUnavailable,
    StorageRejected,
    StorageUnavailable,
)

PATIENCE = 10.0


class Store:
    """Answers probes with the errors that it was given, then well."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.probes = 0

    def probe(self):
        self.probes += 1
        if self.errors:
            raise self.errors.pop(0)


class Worker:
    """What the breaker tells the one who takes messages."""

    def __init__(self):
        self.told = []
        self.pauses = []
        self.back = threading.Event()
        self.breaker = CircuitBreaker(self._pause, self.pauses.append)

    def _pause(self, paused):
        self.told.append(paused)
        if not paused:
            self.back.set()


AWAY = StorageUnavailable("503")


@pytest.mark.parametrize(
    "error", [AWAY, CredentialsRefused("expired"), DestinationUnavailable("no bucket")]
)
def test_nothing_is_taken_from_the_first_failure_that_a_probe_confirms_until_one_passes(error):
    worker, store = Worker(), Store(error, error, error)
    assert worker.breaker.explains(error, store.probe)
    assert worker.back.wait(PATIENCE)
    assert worker.told == [True, False]
    assert store.probes == 4
    assert not worker.breaker.lasts


def test_a_failure_that_a_probe_does_not_meet_is_the_pictures_own():
    worker, store = Worker(), Store()
    assert not worker.breaker.explains(AWAY, store.probe)
    assert worker.told == []


@pytest.mark.parametrize("error", [DetectorUnavailable("late"), Busy("busy")])
def test_what_is_not_of_the_store_is_not_probed(error):
    worker, store = Worker(), Store(AWAY)
    assert not worker.breaker.explains(error, store.probe)
    assert store.probes == 0


@pytest.mark.parametrize("error", [StorageRejected("odd"), ZeroDivisionError()])
def test_a_probe_that_fails_in_another_way_stops_nobody(error):
    worker = Worker()
    assert not worker.breaker.explains(AWAY, Store(error).probe)
    assert worker.told == []


def test_pauses_between_probes_grow_to_a_limit_and_are_jittered():
    worker, store = Worker(), Store(*[AWAY] * 12)
    worker.breaker.explains(AWAY, store.probe)
    assert worker.back.wait(PATIENCE)
    ceilings = [min(FIRST_PAUSE_SECONDS * 2**n, LONGEST_PAUSE_SECONDS) for n in range(12)]
    assert all(
        ceiling / 2 <= pause <= ceiling
        for pause, ceiling in zip(worker.pauses, ceilings, strict=True)
    )
    assert len(set(worker.pauses)) == 12


def test_a_pause_that_the_store_asks_for_is_kept():
    asked = StorageUnavailable("503")
    asked.retry_after = 77.0
    worker = Worker()
    worker.breaker.explains(asked, Store(asked, AWAY).probe)
    assert worker.back.wait(PATIENCE)
    assert worker.pauses[0] == 77.0
    assert worker.pauses[1] < 77.0


def test_while_it_lasts_no_failure_is_held_against_a_picture_and_one_thread_probes():
    release, asked = threading.Event(), threading.Event()
    told = []

    def sleep(_seconds):
        asked.set()
        release.wait(PATIENCE)

    breaker = CircuitBreaker(told.append, sleep)
    store = Store(AWAY)
    assert breaker.explains(AWAY, store.probe)
    assert asked.wait(PATIENCE)
    assert all(breaker.explains(AWAY, store.probe) for _ in range(50))
    assert store.probes == 1
    release.set()
