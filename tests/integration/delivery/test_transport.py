"""The channel without Celery's worker: every message that it asked for is delivered or returned."""

import time

import pytest
from kombu import Connection, Consumer

from tasks.delivery import leases, transport
from tasks.delivery.leases import Leases
from tasks.messages import QUEUES


@pytest.fixture
def consumer(unattended):
    """A consumer of the queues with leases of its own, and its received messages."""

    class Transport(transport.Transport):
        leases = Leases()

    connection = Connection(
        unattended.app.conf.broker_url,
        transport=Transport,
        transport_options={"lease_seconds": 30.0, "queue_order_strategy": "priority"},
    )
    queues = [queue for queue in unattended.app.conf.task_queues if queue.name in QUEUES]
    received = []
    made = Consumer(
        connection.default_channel, queues, on_message=received.append, prefetch_count=2
    )
    made.received = received
    made.consume()
    yield made
    Transport.leases.close()
    connection.close()


def drained(consumer, turns=5):
    for _ in range(turns):
        try:
            consumer.connection.drain_events(timeout=0.1)
        except TimeoutError:
            return


def test_messages_are_received_up_to_the_prefetch_count_uploads_first(consumer, unattended):
    for queue in ("backfill", "uploads"):
        for number in range(2):
            unattended.app.send_task("veil.anonymize_image", (f"{queue}-{number}",), queue=queue)

    drained(consumer)

    assert [message.headers["argsrepr"] for message in consumer.received] == [
        "uploads-0",
        "uploads-1",
    ]
    assert unattended.client.llen("backfill") == 2
    assert len({message.delivery_tag for message in consumer.received}) == 2


def test_the_uploads_of_every_priority_come_before_backfill(consumer, unattended):
    consumer.qos(prefetch_count=4)
    for queue, priority in (("backfill", 0), ("uploads", 6), ("uploads", 0), ("uploads", 3)):
        unattended.app.send_task(
            "veil.anonymize_image", (f"{queue}-{priority}",), queue=queue, priority=priority
        )

    drained(consumer)

    assert [message.headers["argsrepr"] for message in consumer.received] == [
        "uploads-0",
        "uploads-3",
        "uploads-6",
        "backfill-0",
    ]


def test_one_message_twice_on_the_queue_is_two_deliveries(consumer, unattended, wait_until):
    unattended.send("a")
    item = unattended.client.lindex("uploads", 0)
    unattended.client.lpush("uploads", item)

    drained(consumer)
    first, second = consumer.received
    first.ack()

    wait_until(lambda: unattended.client.hlen("unacked") == 1, 10)
    assert unattended.client.hkeys("unacked") == [second.delivery_tag.encode()]


def test_what_was_asked_for_goes_back_at_once_when_there_is_no_place_for_it_any_more(
    consumer, unattended
):
    unattended.send("a")
    consumer.connection.transport.cycle.on_poll_start()  # This asks for messages.
    consumer.qos(prefetch_count=1)
    consumer.channel.qos._delivered["another"] = None

    drained(consumer)

    assert consumer.received == []
    assert unattended.client.llen("uploads") == 1
    assert unattended.client.exists("unacked", "unacked_index") == 0


def test_what_was_asked_for_goes_back_at_once_when_the_consumer_is_cancelled(consumer, unattended):
    unattended.send("a")
    consumer.connection.transport.cycle.on_poll_start()

    consumer.cancel()

    assert unattended.client.llen("uploads") == 1
    assert unattended.client.exists("unacked", "unacked_index") == 0


def test_an_acknowledgement_after_the_connection_is_closed_is_one(consumer, unattended, wait_until):
    unattended.send("a")
    unattended.send("b")
    drained(consumer)
    first, second = consumer.received
    assert unattended.client.hlen("unacked") == 2

    connection = consumer.connection
    connection.collect()
    connection.close()
    first.ack()

    wait_until(lambda: unattended.client.hkeys("unacked") == [second.delivery_tag.encode()], 10)
    assert unattended.client.llen("uploads") == 0, "what is still worked on does not go back"


def test_a_channel_whose_connection_is_gone_fails_like_a_lost_connection(consumer):
    channel, connection = consumer.channel, consumer.connection
    connection.collect()

    with pytest.raises(transport.Transport.connection_errors, match="closed"):
        channel.get_table("uploads")


def test_a_refusal_of_redis_is_known_until_it_gives_messages_again(
    consumer, unattended, monkeypatch
):
    monkeypatch.setattr(leases, "REFUSAL_PAUSE_SECONDS", 0.1)
    unattended.send("a")
    unattended.client.execute_command("ACL", "SETUSER", "default", "-eval")
    try:
        drained(consumer)
        assert consumer.channel.leases.is_refused
        assert consumer.received == []
    finally:
        unattended.client.execute_command("ACL", "SETUSER", "default", "+eval")
    time.sleep(0.2)
    drained(consumer, 20)
    assert len(consumer.received) == 1
    assert not consumer.channel.leases.is_refused
