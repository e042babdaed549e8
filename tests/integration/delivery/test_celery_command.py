"""A worker started by Celery's own command anonymizes, waits for its store and stops cleanly."""

import os
import re
import subprocess

import pytest

from tools.local.servers import start_s3

ROUTES = "s3://raw=s3://clean"


@pytest.fixture(scope="module")
def own_s3(clean_environment, tmp_path_factory):
    """An S3 that a test may kill."""
    started = start_s3(tmp_path_factory.mktemp("own-s3"), ("raw", "clean"))
    yield started
    started.server.stop()


@pytest.fixture(scope="module")
def own_queue(new_queue):
    return new_queue()


@pytest.fixture(scope="module")
def celery_worker(own_queue, own_s3, programs, start_worker):
    """Run ``celery -A tasks.app worker``, as Celery's manual starts a worker."""
    environment = {**own_queue.environment, **own_s3.environment(), "VEIL_ROUTES": ROUTES}
    command = [programs / "celery", "-A", "tasks.app", "worker", "--concurrency=2"]
    with start_worker(command, environment) as started:
        yield started


def test_a_worker_started_by_celerys_own_command_anonymizes(
    celery_worker, own_queue, own_s3, portrait
):
    client = own_s3.client()
    client.put_object(Bucket="raw", Key="a.jpg", Body=portrait)

    report = own_queue.report("s3://raw/a.jpg")

    assert report["status"] == "anonymized"
    assert report["faces"] == 1
    assert client.head_object(Bucket="clean", Key="a.jpg")["Metadata"]["veil-faces"] == "1"
    assert re.search(r"concurrency: 2 \(thread\)", celery_worker.log)
    assert "superuser" not in celery_worker.log
    assert len(celery_worker.lines("worker runs as root")) == (os.geteuid() == 0)


def test_another_pool_is_refused_in_one_line(unattended, programs):
    done = subprocess.run(
        [programs / "celery", "-A", "tasks.app", "worker", "--pool=solo"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **unattended.environment, "VEIL_ROUTES": ROUTES},
    )
    assert done.returncode == 2
    assert "veil: a worker is one process with threads: leave out --pool" in done.stderr
    assert "Traceback" not in done.stderr


def test_pictures_wait_for_s3_and_are_delivered_once_it_is_back(
    celery_worker, own_queue, own_s3, portrait, wait_until
):
    keys = ["b.jpg", "c.jpg"]
    for key in keys:
        own_s3.client().put_object(Bucket="raw", Key=key, Body=portrait)
    own_s3.server.kill()

    sent = {key: own_queue.send(f"s3://raw/{key}") for key in keys}
    for key in keys:
        wait_until(lambda key=key: celery_worker.lines("retried", source=f"s3://raw/{key}"))
    assert celery_worker.lines("store away")
    assert all(result.state in ("RETRY", "STARTED") for result in sent.values())
    assert own_queue.dead() == {}
    own_s3.server.start()
    reports = {key: result.get(timeout=90) for key, result in sent.items()}

    for key in keys:
        assert reports[key]["status"] == "anonymized"
        assert own_s3.client().head_object(Bucket="clean", Key=key)["Metadata"]["veil-faces"] == "1"
        retried = celery_worker.lines("retried", source=f"s3://raw/{key}")
        assert {line["attempt"] for line in retried} == {1}, "an outage spends no tries"
        assert {line["error"] for line in retried} == {"StorageUnavailable"}
    assert own_queue.dead() == {}
    wait_until(lambda: own_queue.client.hlen("unacked") == 0)


def test_a_worker_that_is_told_to_stop_finishes_its_pictures_and_leaves_the_others_in_the_queue(
    celery_worker, own_queue, own_s3, samples, wait_until
):
    client = own_s3.client()
    keys = [f"stop/{number}.jpg" for number in range(9)]
    for key in keys:
        client.put_object(Bucket="raw", Key=key, Body=samples["gallery.jpg"].read_bytes())
    for key in keys:
        own_queue.send(f"s3://raw/{key}")
    wait_until(lambda: celery_worker.lines("anonymized", source=f"s3://raw/{keys[0]}"))

    celery_worker.server.process.terminate()

    assert celery_worker.server.process.wait(60) == 0
    done = {line["source"] for line in celery_worker.lines("anonymized")} & {
        f"s3://raw/{key}" for key in keys
    }
    left = own_queue.client.llen("uploads")
    assert 0 < len(done) < len(keys)
    assert len(done) + left == len(keys)
    assert own_queue.client.hlen("unacked") == 0
    listed = client.list_objects_v2(Bucket="clean", Prefix="stop/").get("Contents", [])
    assert {f"s3://raw/{item['Key']}" for item in listed} == done
    assert own_queue.dead() == {}
