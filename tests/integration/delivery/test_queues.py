"""The numbers of waiting messages and messages in hand, read from a real Redis."""

import json
import time

import pytest

from tasks.addresses import ObjectUri
from tasks.messages import BACKFILL, UPLOADS
from tasks.publishing import Publisher, Wanted
from tasks.records import queues

PICTURE = Wanted(ObjectUri("raw", "a.jpg"))


def waiting(queue):
    return {status.name: status.waiting for status in queues.statuses(queue.client)}


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_messages_of_every_priority_wait(unattended, priority):
    assert waiting(unattended) == {UPLOADS: 0, BACKFILL: 0}
    assert queues.oldest(unattended.client, UPLOADS) is None

    before = time.time()
    for _ in range(2):
        unattended.app.send_task(
            "veil.anonymize_image", PICTURE.arguments, queue=UPLOADS, priority=priority
        )

    assert waiting(unattended) == {UPLOADS: 2, BACKFILL: 0}
    assert queues.depth(unattended.client, UPLOADS) == 2
    assert before - 0.001 <= queues.oldest(unattended.client, UPLOADS) <= time.time()


def test_the_oldest_message_is_that_of_any_priority(unattended):
    now = round(time.time())
    for queued_at, priority in ((now - 2.0, 0), (now - 3.0, 6), (now - 1.0, 3)):
        unattended.app.send_task(
            "veil.anonymize_image",
            PICTURE.arguments,
            queue=UPLOADS,
            headers={"veil_queued_at": queued_at},
            priority=priority,
        )
    assert queues.oldest(unattended.client, UPLOADS) == now - 3.0


def test_the_oldest_message_is_the_one_that_is_taken_next(unattended):
    now = round(time.time())
    for queued_at in (now - 1.0, now - 3.0, now - 2.0):
        headers = {"veil_queued_at": queued_at}
        unattended.app.send_task(
            "veil.anonymize_image", PICTURE.arguments, queue=UPLOADS, headers=headers
        )
    assert queues.oldest(unattended.client, UPLOADS) == now - 1.0


NO_TIMES = [
    '"noon"',
    "12.5",
    "1767225600000",
    "true",
    "[1]",
    "NaN",
    "1e400",
    "1" + "0" * 400,
    "-1" + "0" * 400,
]


@pytest.mark.parametrize(
    "junk",
    ["junk", "[]", "{}", *(f'{{"headers": {{"veil_queued_at": {time}}}}}' for time in NO_TIMES)],
)
def test_junk_does_not_say_since_when_it_waits(unattended, junk):
    unattended.client.lpush(UPLOADS, junk)
    assert queues.oldest(unattended.client, UPLOADS) == 0
    assert queues.statuses(unattended.client)[0].oldest_seconds is None


def plain(number):
    """Return the message number `number` of a sender that states no time."""
    return json.dumps({"headers": {"task": "veil.anonymize_image", "id": str(number)}})


def watched(unattended, watch):
    return queues.statuses(unattended.client, watch)[0].oldest_seconds


@pytest.fixture
def clock(monkeypatch):
    """``clock(seconds)`` lets time pass."""
    passed = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + passed[0])
    return lambda seconds: passed.__setitem__(0, passed[0] + seconds)


@pytest.mark.parametrize("priority", ["", "\x06\x166"])
def test_messages_without_a_time_wait_since_they_were_seen(unattended, clock, priority):
    client, watch, name = unattended.client, queues.Watch(), UPLOADS + priority
    assert watched(unattended, watch) is None
    client.lpush(name, *map(plain, range(3)))
    assert watched(unattended, watch) == 0
    clock(400)
    client.lpush(name, plain(3))
    client.rpop(name)  # a worker is slow, so that another message is the next one
    assert watched(unattended, watch) == pytest.approx(400, abs=2)
    client.rpop(name, 2)
    assert watched(unattended, watch) == 0  # all that had been seen are gone
    clock(100)
    assert watched(unattended, watch) == pytest.approx(100, abs=2)
    client.delete(name)
    assert watched(unattended, watch) is None


def test_a_time_in_a_message_counts_and_not_since_when_it_was_seen(unattended, clock):
    watch = queues.Watch()
    unattended.client.lpush(UPLOADS, json.dumps({"headers": {"veil_queued_at": time.time() - 5}}))
    assert watched(unattended, watch) == pytest.approx(5, abs=2)
    clock(400)
    assert watched(unattended, watch) == pytest.approx(5, abs=2)


def test_what_is_in_hand_is_known_by_its_run(unattended):
    client = unattended.client
    publisher = Publisher(unattended.app)
    for run in ("run-1", "run-2", "run-1", None):
        publisher.publish([PICTURE], BACKFILL, run)
    for tag, message in enumerate(client.lrange(BACKFILL, 0, -1)):
        client.hset("unacked", str(tag), json.dumps([json.loads(message), "", BACKFILL]))

    client.hset("unacked", "junk", "[junk, '', 'backfill']")
    client.hset("unacked", "more junk", "[]")

    assert queues.in_hand(client) == 6
    assert queues.in_hand(client, "run-1") == 2
    assert queues.in_hand(client, "run-3") == 0
