"""Upload events in the forms that object stores send, and strategies for damaged ones."""

import base64
import json
from urllib.parse import quote_plus

from hypothesis import strategies as st

ETAG = "0123456789abcdef0123456789abcdef"


def record(key, name="ObjectCreated:Put", bucket="raw", **fields):
    """Return a record in the form that Amazon documents under "Event message structure".

    S3 encodes the key like a field of an HTML form.
    """
    entry = {
        "bucket": {"name": bucket},
        "object": {"key": quote_plus(key, safe="/"), "eTag": ETAG, "size": 1, **fields},
    }
    return {"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": name, "s3": entry}


def s3_event(*records):
    return {"Records": list(records)}


def sns(message):
    """Return the notification in which Amazon SNS sends `message`."""
    return {
        "Type": "Notification",
        "MessageId": "1",
        "TopicArn": "arn:aws:sns:::t",
        "Message": json.dumps(message),
    }


def event_bridge(key, kind="Object Created"):
    detail = {
        "version": "0",
        "bucket": {"name": "raw"},
        "object": {"key": key, "etag": ETAG, "size": 1},
    }
    return {"version": "0", "source": "aws.s3", "detail-type": kind, "detail": detail}


def minio(key):
    return {
        "EventName": "s3:ObjectCreated:Put",
        "Key": f"raw/{key}",
        **s3_event(record(key, "s3:ObjectCreated:Put")),
    }


def entry(name, written=1, **fields):
    """Return an entry of SeaweedFS's filer; `written` is a time and tells versions apart."""
    return {
        "name": name,
        "chunks": [{"size": 1, "modified_ts_ns": written, "e_tag": "x"}],
        "attributes": {"file_size": 1, "mtime": written, "md5": "x"},
        "extended": {
            "Seaweed-X-Amz-ETag": base64.b64encode(ETAG.encode()).decode(),
            **fields.pop("extended", {}),
        },
        **fields,
    }


def filer(path, before=None, after=None, event_type="create", parent=None):
    """Return an event in the form that the filer of SeaweedFS 4.48 posts."""
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


ODD_TEXTS = [
    "",
    "\ud800",
    "\udfff.jpg",
    "\0",
    "\n",
    "\x1b[2J",
    "..",
    "/",
    "%ff",
    "%ED%A0%80",
    "+",
    "\ufffe",
    "x" * 5000,
]
JSON = st.recursive(
    st.sampled_from(ODD_TEXTS)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def paths(value, path=()):
    """Yield the path of each value in nested objects and lists, as a tuple of names and indices."""
    yield path
    items = []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, inner in items:
        yield from paths(inner, (*path, name))


def inner_paths(value):
    """Return the paths of all values in `value` except that of `value` itself."""
    return [path for path in paths(value) if path]


def value_at(value, path):
    for name in path:
        value = value[name]
    return value


def good_events():
    """Return a strategy for a good event of any form."""
    forms = st.sampled_from(sorted(FORMS))
    return forms.map(lambda name: json.loads(json.dumps(FORMS[name]("d/a b.jpg"))))


@st.composite
def broken_events(draw):
    """Draw a good event with one or two of its values removed or replaced."""
    message = draw(good_events())
    if "message" in message and draw(st.booleans()):
        message["message"]["old_entry"] = json.loads(json.dumps(message["message"]["new_entry"]))
    for _ in range(draw(st.integers(1, 2))):
        candidates = inner_paths(message)
        if not candidates:
            break
        path = draw(st.sampled_from(candidates))
        parent = value_at(message, path[:-1])
        if isinstance(parent, dict) and draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[path[-1]] = draw(JSON)
    return message


@st.composite
def damaged_bodies(draw):
    """Draw the bytes of a good event with some replaced: often neither UTF-8 nor JSON."""
    body = json.dumps(draw(good_events())).encode()
    start = draw(st.integers(0, len(body)))
    return body[:start] + draw(st.binary(max_size=8)) + body[start + draw(st.integers(0, 8)) :]


@st.composite
def crowds(draw):
    """Draw a message of S3 with a good record among others, which have one value replaced."""
    records = [record("d/good.jpg")]
    for _ in range(draw(st.integers(1, 4))):
        other = record("d/other.jpg")
        path = draw(st.sampled_from(inner_paths(other)))
        value_at(other, path[:-1])[path[-1]] = draw(JSON)
        records.append(other)
    return s3_event(*draw(st.permutations(records)))


@st.composite
def oddly_worded_events(draw):
    """Draw a good event with one of its texts replaced by an odd one."""
    message = draw(good_events())
    texts = [path for path in inner_paths(message) if isinstance(value_at(message, path), str)]
    path = draw(st.sampled_from(texts))
    value_at(message, path[:-1])[path[-1]] = draw(st.sampled_from(ODD_TEXTS))
    return message


def bodies():
    """Return a strategy for anything that may arrive as a message."""
    events = oddly_worded_events() | broken_events() | crowds()
    messages = (events | events.map(sns) | JSON).map(lambda message: json.dumps(message).encode())
    return messages | damaged_bodies() | st.binary()


def _nested(depth):
    return b'{"Records": ' + b"[" * depth + b"]" * depth + b"}"


def _deep_entries(depth):
    """Return a filer's event whose entries before and after, which are compared, nest deeply."""
    deep = "[" * depth + "]" * depth
    inner = f'{{"name": "a.jpg", "content": {deep}}}'
    return (
        '{"key": "/buckets/raw/a.jpg", "event_type": "update", '
        f'"message": {{"old_entry": {inner}, "new_entry": {inner}}}}}'
    ).encode()


def _with_etag(etag):
    return json.dumps(s3_event(record("d/a.jpg", eTag=etag))).encode()


ODD_BODIES = {
    "surrogate in the ETag": _with_etag("\ud800"),
    "surrogate in the ETag over SNS": json.dumps(
        sns(s3_event(record("d/a.jpg", eTag="\udfff")))
    ).encode(),
    "surrogate in the ETag of EventBridge": json.dumps(event_bridge("d/a.jpg"))
    .replace(ETAG, "\\ud83d")
    .encode(),
    "surrogate in the key of EventBridge": json.dumps(event_bridge("d/\ud800.jpg")).encode(),
    "surrogate in a filer's name": json.dumps(seaweedfs("d/\ud800.jpg")).encode(),
    "surrogate in the key of Ceph": json.dumps(ceph("d/a.jpg"))
    .replace("d/a", "d/\\ud800")
    .encode(),
    "surrogate in the bucket": json.dumps(s3_event(record("a.jpg", bucket="raw\ud800"))).encode(),
    "surrogate in the event's name": json.dumps(
        s3_event(record("a.jpg", "ObjectCreated:\ud800"))
    ).encode(),
    "surrogate in a field's name": b'{"\\ud800": 1}',
    "NUL in the ETag": _with_etag("\0"),
    "NUL in the key": json.dumps(s3_event(record("d/\0.jpg"))).encode(),
    "an ETag of a megabyte": _with_etag("e" * 1_000_000),
    "a key of a megabyte": json.dumps(s3_event(record("k" * 1_000_000))).encode(),
    "an ETag that is a number": _with_etag(10**4000),
    "an ETag that is an object": _with_etag({"a": [1]}),
    "a number with too many digits": b'{"Records": ' + b"9" * 5000 + b"}",
    "NaN": b'{"Records": [NaN, Infinity, -Infinity]}',
    "the same field twice": b'{"Records": [], "Records": [{"eventName": 1}]}',
    "nested deeply": _nested(100_000),
    "nested as deeply as JSON can be read": _nested(900),
    "nested in a filer's entries": _deep_entries(900),
    "a key that is not UTF-8 once decoded": json.dumps(s3_event(record("a.jpg")))
    .replace("a.jpg", "%ff%fe")
    .encode(),
    "a surrogate in percents": json.dumps(s3_event(record("a.jpg")))
    .replace("a.jpg", "%ED%A0%80")
    .encode(),
    "no UTF-8": b'{"Records": [{"eventName": "\xff\xfe"}]}',
    "UTF-16": '{"Records": []}'.encode("utf-16"),
    "no record": b'{"Records": []}',
    "SNS around itself": json.dumps(sns(sns(sns(sns(sns({"Records": []})))))).encode(),
    "SNS around a number": b'{"Type": "Notification", "Message": 1}',
}
"""Messages that have ended, or could end, a process that reads them; none exceeds a mebibyte."""
assert all(len(body) <= 1 << 20 for body in ODD_BODIES.values())
