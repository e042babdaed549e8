"""Installations with prefixes share a Redis; a user has one of them; no cluster, no sentinel."""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import redis

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.bulk import runs
from tasks.errors import QueueUnavailable
from tasks.publishing import Publisher, Wanted
from tasks.records import queues
from tasks.settings import Settings
from tests.integration.conftest import Worker
from tools.local.servers import (
    HOST,
    Redis,
    Server,
    await_server,
    free_port,
    redis_program,
    start_flower,
)

STUB = Path(__file__).parents[1] / "stub_worker.py"
ROOT = STUB.parents[2]
USER = re.compile(r"<!-- users: team-a -->\n```text\n(.*?)```", re.DOTALL)
PASSWORD = "a-password-of-this-test"


def prefixed(queue, prefix):
    """Return an app of the installation with `prefix`."""
    return create_app(
        Settings(
            redis_url=queue.environment["VEIL_REDIS_URL"],
            redis_password=queue.redis.password,
            redis_prefix=prefix,
        )
    )


@pytest.fixture
def stub(unattended, tmp_path):
    """``stub(prefix)`` starts a worker of an installation, as the user in `environment`."""
    workers = []

    def start(prefix, environment=None):
        environment = {
            **(environment or unattended.environment),
            "VEIL_REDIS_PREFIX": prefix,
            "VEIL_LEASE_SECONDS": "2",
            "PYTHONPATH": str(ROOT),
        }
        name = f"worker-{len(workers)}"
        command = [sys.executable, STUB, tmp_path / f"journal{prefix}"]
        workers.append(Worker(Server(name, command, tmp_path / f"{name}.log", environment)))
        workers[-1].start()
        return workers[-1]

    yield start
    for worker in workers:
        worker.server.stop()


def test_installations_with_prefixes_do_not_see_each_other(unattended, stub, veil, wait_until):
    ours, theirs = prefixed(unattended, "a:"), prefixed(unattended, "b:")
    worker = stub("a:")
    done = ours.send_task("veil.anonymize_image", ("s3://raw/a.jpg",))
    waiting = theirs.send_task("veil.anonymize_image", ("s3://raw/b.jpg",))
    assert done.get(timeout=30)["status"] == "anonymized"
    assert [*ours.control.inspect(timeout=3).ping()] == [worker.lines("worker ready")[0]["worker"]]
    assert theirs.control.inspect(timeout=1).ping() is None
    assert not waiting.ready()
    assert queues.depth(theirs.backend.client, "uploads") == 1
    assert queues.depth(ours.backend.client, "uploads") == 0
    assert queues.StrayMessages().read(ours.backend.client) == []

    # A dead letter, the outcomes and a run are those of one installation.
    ours.send_task("veil.anonymize_image", ("s3://raw/permanent/a.jpg",))
    environment = {**unattended.environment, "VEIL_REDIS_PREFIX": "a:"}
    wait_until(lambda: "permanent/a.jpg" in veil("dead", "list", environment=environment).stdout)
    other = {**unattended.environment, "VEIL_REDIS_PREFIX": "b:"}
    assert "permanent/a.jpg" not in veil("dead", "list", environment=other).stdout
    status = veil("status", "--once", "--json", environment=other)
    assert json.loads(status.stdout)["queues"][0]["waiting"] == 1
    unattended.client.hset("a:veil:run:mine", "source", "s3://raw/")
    assert runs.names(ours.backend.client) == ["mine"]
    assert runs.names(theirs.backend.client) == []

    assert {key[:2] for key in unattended.client.scan_iter()} == {b"a:", b"b:"}


def test_the_message_of_a_killed_worker_returns_to_the_queue_with_the_prefix(
    unattended, stub, wait_until
):
    app = prefixed(unattended, "team-a:")
    worker = stub("team-a:")
    result = app.send_task("veil.anonymize_image", ("s3://raw/sleep-6/a.jpg",))
    wait_until(lambda: unattended.client.hlen("team-a:unacked") == 1)
    os.kill(worker.server.pid, signal.SIGKILL)
    stub("team-a:")
    assert result.get(timeout=60)["status"] == "anonymized"
    assert not unattended.client.exists("uploads")


def test_a_user_and_a_password_in_the_address_are_enough(unattended):
    """ElastiCache gives users in this form; its TLS is in test_redis_tls.py."""
    unattended.client.execute_command(
        "ACL", "SETUSER", "veil-app", "on", ">p@ss/word#1", "~app:*", "&app:*",
        *("+@all", "-@dangerous", "+info"),
    )  # fmt: skip
    try:
        url = f"redis://veil-app:p%40ss%2Fword%231@{HOST}:{unattended.redis.port}"
        app = create_app(Settings(redis_url=f"{url}/{unattended.database}", redis_prefix="app:"))
        with contextlib.closing(Publisher(app)) as publisher:
            publisher.publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")
        app.send_task("veil.anonymize_image", ("s3://raw/b.jpg",))
        assert unattended.client.llen("app:uploads") == 2
        # The user has the keys with the prefix alone.
        with pytest.raises(redis.exceptions.NoPermissionError):
            create_app(Settings(redis_url=f"{url}/{unattended.database}")).backend.client.set(
                "veil:x", "1"
            )
    finally:
        unattended.client.acl_deluser("veil-app")


@pytest.fixture
def team(unattended):
    """The environment of an installation whose Redis user is that of docs/redis.md."""
    page = (ROOT / "docs" / "redis.md").read_text()
    lines = USER.search(page)[1].replace("PASSWORD", PASSWORD)
    for line in lines.replace("/0.", f"/{unattended.database}.").splitlines():
        # This Redis is that of other tests too, which are its default user.
        if line.startswith("ACL SETUSER team-a"):
            unattended.client.execute_command(*line.split())
    yield {
        "VEIL_REDIS_URL": f"redis://team-a@{HOST}:{unattended.redis.port}/{unattended.database}",
        "VEIL_REDIS_PASSWORD": PASSWORD,
        "VEIL_REDIS_PREFIX": "team-a:",
    }
    unattended.client.acl_deluser("team-a", "team-a-producer")


def refused(client):
    """Return the commands, keys and channels that Redis has refused since the list was reset."""
    entries = [(entry["username"], entry["object"]) for entry in client.acl_log()]
    return [entry for entry in entries if entry[1] != "client|setinfo"]


def test_the_documented_user_of_an_installation_suffices_for_all_that_asks_workers(
    unattended, team, stub, veil, wait_until, tmp_path
):
    unattended.client.acl_log_reset()
    worker = stub("team-a:", team)
    name = worker.lines("worker ready")[0]["worker"]
    status = veil("status", "--workers", "--json", "--once", environment=team)
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["workers"] == [name]

    command = [Path(sys.executable).parent / "celery", "-A", "tasks.app", "inspect", "ping"]
    environment = {**os.environ, **team, "PYTHONPATH": str(ROOT)}
    inspected = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert inspected.returncode == 0, inspected.stderr
    assert f"{name}: OK" in inspected.stdout

    flower = start_flower(tmp_path, {**team, "PYTHONPATH": str(ROOT)})
    try:
        app = prefixed(unattended, "team-a:")

        def is_listed():
            task = app.send_task("veil.anonymize_image", ("s3://raw/a.jpg",))
            assert task.get(timeout=30)["status"] == "anonymized"
            token = base64.b64encode(f"veil:{flower.password}".encode()).decode()
            request = urllib.request.Request(f"{flower.address}/api/tasks?limit=1000")
            request.add_header("Authorization", f"Basic {token}")
            with urllib.request.urlopen(request, timeout=20) as answer:
                states = [one["state"] for one in json.load(answer).values()]
            return "SUCCESS" in states

        wait_until(is_listed)
    finally:
        flower.server.stop()
    assert not worker.lines("broadcasts refused")
    assert not worker.lines("junk broadcast")
    assert refused(unattended.client) == []


def test_a_user_without_the_patterns_of_broadcasts_is_told_so_by_workers_and_by_status(
    unattended, team, stub, veil, wait_until
):
    unattended.client.execute_command("ACL", "SETUSER", "team-a", "resetchannels", "&team-a:*")
    worker = stub("team-a:", team)
    rule = f"'&team-a:/{unattended.database}.celery.pidbox'"
    other_rule = f"'&team-a:/{unattended.database}.celeryev/worker.*'"
    for missing in (rule, other_rule):
        wait_until(lambda missing=missing: missing in str(worker.lines("broadcasts refused")), 30)
    for line in worker.lines("broadcasts refused"):
        assert line["message"].startswith("Redis refuses a subscription: ")
        assert "give the user in VEIL_REDIS_URL these rules" in line["message"]
    assert not worker.lines("junk broadcast")

    status = veil("status", "--workers", "--once", environment=team)
    assert status.returncode != 0
    assert rule in status.stderr
    assert "workers" not in status.stdout
    environment = {**os.environ, **team, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tasks.health"]
    health = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert health.returncode != 0
    assert rule in health.stderr

    # The worker works meanwhile.
    app = prefixed(unattended, "team-a:")
    done = app.send_task("veil.anonymize_image", ("s3://raw/a.jpg",))
    assert done.get(timeout=30)["status"] == "anonymized"


@pytest.fixture(scope="module")
def cluster(clean_environment, tmp_path_factory):
    """A Redis in cluster mode that has all slots, as ElastiCache with one shard."""
    folder = tmp_path_factory.mktemp("cluster")
    port = free_port()
    config = folder / "redis.conf"
    config.write_text(
        f'bind {HOST}\nport {port}\ndir "{folder}"\ncluster-enabled yes\nsave ""\n'
        f"cluster-port {free_port()}\n"
    )
    command = [redis_program(), str(config)]
    started = Redis(Server("cluster", command, folder / "redis.log"), port, "")
    client = redis.Redis(host=HOST, port=port)
    await_server(started.server, client.ping, (redis.exceptions.RedisError,))
    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    yield started
    started.server.stop()


@pytest.mark.parametrize(
    "command", [("worker",), ("watch", "--poll", "60"), ("enqueue", "s3://raw/a.jpg")]
)
def test_a_cluster_is_refused_at_the_start_in_one_line(cluster, veil, command):
    environment = {
        "VEIL_REDIS_URL": f"redis://{HOST}:{cluster.port}/0",
        "VEIL_ROUTES": "s3://raw=s3://clean",
    }
    done = veil(*command, environment=environment)
    assert done.returncode == 2, done.stderr
    assert "Redis runs in cluster mode" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def sentinel(clean_environment, tmp_path_factory):
    """A sentinel without a password."""
    folder = tmp_path_factory.mktemp("sentinel")
    port = free_port()
    config = folder / "sentinel.conf"
    config.write_text(
        f'bind {HOST}\nport {port}\ndir "{folder}"\n'
        f"sentinel monitor mymaster {HOST} {free_port()} 1\n"
    )
    command = [redis_program(), str(config), "--sentinel"]
    started = Server("sentinel", command, folder / "sentinel.log")
    client = redis.Redis(host=HOST, port=port)
    await_server(started, client.ping, (redis.exceptions.RedisError,))
    yield port
    started.stop()


@pytest.mark.parametrize("command", [("worker",), ("watch", "--poll", "60"), ("status", "--once")])
@pytest.mark.parametrize(
    ("user", "password", "database"), [("", "", 0), ("", "secret", 3), ("veil@", "secret", 0)]
)
def test_redis_at_the_port_of_a_sentinel_is_refused(
    sentinel, veil, command, user, password, database
):
    environment = {
        "VEIL_REDIS_URL": f"redis://{user}{HOST}:{sentinel}/{database}",
        "VEIL_REDIS_PASSWORD": password,
        "VEIL_ROUTES": "s3://raw=s3://clean",
    }
    done = veil(*command, environment=environment)
    assert done.returncode == 2, done.stderr
    assert "this is a sentinel, and no Redis: use sentinel://HOST:PORT/0" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_connection_to_a_redis_does_not_ask_it_whether_it_is_a_sentinel(unattended):
    unattended.client.config_resetstat()
    app = create_app(
        Settings(
            redis_url=unattended.environment["VEIL_REDIS_URL"],
            redis_password=unattended.redis.password,
        )
    )
    assert app.backend.client.ping()
    sent = unattended.client.info("commandstats")
    assert "cmdstat_ping" in sent
    assert "cmdstat_info" not in sent


def test_a_cluster_without_its_slots_is_named_to_producers(cluster):
    client = redis.Redis(host=HOST, port=cluster.port)
    client.execute_command("CLUSTER", "DELSLOTSRANGE", 0, 16383)
    app = create_app(Settings(redis_url=f"redis://{HOST}:{cluster.port}/0"))
    with (
        contextlib.closing(Publisher(app)) as publisher,
        pytest.raises(QueueUnavailable, match="Redis runs in cluster mode"),
    ):
        publisher.publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")
