"""What the events of object stores say, in every form that they come in, and which of them ask for a picture."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tasks import metrics
from tasks.addresses import ObjectUri
from tasks.errors import BucketNotAllowed, InvalidRequest, MalformedEvent
from tasks.messages import AnonymizeRequest
from tasks.publishing import Wanted
from tasks.routes import Route
from tasks.uploads.events import Event, Parsed, parse
from tasks.uploads.trigger import MOST_AT_ONCE, MOST_REFUSALS_LOGGED, Selection, Trigger
from tests.events import (
    ETAG,
    FORMS,
    JSON,
    ODD_BODIES,
    bodies,
    broken_events,
    crowds,
    entry,
    event_bridge,
    filer,
    oddly_worded_events,
    record,
    s3_event,
    sns,
)

ODD_KEYS = ["a b.jpg", "a+b.jpg", "100%.jpg", "a%20b.jpg", "ü/日本/😀.jpg", "a&b=c;d.jpg", "k" * 1020 + ".jpg"]
ROUTES = [Route.parse("s3://raw=s3://clean"), Route.parse("s3://pictures/in=s3://pictures/out")]


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("form", FORMS)
def test_a_key_comes_out_of_every_form_as_it_is_in_the_store(form, key):
    parsed = parse(json.dumps(FORMS[form](key)).encode())
    assert parsed.written == [Event("raw", key, ETAG)]
    assert not parsed.ignored


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30)
@given(key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda key: key[-1] != "/"))
def test_no_key_is_changed_on_the_way(form, key):
    assert [event.key for event in parse(json.dumps(FORMS[form](key))).written] == [key]


def test_a_message_may_tell_of_many_objects_and_of_other_things():
    parsed = parse(
        json.dumps(
            s3_event(
                record("a.jpg"),
                record("b.jpg", "ObjectCreated:CompleteMultipartUpload", eTag=f"{ETAG}-2"),
                record("c.jpg", "ObjectCreated:Copy", eTag=None),
                record("d.jpg", "s3:ObjectCreated:Post", eTag=f'"{ETAG}"'),
                record("e.jpg", "ObjectRemoved:Delete"),
                record("f.jpg", "LifecycleExpiration:Delete"),
                record("g.jpg", "ObjectTagging:Put"),
                record("h.jpg", "s3:ObjectCreated:PutTagging"),
            )
        )
    )
    assert parsed.written == [
        Event("raw", "a.jpg", ETAG),
        Event("raw", "b.jpg", f"{ETAG}-2"),
        Event("raw", "c.jpg", None),
        Event("raw", "d.jpg", ETAG),
    ]
    assert parsed.ignored == {"deleted": 2, "other": 1, "metadata": 1}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "raw"}, "test"),
        (sns({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "raw"}), "test"),
        (event_bridge("a.jpg", "Object Deleted"), "deleted"),
        (event_bridge("a.jpg", "Object Tags Added"), "other"),
        (filer("/buckets/raw/a.jpg", before=entry("a.jpg"), event_type="delete"), "deleted"),
        (filer("/buckets/raw/d", after=entry("d", is_directory=True)), "folder"),
        (filer("/buckets/raw/.uploads/1_2/0001_3.part", after=entry("0001_3.part")), "part"),
        (filer("/etc/iam/identity.json", after=entry("identity.json")), "outside"),
        (filer("/buckets/raw/a.jpg", entry("a.jpg"), entry("a.jpg", extended={"X-Amz-Tagging-k": "dg=="})), "metadata"),
        (
            filer(
                "/buckets/raw/a.jpg.versions/v_0a",
                after=entry("v_0a", extended={"Seaweed-X-Amz-Delete-Marker": "dHJ1ZQ=="}),
            ),
            "deleted",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_writes_no_object_is_counted_and_nothing_more(message, reason):
    parsed = parse(json.dumps(message))
    assert parsed.written == []
    assert parsed.ignored == {reason: 1}


def test_seaweedfs_tells_of_new_content_of_renames_and_of_versions():
    def keys(message):
        return [event.key for event in parse(json.dumps(message)).written]

    path = "/buckets/raw/d/a.jpg"
    assert keys(filer(path, entry("a.jpg"), entry("a.jpg", written=2), "update")) == ["d/a.jpg"]
    assert keys(filer(path, entry("a.jpg"), entry("b.jpg"), "rename", "/buckets/raw/e")) == ["e/b.jpg"]
    assert keys(filer(path, entry("a.jpg"), entry("a.jpg"), "rename", "/buckets/raw/e")) == ["e/a.jpg"]
    assert keys(filer("/buckets/raw/a.jpg.versions/v_0a1f", after=entry("v_0a1f"))) == ["a.jpg"]
    assert keys(filer("/buckets/raw/a.versions/v_x.jpg", after=entry("v_x.jpg"))) == ["a.versions/v_x.jpg"]
    without_parent = filer(path, after=entry("a.jpg"))
    del without_parent["message"]["new_parent_path"]
    assert keys(without_parent) == ["d/a.jpg"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"hello",
        b"[]",
        b"null",
        b"{}",
        b'"text"',
        b"[" * 100_000,
        b'{"Records": {}}',
        b'{"Records": [1]}',
        b'{"Records": [{}]}',
        b'{"Records": [{"eventName": 1}]}',
        b'{"Records": [{"eventName": "ObjectCreated:Put"}]}',
        b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": 1}}}]}',
        b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {}, "object": {"key": "a"}}}]}',
        b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": "%ff"}}}]}',
        b'{"Type": "Notification", "Message": "not JSON"}',
        b'{"Type": "Notification", "Message": {}}',
        b'{"Type": "SubscriptionConfirmation", "SubscribeURL": "http://x"}',
        b'{"source": "aws.s3", "detail-type": "Object Created", "detail": []}',
        b'{"source": "aws.ec2", "detail-type": "EC2 Instance State-change Notification", "detail": {}}',
        b'{"event_type": "create", "key": 1, "message": {}}',
        b'{"event_type": "create", "key": "/buckets/raw/a", "message": []}',
        b'{"event_type": "create", "key": "/buckets/raw/a", "message": {"new_entry": {}}}',
        b'{"event_type": "create", "key": "/a", "message": {"new_entry": {"name": "a"}, "new_parent_path": 1}}',
    ],
)
def test_anything_else_is_named_malformed_in_one_bounded_line(body):
    with pytest.raises(MalformedEvent) as raised:
        parse(body)
    assert 0 < len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


@settings(max_examples=400)
@given(message=JSON | broken_events())
def test_no_message_raises_anything_but_the_named_error(message):
    try:
        parsed = parse(json.dumps(message))
    except MalformedEvent:
        return
    chosen = Selection(ROUTES, ["s3://raw"], [".jpg"]).choose(parsed.written)
    assert all(ROUTES[0].source.contains(picture.source) for picture in chosen.pictures)
    assert all(line.encode() for line in chosen.refused)


@settings(max_examples=200)
@given(body=st.binary() | st.text())
def test_no_bytes_raise_anything_but_the_named_error(body):
    with pytest.raises(MalformedEvent):
        parse(body)


def choose(*keys, bucket="raw", prefixes=(), suffixes=()):
    return Selection(ROUTES, prefixes, suffixes).choose([Event(bucket, key, ETAG) for key in keys])


def test_only_what_is_in_a_source_of_the_routes_is_wanted():
    events = [Event("raw", "a.jpg"), Event("pictures", "in/b.jpg"), Event("pictures", "out/b.jpg"), Event("x", "c.jpg")]
    chosen = Selection(ROUTES).choose(events)
    assert chosen.pictures == [Wanted(ObjectUri("raw", "a.jpg")), Wanted(ObjectUri("pictures", "in/b.jpg"))]
    assert chosen.ignored == {"outside": 2}


@given(key=st.text(st.characters(exclude_categories=["Cs"])), folder=st.sampled_from(["", "out/", "out/.veil/", "in"]))
def test_an_output_or_a_receipt_never_asks_for_a_picture(key, folder):
    assert choose(folder + key, bucket="pictures").pictures == []
    assert choose(folder + key, bucket="clean").pictures == []


def test_prefixes_and_suffixes_leave_only_what_has_one_of_each():
    keys = ("2026/a.JPG", "2026/b.png", "2025/a.jpg", "2026.jpg", "2024/deep/c.jpeg")
    chosen = choose(*keys, prefixes=["s3://raw/2026", "s3://raw/2024/"], suffixes=[".jpg", ".JPEG"])
    assert [picture.source.key for picture in chosen.pictures] == ["2026/a.JPG", "2024/deep/c.jpeg"]
    assert chosen.ignored == {"filtered": 3}


def test_folder_markers_and_empty_keys_are_no_pictures():
    chosen = choose("", "a/", "a//")
    assert (chosen.pictures, chosen.ignored, chosen.refused) == ([], {"folder": 3}, [])


@pytest.mark.parametrize("key", ["../a.jpg", "a/./b.jpg", "a/..", "k" * 1025, "\ud800.jpg", ".veil/receipts/a.jpg"])
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
        Selection(ROUTES, [prefix])


def test_a_prefix_that_is_no_address_is_refused():
    with pytest.raises(InvalidRequest, match="raw/2026"):
        Selection(ROUTES, ["raw/2026"])


class Publishes:
    """Takes what is published, if a message can hold it."""

    def __init__(self):
        self.batches = []
        self.along = []

    def publish(self, pictures, queue, along=None):
        for picture in pictures:
            assert json.loads(json.dumps(picture.arguments).encode()) == list(picture.arguments)
            assert AnonymizeRequest.parse(source=picture.arguments[0]).source == picture.source
            assert picture.task_id.encode()
        self.batches.append([picture.source.key for picture in pictures])
        self.along.append(along)


def trigger():
    return Trigger(Publishes(), Selection(ROUTES), "sqs")


def taken(body):
    """The keys that a message puts on the queue, in a form that Redis and workers take, or why it is malformed."""
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


@pytest.mark.parametrize("name", [name for name in ODD_BODIES if "the ETag" in name or "an ETag" in name])
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
    assert len(refusals) == MOST_REFUSALS_LOGGED
    assert rest["keys"] == 22 - MOST_REFUSALS_LOGGED
    assert taking.malformed == 0


def _heard(result):
    return metrics.EVENTS.labels("sqs", result)._value.get()


def test_a_message_without_a_record_that_is_understood_is_malformed():
    with pytest.raises(MalformedEvent):
        parse(json.dumps(s3_event({"eventName": 1}, {})))


def test_tens_of_thousands_of_records_go_in_bounded_transactions():
    taking = trigger()
    records = [record(f"{number}.jpg") for number in range(20 * MOST_AT_ONCE + 7)]
    taking.publish(taking.read(json.dumps(s3_event(*records))))
    batches = taking._publisher.batches
    assert [len(batch) for batch in batches] == [MOST_AT_ONCE] * 20 + [7]
    assert [key for batch in batches for key in batch] == [f"{number}.jpg" for number in range(len(records))]


@pytest.mark.parametrize(("count", "batches"), [(0, [0]), (1000, [1000]), (1001, [1000, 1])])
def test_what_goes_along_goes_with_the_last_transaction_and_only_with_that(count, batches):
    taking = trigger()
    pictures = taking.choose(Parsed(written=[Event("raw", f"{number}.jpg", ETAG) for number in range(count)]))

    def along(pipe):
        pass

    taking.publish(pictures, along=along)
    assert [len(batch) for batch in taking._publisher.batches] == batches
    assert taking._publisher.along == [None] * (len(batches) - 1) + [along]


@pytest.mark.parametrize("key", ["a//b.jpg", "/b.jpg", "a\\b.jpg"])
def test_a_key_that_its_store_takes_for_another_is_refused_where_the_event_tells_the_store(key):
    for form, is_taken in (("seaweedfs", False), ("s3", True), ("event_bridge", True)):
        chosen = Selection(ROUTES).choose(parse(json.dumps(FORMS[form](key))).written)
        assert [picture.source.key for picture in chosen.pictures] == [key] * is_taken
        assert chosen.ignored == ({} if is_taken else {"refused": 1})
