"""A Python program that requests pictures while its Redis is killed and started again."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.app import create_app
from tasks.errors import QueueUnavailable
from tasks.messages import BACKFILL, TASK, UPLOADS
from tasks.settings import Settings
from tools.local.servers import start_redis

PROGRAM = """
import json, sys, time
from {package} import anonymize_image, errors
CALLS = {{
    "delay": lambda: anonymize_image.delay("s3://raw/a.jpg"),
    "apply_async": lambda: anonymize_image.apply_async(["s3://raw/a.jpg"], queue="backfill"),
    "signature": lambda: anonymize_image.s("s3://raw/a.jpg").apply_async(),
    "get": lambda: last.get(timeout=1),
    "status": lambda: last.status,
}}
for line in sys.stdin:
    started, call = time.monotonic(), line.strip()
    try:
        answer = CALLS[call]()
        if call not in ("get", "status"):
            last = answer
        outcome = "done"
    except errors.QueueUnavailable as error:
        outcome = f"QueueUnavailable: {{error}}"
    except Exception as error:
        outcome = repr(error)
    print(json.dumps([outcome, time.monotonic() - started]), flush=True)
"""
AT_ONCE_SECONDS = 5
REQUESTS = ("delay", "apply_async", "signature")


def store_result(client, task_id, result):
    """Store and publish a result as workers do."""
    key = f"celery-task-meta-{task_id}"
    stored = json.dumps({"task_id": task_id, "status": "SUCCESS", "result": result})
    client.set(key, stored)
    client.publish(key, stored)


@pytest.fixture
def redis(tmp_path):
    started = start_redis(tmp_path / "redis")
    yield started
    started.server.stop()


@pytest.fixture
def app(redis):
    return create_app(Settings(redis_url=redis.url, redis_password=redis.password))


@pytest.fixture
def program(redis):
    """``program(package)`` starts the program, and returns a function that has it make a call."""
    started = []

    def start(package):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(package=package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | redis.environment(),
            text=True,
        )
        started.append(process)

        def call(name):
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        return call

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("package", ["tasks", "veil.tasks"])
def test_an_outage_is_named_at_once_and_ends_with_it(redis, program, package):
    call = program(package)
    redis.server.kill()
    outcomes = [call(name) for name in REQUESTS]
    redis.start()
    assert [call(name)[0] for name in REQUESTS] == ["done"] * 3
    redis.server.kill()
    outcomes += [call(name) for name in (*REQUESTS, "get", "status", *REQUESTS)]
    redis.start()
    assert [call(name)[0] for name in REQUESTS] == ["done"] * 3

    for outcome, seconds in outcomes:
        assert outcome.startswith("QueueUnavailable: Redis can't be used (Error 111"), outcome
        assert outcome.endswith("check VEIL_REDIS_URL")
        assert seconds < AT_ONCE_SECONDS
    client = redis.client()
    assert (client.llen(UPLOADS), client.llen(BACKFILL)) == (4, 2)


def test_a_result_that_is_waited_for_comes_after_an_outage(redis, app):
    earlier, waited_for = (app.send_task(TASK, ["s3://raw/a.jpg"]) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(waited_for.get, timeout=30)
        time.sleep(0.5)
        redis.server.kill()
        time.sleep(1.5)
        started = time.monotonic()
        with pytest.raises(QueueUnavailable):
            app.send_task(TASK, ["s3://raw/b.jpg"])  # which does not wait for the other thread
        assert time.monotonic() - started < AT_ONCE_SECONDS
        redis.start()
        app.send_task(TASK, ["s3://raw/c.jpg"])
        for task in (waited_for, earlier):
            store_result(redis.client(), task.id, {"status": "anonymized"})
        assert result.result(30) == {"status": "anonymized"}

    assert earlier.get(timeout=10) == {"status": "anonymized"}


def test_a_result_is_not_waited_for_without_end(redis, app, monkeypatch):
    monkeypatch.setattr("tasks.results.OUTAGE_SECONDS", 2)
    waited_for = app.send_task(TASK, ["s3://raw/a.jpg"])
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(waited_for.get)
        time.sleep(0.5)
        redis.server.kill()
        with pytest.raises(QueueUnavailable, match="check VEIL_REDIS_URL"):
            result.result(30)


def test_requests_that_redis_refuses_leave_no_subscription(redis, app):
    redis.client().config_set("maxmemory", 1)
    for _ in range(3):
        with pytest.raises(QueueUnavailable, match="Redis is full"):
            app.send_task(TASK, ["s3://raw/a.jpg"])
    assert redis.client().pubsub_channels() == []
    redis.client().config_set("maxmemory", 0)
    _result = app.send_task(TASK, ["s3://raw/a.jpg"])
    assert len(redis.client().pubsub_channels()) == 1
