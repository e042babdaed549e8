"""Batches on a real Redis: all messages of a batch are enqueued or none, despite failures."""

import base64
import contextlib
import json
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples

from tasks import publishing
from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.errors import MalformedEvent, QueueUnavailable
from tasks.messages import BACKFILL, QUEUED_AT_HEADER, RUN_HEADER, UPLOADS, AnonymizeRequest
from tasks.publishing import Backpressure, Publisher, Wanted, wait_for_room
from tasks.routes import Routes
from tasks.settings import Settings
from tasks.uploads.trigger import EventFilter, Trigger
from tests.events import bodies
from tools.local.servers import HOST


def pictures(count):
    return [Wanted(ObjectUri("raw", f"{number}.jpg"), etag=str(number)) for number in range(count)]


def messages(queue, name):
    """Return the waiting messages, oldest first."""
    return [json.loads(message) for message in reversed(queue.client.lrange(name, 0, -1))]


@pytest.fixture
def publisher(unattended):
    made = Publisher(unattended.app)
    yield made
    made.close()


def test_a_batch_arrives_in_order_and_with_what_goes_along(unattended, publisher):
    publisher.publish(
        pictures(1500), BACKFILL, "run-1", lambda pipe: pipe.set("checkpoint", "1499.jpg")
    )
    waiting = messages(unattended, BACKFILL)
    assert [message["headers"]["argsrepr"] for message in waiting[:2]] == [
        "s3://raw/0.jpg",
        "s3://raw/1.jpg",
    ]
    assert len(waiting) == 1500
    assert {message["headers"][RUN_HEADER] for message in waiting} == {"run-1"}
    assert all(message["headers"][QUEUED_AT_HEADER] > 1e9 for message in waiting)
    assert all(message["headers"]["ignore_result"] for message in waiting)
    assert unattended.client.get("checkpoint") == b"1499.jpg"


@pytest.mark.parametrize("keep_results", [False, True])
def test_each_message_of_a_batch_is_what_celery_would_send(unattended, publisher, keep_results):
    wanted = [
        Wanted(ObjectUri("raw", "a.jpg"), etag="1"),
        Wanted(ObjectUri("raw", 'it\'s "ü" 写真.jpg'), ObjectUri("clean", "elsewhere.jpg"), "2"),
        Wanted(ObjectUri("raw", "é" * 500 + ".jpg"), ObjectUri("clean", "é" * 500 + ".jpg"), "3"),
    ]
    for picture in wanted:
        unattended.app.send_task(
            "veil.anonymize_image",
            picture.arguments,
            task_id=picture.task_id,
            queue=BACKFILL,
            ignore_result=not keep_results,
            headers={RUN_HEADER: "run-1"},
        )
    by_celery = messages(unattended, BACKFILL)
    unattended.client.delete(BACKFILL)

    publisher.publish(wanted, BACKFILL, "run-1", keep_results=keep_results)

    by_publisher = messages(unattended, BACKFILL)
    assert len({message["properties"]["delivery_tag"] for message in by_publisher}) == 3
    for message in (*by_celery, *by_publisher):
        assert len(message["properties"].pop("delivery_tag")) == 36
        assert message["headers"].pop(QUEUED_AT_HEADER) > 1e9
    assert by_publisher == by_celery
    assert [list(message["headers"]) for message in by_publisher] == [
        list(m["headers"]) for m in by_celery
    ]


@examples(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies())
def test_whatever_an_event_holds_what_it_puts_on_the_queue_is_a_message_that_workers_take(
    unattended, publisher, body
):
    unattended.client.delete(UPLOADS)
    trigger = Trigger(publisher, EventFilter(Routes.parse("s3://raw=s3://clean")), "http")
    wanted = []
    with contextlib.suppress(MalformedEvent):
        wanted = list(dict.fromkeys(trigger.read(body)))
    trigger.publish(wanted)
    found = [
        json.loads(base64.b64decode(message["body"]))[0]
        for message in messages(unattended, UPLOADS)
    ]
    assert [AnonymizeRequest.parse(source=source).source for (source,) in found] == [
        one.source for one in wanted
    ]


@pytest.mark.parametrize("etag", ["\ud800", "\0", "ü", "e" * 100_000, ""])
def test_any_etag_gives_a_task_id_that_is_its_own(unattended, publisher, etag):
    picture = Wanted(ObjectUri("raw", "a.jpg"), etag=etag)
    assert (
        publisher.publish([picture], UPLOADS)
        == [picture.task_id]
        == [Wanted(picture.source, etag=etag).task_id]
    )
    assert picture.task_id != Wanted(picture.source, etag="other").task_id


def test_nothing_is_written_once_what_was_watched_has_changed(unattended, publisher):
    def watch(pipe):
        pipe.watch("checkpoint")
        unattended.client.set("checkpoint", "of another")

    def write(pipe):
        pipe.set("checkpoint", "mine")

    with pytest.raises(QueueUnavailable, match="another process"):
        publisher.publish(pictures(3), UPLOADS, also_write=write, watch=watch)

    assert messages(unattended, UPLOADS) == []
    assert unattended.client.get("checkpoint") == b"of another"
    publisher.publish(pictures(3), UPLOADS, watch=lambda pipe: pipe.watch("checkpoint"))
    assert len(messages(unattended, UPLOADS)) == 3


def test_an_empty_batch_still_takes_what_goes_along(unattended, publisher):
    publisher.publish([], BACKFILL, also_write=lambda pipe: pipe.set("checkpoint", "a"))
    assert unattended.client.get("checkpoint") == b"a"


def test_a_batch_that_fails_leaves_nothing(unattended, publisher):
    def fail(pipe):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publisher.publish(pictures(10), UPLOADS, also_write=fail)
    assert messages(unattended, UPLOADS) == []
    publisher.publish(pictures(2), UPLOADS)
    assert len(messages(unattended, UPLOADS)) == 2


def test_a_full_queue_is_waited_for_and_reported_once(unattended):
    unattended.client.lpush(BACKFILL, *"abc")
    reported = []

    def make_room(waiting):
        reported.append(waiting)
        unattended.client.ltrim(BACKFILL, 0, 0)

    assert wait_for_room(unattended.client, BACKFILL, 2, make_room)
    assert reported == [3]
    assert wait_for_room(unattended.client, BACKFILL, 2, make_room)
    assert reported == [3]


def test_the_wait_for_a_full_queue_ends_early_if_its_pause_says_so(unattended):
    unattended.client.lpush(BACKFILL, *"abc")
    answers = [False, True]
    assert not wait_for_room(
        unattended.client, BACKFILL, 2, lambda waiting: None, lambda seconds: answers.pop(0)
    )
    assert answers == []


def test_a_full_queue_takes_nothing_before_it_has_run_down_to_low_water(unattended):
    queue, backpressure = unattended.client, Backpressure(unattended.client, BACKFILL, 10, 4)
    assert backpressure.free() == 10
    queue.lpush(BACKFILL, *range(10))
    assert backpressure.free() == 0
    queue.rpop(BACKFILL, 5)
    assert backpressure.free() == 0
    queue.rpop(BACKFILL)
    assert backpressure.free() == 6


def test_a_batch_that_redis_has_no_room_for_leaves_nothing(unattended, publisher):
    publisher.publish(pictures(1), UPLOADS)
    before = unattended.client.config_get("maxmemory")["maxmemory"]
    unattended.client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(QueueUnavailable, match="Redis is full"):
            publisher.publish(pictures(1000), UPLOADS)
    finally:
        unattended.client.config_set("maxmemory", before)
    assert len(messages(unattended, UPLOADS)) == 1


def test_no_redis_is_said_at_once(quiet_port):
    publisher = Publisher(create_app(Settings(redis_url=f"redis://{HOST}:{quiet_port}/0")))
    started = time.monotonic()
    with pytest.raises(QueueUnavailable, match="VEIL_REDIS_URL"):
        publisher.publish(pictures(3), UPLOADS)
    assert time.monotonic() - started < 15  # Celery by itself tries for 20 s and more.


def test_the_same_version_of_a_picture_has_the_same_task_id():
    first = Wanted(ObjectUri("raw", "a.jpg"), etag="1")
    assert first.task_id == Wanted(ObjectUri("raw", "a.jpg"), etag="1").task_id
    assert first.task_id != Wanted(ObjectUri("raw", "a.jpg"), etag="2").task_id
    assert (
        first.task_id
        != Wanted(ObjectUri("raw", "a.jpg"), ObjectUri("clean", "b.jpg"), etag="1").task_id
    )
    assert Wanted(ObjectUri("raw", "a.jpg")).task_id != Wanted(ObjectUri("raw", "a.jpg")).task_id


def test_the_recipe_that_workers_use_is_known_to_producers(worker, queue, raw, place, portrait):
    recipe = queue.report(raw.put(place + "a.jpg", portrait))["recipe"]
    assert publishing.announced_recipe(queue.client) == recipe


def test_no_worker_no_recipe(unattended):
    assert publishing.announced_recipe(unattended.client) is None
