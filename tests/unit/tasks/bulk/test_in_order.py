"""Concurrent calls: the order of their results, and the number of calls that run ahead."""

import threading
import time

import pytest

from tasks.backoff import TRIES
from tasks.bulk.in_order import CALLS_PER_THREAD, in_order
from tasks.errors import StorageUnavailable


def test_results_come_in_the_order_of_their_arguments():
    def work(number):
        time.sleep(0.01 * (number % 3 == 0))
        return number * number

    assert list(in_order(work, range(50), 4)) == [number * number for number in range(50)]


def test_arguments_are_read_on_demand():
    read = []

    def items():
        for number in range(1000):
            read.append(number)
            yield number

    results = in_order(str, items(), 2)
    assert next(results) == "0"
    assert len(read) == 2 * CALLS_PER_THREAD
    results.close()
    assert len(read) == 2 * CALLS_PER_THREAD


def test_an_exception_of_a_call_is_raised_in_its_place():
    def work(number):
        if number == 3:
            raise ValueError("three")
        return number

    results = in_order(work, range(10), 2)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_a_disturbance_of_the_store_is_outlived_and_an_outage_is_not(monkeypatch):
    monkeypatch.setattr("tasks.backoff.FIRST_TRY_SECONDS", 0.01)
    failures = {1: 2, 3: TRIES}

    def work(number):
        if failures.get(number, 0) > 0:
            failures[number] -= 1
            raise StorageUnavailable(f"{number}")
        return number

    results = in_order(work, range(5), 2)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(StorageUnavailable, match="3"):
        next(results)
    assert failures == {1: 0, 3: 0}


def test_calls_run_at_the_same_time():
    barrier = threading.Barrier(3, timeout=10)
    assert len(list(in_order(lambda _: barrier.wait(), range(3), 3))) == 3


def test_an_exception_does_not_wait_for_calls_that_hang_and_no_further_one_begins():
    hanging, begun = threading.Event(), []

    def work(number):
        begun.append(number)
        if number:
            hanging.wait(30)
            raise StorageUnavailable("away")  # It would be repeated.
        raise ValueError("zero")

    started = time.monotonic()
    with pytest.raises(ValueError, match="zero"):
        list(in_order(work, range(10), 3))
    assert time.monotonic() - started < 5
    before = len(begun)
    hanging.set()
    time.sleep(1)
    assert len(begun) == before
