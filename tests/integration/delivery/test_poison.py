"""A picture that kills its workers ends as one dead letter, and the other pictures as outputs.

``POISON=20 PICTURES=200`` is the long form.
"""

import hashlib
import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from tasks.delivery.attempts import ATTEMPTS_KEY
from tests.integration.poison_worker import BLUE, FACE, GREEN, RED
from tools.chaos.supervised import Supervised
from tools.local.servers import Server

ROOT = Path(__file__).resolve().parents[3]
POISON = int(os.environ.get("POISON", "3"))
PICTURES = int(os.environ.get("PICTURES", "30"))
MEMORY = 3 << 30  # Bytes of addresses, most of which are never used.
KINDS = {RED: "segfault", GREEN: "memory", BLUE: "hang"}
SECONDS = 60 + 15 * POISON


def picture(colour):
    target = io.BytesIO()
    image = Image.new("RGB", (64, 64), colour)
    if colour not in KINDS:
        image.paste((250, 220, 200), FACE)
    image.save(target, "PNG")
    return target.getvalue()


@pytest.fixture
def poisoned(new_queue, worker_settings, tmp_path):
    """A queue of its own and two supervised workers; `place` has their pictures in folders."""
    queue = new_queue()
    environment = {
        **worker_settings(queue),
        "VEIL_SCALES": "64",
        "VEIL_DETECT_SECONDS": "3",
        "VEIL_LEASE_SECONDS": "2",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, Path(__file__).parents[1] / "poison_worker.py", f"--memory={MEMORY}"]
    workers = [
        Supervised(Server(f"worker-{number}", command, tmp_path / f"{number}.log", environment))
        for number in (1, 2)
    ]
    for worker in workers:
        worker.start()
    yield queue, workers
    for worker in workers:
        worker.stop()


@pytest.mark.timeout(SECONDS + 60)
def test_poison_ends_as_dead_letters_and_its_neighbours_as_outputs(
    poisoned, raw, clean, place, wait_until
):
    queue, workers = poisoned
    keys = {}
    for number in range(PICTURES):
        is_poison = number % (PICTURES // POISON) == 3
        colour = (
            list(KINDS)[len(keys) // (PICTURES // POISON) % 3] if is_poison else (number, 100, 100)
        )
        key = f"{place}{number:03}-{KINDS.get(colour, 'good')}.png"
        keys[key] = colour
        raw.put(key, picture(colour))
    for key in keys:
        queue.send(raw.uri(key))
    poison = {key for key, colour in keys.items() if colour in KINDS}
    assert len(poison) == POISON

    wait_until(lambda: len(queue.dead()) + len(clean.keys(place)) >= PICTURES, SECONDS)
    wait_until(lambda: not queue.client.llen("uploads") and not queue.client.hlen("unacked"), 30)

    dead = queue.dead()
    assert set(dead) == {raw.uri(key) for key in poison}
    assert set(clean.keys(place)) == set(keys) - poison
    for key in poison:
        letter = dead[raw.uri(key)]
        assert letter.error == "Poison"
        assert "3 times" in letter.message
        # Other tries may have waited in vain for a detector that another picture held up.
        assert letter.attempts >= 3
        assert letter.first_time < letter.time
        assert letter.worker
        if keys[key] != RED:  # Red ends the process before it can write a line.
            assert {GREEN: "MemoryError", BLUE: "stalled"}[keys[key]] in letter.last_error
    for key in set(keys) - poison:
        assert clean.open(key).getpixel((32, 20))[2] < 180, "the face is hidden"
    wait_until(lambda: all(worker.alive for worker in workers))
    assert not queue.client.keys("veil:attempts:*") + queue.client.keys("veil:turn:*")


@pytest.mark.parametrize("is_done", [True, False], ids=["done", "not done"])
def test_what_was_killed_after_it_was_done_is_no_poison(
    worker, queue, raw, clean, portrait, place, is_done
):
    source = raw.put(f"{place}a.jpg", portrait)
    if is_done:
        queue.report(source)
    digest = hashlib.sha256(clean.uri(f"{place}a.jpg").encode()).hexdigest()[:32]
    for number in range(3):
        note = json.dumps({"worker": "celery@gone", "pid": number, "time": float(number)})
        queue.client.hset(ATTEMPTS_KEY.format(digest), f"tag-{number}", note)

    state, answer = queue.outcome(queue.send(source))

    assert (state, type(answer).__name__) == (
        ("SUCCESS", "dict") if is_done else ("FAILURE", "Poison")
    )
    assert (source in queue.dead()) is not is_done
    assert (clean.head(f"{place}a.jpg") is not None) is is_done
    assert not queue.client.exists(ATTEMPTS_KEY.format(digest))
