"""Receipts: what was done to each picture, as JSON beside the outputs, and found again from a
listing alone.

The receipt of the output ``KEY`` is ``.veil/receipts/KEY.RECIPE.ETAG=BYTES.json`` below the route's
destination: a listing tells which pictures are done, with which recipe, from which version of their
source, and how large the output is. With a receipt key a mark stands in place of the ETag
(tasks.storage.marks). BYTES is 0 for a picture that is held back, and ``==BYTES`` is an output that
is bit for bit its source; receipts of earlier versions lack it. It is written before its output, so
an output that says it is current has its receipt.

Receipts lie where outputs lie, so whoever can write outputs can write receipts. With keys only
those count that are signed with one of them, for the place they were found in.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat
from typing_extensions import TypedDict

from tasks import signatures
from tasks.addresses import MAX_KEY_BYTES, ObjectUri, PrefixUri
from tasks.errors import ImageTooLarge, InvalidRequest, ObjectNotFound
from tasks.messages import MAX_COORDINATE, AnonymizeOptions, Reason
from tasks.routes import RESERVED
from tasks.signatures import FIELD, Key
from tasks.storage.s3 import ObjectStore, StoredObject

PROBE = (
    RESERVED + "probe"
)  # an object that is asked for, or written, to see what can be done in a place
FOLDER = RESERVED + "receipts/"
FOLDER_OF_LONG_KEYS = RESERVED + "receipts-of-long-keys/"
MAX_PART_BYTES = 255  # of a name between two slashes, in stores that keep files
ETAG = re.compile(r"[0-9A-Za-z_-]{1,64}")
RECIPE_NAME = re.compile(r"[0-9a-f]{16}(?:-[0-9a-f]{8})?")
NAME = re.compile(
    r"(.+)\.([0-9a-f]{16}(?:-[0-9a-f]{8})?)\.([0-9A-Za-z_-]{1,64})(?:(==?)([0-9]{1,15}))?\.json",
    re.DOTALL,
)
MAX_VERSION_CHARACTERS = 64  # of ``ETAG=BYTES``; the size is left out where it does not fit
TAIL_BYTES = 1 + 16 + 1 + 8 + 1 + MAX_VERSION_CHARACTERS + 5
MAX_BYTES = 4 << 20  # of a receipt: ten thousand faces have a quarter of that
FETCH_SECONDS = 30.0

# What an output says of itself: names of S3 metadata. tasks.storage.marks makes the values of the
# first two.
SOURCE = "veil-source-sha256"
SOURCE_ETAG = "veil-source-etag"
RECIPE = "veil-recipe"
FACES = "veil-faces"
LEFT = "veil-left"  # how many faces the last check still found, where it did

Check = Literal["off", "same", "clear", "left"]
"""What looking at the output again said: not done; its pixels are those that were looked at; no
face; faces left.
"""


@dataclass(frozen=True)
class Made:
    """That an output was made: its `key` below the destination, with which recipe, from which
    source version.

    `etag` is the mark of that version: its ETag, or a keyed digest (tasks.storage.marks). `size` is
    that of the output in bytes, 0 for a picture that is held back, None where the name does not
    tell. `is_copy` is set where the output is bit for bit its source.
    """

    key: str
    recipe: str
    etag: str
    size: int | None = field(default=None, compare=False)
    is_copy: bool = field(default=False, compare=False)

    @classmethod
    def of(
        cls, key: str, recipe: str, etag: str, size: int | None = None, is_copy: bool = False
    ) -> Self:
        """Return it as the name of a receipt has it: the digest stands in for an `etag` that no
        name can hold.
        """
        if not ETAG.fullmatch(etag):
            etag = hashlib.sha256(etag.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return cls(key, recipe, etag, size, is_copy)

    def may_be(self, source: StoredObject, output: StoredObject) -> bool:
        """Return whether `output` of `source` is, as listings have both, the one that was made.

        A name without a size tells only a copy of the source from it.
        """
        if self.size == 0 or self.size not in (None, output.size):
            return False
        return self.is_copy or not looks_like_copy(source, output)

    @classmethod
    def said_by(cls, key: str, output: StoredObject) -> Self:
        """Return it as the metadata and the size of the `output` at `key` have it.

        Anybody who can write outputs chooses their metadata: what is no recipe is left out, as it
        would become a part of a receipt's address.
        """
        recipe = output.metadata.get(RECIPE, "")
        recipe = recipe if RECIPE_NAME.fullmatch(recipe) else ""
        return cls.of(key, recipe, output.metadata.get(SOURCE_ETAG, ""), output.size)


def _check_options(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse options that no request can have: one that is unknown here could be one that hides
    more.
    """
    try:
        AnonymizeOptions.of(value)
    except InvalidRequest as error:
        raise ValueError(str(error)) from None
    return value


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Coordinate = Annotated[int, Field(ge=0, le=MAX_COORDINATE)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
Score = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Face(TypedDict):
    """A face that was hidden."""

    box_xyxy: Box
    score: Score


class Receipt(BaseModel):
    """A record of what was done to one picture. Sizes are bytes and pixels, times seconds, digests
    SHA-256 in hex.

    `output_sha256` and `output_bytes` are None for a picture that was held back. `faces` has a
    ``box_xyxy``, in whole pixels of the upright picture, and a ``score`` for each face, strongest
    first. `options` are what the request asked for. `check` says what came of looking at the output
    again, `found_by_check` are the boxes of those faces that were only found so, `left_xyxy` of
    those that the last check still found (they are hidden too, but nobody has looked again),
    `reason` why it was held, or should be looked at, `signature` is the worker's, see
    tasks.signatures. With a key `output_mark` and `source_mark` are keyed digests of both
    addresses. It holds no pixels, and no address.

    Fields that a later version adds are ignored, though their signature covers them too.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    status: Literal["anonymized", "held"]
    created: str
    source_etag: str
    source_sha256: str
    source_bytes: Count
    output_sha256: str | None
    output_bytes: Count | None
    format: str
    width: Count
    height: Count
    recipe: str
    faces: list[Face]
    seconds: dict[str, FiniteFloat]
    made_with: dict[str, str]
    options: Annotated[dict[str, Any], AfterValidator(_check_options)] = Field(default_factory=dict)
    check: Check = "off"
    found_by_check: list[Box] = Field(default_factory=list)
    left_xyxy: list[Box] = Field(default_factory=list)
    reason: Reason | None = None
    output_mark: str | None = None
    source_mark: str | None = None
    signature: dict[str, str] | None = None

    def to_bytes(self, key: Key | None = None) -> bytes:
        """Return the receipt's file, signed with `key` if there is one; ImageTooLarge if nobody
        would read it.
        """
        fields = dict(vars(self))
        content = json.dumps(fields | {FIELD: key.sign(fields)} if key else fields).encode() + b"\n"
        if len(content) > MAX_BYTES:
            raise ImageTooLarge(
                f"the receipt of {len(self.faces):,} faces has {len(content):,} bytes, the limit is {MAX_BYTES:,}"
            )
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the receipt in a file; raises ValueError for anything that is none."""
        return cls.model_validate(_fields(content))

    def is_of(self, source: StoredObject, output: StoredObject) -> bool:
        """Return whether `output` can be the one that was made, and not a copy of `source` in its
        place.
        """
        if output.size != self.output_bytes:
            return False
        return self.output_sha256 == self.source_sha256 or not looks_like_copy(source, output)

    @property
    def asked(self) -> AnonymizeOptions:
        return AnonymizeOptions.of(self.options)

    @property
    def lowest_score(self) -> float | None:
        return min((face["score"] for face in self.faces), default=None)


Flaw = signatures.Flaw | Literal["bad receipt", "misplaced", "unplaced"]
"""Why a receipt does not count: its signature; its file is no receipt; it was signed for another
output.

One that is unplaced was signed by a version that did not sign places, and counts.
"""


@dataclass(frozen=True)
class Found:
    """A file in a receipt's place. `receipt` is None if it holds none."""

    receipt: Receipt | None
    flaw: Flaw | None

    @property
    def counting(self) -> Receipt | None:
        """The receipt, if it counts."""
        return self.receipt if self.flaw in (None, "unplaced") else None


def uri(destination: PrefixUri, made: Made) -> ObjectUri:
    """The address of the receipt of `made` below the route's `destination`."""
    version = (
        made.etag if made.size is None else f"{made.etag}{'==' if made.is_copy else '='}{made.size}"
    )
    if len(version) > MAX_VERSION_CHARACTERS:
        version = made.etag
    return destination.join(f"{_stem(destination, made.key)}.{made.recipe}.{version}.json")


def prefix(destination: PrefixUri, key: str) -> str:
    """What the keys of all receipts of the output `key` begin with; `parse` tells which are really
    its own.
    """
    return f"{destination.prefix}{_stem(destination, key)}."


def is_long(destination: PrefixUri, key: str) -> bool:
    """Whether `key` leaves no room for a receipt's name, so that its receipts are listed by digest
    instead.
    """
    last = key.rpartition("/")[2]
    whole = f"{destination.prefix}{FOLDER}{key}"
    return (
        len(last.encode()) + TAIL_BYTES > MAX_PART_BYTES
        or len(whole.encode()) + TAIL_BYTES > MAX_KEY_BYTES
    )


def parse(name: str) -> Made | None:
    """What the receipt named `name`, relative to FOLDER, is of; None if it is no receipt's name."""
    found = NAME.fullmatch(name)
    if not found:
        return None
    return Made(found[1], found[2], found[3], int(found[5]) if found[5] else None, found[4] == "==")


def named(store: ObjectStore, destination: PrefixUri, key: str) -> Iterator[tuple[ObjectUri, Made]]:
    """Yield the receipts of the output `key` by their names, which prove nothing."""
    stem = prefix(destination, key)[:-1]
    for stored in store.list(destination.bucket, stem + "."):
        made = parse(stored.uri.key)
        if made is not None and made.key == stem:
            yield stored.uri, replace(made, key=key)


def find(
    store: ObjectStore, destination: PrefixUri, made: Made, output: ObjectUri, keys: Sequence[Key]
) -> Found | None:
    """Return the file in the place of the receipt of `made`, the one for its size first; None if
    there is none.

    `output` is the address of the output.
    """
    if not made.recipe:
        return None
    if found := read(store, uri(destination, made), output, keys):
        return found
    for at, other in named(store, destination, made.key):
        if other == made:
            return read(store, at, output, keys)
    return None


def read(
    store: ObjectStore, uri: ObjectUri, output: ObjectUri, keys: Sequence[Key]
) -> Found | None:
    """Return the file at `uri`, judged by `keys` as a receipt of `output`; None if there is
    none.
    """
    try:
        with store.open(uri) as opened:
            content = opened.read(MAX_BYTES, FETCH_SECONDS)
    except ObjectNotFound:
        return None
    except ImageTooLarge:
        return Found(None, "bad receipt")
    try:
        fields = _fields(content)
        # What is signed is what is written there: a receipt of another version has other fields
        # than this one.
        flaw = signatures.flaw(fields, keys)
        receipt = Receipt.model_validate(fields)
    except (ValueError, RecursionError):  # nested more deeply than can be written again
        return Found(None, "bad receipt")
    return Found(receipt, flaw or _place_flaw(receipt, output, keys))


def looks_like_copy(source: StoredObject, output: StoredObject) -> bool:
    """Return whether an output may be the source itself, as far as listings tell."""
    return (source.etag, source.size) == (output.etag, output.size)


def place_mark(output: ObjectUri, key: Key) -> str:
    """Return the keyed digest of an output's address."""
    return key.digest(b"output\0" + str(output).encode("utf-8", "surrogatepass"))


def _place_flaw(receipt: Receipt, output: ObjectUri, keys: Sequence[Key]) -> Flaw | None:
    if not keys:
        return None
    if receipt.output_mark is None:
        return "unplaced"
    is_there = any(place_mark(output, key) == receipt.output_mark for key in keys)
    return None if is_there else "misplaced"


def _fields(content: bytes) -> dict[str, Any]:
    """Return the JSON object in `content`; raises ValueError if it holds anything else."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        fields = json.loads(content, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("a receipt is a JSON object")
    if b"\\u" in content:
        json.dumps(fields, ensure_ascii=False).encode()  # UnicodeEncodeError for half a character
    return fields


def is_of(made: str, recipe: str | None) -> bool:
    """Whether an output by the recipe `made` is one of `recipe`, whatever options it was asked for
    with.
    """
    return recipe is None or made.partition("-")[0] == recipe


def _stem(destination: PrefixUri, key: str) -> str:
    if is_long(destination, key):
        return FOLDER_OF_LONG_KEYS + hashlib.sha256(key.encode()).hexdigest()
    return FOLDER + key
