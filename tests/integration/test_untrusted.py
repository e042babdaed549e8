"""Whatever a message says: no bucket off the list is touched, no local file read, no program started; nothing ends."""

import base64
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.faults import Faulty
from demo.servers import Server
from tests.integration.conftest import Worker
from tests.integration.test_poison import picture

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = int(os.environ.get("EXAMPLES", "25"))  # of several messages each
TASK = "veil.anonymize_image"


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
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, Path(__file__).with_name("poison_worker.py"), f"--audit={self.audit}"]
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
    """Places that are none of a worker's business, and keys that try to walk there."""
    places = [
        "s3://raw/fuzz/a.png", "s3://raw/fuzz/b c%2F..%2Fd.png", "s3://raw/a.png", "s3://other/secret.png", "s3://clean/a.png",
        f"file://{canary}", str(canary), f"s3://raw/fuzz/../../..{canary}", f"s3://raw/fuzz/{canary}", f"s3://raw/fuzz{canary}",
        "s3://raw/fuzz/../x.png", "s3://raw/fuzz/", "s3://", "http://169.254.169.254/latest/meta-data/",
        "S3://RAW/fuzz/a.png",
        "s3://raw/fuzz/\x00a.png", "s3://raw/fuzz/a.png?versionId=1", "s3://raw@other/fuzz/a.png", "s3://raw:80/fuzz/a.png",
        "s3://other/fuzz/a.png", "s3://raw\\fuzz\\a.png", "s3://clean/fuzz/.veil/receipts/a.json",
        "s3://raw/fuzz/" + "k" * 2000,
    ]  # fmt: skip
    return (
        st.sampled_from(places) | st.text(max_size=40).map(lambda text: f"s3://raw/fuzz/{text}") | st.text(max_size=40)
    )


def json_values(leaves):
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )


def bodies(leaves):
    """What Celery reads: arguments, named arguments, and what is to be called afterwards."""
    value = json_values(leaves)
    names = st.sampled_from(["source", "destination", "self", "bucket", "path"]) | st.text(max_size=6)
    call = st.fixed_dictionaries({"task": st.sampled_from([TASK, "celery.map", "os.system"]), "args": st.lists(leaves)})
    after = st.fixed_dictionaries(
        {},
        optional={
            "callbacks": st.lists(call | value),
            "errbacks": st.lists(call | value),
            "chain": value,
            "chord": value,
        },
    )
    arguments = st.lists(leaves | value, max_size=3)
    return st.tuples(arguments, st.dictionaries(names, leaves | value, max_size=2), after | value) | value


def messages(leaves):
    """Items on the list: well-formed ones with odd contents, and odd ones."""
    value = json_values(leaves)
    headers = st.fixed_dictionaries(
        {
            "task": st.sampled_from([TASK, TASK, TASK, "celery.map", "celery.chunks", "celery.backend_cleanup"])
            | value,
            "id": st.uuids().map(str) | value,
        },
        optional={
            "retries": st.integers(0, 20) | value,
            "eta": st.just("2001-01-01T00:00:00+00:00") | st.integers() | st.booleans(),
            "expires": value,
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
            ["application/json"] * 6 + ["application/x-python-serialize", "application/x-yaml", "text/plain"]
        ),
    )
    return (sound | value).map(lambda item: json.dumps(item).encode()) | st.binary(max_size=60)


def test_no_message_makes_a_worker_go_astray(setting, raw, wait_until):
    good = raw.put("fuzz/a.png", picture((1, 2, 3)))
    raw.client.put_object(Bucket="other", Key="secret.png", Body=picture((4, 5, 6)))
    queue = setting.queue

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(messages(addresses(setting.canary)), min_size=8, max_size=24))
    def fuzz(items):
        queue.client.lpush("uploads", *items)
        wait_until(lambda: not queue.client.llen("uploads") and not queue.client.hlen("unacked"), 60)
        assert setting.worker.alive

    fuzz()

    assert queue.report(good)["status"] in ("anonymized", "skipped"), "and it goes on"
    strayed = [path for path in setting.way.paths if not path.startswith(("/raw/fuzz/", "/clean/fuzz/"))]
    assert strayed == []
    assert any(path.startswith("/raw/fuzz/") for path in setting.way.paths)
    opened = setting.opened()[setting.opened_before :]
    assert not [line for line in opened if str(setting.canary) in line or line.split(" ")[0] != "open"]
    assert setting.worker.lines("dead"), "something was understood, and refused by name"
    assert not setting.worker.lines("bug")
