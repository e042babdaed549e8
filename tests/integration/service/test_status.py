"""`veil status` on a real Redis: waiting and running messages, outcomes, and the time left."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import time

import pytest
from celery import Celery

from tasks import publishing, status
from tasks.addresses import ObjectUri
from tasks.bulk import runs
from tasks.errors import QueueUnavailable
from tasks.messages import BACKFILL, UPLOADS
from tasks.publishing import Publisher, Wanted
from tasks.records import dead_letters, outcomes
from tasks.redis import durability
from tests.command import start_command
from tools.local.servers import HOST, start_redis

RUN = "raw-2026-0a1b2c3d"


@pytest.fixture
def redis(unattended):
    return unattended.client


def queued(queue, count, name=BACKFILL):
    publisher = Publisher(queue.app)
    publisher.publish([Wanted(ObjectUri("raw", f"{number}.jpg")) for number in range(count)], name)
    publisher.close()


def a_run(redis, **fields):
    values = {
        "source": "s3://raw/2026/",
        "destination": "s3://clean/2026/",
        "cursor": "x",
        "listed": 100,
        "skipped": 40,
    }
    redis.hset(
        f"veil:run:{RUN}",
        mapping={
            **values,
            "enqueued": 60,
            "state": "running",
            "started": 1e9,
            "updated": 1e9 + 5,
            **fields,
        },
    )


def counted(redis, run=None, **counts):
    """Record outcomes as workers count them, one every ten seconds, the last one just now."""
    for name, count in counts.items():
        for _ in range(count):
            outcomes.count(redis, name, run)
    ended = [time.time() - 10 * number for number in range(sum(counts.values()))]
    redis.delete(outcomes.RECENT)
    redis.rpush(outcomes.RECENT, *ended)


def test_nothing_yet(redis):
    found = status.read(redis)
    assert [(queue.name, queue.waiting, queue.oldest_seconds) for queue in found.queues] == [
        (UPLOADS, 0, None),
        (BACKFILL, 0, None),
    ]
    assert (found.in_flight, found.dead, found.per_second, found.seconds_left) == (0, 0, 0, 0)
    assert set(found.outcomes.values()) == {0}
    assert found.recipe is None
    assert found.stray == []


def test_a_redis_that_may_lose_messages_is_named(tmp_path, veil):
    server = start_redis(tmp_path / "redis")
    client = server.client()
    try:
        assert durability.risks(client) == []
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
        no_append, evicts = durability.risks(client)
        assert no_append.startswith("appendonly is no")
        assert evicts.startswith("maxmemory-policy is allkeys-lru")
        shown = veil("status", environment=server.environment())
        assert shown.returncode == 0
        assert f"Redis: {no_append}" in shown.stdout
        assert f"Redis: {evicts}" in shown.stdout
        line = veil("status", "--json", environment=server.environment()).stdout
        assert json.loads(line)["risks"] == [no_append, evicts]
        # A managed server may refuse the command.
        client.execute_command("ACL", "SETUSER", "default", "-info", "-config")
        assert durability.risks(client) == []
    finally:
        client.close()
        server.server.stop()


def test_a_full_redis_is_named(veil, redis, unattended):
    redis.config_set("maxmemory", 1)
    try:
        done = veil("status", environment=unattended.environment)
        line = veil("status", "--json", environment=unattended.environment).stdout
        asked = veil("status", "--workers", environment=unattended.environment)
        asked_line = veil("status", "--workers", "--json", environment=unattended.environment)
    finally:
        redis.config_set("maxmemory", 0)
    assert done.returncode == asked.returncode == 0
    for shown in (done.stdout, asked.stdout):
        assert "Redis is full" in shown
    assert re.search("workers +–", asked.stdout)
    assert json.loads(asked_line.stdout)["workers"] is None
    assert json.loads(line)["refusal"].startswith("Redis is full")
    assert status.read(redis).refusal is None


@pytest.mark.parametrize("shown_run", [RUN, "--runs"])
def test_without_a_worker_no_time_is_left_for_a_run(veil, redis, unattended, shown_run):
    a_run(redis, state="finished")
    redis.lpush(BACKFILL, b"{}")  # one that may belong to the run
    counted(redis, run=RUN, anonymized=25)
    assert status.read_run(redis, RUN).seconds_left
    done = veil("status", shown_run, environment=unattended.environment)
    assert re.search("time left +–" if shown_run == RUN else r"\d +– *$", done.stdout, re.MULTILINE)
    assert "no worker answers, so the time left is unknown: start `veil worker`" in done.stdout
    line = json.loads(
        veil("status", shown_run, "--json", environment=unattended.environment).stdout
    )
    assert (line["per_second"], line["seconds_left"], line["left"]) == (0, None, 35)


def test_without_a_worker_there_is_no_rate(veil, redis, unattended):
    queued(unattended, 2)
    counted(redis, anonymized=5)
    assert status.read(redis).per_second
    shown = veil("status", "--workers", environment=unattended.environment).stdout
    for name in ("pictures/s", "time left"):
        assert re.search(rf"{name} +–", shown)


def test_without_a_worker_the_time_left_is_known_only_if_nothing_waits(veil, redis, unattended):
    def seconds_left():
        done = veil("status", "--workers", "--json", environment=unattended.environment)
        return json.loads(done.stdout)["seconds_left"]

    assert seconds_left() == 0
    queued(unattended, 2)
    assert status.read(redis).seconds_left is None
    assert seconds_left() is None


def test_what_waits_and_since_when(redis, unattended):
    queued(unattended, 3)
    message = json.loads(redis.lindex(BACKFILL, -1))
    message["headers"]["veil_queued_at"] -= 90
    redis.lset(BACKFILL, -1, json.dumps(message))
    backfill = status.read(redis).queues[1]
    assert backfill.waiting == 3
    assert 90 <= backfill.oldest_seconds < 150


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff",
        b"{}",
        b"[]",
        b'{"headers": null}',
        b'{"headers": {"veil_queued_at": "NaN"}}',
        b'"a"',
        b"1" * 5000,
    ],
)
def test_junk_waits_without_an_age(redis, junk):
    redis.lpush(UPLOADS, junk)
    uploads = status.read(redis).queues[0]
    assert (uploads.waiting, uploads.oldest_seconds) == (1, None)


def test_rate_and_time_left_are_those_of_the_last_minutes(redis, unattended):
    queued(unattended, 30)
    assert status.read(redis).seconds_left is None  # Without a rate, nobody knows.
    counted(redis, anonymized=20, skipped=4, dead=6)
    dead_letters.LETTERS.record(
        redis, dead_letters.DeadLetter("s3://raw/a", None, "E", "", 1, "", "", 0.0)
    )
    publishing.announce_recipe(redis, "5a38d4c65c2c5ab0")
    found = status.read(redis)
    assert found.per_second == pytest.approx(0.1, rel=0.05)
    assert found.seconds_left == pytest.approx(300, rel=0.05)
    assert found.outcomes == {"anonymized": 20, "skipped": 4, "held": 0, "dead": 6, "malformed": 0}
    assert (found.dead, found.recipe) == (1, "5a38d4c65c2c5ab0")


def test_the_rate_is_known_from_the_first_seconds(redis, unattended):
    queued(unattended, 20)
    now = time.time()
    redis.rpush(outcomes.RECENT, *(now - seconds for seconds in (0, 1, 2, 3, 4, 400, 401, 402)))
    found = status.read(redis)
    assert found.per_second == pytest.approx(1, rel=0.1)
    assert found.seconds_left == pytest.approx(20, rel=0.1)


def test_workers_keep_the_times_of_the_last_outcomes_alone(redis):
    for _ in range(outcomes.RECENT_KEPT + 1):
        outcomes.count(redis, "anonymized")
    assert redis.llen(outcomes.RECENT) == outcomes.RECENT_KEPT
    assert outcomes.per_second(redis, is_idle=False) > 10


def test_workers_of_version_0_2_0_have_a_rate_too(redis):
    """They count outcomes by minute only."""
    minute = outcomes.MINUTE.format(int(time.time()) // 60 - 2)
    redis.hset(minute, mapping={"anonymized": 20, "dead": 10})
    assert status.read(redis).per_second == pytest.approx(0.1)


def a_message(queue, source="s3://raw/a.jpg"):
    """Return the message that Celery sends for `source`."""
    publisher = Publisher(queue.app)
    publisher.publish([Wanted(ObjectUri.parse(source))], BACKFILL)
    publisher.close()
    return queue.client.rpop(BACKFILL)


def sent_by_another_project(queue, task, **settings):
    """Send `task` from a Celery app that names no queue."""
    sender = Celery("shop", broker=queue.app.conf.broker_url, set_as_current=False)
    sender.conf.update(settings)
    with sender.connection_for_write() as connection:
        sender.send_task(task, args=["s3://raw/a.jpg"], connection=connection)
    sender.close()


def stray_lists(redis):
    return {found.name: found.waiting for found in status.read(redis).stray}


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_message_in_celerys_default_queue_is_reported(redis, protocol, unattended):
    sent_by_another_project(unattended, "veil.anonymize_image", task_protocol=protocol)
    assert stray_lists(redis) == {"celery": 1}
    assert [queue.waiting for queue in status.read(redis).queues] == [0, 0]


def test_a_message_in_a_misspelt_queue_is_reported_whatever_its_priority(redis, unattended):
    message = a_message(unattended)
    redis.lpush("upload", message)
    redis.lpush("upload\x06\x163", message, message)
    assert stray_lists(redis) == {"upload": 3}


def test_the_queues_of_an_installation_with_a_prefix_are_not_reported(redis, unattended):
    message = a_message(unattended)
    for name in ("team-a:uploads", "team-a:backfill\x06\x163", "team-b:uploads"):
        redis.lpush(name, message)
    redis.set("team-a:veil:recipe", "5a38d4c65c2c5ab0")
    assert stray_lists(redis) == {"team-b:uploads": 1}


def test_messages_of_other_projects_and_other_lists_are_not_reported(redis, unattended):
    sent_by_another_project(unattended, "shop.resize")
    redis.lpush("numbers", 1, 2, 3)
    redis.set("celery\x06\x163", "no list")
    queued(unattended, 2)
    assert stray_lists(redis) == {}


def test_the_command_names_stray_messages(veil, redis, unattended):
    redis.lpush("celery", a_message(unattended))
    redis.lpush("up[red]load\x1b[2J", a_message(unattended))
    done = veil("status", environment=unattended.environment)
    assert "celery: 1 waiting, but no worker reads this queue" in done.stdout
    assert "up[red]load\\x1b[2J: 1 waiting" in done.stdout
    assert "\x1b" not in done.stdout
    done = veil("status", "--json", environment=unattended.environment)
    assert {found["name"] for found in json.loads(done.stdout)["stray"]} >= {"celery"}


def test_what_a_worker_has_in_hand_is_seen(
    worker, queue, environment, raw, portrait, place, wait_until
):
    results = [queue.send(raw.put(f"{place}{number}.jpg", portrait)) for number in range(6)]
    assert wait_until(lambda: status.read(queue.client).in_flight) >= 1
    for result in results:
        queue.outcome(result)
    wait_until(lambda: status.read(queue.client).in_flight == 0)


def test_a_run_is_told_with_what_is_left_of_it(redis):
    a_run(redis, state="finished")
    redis.lpush(BACKFILL, b"{}")  # one that may belong to the run
    counted(redis, run=RUN, anonymized=25, held=3, dead=2)
    found = status.read_run(redis, RUN)
    assert (found.done, found.failed, found.left, found.uncounted) == (28, 2, 30, 0)
    assert found.percent == 70
    assert found.seconds_left == pytest.approx(300, rel=0.05)
    assert (found.state, found.source, found.destination) == (
        "listed",
        "s3://raw/2026/",
        "s3://clean/2026/",
    )
    assert (found.listed, found.started, found.updated) == (100, 1e9, 1e9 + 5)


def test_pictures_whose_messages_are_gone_and_that_were_not_counted_are_not_left(
    veil, redis, unattended
):
    a_run(redis, state="finished")
    counted(redis, run=RUN, anonymized=20, dead=1)
    queued(unattended, 5)  # of another run
    found = status.read_run(redis, RUN)
    assert (found.state, found.done, found.left, found.uncounted) == ("uncounted", 20, 0, 39)
    assert (found.percent, found.seconds_left) == (61, 0)
    for arguments in ((RUN,), ("--runs",)):
        shown = veil("status", *arguments, environment=unattended.environment).stdout
        assert f"{RUN}: 39 were not counted: repeat the command" in shown


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_before_the_listing_is_complete_nobody_knows_what_is_left(redis, state):
    a_run(redis, state=state)
    counted(redis, run=RUN, anonymized=60)
    found = status.read_run(redis, RUN)
    assert (found.state, found.left) == (state, 0)
    assert (found.percent, found.seconds_left) == (None, None)


def silent(redis, seconds):
    """Make the last sign of life of the run `seconds` old."""
    runs.show_life(redis, RUN)
    redis.expire(runs.LIFE.format(RUN), runs.SECONDS_KEPT - seconds)


def test_a_run_without_a_sign_of_life_is_abandoned_until_it_shows_one(veil, redis, unattended):
    a_run(redis)
    silent(redis, 3600)
    found = status.read_run(redis, RUN)
    assert found.state == "abandoned"
    assert found.abandoned_since == pytest.approx(time.time() - 3600, abs=60)
    for arguments in ((RUN,), ("--runs",)):
        shown = veil("status", *arguments, environment=unattended.environment).stdout
        assert f"{RUN} is abandoned since 20" in shown
        assert "repeat the command that began it to go on" in shown
    done = veil("status", RUN, "--json", environment=unattended.environment)
    assert json.loads(done.stdout)["state"] == "abandoned"
    runs.show_life(redis, RUN)
    found = status.read_run(redis, RUN)
    assert (found.state, found.abandoned_since) == ("running", None)


def test_a_run_that_says_little_is_told_as_far_as_it_goes(redis):
    redis.hset(f"veil:run:{RUN}", mapping={"enqueued": "many", "state": "running", "started": ""})
    found = status.read_run(redis, RUN)
    assert (found.enqueued, found.left, found.percent, found.started) == (0, 0, None, None)


def test_a_message_that_came_twice_does_not_leave_less_than_nothing(redis):
    a_run(redis, enqueued=2, state="finished")
    counted(redis, run=RUN, anonymized=3)
    found = status.read_run(redis, RUN)
    assert (found.state, found.left, found.percent) == ("finished", 0, 100)
    assert found.seconds_left == 0


def test_runs_are_listed_the_last_moved_first_and_their_counts_are_none(redis):
    a_run(redis)
    counted(redis, run=RUN, anonymized=1)
    redis.hset("veil:run:another", mapping={"state": "finished", "updated": 2e9})
    assert [run.run for run in status.runs(redis)] == ["another", RUN]
    assert status.read_run(redis, f"{RUN}:outcomes") is None


def test_once_in_a_pipe_as_tables_or_as_one_object(veil, unattended, redis):
    queued(unattended, 2)
    a_run(redis)
    done = veil("status", "--json", environment=unattended.environment)
    assert done.returncode == 0
    (line,) = map(json.loads, done.stdout.splitlines())
    assert set(line) == {
        "queues",
        "stray",
        "risks",
        "refusal",
        "in_flight",
        "outcomes",
        "dead",
        "to_review",
        "review_desk",
        "per_second",
        "seconds_left",
        "recipe",
        "labels",
        "routes",
    }
    assert line["routes"] == []
    assert line["queues"][1]["waiting"] == 2

    done = veil("status", environment=unattended.environment)
    assert done.returncode == 0
    assert "backfill" in done.stdout
    assert "pictures/s" in done.stdout

    done = veil("status", RUN, "--json", environment=unattended.environment)
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["run"], line["left"]) == (RUN, 60)
    done = veil("status", "--runs", environment=unattended.environment)
    assert RUN in done.stdout


def test_workers_that_answer_are_named_if_asked(veil, worker, environment):
    done = veil("status", "--workers", "--json", environment=environment)
    assert done.returncode == 0
    (name,) = json.loads(done.stdout)["workers"]
    assert re.fullmatch(r"worker-[0-9a-f]{6}@.+", name)


def test_an_unknown_run_and_no_redis_are_one_line(veil, unattended, quiet_port):
    away = {"VEIL_REDIS_URL": f"redis://{HOST}:{quiet_port}/0"}
    for arguments, environment, word in (
        (("no-such-run",), unattended.environment, "--runs"),
        ((), away, "VEIL_REDIS_URL"),
        (("--workers", "--interval", 1), away, "VEIL_REDIS_URL"),
    ):
        done = veil("status", *arguments, environment=environment)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("veil: ")
        assert word in line


class Screen:
    """A command on a terminal, and the text that it has drawn there.

    `typed` starts it in a process group of its own, as the shell of a terminal does.
    """

    def __init__(self, command, environment, columns=160, typed=False):
        self.controller, terminal = pty.openpty()
        sized = {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "50"}
        self.process = start_command(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, **environment, **sized},
            process_group=0 if typed else None,
        )
        os.close(terminal)
        self.drawn = ""

    def draws(self, word):
        """Return whether `word` has been drawn since it was last found."""
        while select.select([self.controller], [], [], 0)[0]:
            self.drawn += os.read(self.controller, 65536).decode(errors="replace")
        found = word in self.drawn
        self.drawn = "" if found else self.drawn
        return found


def test_live_it_shows_an_outage_and_comes_back(programs, tmp_path, wait_until):
    redis = start_redis(tmp_path)
    screen = Screen([programs / "veil", "status", "--interval", "0.2"], redis.environment())
    try:
        wait_until(lambda: screen.draws("pictures/s"))
        redis.server.kill()
        wait_until(lambda: screen.draws("VEIL_REDIS_URL"))
        redis.server.start()
        wait_until(lambda: screen.draws("pictures/s"))
        screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(20) == 130
        assert "Traceback" not in screen.drawn
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.controller)
        redis.server.stop()


def ended_on_a_terminal(screen):
    """Wait for the end of the command of `screen`; return its exit code and its lines."""
    try:
        code = screen.process.wait(30)
        drawn = b""
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error.
            while content := os.read(screen.controller, 65536):
                drawn += content
        return code, re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", drawn.decode()).splitlines()
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.controller)


@pytest.mark.parametrize(
    ("arguments", "typed"), [((), False), (("--once",), False), (("--once",), True)]
)
def test_on_a_terminal_a_script_and_once_end(programs, unattended, arguments, typed):
    command = [programs / "veil", "status", *arguments]
    screen = Screen(command, unattended.environment, typed=typed)
    code, lines = ended_on_a_terminal(screen)
    assert code == 0
    assert any("pictures/s" in line for line in lines)


def test_typed_into_a_terminal_it_is_live(programs, unattended, wait_until):
    screen = Screen([programs / "veil", "status"], unattended.environment, typed=True)
    try:
        wait_until(lambda: screen.draws("pictures/s"))
        wait_until(lambda: screen.draws("pictures/s"))
        assert screen.process.poll() is None
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.controller)


@pytest.mark.parametrize("arguments", [(), (RUN,), ("--runs",)])
def test_it_fits_into_80_columns(programs, redis, unattended, arguments):
    a_run(redis, listed=1_234_567, enqueued=1_100_000, skipped=134_567)
    silent(redis, 3600)
    counted(redis, run=RUN, anonymized=3, dead=2)
    publishing.announce_recipe(redis, "5a38d4c65c2c5ab0")
    redis.lpush("celery", a_message(unattended))
    command = [programs / "veil", "status", "--once", *arguments]
    code, lines = ended_on_a_terminal(Screen(command, unattended.environment, columns=80))
    assert code == 0
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    if arguments:
        assert RUN in text
        assert "1,234,567" in text
    else:
        assert "veil dead list" in text


def test_what_is_unknown_is_a_dash(veil, redis, unattended):
    queued(unattended, 2)
    shown = veil("status", environment=unattended.environment).stdout
    for name in ("pictures/s", "time left", "recipe"):
        assert re.search(rf"{name} +–", shown)
    a_run(redis, listed=0, skipped=0, enqueued=0)
    shown = veil("status", RUN, environment=unattended.environment).stdout
    for name in ("%", "pictures/s", "time left"):
        assert re.search(rf"{name} +–", shown)


def test_a_redis_that_hangs_is_one_line_and_no_wait(veil, tmp_path):
    redis = start_redis(tmp_path)
    try:
        redis.server.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        done = veil("status", environment=redis.environment())
        assert time.monotonic() - started < 15
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "VEIL_REDIS_URL" in line
    finally:
        redis.server.process.send_signal(signal.SIGCONT)
        redis.server.stop()


def test_once_and_an_interval_contradict_each_other(veil, unattended):
    done = veil("status", "--once", "--interval", 1, environment=unattended.environment)
    assert done.returncode == 2
    assert "--interval" in done.stderr


def test_without_redis_nothing_is_made_up(quiet_port):
    from redis import Redis

    away = Redis(port=quiet_port, retry=None)
    for read in (status.read, status.runs, lambda redis: status.read_run(redis, RUN)):
        with pytest.raises(QueueUnavailable):
            read(away)
