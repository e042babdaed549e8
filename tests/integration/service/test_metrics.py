"""The metrics page of a real worker: its counts, and every name of the dashboard and the alerts."""

import importlib.metadata
import io
import json
import re
import signal
import socket
import time
import urllib.request

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tasks.app import create_app
from tasks.bulk import runs
from tasks.messages import BACKFILL, QUEUED_AT_HEADER, TASK, UPLOADS
from tasks.redis.clients import impatient_client
from tasks.settings import Settings
from tasks.telemetry import metrics
from tasks.telemetry.metrics import QueueCollector
from tools.local.servers import start_redis


class Page:
    """One scrape: values by name and labels, and all names, with or without a value."""

    def __init__(self, text):
        self.text = text
        self.values, self.names = {}, set()
        for family in text_string_to_metric_families(text):
            self.names.add(family.name + ("_total" if family.type == "counter" else ""))
            for sample in family.samples:
                self.names.add(sample.name)
                self.values[sample.name, frozenset(sample.labels.items())] = sample.value

    def __call__(self, name, **labels):
        return self.values[name, frozenset(labels.items())]


@pytest.fixture
def scrape(metrics_address, worker):
    def read():
        with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=10) as answer:
            return Page(answer.read().decode())

    return read


@pytest.fixture
def blank():
    content = io.BytesIO()
    Image.new("RGB", (320, 240), "gray").save(content, "JPEG")
    return content.getvalue()


def test_what_came_of_each_picture_is_counted(scrape, queue, raw, place, portrait, blank):
    before = scrape()
    sources = {"face.jpg": portrait, "none.jpg": blank, "broken.jpg": portrait[:300]}
    results = [queue.send(raw.put(place + name, content)) for name, content in sources.items()]
    results += [queue.send(raw.uri(place + "missing.jpg"))]
    states = [queue.outcome(result)[0] for result in results]
    assert states == ["SUCCESS", "SUCCESS", "FAILURE", "FAILURE"]
    queue.report(raw.uri(place + "face.jpg"))  # This one is skipped.

    after = scrape()

    def grown(name, **labels):
        return after(name, **labels) - before(name, **labels)

    assert grown("veil_pictures_total", outcome="anonymized") == 2
    assert grown("veil_pictures_total", outcome="skipped") == 1
    assert grown("veil_pictures_total", outcome="dead") == 2
    assert grown("veil_dead_total", error="UnreadableImage") == 1
    assert grown("veil_dead_total", error="ObjectNotFound") == 1
    assert grown("veil_pictures_without_face_total") == 1
    assert grown("veil_faces_count") == 2
    assert grown("veil_faces_sum") >= 1
    assert grown("veil_detections_total") >= 1
    assert grown("veil_read_bytes_total") == len(portrait) + len(blank)
    assert grown("veil_written_bytes_total") > 1000
    assert grown("veil_batch_pictures_count") >= 2
    for stage in metrics.STAGES:
        times = {"fetch": 3, "verify": 0}.get(stage, 2)
        assert grown("veil_stage_seconds_count", stage=stage) == times
    assert grown("veil_delivery_seconds_count", queue="uploads") == 3
    assert after("veil_dead_letters") >= 2
    assert after("veil_review_pictures") == 0
    assert after("veil_queue_up") == 1


def test_the_worker_says_what_it_is_and_that_it_lives(scrape, queue, raw, place, blank, wait_until):
    report = queue.report(raw.put(place + "a.jpg", blank))
    page = scrape()
    (build,) = [dict(labels) for name, labels in page.values if name == "veil_build_info"]
    assert build["recipe"] == report["recipe"]
    assert build["version"] == importlib.metadata.version("veil")
    assert re.fullmatch("[0-9a-f]{16}", build["model"])
    assert time.time() - page("veil_worker_heartbeat_timestamp_seconds") < 30
    assert page("process_resident_memory_bytes") > 100e6
    wait_until(lambda: scrape()("veil_in_hand_pictures") == 0)


def test_every_metric_of_the_dashboard_and_the_alerts_is_on_the_page(scrape, repository):
    docker = repository / "docker"
    rules = (docker / "helm/veil/alerts.yml").read_text()
    dashboard = json.loads((docker / "grafana" / "veil.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    used = set(re.findall(r"\b(?:veil|process)_\w+", "\n".join([*queries, rules])))
    assert len(used) >= 20
    assert used - scrape().names - Page(generate_latest(metrics.TRIGGER).decode()).names == set()


def test_every_metric_of_its_own_is_used(scrape, repository):
    """A metric that nobody uses need not be counted."""
    docker = repository / "docker"
    shown = "".join(
        (docker / name).read_text() for name in ("grafana/veil.json", "helm/veil/alerts.yml")
    )
    families = set(re.findall(r"^# TYPE (veil_\w+)", scrape().text, re.MULTILINE))
    assert {name for name in families if name not in shown} == set()


def test_no_address_and_no_secret_is_on_the_page(
    scrape, queue, raw, place, blank, secrets_of_this_run
):
    queue.report(raw.put(place + "a-key-of-somebody.jpg", blank))
    page = scrape().text
    for word in ("a-key-of-somebody", "s3://", *secrets_of_this_run):
        assert word not in page


def test_it_listens_on_the_given_address_alone(scrape, metrics_address):
    scrape()
    port = int(metrics_address.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


def test_a_worker_whose_address_is_taken_ends_with_one_line(
    unattended, worker_settings, refused_worker
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = refused_worker({**worker_settings(unattended), "VEIL_METRICS": address})
    assert done.returncode == 1, "another start may succeed"
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        f"veil: AddressInUse: VEIL_METRICS: {address} can't be served (Address already in use)"
    )


def test_a_redis_that_hangs_or_is_gone_does_not_break_the_scrape(tmp_path):
    redis = start_redis(tmp_path / "redis")
    app = create_app(Settings(redis_url=redis.url, redis_password=redis.password))
    registry = CollectorRegistry()
    registry.register(QueueCollector(impatient_client(app, metrics.REDIS_SECONDS)))

    def up():
        started = time.monotonic()
        value = registry.get_sample_value("veil_queue_up")
        assert time.monotonic() - started < 8  # Prometheus waits for 10 s.
        return value

    try:
        assert up() == 1
        redis.server.process.send_signal(signal.SIGSTOP)
        assert up() == 0
        redis.server.process.send_signal(signal.SIGCONT)
        assert up() == 1
        redis.server.kill()
        assert up() == 0
        assert registry.get_sample_value("veil_queue_messages", {"queue": "uploads"}) is None
    finally:
        redis.server.kill()
        app.close()


def test_a_redis_that_takes_no_messages_is_not_up_although_its_queues_are_shown(tmp_path):
    redis = start_redis(tmp_path / "redis")
    app = create_app(Settings(redis_url=redis.url, redis_password=redis.password))
    registry = CollectorRegistry()
    client = impatient_client(app, metrics.REDIS_SECONDS)
    registry.register(QueueCollector(client))
    try:
        client.lpush(UPLOADS, waiting_since(1))
        client.config_set("maxmemory", 1)
        assert registry.get_sample_value("veil_queue_up") == 0
        assert registry.get_sample_value("veil_queue_messages", {"queue": UPLOADS}) == 1
        client.config_set("maxmemory", 0)
        assert registry.get_sample_value("veil_queue_up") == 1
        assert client.keys() == [UPLOADS.encode()]
    finally:
        redis.server.kill()
        app.close()


@pytest.fixture
def collected(unattended):
    registry = CollectorRegistry()
    registry.register(QueueCollector(unattended.client))
    return registry.get_sample_value


def waiting_since(seconds):
    return json.dumps({"headers": {QUEUED_AT_HEADER: time.time() - seconds}})


def test_the_queues_are_shown_with_how_long_the_next_message_has_waited(collected, unattended):
    unattended.client.lpush(UPLOADS, waiting_since(100), waiting_since(50))
    assert collected("veil_queue_up") == 1
    assert collected("veil_queue_messages", {"queue": UPLOADS}) == 2
    assert collected("veil_queue_oldest_seconds", {"queue": UPLOADS}) == pytest.approx(100, abs=5)
    assert collected("veil_queue_oldest_seconds", {"queue": BACKFILL}) == 0


def test_messages_in_a_queue_that_no_worker_reads_are_counted(collected, unattended):
    assert collected("veil_stray_messages") == 0
    unattended.client.lpush("celery", json.dumps({"headers": {"task": "shop.resize"}}))
    assert collected("veil_stray_messages") == 0
    unattended.client.lpush("celery", json.dumps({"headers": {"task": TASK}}))
    assert collected("veil_stray_messages") == 2


def test_messages_in_a_misspelt_queue_are_counted(collected, unattended, monkeypatch):
    unattended.client.lpush("upload", json.dumps({"headers": {"task": TASK}}))
    assert collected("veil_stray_messages") == 1
    unattended.client.lpush("upload", json.dumps({"headers": {"task": TASK}}))
    unattended.client.lpush("backfills", json.dumps({"headers": {"task": TASK}}))
    assert collected("veil_stray_messages") == 2  # No search is due.
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + metrics.SEARCH_SECONDS)
    assert collected("veil_stray_messages") == 3


def test_a_backfill_that_goes_on_is_silent_until_it_stores_progress_or_ends(collected, unattended):
    assert collected("veil_backfill_silent_seconds") == 0
    now = time.time()
    runs.write(unattended.client, runs.Run(name="a", updated=now - 50))
    runs.write(unattended.client, runs.Run(name="b", updated=now - 500))
    assert collected("veil_backfill_silent_seconds") == pytest.approx(500, abs=5)
    runs.write(unattended.client, runs.Run(name="b", updated=now, state="finished"))
    assert collected("veil_backfill_silent_seconds") == pytest.approx(50, abs=5)
    runs.write(unattended.client, runs.Run(name="a", updated=now, state="stopped"))
    assert collected("veil_backfill_silent_seconds") == 0


@pytest.mark.parametrize(
    "junk", [b"", b"\xff", b"[]", b'{"headers": {"veil_queued_at": 1e999}}', b"[" * 100_000]
)
def test_junk_at_the_end_of_a_queue_does_not_break_the_scrape(collected, unattended, junk):
    unattended.client.lpush(UPLOADS, junk)
    assert collected("veil_queue_messages", {"queue": UPLOADS}) == 1
    assert collected("veil_queue_oldest_seconds", {"queue": UPLOADS}) == 0


def test_a_clock_that_is_behind_shows_no_negative_age(collected, unattended):
    unattended.client.lpush(UPLOADS, waiting_since(-50))
    assert collected("veil_queue_oldest_seconds", {"queue": UPLOADS}) == 0
