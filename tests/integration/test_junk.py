"""Whatever lies on the raw Redis list, the worker takes it away and goes on."""

import base64
import json
import pickle

import pytest

HEADERS = {"lang": "py", "task": "veil.anonymize_image", "root_id": None, "parent_id": None, "group": None}


def message(body, content_type="application/json", encoding="utf-8", properties=None, **headers):
    """A message as Celery puts it on the list, with one thing or another out of order."""
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": encoding,
            "content-type": content_type,
            "headers": {**HEADERS, "id": "00000000-0000-0000-0000-000000000000", **headers},
            "properties": {
                "body_encoding": "base64",
                "delivery_info": {"exchange": "", "routing_key": "uploads"},
                "delivery_mode": 2,
                "delivery_tag": "junk",
                **(properties or {}),
            },
        }
    ).encode()


GOOD_BODY = b'[["s3://raw/a.jpg"], {}, {}]'
JUNK = {
    "not JSON": b"not json",
    "not text": b"\xff\xfe\x00",
    "an empty text": b"",
    "a list": b"[]",
    "a number": b"7",
    "an empty object": b"{}",
    "an object of another program": b'{"key": "a.jpg", "bucket": "raw"}',
    "no headers": json.dumps({**json.loads(message(GOOD_BODY)), "headers": None}).encode(),
    "no properties": json.dumps({**json.loads(message(GOOD_BODY)), "properties": None}).encode(),
    "a body that is not base64": json.dumps({**json.loads(message(GOOD_BODY)), "body": "***"}).encode(),
    "a date that is none": b'{"headers": {"__type__": "datetime", "__value__": 5}}',
    "a type that is none": b'{"headers": {"__type__": ["x"], "__value__": 5}}',
    "a date that is none in the body": message(b'[[{"__type__": "datetime", "__value__": 5}], {}, {}]'),
    "a body that is not JSON": message(b"{{{"),
    "a body that is text": message(b'"text"'),
    "a body that is an object": message(b'{"hello": 1}'),
    "arguments that are a number": message(b"[1, {}, {}]"),
    "arguments by name that are a list": message(b'[["s3://raw/a.jpg"], ["x"], {}]'),
    "a body without its third part": message(b'[["s3://raw/a.jpg"], {}]'),
    "another task": message(GOOD_BODY, task="os.system"),
    "a task that is no text": message(GOOD_BODY, task=["veil.anonymize_image"]),
    "an id that is no text": message(GOOD_BODY, id=["x"]),
    "retries that are text": message(GOOD_BODY, retries="many"),
    "a priority that is text": message(GOOD_BODY, properties={"priority": "first"}),
    "a message of a size that none has": message(b'[["' + b"x" * (1 << 20) + b'"], {}, {}]'),
    "pickle": message(pickle.dumps((("s3://raw/a.jpg",), {}, {})), "application/x-python-serialize", "binary"),
    "YAML": message(b"!!python/object/apply:os.system ['true']", "application/x-yaml"),
    "an unknown content type": message(GOOD_BODY, "application/x-unknown"),
    "an unknown encoding": message(GOOD_BODY, encoding="no-such-codec"),
}


@pytest.mark.parametrize("kind", JUNK)
def test_junk_on_the_queue_neither_ends_the_worker_nor_stays(worker, queue, raw, portrait, place, wait_until, kind):
    # More of it than the worker may hold at once: what it holds and never lets go would stop it.
    queue.client.lpush("uploads", *[JUNK[kind]] * 12)

    assert queue.report(raw.put(place + "a.jpg", portrait))["status"] == "anonymized"

    wait_until(lambda: not queue.client.llen("uploads") and not queue.client.hlen("unacked"), 20)
    assert worker.alive


COMMAND = b'{"method": "ping", "arguments": {}}'
BROADCAST = [
    *JUNK.values(),
    b'{"__type__": "decimal", "__value__": "x"}',
    b"[" * 100_000,
    message(COMMAND, properties={"delivery_tag": None}),
    message(COMMAND, clock="x", expires={}),
    *(
        message(body)
        for body in (
            b"5", b"[]", b"{}", b'{"method": 5}', b'{"method": "ping", "arguments": 5}', b'{"method": "nothing"}',
            b'{"method": "ping", "reply_to": 5}', b'{"method": "ping", "pattern": "[", "matcher": "pcre"}',
            b'{"type": 5, "hostname": []}', b'{"type": "worker-online", "hostname": "x", "timestamp": "y"}',
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("channel", ["celery.pidbox", "celeryev/worker.heartbeat", "celeryev/worker.elect"])
def test_junk_that_is_broadcast_does_not_end_the_worker(worker, queue, raw, portrait, place, wait_until, channel):
    for item in BROADCAST:  # after some commands Celery listens anew
        wait_until(lambda item=item: queue.client.publish(f"/{queue.database}.{channel}", item), 20)

    assert queue.report(raw.put(place + "a.jpg", portrait))["status"] == "anonymized"
    wait_until(lambda: queue.app.control.ping(timeout=2), 30)
    assert worker.alive
