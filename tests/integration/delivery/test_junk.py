"""Any item on the raw Redis list becomes an output or a dead letter, and the worker goes on."""

import base64
import json
import pickle
import uuid
from functools import partial

import pytest
from celery import Celery

from tasks.errors import InvalidRequest
from tasks.records import dead_letters, outcomes

HEADERS = {
    "lang": "py",
    "task": "veil.anonymize_image",
    "root_id": None,
    "parent_id": None,
    "group": None,
}


def message(body, content_type="application/json", encoding="utf-8", properties=None, **headers):
    """Return a message as Celery writes it on the list, with the given parts changed."""
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
    "a body that is not base64": json.dumps(
        {**json.loads(message(GOOD_BODY)), "body": "***"}
    ).encode(),
    "a date that is none": b'{"headers": {"__type__": "datetime", "__value__": 5}}',
    "a type that is none": b'{"headers": {"__type__": ["x"], "__value__": 5}}',
    "a date that is none in the body": message(
        b'[[{"__type__": "datetime", "__value__": 5}], {}, {}]'
    ),
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
    "pickle": message(
        pickle.dumps((("s3://raw/a.jpg",), {}, {})), "application/x-python-serialize", "binary"
    ),
    "YAML": message(b"!!python/object/apply:os.system ['true']", "application/x-yaml"),
    "an unknown content type": message(GOOD_BODY, "application/x-unknown"),
    "an unknown encoding": message(GOOD_BODY, encoding="no-such-codec"),
}


def letters(queue):
    """Return all letters: a source has one for each destination."""
    return list(dead_letters.LETTERS.entries(queue.client))


@pytest.mark.parametrize("kind", JUNK)
def test_junk_on_the_queue_neither_ends_the_worker_nor_stays(
    worker, queue, raw, portrait, place, wait_until, kind
):
    before, malformed = letters(queue), outcomes.totals(queue.client).get("malformed", 0)
    # More items than the worker may hold at once: items that it keeps would stop it.
    queue.client.lpush("uploads", *[JUNK[kind]] * 12)

    assert queue.report(raw.put(place + "a.jpg", portrait))["status"] == "anonymized"

    wait_until(lambda: not queue.client.llen("uploads") and not queue.client.hlen("unacked"), 20)
    assert worker.alive
    (letter,) = [letter for letter in letters(queue) if letter not in before]
    assert letter.error == "MalformedMessage"
    assert letter.queue == "uploads"
    assert f"{len(JUNK[kind]):,} bytes: " in letter.sample
    assert letter.source in ("s3://raw/a.jpg", f"message {letter.task_id}")
    assert outcomes.totals(queue.client)["malformed"] == malformed + 12
    assert worker.lines("dead", task_id=letter.task_id, error="MalformedMessage")


def shop(queue, **conf):
    """An app that knows only Veil's queue, the name of its task, and this Redis."""
    url = queue.app.conf.broker_url
    app = Celery("shop", broker=url, backend=url, set_as_current=False)
    app.conf.update(conf)
    return app


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("compression", [None, "gzip", "bzip2", "xz"])
def test_a_request_of_any_celery_is_taken(
    worker, queue, raw, clean, portrait, place, protocol, compression
):
    app = shop(queue, task_protocol=protocol, task_compression=compression)
    result = app.send_task(
        "veil.anonymize_image",
        kwargs={"source": raw.put(place + "a.jpg", portrait), "options": {"method": "fill"}},
        queue="uploads",
        priority=3,
        countdown=0.2,
    )
    report = result.get(timeout=60)
    assert (report["status"], report["options"]) == ("anonymized", {"method": "fill"})
    assert clean.keys(place) == [place + "a.jpg"]
    app.close()


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize(
    ("sending", "word"),
    [
        ({"serializer": "pickle"}, "application/x-python-serialize"),
        ({"serializer": "yaml"}, "application/x-yaml"),
        ({"name": "shop.resize", "reply_to": "elsewhere"}, "shop.resize"),
        ({"name": "celery.map"}, "celery.map"),
        ({"retries": "many"}, "retries"),
        ({"args": ["x" * (1 << 20)]}, "the limit is 1,048,576"),
    ],
    ids=str,
)
def test_whoever_waits_for_a_message_that_no_worker_takes_is_told_why(
    worker, queue, raw, clean, portrait, place, wait_until, sending, word, protocol
):
    app = shop(queue, task_protocol=protocol)
    source = raw.put(place + "a.jpg", portrait)
    result = app.send_task(
        **{"name": "veil.anonymize_image", "args": [source], "queue": "uploads", **sending}
    )

    with pytest.raises(Exception, match=word) as raised:
        result.get(timeout=30)

    assert (type(raised.value).__name__, result.state) == ("MalformedMessage", "FAILURE")
    (letter,) = [letter for letter in queue.dead().values() if letter.task_id == result.id]
    assert (letter.error, letter.queue) == ("MalformedMessage", "uploads")
    assert word in letter.message
    assert letter.source == (source if word == "retries" else f"message {result.id}")
    assert letter.source == source or (letter.destination, letter.options) == (None, None)
    assert clean.keys(place) == []
    app.close()


def test_each_message_without_a_source_has_a_letter_of_its_own(worker, queue):
    results = [queue.send(src=f"s3://raw/{number}.jpg") for number in range(3)]
    for result in results:
        assert isinstance(queue.outcome(result)[1], InvalidRequest)
        assert queue.dead()[f"message {result.id}"].error == "InvalidRequest"


def test_each_refused_message_of_a_source_has_a_letter_of_its_own(worker, queue, place):
    source = f"s3://raw/{place}a.jpg"
    wrong = [{"method": "oil"}, {"region": "ear"}]
    results = [queue.send(source, options=options) for options in wrong]
    for result in results:
        assert isinstance(queue.outcome(result)[1], InvalidRequest)

    found = [letter for letter in letters(queue) if letter.source == source]
    assert {letter.task_id for letter in found} == {result.id for result in results}
    assert sorted(letter.options.popitem()[0] for letter in found) == ["method", "region"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((None, {}, 1), {}),
        ((), {"Options": {"extra": [[0, 0, 9, 9]]}}),
        ((), {"dest": "s3://clean/other.jpg"}),
        (("s3://clean/\udc80.jpg",), {}),
    ],
)
def test_a_letter_says_that_it_lacks_a_part_of_its_message(worker, queue, place, arguments, named):
    source = f"s3://raw/{place}a.jpg"
    result = queue.send(source, *arguments, **named)
    assert isinstance(queue.outcome(result)[1], InvalidRequest)
    (letter,) = [letter for letter in letters(queue) if letter.task_id == result.id]
    assert letter.is_whole is False


def test_a_letter_with_all_of_its_message_says_so(worker, queue, place):
    source = f"s3://raw/{place}a.jpg"
    result = queue.send(source, None, {"method": "oil"})
    assert isinstance(queue.outcome(result)[1], InvalidRequest)
    (letter,) = [letter for letter in letters(queue) if letter.task_id == result.id]
    assert letter.is_whole is True


def test_of_refused_messages_the_newest_are_kept_and_all_others_too(unattended):
    most = dead_letters.MAX_REFUSED
    record = partial(dead_letters.record, unattended.client)
    record(a_letter("s3://raw/a.jpg", error="AccessDenied"))
    for number in range(most + 5):
        record(a_letter("s3://raw/b.jpg", f"{number}"))
    record(a_letter("s3://raw/b.jpg", "5"))
    record(a_letter("message new", "new"))

    kept = {f"{number}" for number in range(7, most + 5)} | {"5", "new", "task"}
    assert {letter.task_id for letter in letters(unattended)} == kept

    dead_letters.LETTERS.drop_all(unattended.client)
    record(a_letter("message after"))
    assert set(unattended.dead()) == {"message after"}


def test_the_letter_of_a_refused_message_goes_once_its_picture_is_on_the_queue(veil, unattended):
    for task in ("first", "second"):
        dead_letters.record(unattended.client, a_letter("s3://raw/a.jpg", task))
    dead_letters.record(unattended.client, a_letter("s3://raw/b.jpg", error="AccessDenied"))

    done = veil("dead", "retry", "--all", environment=unattended.environment)

    assert (done.returncode, done.stderr) == (0, "3 enqueued\n")
    assert [letter.error for letter in letters(unattended)] == ["AccessDenied"]


def a_letter(source, task="task", error="MalformedMessage"):
    return dead_letters.DeadLetter(
        source, None, error, "a line", 1, task, "worker", 1e9, is_whole=True
    )


def _malformed(queue, name):
    """Return the letters of messages on the queue `name` that no worker could take."""
    letters = queue.dead().values()
    return [
        letter for letter in letters if letter.queue == name and letter.error == "MalformedMessage"
    ]


def test_an_operator_sees_what_was_refused_and_can_forget_it(
    veil, worker, queue, environment, wait_until
):
    queue.client.lpush("backfill", b"\x1b[31mPASSWORD=hunter2 " + uuid.uuid4().hex.encode())
    found = wait_until(lambda: _malformed(queue, "backfill"), 30)
    (name,) = {letter.source for letter in found}

    (line,) = [
        line
        for line in veil("dead", "list", environment=environment).stdout.splitlines()
        if name in line
    ]
    assert "MalformedMessage: the message: it is not JSON" in line
    shown = veil("dead", "show", name, environment=environment).stdout
    assert "queue: backfill" in shown.splitlines()
    assert "54 bytes: " in shown
    assert "hunter2" not in shown
    assert "\x1b" not in shown
    assert "can't be tried again" in veil("dead", "retry", name, environment=environment).stderr
    counted = json.loads(veil("status", "--json", environment=environment).stdout)["outcomes"]
    assert 1 <= counted["malformed"] <= counted["dead"]
    assert "malformed" in veil("status", environment=environment).stdout
    assert veil("dead", "drop", name, environment=environment).returncode == 0
    assert name not in queue.dead()


def test_options_that_celery_revives_are_refused_with_a_letter(worker, queue, raw, portrait, place):
    """Celery turns a date in a message into an object, which no dead letter can hold as it is."""
    source = raw.put(place + "a.jpg", portrait)
    date = {"__type__": "datetime", "__value__": "2026-01-01T00:00:00"}
    state, error = queue.outcome(queue.send(source, None, {"extra": date}))
    assert (state, type(error)) == ("FAILURE", InvalidRequest)
    letter = queue.dead()[source]
    assert letter.error == "InvalidRequest"
    assert "2026" in letter.options


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
            b"5", b"[]", b"{}", b'{"method": 5}', b'{"method": "nothing"}',
            b'{"method": "ping", "arguments": 5}', b'{"method": "ping", "reply_to": 5}',
            b'{"method": "ping", "pattern": "[", "matcher": "pcre"}',
            b'{"type": 5, "hostname": []}',
            b'{"type": "worker-online", "hostname": "x", "timestamp": "y"}',
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "channel", ["celery.pidbox", "celeryev/worker.heartbeat", "celeryev/worker.elect"]
)
def test_junk_that_is_broadcast_does_not_end_the_worker(
    worker, queue, raw, portrait, place, wait_until, channel
):
    for item in BROADCAST:  # Celery subscribes again after some commands.
        wait_until(lambda item=item: queue.client.publish(f"/{queue.database}.{channel}", item), 20)

    assert queue.report(raw.put(place + "a.jpg", portrait))["status"] == "anonymized"
    wait_until(lambda: queue.app.control.ping(timeout=2), 30)
    assert worker.alive
