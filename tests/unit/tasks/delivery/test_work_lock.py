"""The work lock: shared by many pictures or held by one, and no request waits for ever."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.delivery.work_lock import WorkLock
from tasks.errors import Busy

PATIENCE = 10.0


def test_an_exclusive_holder_is_alone():
    lock = WorkLock()
    holders, holders_beside_exclusive = set(), []
    mutex = threading.Lock()

    def work(number):
        is_exclusive = number % 5 == 0
        hold = lock.exclusive if is_exclusive else lock.shared
        with hold(PATIENCE):
            with mutex:
                holders.add(number)
            time.sleep(0.01)
            if is_exclusive:
                holders_beside_exclusive.append(len(holders))
            with mutex:
                holders.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert holders_beside_exclusive == [1] * 8


def test_an_exclusive_request_goes_before_later_shared_requests():
    lock, order = WorkLock(), []
    entered, leave = threading.Event(), threading.Event()

    def first():
        with lock.shared(PATIENCE):
            entered.set()
            leave.wait(PATIENCE)

    def exclusive():
        with lock.exclusive(PATIENCE):
            order.append("exclusive")

    def later():
        with lock.shared(PATIENCE):
            order.append("later")

    with ThreadPoolExecutor(3) as pool:
        pool.submit(first)
        assert entered.wait(PATIENCE)
        pool.submit(exclusive)
        while not lock._exclusive_requests:
            time.sleep(0.001)
        pool.submit(later)
        time.sleep(0.05)
        assert order == []
        leave.set()
    assert order == ["exclusive", "later"]


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_a_request_that_timed_out_raises_busy_and_delays_no_later_one(kind):
    lock = WorkLock()
    with (
        lock.exclusive(PATIENCE),
        pytest.raises(Busy, match="busy with other pictures"),
        getattr(lock, kind)(0.05),
    ):
        pass
    with lock.shared(0.05), lock.shared(0.05):
        pass
    with lock.exclusive(0.05):
        pass


def test_an_error_releases_the_lock():
    lock = WorkLock()
    for hold in (lock.shared, lock.exclusive):
        with pytest.raises(ZeroDivisionError), hold(PATIENCE):
            raise ZeroDivisionError
    with lock.exclusive(0.05):
        pass
