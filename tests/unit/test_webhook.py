"""The webhook's intake: what arrives together is published together, and a bug ends the process."""

import asyncio
import signal

import pytest

from demo.servers import HOST, free_port
from tasks import webhook
from tasks.addresses import ObjectUri
from tasks.errors import QueueUnavailable
from tasks.publishing import Wanted
from tasks.webhook import BATCH, Intake


def pictures(*numbers):
    return [Wanted(ObjectUri("raw", f"{number}.jpg")) for number in numbers]


class Publishes:
    """Takes what is published, after the failures that it is given."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.batches = []

    def publish(self, batch):
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(len(batch))


def publish(trigger, requests, hold=30.0):
    """What each request, a number of pictures, gets: None or an error."""

    async def run():
        intake = Intake(trigger, hold)
        puts = [intake.put(pictures(*range(count))) for count in requests]
        publishing = asyncio.create_task(intake.run())
        try:
            return await asyncio.gather(*puts, return_exceptions=True)
        finally:
            publishing.cancel()

    return asyncio.run(run())


def test_what_arrives_together_is_published_together():
    trigger = Publishes()
    assert publish(trigger, [1, 2, 3]) == [None] * 3
    assert trigger.batches == [6]


def test_a_batch_is_bounded_and_a_large_request_stays_whole():
    trigger = Publishes()
    assert publish(trigger, [BATCH - 1, 1, 1, BATCH * 2, 1]) == [None] * 5
    assert trigger.batches == [BATCH, 1, BATCH * 2, 1]


def test_requests_are_held_until_redis_is_back():
    trigger = Publishes(QueueUnavailable("away"), QueueUnavailable("away"))
    assert publish(trigger, [1, 1]) == [None] * 2
    assert trigger.batches == [2]


def test_requests_are_not_held_for_longer_than_told():
    trigger = Publishes(*[QueueUnavailable("away")] * 1000)
    answers = publish(trigger, [1, 1], hold=0.05)
    assert [type(answer) for answer in answers] == [QueueUnavailable] * 2
    assert trigger.batches == []


def test_more_requests_than_can_wait_are_turned_away_at_once(monkeypatch):
    monkeypatch.setattr(webhook, "MOST_WAITING", 2)
    trigger = Publishes()
    answers = publish(trigger, [1, 1, 1])
    assert [type(answer) for answer in answers] == [type(None), type(None), QueueUnavailable]
    assert trigger.batches == [2]


def test_a_bug_while_publishing_ends_the_process():
    class Broken(Publishes):
        def read(self, body):
            return pictures(1)

    async def run():
        serving = asyncio.create_task(webhook.serve(Broken(ZeroDivisionError()), None, "token", HOST, port, 5.0))
        await asyncio.sleep(0.1)
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: token\r\nContent-Length: 1\r\n\r\n{")
        try:
            await asyncio.wait_for(serving, 20)
        finally:
            writer.close()

    port = free_port()
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(ZeroDivisionError):
            asyncio.run(run())
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
