"""Parse the events of object stores: find the objects that a message reports as written.

An event comes in one of these forms:

    S3            a list `Records`, with URL-encoded keys and '+' for a space. MinIO and RustFS
                  send the same form; Ceph does too, but without encoding the keys.
    SNS           one of the other forms, as text in `Message`
    EventBridge   the detail-type "Object Created"; keys are not encoded
    SeaweedFS     the filer's webhook: a path /buckets/BUCKET/KEY, with the entry before and after

The filer reports every change of its files, including folders, parts of uploads, and tags.
"""

import base64
import binascii
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from ..errors import MalformedEvent
from ..wrong_values import cause, json_type

MAX_SNS_LAYERS = 3  # an SNS message may itself contain an SNS message
# MinIO reports these as ObjectCreated, although the bytes of the object stay the same.
METADATA_CHANGES = {"PutTagging", "DeleteTagging", "PutRetention", "PutLegalHold", "PutAcl"}
CEPH_SOURCE = "ceph:s3"  # the `eventSource` of Ceph, which does not URL-encode keys
BUCKETS_FOLDER = "/buckets/"  # SeaweedFS keeps each bucket as a folder in this one
PARTS_FOLDER = ".uploads/"  # SeaweedFS keeps parts of multipart uploads in this folder of a bucket
# SeaweedFS keeps each version of an object at such a path. Group 1 is the key of the object.
VERSION_PATH = re.compile(r"(.+)\.versions/v_[0-9a-f]+", re.DOTALL)
# Fields that SeaweedFS stores with an entry, in `extended`.
ETAG_FIELD = "Seaweed-X-Amz-ETag"
DELETE_MARKER_FIELD = "Seaweed-X-Amz-Delete-Marker"
# Fields of a SeaweedFS entry that change with the bytes of the file.
CHUNK_FIELDS = ("modified_ts_ns", "offset", "size")
ATTRIBUTE_FIELDS = ("file_size", "mtime", "md5")


@dataclass(frozen=True)
class Event:
    """An object that an event reports as written. Nothing about it has been checked.

    `is_file` is true for stores that keep objects as files, by their paths.
    """

    bucket: str
    key: str
    etag: str | None = None
    is_file: bool = field(default=False, compare=False)


@dataclass
class Parsed:
    """The events of one message.

    `written` lists the objects that were written, `ignored` counts other events by reason, and
    `refused` has a line for each unreadable record.
    """

    written: list[Event] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


def parse(body: Any) -> Parsed:
    """Parse the events in `body`, the text or the bytes of a message.

    Raises MalformedEvent, and no other error, for a body in none of the forms above.
    """
    try:
        return _parse(_decode_json(body))
    except RecursionError:
        raise MalformedEvent("it is nested too deeply") from None


def _parse(message: Any) -> Parsed:
    for _ in range(MAX_SNS_LAYERS):
        if not _is_from_sns(message):
            break
        message = _decode_json(message["Message"])
    if not isinstance(message, dict):
        raise MalformedEvent(f"not an event but {json_type(message)}")
    parsed = Parsed()
    if "Records" in message:
        _parse_records(message["Records"], parsed)
    elif message.get("Event") == "s3:TestEvent":
        parsed.ignored["test"] += 1
    elif message.get("source") == "aws.s3" and "detail-type" in message:
        _parse_event_bridge(message, parsed)
    elif {"event_type", "key", "message"} <= message.keys():
        _parse_filer(message, parsed)
    else:
        names = str(sorted(message)[:8])
        raise MalformedEvent(f"no event of a known form: its fields are {names:.200}")
    return parsed


def _is_from_sns(message: Any) -> bool:
    return (
        isinstance(message, dict) and message.get("Type") == "Notification" and "Message" in message
    )


def _decode_json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedEvent(f"not JSON: {cause(error)}") from None


def _field(value: Any, *path: str) -> Any:
    """Return the value at `path` in nested objects; raise MalformedEvent if it is missing."""
    for depth, name in enumerate(path, start=1):
        if not isinstance(value, dict) or name not in value:
            raise MalformedEvent(f"the field {'.'.join(path[:depth])} is missing")
        value = value[name]
    return value


def _text_field(value: Any, *path: str) -> str:
    found = _field(value, *path)
    if not isinstance(found, str):
        raise MalformedEvent(f"the field {'.'.join(path)} is not text")
    return found


def _etag(value: Any) -> str | None:
    return value.strip('"') or None if isinstance(value, str) else None


def _parse_records(records: Any, parsed: Parsed) -> None:
    if not isinstance(records, list):
        raise MalformedEvent("the field Records is not a list")
    for record in records:
        try:
            _parse_record(record, parsed)
        except MalformedEvent as error:
            parsed.refused.append(str(error))
    if parsed.refused and len(parsed.refused) == len(records):
        raise MalformedEvent(parsed.refused[0])


def _parse_record(record: Any, parsed: Parsed) -> None:
    kind, _, cause = _text_field(record, "eventName").removeprefix("s3:").partition(":")
    if kind in ("ObjectRemoved", "LifecycleExpiration"):
        parsed.ignored["deleted"] += 1
    elif kind != "ObjectCreated":
        parsed.ignored["other"] += 1
    elif cause in METADATA_CHANGES:
        parsed.ignored["metadata"] += 1
    else:
        key = _text_field(record, "s3", "object", "key")
        if record.get("eventSource") != CEPH_SOURCE:
            key = _decode_key(key)
        bucket = _text_field(record, "s3", "bucket", "name")
        parsed.written.append(Event(bucket, key, _etag(record["s3"]["object"].get("eTag"))))


def _decode_key(key: str) -> str:
    try:
        return unquote_plus(key, errors="strict")
    except UnicodeDecodeError:
        raise MalformedEvent(f"the key {key!r:.200} is not UTF-8") from None


def _parse_event_bridge(message: dict[str, Any], parsed: Parsed) -> None:
    kind = _text_field(message, "detail-type")
    if kind == "Object Deleted":
        parsed.ignored["deleted"] += 1
    elif kind != "Object Created":
        parsed.ignored["other"] += 1
    else:
        bucket = _text_field(message, "detail", "bucket", "name")
        key = _text_field(message, "detail", "object", "key")
        etag = _etag(message["detail"]["object"].get("etag"))
        parsed.written.append(Event(bucket, key, etag))


def _parse_filer(message: dict[str, Any], parsed: Parsed) -> None:
    path_before = _text_field(message, "key")
    change = _field(message, "message")
    if not isinstance(change, dict):
        raise MalformedEvent("the field message is not an object")
    before, after = change.get("old_entry"), change.get("new_entry")
    if after is None:
        parsed.ignored["deleted"] += 1
        return
    name = _text_field(after, "name")
    folder = change.get("new_parent_path") or path_before.rpartition("/")[0]
    if not isinstance(folder, str):
        raise MalformedEvent("the field new_parent_path is not text")
    path = f"{folder}/{name}"
    bucket, _, key = path.removeprefix(BUCKETS_FOLDER).partition("/")
    version = VERSION_PATH.fullmatch(key)
    extended = _object(after.get("extended"))
    if not path.startswith(BUCKETS_FOLDER):
        parsed.ignored["other"] += 1
    elif after.get("is_directory"):
        parsed.ignored["folder"] += 1
    elif key.startswith(PARTS_FOLDER):
        parsed.ignored["part"] += 1
    elif version and DELETE_MARKER_FIELD in extended:
        parsed.ignored["deleted"] += 1
    elif path == path_before and _has_same_content(before, after):
        parsed.ignored["metadata"] += 1
    else:
        key = version[1] if version else key
        parsed.written.append(Event(bucket, key, _filer_etag(extended), is_file=True))


def _has_same_content(before: Any, after: dict[str, Any]) -> bool:
    return isinstance(before, dict) and _content(before) == _content(after)


def _content(entry: dict[str, Any]) -> list[Any]:
    """Return the fields of a filer's entry that change with the bytes of the file, not its tags."""
    chunks = [_values(chunk, CHUNK_FIELDS) for chunk in _objects(entry.get("chunks"))]
    attributes = [_values(part, ATTRIBUTE_FIELDS) for part in _objects([entry.get("attributes")])]
    return [entry.get("content"), chunks, attributes]


def _values(fields: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    return [fields.get(name) for name in names]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _filer_etag(extended: dict[str, Any]) -> str | None:
    try:
        return _etag(base64.b64decode(extended.get(ETAG_FIELD, ""), validate=True).decode("ascii"))
    except (TypeError, ValueError, binascii.Error):
        return None
