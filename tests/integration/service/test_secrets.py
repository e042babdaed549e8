"""A run in which everything goes wrong leaves no password and no secret key behind."""

import secrets as random
import sys
import urllib.parse
from pathlib import Path

import pytest

from tasks.app import create_app
from tasks.records import dead_letters
from tasks.settings import Settings
from tests.integration.conftest import Worker
from tests.integration.delivery.test_poison import picture
from tests.integration.poison_worker import RED
from tools.chaos.faults import Faulty
from tools.local.servers import HOST, Server, start_redis

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def redis(tmp_path):
    started = start_redis(tmp_path / "redis")
    yield started
    started.server.stop()


@pytest.fixture
def way(s3):
    made = Faulty(int(s3.endpoint.rpartition(":")[2]))
    yield made
    made.close()


def test_nothing_that_is_left_behind_holds_a_secret(
    redis, s3, way, raw, clean, place, tmp_path, wait_until, veil
):
    receipt_keys = [random.token_hex(32) for _ in range(2)]
    url = f"redis://:{urllib.parse.quote(redis.password, safe='')}@{HOST}:{redis.port}/0"
    environment = {
        **s3.environment(),
        "VEIL_REDIS_URL": url,
        "VEIL_S3_ENDPOINT": way.endpoint,
        "VEIL_ROUTES": f"s3://raw/{place}=s3://clean/{place}",
        "VEIL_SCALES": "64",
        "VEIL_LEASE_SECONDS": "2",
        "VEIL_RECEIPT_KEY": f"{receipt_keys[0]},{receipt_keys[1]}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, Path(__file__).parents[1] / "poison_worker.py"]
    worker = Worker(Server("worker", command, tmp_path / "worker.log", environment))
    app = create_app(Settings(redis_url=url))
    client = redis.client()
    printed = []

    def run(*arguments, **changed):
        done = veil(*arguments, environment={**environment, **changed})
        printed.append(done.stdout + done.stderr)

    def send(*arguments):
        app.send_task("veil.anonymize_image", arguments)

    worker.start()
    try:
        send(raw.put(place + "good.png", picture((1, 2, 3))))
        send(raw.put(place + "text.png", b"no picture"))
        send(raw.uri(place + "missing.png"))
        send("s3://elsewhere/a.png")
        send({"source": [1]})
        wait_until(lambda: len(list(dead_letters.LETTERS.entries(client))) == 4)
        way.rates = {"503": 0.5, "reset before": 0.5}
        send(raw.put(place + "late.png", picture((3, 2, 1))))
        wait_until(lambda: worker.lines("store away"))
        redis.server.kill()
        run("enqueue", raw.uri(place + "good.png"))
        wait_until(lambda: worker.lines("queue unavailable"))
        redis.start()
        way.rates = {}
        run("enqueue", raw.uri(place + "good.png"), VEIL_REDIS_URL=url.replace("@", "x@"))
        run("enqueue", "--prefix", f"s3://raw/{place}", AWS_SECRET_ACCESS_KEY="not-the-key")
        run("dead", "list", "--json")
        run("enqueue", raw.uri(place + "good.png"), VEIL_REDIS_URL=url.replace("redis:", "http:"))
        wait_until(lambda: len(worker.lines("anonymized")) >= 2)
        run("receipt", "verify", f"s3://clean/{place}", "--json")
        assert '"states": ["ok"]' in printed[-1]
        run(
            "receipt",
            "verify",
            f"s3://clean/{place}",
            VEIL_RECEIPT_KEY=f"{receipt_keys[1]},{receipt_keys[0]}",
        )
        run(
            "receipt",
            "verify",
            f"s3://clean/{place}",
            VEIL_RECEIPT_KEY=f"{receipt_keys[0]},{receipt_keys[1][:31]}",
        )
        assert "SettingsInvalid" in printed[-1]
        send(raw.put(place + "deadly.png", picture(RED)))
        worker.server.process.wait(30)
    finally:
        worker.server.stop()

    left = {"the worker's log": worker.log, "what commands printed": "".join(printed)}
    left["Redis's log"] = redis.server.log.read_text()
    for path in (tmp_path / "redis" / "appendonlydir").iterdir():
        left[f"Redis's file {path.name}"] = path.read_bytes().decode("latin-1")
    for key in (
        clean.keys(place) + clean.keys(f".veil/receipts/{place}") + clean.keys(f"{place}.veil/")
    ):
        left[key] = clean.get(key).decode("latin-1") + str(clean.head(key)["Metadata"])
    app.close()
    assert len(left) >= 7, left.keys()
    assert all(len(left[where]) > 500 for where in ("the worker's log", "what commands printed"))
    secrets = (
        redis.password,
        urllib.parse.quote(redis.password, safe=""),
        s3.secret_key,
        s3.access_key,
    )
    secrets += tuple(key[:31] for key in receipt_keys)
    assert [
        (where, secret) for where, text in left.items() for secret in secrets if secret in text
    ] == []
