"""Priorities of routes: workers take pictures in their order, also those that came back."""

import contextlib
import json

import pytest

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.messages import BACKFILL, UPLOADS
from tasks.publishing import Backpressure, Publisher, Wanted
from tasks.records import queues
from tasks.settings import Settings
from tests.integration.delivery.test_delivery import LEASE_SECONDS, ROOT, Stub

ROUTES = """
[routes.street]
source = "s3://raw/street"
destination = "s3://clean/street"
priority = "high"

[routes.school]
source = "s3://raw/school"
destination = "s3://clean/school"

[routes.archive]
source = "s3://raw/archive"
destination = "s3://clean/archive"
priority = "low"
"""
LISTS = {
    "street": "{}",
    "school": "{}\x06\x163",
    "archive": "{}\x06\x166",
}
MIXED = ("archive/1", "school/1", "street/1", "archive/2", "street/2", "school/2")
ORDERED = ["street/1", "street/2", "school/1", "school/2", "archive/1", "archive/2"]


class Site:
    """A queue with these routes, and workers that take one picture at a time."""

    def __init__(self, queue, folder):
        path = folder / "routes.toml"
        path.write_text(ROUTES)
        self.client = queue.client
        self.client.flushdb()
        self.environment = {**queue.environment, "VEIL_ROUTES_FILE": str(path)}
        self.app = create_app(
            Settings(
                redis_url=queue.environment["VEIL_REDIS_URL"],
                redis_password=queue.redis.password,
                routes_file=str(path),
            )
        )
        self.folder = folder
        self.workers = []

    def worker(self):
        environment = {
            **self.environment,
            "VEIL_LEASE_SECONDS": str(LEASE_SECONDS),
            "VEIL_GRACE_SECONDS": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.workers.append(Stub(self.folder, environment, ["--concurrency=1"]))
        return self.workers[-1]

    def publish(self, *names, queue=UPLOADS):
        wanted = [Wanted(ObjectUri("raw", name)) for name in names]
        with contextlib.closing(Publisher(self.app)) as publisher:
            publisher.publish(wanted, queue)

    def waiting(self, queue=UPLOADS):
        """Return the names of the waiting pictures by route, those that are taken next first."""
        found = {}
        for route, name in LISTS.items():
            messages = map(json.loads, reversed(self.client.lrange(name.format(queue), 0, -1)))
            sources = [message["headers"]["argsrepr"] for message in messages]
            if sources:
                found[route] = [source.removeprefix("s3://raw/") for source in sources]
        return found

    def has_no_lease(self):
        """Return whether the leases of all messages in hand have expired."""
        seconds, microseconds = self.client.time()
        return not self.client.zcount("unacked_index", seconds + microseconds / 1e6, "+inf")

    def begun(self):
        """Return the names of the pictures whose work has begun, in this order."""
        path = self.folder / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines]
        return [
            record["source"].removeprefix("s3://raw/")
            for record in records
            if record["what"] == "begun"
        ]


@pytest.fixture
def site(unattended, tmp_path):
    made = Site(unattended, tmp_path)
    yield made
    for worker in made.workers:
        if worker.alive:
            worker.server.kill()
    made.app.close()


def by_route(names):
    return {route: [name for name in names if name.startswith(route)] for route in LISTS}


def test_the_messages_of_a_batch_go_to_the_lists_of_their_routes(site):
    site.publish(*MIXED)
    site.publish(*MIXED, queue=BACKFILL)

    assert site.waiting() == site.waiting(BACKFILL) == by_route(ORDERED)
    assert queues.depth(site.client, UPLOADS) == 6
    assert {status.waiting for status in queues.statuses(site.client)} == {6}
    assert Backpressure(site.client, UPLOADS, 7).free() == 1

    by_publisher = {name: site.client.lrange(name, 0, -1) for name in site.client.keys("uploads*")}
    site.client.flushdb()
    for name in MIXED:
        site.app.send_task("veil.anonymize_image", (f"s3://raw/{name}",))
    assert site.waiting() == by_route(ORDERED), "as Celery sends them"
    for name, messages in by_publisher.items():
        for one, other in zip(messages, site.client.lrange(name, 0, -1), strict=True):
            priorities = [json.loads(each)["properties"]["priority"] for each in (one, other)]
            assert priorities[0] == priorities[1]


def test_workers_take_pictures_in_the_order_of_their_routes(site, wait_until):
    site.publish(*MIXED, queue=BACKFILL)
    site.publish(*MIXED)
    site.worker()
    wait_until(lambda: len(site.begun()) == 12, 60)
    assert site.begun() == ORDERED + ORDERED


def test_what_a_killed_worker_had_in_hand_comes_back_in_the_order_of_the_routes(site, wait_until):
    site.publish("archive/sleep-60/1", "archive/2")
    doomed = site.worker()
    wait_until(site.begun, 60)
    doomed.server.kill()
    site.publish("street/sleep-1/1", "school/sleep-1/1")
    wait_until(site.has_no_lease)

    site.worker()
    wait_until(lambda: len(site.begun()) == 4, 60)

    assert site.begun()[1:] == ["street/sleep-1/1", "school/sleep-1/1", "archive/sleep-60/1"]


def test_what_a_stopped_worker_gives_back_goes_to_the_list_of_its_route(site, wait_until):
    site.publish("archive/sleep-60/1", "archive/2")
    worker = site.worker()
    wait_until(site.begun, 60)
    site.publish("school/1")
    worker.signal(15)
    assert worker.exit_code() == 1

    assert site.waiting() == {
        "school": ["school/1"],
        "archive": ["archive/sleep-60/1", "archive/2"],
    }


def test_a_retry_keeps_its_priority(site, wait_until):
    site.publish("archive/transient/1")
    worker = site.worker()
    wait_until(lambda: worker.lines("retried"), 60)
    wait_until(lambda: site.client.hlen("unacked") == 1)
    worker.signal(15)
    assert worker.exit_code() == 0
    assert site.waiting() == {"archive": ["archive/transient/1"]}


def test_commands_give_each_picture_the_priority_of_its_route(site, veil, tmp_path, wait_until):
    addresses = tmp_path / "addresses"
    addresses.write_text("".join(f"s3://raw/{name}\n" for name in MIXED))
    done = veil("enqueue", "--from", addresses, environment=site.environment)
    assert done.returncode == 0, done.stderr
    assert site.waiting() == by_route(ORDERED)

    site.client.flushdb()
    site.publish("archive/permanent/1")
    worker = site.worker()
    wait_until(lambda: worker.lines("dead"), 60)
    worker.server.kill()
    done = veil("dead", "retry", "--all", environment=site.environment)
    assert done.returncode == 0, done.stderr
    assert site.waiting(BACKFILL) == {"archive": ["archive/permanent/1"]}


def test_routes_check_prints_the_priority(site, veil):
    done = veil("routes", "check", "--offline", environment=site.environment)
    shown = [line.split()[1] for line in done.stdout.splitlines() if "  priority " in line]
    assert shown == ["high", "normal", "low"]
