"""The parser of events: all forms of events, and bodies that are no event."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import MalformedEvent
from tasks.routes import Routes
from tasks.uploads.events import Event, parse
from tasks.uploads.trigger import EventFilter
from tests.events import (
    ETAG,
    FORMS,
    JSON,
    broken_events,
    entry,
    event_bridge,
    filer,
    record,
    s3_event,
    sns,
)

ODD_KEYS = [
    "a b.jpg",
    "a+b.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "ü/日本/😀.jpg",
    "a&b=c;d.jpg",
    "k" * 1020 + ".jpg",
]
ROUTES = Routes.parse("s3://raw=s3://clean", "s3://pictures/in=s3://pictures/out")


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("form", FORMS)
def test_a_key_comes_out_of_every_form_as_it_is_in_the_store(form, key):
    parsed = parse(json.dumps(FORMS[form](key)).encode())
    assert parsed.written == [Event("raw", key, ETAG)]
    assert not parsed.ignored


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30)
@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
        lambda key: key[-1] != "/"
    )
)
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
        (filer("/etc/iam/identity.json", after=entry("identity.json")), "other"),
        (
            filer(
                "/buckets/raw/a.jpg",
                entry("a.jpg"),
                entry("a.jpg", extended={"X-Amz-Tagging-k": "dg=="}),
            ),
            "metadata",
        ),
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
    assert keys(filer(path, entry("a.jpg"), entry("b.jpg"), "rename", "/buckets/raw/e")) == [
        "e/b.jpg"
    ]
    assert keys(filer(path, entry("a.jpg"), entry("a.jpg"), "rename", "/buckets/raw/e")) == [
        "e/a.jpg"
    ]
    assert keys(filer("/buckets/raw/a.jpg.versions/v_0a1f", after=entry("v_0a1f"))) == ["a.jpg"]
    assert keys(filer("/buckets/raw/a.versions/v_x.jpg", after=entry("v_x.jpg"))) == [
        "a.versions/v_x.jpg"
    ]
    without_parent = filer(path, after=entry("a.jpg"))
    del without_parent["message"]["new_parent_path"]
    assert keys(without_parent) == ["d/a.jpg"]


def created(s3):
    """Return a message with one record, whose field `s3` is the given JSON."""
    return b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": ' + s3 + b"}]}"


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
        created(b'{"bucket": {"name": "b"}, "object": {"key": 1}}'),
        created(b'{"bucket": {}, "object": {"key": "a"}}'),
        created(b'{"bucket": {"name": "b"}, "object": {"key": "%ff"}}'),
        b'{"Type": "Notification", "Message": "not JSON"}',
        b'{"Type": "Notification", "Message": {}}',
        b'{"Type": "SubscriptionConfirmation", "SubscribeURL": "http://x"}',
        b'{"source": "aws.s3", "detail-type": "Object Created", "detail": []}',
        b'{"source": "aws.ec2", "detail-type": "EC2 Instance State-change Notification", '
        b'"detail": {}}',
        b'{"event_type": "create", "key": 1, "message": {}}',
        b'{"event_type": "create", "key": "/buckets/raw/a", "message": []}',
        b'{"event_type": "create", "key": "/buckets/raw/a", "message": {"new_entry": {}}}',
        b'{"event_type": "create", "key": "/a", '
        b'"message": {"new_entry": {"name": "a"}, "new_parent_path": 1}}',
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
    chosen = EventFilter(ROUTES, ["s3://raw"], [".jpg"]).choose(parsed.written)
    assert all(ROUTES.sources[0].contains(picture.source) for picture in chosen.pictures)
    assert all(line.encode() for line in chosen.refused)


@settings(max_examples=200)
@given(body=st.binary() | st.text())
def test_no_bytes_raise_anything_but_the_named_error(body):
    with pytest.raises(MalformedEvent):
        parse(body)
