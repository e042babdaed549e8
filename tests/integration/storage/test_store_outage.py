"""A store that is away or refuses all pictures: messages wait, and workers pause between tries.

``OUTAGE=120`` makes the outage last two minutes.
"""

import json
import os
import re
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.integration.conftest import Worker
from tests.integration.delivery.test_poison import picture
from tools.chaos.faults import Faulty
from tools.local.servers import HOST, Server, free_port

ROOT = Path(__file__).resolve().parents[3]
OUTAGE_SECONDS = float(os.environ.get("OUTAGE", "6"))
PICTURES = 40


class Setting:
    """A worker whose model obeys colours, its queue, and a connection to S3 that can be closed."""

    def __init__(self, queue, s3, folder):
        self.queue = queue
        self.way = Faulty(int(s3.endpoint.rpartition(":")[2]))
        self.environment = {
            **queue.environment,
            **s3.environment(),
            "VEIL_S3_ENDPOINT": self.way.endpoint,
            "VEIL_SCALES": "64",
            "VEIL_ROUTES": "s3://raw=s3://clean",
            # The worker itself fetches and stores, and it is there sooner without a process.
            "VEIL_PROCESSES": "0",
            "VEIL_CONCURRENCY": "3",
            "PYTHONPATH": str(ROOT),
        }
        self._folder = folder
        self.worker = None

    def start(self, **environment):
        self.start_command(
            [sys.executable, Path(__file__).parents[1] / "poison_worker.py"], **environment
        )

    def start_command(self, command, **environment):
        server = Server(
            "worker", command, self._folder / "worker.log", {**self.environment, **environment}
        )
        self.worker = Worker(server)
        self.worker.start()

    def close(self):
        if self.worker:
            self.worker.server.stop()
        self.way.close()

    def retries_in_queue(self):
        return [
            json.loads(item)["headers"]["retries"]
            for item in self.queue.client.lrange("uploads", 0, -1)
        ]


@pytest.fixture
def setting(new_queue, s3, tmp_path):
    made = Setting(new_queue(), s3, tmp_path)
    yield made
    made.close()


@pytest.fixture
def sources(raw, place):
    return [
        raw.put(f"{place}{number}.png", picture((number, 90, 90))) for number in range(PICTURES)
    ]


def test_a_store_that_answers_503_costs_no_picture_and_is_left_alone(
    setting, sources, clean, place, wait_until
):
    metrics = f"{HOST}:{free_port()}"
    setting.start(VEIL_METRICS=metrics)
    assert store_up(metrics) == 1
    _wait_for_first_probe(setting, wait_until)
    setting.way.rates = {"503": 1.0}
    for source in sources:
        setting.queue.send(source)

    (line,) = wait_until(lambda: setting.worker.lines("store away"))
    assert line["error"] == "StorageUnavailable"
    assert store_up(metrics) == 0
    time.sleep(OUTAGE_SECONDS)

    assert setting.queue.dead() == {}
    assert setting.way.requests["503"] < 60 + 3 * OUTAGE_SECONDS
    assert set(setting.retries_in_queue()) == {0}, "no try is spent"
    assert len(setting.retries_in_queue()) >= PICTURES - 4, "they stay in the queue"
    setting.way.rates = {}
    wait_until(lambda: len(clean.keys(place)) == PICTURES, 60)
    assert setting.queue.dead() == {}
    assert len(setting.worker.lines("store back")) == 1
    assert store_up(metrics) == 1


def test_the_pause_that_the_store_asks_for_is_kept(setting, sources, wait_until):
    setting.start()
    _wait_for_first_probe(setting, wait_until)
    setting.way.rates, setting.way.retry_after = {"503": 1.0}, 4
    setting.queue.send(sources[0])
    wait_until(lambda: setting.worker.lines("store away"))
    wait_until(lambda: setting.worker.lines("retried"))
    before = setting.way.requests.total()

    time.sleep(3)

    assert setting.way.requests.total() == before
    (line,) = setting.worker.lines("retried")
    assert line["pause"] >= 4
    setting.way.rates = {}
    wait_until(lambda: setting.worker.lines("anonymized"), 30)


def test_trouble_of_one_picture_alone_is_counted_against_it(setting, sources, clean, wait_until):
    setting.start()
    first = sources[0].removeprefix("s3://raw/").encode()
    setting.way.only = first
    setting.way.rates = {"500": 1.0}
    for source in sources[:3]:
        setting.queue.send(source)

    wait_until(lambda: len(setting.worker.lines("retried", source=sources[0])) >= 2, 30)

    assert [line["attempt"] for line in setting.worker.lines("retried")][:2] == [1, 2]
    assert len(setting.worker.lines("anonymized")) == 2
    assert not setting.worker.lines("store away")


@pytest.mark.parametrize(
    "what", ["a missing destination bucket", "keys that the store does not know"]
)
def test_what_an_operator_has_to_put_right_waits_for_it_without_a_restart(
    setting, s3, raw, sources, place, wait_until, what
):
    bucket = f"late-{place.strip('/')}"
    client = s3.client()
    if what == "a missing destination bucket":
        setting.start(VEIL_ROUTES=f"s3://raw=s3://{bucket}")
        error = "DestinationUnavailable"
    else:
        client.create_bucket(Bucket=bucket)
        credentials = setting._folder / "credentials"
        credentials.write_text(
            "[default]\ncredential_process = " + str(setting._folder / "renew") + "\n"
        )
        keys = {
            "Version": 1,
            "AccessKeyId": "gone",
            "SecretAccessKey": "gone",
            "Expiration": _in(3),
        }
        _write_program(setting._folder / "renew", keys)
        setting.start(
            VEIL_ROUTES=f"s3://raw=s3://{bucket}",
            AWS_ACCESS_KEY_ID="",
            AWS_SECRET_ACCESS_KEY="",
            AWS_CONFIG_FILE=str(credentials),
        )
        error = "CredentialsRefused"
    for source in sources[:10]:
        setting.queue.send(source)

    (line,) = wait_until(lambda: setting.worker.lines("store away"))
    assert line["error"] == error
    time.sleep(2)
    assert setting.queue.dead() == {}
    if what == "a missing destination bucket":
        assert bucket in line["message"]
        client.create_bucket(Bucket=bucket)
    else:
        renewed = {
            **keys,
            "AccessKeyId": s3.access_key,
            "SecretAccessKey": s3.secret_key,
            "Expiration": _in(3600),
        }
        _write_program(setting._folder / "renew", renewed)

    wait_until(lambda: len(setting.worker.lines("anonymized")) == 10, 60)
    assert setting.queue.dead() == {}


def test_a_store_that_is_away_at_the_start_is_found_before_a_message_comes(
    setting, sources, wait_until
):
    setting.way.rates = {"503": 1.0}
    setting.start()
    (line,) = wait_until(lambda: setting.worker.lines("store away"))
    assert line["route"] == "s3://raw/=s3://clean/"
    setting.queue.send(sources[0])
    time.sleep(2)
    assert setting.worker.lines("retried") == []
    setting.way.rates = {}
    wait_until(lambda: setting.worker.lines("anonymized"), 60)


def test_a_route_whose_uploads_are_refused_does_not_stop_the_others(
    setting, s3, raw, clean, place, wait_until
):
    """A bucket policy demands a header that the worker does not send, until it is corrected."""
    metrics = f"{HOST}:{free_port()}"
    client, strict = s3.client(), f"strict-{place.strip('/')}"
    client.create_bucket(Bucket=strict)
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{strict}/*",
        "Condition": {"StringNotEquals": {"s3:x-amz-server-side-encryption": "AES256"}},
    }
    policy = {"Version": "2012-10-17", "Statement": [deny]}
    client.put_bucket_policy(Bucket=strict, Policy=json.dumps(policy))
    refused = [
        raw.put(f"{place}strict/{number}.png", picture((number, 90, 90))) for number in range(30)
    ]
    other = [
        raw.put(f"{place}open/{number}.png", picture((90, number, 90))) for number in range(10)
    ]
    routes = f"s3://raw/{place}strict=s3://{strict},s3://raw/{place}open=s3://clean/{place}open"
    setting.start(VEIL_ROUTES=routes, VEIL_METRICS=metrics)
    (line,) = wait_until(lambda: setting.worker.lines("store away"))
    assert line["error"] == "DestinationUnavailable"
    assert "VEIL_UPLOAD_ENCRYPTION" in line["message"]
    assert line["action"] == "other routes go on"

    for source in refused + other:
        setting.queue.send(source)
    wait_until(lambda: len(setting.worker.lines("anonymized")) == len(other), 60)

    assert setting.queue.dead() == {}
    assert store_up(metrics) == 1
    assert value(metrics, "veil_closed_routes") == 1
    listed = client.list_objects_v2(Bucket=strict).get("Contents", [])
    assert listed == []
    client.delete_bucket_policy(Bucket=strict)
    wait_until(lambda: len(setting.worker.lines("anonymized")) == len(refused + other), 90)
    assert setting.queue.dead() == {}
    assert value(metrics, "veil_closed_routes") == 0


def test_a_full_disk_is_no_trouble_to_a_worker_for_it_writes_no_files(
    setting, sources, clean, place, wait_until
):
    """The limit also holds for files in memory, so all pictures are worked on in this process.

    Picture processes set it themselves: see test_picture_processes.py.
    """
    worker = f"{sys.executable} {Path(__file__).parents[1] / 'poison_worker.py'} --file-size=0"
    setting.start_command(["bash", "-c", f"exec {worker} 2> >(cat)"])
    for source in sources:
        setting.queue.send(source)
    wait_until(lambda: len(clean.keys(place)) == PICTURES, 60)
    assert setting.queue.dead() == {}


def test_a_worker_with_picture_processes_opens_no_file_to_write(
    setting, sources, clean, place, wait_until, tmp_path
):
    audit = tmp_path / "audit"
    program = Path(__file__).parents[1] / "poison_worker.py"
    command = [sys.executable, program, f"--audit={audit}"]
    setting.start_command(command, VEIL_PROCESSES="1")
    before = len(audit.read_text().splitlines())
    for source in sources:
        setting.queue.send(source)
    wait_until(lambda: len(clean.keys(place)) == PICTURES, 60)
    later = audit.read_text().splitlines()[before:]
    assert [line for line in later if line.startswith("write ")] == []


def store_up(address):
    return value(address, "veil_store_up")


def value(address, metric):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        (line,) = re.findall(rf"^{metric} (.+)$", page.read().decode(), re.MULTILINE)
    return float(line)


def _wait_for_first_probe(setting, wait_until):
    """Wait until the worker has tested its routes, so that it meets a later outage in its work."""
    wait_until(lambda: setting.way.methods["GET"], 30)


def _in(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def _write_program(path, answer):
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    path.chmod(0o700)
