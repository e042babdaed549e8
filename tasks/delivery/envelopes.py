"""Reader of messages as they are on a queue, in every form in which Celery sends a task.

Celery's workers take message protocols 1 and 2, and compressed bodies. `read` takes the same forms,
within limits, but only as JSON: nothing is unpickled or executed. A message that it refuses is
still passed to Celery, with the defect in a header. The task then fails by name, and ends as a dead
letter and a FAILURE like any other.
"""

import base64
import bz2
import json
import lzma
import re
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery.utils.saferepr import saferepr
from kombu.utils.json import loads
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import MalformedMessage
from ..messages import QUEUED_AT_HEADER, REFUSED_HEADER, RUN_HEADER, TASK
from ..representation import MAX_SHOWN, shown
from ..telemetry import tracing
from ..wrong_values import in_words, json_type

MAX_DELAY_SECONDS = 600.0  # until the `eta` of a message; no retry asks for more
MAX_MESSAGE_BYTES = 1 << 20  # also of an unpacked body; five times the largest options
MAX_ID_LENGTH = 1000  # characters of a task id
MAX_RETRIES = 1_000_000  # in a message; one more must be a number that JSON can hold
MAX_NESTING = 50  # levels of lists and objects in the arguments; options have four
MAX_LZMA_BYTES = 32 << 20  # memory for unpacking; the preset that Celery uses needs 9 MiB
TAIL_BYTES = 16 << 10  # the end of a message that is too large, in which its id is searched
SAMPLE_BYTES = 64  # the beginning of an item that is no JSON object
MAX_SAMPLE_LENGTH = 1000  # characters
MAX_QUOTED_LENGTH = 100  # characters of a value in an error's message
MAX_QUOTED_HEADER_LENGTH = 300  # characters of a header in a sample
MAX_SAMPLE_NAMES = 10  # of the fields of an object that is no message
CHARSETS = (None, "utf-8", "utf8", "us-ascii", "ascii")
ID_NAMESPACE = uuid.UUID("d55cfae5-5e3c-4bea-b44a-5981f3e76cc8")  # for messages without an id
ID = re.compile(rb'"(?:id|correlation_id)": ?"([^"\\]{1,%d})"' % MAX_ID_LENGTH)
# A sample leaves out every assigned value and every word that is long enough to be a key.
SECRET = re.compile(r"(?<=[=:])\s*[^\s,;]+|[\w+/=.~-]{16,}")

# The names and content types are kombu's. Its own functions unpack without a limit.
UNPACKERS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(
        ("application/x-gzip", "gzip", "zlib"),
        partial(zlib.decompressobj, wbits=zlib.MAX_WBITS | 32),  # 32 also detects the gzip format
    ),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
    **dict.fromkeys(
        ("application/x-lzma", "lzma", "xz"),
        partial(lzma.LZMADecompressor, memlimit=MAX_LZMA_BYTES),
    ),
}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Headers(_Strict):
    task: str
    id: str = Field(min_length=1, max_length=MAX_ID_LENGTH)
    retries: int | None = Field(None, ge=0, le=MAX_RETRIES)


class _Properties(_Strict):
    priority: int | None = None


class _Message(_Strict):
    headers: _Headers
    properties: _Properties


@dataclass
class Envelope:
    """The readable parts of an item on a queue, and its `defect` if a worker can't take it."""

    task_id: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    priority: int | None = None
    arguments: list[Any] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)
    defect: str | None = None
    sample: str = ""


def read(item: bytes, size: int) -> Envelope:
    """Return the envelope of a message of `size` bytes.

    `item` is the message or, if it has more than MAX_MESSAGE_BYTES, its end.
    """
    envelope = Envelope()
    message: Any = None
    try:
        if size > MAX_MESSAGE_BYTES:
            envelope.task_id = _id_within(item[-TAIL_BYTES:])
            raise MalformedMessage(
                f"the message has {size:,} bytes, the limit is {MAX_MESSAGE_BYTES:,}"
            )
        message = _parsed(item, "the message")
        _read_message(message, envelope)
    except MalformedMessage as error:
        envelope.defect = str(error)
        sample = f"{size:,} bytes: {_sample(item, message, envelope.headers)}"
        envelope.sample = sample[:MAX_SAMPLE_LENGTH]
    return envelope


def celery_message(item: bytes, size: int, queue: str, tag: str) -> dict[str, Any]:
    """Return the message for Celery of `item`, which was taken from `queue` as delivery `tag`.

    Only the fields that Veil needs are passed on, because Celery trusts a message too much:

    - It turns every header, and every value in the body besides the arguments, into an attribute of
      the task's request, and lets them replace its own attributes.
    - It sends a retry to the queue that the message names.
    - It keeps a message until its `eta`, and drops it after `expires`.
    - It never acknowledges a message whose callbacks, chain or chord can't be called.
    """
    envelope = read(item, size)
    body = _body(envelope.arguments, envelope.named)
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": _celery_headers(envelope, item),
        "properties": {
            "delivery_tag": tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
            "priority": envelope.priority,
        },
    }


def _celery_headers(envelope: Envelope, item: bytes) -> dict[str, Any]:
    sent = envelope.headers
    headers: dict[str, Any] = {
        "task": TASK,
        "id": envelope.task_id or str(uuid.uuid5(ID_NAMESPACE, item.hex())),
        "root_id": _id(sent.get("root_id")),
        "parent_id": _id(sent.get("parent_id")),
        # No sender can ask for the result of a message that has no id.
        "ignore_result": bool(sent.get("ignore_result")) or envelope.task_id is None,
        "argsrepr": shown(envelope.arguments),
        "kwargsrepr": saferepr(envelope.named, MAX_SHOWN),
    }
    if isinstance(queued_at := sent.get(QUEUED_AT_HEADER), int | float):
        headers[QUEUED_AT_HEADER] = queued_at
    if run := _id(sent.get(RUN_HEADER)):
        headers[RUN_HEADER] = run
    headers |= tracing.valid_headers(sent)
    if envelope.defect is None:
        headers |= {"retries": sent.get("retries") or 0, "eta": start_time(sent.get("eta"))}
    else:
        refusal = {"defect": envelope.defect, "sample": envelope.sample}
        headers |= {"retries": 0, REFUSED_HEADER: refusal}
    return headers


def start_time(eta: Any) -> str | None:
    """Return when a message with this `eta` starts, in ISO 8601, or None if it starts now.

    A message starts now unless its `eta` is a time within the next MAX_DELAY_SECONDS.
    """
    try:
        time = datetime.fromisoformat(eta)
    except (TypeError, ValueError):
        return None
    time = time.replace(tzinfo=time.tzinfo or UTC)
    delay = (time - datetime.now(UTC)).total_seconds()
    return time.isoformat() if 0 < delay <= MAX_DELAY_SECONDS else None


def _read_message(message: Any, envelope: Envelope) -> None:
    """Read `message` into `envelope`, as far as possible; raise MalformedMessage at a defect."""
    if not isinstance(message, dict):
        raise MalformedMessage(f"{json_type(message)} is not a task message")
    headers, properties = _mapping(message.get("headers")), _mapping(message.get("properties"))
    envelope.headers = headers
    envelope.task_id = _id(headers.get("id")) or _id(properties.get("correlation_id"))
    _read_body(_unpacked_body(message, headers, properties), envelope)
    envelope.priority = _checked(envelope.headers, message.get("properties")).properties.priority


def _read_body(body: Any, envelope: Envelope) -> None:
    """Read the arguments in `body` into `envelope`, and in protocol 1 also the headers there."""
    if isinstance(body, dict) and ("args" in body or "kwargs" in body):
        envelope.headers = {**body, **envelope.headers}
        envelope.task_id = envelope.task_id or _id(body.get("id"))
        arguments, named = body.get("args", []), body.get("kwargs", {})
    elif isinstance(body, list) and len(body) == 3:
        arguments, named, _ = body
    else:
        raise MalformedMessage("body: arguments, named arguments and options are expected")
    if not isinstance(arguments, list) or not isinstance(named, dict):
        raise MalformedMessage("body: arguments are a list, and named arguments an object")
    if _exceeds_nesting(arguments, MAX_NESTING) or _exceeds_nesting(named, MAX_NESTING):
        raise MalformedMessage(f"body: the limit of lists within each other is {MAX_NESTING}")
    try:
        loads(_body(arguments, named))  # as Celery will, which decodes dates, decimals and others
    except Exception as error:
        raise MalformedMessage(f"body: {type(error).__name__}") from None
    # The arguments of another task name no picture, and may be secret.
    if envelope.headers.get("task") == TASK:
        envelope.arguments, envelope.named = arguments, named


def _checked(headers: dict[str, Any], properties: Any) -> _Message:
    try:
        valid = _Message.model_validate({"headers": headers, "properties": properties})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        problem = "an object is expected" if first["type"] == "model_type" else in_words(first)
        raise MalformedMessage(f"{name}: {problem}") from None
    if valid.headers.task != TASK:
        raise MalformedMessage(
            f"headers.task: workers take {TASK} alone, not {_quoted(valid.headers.task)}"
        )
    return valid


def _body(arguments: list[Any], named: dict[str, Any]) -> str:
    """Return the body of protocol 2 with these arguments.

    Celery passes its own `self` to a task. An argument of that name is renamed, so that the task
    can refuse it.
    """
    renamed = {"argument self" if name == "self" else name: value for name, value in named.items()}
    return json.dumps([arguments, renamed, None])


def _unpacked_body(
    message: dict[str, Any], headers: dict[str, Any], properties: dict[str, Any]
) -> Any:
    """Return the JSON value of the body of `message`."""
    kind, charset = message.get("content-type"), message.get("content-encoding")
    if kind != "application/json":
        problem = "it is missing" if kind is None else _quoted(kind)
        raise MalformedMessage(
            f"content-type: {problem}, workers take application/json alone (in Celery: "
            "task_serializer = 'json')"
        )
    if (charset.lower() if isinstance(charset, str) else charset) not in CHARSETS:
        raise MalformedMessage(f"content-encoding: {_quoted(charset)}, workers take UTF-8 alone")
    packed = _decoded(message.get("body"), properties.get("body_encoding"))
    return _parsed(_decompressed(packed, headers.get("compression")), "body")


def _decoded(content: Any, encoding: Any) -> bytes:
    """Return the bytes of a body without its transfer `encoding`."""
    if not isinstance(content, str):
        raise MalformedMessage("body: it is not text")
    try:
        if encoding in (None, "utf-8"):
            return content.encode()
        if encoding == "base64":
            return base64.b64decode(content, validate=True)
    except ValueError:
        raise MalformedMessage(f"body: it is not {encoding or 'utf-8'}") from None
    raise MalformedMessage(
        f"properties.body_encoding: {_quoted(encoding)} is neither base64 nor utf-8"
    )


def _decompressed(packed: bytes, compression: Any) -> bytes:
    """Return a body without its `compression`.

    A body that begins like JSON is not compressed, whatever the header says.
    """
    if not compression or packed[:1] in (b"[", b"{"):
        return packed
    new_unpacker = UNPACKERS.get(compression) if isinstance(compression, str) else None
    if new_unpacker is None:
        raise MalformedMessage(
            f"headers.compression: {_quoted(compression)}, workers take gzip, bzip2 and lzma"
        )
    try:
        unpacker = new_unpacker()
        content: bytes = unpacker.decompress(packed, MAX_MESSAGE_BYTES + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise MalformedMessage(
            f"body: {compression} is expected, and {type(error).__name__} was raised"
        ) from None
    if len(content) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"body: it unpacks to more than {MAX_MESSAGE_BYTES:,} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise MalformedMessage(f"body: its {compression} is cut off, or something follows it")
    return content


def _parsed(content: bytes, name: str) -> Any:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{name}: it is not JSON ({type(error).__name__})") from None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _exceeds_nesting(value: Any, levels: int) -> bool:
    """Return whether `value` has more than `levels` levels of lists and objects."""
    if not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_exceeds_nesting(item, levels - 1) for item in items)


def _quoted(value: Any, length: int = MAX_QUOTED_LENGTH) -> str:
    """Return the first `length` characters of a text, printable; of another value its type."""
    return repr(value[:length]) if isinstance(value, str) else json_type(value)


def _id(value: Any) -> str | None:
    """Return `value` if it is a valid task id, else None."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_LENGTH:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def _id_within(end: bytes) -> str | None:
    """Return the task id in the `end` of a message, where Celery puts the headers."""
    found = ID.search(end)
    return _id(found[1].decode(errors="replace")) if found else None


def _sample(item: bytes, message: Any, headers: dict[str, Any]) -> str:
    """Return one printable line that tells an operator who sent `message`, without secrets."""
    if headers:
        names = ["task", "origin"]
        if headers.get("task") == TASK:
            names += ["argsrepr", "kwargsrepr"]
        present = [name for name in names if name in headers]
        quoted = [f"{name} {_quoted(headers[name], MAX_QUOTED_HEADER_LENGTH)}" for name in present]
        return ", ".join(quoted)
    if isinstance(message, dict):
        return "an object with " + ", ".join(map(_quoted, list(message)[:MAX_SAMPLE_NAMES]))
    if message is not None:
        return json_type(message)
    return SECRET.sub("…", ascii(item[:SAMPLE_BYTES].decode("latin-1")))
