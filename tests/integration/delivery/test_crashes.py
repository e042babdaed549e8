"""Pictures that kill their picture process end as dead letters at once, and nobody else notices.

``CRASHES=20 PICTURES=200`` is the long form.
"""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.integration.delivery.test_poison import picture

ROOT = Path(__file__).resolve().parents[3]
CRASHES = int(os.environ.get("CRASHES", "3"))
PICTURES = int(os.environ.get("PICTURES", "24"))
WORDS = ("segfault", "abort", "leave", "memory", "babble")
SECONDS = 60 + 5 * CRASHES


@pytest.fixture
def hostile_worker(new_queue, worker_settings, start_worker):
    queue = new_queue()
    environment = {
        **worker_settings(queue),
        "VEIL_SCALES": "64",
        "VEIL_PROCESSES": "2",
        "VEIL_MAX_PIXELS": "1000000",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, Path(__file__).parents[1] / "hostile_worker.py"]
    with start_worker(command, environment) as worker:
        yield queue, worker


@pytest.mark.timeout(SECONDS + 60)
def test_pictures_that_crash_their_process_fail_at_once_and_their_neighbours_are_done(
    hostile_worker, raw, clean, place, wait_until
):
    queue, worker = hostile_worker
    crashing, good = {}, set()
    for number in range(PICTURES):
        content = picture((number, 100, 100))
        if number % (PICTURES // CRASHES) == 1:
            word = WORDS[len(crashing) % len(WORDS)]
            key = f"{place}{number:03}-{word}.png"
            crashing[raw.put(key, b"OBEY " + word.encode() + b" " + content)] = word
        else:
            key = f"{place}{number:03}.png"
            raw.put(key, content)
            good.add(key)
        queue.send(raw.uri(key))
    assert len(crashing) == CRASHES
    pid = worker.server.pid

    wait_until(lambda: len(queue.dead()) + len(clean.keys(place)) >= PICTURES, SECONDS)
    wait_until(lambda: not queue.client.llen("uploads") and not queue.client.hlen("unacked"), 30)

    dead = queue.dead()
    assert set(dead) == set(crashing)
    for letter in dead.values():
        assert letter.error == "PictureCrashed"
        assert letter.attempts == 1
    assert set(clean.keys(place)) == good
    assert worker.alive
    assert worker.server.pid == pid
    assert len(worker.lines("worker ready")) == 1
    died = worker.lines("picture process died")
    assert sorted(line["source"] for line in died) == sorted(crashing)
    assert {line["task_id"] for line in died} == {letter.task_id for letter in dead.values()}
    assert not queue.client.keys("veil:attempts:*") + queue.client.keys("veil:turn:*")


def test_a_crash_is_known_within_seconds(hostile_worker, raw, place, wait_until):
    queue, _ = hostile_worker
    queue.report(raw.put(f"{place}a.png", picture((1, 100, 100))))
    source = raw.put(f"{place}b.png", b"OBEY segfault " + picture((2, 100, 100)))
    began = time.monotonic()
    queue.send(source)
    wait_until(lambda: source in queue.dead())
    assert time.monotonic() - began < 10
