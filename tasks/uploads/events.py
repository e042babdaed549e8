"""Events of object stores, parsed: the objects that a message says were written.

An event comes in one of these forms:

    S3          Records[], the keys URL-encoded with '+' for a space; MinIO, RustFS and, not
    encoded, Ceph send it too SNS         the same, as the text in Message EventBridge detail-type
    "Object Created"; the key is as it is SeaweedFS   the filer's webhook: a path
    /buckets/BUCKET/KEY with the entry before and after

The filer reports every change of its files: folders, the parts of an upload and tags too.
"""

import base64
import binascii
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from tasks.errors import MalformedEvent

MOST_WRAPPINGS = 3  # of SNS around SNS
# MinIO counts these among what is created; the object's bytes stay as they are.
NOT_THE_CONTENT = {"PutTagging", "DeleteTagging", "PutRetention", "PutLegalHold", "PutAcl"}
CEPH = "ceph:s3"  # the eventSource of a store that does not URL-encode keys
BUCKETS = "/buckets/"  # SeaweedFS: the folder of all buckets
PARTS = ".uploads/"  # SeaweedFS: the folder of a bucket for the parts of multipart uploads
VERSION = re.compile(r"(.+)\.versions/v_[0-9a-f]+", re.DOTALL)  # SeaweedFS: a version of an object
ETAG = "Seaweed-X-Amz-ETag"
DELETE_MARKER = "Seaweed-X-Amz-Delete-Marker"


@dataclass(frozen=True)
class Event:
    """An object that was written, according to an event. Nothing has been checked.

    `is_file` is true for stores that keep objects as files, by their paths.
    """

    bucket: str
    key: str
    etag: str | None = None
    is_file: bool = field(default=False, compare=False)


@dataclass
class Parsed:
    """The objects that a message says were written, a count of other events, and a line for each
    unreadable record.
    """

    written: list[Event] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


def parse(body: Any) -> Parsed:
    """Parse the events in `body`, the text or the bytes of a message.

    Raises MalformedEvent, and nothing else, for anything of another form.
    """
    try:
        return _parse(_json(body))
    except RecursionError:
        raise MalformedEvent("it is nested too deeply") from None


def _parse(message: Any) -> Parsed:
    for _ in range(MOST_WRAPPINGS):
        if not (
            isinstance(message, dict)
            and message.get("Type") == "Notification"
            and "Message" in message
        ):
            break
        message = _json(message["Message"])
    parsed = Parsed()
    if not isinstance(message, dict):
        raise MalformedEvent(f"not an event but a JSON {type(message).__name__}")
    if "Records" in message:
        _parse_records(message["Records"], parsed)
    elif message.get("Event") == "s3:TestEvent":
        parsed.ignored["test"] += 1
    elif message.get("source") == "aws.s3" and "detail-type" in message:
        _parse_event_bridge(message, parsed)
    elif {"event_type", "key", "message"} <= message.keys():
        _parse_filer(message, parsed)
    else:
        raise MalformedEvent(
            f"no event of a known form: its fields are {sorted(message)[:8]!s:.200}"
        )
    return parsed


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedEvent(f"not JSON: {type(error).__name__}") from None


def _member(value: Any, *path: str) -> Any:
    """Return the value at `path` in nested objects; raise MalformedEvent if there is none."""
    for i, name in enumerate(path):
        if not isinstance(value, dict) or name not in value:
            raise MalformedEvent(f"an event without {'.'.join(path[: i + 1])}")
        value = value[name]
    return value


def _text(value: Any, *path: str) -> str:
    found = _member(value, *path)
    if not isinstance(found, str):
        raise MalformedEvent(f"{'.'.join(path)} is not text")
    return found


def _etag(value: Any) -> str | None:
    return value.strip('"') or None if isinstance(value, str) else None


def _parse_records(records: Any, parsed: Parsed) -> None:
    if not isinstance(records, list):
        raise MalformedEvent("Records is not a list")
    for record in records:
        try:
            _parse_record(record, parsed)
        except MalformedEvent as error:
            parsed.refused.append(str(error))
    if parsed.refused and len(parsed.refused) == len(records):
        raise MalformedEvent(parsed.refused[0])


def _parse_record(record: Any, parsed: Parsed) -> None:
    kind, _, how = _text(record, "eventName").removeprefix("s3:").partition(":")
    if kind != "ObjectCreated":
        parsed.ignored[
            "deleted" if kind in ("ObjectRemoved", "LifecycleExpiration") else "other"
        ] += 1
    elif how in NOT_THE_CONTENT:
        parsed.ignored["metadata"] += 1
    else:
        key = _text(record, "s3", "object", "key")
        try:
            key = key if record.get("eventSource") == CEPH else unquote_plus(key, errors="strict")
        except UnicodeDecodeError:
            raise MalformedEvent(f"the key {key!r:.200} is not UTF-8") from None
        etag = _etag(record["s3"]["object"].get("eTag"))
        parsed.written.append(Event(_text(record, "s3", "bucket", "name"), key, etag))


def _parse_event_bridge(message: dict[str, Any], parsed: Parsed) -> None:
    kind = _text(message, "detail-type")
    if kind != "Object Created":
        parsed.ignored["deleted" if kind == "Object Deleted" else "other"] += 1
        return
    bucket, key = (
        _text(message, "detail", "bucket", "name"),
        _text(message, "detail", "object", "key"),
    )
    parsed.written.append(Event(bucket, key, _etag(message["detail"]["object"].get("etag"))))


def _parse_filer(message: dict[str, Any], parsed: Parsed) -> None:
    was_at = _text(message, "key")
    content = _member(message, "message")
    if not isinstance(content, dict):
        raise MalformedEvent("message is not an object")
    before, after = content.get("old_entry"), content.get("new_entry")
    if after is None:
        parsed.ignored["deleted"] += 1
        return
    name, parent = _text(after, "name"), content.get("new_parent_path") or was_at.rpartition("/")[0]
    if not isinstance(parent, str):
        raise MalformedEvent("new_parent_path is not text")
    path = f"{parent}/{name}"
    bucket, _, key = path.removeprefix(BUCKETS).partition("/")
    extended = after.get("extended")
    extended = extended if isinstance(extended, dict) else {}
    version = VERSION.fullmatch(key)
    if not path.startswith(BUCKETS):
        parsed.ignored["outside"] += 1
    elif after.get("is_directory"):
        parsed.ignored["folder"] += 1
    elif key.startswith(PARTS):
        parsed.ignored["part"] += 1
    elif version and DELETE_MARKER in extended:
        parsed.ignored["deleted"] += 1
    elif path == was_at and isinstance(before, dict) and _content(before) == _content(after):
        parsed.ignored["metadata"] += 1
    else:
        parsed.written.append(
            Event(bucket, version[1] if version else key, _filer_etag(extended), is_file=True)
        )


def _content(entry: dict[str, Any]) -> list[Any]:
    """Return the parts of an entry that change with the file's bytes, and not with its tags."""
    chunks, attributes = entry.get("chunks"), entry.get("attributes")
    return [
        entry.get("content"),
        [
            [chunk.get(name) for name in ("modified_ts_ns", "offset", "size")]
            for chunk in _dicts(chunks)
        ],
        [part.get(name) for part in _dicts([attributes]) for name in ("file_size", "mtime", "md5")],
    ]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _filer_etag(extended: dict[str, Any]) -> str | None:
    try:
        return _etag(base64.b64decode(extended.get(ETAG, ""), validate=True).decode("ascii"))
    except (TypeError, ValueError, binascii.Error):
        return None
