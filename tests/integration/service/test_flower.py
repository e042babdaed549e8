"""Flower, as the demo and the manual start it, requires its password and works with it."""

import base64
import json
import urllib.error
import urllib.request

import pytest

from tools.local.servers import start_flower


class Visitor:
    """A client of a Flower."""

    def __init__(self, flower):
        self.server = flower.server
        self.address = flower.address
        self.password = flower.password

    def get(self, path, password=None):
        """Return the status and the body of an answer. Without `password`, nobody logs in."""
        request = urllib.request.Request(self.address + path)
        if password:
            token = base64.b64encode(f"veil:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            self.server.check_alive()
            return None, b""


@pytest.fixture(scope="module")
def flower(environment, tmp_path_factory):
    started = start_flower(tmp_path_factory.mktemp("flower"), environment)
    yield Visitor(started)
    started.server.stop()


@pytest.mark.parametrize(
    "path", ["/", "/workers", "/tasks", "/broker", "/api/tasks", "/api/workers"]
)
def test_nobody_gets_in_without_the_password(flower, path):
    assert flower.get(path)[0] == 401
    assert flower.get(path, password="wrong")[0] == 401


def test_a_picture_is_listed_with_its_source_its_state_and_its_report(
    flower, worker, queue, raw, portrait, place, wait_until
):
    def listed(task_id):
        status, body = flower.get("/api/tasks?limit=1000", flower.password)
        assert status == 200
        return json.loads(body).get(task_id)

    wait_until(lambda: json.loads(flower.get("/api/workers?refresh=1", flower.password)[1]))
    source = raw.put(place + "a.jpg", portrait)
    good, missing = queue.send(source), queue.send(raw.uri(place + "missing.jpg"))
    malformed = queue.app.send_task("shop.resize", (source,))
    report = good.get(timeout=60)
    queue.outcome(missing)

    task = wait_until(lambda: (task := listed(good.id)) and task["state"] == "SUCCESS" and task)
    assert task["name"] == "veil.anonymize_image"
    assert task["args"] == source
    assert task["result"].startswith("anonymized · 1 face · lowest score 0.")
    assert report["destination"] in task["result"]
    task = wait_until(lambda: (task := listed(missing.id)) and task["state"] == "FAILURE" and task)
    assert "ObjectNotFound" in task["exception"]
    assert "missing.jpg does not exist" in task["exception"]
    task = wait_until(
        lambda: (task := listed(malformed.id)) and task["state"] == "FAILURE" and task
    )
    assert "MalformedMessage" in task["exception"]
    assert "shop.resize" in task["exception"]


def test_its_open_metrics_page_has_none_of_ours(flower, worker):
    status, page = flower.get("/metrics")
    assert status == 200
    assert b"flower_" in page
    assert b"veil_" not in page.replace(b"veil_anonymize", b"").replace(
        b"veil.anonymize_image", b""
    )


def test_workers_refuse_commands_that_would_keep_messages_in_hand(worker, queue):
    task = "veil.anonymize_image"
    (answer,) = queue.app.control.rate_limit(task, "1/m", reply=True, timeout=5)
    assert ["refuse this command" in told["error"] for told in answer.values()] == [True]
    (answer,) = queue.app.control.pool_grow(1, reply=True, timeout=5)
    assert ["refuse this command" in told["error"] for told in answer.values()] == [True]


def test_its_broker_page_shows_the_queues(flower, worker, wait_until):
    wait_until(lambda: b"uploads" in flower.get("/broker", flower.password)[1])
    status, page = flower.get("/broker", flower.password)
    assert status == 200
    assert b"backfill" in page


def test_no_secret_is_in_its_log_or_on_its_pages(flower, worker, secrets_of_this_run):
    shown = flower.server.log.read_bytes() + b"".join(
        flower.get(path, flower.password)[1]
        for path in ("/", "/workers", "/broker", "/tasks", "/api/workers")
    )
    assert len(shown) > 1000
    for secret in (*secrets_of_this_run, flower.password):
        assert secret.encode() not in shown
