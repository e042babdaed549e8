"""Each outcome reaches a webhook, SQS or SNS, whatever the target does meanwhile."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from structlog.testing import capture_logs

from tasks.line_limit import MAX_LINES
from tasks.notifications import outbox
from tasks.notifications.sender import Sender
from tasks.notifications.targets import NotAccepted, Webhook
from tests.integration.certificates import write_certificate
from tests.integration.conftest import Worker
from tests.integration.receivers import Receiver
from tools.local.servers import HOST, Server, free_port

STUB = Path(__file__).parents[1] / "stub_worker.py"
ROOT = STUB.parents[2]
KEY = "a-secret-of-this-test-with-more-than-32-characters"
OLD_KEY = "whsec_" + base64.b64encode(b"another secret of this test, of 32 characters").decode()


@pytest.fixture
def receiver():
    started = Receiver()
    yield started
    started.close()


@pytest.fixture
def stub(unattended, tmp_path):
    """``stub(**environment)`` starts a worker without a detector."""
    workers = []

    def start(**environment):
        variables = {
            **unattended.environment,
            "VEIL_LEASE_SECONDS": "2",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        name = f"worker-{len(workers)}"
        command = [sys.executable, STUB, tmp_path / "journal"]
        workers.append(Worker(Server(name, command, tmp_path / f"{name}.log", variables)))
        workers[-1].start()
        return workers[-1]

    yield start
    for worker in workers:
        worker.server.stop()


def settings(receiver, **more):
    return {"VEIL_NOTIFY": f"{receiver.url}/hook", "VEIL_NOTIFY_KEY": f"{KEY},{OLD_KEY}", **more}


def send(queue, *keys):
    for key in keys:
        queue.app.send_task("veil.anonymize_image", (f"s3://raw/{key}",))


def events(receiver):
    return [json.loads(posted.body) for posted in receiver.posted]


def signature(secret, posted):
    signed = f"{posted.headers['webhook-id']}.{posted.headers['webhook-timestamp']}.".encode()
    digest = hmac.new(secret, signed + posted.body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def test_each_outcome_is_a_signed_event(unattended, stub, receiver, wait_until):
    stub(**settings(receiver))
    send(unattended, "a.jpg", "permanent/b.jpg")
    wait_until(lambda: len(receiver.posted) == 2)
    found = {event["type"]: event for event in events(receiver)}
    done, dead = found["veil.picture.anonymized"], found["veil.picture.dead"]
    assert done["specversion"] == "1.0"
    assert done["subject"] == done["data"]["source"] == "s3://raw/a.jpg"
    assert done["data"]["recipe"] == "stub"
    assert dead["data"]["error"] == "UnreadableImage"
    assert dead["data"]["message"] == "not a picture"
    for posted in receiver.posted:
        assert posted.headers["content-type"] == "application/cloudevents+json"
        assert abs(time.time() - int(posted.headers["webhook-timestamp"])) < 60
        keys = (KEY.encode(), base64.b64decode(OLD_KEY.removeprefix("whsec_")))
        expected = [signature(key, posted) for key in keys]
        assert posted.headers["webhook-signature"].split() == expected
    wait_until(lambda: outbox.waiting(unattended.client) == 0)


@pytest.fixture
def private(tmp_path):
    """A receiver with TLS whose certificate no system trusts, and the file of its issuer."""
    folder = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    started = Receiver(context=context)
    yield started, folder / "certificate.pem"
    started.close()


def test_the_issuer_of_a_webhook_is_trusted_if_SSL_CERT_FILE_names_it(
    unattended, stub, private, wait_until
):
    receiver, issuer = private
    stub(**settings(receiver, SSL_CERT_FILE=str(issuer)))
    send(unattended, "a.jpg")
    wait_until(lambda: receiver.posted)
    wait_until(lambda: outbox.waiting(unattended.client) == 0)


def test_an_error_of_tls_says_what_to_check(private, receiver):
    event = {"id": "event-1"}
    distrusted, _ = private
    with pytest.raises(NotAccepted, match="name the file of its issuer in SSL_CERT_FILE"):
        asyncio.run(Webhook(f"{distrusted.url}/hook", [KEY]).send(event))
    plain = receiver.url.replace("http://", "https://")
    with pytest.raises(NotAccepted, match="this port does not speak TLS: check VEIL_NOTIFY"):
        asyncio.run(Webhook(f"{plain}/hook", [KEY]).send(event))
    assert not distrusted.posted
    assert not receiver.posted


def test_a_webhook_that_fails_loses_no_event_and_holds_up_no_picture(
    unattended, stub, receiver, wait_until
):
    is_broken = threading.Event()
    is_broken.set()
    receiver.answer = lambda _posted: 500 if is_broken.is_set() else 204
    worker = stub(**settings(receiver))
    send(unattended, *(f"{number}.jpg" for number in range(30)))
    wait_until(lambda: len(worker.lines("anonymized")) == 30, 20)
    assert outbox.waiting(unattended.client) == 30
    wait_until(lambda: worker.lines("away", server="notifications"))
    tried = len(receiver.posted)
    is_broken.clear()
    wait_until(lambda: outbox.waiting(unattended.client) == 0)
    subjects = {event["subject"] for event in events(receiver)[tried:]}
    assert len(subjects) == 30
    assert worker.lines("back", server="notifications")


def test_a_webhook_that_answers_500_for_an_hour_gets_every_event_afterwards(unattended, receiver):
    """The pauses of the sender are added up, and not waited for."""
    keys = {f"event-{number}" for number in range(30)}
    for key in keys:
        event = {"id": key, "time": datetime.now(UTC).isoformat(), "data": {}}
        outbox.put(unattended.client, event)
    target = Webhook(f"{receiver.url}/hook", [KEY])
    sender = Sender(outbox.Outbox(unattended.client), target, hours=72)

    async def send_for_an_hour():
        receiver.answer = lambda _posted: 500
        waited = 0.0
        while waited < 3600:
            waited += await sender.send_due()
        tried = len(receiver.posted)
        assert tried < 200
        assert outbox.waiting(unattended.client) == len(keys)
        receiver.answer = lambda _posted: 200
        while outbox.waiting(unattended.client):
            await sender.send_due()
        return tried

    tried = asyncio.run(send_for_an_hour())
    assert {event["id"] for event in events(receiver)[tried:]} == keys


def test_a_webhook_that_refuses_every_event_after_an_outage_is_not_back(unattended, receiver):
    """The log has ten refused events and one count a minute, and no end of the outage."""

    def put(*keys):
        for key in keys:
            event = {"id": key, "time": datetime.now(UTC).isoformat(), "data": {}}
            outbox.put(unattended.client, event)

    async def send(rounds, status):
        receiver.answer = lambda _posted: status
        for _ in range(rounds):
            await sender.send_due()

    now = 100.0
    target = Webhook(f"{receiver.url}/hook", [KEY])
    sender = Sender(outbox.Outbox(unattended.client), target, hours=72, clock=lambda: now)
    put(*(f"event-{number:02}" for number in range(40)))
    with capture_logs() as lines:
        asyncio.run(send(1, 503))
        asyncio.run(send(41, 422))
    refused = ["notification refused"] * MAX_LINES
    assert [line["event"] for line in lines] == ["away", *refused, "more notifications refused"]
    counted = lines[-1]["notifications"]
    now += 60
    with capture_logs() as lines:
        asyncio.run(send(1, 422))
        put("accepted")
        asyncio.run(send(1, 200))
    assert [line["event"] for line in lines] == ["more notifications refused", "back"]
    assert MAX_LINES + counted + lines[0]["notifications"] == 40


def test_a_webhook_that_hangs_holds_up_no_picture(unattended, stub, receiver, wait_until):
    released = threading.Event()
    receiver.answer = lambda _posted: released.wait(120) and 200
    worker = stub(**settings(receiver))
    send(unattended, *(f"{number}.jpg" for number in range(10)))
    wait_until(lambda: len(worker.lines("anonymized")) == 10, 20)
    wait_until(lambda: worker.lines("away", server="notifications"), 40)
    released.set()
    wait_until(lambda: outbox.waiting(unattended.client) == 0)


def test_a_refused_event_lets_the_others_pass_and_is_given_up_in_the_end(
    unattended, stub, receiver, wait_until
):
    receiver.answer = lambda posted: 422 if b"/bad.jpg" in posted.body else 200
    worker = stub(**settings(receiver, VEIL_NOTIFY_HOURS="0.002"))
    send(unattended, "bad.jpg", "good.jpg")
    wait_until(lambda: worker.lines("notification refused"))
    wait_until(lambda: worker.lines("notification given up"))
    wait_until(lambda: outbox.waiting(unattended.client) == 0)
    assert any(event["subject"] == "s3://raw/good.jpg" for event in events(receiver))


def test_the_events_of_a_killed_worker_are_sent_by_another(unattended, stub, receiver, wait_until):
    receiver.answer = lambda _posted: 503
    first = stub(**settings(receiver))
    send(unattended, "a.jpg")
    wait_until(lambda: receiver.posted)
    first.server.kill()
    receiver.answer = lambda _posted: 200
    tried = len(receiver.posted)
    # The killed worker had taken the event, perhaps, and it is due again after a minute.
    unattended.client.zadd(outbox.DUE_KEY, dict.fromkeys(ids(unattended), 0))
    stub(**settings(receiver))
    wait_until(lambda: outbox.waiting(unattended.client) == 0)
    assert events(receiver)[tried]["id"] == events(receiver)[0]["id"]


def ids(queue):
    return [key.decode() for key in queue.client.hkeys(outbox.EVENTS_KEY)]


@pytest.fixture
def aws(monkeypatch):
    """Clients of SQS and SNS at a server of moto, and the environment of a worker that uses it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(HOST, free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL_SQS": f"http://{host}:{port}",
        "AWS_ENDPOINT_URL_SNS": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sqs, sns = (boto3.client(name, region_name="eu-central-1") for name in ("sqs", "sns"))
    yield sqs, sns, environment
    server.stop()


@pytest.mark.parametrize("kind", ["sqs", "sns"])
def test_queues_and_topics_of_aws_get_the_events_too(unattended, stub, aws, kind, wait_until):
    sqs, sns, environment = aws
    queue = sqs.create_queue(QueueName="outcomes")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    target = arn["Attributes"]["QueueArn"]
    if kind == "sns":
        topic = sns.create_topic(Name="outcomes")["TopicArn"]
        sns.subscribe(
            TopicArn=topic,
            Protocol="sqs",
            Endpoint=target,
            Attributes={"RawMessageDelivery": "true"},
        )
        target = topic
    stub(VEIL_NOTIFY=target, **environment)
    send(unattended, "a.jpg")
    received = wait_until(lambda: sqs.receive_message(QueueUrl=queue).get("Messages"))
    event = json.loads(received[0]["Body"])
    assert event["type"] == "veil.picture.anonymized"
    assert event["subject"] == "s3://raw/a.jpg"
