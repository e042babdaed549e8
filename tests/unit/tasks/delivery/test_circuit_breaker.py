"""The circuit breaker: outages of the store and failures of one picture, without a store."""

import threading
import time
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

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
from tasks.routes import Routes

PATIENCE = 10.0
ONE, OTHER, THIRD = Routes.parse("s3://aaa=s3://xxx", "s3://bbb=s3://yyy", "s3://ccc=s3://zzz")


class Store:
    """A store whose probes of a route raise its `errors`, one each, and then succeed."""

    def __init__(self, *errors):
        self.errors = {ONE: list(errors), OTHER: [], THIRD: []}
        self.probes = {ONE: 0, OTHER: 0, THIRD: 0}

    def probe(self, route):
        self.probes[route] += 1
        if self.errors[route]:
            raise self.errors[route].pop(0)


class Worker:
    """A worker that records when the breaker pauses and resumes it."""

    def __init__(self, store, *routes, sleep=None):
        self.paused = []
        self.pauses = []
        self.back = threading.Event()
        self.breaker = CircuitBreaker(
            self._set_paused, store.probe, routes or (ONE,), sleep or self.pauses.append
        )

    def _set_paused(self, paused):
        if paused != (self.paused[-1:] == [True]):
            self.paused.append(paused)
        if not paused:
            self.back.set()


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Gate:
    """Pauses that last until the gate is opened for one probe each."""

    def __init__(self):
        self._turns = threading.Semaphore(0)

    def sleep(self, _seconds):
        self._turns.acquire(timeout=PATIENCE)

    def let(self, probes=1):
        self._turns.release(probes)


AWAY = StorageUnavailable("503")


@pytest.mark.parametrize(
    "error", [AWAY, CredentialsRefused("expired"), DestinationUnavailable("no bucket")]
)
def test_the_worker_is_paused_from_a_confirmed_failure_until_a_probe_succeeds(error):
    store = Store(error, error, error)
    worker = Worker(store)
    assert worker.breaker.is_outage(error, ONE)
    assert worker.back.wait(PATIENCE)
    assert worker.paused == [True, False]
    assert store.probes[ONE] >= 4
    assert not worker.breaker.is_open


@pytest.mark.parametrize(("name", "fields"), [("north", {"route_name": "north"}), (None, {})])
def test_the_lines_of_an_outage_have_the_name_of_the_route_that_metrics_have(name, fields):
    route = replace(ONE, name=name)
    errors = [AWAY, AWAY]

    def probe(_route):
        if errors:
            raise errors.pop()

    is_back = threading.Event()

    def set_paused(paused):
        if not paused:
            is_back.set()

    with capture_logs() as lines:
        CircuitBreaker(set_paused, probe, [route], lambda _seconds: None).check()
        assert is_back.wait(PATIENCE)
    named = {"route": "s3://aaa/=s3://xxx/", **fields}
    assert sorted(line["event"] for line in lines) == ["store away", "store back"]
    for line in lines:
        assert {key: line[key] for key in line if key.startswith("route")} == named


def test_a_failure_that_the_probe_does_not_confirm_is_no_outage():
    worker = Worker(Store())
    assert not worker.breaker.is_outage(AWAY, ONE)
    assert worker.paused == []


@pytest.fixture
def no_threads():
    """Let no thread start: none gets a stack of so many bytes."""
    before = threading.stack_size(1 << 46)
    yield
    threading.stack_size(before)


def test_a_route_that_no_thread_can_probe_is_not_closed_but_the_failure_is_an_outage(no_threads):
    worker = Worker(Store(AWAY, AWAY))
    assert worker.breaker.is_outage(AWAY, ONE)
    assert worker.breaker.is_up(ONE)
    assert worker.paused == []

    threading.stack_size(0)
    assert worker.breaker.is_outage(AWAY, ONE)
    assert worker.back.wait(PATIENCE)
    assert worker.paused == [True, False]


@pytest.mark.parametrize("error", [DetectorUnavailable("late"), Busy("busy")])
def test_an_error_of_another_kind_is_not_probed(error):
    store = Store(AWAY)
    worker = Worker(store)
    assert not worker.breaker.is_outage(error, ONE)
    assert store.probes[ONE] == 0


@pytest.mark.parametrize("error", [StorageRejected("odd"), ZeroDivisionError()])
def test_a_probe_that_fails_with_another_error_pauses_no_worker(error):
    worker = Worker(Store(error))
    assert not worker.breaker.is_outage(AWAY, ONE)
    assert worker.paused == []


def test_pauses_between_probes_grow_to_a_limit_and_are_jittered():
    worker = Worker(Store(*[AWAY] * 12))
    worker.breaker.is_outage(AWAY, ONE)
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
    worker = Worker(Store(asked, AWAY))
    worker.breaker.is_outage(asked, ONE)
    assert worker.back.wait(PATIENCE)
    assert worker.pauses[0] == 77.0
    assert worker.pauses[1] < 77.0


def test_during_an_outage_every_failure_is_part_of_it_and_one_thread_probes():
    gate, store = Gate(), Store(AWAY)
    worker = Worker(store, sleep=gate.sleep)
    assert worker.breaker.is_outage(AWAY, ONE)
    assert all(worker.breaker.is_outage(AWAY, ONE) for _ in range(50))
    assert store.probes[ONE] == 1
    gate.let()
    assert worker.back.wait(PATIENCE)


def test_an_outage_of_one_route_leaves_the_others_alone():
    gate, store = Gate(), Store(DestinationUnavailable("S3 denies access"))
    worker = Worker(store, ONE, OTHER, THIRD, sleep=gate.sleep)
    assert worker.breaker.is_outage(DestinationUnavailable("S3 denies access"), ONE)
    until(lambda: store.probes[THIRD])
    assert worker.breaker.closed_routes == 1
    assert not worker.breaker.is_open
    assert True not in worker.paused
    with pytest.raises(DestinationUnavailable, match="denies access"):
        worker.breaker.raise_if_closed(ONE)
    worker.breaker.raise_if_closed(OTHER)
    assert not worker.breaker.is_outage(AWAY, OTHER)
    gate.let()
    until(lambda: worker.breaker.closed_routes == 0)
    worker.breaker.raise_if_closed(ONE)


def test_an_outage_of_the_whole_store_is_found_on_all_routes_and_pauses_the_worker():
    gate, store = Gate(), Store(AWAY)
    store.errors[OTHER], store.errors[THIRD] = [AWAY], [AWAY, AWAY]
    worker = Worker(store, ONE, OTHER, THIRD, sleep=gate.sleep)
    assert worker.breaker.is_outage(AWAY, ONE)
    until(lambda: worker.breaker.is_open)
    assert worker.paused == [True]
    gate.let(3)
    until(lambda: worker.breaker.closed_routes == 1)
    assert worker.paused == [True, False]
    gate.let()
    until(lambda: worker.breaker.closed_routes == 0)


def test_a_check_at_the_start_closes_the_routes_that_are_refused():
    gate, store = Gate(), Store()
    store.errors[OTHER] = [DestinationUnavailable("no bucket")]
    worker = Worker(store, ONE, OTHER, sleep=gate.sleep)
    worker.breaker.check()
    assert worker.breaker.closed_routes == 1
    with pytest.raises(DestinationUnavailable, match="no bucket"):
        worker.breaker.raise_if_closed(OTHER)
    gate.let()
    until(lambda: worker.breaker.closed_routes == 0)
