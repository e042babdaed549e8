"""What the events of object stores say, in every form that they come in, and which of them ask for a picture."""

import base64
import json
from urllib.parse import quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.addresses import ObjectUri
from tasks.errors import BucketNotAllowed, InvalidRequest, MalformedEvent
from tasks.publishing import Wanted
from tasks.routes import Route
from tasks.uploads import Event, Selection, parse

ETAG = "0123456789abcdef0123456789abcdef"
ODD_KEYS = ["a b.jpg", "a+b.jpg", "100%.jpg", "a%20b.jpg", "ü/日本/😀.jpg", "a&b=c;d.jpg", "k" * 1020 + ".jpg"]
ROUTES = [Route.parse("s3://raw=s3://clean"), Route.parse("s3://pictures/in=s3://pictures/out")]


def record(key, name="ObjectCreated:Put", bucket="raw", **fields):
    """As Amazon documents it ("Event message structure"), the key encoded as S3 does it."""
    entry = {
        "bucket": {"name": bucket},
        "object": {"key": quote_plus(key, safe="/"), "eTag": ETAG, "size": 1, **fields},
    }
    return {"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": name, "s3": entry}


def s3_event(*records):
    return {"Records": list(records)}


def sns(message):
    return {"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:::t", "Message": json.dumps(message)}


def event_bridge(key, kind="Object Created"):
    detail = {"version": "0", "bucket": {"name": "raw"}, "object": {"key": key, "etag": ETAG, "size": 1}}
    return {"version": "0", "source": "aws.s3", "detail-type": kind, "detail": detail}


def minio(key):
    return {"EventName": "s3:ObjectCreated:Put", "Key": f"raw/{key}", **s3_event(record(key, "s3:ObjectCreated:Put"))}


def entry(name, written=1, **fields):
    return {
        "name": name,
        "chunks": [{"size": 1, "modified_ts_ns": written, "e_tag": "x"}],
        "attributes": {"file_size": 1, "mtime": written, "md5": "x"},
        "extended": {"Seaweed-X-Amz-ETag": base64.b64encode(ETAG.encode()).decode(), **fields.pop("extended", {})},
        **fields,
    }


def filer(path, before=None, after=None, event_type="create", parent=None):
    """As weed 4.48 posts it."""
    message = {"new_parent_path": parent or path.rpartition("/")[0]}
    message |= {"old_entry": before} if before else {}
    message |= {"new_entry": after} if after else {}
    return {"key": path, "event_type": event_type, "message": message}


def seaweedfs(key):
    path = f"/buckets/raw/{key}"
    return filer(path, after=entry(path.rpartition("/")[2]))


def ceph(key):
    event = s3_event(record(key, "ObjectCreated:Put"))
    event["Records"][0]["eventSource"] = "ceph:s3"
    event["Records"][0]["s3"]["object"]["key"] = key
    return event


FORMS = {
    "s3": lambda key: s3_event(record(key)),
    "sns": lambda key: sns(s3_event(record(key))),
    "event_bridge": event_bridge,
    "event_bridge over sns": lambda key: sns(event_bridge(key)),
    "minio": minio,
    "ceph": ceph,
    "seaweedfs": seaweedfs,
}


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value, path=()):
    """Where something is in nested objects and lists."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from places(inner, (*path, name))


@st.composite
def broken_events(draw):
    """A good event with something else in one or two places."""
    message = json.loads(json.dumps(FORMS[draw(st.sampled_from(sorted(FORMS)))]("d/a b.jpg")))
    if "message" in message and draw(st.booleans()):
        message["message"]["old_entry"] = json.loads(json.dumps(message["message"]["new_entry"]))
    for _ in range(draw(st.integers(1, 2))):
        paths = [path for path in places(message) if path]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        inner = message
        for name in path[:-1]:
            inner = inner[name]
        if isinstance(inner, dict) and draw(st.booleans()):
            del inner[path[-1]]
        else:
            inner[path[-1]] = draw(JSON)
    return message


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


@pytest.mark.parametrize("key", ["a//b.jpg", "/b.jpg", "a\\b.jpg"])
def test_a_key_that_its_store_takes_for_another_is_refused_where_the_event_tells_the_store(key):
    for form, is_taken in (("seaweedfs", False), ("s3", True), ("event_bridge", True)):
        chosen = Selection(ROUTES).choose(parse(json.dumps(FORMS[form](key))).written)
        assert [picture.source.key for picture in chosen.pictures] == [key] * is_taken
        assert chosen.ignored == ({} if is_taken else {"refused": 1})
