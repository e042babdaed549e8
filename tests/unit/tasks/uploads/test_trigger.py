"""The trigger: its filter of events, and the messages that it publishes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed, InvalidRequest, MalformedEvent
from tasks.line_limit import MAX_LINES
from tasks.messages import AnonymizeRequest
from tasks.publishing import Wanted
from tasks.routes import Route, Routes
from tasks.telemetry import metrics
from tasks.uploads.events import Event, Parsed, parse
from tasks.uploads.trigger import (
    MAX_LOGGED_KEY,
    MAX_TRANSACTION_SIZE,
    EventFilter,
    Trigger,
)
from tests.events import (
    ETAG,
    FORMS,
    ODD_BODIES,
    bodies,
    crowds,
    oddly_worded_events,
    record,
    s3_event,
    sns,
)

ROUTES = Routes.parse("s3://raw=s3://clean", "s3://pictures/in=s3://pictures/out")


def choose(*keys, bucket="raw", prefixes=(), suffixes=()):
    events = [Event(bucket, key, ETAG) for key in keys]
    return EventFilter(ROUTES, prefixes, suffixes).choose(events)


def test_only_what_is_in_a_source_of_the_routes_is_wanted():
    events = [
        Event("raw", "a.jpg"),
        Event("pictures", "in/b.jpg"),
        Event("pictures", "out/b.jpg"),
        Event("x", "c.jpg"),
    ]
    chosen = EventFilter(ROUTES).choose(events)
    assert chosen.pictures == [
        Wanted(ObjectUri("raw", "a.jpg")),
        Wanted(ObjectUri("pictures", "in/b.jpg")),
    ]
    assert chosen.ignored == {"outside": 2}


@given(
    key=st.text(st.characters(exclude_categories=["Cs"])),
    folder=st.sampled_from(["", "out/", "out/.veil/", "in"]),
)
def test_an_output_or_a_receipt_never_asks_for_a_picture(key, folder):
    assert choose(folder + key, bucket="pictures").pictures == []
    assert choose(folder + key, bucket="clean").pictures == []


def test_prefixes_and_suffixes_leave_only_what_has_one_of_each():
    keys = ("2026/a.JPG", "2026/b.png", "2025/a.jpg", "2026.jpg", "2024/deep/c.jpeg")
    chosen = choose(*keys, prefixes=["s3://raw/2026", "s3://raw/2024/"], suffixes=[".jpg", ".JPEG"])
    assert [picture.source.key for picture in chosen.pictures] == ["2026/a.JPG", "2024/deep/c.jpeg"]
    assert chosen.ignored == {"filtered": 3}


def test_keys_without_a_suffix_of_their_route_are_left_out():
    raw, clean = PrefixUri.parse("s3://raw"), PrefixUri.parse("s3://clean")
    chosen = EventFilter(Routes((Route(raw, clean, "north", (".jpg",)),))).choose(
        [Event("raw", key) for key in ("a.JPG", "b.png")]
    )
    assert [picture.source.key for picture in chosen.pictures] == ["a.JPG"]
    assert chosen.ignored == {"filtered": 1}


def test_folder_markers_and_empty_keys_are_no_pictures():
    chosen = choose("", "a/", "a//")
    assert (chosen.pictures, chosen.ignored, chosen.refused) == ([], {"folder": 3}, [])


@pytest.mark.parametrize(
    "key", ["../a.jpg", "a/./b.jpg", "a/..", "k" * 1025, "\ud800.jpg", ".veil/receipts/a.jpg"]
)
def test_a_key_that_no_worker_would_take_is_one_line_and_the_others_are_taken(key):
    chosen = choose("a.jpg", key, "b.jpg")
    assert [picture.source.key for picture in chosen.pictures] == ["a.jpg", "b.jpg"]
    assert chosen.ignored == {"refused": 1}
    (line,) = chosen.refused
    assert "\n" not in line
    assert line.encode()


@pytest.mark.parametrize("prefix", ["s3://elsewhere", "s3://pictures", "s3://pictures/out/2026"])
def test_a_prefix_outside_the_sources_is_refused(prefix):
    with pytest.raises(BucketNotAllowed, match=prefix):
        EventFilter(ROUTES, [prefix])


def test_a_prefix_that_is_no_address_is_refused():
    with pytest.raises(InvalidRequest, match="raw/2026"):
        EventFilter(ROUTES, ["raw/2026"])


class Publishes:
    """A publisher that checks that messages can hold the pictures."""

    def __init__(self):
        self.batches = []
        self.along = []

    def publish(self, pictures, queue, also_write=None):
        for picture in pictures:
            assert json.loads(json.dumps(picture.arguments).encode()) == list(picture.arguments)
            assert AnonymizeRequest.parse(source=picture.arguments[0]).source == picture.source
            assert picture.task_id.encode()
        self.batches.append([picture.source.key for picture in pictures])
        self.along.append(also_write)


def trigger(**options):
    return Trigger(Publishes(), EventFilter(ROUTES), "sqs", **options)


def taken(body):
    """Return the keys that a message puts on the queue, or the text of its MalformedEvent."""
    taking = trigger()
    try:
        taking.publish(taking.read(body))
    except MalformedEvent as error:
        return str(error)
    return [key for batch in taking._publisher.batches for key in batch]


@settings(max_examples=400)
@given(body=bodies())
def test_whatever_a_message_holds_it_is_published_or_malformed(body):
    outcome = taken(body)
    assert isinstance(outcome, list) or 0 < len(outcome.encode()) < 1000


@settings(max_examples=300)
@given(message=oddly_worded_events())
def test_whatever_a_text_of_an_event_holds_it_is_published_or_malformed(message):
    for body in (json.dumps(message), json.dumps(sns(message))):
        outcome = taken(body)
        assert isinstance(outcome, list) or 0 < len(outcome.encode()) < 1000


@pytest.mark.parametrize("name", ODD_BODIES)
def test_no_odd_message_is_anything_but_published_or_malformed(name):
    outcome = taken(ODD_BODIES[name])
    assert isinstance(outcome, list) or 0 < len(outcome.encode()) < 1000


@pytest.mark.parametrize(
    "name", [name for name in ODD_BODIES if "the ETag" in name or "an ETag" in name]
)
def test_an_odd_etag_keeps_no_picture_from_the_queue(name):
    assert taken(ODD_BODIES[name]) == ["d/a.jpg"]


@settings(max_examples=100)
@given(message=crowds())
def test_a_record_that_is_not_understood_keeps_its_neighbours_from_nothing(message):
    assert "d/good.jpg" in taken(json.dumps(message))


def test_records_that_are_not_understood_are_counted_and_logged_and_the_others_are_taken():
    bad = [{"eventName": "ObjectCreated:Put"}] * 20
    bad.append({**record("x"), "s3": {"bucket": {"name": "raw"}, "object": {"key": "%ff"}}})
    message = s3_event(record("a.jpg"), *bad, record("../b.jpg"), record("c.jpg"))
    before = _heard("refused")
    taking = trigger()
    with capture_logs() as lines:
        pictures = taking.read(json.dumps(message))
    assert [picture.source.key for picture in pictures] == ["a.jpg", "c.jpg"]
    assert taking.ignored == {"refused": 22}
    assert _heard("refused") - before == 22
    refusals = [line for line in lines if line["event"] == "key refused"]
    (rest,) = [line for line in lines if line["event"] == "more keys refused"]
    assert len(refusals) == MAX_LINES
    assert rest["keys"] == 22 - MAX_LINES
    assert taking.malformed == 0


def test_refused_keys_of_many_messages_are_counted_once_a_minute():
    now = 100.0
    taking = trigger(clock=lambda: now)
    message = json.dumps(s3_event(record("a.jpg"), record("../b.jpg")))
    with capture_logs() as lines:
        for _ in range(100):
            taking.read(message)
    assert [line["event"] for line in lines] == ["key refused"] * MAX_LINES + ["more keys refused"]
    with capture_logs() as lines:
        for seconds in (59, 1):
            now += seconds
            taking.read(message)
    (counted,) = [line["keys"] for line in lines if "keys" in line]
    assert counted == 102 - MAX_LINES - 1


def test_events_off_the_routes_are_named_once_and_counted_once_a_minute():
    now = 100.0
    taking = trigger(clock=lambda: now)
    misrouted = json.dumps(s3_event(record("a.jpg", bucket="camera"), record("b/")))
    deleted = json.dumps(s3_event({"eventName": "ObjectRemoved:Delete"}))
    with capture_logs() as lines:
        assert [taking.read(body) for body in (misrouted, deleted, misrouted)] == [[], [], []]
    first = {line.pop("reason"): line for line in lines}
    level = {"event": "event ignored", "log_level": "info"}
    assert first == {
        "outside": {"check": "VEIL_ROUTES", "bucket": "camera", "key": "a.jpg", **level},
        "folder": {"bucket": "raw", "key": "b/", **level},
        "deleted": level,
    }
    assert len(lines) == 3

    for seconds, expected in ((59, []), (1, [{"outside": 4, "folder": 4, "deleted": 1}]), (59, [])):
        now += seconds
        with capture_logs() as lines:
            taking.read(misrouted)
        assert [line["ignored"] for line in lines if line["event"] == "events ignored"] == expected
        assert len(lines) == len(expected)


def test_a_key_of_any_length_is_logged_in_part():
    with capture_logs() as lines:
        trigger().choose(Parsed(written=[Event("camera", "k" * 100_000)]))
    (line,) = lines
    assert line["key"] == "k" * MAX_LOGGED_KEY


def _heard(result):
    return metrics.EVENTS.labels("sqs", result)._value.get()


def test_a_message_without_a_record_that_is_understood_is_malformed():
    with pytest.raises(MalformedEvent):
        parse(json.dumps(s3_event({"eventName": 1}, {})))


def test_thousands_of_records_go_in_bounded_transactions():
    taking = trigger()
    records = [record(f"{number}.jpg") for number in range(5 * MAX_TRANSACTION_SIZE + 7)]
    taking.publish(taking.read(json.dumps(s3_event(*records))))
    batches = taking._publisher.batches
    assert [len(batch) for batch in batches] == [MAX_TRANSACTION_SIZE] * 5 + [7]
    assert [key for batch in batches for key in batch] == [
        f"{number}.jpg" for number in range(len(records))
    ]


@pytest.mark.parametrize(("count", "batches"), [(0, [0]), (1000, [1000]), (1001, [1000, 1])])
def test_further_writes_are_in_the_last_transaction_only(count, batches):
    taking = trigger()
    pictures = taking.choose(
        Parsed(written=[Event("raw", f"{number}.jpg", ETAG) for number in range(count)])
    )

    def along(pipe):
        pass

    taking.publish(pictures, along=along)
    assert [len(batch) for batch in taking._publisher.batches] == batches
    assert taking._publisher.along == [None] * (len(batches) - 1) + [along]


@pytest.mark.parametrize("key", ["a//b.jpg", "/b.jpg", "a\\b.jpg"])
def test_a_key_that_its_store_takes_for_another_is_refused_where_the_event_tells_the_store(key):
    for form, is_taken in (("seaweedfs", False), ("s3", True), ("event_bridge", True)):
        chosen = EventFilter(ROUTES).choose(parse(json.dumps(FORMS[form](key))).written)
        assert [picture.source.key for picture in chosen.pictures] == [key] * is_taken
        assert chosen.ignored == ({} if is_taken else {"refused": 1})
