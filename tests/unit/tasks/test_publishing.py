"""Publishing: the arguments and ids of messages, and the bound on a queue."""

import pytest

from tasks.addresses import ObjectUri
from tasks.messages import AnonymizeOptions
from tasks.publishing import FULL_QUEUE_SECONDS, Backpressure, Wanted, wait_for_room
from tasks.records import queues

SOURCE, OUTPUT = ObjectUri("raw", "a.jpg"), ObjectUri("clean", "b.jpg")


class Queue:
    """A queue whose depth a test sets."""

    def __init__(self, monkeypatch, waiting=0):
        self.waiting = waiting
        monkeypatch.setattr(queues, "depth", lambda redis, queue: self.waiting)


@pytest.fixture
def queue(monkeypatch):
    return Queue(monkeypatch)


@pytest.mark.parametrize(
    ("picture", "arguments"),
    [
        (Wanted(SOURCE), ("s3://raw/a.jpg",)),
        (Wanted(SOURCE, options=AnonymizeOptions()), ("s3://raw/a.jpg", None, {})),
        (Wanted(SOURCE, OUTPUT), ("s3://raw/a.jpg", "s3://clean/b.jpg")),
        (
            Wanted(SOURCE, options=AnonymizeOptions(release="1")),
            ("s3://raw/a.jpg", None, {"release": "1"}),
        ),
    ],
)
def test_a_message_has_no_arguments_that_say_nothing(picture, arguments):
    assert picture.arguments == arguments


def test_a_task_id_is_that_of_the_picture_and_its_version():
    picture = Wanted(SOURCE, etag="1")
    assert picture.task_id == Wanted(SOURCE, etag="1").task_id
    others = [Wanted(SOURCE, etag="2"), Wanted(SOURCE, OUTPUT, "1"), Wanted(OUTPUT, etag="1")]
    assert len({picture.task_id, *(other.task_id for other in others)}) == 4
    assert Wanted(SOURCE).task_id != Wanted(SOURCE).task_id


def test_task_ids_stay_those_of_earlier_versions():
    assert Wanted(SOURCE, etag="1").task_id == "597875db-22c7-5866-8a28-bb61ae69b96f"


def claims(queue, backpressure, at_most, steps):
    """Yield how many messages may be published at each depth, if `at_most` are waiting."""
    for waiting in steps:
        queue.waiting = waiting
        free = backpressure.free()
        yield backpressure.claim(at_most) if free else 0


def test_a_queue_is_filled_to_high_water_and_again_once_it_has_run_down_to_low_water(queue):
    depths = [0, 10, 9, 5, 4, 10, 0]
    claimed = claims(queue, Backpressure(None, "backfill", 10, 4), 100, depths)
    assert list(claimed) == [10, 0, 0, 0, 6, 0, 10]


def test_a_queue_that_is_not_yet_full_is_filled_in_parts(queue):
    depths = [0, 3, 6, 9, 9, 4]
    claimed = claims(queue, Backpressure(None, "backfill", 10, 4), 3, depths)
    assert list(claimed) == [3, 3, 3, 1, 0, 3]


def test_a_queue_counts_as_full_even_if_workers_take_messages_while_it_is_filled(queue):
    claimed = claims(queue, Backpressure(None, "backfill", 10, 4), 100, [0, 8, 6, 4])
    assert list(claimed) == [10, 0, 0, 6]


def test_room_that_is_not_claimed_stays_free(queue):
    backpressure = Backpressure(None, "backfill", 10, 4)
    queue.waiting = 9
    assert [backpressure.free(), backpressure.free()] == [1, 1]


def test_without_low_water_one_place_is_enough(queue):
    claimed = claims(queue, Backpressure(None, "backfill", 10), 100, [10, 9, 10, 12, 9])
    assert list(claimed) == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("waiting", [10, 11, 1000])
def test_no_more_than_high_water_is_allowed_even_below_low_water(queue, waiting):
    queue.waiting = waiting
    assert Backpressure(None, "backfill", 10, 2000).free() == 0


def test_a_wait_reports_a_full_queue_once_and_ends_when_there_is_room(queue):
    queue.waiting = 7
    reported, pauses = [], []

    def pause(seconds):
        pauses.append(seconds)
        queue.waiting -= 1

    assert wait_for_room(None, "backfill", 5, reported.append, pause)
    assert reported == [7]
    assert pauses == [FULL_QUEUE_SECONDS] * 3


def test_a_wait_ends_when_its_pause_is_interrupted(queue):
    queue.waiting = 7
    assert not wait_for_room(None, "backfill", 5, lambda waiting: None, lambda seconds: True)
