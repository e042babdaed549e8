"""Decisions: a JSON record of each decision of a reviewer, stored beside the receipts.

The record of the output ``KEY`` is ``.veil/decisions/KEY.TIME.ID.json`` below the destination of
the route. It says who decided what, when, and on which version of the source. As a receipt, it has
no pixels and no addresses, and is signed if there is a receipt key. A record is never replaced.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from .. import signatures
from ..addresses import ObjectUri, PrefixUri
from ..routes import RESERVED
from ..signatures import FIELD, Flaw, Key
from .marks import Marks
from .receipts import FETCH_SECONDS, MAX_BYTES, is_long, place_mark
from .s3 import ObjectStore

FOLDER = RESERVED + "decisions/"
ID_BYTES = 6  # tell decisions of one millisecond apart

Action = Literal["redo", "release", "drop", "mark"]


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
) -> ObjectUri:
    """Store `decision` on `output`, which lies below the route's `destination`.

    The first of `keys` signs it. Raises the errors of the store: then nothing must follow.
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
    store.put(uri, json.dumps(fields).encode() + b"\n", "application/json", {}, IfNoneMatch="*")
    return uri


def listed(
    store: ObjectStore, destination: PrefixUri, key: str, keys: Sequence[Key]
) -> Iterator[tuple[ObjectUri, dict[str, Any], Flaw | None]]:
    """Yield the records of outputs whose keys begin with `key`, oldest first for each output.

    Each comes with the flaw of its signature, None if it has none.
    """
    for stored in store.list(destination.bucket, f"{destination.prefix}{FOLDER}{key}"):
        with store.open(stored.uri) as opened:
            content = opened.read(MAX_BYTES, FETCH_SECONDS)
        try:
            fields = json.loads(content)
        except ValueError:
            fields = {}
        yield stored.uri, fields, signatures.flaw(fields, keys)


def _stem(destination: PrefixUri, key: str) -> str:
    if is_long(destination, key):
        return FOLDER + hashlib.sha256(key.encode()).hexdigest()
    return FOLDER + key
