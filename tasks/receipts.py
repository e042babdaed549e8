"""Receipts: what was done to each picture, as JSON beside the outputs, and found again from a listing alone.

The receipt of the output ``KEY`` is ``.veil/receipts/KEY.RECIPE.ETAG.json`` below the route's destination: a listing
tells which pictures are done, with which recipe, from which version of their source. With a receipt key a mark stands
in place of the ETag (tasks.marks). It is written before its output, so an output that says it is current has its
receipt.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from tasks.addresses import MAX_KEY_BYTES, ObjectUri, PrefixUri
from tasks.errors import ObjectNotFound
from tasks.messages import Reason
from tasks.routes import RESERVED
from tasks.s3 import ObjectStore
from tasks.signatures import FIELD, Flaw, Key, flaw

PROBE = RESERVED + "probe"  # an object that is asked for, or written, to see what can be done in a place
FOLDER = RESERVED + "receipts/"
FOLDER_OF_LONG_KEYS = RESERVED + "receipts-of-long-keys/"
MAX_PART_BYTES = 255  # of a name between two slashes, in stores that keep files
ETAG = re.compile(r"[0-9A-Za-z_-]{1,64}")
NAME = re.compile(r"(.+)\.([0-9a-f]{16}(?:-[0-9a-f]{8})?)\.([0-9A-Za-z_-]{1,64})\.json", re.DOTALL)
TAIL_BYTES = 1 + 16 + 1 + 8 + 1 + 64 + 5
MAX_BYTES = 4 << 20  # of a receipt: a thousand faces have a tenth of that
FETCH_SECONDS = 30.0

# What an output says of itself: names of S3 metadata. tasks.marks makes the values of the first two.
SOURCE = "veil-source-sha256"
SOURCE_ETAG = "veil-source-etag"
RECIPE = "veil-recipe"
FACES = "veil-faces"
LEFT = "veil-left"  # how many faces the last check still found, where it did

Check = Literal["off", "same", "clear", "left"]
"""What looking at the output again said: not done; its pixels are those that were looked at; no face; faces left."""


@dataclass(frozen=True)
class Made:
    """That an output was made: its `key` below the destination, with which recipe, from which source version.

    `etag` is the mark of that version: its ETag, or a keyed digest (tasks.marks).
    """

    key: str
    recipe: str
    etag: str

    @classmethod
    def of(cls, key: str, recipe: str, etag: str) -> Self:
        """As the name of a receipt has it: an `etag` that does not fit into a name is replaced by its digest."""
        return cls(key, recipe, etag if ETAG.fullmatch(etag) else hashlib.sha256(etag.encode()).hexdigest()[:32])

    @classmethod
    def said_by(cls, key: str, metadata: Mapping[str, str]) -> Self:
        """As the `metadata` of the output `key` have it."""
        return cls.of(key, metadata.get(RECIPE, ""), metadata.get(SOURCE_ETAG, ""))


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What was done to one picture. Sizes are bytes and pixels, times seconds, digests SHA-256 in hex.

    `output_sha256` and `output_bytes` are None for a picture that was held back. `faces` has a ``box_xyxy``, in whole
    pixels of the upright picture, and a ``score`` for each face, strongest first. `options` are what the request asked
    for. `check` says what came of looking at the output again, `found_by_check` are the boxes of those faces that were
    only found so, `left_xyxy` of those that the last check still found (they are hidden too, but nobody has looked
    again), `reason` why it was held, or should be looked at, `signature` is the worker's, see
    tasks.signatures. It holds no pixels, and no address.
    """

    status: Literal["anonymized", "held"]
    created: str
    source_etag: str
    source_sha256: str
    source_bytes: int
    output_sha256: str | None
    output_bytes: int | None
    format: str
    width: int
    height: int
    recipe: str
    faces: list[dict[str, Any]]
    seconds: dict[str, float]
    made_with: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    check: Check = "off"
    found_by_check: list[list[int]] = field(default_factory=list)
    left_xyxy: list[list[int]] = field(default_factory=list)
    reason: Reason | None = None
    signature: dict[str, str] | None = None

    def to_bytes(self, key: Key | None = None) -> bytes:
        """The receipt's file, signed with `key` if there is one."""
        fields = dict(vars(self))
        return json.dumps(fields | {FIELD: key.sign(fields)} if key else fields).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Raises ValueError or TypeError for anything that is no receipt."""
        return cls(**json.loads(content))

    @property
    def lowest_score(self) -> float | None:
        return min((face["score"] for face in self.faces), default=None)


def uri(destination: PrefixUri, made: Made) -> ObjectUri:
    """The address of the receipt of `made` below the route's `destination`."""
    return destination.join(f"{_stem(destination, made.key)}.{made.recipe}.{made.etag}.json")


def prefix(destination: PrefixUri, key: str) -> str:
    """What the keys of all receipts of the output `key` begin with; `parse` tells which are really its own."""
    return f"{destination.prefix}{_stem(destination, key)}."


def is_long(destination: PrefixUri, key: str) -> bool:
    """Whether `key` leaves no room for a receipt's name, so that its receipts are listed by digest instead."""
    last = key.rpartition("/")[2]
    whole = f"{destination.prefix}{FOLDER}{key}"
    return len(last.encode()) + TAIL_BYTES > MAX_PART_BYTES or len(whole.encode()) + TAIL_BYTES > MAX_KEY_BYTES


def parse(name: str) -> Made | None:
    """What the receipt named `name`, relative to FOLDER, is of; None if it is no receipt's name."""
    found = NAME.fullmatch(name)
    return Made(found[1], found[2], found[3]) if found else None


def read(store: ObjectStore, uri: ObjectUri) -> Receipt | None:
    """The receipt at `uri`; None if there is none, or something else."""
    found = read_signed(store, uri, ())
    return None if found is None else found[0]


def read_signed(store: ObjectStore, uri: ObjectUri, keys: Sequence[Key]) -> tuple[Receipt, Flaw | None] | None:
    """The receipt at `uri` and what is wrong with its signature by `keys`; None if there is no receipt."""
    try:
        with store.open(uri) as opened:
            content = opened.read(MAX_BYTES, FETCH_SECONDS)
        # What is signed is what is written there: a receipt of an older version lacks fields of this one.
        return Receipt.from_bytes(content), flaw(json.loads(content), keys)
    except (ObjectNotFound, ValueError, TypeError):
        return None


def is_of(made: str, recipe: str | None) -> bool:
    """Whether an output by the recipe `made` is one of `recipe`, whatever options it was asked for with."""
    return recipe is None or made.partition("-")[0] == recipe


def _stem(destination: PrefixUri, key: str) -> str:
    if is_long(destination, key):
        return FOLDER_OF_LONG_KEYS + hashlib.sha256(key.encode()).hexdigest()
    return FOLDER + key
