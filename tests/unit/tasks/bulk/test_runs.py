"""Runs: their bytes in Redis, which earlier and later versions read."""

import time
from dataclasses import replace

import pytest
from redis import Redis

from tasks.bulk import runs
from tasks.bulk.runs import Run

# A run as version 0.2.0 stored it: the answer to HGETALL veil:run:raw-2026-4fa2b7c1.
STORED = {
    b"name": b"raw-2026-4fa2b7c1",
    b"source": b"s3://raw/2026/",
    b"destination": b"s3://clean/2026/",
    b"selection": b'{"since": null, "until": null, "suffixes": [], "limit": null}',
    b"recipe": b"5a38d4c65c2c5ab0",
    b"owner": b"0b5f1c0e5f9d4f0f8a6c2d1e3b4a5968",
    b"state": b"running",
    b"cursor": b"d/\xc3\xbc 1.jpg",
    b"listed": b"1000",
    b"ignored": b"10",
    b"skipped": b"40",
    b"enqueued": b"950",
    b"source_bytes": b"123456789012",
    b"started": b"1764400000.25",
    b"updated": b"1764400012.7",
}
RUN = Run(
    name="raw-2026-4fa2b7c1",
    source="s3://raw/2026/",
    destination="s3://clean/2026/",
    selection='{"since": null, "until": null, "suffixes": [], "limit": null}',
    recipe="5a38d4c65c2c5ab0",
    owner="0b5f1c0e5f9d4f0f8a6c2d1e3b4a5968",
    state="running",
    cursor="d/ü 1.jpg",
    listed=1000,
    ignored=10,
    skipped=40,
    enqueued=950,
    source_bytes=123456789012,
    started=1764400000.25,
    updated=1764400012.7,
)


class Hash:
    """A Redis with one hash, which redis-py encodes."""

    def __init__(self, stored=None):
        self.stored = stored or {}

    def hgetall(self, key):
        return self.stored

    def hset(self, key, mapping):
        encode = Redis().get_encoder().encode
        self.stored = {encode(name): encode(value) for name, value in mapping.items()}

    def expire(self, key, seconds):
        pass

    def zadd(self, key, times):
        self.running = times

    def zrem(self, key, name):
        self.running = {}


def test_a_run_is_stored_and_read_in_the_same_bytes_as_by_earlier_versions():
    redis = Hash()
    runs.write(redis, RUN)
    assert redis.stored == STORED
    runs.write(redis, replace(RUN, state="running"))
    assert redis.running == {RUN.name: RUN.updated}
    runs.write(redis, replace(RUN, state="stopped"))
    assert redis.running == {}
    assert runs.read(Hash(STORED), RUN.name) == RUN
    assert runs.read_leniently(Hash(STORED), RUN.name) == RUN


@pytest.mark.parametrize("name", STORED)
def test_a_run_without_one_of_its_fields_is_only_read_leniently(name):
    stored = {other: value for other, value in STORED.items() if other != name}
    default = Run.__dataclass_fields__[name.decode()].default
    assert runs.read(Hash(stored), RUN.name) is None
    assert runs.read_leniently(Hash(stored), RUN.name) == replace(RUN, **{name.decode(): default})


def test_a_field_that_is_unreadable_is_as_if_it_were_missing():
    damaged = Hash({**STORED, b"enqueued": b"many", b"started": b"", b"later": b"field"})
    assert runs.read(damaged, RUN.name) is None
    expected = replace(RUN, enqueued=0, started=0.0)
    assert runs.read_leniently(damaged, RUN.name) == expected


def test_a_field_of_a_later_version_is_ignored():
    assert runs.read(Hash({**STORED, b"later": b"field"}), RUN.name) == RUN


def test_a_run_that_is_not_stored_is_none():
    assert runs.read(Hash(), RUN.name) is None
    assert runs.read_leniently(Hash(), RUN.name) is None


class Life:
    """A Redis in which the last sign of life of every run is `seconds` old; None for no sign."""

    def __init__(self, seconds):
        self.seconds = seconds

    def pttl(self, key):
        return -2 if self.seconds is None else int(1000 * (runs.SECONDS_KEPT - self.seconds))


@pytest.mark.parametrize(
    ("state", "seconds", "is_abandoned"),
    [
        ("running", 2 * runs.BEAT_SECONDS, False),
        ("running", 3600, True),
        ("running", None, False),
        ("stopped", 3600, False),
        ("finished", 3600, False),
    ],
)
def test_a_running_run_without_a_sign_of_life_is_abandoned(state, seconds, is_abandoned):
    since = runs.abandoned_since(Life(seconds), RUN.name, state)
    assert (since is not None) == is_abandoned
    if is_abandoned:
        assert since == pytest.approx(time.time() - seconds, abs=5)
