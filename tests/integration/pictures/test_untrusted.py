"""No message makes a worker use a bucket off the list, read a local file, run a program or end."""

import base64
import json
import os
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery.app.task import Context
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.conftest import Worker
from tests.integration.delivery.test_poison import picture
from tools.chaos.faults import Faulty
from tools.local.servers import Server

ROOT = Path(__file__).resolve().parents[3]
SCHEDULED = 100  # messages that wait for their time, of a worker
EXAMPLES = int(os.environ.get("EXAMPLES", "25"))  # Each has several messages.
TASK = "veil.anonymize_image"
# The attributes that Celery reads from a message.
ATTRIBUTES = sorted(name for name in vars(Context) if not name.startswith("__"))


class Setting:
    def __init__(self, queue, s3, folder):
        self.queue = queue
        self.way = Faulty(int(s3.endpoint.rpartition(":")[2]))
        self.canary = folder / "canary.jpg"
        self.canary.write_bytes(picture((9, 9, 9)))
        self.audit = folder / "audit"
        environment = {
            **queue.environment,
            **s3.environment(),
            "VEIL_S3_ENDPOINT": self.way.endpoint,
            "VEIL_ROUTES": "s3://raw/fuzz=s3://clean/fuzz",
            "VEIL_SCALES": "64",
            "VEIL_LEASE_SECONDS": "2",
            "VEIL_PROCESSES": "1",  # It is started before the first message.
            "PYTHONPATH": str(ROOT),
        }
        command = [
            sys.executable,
            Path(__file__).parents[1] / "poison_worker.py",
            f"--audit={self.audit}",
            f"--scheduled={SCHEDULED}",
        ]
        self.worker = Worker(Server("worker", command, folder / "worker.log", environment))
        self.worker.start()
        self.opened_before = len(self.opened())

    def opened(self):
        return self.audit.read_text().splitlines()

    def close(self):
        self.worker.server.stop()
        self.way.close()


@pytest.fixture(scope="module")
def setting(new_queue, s3, tmp_path_factory):
    made = Setting(new_queue(), s3, tmp_path_factory.mktemp("untrusted"))
    yield made
    made.close()


def addresses(canary):
    """Draw addresses that no worker may use, and keys that try to reach them."""
    places = [
        "s3://raw/fuzz/a.png", "s3://raw/fuzz/b c%2F..%2Fd.png", "s3://raw/a.png",
        "s3://other/secret.png", "s3://clean/a.png", f"file://{canary}", str(canary),
        f"s3://raw/fuzz/../../..{canary}", f"s3://raw/fuzz/{canary}", f"s3://raw/fuzz{canary}",
        "s3://raw/fuzz/../x.png", "s3://raw/fuzz/", "s3://",
        "http://169.254.169.254/latest/meta-data/", "S3://RAW/fuzz/a.png",
        "s3://raw/fuzz/\x00a.png", "s3://raw/fuzz/a.png?versionId=1",
        "s3://raw@other/fuzz/a.png", "s3://raw:80/fuzz/a.png",
        "s3://other/fuzz/a.png", "s3://raw\\fuzz\\a.png", "s3://clean/fuzz/.veil/receipts/a.json",
        "s3://raw/fuzz/" + "k" * 2000,
    ]  # fmt: skip
    return (
        st.sampled_from(places)
        | st.text(max_size=40).map(lambda text: f"s3://raw/fuzz/{text}")
        | st.text(max_size=40)
    )


def json_values(leaves):
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=6,
    )


def bodies(leaves):
    """Draw the body that Celery reads: arguments, named arguments, and callbacks."""
    value = json_values(leaves)
    names = st.sampled_from(["source", "destination", "self", "bucket", "path"]) | st.text(
        max_size=6
    )
    call = st.fixed_dictionaries(
        {"task": st.sampled_from([TASK, "celery.map", "os.system"]), "args": st.lists(leaves)}
    )
    after = st.fixed_dictionaries(
        {},
        optional={
            "callbacks": st.lists(call | value),
            "errbacks": st.lists(call | value),
            "chain": value,
            "chord": value,
        },
    ) | st.dictionaries(st.sampled_from(ATTRIBUTES), value, max_size=2)
    arguments = st.lists(leaves | value, max_size=3)
    return (
        st.tuples(arguments, st.dictionaries(names, leaves | value, max_size=2), after | value)
        | value
    )


def messages(leaves):
    """Draw items on the list: well-formed messages with odd contents, and odd items."""
    value = json_values(leaves)
    headers = st.fixed_dictionaries(
        {
            "task": st.sampled_from(
                [TASK, TASK, TASK, "celery.map", "celery.chunks", "celery.backend_cleanup"]
            )
            | value,
            "id": st.uuids().map(str) | value,
        },
        optional={
            "retries": st.integers(0, 20) | value,
            "eta": st.datetimes().map(str) | value,
            "expires": st.datetimes().map(str) | value,
            "group": value,
            "root_id": value,
            "parent_id": value,
            "argsrepr": value,
            "shadow": value,
            "origin": value,
            "timelimit": st.just([None, None]) | value,
            "ignore_result": st.booleans() | value,
            "veil_run": value,
            "stamps": value,
            "lang": value,
        },
    )
    properties = st.fixed_dictionaries(
        {
            "delivery_tag": st.just("x") | value,
            "delivery_info": st.just({"exchange": "", "routing_key": "uploads"}) | value,
            "body_encoding": st.just("base64"),
        },
        optional={"priority": value, "reply_to": value, "correlation_id": value},
    )
    sound = st.builds(
        lambda body, headers, properties, kind: {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-type": kind,
            "content-encoding": "utf-8",
            "headers": headers,
            "properties": properties,
        },
        bodies(leaves),
        headers,
        properties,
        st.sampled_from(
            ["application/json"] * 6
            + ["application/x-python-serialize", "application/x-yaml", "text/plain"]
        ),
    )
    return (sound | value).map(lambda item: json.dumps(item).encode()) | st.binary(max_size=60)


def test_no_message_makes_a_worker_go_astray(setting, raw, wait_until):
    good = raw.put("fuzz/a.png", picture((1, 2, 3)))
    raw.client.put_object(Bucket="other", Key="secret.png", Body=picture((4, 5, 6)))
    queue = setting.queue

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(messages(addresses(setting.canary)), min_size=8, max_size=24))
    def fuzz(items):
        queue.client.lpush("uploads", *items)
        wait_until(
            lambda: not queue.client.llen("uploads") and not queue.client.hlen("unacked"), 60
        )
        assert setting.worker.alive

    fuzz()

    assert queue.report(good)["status"] in ("anonymized", "skipped"), "and it goes on"
    strayed = [
        path for path in setting.way.paths if not path.startswith(("/raw/fuzz/", "/clean/fuzz/"))
    ]
    assert strayed == []
    assert any(path.startswith("/raw/fuzz/") for path in setting.way.paths)
    opened = setting.opened()[setting.opened_before :]
    assert not [
        line for line in opened if str(setting.canary) in line or line.split(" ")[0] != "open"
    ]
    assert setting.worker.lines("dead"), "something was understood, and refused by name"
    assert not setting.worker.lines("bug")


def message(source, embedded=None, properties=None, **headers):
    """Return a message for `source` as it is on the list, with the given headers and properties."""
    place = {"exchange": "", "routing_key": "uploads"}
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps([[source], {}, embedded]).encode()).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": TASK, "id": str(uuid.uuid4()), **headers},
            "properties": {
                "delivery_tag": "x",
                "delivery_info": place,
                "body_encoding": "base64",
                **(properties or {}),
            },
        }
    )  # fmt: skip


TIMES = [
    (datetime.now(UTC) + timedelta(days=3650)).isoformat(), "9999-12-31T23:59:59.999999-23:59",
    "9999-12-31T23:59:59", "0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00",
    "2001-01-01T00:00:00Z", "tomorrow", "", 5, True, {}, 1e300,
]  # fmt: skip


@pytest.mark.parametrize("header", ["eta", "expires"])
def test_no_message_waits_for_years_nor_is_dropped_for_its_age(
    setting, raw, clean, place, wait_until, header
):
    keys = [f"fuzz/{place}{number}.png" for number in range(len(TIMES))]
    for key, time in zip(keys, TIMES, strict=True):
        setting.queue.client.lpush(
            "uploads", message(raw.put(key, picture((7, 7, 7))), **{header: time})
        )

    wait_until(lambda: clean.keys(f"fuzz/{place}") == sorted(keys), 60)
    wait_until(lambda: not setting.queue.client.hlen("unacked"), 20)


FORGED = [
    {"is_eager": True},
    {"called_directly": True},
    {"as_execution_options": 5},
    {"_protected": 0, "request": None},
    {"stamps": {"exchange": "elsewhere"}, "stamped_headers": ["exchange"]},
    {"stamps": {"serializer": "pickle"}, "stamped_headers": ["serializer"]},
    {"stamps": 7, "stamped_headers": 7},
    {"headers": {"id": "x"}},
    {"shadow": 5},
    {"replaced_task_nesting": "x"},
    {"timelimit": [1, 1]},
    {"compression": "zlib"},
    {"group": 5, "group_index": "x"},
    {"properties": {"delivery_info": {"exchange": "elsewhere", "routing_key": "nowhere"}}},
    {"properties": {"delivery_info": {"exchange": "", "routing_key": "veil:dead"}}},
    {"properties": {"reply_to": 5, "correlation_id": {}}},
    *(
        {"embedded": {name: value}}
        for name in ("is_eager", "properties", "id", "hostname", "x")
        for value in (True, {})
    ),
    {"embedded": {"callbacks": [5]}},
    {"embedded": {"errbacks": [{"task": 5}], "callbacks": "x"}},
    {"embedded": {"chain": [{"task": "os.system", "args": ["true"]}, 7]}},
    {"embedded": {"chord": 5}},
    {"embedded": {"chord": {"task": "celery.map"}}, "group": "x"},
]


def test_whatever_a_message_says_of_itself_its_picture_is_tried_again_and_delivered(
    setting, raw, clean, place, wait_until
):
    keys = [f"fuzz/{place}{number:02}.png" for number in range(len(FORGED))]
    setting.way.only, setting.way.rates = place.encode(), {"500": 1.0}
    try:
        for key, forged in zip(keys, FORGED, strict=True):
            setting.queue.client.lpush(
                "uploads", message(raw.put(key, picture((7, 7, 7))), **forged)
            )
        wait_until(
            lambda: all(setting.worker.lines("retried", source=raw.uri(key)) for key in keys), 60
        )
    finally:
        setting.way.rates = {}

    wait_until(lambda: clean.keys(f"fuzz/{place}") == keys, 60)
    wait_until(lambda: not setting.queue.client.hlen("unacked"), 20)
    assert setting.worker.alive


@pytest.mark.parametrize(
    "embedded", [{"errbacks": [{"task": 5}]}, {"chord": 5}, {"is_eager": True}]
)
def test_whatever_a_message_wants_to_be_called_of_its_failure_it_ends(
    setting, raw, place, wait_until, embedded
):
    source = raw.uri(f"fuzz/{place}none.png")
    setting.queue.client.lpush("uploads", message(source, embedded))
    wait_until(lambda: source in setting.queue.dead())
    wait_until(lambda: not setting.queue.client.hlen("unacked"), 20)


def test_a_message_that_says_it_was_tried_often_waits_for_a_store_that_is_away(
    setting, raw, clean, place, wait_until
):
    source = raw.put(f"fuzz/{place}a.png", picture((7, 7, 7)))
    setting.way.only, setting.way.rates = b"", {"503": 1.0}
    try:
        setting.queue.client.lpush("uploads", message(source, retries=99))
        wait_until(lambda: setting.worker.lines("retried", source=source), 60)
    finally:
        setting.way.rates = {}
    wait_until(lambda: clean.keys(f"fuzz/{place}"), 60)


def test_a_worker_holds_so_many_messages_that_wait_and_no_more(setting, wait_until):
    client = setting.queue.client
    soon = (datetime.now(UTC) + timedelta(seconds=6)).isoformat()
    client.lpush(
        "uploads",
        *(message(f"s3://raw/fuzz/none/{n}", eta=soon) for n in range(SCHEDULED + 50)),
    )

    wait_until(lambda: client.hlen("unacked") == SCHEDULED)
    assert client.llen("uploads") == 50
    wait_until(lambda: not client.hlen("unacked") and not client.llen("uploads"), 60)
