"""The same event many times, on any worker, yields one version of the output and one receipt."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import Bucket, Worker
from tests.integration.delivery.test_poison import picture
from tests.integration.poison_worker import YELLOW
from tools.local.servers import Server

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def versioned(s3):
    """A bucket that keeps every version of its objects."""
    client = s3.client()
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    return Bucket(client, "versioned")


@pytest.fixture
def queue(new_queue):
    return new_queue()


@pytest.fixture
def workers(queue, s3, tmp_path):
    environment = {
        **queue.environment,
        **s3.environment(),
        "VEIL_ROUTES": "s3://raw=s3://versioned",
        "VEIL_SCALES": "64",
        "VEIL_LEASE_SECONDS": "2",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, Path(__file__).parents[1] / "poison_worker.py"]
    made = [
        Worker(Server(f"worker-{n}", command, tmp_path / f"{n}.log", environment)) for n in (1, 2)
    ]
    for worker in made:
        worker.start()
    yield made
    for worker in made:
        worker.server.process.send_signal(signal.SIGCONT)
        worker.server.stop()


def versions(bucket, prefix):
    found = bucket.client.list_object_versions(Bucket=bucket.name, Prefix=prefix).get(
        "Versions", ()
    )
    return [item["Key"] for item in found]


def test_the_same_event_ten_times_gives_one_version_and_one_receipt(
    workers, queue, raw, versioned, place, wait_until
):
    source = raw.put(place + "a.png", picture(YELLOW))

    at_once = [queue.send(source) for _ in range(10)]
    reports = [result.get(timeout=60) for result in at_once]
    later = queue.report(source)

    assert sorted(report["status"] for report in reports) == ["anonymized"] + ["skipped"] * 9
    assert later["status"] == "skipped"
    assert versions(versioned, place) == [place + "a.png"]
    (receipt,) = versions(versioned, f".veil/receipts/{place}")
    assert json.loads(versioned.get(receipt))["status"] == "anonymized"
    assert queue.dead() == {}
    wait_until(lambda: not queue.client.hlen("unacked"))
    assert not queue.client.keys("veil:attempts:*") + queue.client.keys("veil:turn:*")


def test_a_worker_that_lost_its_picture_to_another_stores_nothing(
    workers, queue, raw, versioned, place, wait_until
):
    source = raw.put(place + "a.png", picture(YELLOW))
    result = queue.send(source)
    wait_until(lambda: queue.client.keys("veil:attempts:*"))
    (notes,) = queue.client.keys("veil:attempts:*")
    (pid,) = {
        json.loads(note)["pid"]
        for tag, note in queue.client.hgetall(notes).items()
        if tag != b"first"
    }
    frozen, other = sorted(workers, key=lambda worker: worker.server.pid != pid)
    time.sleep(1)  # The fetch ends, and the detection of yellow takes three seconds.
    frozen.server.process.send_signal(signal.SIGSTOP)

    wait_until(lambda: other.lines("anonymized"), 30)
    frozen.server.process.send_signal(signal.SIGCONT)
    (line,) = wait_until(lambda: frozen.lines("given back"), 30)

    assert "lease" in line["message"]
    assert not frozen.lines("anonymized")
    assert versions(versioned, place) == [place + "a.png"]
    assert len(versions(versioned, f".veil/receipts/{place}")) == 1
    assert result.get(timeout=30)["status"] == "anonymized"


def test_a_new_version_of_a_source_gives_a_new_version_of_its_output_and_the_old_receipt_goes(
    workers, queue, raw, versioned, place
):
    source = raw.put(place + "a.png", picture((1, 50, 50)))
    first = queue.report(source)
    raw.put(place + "a.png", picture((2, 50, 50)))
    second = queue.report(source)

    assert (first["status"], second["status"]) == ("anonymized", "anonymized")
    assert versions(versioned, place) == [place + "a.png"] * 2
    assert len(versioned.keys(f".veil/receipts/{place}")) == 1
