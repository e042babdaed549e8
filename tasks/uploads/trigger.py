"""Uploads: what the events of object stores say, which of them ask for a picture, and the one way onto the queue.

An event comes in one of these forms:

    S3          Records[], the keys URL-encoded with '+' for a space; MinIO, RustFS and, not encoded, Ceph send it too
    SNS         the same, as the text in Message
    EventBridge detail-type "Object Created"; the key is as it is
    SeaweedFS   the filer's webhook: a path /buckets/BUCKET/KEY with the entry before and after

The filer tells of all that happens to its files: of folders, of the parts of an upload, of tags.
"""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

import structlog

from tasks import metrics, routes
from tasks.addresses import ObjectUri, PrefixUri, plain
from tasks.errors import BucketNotAllowed, InvalidRequest, MalformedEvent
from tasks.messages import UPLOADS, AnonymizeRequest
from tasks.publishing import Publisher, Wanted
from tasks.routes import Route

MOST_WRAPPINGS = 3  # of SNS around SNS
# MinIO counts these among what is created; the object's bytes stay as they are.
NOT_THE_CONTENT = {"PutTagging", "DeleteTagging", "PutRetention", "PutLegalHold", "PutAcl"}
MOST_REFUSALS_LOGGED = 10  # of one message or page; the others are counted in one line
MOST_AT_ONCE = 1000  # pictures in one transaction: Redis serves nobody else while it runs
CEPH = "ceph:s3"  # the eventSource of a store that does not encode its keys
BUCKETS = "/buckets/"  # SeaweedFS: where the filer keeps them
PARTS = ".uploads/"  # SeaweedFS: below each bucket, what multipart uploads are made of
VERSION = re.compile(r"(.+)\.versions/v_[0-9a-f]+", re.DOTALL)  # SeaweedFS: a version of an object
ETAG = "Seaweed-X-Amz-ETag"
DELETE_MARKER = "Seaweed-X-Amz-Delete-Marker"

log = structlog.get_logger("veil")


@dataclass(frozen=True)
class Event:
    """An object was written, so an event says. Nothing of it has been checked.

    `is_file` is whether the store keeps objects as files, by their paths.
    """

    bucket: str
    key: str
    etag: str | None = None
    is_file: bool = field(default=False, compare=False)


@dataclass
class Parsed:
    """The objects that a message says were written, a count of other events, and a line for each unreadable record."""

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
        if not (isinstance(message, dict) and message.get("Type") == "Notification" and "Message" in message):
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
        raise MalformedEvent(f"no event of a known form: its fields are {sorted(message)[:8]!s:.200}")
    return parsed


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedEvent(f"not JSON: {type(error).__name__}") from None


def _member(value: Any, *path: str) -> Any:
    """What is at `path` in nested objects."""
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
        parsed.ignored["deleted" if kind in ("ObjectRemoved", "LifecycleExpiration") else "other"] += 1
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
    bucket, key = _text(message, "detail", "bucket", "name"), _text(message, "detail", "object", "key")
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
        parsed.written.append(Event(bucket, version[1] if version else key, _filer_etag(extended), is_file=True))


def _content(entry: dict[str, Any]) -> list[Any]:
    """What changes when a file's bytes are written, and not when its tags are."""
    chunks, attributes = entry.get("chunks"), entry.get("attributes")
    return [
        entry.get("content"),
        [[chunk.get(name) for name in ("modified_ts_ns", "offset", "size")] for chunk in _dicts(chunks)],
        [part.get(name) for part in _dicts([attributes]) for name in ("file_size", "mtime", "md5")],
    ]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _filer_etag(extended: dict[str, Any]) -> str | None:
    try:
        return _etag(base64.b64decode(extended.get(ETAG, ""), validate=True).decode("ascii"))
    except (TypeError, ValueError, binascii.Error):
        return None


@dataclass
class Chosen:
    """The pictures to make, a count of those not wanted, and a line for each key that no worker takes."""

    pictures: list[Wanted] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


class Selection:
    """Which objects are wanted: those in a source of the routes, so never an output, below a prefix and with a suffix.

    Without prefixes or suffixes all of them are; suffixes are compared without regard to case.
    """

    def __init__(
        self, route_table: Sequence[Route], prefixes: Sequence[str] = (), suffixes: Sequence[str] = ()
    ) -> None:
        """Raises InvalidRequest for a prefix that is no address, BucketNotAllowed for one in no route's source."""
        self._routes = route_table
        self.places = [PrefixUri.parse(prefix) for prefix in prefixes] or [route.source for route in route_table]
        self._suffixes = tuple(suffix.lower() for suffix in suffixes)
        for place in self.places:
            if not any(place.is_below(route.source) for route in route_table):
                raise BucketNotAllowed(f"{place} is in no source of VEIL_ROUTES: add a route, or correct the prefix")

    def choose(self, events: Sequence[Event]) -> Chosen:
        """What is wanted of `events`."""
        chosen = Chosen()
        for event in events:
            if reason := self._unwanted(event):
                chosen.ignored[reason] += 1
                continue
            try:
                source = ObjectUri.parse(f"s3://{event.bucket}/{event.key}")
                routes.find(AnonymizeRequest(source=source), self._routes)
                if event.is_file and source.is_ambiguous:
                    raise InvalidRequest(f"{source}: its store takes this key for {plain(source.key)!r}")
            except (InvalidRequest, BucketNotAllowed) as error:
                # S3 allows such keys, and no worker would take them.
                chosen.ignored["refused"] += 1
                chosen.refused.append(str(error))
                continue
            chosen.pictures.append(Wanted(source, etag=event.etag))
        return chosen

    def _unwanted(self, event: Event) -> str | None:
        uri = ObjectUri(event.bucket, event.key)
        if not any(
            route.source.bucket == uri.bucket and uri.key.startswith(route.source.prefix) for route in self._routes
        ):
            return "outside"
        if not event.key or event.key.endswith("/"):
            return "folder"
        if not any(place.contains(uri) for place in self.places):
            return "filtered"
        if self._suffixes and not event.key.lower().endswith(self._suffixes):
            return "filtered"
        return None


class Trigger:
    """The way of every message, whichever source it comes from: read, chosen, published, counted."""

    def __init__(self, publisher: Publisher, selection: Selection, source: metrics.Source) -> None:
        """`source` names in the metrics where the messages come from."""
        self.selection = selection
        self.queued = 0  # pictures
        self.malformed = 0  # messages
        self.ignored: Counter[str] = Counter()  # events, by reason
        self._publisher = publisher
        self._source = source
        self._untold: Counter[str] = Counter()
        metrics.begin_hearing(source)

    def read(self, body: Any) -> list[Wanted]:
        """Return the pictures that a message asks for; MalformedEvent if it is none that is known."""
        try:
            parsed = parse(body)
        except MalformedEvent:
            self.malformed += 1
            metrics.heard(self._source, "malformed")
            raise
        return self.choose(parsed)

    def choose(self, parsed: Parsed) -> list[Wanted]:
        """Return the pictures that events ask for, each of which can be published. Log what is refused."""
        chosen = self.selection.choose(parsed.written)
        refused = parsed.refused + chosen.refused
        for line in refused[:MOST_REFUSALS_LOGGED]:
            log.warning("key refused", message=line)
        if (more := len(refused) - MOST_REFUSALS_LOGGED) > 0:
            log.warning("more keys refused", keys=more)
        unwanted = chosen.ignored + parsed.ignored + Counter(refused=len(parsed.refused))
        for counts in (self.ignored, self._untold):
            counts.update(unwanted)
        metrics.heard(self._source, "refused", len(refused))
        metrics.heard(self._source, "ignored", unwanted.total() - len(refused))
        return chosen.pictures

    def publish(
        self, pictures: Sequence[Wanted], queue: str = UPLOADS, along: Callable[[Any], None] | None = None
    ) -> None:
        """Put `pictures` on `queue`, each once, with what `along` adds to the last of them, and log one line.

        Raises QueueUnavailable when it is not certain that Redis has them all; to publish them again is safe.
        """
        distinct = list(dict.fromkeys(pictures))
        last = max(0, len(distinct) - 1) // MOST_AT_ONCE * MOST_AT_ONCE
        for start in range(0, last, MOST_AT_ONCE):
            self._publisher.publish(distinct[start : start + MOST_AT_ONCE], queue)
        self._publisher.publish(distinct[last:], queue, along=along)
        if distinct:
            told, self._untold = self._untold, Counter()
            log.info("queued", pictures=len(distinct), queue=queue, **({"ignored": dict(told)} if told else {}))
        self.queued += len(distinct)
        metrics.heard(self._source, "queued", len(distinct))
