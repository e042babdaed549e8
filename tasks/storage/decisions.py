"""Decisions: a JSON record of each decision of a reviewer, stored beside the receipts.

The record of the output ``KEY`` is ``.veil/decisions/KEY.TIME.ID.json`` below the destination of
the route. It says who decided what, when, and on which version of the source. As a receipt, it has
no pixels and no addresses, and is signed if there is a receipt key. A record is never replaced. A
digest replaces a key that is too long for a name.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter

from .. import signatures
from ..addresses import ObjectUri, PrefixUri
from ..errors import ImageTooLarge, ObjectNotFound
from ..routes import RESERVED
from ..signatures import FIELD, Key
from .marks import Marks
from .receipts import FETCH_SECONDS, MAX_BYTES, is_long, json_object, place_mark
from .s3 import ObjectStore
from .upload_headers import PLAIN, UploadHeaders

FOLDER = RESERVED + "decisions/"
FOLDER_OF_LONG_KEYS = RESERVED + "decisions-of-long-keys/"
NAME = re.compile(r"(.+)\.([0-9]{17})\.[0-9a-f]{12}\.json", re.DOTALL)
ID_BYTES = 6  # tell decisions of one millisecond apart

Action = Literal["redo", "release", "accept", "drop", "mark"]
"""`accept` is of an output with a low score. Older records have `drop` in its place."""


@dataclass(frozen=True)
class Decision:
    """A reviewer's decision on one picture.

    `by` is the reviewer, `at` the time in ISO 8601, UTC. `source_etag` is the version of the source
    that was reviewed, and `output_etag` that of the output, if it is known. `options` are those of
    the request that followed. `exposed_xyxy` has the faces that a reviewer of a sample marked.
    """

    action: Action
    by: str
    at: str
    source_etag: str | None
    output_etag: str | None = None
    reason: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    exposed_xyxy: list[list[int]] | None = None
    sample: str | None = None
    source_mark: str | None = None
    output_mark: str | None = None


DECISION = TypeAdapter(Decision)


def now() -> str:
    """Return the time for a decision."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def record(
    store: ObjectStore,
    destination: PrefixUri,
    output: ObjectUri,
    source: ObjectUri | None,
    decision: Decision,
    keys: Sequence[Key],
    headers: UploadHeaders = PLAIN,
) -> ObjectUri:
    """Store `decision` on `output`, which lies below the route's `destination`.

    The first of `keys` signs it, and `headers` go with the upload. Raises the errors of the store:
    then nothing must follow. The name is new, so the upload has no condition: some stores refuse
    one, and a repeated call would fail after an answer that was lost.
    """
    sign = next(iter(keys), None)
    fields = asdict(decision)
    if source is not None:
        fields["source_mark"] = Marks(keys).source(source)
    if sign is not None:
        fields["output_mark"] = place_mark(output, sign)
        fields[FIELD] = sign.sign(fields)
    stamp = "".join(character for character in decision.at if character.isdigit())
    name = f"{stamp[:17]}.{secrets.token_hex(ID_BYTES)}.json"
    uri = destination.join(f"{_stem(destination, destination.relative(output))}.{name}")
    store.put(uri, json.dumps(fields).encode() + b"\n", "application/json", {}, headers)
    return uri


Flaw = signatures.Flaw | Literal["bad record", "misplaced"]
"""The reason why a record does not count.

It is a flaw of its signature, ``bad record`` if the file holds no decision, or ``misplaced`` if it
was signed for another output.
"""


@dataclass(frozen=True)
class RecordName:
    """The facts that the name of a record states: the output, and the time of the decision.

    `output` is None if a digest replaces its key.
    """

    uri: ObjectUri
    output: ObjectUri | None
    stamp: str


@dataclass(frozen=True)
class Record:
    """The file of a record. `decision` is None if it holds none."""

    name: RecordName
    decision: Decision | None
    flaw: Flaw | None


def names(store: ObjectStore, destination: PrefixUri, outputs: PrefixUri) -> Iterator[RecordName]:
    """Yield the names of the records of `outputs`, within the route's `destination`.

    `outputs` is a prefix, or the address of one output followed by a slash. The records of outputs
    with long keys are found at the address of the output, and at that of the whole destination.
    Names prove nothing.
    """
    below = destination.rest(outputs)
    for stem, uri, stamp in _listed(store, destination, FOLDER + below):
        yield RecordName(uri, destination.join(stem.removeprefix(FOLDER)), stamp)
    if not below:
        for _, uri, stamp in _listed(store, destination, FOLDER_OF_LONG_KEYS):
            yield RecordName(uri, None, stamp)
        return
    key = below.removesuffix("/")
    wanted = _stem(destination, key)
    for stem, uri, stamp in _listed(store, destination, f"{wanted}."):
        if stem == wanted:
            yield RecordName(uri, destination.join(key), stamp)


def read(store: ObjectStore, name: RecordName, keys: Sequence[Key]) -> Record | None:
    """Return the record `name`, checked with `keys`; None if it is gone."""
    try:
        with store.open(name.uri) as opened:
            content = opened.read(MAX_BYTES, FETCH_SECONDS)
    except ObjectNotFound:
        return None
    except ImageTooLarge:
        return Record(name, None, "bad record")
    try:
        fields = json_object(content)
        flaw = signatures.flaw(fields, keys)
        decision = DECISION.validate_python(fields)
    except (ValueError, RecursionError):
        return Record(name, None, "bad record")
    return Record(name, decision, flaw or _place_flaw(name, decision, keys))


def _listed(
    store: ObjectStore, destination: PrefixUri, start: str
) -> Iterator[tuple[str, ObjectUri, str]]:
    """Yield the records that begin with `start`: the part before the time, the address, the time.

    The first is relative to `destination`.
    """
    for stored in store.list(destination.bucket, destination.prefix + start):
        if found := NAME.fullmatch(destination.relative(stored.uri)):
            stem, stamp = found.groups()
            yield stem, stored.uri, stamp


def _place_flaw(name: RecordName, decision: Decision, keys: Sequence[Key]) -> Flaw | None:
    if not keys or name.output is None:
        return None
    marks = [place_mark(name.output, key) for key in keys]
    return None if decision.output_mark in marks else "misplaced"


def _stem(destination: PrefixUri, key: str) -> str:
    if is_long(destination, key):
        return FOLDER_OF_LONG_KEYS + hashlib.sha256(key.encode()).hexdigest()
    return FOLDER + key
