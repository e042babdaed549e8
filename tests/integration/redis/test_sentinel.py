"""Workers and commands find the primary through sentinels, and survive its death.

A larger load: ``SENTINEL_PICTURES=2000 SENTINEL_FAILOVERS=5 make test
ARGS="tests/integration/redis/test_sentinel.py -k load -q"``.
"""

import contextlib
import io
import json
import os
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pytest
import redis
from PIL import Image

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.errors import QueueUnavailable
from tasks.publishing import Publisher, Wanted
from tasks.redis.errors import tried
from tasks.redis.primary import Sentinels
from tasks.settings import Settings
from tests.integration.lying_sentinel import LyingSentinel, state
from tests.integration.receivers import Receiver
from tools.local.sentinels import SERVICE, start_replicated
from tools.local.servers import HOST, free_port

PICTURES = int(os.environ.get("SENTINEL_PICTURES", "200"))
FAILOVERS = int(os.environ.get("SENTINEL_FAILOVERS", "2"))
BATCH_SECONDS = 0.3  # between batches of ten, so that failovers hit the producer too
LOAD_SECONDS = 300 + PICTURES / 4


@pytest.fixture(scope="module")
def replicated(clean_environment, tmp_path_factory, wait_until):
    """A primary with one replica and three sentinels, all with passwords."""
    started = start_replicated(tmp_path_factory.mktemp("replicated"))
    wait_until(started.is_whole)
    yield started
    started.stop()


@pytest.fixture
def whole(replicated, wait_until):
    """The same, with an empty Redis."""
    wait_until(replicated.is_whole)
    replicated.primary().client().flushall()
    return replicated


def settings(replicated, **changed):
    values = {
        "redis_url": replicated.url,
        "redis_service": SERVICE,
        "redis_password": replicated.password,
        "redis_sentinel_password": replicated.sentinel_password,
    }
    return Settings(**{**values, **changed})


@dataclass
class Load:
    """Pictures of one archive, their producer, and the answers that it got."""

    app: object
    keys: list[str]
    unconfirmed: int = 0

    def run(self):
        """Enqueue all pictures in batches; repeat a batch until Redis has confirmed it."""
        publisher = Publisher(self.app)
        for first in range(0, len(self.keys), 10):
            batch = [Wanted(ObjectUri("raw", key)) for key in self.keys[first : first + 10]]
            while True:
                try:
                    publisher.publish(batch, "uploads")
                    time.sleep(BATCH_SECONDS)
                    break
                except QueueUnavailable:
                    self.unconfirmed += 1
                    time.sleep(0.2)
        publisher.close()


def kill_primary(replicated, wait_until):
    """Kill the primary, wait for the failover, and start the killed server as a replica."""
    killed = replicated.primary()
    killed.server.kill()
    wait_until(lambda: replicated.primary() is not killed)
    killed.start()
    wait_until(replicated.is_whole)


@pytest.mark.timeout(LOAD_SECONDS + 300)
def test_under_a_load_a_killed_primary_takes_at_most_what_reconcile_lists(
    whole, s3, raw, clean, place, programs, start_worker, veil, wait_until
):
    keys = [f"{place}{number}.png" for number in range(PICTURES)]
    for number, key in enumerate(keys):
        raw.put(key, picture(number))
    environment = {
        **whole.environment(),
        **s3.environment(),
        "VEIL_ROUTES": "s3://raw=s3://clean",
        "VEIL_PRESET": "fast",
        "VEIL_LEASE_SECONDS": "5",
    }
    load = Load(create_app(settings(whole)), keys)
    with start_worker([programs / "veil", "worker"], environment) as worker:
        pid = worker.server.pid
        producer = threading.Thread(target=load.run, daemon=True)
        producer.start()
        for number in range(FAILOVERS):
            due = (number + 1) * PICTURES // (FAILOVERS + 1)
            wait_until(lambda due=due: len(outputs(clean, place)) >= due, LOAD_SECONDS)
            kill_primary(whole, wait_until)
        producer.join(LOAD_SECONDS)
        assert not producer.is_alive()
        wait_until(lambda: at_rest(whole.primary().client()), LOAD_SECONDS)

        missing = set(keys) - outputs(clean, place)
        print(f"{len(missing)} of {PICTURES} pictures lost, {load.unconfirmed} calls repeated")
        listed = reconcile(veil, environment, place)
        assert listed == missing
        assert len(missing) <= PICTURES // 10

        # Enqueueing what is listed completes the archive.
        load.keys = sorted(missing)
        load.run()
        wait_until(lambda: outputs(clean, place) == set(keys), LOAD_SECONDS)
        assert worker.alive
        assert worker.server.pid == pid
        assert "Traceback" not in worker.log


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def outputs(clean, place):
    return {key for key in clean.keys(place) if key.endswith(".png")}


def at_rest(client):
    return not client.llen("uploads") and not client.hlen("unacked")


def reconcile(veil, environment, place):
    """Return the keys that `veil reconcile` lists as missing."""
    done = veil(
        "reconcile", f"s3://raw/{place}", f"s3://clean/{place}", "--json", environment=environment
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        line["source"].removeprefix("s3://raw/") for line in lines if line.get("state") == "missing"
    }


def test_the_newest_of_all_answers_names_the_primary():
    """Right after a failover, a majority may still name the old primary."""
    old, new = free_port(), free_port()
    with (
        LyingSentinel(old, 4) as one,
        LyingSentinel(old, 4) as two,
        LyingSentinel(new, 5) as leader,
    ):
        hosts = one.address, two.address, leader.address
        found = Sentinels(hosts, SERVICE, {"protocol": 2}).candidates()
    assert found == [(HOST, new), (HOST, old)]


def publish(app):
    with contextlib.closing(Publisher(app)) as publisher:
        publisher.publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")


def test_commands_and_results_go_through_sentinels(whole, veil):
    environment = {**whole.environment(), "VEIL_ROUTES": "s3://raw=s3://clean"}
    done = veil("enqueue", "s3://raw/a.jpg", environment=environment)
    assert done.returncode == 0, done.stderr
    assert whole.primary().client().llen("uploads") == 1
    assert veil("status", "--once", environment=environment).returncode == 0
    assert veil("dead", "list", environment=environment).returncode == 0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"VEIL_REDIS_SERVICE": "another"}, "do not know the service another"),
        ({"VEIL_REDIS_SENTINEL_PASSWORD": "wrong"}, "check VEIL_REDIS_SENTINEL_PASSWORD"),
        ({"VEIL_REDIS_PASSWORD": "wrong"}, "check VEIL_REDIS_PASSWORD"),
    ],
)
def test_a_worker_that_is_refused_says_which_setting_to_check(whole, veil, changed, expected):
    done = veil("worker", environment={**whole.environment(), **changed})
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_sentinel_that_lies_leads_to_no_replica_and_no_old_primary(whole):
    primary = whole.primary()
    replica = next(server for server in whole.servers if server is not primary)
    honest = [(HOST, sentinel.port) for sentinel in whole.sentinels]
    options = {"password": whole.sentinel_password, "protocol": 2}
    with LyingSentinel(replica.port, 0) as stale, LyingSentinel(replica.port, 10**6) as liar:
        # A sentinel with an old configuration is outvoted.
        found = Sentinels((stale.address, *honest[:2]), SERVICE, options).candidates()
        assert found[0] == (HOST, primary.port)
        # One that claims the newest configuration leads to a server that says it is a replica.
        app = create_app(settings(whole))
        app.conf.broker_transport_options["sentinels"] = [liar.address, *honest[:2]]
        app.conf.broker_transport_options["sentinel_kwargs"]["protocol"] = 2
        app.backend.client.set("written", "here")
        assert primary.client().get("written") == b"here"
        # Alone, it is an error with a name.
        app = create_app(settings(whole))
        app.conf.broker_transport_options["sentinels"] = [liar.address]
        app.conf.broker_transport_options["sentinel_kwargs"]["protocol"] = 2
        with pytest.raises(redis.ConnectionError, match="is a replica, although a sentinel"):
            app.backend.client.ping()
        with pytest.raises(QueueUnavailable, match="is a replica, although a sentinel"):
            publish(app)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n",
        b":7\r\n",
        b"*0\r\n",
        b"*2\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n",
        state("many", 1),
    ],
)
def test_what_is_no_sentinel_is_passed_over_and_is_named_if_it_is_alone(whole, answer):
    honest = [(HOST, sentinel.port) for sentinel in whole.sentinels]
    options = {"password": whole.sentinel_password, "protocol": 2}
    with LyingSentinel(1, 1) as liar:
        liar.answer = answer
        found = Sentinels((liar.address, *honest[:2]), SERVICE, options).candidates()
        assert found == [(HOST, whole.primary().port)]
        with pytest.raises(redis.ConnectionError, match="does not answer as a sentinel"):
            Sentinels((liar.address,), SERVICE, options).candidates()


@pytest.mark.parametrize("kind", ["nobody", "another program", "another password"])
def test_a_sentinel_that_names_another_server_leads_to_the_primary_all_the_same(whole, kind):
    receiver = Receiver()
    ports = {
        "nobody": free_port(),
        "another program": urlsplit(receiver.url).port,
        "another password": whole.sentinels[0].port,
    }
    honest = [(HOST, sentinel.port) for sentinel in whole.sentinels]
    try:
        with LyingSentinel(ports[kind], 10**6) as liar:
            app = create_app(settings(whole))
            app.conf.broker_transport_options["sentinels"] = [liar.address, *honest[:2]]
            app.conf.broker_transport_options["sentinel_kwargs"]["protocol"] = 2
            app.backend.client.set("written", kind)
            assert whole.primary().client().get("written") == kind.encode()
    finally:
        receiver.close()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"redis_password": "another-password"}, "refuses the password: check VEIL_REDIS_PASSWORD"),
        ({"database": 9999}, "does not have this database"),
    ],
)
def test_the_primary_that_refuses_is_named(whole, changed, expected):
    database = changed.pop("database", 0)
    if database:
        changed["redis_url"] = f"{whole.url.removesuffix('/0')}/{database}"
    with pytest.raises(QueueUnavailable) as raised:
        publish(create_app(settings(whole, **changed)))
    primary = f"Redis at {HOST}:{whole.primary().port}"
    assert str(raised.value).startswith(f"{primary} {expected}")
    assert tried(str(raised.value), "sentinel:26379") == ""


def test_without_a_sentinel_the_error_names_them(clean_environment):
    app = create_app(Settings(redis_url=f"sentinel://{HOST}:1,{HOST}:2/0"))
    with pytest.raises(QueueUnavailable, match="no sentinel answers"):
        publish(app)


def test_a_demoted_primary_confirms_no_messages(whole, wait_until):
    """A planned failover: the old primary takes writes for a moment, and is a replica then."""
    app = create_app(settings(whole, redis_replicas=1))
    app.send_task("veil.anonymize_image", ("s3://raw/before.jpg",))
    old = whole.primary()
    with whole.sentinels[0].client() as sentinel:
        sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
    wait_until(lambda: whole.primary() is not old)

    publisher = Publisher(app)

    def confirmed():
        with contextlib.suppress(QueueUnavailable):
            return publisher.publish([Wanted(ObjectUri("raw", "after.jpg"))], "uploads")

    wait_until(confirmed)
    wait_until(whole.is_whole)
    publisher.close()
    messages = whole.primary().client().lrange("uploads", 0, -1)
    assert any(b"after.jpg" in message for message in messages)
    assert any(b"before.jpg" in message for message in messages)


def test_messages_that_no_replica_has_are_not_confirmed(whole, wait_until):
    primary = whole.primary()
    replica = next(server for server in whole.servers if server is not primary)
    app = create_app(settings(whole, redis_replicas=1))
    replica.server.kill()
    try:
        told = "0 of 1 replicas have confirmed .*: they are on the queue"
        with pytest.raises(QueueUnavailable, match=told):
            publish(app)
        with pytest.raises(QueueUnavailable, match="0 of 1 replicas have confirmed"):
            app.send_task("veil.anonymize_image", ("s3://raw/a.jpg",), retry=False)
        # A server that refuses writes itself without a replica is an outage like any other.
        primary.client().config_set("min-replicas-to-write", 1)
        with pytest.raises(QueueUnavailable, match="too few replicas are connected"):
            publish(app)
    finally:
        primary.client().config_set("min-replicas-to-write", 0)
        replica.start()
