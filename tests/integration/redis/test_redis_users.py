"""The Redis users in the documentation have the permissions that they need, and no others do."""

import json
import re
import sys
import uuid
from pathlib import Path

import pytest
import redis

from tests.integration.conftest import Worker
from tools.local.servers import HOST, Server, await_server, start_redis

STUB = Path(__file__).parents[1] / "stub_worker.py"
ROOT = STUB.parents[2]
USERS = re.compile(r"<!-- users: [\w-]+ -->\n```text\n(.*?)```", re.DOTALL)
PASSWORD = "a-password-of-this-test"


def lines_of(page):
    """Return the commands of a page of the documentation that make users, with PASSWORD."""
    text = USERS.search((ROOT / "docs" / page).read_text())[1]
    return text.replace("PASSWORD", PASSWORD).splitlines()


@pytest.fixture
def urls(unattended):
    """The address of Redis for each documented user; the users exist during the test."""
    found = {}
    for line in lines_of("permissions.md"):
        # This Redis is that of other tests too, which are its default user.
        if line.startswith("ACL SETUSER") and "default" not in line:
            unattended.client.execute_command(*line.split())
            name = line.split()[2]
            found[name] = f"redis://{name}@{HOST}:{unattended.redis.port}/{unattended.database}"
    yield found
    unattended.client.acl_deluser(*found)


@pytest.fixture
def environment(urls):
    return {
        "VEIL_REDIS_URL": urls["veil"],
        "VEIL_REDIS_PASSWORD": PASSWORD,
        "VEIL_ROUTES": "s3://raw=s3://clean",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def worker(environment, tmp_path):
    command = [sys.executable, STUB, tmp_path / "journal"]
    worker = Worker(Server("worker", command, tmp_path / "log", environment))
    worker.start()
    yield worker
    worker.server.stop()


@pytest.mark.parametrize("aclfile", [False, True])
@pytest.mark.parametrize("page", ["permissions.md", "redis.md"])
def test_the_users_of_a_page_are_the_only_ones_also_after_a_restart_of_redis(
    tmp_path, page, aclfile
):
    server = start_redis(tmp_path / "redis")
    lines = lines_of(page)
    documented = {line.split()[2] for line in lines if line.startswith("ACL SETUSER")}
    admin = redis.Redis(host=HOST, port=server.port, username="admin", password=f"ADMIN-{PASSWORD}")
    strangers = [server.client(), redis.Redis(host=HOST, port=server.port)]
    try:
        if aclfile:
            server.server.stop()
            (tmp_path / "redis" / "users.acl").write_text(
                f"user default on >{server.password} ~* &* +@all\n"
            )
            config = tmp_path / "redis" / "redis.conf"
            config.write_text(
                config.read_text().replace(f"requirepass {server.password}", "aclfile users.acl")
            )
            server.start()
            lines = [line.replace("CONFIG REWRITE", "ACL SAVE") for line in lines]
        with server.client() as client:
            for line in lines:
                client.execute_command(*line.split())
            users = client.acl_list()
        server.server.stop()
        await_server(server.server, admin.ping, (redis.exceptions.RedisError,))
        assert admin.acl_list() == users
        assert documented == set(admin.acl_users())
        for stranger in strangers:
            with pytest.raises(redis.exceptions.AuthenticationError):
                stranger.ping()
    finally:
        server.server.stop()
        for client in (admin, *strangers):
            client.close()


def refused(client):
    """Return the commands, keys and channels that Redis has refused since the list was reset.

    redis-py asks for `client|setinfo` and needs no answer.
    """
    entries = [(entry["username"], entry["object"]) for entry in client.acl_log()]
    return [entry for entry in entries if entry[1] != "client|setinfo"]


def test_workers_commands_and_producers_need_no_more_than_their_user_has(
    unattended, urls, worker, environment, veil, wait_until
):
    unattended.client.acl_log_reset()
    for command in (
        ("enqueue", "s3://raw/a.jpg", "--wait"),
        ("status", "--once", "--workers"),
        ("dead", "list"),
        ("review", "list"),
    ):
        done = veil(*command, environment=environment)
        assert done.returncode == 0, done.stderr

    url = urls["producer"].replace("@", f":{PASSWORD}@")
    task = str(uuid.uuid4())
    result = f"celery-task-meta-{task}"
    message = {
        "body": json.dumps([["s3://raw/b.jpg"], {}, {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "veil.anonymize_image", "id": task},
        "properties": {},
    }
    with redis.Redis.from_url(url) as producer, producer.pubsub() as answers:
        answers.subscribe(result)
        producer.lpush("uploads", json.dumps(message))
        wait_until(lambda: (answers.get_message() or {}).get("type") == "message")
        wait_until(lambda: json.loads(producer.get(result))["status"] == "SUCCESS")
        with pytest.raises(redis.exceptions.NoPermissionError):
            producer.delete("uploads")

    assert not worker.lines("queue unavailable")
    assert refused(unattended.client) == [("producer", "del")]


def test_a_worker_without_a_permission_has_a_line_that_says_so_and_no_traceback(
    unattended, urls, environment, tmp_path, wait_until
):
    unattended.client.execute_command("ACL", "SETUSER", "veil", "resetchannels")
    command = [sys.executable, STUB, tmp_path / "journal"]
    worker = Worker(Server("worker", command, tmp_path / "log", environment))
    try:
        worker.server.start()
        line = wait_until(lambda: worker.lines("queue unavailable"), 30)[0]
        assert line["message"].startswith("Redis refuses a command: ")
        assert "channel" in line["message"]
        wait_until(lambda: not worker.alive, 30)
        assert worker.server.process.returncode == 2
        last = worker.server.log.read_text().splitlines()[-1]
        assert last.startswith("veil: Redis refuses a command: ")
        assert "VEIL_REDIS_PREFIX" in last
        assert "Traceback" not in worker.server.log.read_text()
    finally:
        worker.server.stop()


@pytest.mark.parametrize("command", [("worker",), ("watch", "--poll", "60")])
def test_a_user_that_may_only_read_is_refused_at_the_start_in_one_line(unattended, veil, command):
    rules = f"ACL SETUSER reader on >{PASSWORD} ~* &* +@read +@connection +info"
    unattended.client.execute_command(*rules.split())
    environment = {
        "VEIL_REDIS_URL": f"redis://reader@{HOST}:{unattended.redis.port}/0",
        "VEIL_REDIS_PASSWORD": PASSWORD,
        "VEIL_ROUTES": "s3://raw=s3://clean",
    }
    try:
        done = veil(*command, environment=environment)
    finally:
        unattended.client.acl_deluser("reader")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "no permissions to run" in line
    assert "docs/permissions.md" in line


@pytest.mark.parametrize("command", [("worker",), ("watch", "--http", f"{HOST}:0")])
@pytest.mark.parametrize("prefix", ["", "team-b:"])
def test_a_user_of_another_prefix_is_refused_at_the_start_in_one_line(
    unattended, veil, command, prefix
):
    unattended.client.execute_command(
        *f"ACL SETUSER team-a on >{PASSWORD} ~team-a:* &team-a:* +@all -@dangerous +info".split()
    )
    try:
        done = veil(
            *command,
            environment={
                "VEIL_REDIS_URL": f"redis://team-a@{HOST}:{unattended.redis.port}/0",
                "VEIL_REDIS_PASSWORD": PASSWORD,
                "VEIL_REDIS_PREFIX": prefix,
                "VEIL_ROUTES": "s3://raw=s3://clean",
                "VEIL_WEBHOOK_TOKEN": "t" * 32,
            },
        )
    finally:
        unattended.client.acl_deluser("team-a")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"'{prefix}uploads'" in done.stderr
    assert "VEIL_REDIS_PREFIX" in done.stderr
    assert str(unattended.redis.port) in done.stderr
