"""Receipts: a JSON record of each picture beside the outputs, which listings alone can match to it.

The receipt of the output ``KEY`` is ``.veil/receipts/KEY.RECIPE.ETAG=BYTES.json`` below the
destination of the route. So a listing tells which pictures are done, with which recipe, from which
version of their source, and how large the output is. With a receipt key a mark replaces the ETag
(tasks.storage.marks). BYTES is 0 for a picture that is held. ``==BYTES`` marks an output that is
identical to its source, bit for bit. Receipts of earlier versions have no size. A receipt is
written before its output, so every output that states its recipe has a receipt.

Receipts are stored with the outputs, so anybody who can write outputs can write receipts. If there
are receipt keys, a receipt only counts if it was signed with one of them, for its own output.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NoReturn, NotRequired, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat
from typing_extensions import TypedDict

from .. import signatures
from ..addresses import MAX_KEY_BYTES, ObjectUri, PrefixUri
from ..errors import ImageTooLarge, InvalidRequest, ObjectNotFound
from ..messages import (
    FACE,
    MAX_COORDINATE,
    MAX_LABEL_LENGTH,
    AnonymizeOptions,
    Check,
    Reason,
)
from ..routes import RESERVED
from ..signatures import FIELD, Key
from .s3 import ObjectStore, StoredObject

PROBE = RESERVED + "probe"  # an object for tests whether a place can be read and written
FOLDER = RESERVED + "receipts/"
FOLDER_OF_LONG_KEYS = RESERVED + "receipts-of-long-keys/"
MAX_PART_BYTES = 255  # between two slashes, in stores that keep objects as files: NAME_MAX of Linux
ETAG = re.compile(r"[0-9A-Za-z_-]{1,64}")
RECIPE_NAME = re.compile(r"[0-9a-f]{16}(?:-[0-9a-f]{8})?")
NAME = re.compile(
    r"(.+)\.([0-9a-f]{16}(?:-[0-9a-f]{8})?)\.([0-9A-Za-z_-]{1,64})(?:(==?)([0-9]{1,15}))?\.json",
    re.DOTALL,
)
MAX_VERSION_CHARACTERS = 64  # of ``ETAG=BYTES``; a longer one leaves out the size
TAIL_BYTES = 1 + 16 + 1 + 8 + 1 + MAX_VERSION_CHARACTERS + 5  # what follows KEY, at most
MAX_BYTES = 4 << 20  # of a receipt, four times that of ten thousand faces
FETCH_SECONDS = 30.0
MAX_READ = 2  # receipts of one version of a picture; MAX_S3_CALLS in worker/settings.py has them
NEVER = datetime.min.replace(tzinfo=UTC)

# The names of the S3 metadata of outputs. tasks.storage.marks makes the values of the first two.
SOURCE = "veil-source-sha256"
SOURCE_ETAG = "veil-source-etag"
RECIPE = "veil-recipe"
FACES = "veil-faces"
LEFT = "veil-left"  # the number of faces that the last residual check found, if it found any


@dataclass(frozen=True)
class ReceiptName:
    """The facts about an output that the name of its receipt states.

    `key` is relative to the destination. `etag` is the mark of the source's version: its ETag, or a
    keyed digest (tasks.storage.marks). `size` is that of the output in bytes, 0 for a picture that
    is held, None if the name does not state it. `is_copy` is true if the output is identical to its
    source, bit for bit.
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
        """Return the name; a digest replaces an `etag` with characters that names do not allow."""
        if not ETAG.fullmatch(etag):
            etag = hashlib.sha256(etag.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return cls(key, recipe, etag, size, is_copy)

    @classmethod
    def of_output(cls, key: str, output: StoredObject) -> Self:
        """Return the name of the receipt of `output`, by the metadata and the size of the output.

        Anybody who can write outputs chooses their metadata. A recipe becomes a part of the
        receipt's address, so a value that is not a recipe is left out.
        """
        recipe = output.metadata.get(RECIPE, "")
        recipe = recipe if RECIPE_NAME.fullmatch(recipe) else ""
        return cls.of(key, recipe, output.metadata.get(SOURCE_ETAG, ""), output.size)

    def may_be_of(self, source: StoredObject, output: StoredObject) -> bool:
        """Return whether this can be the receipt of `output`, as far as listings tell.

        A name without a size only tells an output from a copy of its `source`.
        """
        if self.size == 0 or self.size not in (None, output.size):
            return False
        return self.is_copy or not looks_like_copy(source, output)


def _check_options(value: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError for options that no request can have.

    An option that this version does not know may ask to hide more.
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
    """A face that was hidden, or another object: then `label` says what it is."""

    box_xyxy: Box
    score: Score
    label: NotRequired[Annotated[str, Field(max_length=MAX_LABEL_LENGTH)]]


class Receipt(BaseModel):
    """A record of what was done to one picture.

    Sizes are bytes and pixels, times seconds, digests SHA-256 in hex. `output_sha256` and
    `output_bytes` are None for a picture that is held. `faces` has a ``box_xyxy``, in whole pixels
    of the upright picture, and a ``score`` for each face, strongest first. Objects of other labels
    are among them, with their ``label``. `options` are those of the request. `check` is the result
    of the residual check, and `found_by_check` has the boxes of the faces that only it found.
    `left_xyxy` has the boxes that the last check still found; they are hidden too, but were not
    checked again. `reason` says why the picture is held or needs a review. `signature` is the
    worker's, see tasks.signatures. With a receipt key, `output_mark` and `source_mark` are keyed
    digests of both addresses. A receipt has no pixels and no addresses.

    Fields that a later version adds are ignored, but its signature covers them too.
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
        """Return the content of the receipt's file, signed with `key` if there is one.

        Raises ImageTooLarge if it is longer than `read` allows.
        """
        fields = dict(vars(self))
        if key:
            fields[FIELD] = key.sign(fields)
        content = json.dumps(fields).encode() + b"\n"
        if len(content) > MAX_BYTES:
            raise ImageTooLarge(
                f"the receipt of {len(self.faces):,} faces has {len(content):,} bytes, "
                f"the limit is {MAX_BYTES:,}"
            )
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the receipt in a file; raise ValueError if there is none."""
        return cls.model_validate(json_object(content))

    def is_of(self, source: StoredObject, output: StoredObject) -> bool:
        """Return whether `output` can be that of this receipt, and not a copy of `source`."""
        if output.size != self.output_bytes:
            return False
        return self.output_sha256 == self.source_sha256 or not looks_like_copy(source, output)

    @property
    def asked(self) -> AnonymizeOptions:
        """The options of the request."""
        return AnonymizeOptions.of(self.options)

    @property
    def labels(self) -> list[str]:
        """The label of each of `faces`."""
        return [face.get("label", FACE) for face in self.faces]

    @property
    def lowest_score(self) -> float | None:
        return min((face["score"] for face in self.faces), default=None)


Flaw = signatures.Flaw | Literal["bad receipt", "misplaced", "unplaced"]
"""The reason why a receipt does not count.

It is a flaw of its signature, ``bad receipt`` if the file holds no receipt, or ``misplaced`` if it
was signed for another output. An ``unplaced`` receipt counts: it was signed by a version that did
not sign the address of the output.
"""


@dataclass(frozen=True)
class FoundReceipt:
    """A file at the address of a receipt. `receipt` is None if it holds none."""

    receipt: Receipt | None
    flaw: Flaw | None

    @property
    def accepted(self) -> Receipt | None:
        """The receipt if it counts."""
        return self.receipt if self.flaw in (None, "unplaced") else None


def uri(destination: PrefixUri, name: ReceiptName) -> ObjectUri:
    """Return the address of the receipt `name` below the route's `destination`."""
    version = name.etag
    if name.size is not None:
        version += f"{'==' if name.is_copy else '='}{name.size}"
    if len(version) > MAX_VERSION_CHARACTERS:
        version = name.etag
    return destination.join(f"{_stem(destination, name.key)}.{name.recipe}.{version}.json")


def prefix(destination: PrefixUri, key: str) -> str:
    """Return the beginning of the keys of all receipts of the output `key`.

    Receipts of other outputs may begin with it too: `parse` tells them apart.
    """
    return f"{destination.prefix}{_stem(destination, key)}."


def folder(destination: PrefixUri, outputs: PrefixUri) -> PrefixUri:
    """Return the prefix of the receipts of `outputs`, a prefix within the route's `destination`."""
    below = FOLDER + destination.rest(outputs)
    return PrefixUri(destination.bucket, destination.prefix + below)


def is_long(destination: PrefixUri, key: str) -> bool:
    """Return whether the name of a receipt of `key` may be longer than stores allow.

    The receipts of such a key have its digest in their names.
    """
    last = key.rpartition("/")[2]
    whole = f"{destination.prefix}{FOLDER}{key}"
    return (
        len(last.encode()) + TAIL_BYTES > MAX_PART_BYTES
        or len(whole.encode()) + TAIL_BYTES > MAX_KEY_BYTES
    )


def parse(name: str) -> ReceiptName | None:
    """Return the facts in `name`, relative to FOLDER; None if it is not the name of a receipt."""
    found = NAME.fullmatch(name)
    if not found:
        return None
    key, recipe, etag, sign, size = found.groups()
    return ReceiptName(key, recipe, etag, int(size) if size else None, sign == "==")


def list_folder(store: ObjectStore, folder: PrefixUri, after: str = "") -> Iterator[ReceiptName]:
    """Yield the receipts below `folder` whose keys come after `after`.

    The keys in their names are relative to `folder`. The names prove nothing.
    """
    for stored in store.listing(folder.bucket, folder.prefix, after):
        if name := parse(stored.uri.key.removeprefix(folder.prefix)):
            yield name


def list_names(
    store: ObjectStore, destination: PrefixUri, key: str
) -> Iterator[tuple[ObjectUri, ReceiptName]]:
    """Yield the addresses and names of the receipts of the output `key`. Names prove nothing."""
    for stored, name in _listed(store, destination, key):
        yield stored.uri, name


def last(
    store: ObjectStore,
    destination: PrefixUri,
    key: str,
    keys: Sequence[Key],
    is_version: Callable[[str], bool],
) -> Receipt | None:
    """Return the last receipt of the output `key` that counts; None if there is none.

    Those of which `is_version` is not true for the mark of the source's version are not read, and
    of the others only the last MAX_READ, because anybody who can write outputs can write more.
    """
    listed = [one for one, name in _listed(store, destination, key) if is_version(name.etag)]
    listed.sort(key=lambda stored: stored.modified or NEVER)
    read_ones = [read(store, one.uri, destination.join(key), keys) for one in listed[-MAX_READ:]]
    accepted = [found.accepted for found in read_ones if found and found.accepted]
    return max(accepted, key=lambda receipt: receipt.created, default=None)


def _listed(
    store: ObjectStore, destination: PrefixUri, key: str
) -> Iterator[tuple[StoredObject, ReceiptName]]:
    start = prefix(destination, key)
    for stored in store.list(destination.bucket, start):
        name = parse(stored.uri.key)
        if name and f"{name.key}." == start:
            yield stored, replace(name, key=key)


def find(
    store: ObjectStore,
    destination: PrefixUri,
    name: ReceiptName,
    output: ObjectUri,
    keys: Sequence[Key],
) -> FoundReceipt | None:
    """Return the receipt `name` of the output at `output`; None if there is none.

    The receipt with the size in `name` comes first, then one with another size or without one.
    """
    if not name.recipe:
        return None
    if found := read(store, uri(destination, name), output, keys):
        return found
    others = [pair for pair in list_names(store, destination, name.key) if pair[1] == name]
    if not others:
        return None
    # A picture that was held before has a receipt of the size 0 beside that of its output.
    other_uri, _ = min(others, key=lambda pair: (pair[1].size != name.size, pair[1].size == 0))
    return read(store, other_uri, output, keys)


def read(
    store: ObjectStore, uri: ObjectUri, output: ObjectUri, keys: Sequence[Key]
) -> FoundReceipt | None:
    """Return the file at `uri`, checked with `keys` as a receipt of `output`; None if none."""
    try:
        with store.open(uri) as opened:
            content = opened.read(MAX_BYTES, FETCH_SECONDS)
    except ObjectNotFound:
        return None
    except ImageTooLarge:
        return FoundReceipt(None, "bad receipt")
    try:
        fields = json_object(content)
        # The signature covers the fields of the file. A receipt of another version may have more
        # fields than Receipt.
        flaw = signatures.flaw(fields, keys)
        receipt = Receipt.model_validate(fields)
    except (ValueError, RecursionError):  # JSON can be read nested more deeply than written
        return FoundReceipt(None, "bad receipt")
    return FoundReceipt(receipt, flaw or _place_flaw(receipt, output, keys))


def looks_like_copy(source: StoredObject, output: StoredObject) -> bool:
    """Return whether an output may be identical to its source, as far as listings tell."""
    return (source.etag, source.size) == (output.etag, output.size)


def advice_on_taken(present: StoredObject) -> str:
    """Return what to do about an object in the place of an output that is not its own.

    An output of another source, such as ``a.heic`` beside ``a.jpg``, may be the only one that this
    source has.
    """
    if SOURCE not in present.metadata:
        return "remove it, or choose another destination"
    return (
        "it is marked as an output of another source, so do not remove it unless that source is "
        "gone: choose another destination, or another VEIL_HEIF_SUFFIX if one of the sources is "
        "HEIC"
    )


def place_mark(output: ObjectUri, key: Key) -> str:
    """Return the keyed digest of an output's address."""
    return key.digest(b"output\0" + str(output).encode("utf-8", "surrogatepass"))


def is_of_recipe(recipe: str, expected: str | None) -> bool:
    """Return whether `recipe`, with or without options, is the `expected` one; None for any."""
    return expected is None or recipe.partition("-")[0] == expected


def _place_flaw(receipt: Receipt, output: ObjectUri, keys: Sequence[Key]) -> Flaw | None:
    if not keys:
        return None
    if receipt.output_mark is None:
        return "unplaced"
    is_placed = any(place_mark(output, key) == receipt.output_mark for key in keys)
    return None if is_placed else "misplaced"


def json_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in `content`; raise ValueError if it holds anything else."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        fields = json.loads(content, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    if b"\\u" in content:
        # An escape can stand for half a character. UnicodeEncodeError is a ValueError.
        json.dumps(fields, ensure_ascii=False).encode()
    return fields


def _stem(destination: PrefixUri, key: str) -> str:
    if is_long(destination, key):
        return FOLDER_OF_LONG_KEYS + hashlib.sha256(key.encode()).hexdigest()
    return FOLDER + key
