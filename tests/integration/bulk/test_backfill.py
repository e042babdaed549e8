"""Backfill runs on a real queue and store: every key is enqueued once, despite kills and cuts."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.bulk import backfill, runs
from tasks.bulk.backfill import Backfill, Selection
from tasks.bulk.places import Places
from tasks.errors import RunTakenOver
from tasks.messages import BACKFILL, RUN_HEADER
from tasks.publishing import Publisher, Wanted
from tasks.routes import Routes
from tasks.settings import Settings
from tools.local.servers import HOST, start_redis

ROUTES = Routes.parse("s3://raw=s3://clean")
# Keys whose order differs between stores, and a key that is also the name of a folder.
AWKWARD = (
    "a/x",
    "a.jpg",
    "a",
    "a b.jpg",
    "a/b/c",
    "a/x/y",
    "a+/z",
    "a-/z",
    "a%2F.jpg",
    "ü/1",
    "ü.jpg",
    "z",
    "a!/k",
)


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(backfill, "PAGE", 3)


@pytest.fixture
def start(unattended, store, place):
    """``start(…)`` returns a Backfill in this process, for the run of the test's place."""

    def make(app=unattended.app, store=store, selection=None, recipe=None, **options):
        options = {"low_water": 500, "high_water": 1000, "tell": lambda line: None, **options}
        places = Places.find(f"s3://raw/{place}", None, ROUTES)
        return Backfill(app, store, places, selection or Selection(), recipe, **options)

    return make


@pytest.fixture
def keys(raw, place):
    for key in AWKWARD:
        raw.put(place + key, b"no picture")
    return {place + key for key in AWKWARD}


def run_through(started, restart=False):
    """Process all pages, and return the run at its end."""
    begun = started.begin(restart)
    return [begun, *started.pages(begun)][-1]


def enqueued(redis):
    """Return how often each source is on the queue."""
    messages = [json.loads(message) for message in redis.lrange(BACKFILL, 0, -1)]
    sources = [message["headers"]["argsrepr"].removeprefix("s3://raw/") for message in messages]
    return Counter(sources)


def once(keys):
    return Counter(dict.fromkeys(keys, 1))


def test_everything_is_put_on_the_queue_once_and_names_its_run(unattended, start, keys):
    started = start()

    run = run_through(started)

    assert enqueued(unattended.client) == once(keys)
    assert (run.state, run.listed, run.skipped, run.enqueued) == (
        "finished",
        len(keys),
        0,
        len(keys),
    )
    assert run.source_bytes == len(keys) * len(b"no picture")
    messages = [json.loads(message) for message in unattended.client.lrange(BACKFILL, 0, -1)]
    assert {message["headers"][RUN_HEADER] for message in messages} == {run.name}
    assert runs.read(unattended.client, run.name) == run
    assert 0 < unattended.client.ttl(f"veil:run:{run.name}") <= runs.SECONDS_KEPT
    assert runs.names(unattended.client) == [run.name]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_process_that_dies_after_any_page_is_followed_by_one_that_goes_on_there(
    unattended, start, keys, monkeypatch, size
):
    monkeypatch.setattr(backfill, "PAGE", size)
    for _ in range(len(keys) + 2):
        started = start()
        run = started.begin()
        run = next(started.pages(run), run)

    assert run.state == "finished"
    assert enqueued(unattended.client) == once(keys)


def test_the_process_that_began_last_has_the_run(unattended, start, keys, small_pages):
    first, second = start(), start()
    earlier = first.pages(first.begin())
    next(earlier)

    later = second.pages(second.begin())
    next(later)
    with pytest.raises(RunTakenOver, match=first.name):
        next(earlier)
    first.stop()

    assert [run.state for run in later][-1] == "finished"
    assert enqueued(unattended.client) == once(keys)


def test_where_redis_loses_its_last_second_messages_and_checkpoint_are_lost_and_made_together(
    unattended, start, keys, small_pages
):
    client = unattended.client
    started = start()
    pages = started.pages(started.begin())
    next(pages)
    kept = {key: client.dump(key) for key in (BACKFILL, f"veil:run:{started.name}")}
    next(pages)
    next(pages)
    for key, content in kept.items():
        client.restore(key, 0, content, replace=True)

    for _ in pages:
        pass

    assert enqueued(unattended.client) == once(keys)


def test_where_redis_loses_everything_the_run_begins_anew(unattended, start, keys, small_pages):
    started = start()
    pages = started.pages(started.begin())
    next(pages)
    unattended.client.flushdb()

    *_, run = pages

    assert (run.state, run.listed) == ("finished", len(keys))
    assert enqueued(unattended.client) == once(keys)


@pytest.mark.parametrize("answered", [1500, 2000, 2700])
def test_connections_to_redis_that_are_cut_again_and_again_double_nothing(
    unattended, start, keys, monkeypatch, new_line, answered
):
    """The answer that says whether a page was taken is cut off, so the checkpoint must tell it."""
    monkeypatch.setattr(backfill, "PAGE", 1)
    line = new_line((HOST, unattended.redis.port))
    line.cut = True
    line.download = answered
    url = line.endpoint.replace("http", "redis") + f"/{unattended.database}"
    app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
    told = []
    started = start(app, tell=told.append, sleep=lambda seconds: None)
    for _ in range(50):  # `begin` makes one try only.
        try:
            run = started.begin()
            break
        except backfill.QueueUnavailable:
            app.backend.client.connection_pool.disconnect()

    *_, run = started.pages(run)

    assert run.state == "finished"
    assert enqueued(unattended.client) == once(keys)
    assert sum(line.startswith("goes on after") for line in told) > 1


def test_a_full_redis_is_waited_for(unattended, start, raw, place):
    for number in range(40):
        raw.put(f"{place}{number}", b"no picture")
    pauses, told = [], []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            unattended.client.config_set("maxmemory", 0)

    started = start(tell=told.append, sleep=sleep)
    run = started.begin()
    unattended.client.config_set("maxmemory", "1mb")
    try:
        *_, run = started.pages(run)
    finally:
        unattended.client.config_set("maxmemory", 0)

    assert (run.state, run.enqueued) == ("finished", 40)
    assert sum(enqueued(unattended.client).values()) == 40
    assert pauses == sorted(pauses)
    refused, goes_on = told
    assert "Redis is full" in refused
    assert goes_on.startswith("goes on after")


def test_a_store_that_is_away_is_waited_for_and_nothing_is_left_out(
    unattended, start, keys, small_pages, store_at, s3, line
):
    told = []

    def sleep(seconds):
        line.download = None

    started = start(store=store_at(s3, line.endpoint), tell=told.append, sleep=sleep)
    line.cut, line.download = True, 200
    *_, run = started.pages(started.begin())

    assert run.state == "finished"
    assert enqueued(unattended.client) == once(keys)
    away, goes_on = told
    assert away.startswith("StorageUnavailable")
    assert goes_on.startswith("goes on after")


def test_the_queue_is_kept_between_the_water_marks(unattended, start, raw, place):
    for number in range(60):
        raw.put(f"{place}{number}", b"no picture")
    depths = []

    def sleep(seconds):
        """Let the workers take three messages in each pause."""
        depths.append(unattended.client.llen(BACKFILL))
        unattended.client.rpop(BACKFILL, 3)

    started = start(low_water=5, high_water=20, sleep=sleep)
    enqueued_at = {run.enqueued: len(depths) for run in started.pages(started.begin())}

    assert max(depths) == 20
    # It fills the queue, and fills it again whenever 5 or fewer are left.
    assert list(enqueued_at)[:3] == [20, 35, 50]
    assert list(enqueued_at)[-1] == 60


def test_more_than_the_rate_is_not_put_on_the_queue(unattended, start, raw, place):
    for number in range(20):
        raw.put(f"{place}{number}", b"no picture")

    class Clock:
        """A clock that moves only with sleeps."""

        seconds = 0.0

        def sleep(self, seconds):
            self.seconds += seconds

    clock = Clock()
    started = start(max_rate=2.5, clock=lambda: clock.seconds, sleep=clock.sleep)
    seen = {}
    for run in started.pages(started.begin()):
        seen.setdefault(run.enqueued, clock.seconds)

    assert sum(enqueued(unattended.client).values()) == 20
    assert all(count <= 3 + 2.5 * seconds for count, seconds in seen.items())
    assert max(seen.values()) == pytest.approx(20 / 2.5, abs=1.3)


def test_a_limit_holds_over_restarts(unattended, start, keys, small_pages):
    selection = Selection(limit=7)
    started = start(selection=selection)
    next(started.pages(started.begin()))

    run = run_through(start(selection=selection))

    assert (run.state, run.enqueued) == ("finished", 7)
    assert len(enqueued(unattended.client)) == 7


def test_only_what_was_modified_in_time_and_ends_as_asked_is_wanted(unattended, start, raw, place):
    keys = [place + name for name in ("1.JPG", "2.png", "3.txt")]
    times = []
    for key in keys:
        raw.put(key, b"no picture")
        times.append(raw.head(key)["LastModified"])
        time.sleep(1.1)

    def wanted(**selection):
        unattended.client.flushdb()
        run = run_through(start(selection=Selection(**selection)))
        assert run.ignored == 3 - run.enqueued
        return sorted(enqueued(unattended.client))

    assert wanted(since=times[1]) == keys[1:]
    assert wanted(until=times[1]) == keys[:1]
    assert wanted(since=datetime(2100, 1, 1, tzinfo=UTC)) == []
    assert wanted(suffixes=(".jpg", ".png")) == keys[:2]


def test_a_run_whose_messages_wait_is_not_begun_again(unattended, start, keys):
    run_through(start())
    told = []

    run = run_through(start(tell=told.append))

    assert run.state == "finished"
    assert enqueued(unattended.client) == once(keys)
    (line,) = told
    assert "--restart" in line


def test_a_run_that_is_through_is_another_pass_when_it_is_begun_again(unattended, start, keys):
    run_through(start())
    unattended.client.delete(BACKFILL)

    assert run_through(start()).enqueued == len(keys)
    assert enqueued(unattended.client) == once(keys)


def test_restart_remembers_nothing(unattended, start, keys, small_pages):
    started = start()
    next(started.pages(started.begin()))
    unattended.client.delete(BACKFILL)

    assert run_through(start(), restart=True).listed == len(keys)
    assert enqueued(unattended.client) == once(keys)


def test_another_recipe_than_that_of_the_checkpoint_begins_anew(
    unattended, start, keys, small_pages
):
    started = start(recipe="1" * 16)
    next(started.pages(started.begin()))
    unattended.client.delete(BACKFILL)
    told = []

    run = run_through(start(recipe="2" * 16, tell=told.append))

    assert (run.recipe, run.listed) == ("2" * 16, len(keys))
    assert enqueued(unattended.client) == once(keys)
    assert "begins anew" in told[0]


def test_a_run_is_through_when_none_of_its_messages_waits_or_is_in_hand(unattended, start, keys):
    client = unattended.client
    run = run_through(start())
    assert not runs.is_through(client, run)

    (message,) = client.lrange(BACKFILL, 0, 0)
    client.delete(BACKFILL)
    client.hset("unacked", "tag", json.dumps([json.loads(message), "", BACKFILL]))
    assert not runs.is_through(client, run)

    client.delete("unacked")
    Publisher(unattended.app).publish([Wanted(ObjectUri("raw", "of-another-run.jpg"))], BACKFILL)
    assert runs.is_through(client, run)


def test_a_rehearsal_counts_and_writes_nothing(unattended, store, keys, place, small_pages):
    places = Places.find(f"s3://raw/{place}", None, ROUTES)

    selection = Selection(limit=5)
    *_, run = backfill.rehearse(
        store, places, selection, backfill.new_run(places, selection, recipe="")
    )

    assert (run.state, run.enqueued) == ("finished", 5)
    assert unattended.client.keys("*") == []


def test_a_rehearsal_goes_on_where_the_run_would(unattended, start, keys, small_pages):
    started = start()
    run = started.begin()
    next(started.pages(run))
    stored = runs.read(unattended.client, run.name)
    first, *_, last = start().rehearse()

    assert 0 < first.enqueued == stored.enqueued < len(keys)
    assert (last.state, last.enqueued, last.listed) == ("finished", len(keys), len(keys))
    assert runs.read(unattended.client, run.name) == stored
    assert len(enqueued(unattended.client)) == stored.enqueued
    first, *_ = start().rehearse(restart=True)
    assert first.listed == 0


def test_a_redis_that_is_killed_and_comes_back_gets_every_key_once(
    store, raw, place, start, tmp_path, wait_until
):
    redis = start_redis(tmp_path / "redis")
    try:
        for number in range(200):
            raw.put(f"{place}{number}", b"no picture")
        app = create_app(Settings(redis_url=redis.url, redis_password=redis.password))
        told = []
        started = start(app, max_rate=50, tell=told.append)
        with ThreadPoolExecutor(1) as pool:
            pages = pool.submit(lambda: list(started.pages(started.begin())))
            wait_until(lambda: redis.client().llen(BACKFILL) > 80)
            redis.server.kill()
            time.sleep(0.5)
            redis.server.start()
            *_, run = pages.result(60)

        assert (run.state, run.enqueued) == ("finished", 200)
        assert enqueued(redis.client()) == once(f"{place}{number}" for number in range(200))
        away, goes_on = told
        assert away.startswith("QueueUnavailable")
        assert goes_on.startswith("goes on after")
    finally:
        redis.server.stop()
