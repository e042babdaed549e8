"""`veil watch --poll`: the new objects of a real store since the last poll, each version once."""

import base64
import json
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from urllib.parse import quote, unquote_to_bytes

import pytest
from structlog.testing import capture_logs

from tasks.addresses import PrefixUri
from tasks.errors import AccessDenied, ObjectNotFound, QueueUnavailable
from tasks.publishing import Publisher
from tasks.routes import Routes
from tasks.telemetry import metrics
from tasks.uploads import polling
from tasks.uploads.polling import PROGRESS_KEY, TAKEN_KEY, PollingSource
from tasks.uploads.stopping import Stop
from tasks.uploads.trigger import EventFilter, Trigger
from tools.local.servers import HOST

ROUTES = Routes.parse("s3://raw=s3://clean")
HOUR = 3600.0


@pytest.fixture
def looking(unattended, store, place):
    """A source of events that polls the test's place.

    ``look_once()`` returns the messages that one poll put on each queue.
    """
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(ROUTES, [f"s3://raw/{place}"]), "poll")
    source = PollingSource(store, unattended.client, trigger, 1.0, HOUR)
    source.place = PrefixUri("raw", place)
    source.publisher = publisher
    source.taken = lambda: {
        name: taken(unattended.client, name, place) for name in ("uploads", "backfill")
    }

    def look(stop=None):
        source.poll(source.place, stop or Stop())
        found = source.taken()
        unattended.client.delete("uploads", "backfill")
        return found

    source.look_once = look
    yield source
    publisher.close()


def taken(client, queue, place):
    """Return the keys on a queue, oldest first."""
    messages = [json.loads(message) for message in reversed(client.lrange(queue, 0, -1))]
    addresses = [json.loads(base64.b64decode(message["body"]))[0][0] for message in messages]
    return [address.removeprefix(f"s3://raw/{place}") for address in addresses]


def test_the_first_look_takes_what_is_there_and_later_ones_what_is_new(looking, raw, place):
    for key in ("a.jpg", "d/b c+%20.jpg", "ü.jpg"):
        raw.put(place + key, b"1")
    found = looking.look_once()
    assert (found["uploads"], sorted(found["backfill"])) == (
        [],
        ["a.jpg", "d/b c+%20.jpg", "ü.jpg"],
    )

    assert looking.look_once() == {"uploads": [], "backfill": []}

    raw.put(place + "new.jpg", b"1")
    raw.put(place + "a.jpg", b"2")
    found = looking.look_once()
    assert (sorted(found["uploads"]), found["backfill"]) == (["a.jpg", "new.jpg"], [])
    assert looking.look_once() == {"uploads": [], "backfill": []}


def test_an_empty_place_was_looked_at_too(looking, raw, place):
    assert looking.look_once() == {"uploads": [], "backfill": []}
    raw.put(place + "a.jpg", b"1")
    assert looking.look_once() == {"uploads": ["a.jpg"], "backfill": []}


def test_a_look_that_is_cut_off_goes_on_where_it_was(looking, raw, place, monkeypatch):
    monkeypatch.setattr(polling, "PAGE_SIZE", 3)
    keys = {f"{name}/{number}.jpg" for name in ("a", "a b", "b") for number in range(4)}
    for key in keys:
        raw.put(place + key, b"1")
    publish, calls = looking.publisher.publish, []

    def fail_at_the_third(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 3:
            raise QueueUnavailable("Redis was killed")
        publish(*arguments, **named)

    monkeypatch.setattr(looking.publisher, "publish", fail_at_the_third)
    with pytest.raises(QueueUnavailable):
        looking.poll(looking.place, Stop())
    assert len(looking.taken()["backfill"]) == 6
    looking.poll(looking.place, Stop())

    assert len(looking.taken()["backfill"]) == len(keys)
    assert set(looking.taken()["backfill"]) == keys
    assert looking.taken()["uploads"] == []


def test_a_look_goes_back_behind_the_newest_object_by_the_overlap(looking, raw, place, unattended):
    looking.look_once()
    now = time.time()
    raw.put(place + "a.jpg", b"1")
    unattended.client.hset(PROGRESS_KEY.format(looking.place), "newest", now + HOUR + 60)
    assert looking.look_once()["uploads"] == []
    unattended.client.hset(PROGRESS_KEY.format(looking.place), "newest", now + HOUR - 60)
    assert looking.look_once()["uploads"] == ["a.jpg"]


def test_since_a_time_leaves_out_what_was_there_also_after_a_restart(
    looking, raw, place, unattended, store
):
    for key in ("a.jpg", "b.jpg"):
        raw.put(place + key, b"1")
    modified = raw.head(place + "a.jpg")["LastModified"].timestamp()

    def source_since(since):
        trigger = Trigger(looking.publisher, EventFilter(ROUTES, [f"s3://raw/{place}"]), "poll")
        return PollingSource(store, unattended.client, trigger, 1.0, HOUR, since)

    stopped = Stop()
    stopped.requested = True
    source_since(modified + 2).poll(looking.place, stopped)  # killed in its first listing
    while time.time() < modified + 3:
        time.sleep(0.1)
    raw.put(place + "c.jpg", b"1")
    source_since(modified + 1000).poll(looking.place, Stop())
    assert looking.taken() == {"uploads": [], "backfill": ["c.jpg"]}
    raw.put(place + "a.jpg", b"2")
    assert looking.look_once() == {"uploads": ["a.jpg"], "backfill": ["c.jpg"]}


def test_what_is_remembered_is_what_was_taken_within_the_overlap(looking, raw, place, unattended):
    for number in range(5):
        raw.put(f"{place}{number}.jpg", b"1")
    looking.look_once()
    seen = TAKEN_KEY.format(looking.place)
    assert unattended.client.zcard(seen) == 5
    unattended.client.zadd(seen, {"of two hours ago": time.time() - 2 * HOUR})
    looking.look_once()
    assert unattended.client.zcard(seen) == 5


class Drains(Stop):
    """Take two messages from the queue in place of each pause."""

    def __init__(self, client, queue):
        super().__init__()
        self.client, self.queue, self.pauses, self.most = client, queue, 0, 0

    def wait(self, seconds):
        self.pauses += 1
        self.most = max(self.most, self.client.llen(self.queue))
        self.client.rpop(self.queue, 2)
        return False


def test_a_look_waits_for_room_in_the_queue(looking, raw, place, unattended, monkeypatch):
    monkeypatch.setattr(polling, "PAGE_SIZE", 3)
    monkeypatch.setattr(polling, "MAX_QUEUED_MESSAGES", 4)
    for number in range(20):
        raw.put(f"{place}{number}.jpg", b"1")
    stop = Drains(unattended.client, "backfill")
    looking.poll(looking.place, stop)
    assert stop.pauses > 3
    assert stop.most <= 4 + 3
    assert looking.look_once()["uploads"] == []


class Turns(Stop):
    """Call `step` with the number of each pause, and stop when it returns True."""

    def __init__(self, step):
        super().__init__()
        self.step, self.turns = step, 0

    def wait(self, seconds):
        time.sleep(min(seconds, 0.05))
        self.turns += 1
        self.requested = self.step(self.turns) or self.turns > 200
        return self.requested


def test_a_source_that_is_gone_keeps_no_other_from_being_listed(unattended, s3, store, raw, place):
    gone = f"gone-{place[:-1]}"
    s3.client().create_bucket(Bucket=gone)
    routes = Routes.parse(f"s3://{gone}=s3://clean/gone", f"s3://raw/{place}=s3://clean/{place}")
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(routes), "poll")

    def step(turn):
        if turn == 1:
            s3.client().delete_bucket(Bucket=gone)
        if turn == 20:
            raw.put(place + "new.jpg", b"1")
        return taken(unattended.client, "uploads", place) == ["new.jpg"]

    stop = Turns(step)
    PollingSource(store, unattended.client, trigger, 0.2, HOUR).run(stop)
    publisher.close()
    assert taken(unattended.client, "uploads", place) == ["new.jpg"]
    assert metrics.SOURCE_UP.labels("poll")._value.get() == 0


def test_a_first_look_that_waits_for_room_keeps_no_other_source_waiting(
    unattended, store, raw, place, monkeypatch
):
    monkeypatch.setattr(polling, "PAGE_SIZE", 3)
    monkeypatch.setattr(polling, "MAX_QUEUED_MESSAGES", 4)
    keys = [f"a/{number}.jpg" for number in range(9)]
    for key in keys:
        raw.put(place + key, b"1")
    prefixes = [f"s3://raw/{place}a/", f"s3://raw/{place}b/"]
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(ROUTES, prefixes), "poll")
    archive = []

    def step(turn):
        if turn == 20:
            raw.put(place + "b/new.jpg", b"1")
        if not taken(unattended.client, "uploads", place):
            return False
        archive.extend(taken(unattended.client, "backfill", place))
        unattended.client.delete("backfill")
        return len(archive) >= len(keys)

    PollingSource(store, unattended.client, trigger, 0.2, HOUR).run(Turns(step))
    publisher.close()
    assert taken(unattended.client, "uploads", place) == ["b/new.jpg"]
    assert sorted(archive) == keys


@pytest.mark.parametrize("position", [0, 1])
def test_a_source_that_is_missing_at_the_start_is_listed_once_it_is_there(
    unattended, s3, store, raw, place, position
):
    missing = f"late-{position}-{place[:-1]}"
    routes = [f"s3://raw/{place}=s3://clean/{place}"]
    routes.insert(position, f"s3://{missing}=s3://clean/late")
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(Routes.parse(*routes)), "poll")
    raw.put(place + "before.jpg", b"1")
    since = raw.head(place + "before.jpg")["LastModified"].timestamp() + 1
    ups = []

    def step(turn):
        if turn == 20:
            raw.put(place + "new.jpg", b"1")
        found = taken(unattended.client, "uploads", place)
        if turn > 20 and found and not ups:
            ups.append(metrics.SOURCE_UP.labels("poll")._value.get())
            s3.client().create_bucket(Bucket=missing)
            s3.client().put_object(Bucket=missing, Key="late.jpg", Body=b"1")
        return bool(taken(unattended.client, "backfill", place))

    source = PollingSource(store, unattended.client, trigger, 0.2, HOUR, since)
    with capture_logs() as lines:
        source.run(Turns(step))
    publisher.close()
    assert taken(unattended.client, "uploads", place) == ["new.jpg"]
    assert taken(unattended.client, "backfill", place) == [f"s3://{missing}/late.jpg"]
    assert ups == [0]
    assert metrics.SOURCE_UP.labels("poll")._value.get() == 1
    told = [(line["event"], line["server"], line["place"]) for line in lines if "place" in line]
    assert told == [("away", "s3", f"s3://{missing}/"), ("back", "s3", f"s3://{missing}/")]
    (away,) = [line for line in lines if line["event"] == "away"]
    assert (away["error"], missing in away["message"]) == ("ObjectNotFound", True)


def test_a_start_ends_if_somebody_must_act_for_every_source(unattended, store):
    routes = Routes.parse("s3://absent=s3://clean/1", "s3://lacking=s3://clean/2")
    trigger = Trigger(Publisher(unattended.app), EventFilter(routes), "poll")
    source = PollingSource(store, unattended.client, trigger, 1.0, HOUR)
    with capture_logs() as lines, pytest.raises(ObjectNotFound, match="lacking"):
        source.run(Stop())
    assert [line["place"] for line in lines if line["event"] == "away"] == ["s3://absent/"]


class AwayForATime:
    """A store that denies the listing of a bucket until it `is_allowed`."""

    def __init__(self, store, bucket):
        self.store, self.bucket, self.is_allowed, self.tries = store, bucket, False, []

    def list(self, bucket, *arguments):
        if bucket == self.bucket and not self.is_allowed:
            self.tries.append(time.monotonic())
            raise AccessDenied(f"s3://{bucket}/: not allowed")
        return self.store.list(bucket, *arguments)


def test_a_source_that_is_denied_is_tried_with_growing_pauses_however_short_the_interval_is(
    unattended, store, place
):
    routes = Routes.parse(f"s3://clean/{place}=s3://raw/1", f"s3://raw/{place}=s3://clean/2")
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(routes), "poll")
    denying = AwayForATime(store, "clean")
    ends = time.monotonic() + 4
    source = PollingSource(denying, unattended.client, trigger, 0.05, HOUR)
    source.run(Turns(lambda _: time.monotonic() > ends))
    publisher.close()
    pauses = [later - earlier for earlier, later in pairwise(denying.tries)]
    assert 3 <= len(pauses) <= 6
    assert pauses[-1] > 4 * pauses[0]


def test_since_counts_from_the_start_also_for_a_source_that_is_denied_then(
    unattended, store, raw, place
):
    raw.put(place + "before.jpg", b"1")
    since = raw.head(place + "before.jpg")["LastModified"].timestamp() + 1
    routes = Routes.parse(f"s3://clean/{place}=s3://raw/1", f"s3://raw/{place}=s3://clean/2")
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(routes), "poll")
    denying = AwayForATime(store, "raw")

    def step(_):
        if not denying.is_allowed and time.time() > since:
            raw.put(place + "while-denied.jpg", b"1")
            while time.time() < since + 2:
                time.sleep(0.1)
            denying.is_allowed = True
        return bool(taken(unattended.client, "backfill", place))

    PollingSource(denying, unattended.client, trigger, 0.2, HOUR, since).run(Turns(step))
    publisher.close()
    assert taken(unattended.client, "backfill", place) == ["while-denied.jpg"]


def test_an_outage_of_redis_is_one_pair_of_lines_for_all_sources(unattended, store, place):
    routes = Routes.parse(f"s3://raw/{place}a/=s3://clean/1", f"s3://raw/{place}b/=s3://clean/2")
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(routes), "poll")
    publish, until = trigger.publish, time.monotonic() + 1

    def fail_for_a_time(*arguments):
        if time.monotonic() < until:
            raise QueueUnavailable("Redis is full")
        publish(*arguments)

    trigger.publish = fail_for_a_time
    with capture_logs() as lines:
        source = PollingSource(store, unattended.client, trigger, 0.2, HOUR)
        source.run(Turns(lambda _: time.monotonic() > until + 1.5))
    publisher.close()
    told = [(line["event"], line["server"]) for line in lines if "server" in line]
    assert told == [("away", "redis"), ("back", "redis")]


def test_the_command_finds_uploads_until_told_to_stop(
    unattended, start_watch, s3, raw, place, wait_until
):
    settings = {**unattended.environment, **s3.environment()}
    raw.put(place + "before.jpg", b"1")
    raw.put(place + "before.txt", b"1")
    arguments = ("--poll", 1, "--prefix", f"s3://raw/{place}", "--suffix", ".jpg")
    with start_watch(*arguments, environment=settings) as trigger:
        wait_until(lambda: taken(unattended.client, "backfill", place) == ["before.jpg"])
        raw.put(place + "since.jpg", b"1")
        wait_until(lambda: taken(unattended.client, "uploads", place) == ["since.jpg"])
        trigger.server.process.terminate()
        assert trigger.server.process.wait(15) == 0
        assert trigger.lines("stopped")[0]["queued"] == 2


ODD_KEYS = [
    "%FF%FE.jpg",
    "%ED%A0%80.jpg",
    "%00.jpg",
    "%0A%0D.jpg",
    "%E2%80%AE.jpg",
    "../up.jpg",
    "long" * 300 + ".jpg",
]


class Listing(BaseHTTPRequestHandler):
    """A store that lists `keys`, percent-encoded and in the order of their bytes.

    Real stores keep no such keys.
    """

    keys: list
    modified = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def do_GET(self):
        after = unquote_to_bytes(self.path.partition("start-after=")[2].partition("&")[0])
        contents = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{self.modified}</LastModified>"
            "<ETag>&quot;\u0085&quot;</ETag><Size>1</Size></Contents>"
            for key in self.keys
            if unquote_to_bytes(key) > after
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
            "<EncodingType>url</EncodingType>"
            f"<IsTruncated>false</IsTruncated><KeyCount>1</KeyCount>{contents}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_keys_that_no_message_can_hold_keep_a_look_and_their_neighbours_from_nothing(
    unattended, s3, store_at, monkeypatch, page
):
    monkeypatch.setattr(polling, "PAGE_SIZE", page)
    good = [f"{name}.jpg" for name in ("0", "a", "ü", "z")]
    keys = sorted([*ODD_KEYS, *map(quote, good)], key=unquote_to_bytes)
    server = ThreadingHTTPServer((HOST, 0), type("Odd", (Listing,), {"keys": keys}))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    publisher = Publisher(unattended.app)
    trigger = Trigger(publisher, EventFilter(ROUTES), "poll")
    store = store_at(s3, f"http://{HOST}:{server.server_port}")
    try:
        source = PollingSource(store, unattended.client, trigger, 1.0, HOUR)
        for _ in range(2):
            source.poll(PrefixUri("raw", ""), Stop())
    finally:
        publisher.close()
        server.shutdown()
        serving.join()
        server.server_close()
    found = taken(unattended.client, "backfill", "")
    assert set(good) <= {address.removeprefix("s3://raw/") for address in found}
    assert len(found) == len(set(found)), "the second look takes none of them again"
    assert not any(".." in address or len(address) > 1100 for address in found)
    assert taken(unattended.client, "uploads", "") == []
    assert trigger.ignored["refused"] > 0


def test_a_look_may_be_cut_off_behind_any_key(unattended, place):
    progress = polling.Progress(newest=1.0, begun=2.0, so_far=3.0, after="\ud800\n\0ü")
    progress.write(unattended.client, PrefixUri("raw", place))
    assert polling.Progress.read(unattended.client, PrefixUri("raw", place)) == progress


def test_redis_away_at_the_start_is_an_outage_and_not_the_end(
    redis_server, start_watch, s3, quiet_port, place, wait_until
):
    settings = {**s3.environment(), "VEIL_REDIS_URL": f"redis://127.0.0.1:{quiet_port}/0"}
    with start_watch("--poll", 1, "--prefix", f"s3://raw/{place}", environment=settings) as trigger:
        wait_until(lambda: trigger.lines("away"))
        trigger.server.process.terminate()
        assert trigger.server.process.wait(15) == 0
