"""Where pictures are worked on: together or alone, and nobody waits for ever."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.delivery.attempts import Room
from tasks.errors import Busy

PATIENCE = 10.0


def test_many_are_together_and_one_alone():
    room = Room()
    inside, most_with_one_alone = set(), []
    lock = threading.Lock()

    def work(number):
        alone = number % 5 == 0
        with (room.alone if alone else room.together)(PATIENCE):
            with lock:
                inside.add(number)
            time.sleep(0.01)
            if alone:
                most_with_one_alone.append(len(inside))
            with lock:
                inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most_with_one_alone == [1] * 8


def test_whoever_wants_to_be_alone_goes_before_those_who_come_later():
    room, order = Room(), []
    entered, leave = threading.Event(), threading.Event()

    def first():
        with room.together(PATIENCE):
            entered.set()
            leave.wait(PATIENCE)

    def alone():
        with room.alone(PATIENCE):
            order.append("alone")

    def later():
        with room.together(PATIENCE):
            order.append("later")

    with ThreadPoolExecutor(3) as pool:
        pool.submit(first)
        assert entered.wait(PATIENCE)
        pool.submit(alone)
        while not room._want_alone:
            time.sleep(0.001)
        pool.submit(later)
        time.sleep(0.05)
        assert order == []
        leave.set()
    assert order == ["alone", "later"]


@pytest.mark.parametrize("kind", ["together", "alone"])
def test_nobody_waits_for_ever_and_who_gave_up_holds_up_nobody(kind):
    room = Room()
    with (
        room.alone(PATIENCE),
        pytest.raises(Busy, match="busy with other pictures"),
        getattr(room, kind)(0.05),
    ):
        pass
    with room.together(0.05), room.together(0.05):
        pass
    with room.alone(0.05):
        pass


def test_a_picture_that_fails_leaves_the_room():
    room = Room()
    for enter in (room.together, room.alone):
        with pytest.raises(ZeroDivisionError), enter(PATIENCE):
            raise ZeroDivisionError
    with room.alone(0.05):
        pass
