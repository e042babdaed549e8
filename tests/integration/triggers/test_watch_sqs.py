"""`veil watch --sqs` on moto's S3 and SQS: events are deleted once their messages are enqueued."""

import base64
import json
import logging
import threading
import time

import boto3
import pytest
from moto.server import ThreadedMotoServer
from structlog.testing import capture_logs

from tasks.publishing import Publisher
from tasks.routes import Routes
from tasks.settings import Settings
from tasks.telemetry.metrics import TRIGGER
from tasks.uploads import sqs
from tasks.uploads.sqs import EventQueue, SqsSource
from tasks.uploads.stopping import Stop
from tasks.uploads.trigger import EventFilter, Trigger
from tests.events import ODD_BODIES
from tools.local.servers import HOST, free_port, start_redis

KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
ODD_KEYS = ["a b.jpg", "a+b.jpg", "100%.jpg", "a%20b.jpg", "ü/日本 😀.jpg", "k" * 900 + ".jpg"]


class Amazon:
    """S3 and SQS at one address, which can go away and come back unchanged."""

    def __init__(self):
        self.port = free_port()
        self.address = f"http://{HOST}:{self.port}"
        self.start()
        options = {
            "aws_access_key_id": "any",
            "aws_secret_access_key": "any",
            "region_name": "us-east-1",
        }
        self.s3, self.sqs = (
            boto3.client(name, endpoint_url=self.address, **options) for name in ("s3", "sqs")
        )

    def start(self):
        self._server = ThreadedMotoServer(HOST, self.port, verbose=False)
        self._server.start()

    def stop(self):
        self._server.stop()

    def new_queue(self, name, **attributes):
        return self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]

    def arn(self, url):
        return self._attributes(url)["QueueArn"]

    def left(self, url):
        """Return the numbers of waiting SQS messages and of those in somebody's hands."""
        found = self._attributes(url)
        return tuple(
            int(found[f"ApproximateNumberOfMessages{name}"]) for name in ("", "NotVisible")
        )

    def _attributes(self, url):
        return self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]


@pytest.fixture(scope="module")
def amazon(clean_environment):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = Amazon()
    started.s3.create_bucket(Bucket="raw")
    yield started
    started.stop()


@pytest.fixture
def told(amazon, request):
    """A queue to which the bucket sends its events."""
    url = amazon.new_queue(request.node.name.replace("[", "-").replace("]", "")[:70])
    queues = [{"QueueArn": amazon.arn(url), "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}]
    amazon.s3.put_bucket_notification_configuration(
        Bucket="raw", NotificationConfiguration={"QueueConfigurations": queues}
    )
    yield url
    amazon.s3.put_bucket_notification_configuration(Bucket="raw", NotificationConfiguration={})


def sources(client, queue="uploads"):
    return sorted(
        json.loads(message)["headers"]["argsrepr"] for message in client.lrange(queue, 0, -1)
    )


def test_uploads_go_to_the_queue_and_their_messages_go(
    amazon, told, unattended, start_watch, wait_until
):
    with start_watch("--sqs", told, environment={**unattended.environment, **KEYS}) as trigger:
        for key in [*ODD_KEYS, "folder/"]:
            amazon.s3.put_object(Bucket="raw", Key=key, Body=b"x")
        amazon.s3.delete_object(Bucket="raw", Key=ODD_KEYS[0])
        wait_until(lambda: len(sources(unattended.client)) == len(ODD_KEYS))
        wait_until(lambda: amazon.left(told) == (0, 0))

        trigger.server.process.terminate()
        assert trigger.server.process.wait(15) == 0, "told to stop in the middle of its long poll"
    (stopped,) = trigger.lines("stopped")
    assert stopped["queued"] == len(ODD_KEYS)
    assert stopped["ignored"] == {"test": 1, "folder": 1, "deleted": 1}
    messages = [json.loads(message) for message in unattended.client.lrange("uploads", 0, -1)]
    found = sorted(json.loads(base64.b64decode(message["body"]))[0][0] for message in messages)
    assert found == sorted(f"s3://raw/{key}" for key in ODD_KEYS)


def test_while_redis_is_away_messages_are_kept_and_nobody_else_gets_them(
    amazon, told, start_watch, tmp_path, wait_until
):
    redis = start_redis(tmp_path / "redis")
    try:
        with start_watch("--sqs", told, environment={**redis.environment(), **KEYS}) as trigger:
            wait_until(lambda: amazon.left(told) == (0, 0))  # The store's test event.
            redis.server.kill()
            for number in range(12):
                amazon.s3.put_object(Bucket="raw", Key=f"{number}.jpg", Body=b"x")
            wait_until(lambda: trigger.lines("away", server="redis"))
            time.sleep(1)
            assert sum(amazon.left(told)) == 12
            assert amazon.left(told)[1] > 0
            redis.server.start()
            wait_until(lambda: amazon.left(told) == (0, 0))
            assert len(sources(redis.client())) == 12
            assert len(trigger.lines("away")) == len(trigger.lines("back")) == 1
    finally:
        redis.server.stop()


@pytest.fixture
def source(amazon, unattended, monkeypatch):
    """Take SQS messages from a queue in this process; they are hidden for a second only."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sqs, "VISIBILITY_SECONDS", 1)
    monkeypatch.setattr(sqs, "POLL_SECONDS", 0)
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(Routes.parse("s3://raw=s3://clean")), "sqs")

    def make(url):
        queue = EventQueue.connect(Settings(), url)
        return SqsSource(queue, trigger), queue, trigger

    yield make
    publisher.close()


def record(key):
    entry = {"bucket": {"name": "raw"}, "object": {"key": key, "eTag": "1"}}
    return {"Records": [{"eventName": "ObjectCreated:Put", "s3": entry}]}


def test_what_is_malformed_is_left_for_the_redrive_policy_and_the_rest_is_taken(
    amazon, source, unattended, wait_until
):
    dead = amazon.new_queue("dead")
    policy = json.dumps({"deadLetterTargetArn": amazon.arn(dead), "maxReceiveCount": 2})
    url = amazon.new_queue("redriven", RedrivePolicy=policy)
    for body in (json.dumps(record("a.jpg")), "no event", json.dumps(record("b.jpg"))):
        amazon.sqs.send_message(QueueUrl=url, MessageBody=body)
    taking, queue, trigger = source(url)
    assert queue.has_redrive_policy()

    taking.take(queue.receive(), Stop())
    assert sources(unattended.client) == ["s3://raw/a.jpg", "s3://raw/b.jpg"]
    assert sum(amazon.left(url)) == 1

    def gone():
        taking.take(queue.receive(), Stop())
        return sum(amazon.left(url)) == 0

    wait_until(gone)
    assert amazon.left(dead) == (1, 0)
    assert trigger.malformed == 2
    assert len(sources(unattended.client)) == 2


def test_no_odd_message_ends_the_trigger_or_comes_back_for_good(
    amazon, source, unattended, wait_until
):
    dead = amazon.new_queue("odd-dead")
    policy = json.dumps({"deadLetterTargetArn": amazon.arn(dead), "maxReceiveCount": 2})
    url = amazon.new_queue("odd", RedrivePolicy=policy)
    # SQS accepts text of up to 256 KiB.
    odd = [
        text
        for body in ODD_BODIES.values()
        if (text := body.decode(errors="ignore")) and len(body) < 200_000
    ]
    for number, body in enumerate(odd):
        amazon.sqs.send_message(QueueUrl=url, MessageBody=body.replace("\0", "") or "x")
        amazon.sqs.send_message(QueueUrl=url, MessageBody=json.dumps(record(f"{number}.jpg")))
    taking, queue, trigger = source(url)

    def all_gone():
        taking.take(queue.receive(), Stop())
        return sum(amazon.left(url)) == 0

    with capture_logs() as lines:
        wait_until(all_gone)
    good = {f"s3://raw/{number}.jpg" for number in range(len(odd))}
    assert good <= set(sources(unattended.client))
    assert "s3://raw/d/a.jpg" in sources(unattended.client), (
        "an odd ETag is no reason to leave a picture out"
    )
    assert amazon.left(dead)[0] > 5
    assert trigger.malformed == 2 * amazon.left(dead)[0]
    assert len([line for line in lines if line["event"] == "malformed"]) == trigger.malformed


def test_a_record_that_is_not_understood_keeps_its_neighbours_from_nothing_and_its_message_goes(
    amazon, source, unattended
):
    url = amazon.new_queue("mixed")
    records = [
        *record("a.jpg")["Records"],
        {"eventName": "ObjectCreated:Put"},
        *record("../b.jpg")["Records"],
    ]
    amazon.sqs.send_message(
        QueueUrl=url, MessageBody=json.dumps({"Records": [*records, *record("c.jpg")["Records"]]})
    )
    taking, queue, trigger = source(url)
    with capture_logs() as lines:
        taking.take(queue.receive(), Stop())
    assert sources(unattended.client) == ["s3://raw/a.jpg", "s3://raw/c.jpg"]
    assert amazon.left(url) == (0, 0)
    assert (trigger.ignored["refused"], trigger.malformed) == (2, 0)
    assert len([line for line in lines if line["event"] == "key refused"]) == 2


def source_up():
    return TRIGGER.get_sample_value("veil_upload_source_up", {"source": "sqs"})


def test_sqs_goes_away_and_comes_back(amazon, source, told, unattended, monkeypatch, wait_until):
    monkeypatch.setattr(sqs, "POLL_SECONDS", 1)
    taking, _, _ = source(told)
    stop = Stop()
    with capture_logs() as lines:
        running = threading.Thread(target=taking.run, args=(stop,))
        running.start()
        try:
            amazon.s3.put_object(Bucket="raw", Key="before.jpg", Body=b"x")
            wait_until(lambda: sources(unattended.client) == ["s3://raw/before.jpg"])
            amazon.stop()
            try:
                wait_until(lambda: [line for line in lines if line["event"] == "away"])
                time.sleep(2)  # Enough for several tries.
                assert source_up() == 0
            finally:
                amazon.start()
            amazon.s3.put_object(Bucket="raw", Key="since.jpg", Body=b"x")
            wait_until(
                lambda: sources(unattended.client) == ["s3://raw/before.jpg", "s3://raw/since.jpg"]
            )
        finally:
            stop.requested = True
            running.join(30)
    told_of = [(line["event"], line["server"]) for line in lines if "server" in line]
    assert told_of == [("away", "sqs"), ("back", "sqs")]
    assert source_up() == 1


def test_a_fifo_queue_is_taken_too(amazon, source, unattended):
    url = amazon.new_queue("ordered.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    for number in range(3):
        amazon.sqs.send_message(
            QueueUrl=url, MessageBody=json.dumps(record(f"{number}.jpg")), MessageGroupId="g"
        )
    taking, queue, _ = source(url)
    assert not queue.has_redrive_policy()
    while messages := queue.receive():
        taking.take(messages, Stop())
    assert sources(unattended.client) == [f"s3://raw/{number}.jpg" for number in range(3)]
    assert amazon.left(url) == (0, 0)


class EndsSoon(Stop):
    """A stop that comes at the first pause."""

    def wait(self, seconds):
        self.requested = True
        return True


def test_told_to_stop_while_redis_is_away_it_gives_the_messages_back(
    amazon, source, quiet_port, unattended
):
    url = amazon.new_queue("given-back")
    amazon.sqs.send_message(QueueUrl=url, MessageBody=json.dumps(record("a.jpg")))
    taking, queue, _ = source(url)
    messages = queue.receive()
    unattended.app.conf.broker_url, before = (
        f"redis://{HOST}:{quiet_port}/0",
        unattended.app.conf.broker_url,
    )
    try:
        taking.take(messages, EndsSoon())
    finally:
        unattended.app.conf.broker_url = before
    assert amazon.left(url) == (1, 0)
    assert sources(unattended.client) == []


def the_one_line(done):
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("veil: ")]
    assert "Traceback" not in done.stderr
    return line


def test_a_queue_that_is_not_there_is_one_line(amazon, veil):
    done = veil("watch", "--sqs", f"{amazon.address}/123456789012/absent", environment=KEYS)
    assert "there is no such queue" in the_one_line(done)
    assert "watching" not in done.stdout + done.stderr


def test_without_credentials_it_is_one_line(amazon, veil):
    assert "AccessDenied" in the_one_line(
        veil("watch", "--sqs", f"{amazon.address}/123456789012/any")
    )


def test_another_endpoint_can_be_named_by_botos_own_variable(
    amazon, told, unattended, start_watch, wait_until
):
    url = told.replace(str(amazon.port), "1")
    settings = {**unattended.environment, **KEYS, "AWS_ENDPOINT_URL_SQS": amazon.address}
    with start_watch("--sqs", url, environment=settings):
        amazon.s3.put_object(Bucket="raw", Key="a.jpg", Body=b"x")
        wait_until(lambda: sources(unattended.client) == ["s3://raw/a.jpg"])
