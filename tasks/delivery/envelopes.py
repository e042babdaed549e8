"""Messages as they lie on a queue: every form in which Celery sends a task, read within bounds.

Celery's workers take message protocols 1 and 2, and compressed bodies. So does `read`, from JSON
alone: nothing is unpickled or executed to read a message. A message that can't be taken is given to
Celery all the same, with its defect in a header: its task fails by name, so that it ends as a dead
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

from tasks.errors import MalformedMessage
from tasks.messages import QUEUED_AT_HEADER, REFUSED_HEADER, RUN_HEADER, TASK
from tasks.representation import MAX_SHOWN, shown

LONGEST_WAIT_SECONDS = 600.0  # until the start of a message: more than any retry asks for
MOST_BYTES = 1 << 20  # of a message, and of its unpacked body: five times the most options
MOST_ID = 1000  # characters of a task's id
MOST_NESTED = 50  # lists and objects within each other in the arguments; options have four
LZMA_BYTES = 32 << 20  # of memory for unpacking: the preset that Celery uses needs 9 MiB
TAIL_BYTES = 16 << 10  # of a message that is too large, in which its id is looked for
SAMPLE_BYTES = 64  # of a message that is no JSON object
SAMPLE_LENGTH = 1000  # characters
CHARSETS = (None, "utf-8", "utf8", "us-ascii", "ascii")
NAMESPACE = uuid.UUID(
    "d55cfae5-5e3c-4bea-b44a-5981f3e76cc8"
)  # of the ids given to messages without one
ID = re.compile(rb'"(?:id|correlation_id)": ?"([^"\\]{1,1000})"')
# Whatever is assigned to something, or is long enough to be a key, is left out of a sample.
SECRET = re.compile(r"(?<=[=:])\s*[^\s,;]+|[\w+/=.~-]{16,}")

# By the names and content types that kombu has for them. Its own functions unpack without a limit.
UNPACKERS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), partial(zlib.decompressobj, wbits=zlib.MAX_WBITS | 32)),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
    **dict.fromkeys(
        ("application/x-lzma", "lzma", "xz"), partial(lzma.LZMADecompressor, memlimit=LZMA_BYTES)
    ),
}  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Headers(_Strict):
    task: str
    id: str = Field(min_length=1, max_length=MOST_ID)
    retries: int | None = Field(None, ge=0)


class _Properties(_Strict):
    priority: int | None = None


class _Message(_Strict):
    headers: _Headers
    properties: _Properties


@dataclass
class Envelope:
    """The readable parts of an item on a queue. `defect` says why a worker can't take it, if so."""

    task_id: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    priority: int | None = None
    arguments: list[Any] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)
    defect: str | None = None
    sample: str = ""


def read(item: bytes, size: int) -> Envelope:
    """Return what `item` holds: a message of `size` bytes, or the end of a larger one.

    A message is larger if it has more than MOST_BYTES.
    """
    envelope = Envelope()
    message: Any = None
    try:
        if size > MOST_BYTES:
            envelope.task_id = _id_within(item[-TAIL_BYTES:])
            raise MalformedMessage(f"the message has {size:,} bytes, the limit is {MOST_BYTES:,}")
        message = _parsed(item, "the message")
        _read_message(message, envelope)
    except MalformedMessage as error:
        envelope.defect = str(error)
        envelope.sample = f"{size:,} bytes: {_sample(item, message, envelope.headers)}"[
            :SAMPLE_LENGTH
        ]
    return envelope


def for_celery(item: bytes, size: int, queue: str, tag: str) -> dict[str, Any]:
    """Return the message for Celery of `item`, taken from `queue` as the delivery `tag`.

    Only what Veil needs is passed on. Celery turns every header, and every value in the body
    besides the arguments, into an attribute of the task's request, even where that replaces one of
    its own. It sends a retry to the queue that the message names, keeps a message until its `eta`,
    and drops it after `expires`. It never acknowledges a message whose callbacks, chain or chord
    can't be called.
    """
    envelope = read(item, size)
    said = envelope.headers
    headers: dict[str, Any] = {
        "task": TASK,
        "id": envelope.task_id or str(uuid.uuid5(NAMESPACE, item.hex())),
        "root_id": _id(said.get("root_id")),
        "parent_id": _id(said.get("parent_id")),
        "ignore_result": bool(said.get("ignore_result"))
        or envelope.task_id is None,  # nobody can ask for that one
        "argsrepr": shown(envelope.arguments),
        "kwargsrepr": saferepr(envelope.named, MAX_SHOWN),
    }
    if isinstance(queued_at := said.get(QUEUED_AT_HEADER), int | float):
        headers[QUEUED_AT_HEADER] = queued_at
    if run := _id(said.get(RUN_HEADER)):
        headers[RUN_HEADER] = run
    if envelope.defect is None:
        headers |= {"retries": said.get("retries") or 0, "eta": start(said.get("eta"))}
    else:
        headers |= {
            "retries": 0,
            REFUSED_HEADER: {"defect": envelope.defect, "sample": envelope.sample},
        }
    return {
        "body": base64.b64encode(_body_of(envelope.arguments, envelope.named).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "delivery_tag": tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
            "priority": envelope.priority,
        },
    }


def start(eta: Any) -> str | None:
    """Return when a message with this `eta` begins; None for now.

    A message begins now unless its `eta` is a time within LONGEST_WAIT_SECONDS.
    """
    try:
        at = datetime.fromisoformat(eta)
    except (TypeError, ValueError):
        return None
    at = at.replace(tzinfo=at.tzinfo or UTC)
    return (
        at.isoformat()
        if 0 < (at - datetime.now(UTC)).total_seconds() <= LONGEST_WAIT_SECONDS
        else None
    )


def _read_message(message: Any, envelope: Envelope) -> None:
    """Read `message` into `envelope`, as far as possible; raise MalformedMessage at a defect."""
    if not isinstance(message, dict):
        raise MalformedMessage(f"a JSON {type(message).__name__} is no task message")
    headers, properties = _mapping(message.get("headers")), _mapping(message.get("properties"))
    envelope.headers = headers
    envelope.task_id = _id(headers.get("id")) or _id(properties.get("correlation_id"))
    _read_body(_body(message, headers, properties), envelope)
    envelope.priority = _checked(envelope.headers, message.get("properties")).properties.priority


def _read_body(body: Any, envelope: Envelope) -> None:
    """Put the arguments in `body` into `envelope`, and what else protocol 1 has there."""
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
    if _is_nested(arguments, MOST_NESTED) or _is_nested(named, MOST_NESTED):
        raise MalformedMessage(f"body: the limit of lists within each other is {MOST_NESTED}")
    try:
        loads(_body_of(arguments, named))  # as Celery will: it revives dates, decimals and more
    except Exception as error:
        raise MalformedMessage(f"body: {type(error).__name__}") from None
    if (
        envelope.headers.get("task") == TASK
    ):  # those of another task name no picture, and may be secret
        envelope.arguments, envelope.named = arguments, named


def _checked(headers: dict[str, Any], properties: Any) -> _Message:
    try:
        valid = _Message.model_validate({"headers": headers, "properties": properties})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise MalformedMessage(
            f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        ) from None
    if valid.headers.task != TASK:
        raise MalformedMessage(
            f"headers.task: workers take {TASK} alone, not {_quoted(valid.headers.task)}"
        )
    return valid


def _body_of(arguments: list[Any], named: dict[str, Any]) -> str:
    """Return the body of protocol 2 with these arguments.

    Celery calls a task with a `self` of its own; under another name the task can refuse the
    sender's.
    """
    renamed = {"argument self" if name == "self" else name: value for name, value in named.items()}
    return json.dumps([arguments, renamed, None])


def _body(message: dict[str, Any], headers: dict[str, Any], properties: dict[str, Any]) -> Any:
    """Return what the body of `message` holds as JSON."""
    kind, charset = message.get("content-type"), message.get("content-encoding")
    if kind != "application/json":
        raise MalformedMessage(
            f"content-type: {_quoted(kind)}, workers take JSON alone: task_serializer = 'json'"
        )
    if (charset.lower() if isinstance(charset, str) else charset) not in CHARSETS:
        raise MalformedMessage(f"content-encoding: {_quoted(charset)}, workers take UTF-8 alone")
    content, encoding = message.get("body"), properties.get("body_encoding")
    if not isinstance(content, str):
        raise MalformedMessage("body: it is not text")
    try:
        if encoding in (None, "utf-8"):
            packed = content.encode()
        elif encoding == "base64":
            packed = base64.b64decode(content, validate=True)
        else:
            raise MalformedMessage(
                f"properties.body_encoding: {_quoted(encoding)} is neither base64 nor utf-8"
            )
    except ValueError:
        raise MalformedMessage(f"body: it is not {encoding or 'utf-8'}") from None
    return _parsed(_unpacked(packed, headers.get("compression")), "body")


def _unpacked(packed: bytes, compression: Any) -> bytes:
    """Return a body without its `compression`.

    A body that begins as JSON is not compressed, whatever the header says.
    """
    if not compression or packed[:1] in (b"[", b"{"):
        return packed
    make = UNPACKERS.get(compression) if isinstance(compression, str) else None
    if make is None:
        raise MalformedMessage(
            f"headers.compression: {_quoted(compression)}, workers take gzip, bzip2 and lzma"
        )
    try:
        unpacker = make()
        content: bytes = unpacker.decompress(packed, MOST_BYTES + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise MalformedMessage(
            f"body: {compression} is expected, and {type(error).__name__} was raised"
        ) from None
    if len(content) > MOST_BYTES:
        raise MalformedMessage(f"body: it unpacks to more than {MOST_BYTES:,} bytes")
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


def _is_nested(value: Any, levels: int) -> bool:
    """Return whether `value` has more than so many `levels` of lists and objects."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_nested(each, levels - 1) for each in inner)


def _quoted(value: Any, most: int = 100) -> str:
    """Return the beginning of a text of a message, printable; of anything else its type."""
    return repr(value[:most]) if isinstance(value, str) else f"a JSON {type(value).__name__}"


def _id(value: Any) -> str | None:
    """Return `value` if it can be a task's id."""
    if not isinstance(value, str) or not 1 <= len(value) <= MOST_ID:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def _id_within(end: bytes) -> str | None:
    """Return the task's id from the `end` of a message, where Celery puts the headers."""
    found = ID.search(end)
    return _id(found[1].decode(errors="replace")) if found else None


def _sample(item: bytes, message: Any, headers: dict[str, Any]) -> str:
    """Return one printable line that tells an operator who sent `message`, without secrets."""
    if headers:
        named = [
            "task",
            "origin",
            *(("argsrepr", "kwargsrepr") if headers.get("task") == TASK else ()),
        ]
        return ", ".join(
            f"{name} {_quoted(headers[name], 300)}" for name in named if name in headers
        )
    if isinstance(message, dict):
        return "an object with " + ", ".join(_quoted(name) for name in list(message)[:10])
    if message is not None:
        return f"a JSON {type(message).__name__}"
    return SECRET.sub("…", ascii(item[:SAMPLE_BYTES].decode("latin-1")))
