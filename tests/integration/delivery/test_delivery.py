"""Each message is delivered again after a failure, and only once while its worker lives.

The workers are processes without a detector, and the Redis is real. ``TRANSPORT=redis`` runs all
tests on kombu's own transport, which shows the failures that Veil's transport prevents.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as ConnectionLost

from tasks.app import create_app
from tasks.delivery.attempts import ATTEMPTS_KEY, MAX_DEATHS
from tasks.records import dead_letters
from tasks.redis.errors import REPEAT_SECONDS
from tasks.redis.primary import READ_ONLY_PAUSE_SECONDS
from tasks.settings import Settings
from tools.local.servers import HOST, Server, free_port, start_redis

STUB = Path(__file__).parents[1] / "stub_worker.py"
ROOT = STUB.parent.parent.parent
TRANSPORT = os.environ.get("TRANSPORT", "")
LEASE_SECONDS = 2
TASK = b"veil.anonymize_image"


class Stub:
    """A worker process, its log, and the journal of all workers of the test."""

    def __init__(self, folder, environment, options):
        self.journal = folder / "journal"
        number = len(list(folder.glob("*.log")))
        command = [sys.executable, STUB, self.journal, *options]
        self.server = Server("stub", command, folder / f"worker-{number}.log", environment)
        self.server.start()

    def ready(self):
        deadline = time.monotonic() + 60
        while not self.lines("worker ready"):
            self.server.check_alive()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self

    def lines(self, event):
        found = []
        for text in self.server.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if line.get("event") == event:
                    found.append(line)
        return found

    def signal(self, number):
        self.server.process.send_signal(number)

    def exit_code(self, seconds=30):
        return self.server.process.wait(seconds)

    @property
    def alive(self):
        return self.server.process.poll() is None


class Setting:
    """A Redis of its own, its queue, and workers at it."""

    def __init__(self, redis, folder):
        self.redis = redis
        self.folder = folder
        self.app = create_app(Settings(redis_url=redis.url, redis_password=redis.password))
        self.client = redis.client()
        self.environment = {
            **redis.environment(),
            "VEIL_LEASE_SECONDS": str(LEASE_SECONDS),
            "PYTHONPATH": str(ROOT),
        }
        self.workers = []

    def worker(self, *options, **environment):
        if TRANSPORT:
            options = (f"--transport={TRANSPORT}", *options)
        self.workers.append(Stub(self.folder, {**self.environment, **environment}, options))
        return self.workers[-1]

    def send(self, *keys, **options):
        return [self.app.send_task(TASK.decode(), (f"s3://raw/{key}",), **options) for key in keys]

    def did(self, what, worker=None):
        """Return how often `worker`, or any worker, recorded `what` for each key."""
        path = self.folder / "journal"
        lines = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        pids = (None,) if worker is None else (worker.server.pid,)
        return Counter(
            line["source"].removeprefix("s3://raw/")
            for line in lines
            if line["what"] == what and (worker is None or line["pid"] in pids)
        )

    @property
    def in_hand(self):
        with self.client.pipeline() as pipe:  # one transaction, so that both agree
            messages, leases = pipe.hlen("unacked").zcard("unacked_index").execute()
        assert messages == leases
        return messages

    def at_rest(self):
        return (
            not self.client.llen("uploads")
            and not self.client.llen("backfill")
            and not self.in_hand
        )


@pytest.fixture(scope="module")
def own_redis(clean_environment, tmp_path_factory):
    """A Redis that a test may kill. It starts again on the same port with the same files."""
    started = start_redis(tmp_path_factory.mktemp("own-redis"))
    yield started
    started.server.stop()


@pytest.fixture
def setting(own_redis, tmp_path):
    own_redis.client().flushall()
    made = Setting(own_redis, tmp_path)
    yield made
    for worker in made.workers:
        if worker.alive:
            worker.server.kill()
    made.client.config_set("maxmemory", 0)


class Withholding:
    """A connection to Redis that withholds the first answer with a task message until `release`."""

    def __init__(self, port):
        self._port = port
        self._listener = socket.create_server((HOST, 0))
        self._sockets = [self._listener]
        self.withheld = threading.Event()
        self._released = threading.Event()
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def release(self):
        self._released.set()

    def cut(self):
        """Close all connections, so that the answer is lost. New ones carry everything."""
        for end in self._sockets[1:]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.release()

    def close(self):
        self.release()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((HOST, self._port))
                self._sockets += near, far
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source, sink, withholds):
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if withholds and TASK in chunk and not self.withheld.is_set():
                    self.withheld.set()
                    self._released.wait()
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def way(own_redis):
    made = Withholding(own_redis.port)
    yield made
    made.close()


def test_what_was_on_its_way_to_a_worker_that_is_killed_is_delivered_to_another(
    setting, way, wait_until
):
    doomed = setting.worker(VEIL_REDIS_URL=f"redis://{HOST}:{way.port}/0").ready()
    setting.send("a.jpg")
    assert way.withheld.wait(20)
    assert setting.client.llen("uploads") == 0, "Redis has handed it out"
    doomed.server.kill()

    setting.worker()

    wait_until(lambda: setting.did("done")["a.jpg"] == 1, 30)
    wait_until(setting.at_rest, 10)


def test_what_was_on_its_way_when_a_connection_was_cut_is_delivered_again(setting, way, wait_until):
    worker = setting.worker(VEIL_REDIS_URL=f"redis://{HOST}:{way.port}/0").ready()
    setting.send("a.jpg")
    assert way.withheld.wait(20)

    way.cut()

    wait_until(lambda: setting.did("done")["a.jpg"] == 1, 30)
    wait_until(setting.at_rest, 10)
    assert worker.alive


def test_what_was_on_its_way_to_a_worker_that_exits_at_once_goes_back_to_its_queue(setting, way):
    worker = setting.worker(VEIL_REDIS_URL=f"redis://{HOST}:{way.port}/0").ready()
    setting.send("a.jpg")
    assert way.withheld.wait(20)
    worker.signal(signal.SIGQUIT)
    time.sleep(0.5)  # The worker waits for the answer.
    way.release()

    assert worker.exit_code() in (0, 1)
    assert (setting.in_hand, setting.client.llen("uploads")) == (0, 1)
    assert not setting.did("begun")


def test_what_a_killed_worker_had_in_hand_is_taken_over_whatever_it_waited_for(setting, wait_until):
    doomed = setting.worker("--concurrency=2").ready()
    setting.send("later.jpg", countdown=6)
    setting.send("sleep-5/a.jpg", "sleep-5/b.jpg")
    wait_until(lambda: setting.did("begun").total() == 2 and setting.in_hand == 3)

    doomed.server.kill()
    other = setting.worker().ready()

    wait_until(lambda: len(other.lines("taken over, to work on alone")) == 2, 20)
    wait_until(lambda: setting.did("done", other).total() == 3, 40)
    assert setting.did("begun") == {"sleep-5/a.jpg": 2, "sleep-5/b.jpg": 2, "later.jpg": 1}


def test_a_slow_picture_stays_with_its_worker_and_so_does_one_that_waits_for_its_time(
    setting, wait_until
):
    workers = [setting.worker().ready(), setting.worker().ready()]

    setting.send(f"sleep-{3 * LEASE_SECONDS}/slow.jpg")
    setting.send("later.jpg", countdown=3 * LEASE_SECONDS)

    wait_until(lambda: setting.did("done").total() == 2, 30)
    wait_until(setting.at_rest, 10)
    assert setting.did("begun").total() == 2
    assert not any(worker.lines("messages taken back") for worker in workers)


def test_a_worker_that_was_frozen_cannot_end_what_another_took_over(setting, wait_until):
    frozen = setting.worker().ready()
    setting.send("sleep-4/a.jpg")
    wait_until(lambda: setting.did("begun", frozen))
    frozen.signal(signal.SIGSTOP)
    second = setting.worker().ready()
    wait_until(lambda: setting.did("begun", second), 30)

    frozen.signal(signal.SIGCONT)
    wait_until(lambda: setting.did("done", frozen), 30)
    time.sleep(0.5)  # The worker acknowledges the message.
    second.server.kill()

    assert setting.in_hand == 1
    third = setting.worker()
    wait_until(lambda: setting.did("done").total() == 2, 30)
    assert third.alive
    assert frozen.alive
    assert frozen.lines("leases lost")
    wait_until(setting.at_rest, 10)


def test_a_message_that_is_given_back_has_not_failed_for_its_sender(setting, wait_until):
    worker = setting.worker().ready()
    (result,) = setting.send("later.jpg", countdown=3)
    wait_until(lambda: setting.in_hand == 1)
    (tag,) = setting.client.zrange("unacked_index", 0, -1)

    setting.client.zrem("unacked_index", tag)  # The worker has lost its lease.
    wait_until(lambda: worker.lines("given back"), 20)
    time.sleep(0.5)  # Celery stores how the task ended.

    assert result.state == "STARTED"
    setting.client.zadd("unacked_index", {tag: 0})
    wait_until(lambda: result.state == "SUCCESS", 30)
    assert setting.did("done") == {"later.jpg": 1}


def test_a_lost_connection_neither_ends_a_worker_nor_what_it_has_in_hand(setting, wait_until):
    worker = setting.worker("--concurrency=2").ready()
    setting.send("later.jpg", countdown=4)
    setting.send("sleep-3/a.jpg", "sleep-4/b.jpg", "sleep-1/c.jpg")
    wait_until(lambda: setting.did("begun").total() == 2)

    setting.client.client_kill_filter(_type="normal", skipme=True)
    setting.client.client_kill_filter(_type="pubsub")
    setting.send("d.jpg")

    wait_until(lambda: setting.did("done").total() == 5, 30)
    wait_until(setting.at_rest, 10)
    assert set(setting.did("begun").values()) == {1}
    assert worker.alive
    assert worker.lines("queue unavailable")[0]["error"] == "QueueUnavailable"


def test_redis_may_be_away_for_longer_than_a_lease(setting, wait_until):
    workers = [setting.worker().ready(), setting.worker().ready()]
    setting.send("later.jpg", countdown=3 * LEASE_SECONDS)
    setting.send(*(f"sleep-{6 * LEASE_SECONDS}/{number}.jpg" for number in range(4)))
    wait_until(lambda: setting.did("begun").total() == 4)
    workers += [setting.worker(), setting.worker()]  # They have nothing in hand.
    for worker in workers[2:]:
        worker.ready()

    setting.redis.server.kill()
    time.sleep(2 * LEASE_SECONDS)
    setting.redis.start()

    wait_until(lambda: setting.did("done").total() == 5, 40)
    wait_until(setting.at_rest, 20)
    assert set(setting.did("begun").values()) == {1}
    for worker in workers:
        assert worker.lines("queue unavailable")
        assert "Traceback" not in worker.server.log.read_text()
    assert all(worker.alive for worker in workers)


def test_redis_killed_again_and_again_under_a_load_loses_nothing(setting, wait_until):
    workers = [setting.worker(), setting.worker()]
    for worker in workers:
        worker.ready()
    keys = [f"sleep-0.02/{number}.jpg" for number in range(300)]
    setting.send(*keys)

    for _ in range(5):
        time.sleep(0.4)
        setting.redis.server.kill()
        setting.redis.start()

    wait_until(lambda: len(setting.did("done")) == len(keys), 60)
    wait_until(setting.at_rest, 20)
    assert all(worker.alive for worker in workers)


def test_a_worker_that_is_told_to_stop_finishes_what_it_has_begun_and_returns_the_rest_at_once(
    setting, wait_until
):
    worker = setting.worker("--concurrency=2").ready()
    setting.send("later.jpg", countdown=60)
    setting.send("sleep-3/a.jpg", "sleep-3/b.jpg", "c.jpg", "d.jpg")
    wait_until(lambda: setting.did("begun").total() == 2)
    assert (setting.in_hand, setting.client.llen("uploads")) == (3, 2)

    worker.signal(signal.SIGTERM)

    wait_until(lambda: setting.client.llen("uploads") == 3, 2.5)
    assert setting.did("done").total() == 0
    assert worker.exit_code() == 0
    (line,) = worker.lines("stopping")
    assert line["at_work"] == 2
    assert len(worker.lines("stopped")) == 1
    assert setting.did("done") == setting.did("begun") == {"sleep-3/a.jpg": 1, "sleep-3/b.jpg": 1}
    assert (setting.in_hand, setting.client.llen("uploads")) == (0, 3)


@pytest.mark.parametrize("how", ["the grace period ends", "told twice"])
def test_what_a_stopping_worker_does_not_finish_goes_back_to_the_queue(setting, wait_until, how):
    grace = "1" if how == "the grace period ends" else "60"
    worker = setting.worker(VEIL_GRACE_SECONDS=grace).ready()
    setting.send("sleep-60/a.jpg", "sleep-60/b.jpg")
    wait_until(lambda: setting.did("begun").total() == 2)

    worker.signal(signal.SIGTERM)
    if how == "told twice":
        time.sleep(0.5)
        assert worker.alive
        worker.signal(signal.SIGTERM)

    assert worker.exit_code() == 1
    assert (setting.in_hand, setting.client.llen("uploads")) == (0, 2)
    (line,) = worker.lines("cut off")
    assert (line["unfinished"], line["level"]) == (2, "warning")
    assert not worker.lines("stopped")


def test_what_a_stopping_worker_finishes_in_the_grace_period_is_not_delivered_again(
    setting, wait_until
):
    worker = setting.worker(VEIL_GRACE_SECONDS="4").ready()
    setting.send("sleep-2/a.jpg", "sleep-3/b.jpg", "sleep-60/c.jpg")
    wait_until(lambda: setting.did("begun").total() == 3)

    worker.signal(signal.SIGTERM)

    wait_until(lambda: setting.did("done").total() == 1)
    wait_until(lambda: setting.in_hand == 2, 1)
    assert worker.exit_code() == 1
    assert setting.did("done") == {"sleep-2/a.jpg": 1, "sleep-3/b.jpg": 1}
    assert [line["unfinished"] for line in worker.lines("cut off")] == [1]
    assert (setting.in_hand, setting.client.llen("uploads")) == (0, 1)


def test_a_picture_that_no_grace_period_was_long_enough_for_is_no_suspect(setting, wait_until):
    pictures = ("sleep-4/a.jpg", "sleep-4/b.jpg")
    setting.send(*pictures)
    for _ in range(MAX_DEATHS):
        worker = setting.worker(VEIL_GRACE_SECONDS="0").ready()
        wait_until(lambda worker=worker: setting.did("begun", worker).total() == 2)
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 1
        assert not worker.lines("taken over, to work on alone")
        assert (setting.in_hand, setting.client.llen("uploads")) == (0, 2)

    doomed = setting.worker().ready()
    wait_until(lambda: setting.did("begun", doomed).total() == 2)
    assert not doomed.lines("taken over, to work on alone")
    doomed.server.kill()
    last = setting.worker().ready()

    wait_until(lambda: setting.did("done") == dict.fromkeys(pictures, 1), 40)
    wait_until(setting.at_rest, 10)
    takeovers = last.lines("taken over, to work on alone")
    assert not any("error" in line for line in takeovers)  # None is known.
    deaths = [line["deaths"] for line in takeovers]
    assert deaths == [1, 1], "only the killed worker counts"
    assert not list(dead_letters.LETTERS.entries(setting.client))
    assert not setting.client.keys(ATTEMPTS_KEY.format("*"))


def test_a_detector_that_stalls_ends_its_worker_with_one_line_and_its_pictures_come_back(
    setting, wait_until
):
    worker = setting.worker("--watchdog=1").ready()
    setting.send("sleep-30/a.jpg")

    assert worker.exit_code() == 70
    (line,) = worker.lines("stalled")
    assert "detector" in line["what"]
    assert setting.in_hand == 1
    other = setting.worker()
    wait_until(lambda: setting.did("begun", other)["sleep-30/a.jpg"] == 1, 30)


def test_a_full_redis_holds_up_producers_and_loses_no_picture(setting, wait_until):
    keys = [f"{number}.jpg" for number in range(20)]
    setting.send(*keys, "permanent/a.jpg", "transient/a.jpg")
    setting.client.lpush("uploads", b"no message")
    setting.client.config_set("maxmemory", 1)
    worker = setting.worker().ready()

    wait_until(lambda: len(setting.did("done")) == len(keys), 30)
    wait_until(
        lambda: setting.did("begun")["permanent/a.jpg"] and setting.did("begun")["transient/a.jpg"]
    )
    begun = setting.did("begun")
    assert {begun[key] for key in keys} == {1}, "what is done leaves Redis, and makes room"
    assert not list(dead_letters.LETTERS.entries(setting.client))
    assert "QueueUnavailable" in {line["error"] for line in worker.lines("report not stored")}
    tries = setting.did("begun")["permanent/a.jpg"]
    time.sleep(3)
    assert setting.did("begun")["permanent/a.jpg"] <= tries + 2, "tried again with a pause"

    setting.client.config_set("maxmemory", 0)

    def given_up():
        letters = list(dead_letters.LETTERS.entries(setting.client))
        unreadable = {letter.source for letter in letters if letter.error == "MalformedMessage"}
        return len(unreadable) == 1 and {letter.source for letter in letters} - unreadable

    wait_until(lambda: given_up() == {"s3://raw/permanent/a.jpg"}, 60)
    wait_until(lambda: worker.lines("retried"), 30)
    setting.send("more.jpg")
    wait_until(lambda: setting.did("done")["more.jpg"] == 1, 30)


def test_a_worker_that_starts_at_a_full_redis_says_so_with_a_pause(setting, wait_until):
    setting.client.config_set("maxmemory", 1)
    worker = setting.worker().ready()
    lines = wait_until(
        lambda: len(found := worker.lines("queue unavailable")) == 3 and found, 4 * REPEAT_SECONDS
    )
    assert all("Redis is full" in line["message"] for line in lines)
    first, *_, last = (datetime.fromisoformat(line["timestamp"]) for line in lines)
    assert (last - first).total_seconds() >= 2 * REPEAT_SECONDS
    assert "Traceback" not in worker.server.log.read_text()
    assert not worker.lines("queue back")

    setting.client.config_set("maxmemory", 0)
    wait_until(lambda: worker.lines("queue back"), 10)


def test_a_redis_that_takes_no_writes_for_a_while_is_waited_for(setting, wait_until):
    worker = setting.worker().ready()
    setting.send(f"sleep-{LEASE_SECONDS}/a.jpg", "b.jpg")
    wait_until(lambda: setting.did("done")["b.jpg"])

    # Nobody listens at the port, so this Redis is a replica that lost its master.
    setting.client.replicaof(HOST, free_port())
    try:
        wait_until(
            lambda: [
                line for line in worker.lines("queue unavailable") if "read only" in line["message"]
            ]
        )
        time.sleep(2 * LEASE_SECONDS)
        lines = len(worker.server.log.read_text().splitlines())
    finally:
        setting.client.replicaof("NO", "ONE")
    setting.send("c.jpg")

    wait_until(lambda: setting.did("done").total() >= 3 and setting.at_rest(), 30)
    assert set(setting.did("done")) == {f"sleep-{LEASE_SECONDS}/a.jpg", "b.jpg", "c.jpg"}
    assert worker.alive
    assert lines < 30


def test_a_read_only_redis_answers_at_once_and_is_connected_to_after_a_pause(setting):
    client, connection = setting.app.backend.client, setting.app.connection_for_write()
    setting.client.replicaof(HOST, free_port())
    try:
        began = time.monotonic()
        with pytest.raises(ConnectionLost, match="read only"):
            client.set("key", "value")
        answered = time.monotonic()
        connection.ensure_connection(max_retries=1)
        connected = time.monotonic()
    finally:
        setting.client.replicaof("NO", "ONE")
        connection.release()

    assert answered - began < READ_ONLY_PAUSE_SECONDS / 2, "nobody sleeps with the answer"
    assert connected - began >= READ_ONLY_PAUSE_SECONDS


def test_a_worker_waits_for_a_redis_that_is_down_and_says_so(setting, wait_until):
    setting.redis.server.kill()
    worker = setting.worker()
    try:
        wait_until(lambda: worker.lines("queue unavailable"), 30)
        assert worker.alive
    finally:
        setting.redis.start()
    worker.ready()
    setting.send("a.jpg")
    wait_until(lambda: setting.did("done")["a.jpg"] == 1)
    assert {line["error"] for line in worker.lines("queue unavailable")} == {"QueueUnavailable"}
    assert len(worker.lines("queue back")) == 1


def test_a_password_that_changes_at_redis_is_named_and_needs_no_restart(setting, wait_until):
    worker = setting.worker().ready()
    setting.client.config_set("requirepass", "another-one")
    try:
        setting.client.client_kill_filter(_type="normal", skipme=True)
        wait_until(
            lambda: [
                line
                for line in worker.lines("queue unavailable")
                if "check VEIL_REDIS_PASSWORD" in line["message"]
            ],
            30,
        )
        assert worker.alive
    finally:
        setting.client.config_set("requirepass", setting.redis.password)
    setting.send("a.jpg")
    wait_until(lambda: setting.did("done")["a.jpg"] == 1, 30)
    assert setting.redis.password not in worker.server.log.read_text()


def test_a_picture_for_which_memory_does_not_suffice_ends_as_a_dead_letter_and_leaves_the_hand(
    setting, wait_until
):
    setting.worker()
    (result,) = setting.send("memory/a.jpg")

    wait_until(lambda: result.state == "FAILURE", 30)
    wait_until(setting.at_rest, 10)
    (letter,) = dead_letters.LETTERS.entries(setting.client)
    assert (letter.error, letter.last_error, letter.attempts) == ("Poison", "MemoryError", 3)
    assert setting.did("begun") == {"memory/a.jpg": 3}


def test_a_poison_whose_dead_letter_is_not_recorded_is_not_worked_on_again(setting, wait_until):
    key = "sleep-0/a.jpg"
    digest = hashlib.sha256(f"s3://raw/{key}".encode()).hexdigest()[:32]
    for number in range(MAX_DEATHS):
        note = json.dumps({"worker": "celery@gone", "pid": number, "time": float(number)})
        setting.client.hset(ATTEMPTS_KEY.format(digest), f"tag-{number}", note)
    setting.client.set(dead_letters.LETTERS.key, "no hash")
    worker = setting.worker()
    setting.send(key)
    wait_until(lambda: setting.client.zcard("unacked_index") == 1, 30)
    wait_until(lambda: worker.lines("messages taken back"), 60)
    time.sleep(LEASE_SECONDS * 2)
    assert not setting.did("begun")

    setting.client.delete(dead_letters.LETTERS.key)
    (letter,) = wait_until(lambda: list(dead_letters.LETTERS.entries(setting.client)), 60)
    assert (letter.error, letter.attempts) == ("Poison", MAX_DEATHS)
    wait_until(setting.at_rest, 30)
    assert not setting.did("begun")
    assert not setting.client.exists(ATTEMPTS_KEY.format(digest))


def test_an_error_that_is_no_exception_ends_as_a_dead_letter_and_leaves_the_hand(
    setting, wait_until
):
    setting.worker()
    (result,) = setting.send("panic/a.jpg")

    wait_until(lambda: result.state == "FAILURE", 30)
    wait_until(setting.at_rest, 10)
    (letter,) = dead_letters.LETTERS.entries(setting.client)
    assert (letter.error, letter.message) == ("RuntimeError", "Panic: index out of bounds")
    assert setting.did("begun") == {"panic/a.jpg": 1}


def test_a_bug_in_the_handling_of_an_error_acknowledges_nothing(setting, wait_until):
    worker = setting.worker()
    (result,) = setting.send("nameless/a.jpg")

    wait_until(lambda: setting.did("begun")["nameless/a.jpg"] == 2, 60)
    setting.send("b.jpg")
    wait_until(lambda: setting.did("done")["b.jpg"] == 1, 30)
    tries = setting.did("begun")["nameless/a.jpg"]
    time.sleep(3)

    assert setting.did("begun")["nameless/a.jpg"] <= tries + 2, "tried again with a pause"
    wait_until(lambda: setting.in_hand == 1, 10)
    assert result.state == "STARTED"
    assert not list(dead_letters.LETTERS.entries(setting.client))
    bugs = worker.lines("bug")
    assert {line["error"] for line in bugs} == {"LookupError"}
    assert all("_dead_letter" in line["exception"] for line in bugs)
    assert all("delivered again" in line["effect"] for line in bugs)


def test_a_lease_with_which_pictures_would_not_come_back_in_time_is_refused_at_the_start(
    setting, refused_worker
):
    done = refused_worker({**os.environ, **setting.environment, "VEIL_LEASE_SECONDS": "60"})
    assert done.returncode == 2
    assert done.stderr.startswith("veil: SettingsInvalid: VEIL_LEASE_SECONDS: ")
    assert len(done.stderr.splitlines()) == 1
