"""The circuit breaker: outages of the store and failures of one picture, without a store."""

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
    """A store whose probes raise `errors`, one each, and then succeed."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.probes = 0

    def probe(self):
        self.probes += 1
        if self.errors:
            raise self.errors.pop(0)


class Worker:
    """A worker that records when the breaker pauses and resumes it."""

    def __init__(self):
        self.paused = []
        self.pauses = []
        self.back = threading.Event()
        self.breaker = CircuitBreaker(self._set_paused, self.pauses.append)

    def _set_paused(self, paused):
        self.paused.append(paused)
        if not paused:
            self.back.set()


AWAY = StorageUnavailable("503")


@pytest.mark.parametrize(
    "error", [AWAY, CredentialsRefused("expired"), DestinationUnavailable("no bucket")]
)
def test_the_worker_is_paused_from_a_confirmed_failure_until_a_probe_succeeds(error):
    worker, store = Worker(), Store(error, error, error)
    assert worker.breaker.is_outage(error, store.probe)
    assert worker.back.wait(PATIENCE)
    assert worker.paused == [True, False]
    assert store.probes == 4
    assert not worker.breaker.is_open


def test_a_failure_that_the_probe_does_not_confirm_is_no_outage():
    worker, store = Worker(), Store()
    assert not worker.breaker.is_outage(AWAY, store.probe)
    assert worker.paused == []


@pytest.mark.parametrize("error", [DetectorUnavailable("late"), Busy("busy")])
def test_an_error_of_another_kind_is_not_probed(error):
    worker, store = Worker(), Store(AWAY)
    assert not worker.breaker.is_outage(error, store.probe)
    assert store.probes == 0


@pytest.mark.parametrize("error", [StorageRejected("odd"), ZeroDivisionError()])
def test_a_probe_that_fails_with_another_error_pauses_no_worker(error):
    worker = Worker()
    assert not worker.breaker.is_outage(AWAY, Store(error).probe)
    assert worker.paused == []


def test_pauses_between_probes_grow_to_a_limit_and_are_jittered():
    worker, store = Worker(), Store(*[AWAY] * 12)
    worker.breaker.is_outage(AWAY, store.probe)
    assert worker.back.wait(PATIENCE)
    ceilings = [min(FIRST_PAUSE_SECONDS * 2**n, LONGEST_PAUSE_SECONDS) for n in range(12)]
    assert all(
        ceiling / 2 <= pause <= ceiling
        for pause, ceiling in zip(worker.pauses, ceilings, strict=True)
    )
    assert len(set(worker.pauses)) == 12


def test_a_pause_that_the_store_requests_is_observed():
    asked = StorageUnavailable("503")
    asked.retry_after = 77.0
    worker = Worker()
    worker.breaker.is_outage(asked, Store(asked, AWAY).probe)
    assert worker.back.wait(PATIENCE)
    assert worker.pauses[0] == 77.0
    assert worker.pauses[1] < 77.0


def test_during_an_outage_every_failure_is_part_of_it_and_one_thread_probes():
    release, asked = threading.Event(), threading.Event()
    paused = []

    def sleep(_seconds):
        asked.set()
        release.wait(PATIENCE)

    breaker = CircuitBreaker(paused.append, sleep)
    store = Store(AWAY)
    assert breaker.is_outage(AWAY, store.probe)
    assert asked.wait(PATIENCE)
    assert all(breaker.is_outage(AWAY, store.probe) for _ in range(50))
    assert store.probes == 1
    release.set()
