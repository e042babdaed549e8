"""What is done and what is not: sources against outputs and receipts, from three listings that are
read side by side.

Listings come in an order, and reading them side by side needs it. Amazon's is that of the keys'
bytes; stores that keep files go folder by folder. The first pair of keys that the two put
differently makes us ask the store. Where a listing changes while it is read, and where receipts
come in another order than their pictures, a picture can be taken for one that is not done: that is
a suspicion, which `settle` turns into a fact. One that is taken for done is done.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from tasks.addresses import ObjectUri, PrefixUri
from tasks.bulk.places import Places
from tasks.errors import InvalidRequest
from tasks.routes import RESERVED
from tasks.storage import receipts
from tasks.storage.marks import is_keyed
from tasks.storage.receipts import Found, Made, Receipt
from tasks.storage.s3 import LAST_CHARACTER, ObjectStore, StoredObject

UNPROVEN = "its receipt is gone, or not signed by a key of VEIL_RECEIPT_KEY"

State = Literal["current", "missing", "stale", "held", "orphan", "refused", "unknown key"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Compared:
    """A picture by its key, and whether it is done as the listings have it: a source, or an output
    without one.
    """

    key: str
    source: StoredObject | None
    is_current: bool
    made: tuple[Made, ...] = ()


@dataclass(frozen=True)
class Settled:
    """What is true of a picture. `source` and `output` are None where there is none.

    `reason` is why it is held back, or refused, or can't be told. A picture whose address no worker
    takes, such as ``a/../b``, is not asked for: its `source` is as it was listed.
    """

    key: str
    state: State
    source: StoredObject | None
    output: StoredObject | None
    reason: str | None = None


def compare(
    store: ObjectStore, places: Places, recipe: str | None, after: str = ""
) -> Iterator[Compared]:
    """Every source of `places` after the key `after`, and every output without a source, in the
    order of the store.

    A picture is done if its output is there and its only receipt is of the source's version, of the
    output's size and, unless None, of `recipe`; where there is a key, the receipt's name must be
    marked with one. A key comes once as a source; a suspected output whose source is there, or is
    listed late, once more. Memory does not grow with the number of keys.
    """
    order = _Order(store)
    sources: _Listing[StoredObject] = _Listing(places.source, lambda stored: places.key(stored.uri))
    outputs: _Listing[StoredObject] = _Listing(
        places.output, lambda stored: places.output.relative(stored.uri)
    )
    made: _Listing[Made] = _Listing(_receipts_place(places), lambda found: found.key)
    sources.read(store.list(places.source.bucket, places.source.prefix, sources.address(after)))
    outputs.read(list_outputs(store, places, outputs.address(after)))
    made.read(_receipts(store, made.place, made.address(after)))
    while (source := sources.head) is not None:
        key = sources.key
        while outputs.head is not None and order.is_before(outputs, sources):
            yield Compared(outputs.key, None, False)
            outputs.advance()
        while made.head is not None and order.is_before(made, sources):
            made.advance()
        there = outputs.take(key)
        mine = made.take(key)
        is_current = (
            len(there) == len(mine) == 1
            and _is_of_version(places, source, recipe, mine[0])
            and mine[0].may_be(source, there[0])
            and (
                is_keyed(mine[0].etag) or not places.marks.are_keyed
            )  # else its signature has to be looked at
            and not _may_have_more(key, made.key)
        )
        yield Compared(key, source, is_current, tuple(mine))
        sources.advance()
    while outputs.head is not None:
        yield Compared(outputs.key, None, False)
        outputs.advance()


def without_output(store: ObjectStore, places: Places) -> Iterator[Made]:
    """The receipts of which no output is listed, those of long keys left out; each a suspicion, as
    in `compare`.
    """
    order = _Order(store)
    listed: _Listing[StoredObject] = _Listing(
        places.output, lambda stored: places.output.relative(stored.uri)
    )
    made: _Listing[Made] = _Listing(_receipts_place(places), lambda found: found.key)
    listed.read(list_outputs(store, places))
    made.read(_receipts(store, made.place))
    while made.head is not None:
        while listed.head is not None and order.is_before(listed, made):
            listed.advance()
        if listed.head is None or listed.key != made.key:
            yield made.head
        made.advance()


def settle(
    store: ObjectStore, places: Places, recipe: str | None, compared: Compared
) -> Settled | None:
    """What is true of a picture that the listings do not show as done; None if it is gone on both
    sides.
    """
    source_uri, destination = places.source.join(compared.key), places.destination(compared.key)
    if reason := refusal(store, source_uri) or refusal(store, destination):
        return Settled(
            compared.key, "refused" if compared.source else "orphan", compared.source, None, reason
        )
    source = store.head(source_uri)
    output = store.head(destination)
    if source is None:
        return None if output is None else Settled(compared.key, "orphan", None, output)
    is_ours = output is not None and places.marks.is_source(output.metadata, source.uri)
    if output is not None and is_ours:
        if _is_of_version(places, source, recipe, Made.said_by(compared.key, output)):
            return _settle_current(store, places, compared.key, source, output)
    elif output is not None and (key := places.marks.missing_key_of(output.metadata)):
        return Settled(
            compared.key, "unknown key", source, output, f"add the key {key} to VEIL_RECEIPT_KEY"
        )
    # An older output stays where its picture is held by now, and so does its receipt.
    held = (
        _held(store, places, recipe, compared.key, source)
        if output is None or len(compared.made) != 1
        else None
    )
    if held is not None:
        return Settled(compared.key, "held", source, output, held.reason)
    return Settled(compared.key, "stale" if is_ours else "missing", source, output)


def _settle_current(
    store: ObjectStore, places: Places, key: str, source: StoredObject, output: StoredObject
) -> Settled:
    """Settle a picture whose output says of itself that it is current, which only its receipt can
    tell.

    Without keys a receipt may be gone: then only a copy of the source is recognised.
    """
    receipt = read_receipt(store, places, Made.said_by(key, output))
    if receipt is None and places.marks.are_keyed:
        return Settled(key, "stale", source, output, UNPROVEN)
    is_output = (
        receipt.is_of(source, output) if receipt else not receipts.looks_like_copy(source, output)
    )
    return Settled(key, "current" if is_output else "missing", source, output)


def list_outputs(store: ObjectStore, places: Places, after: str = "") -> Iterator[StoredObject]:
    """The outputs of `places` after the key `after` of their bucket, without what is kept for
    receipts.
    """
    hidden = places.route.destination.prefix + RESERVED
    start: str | None = after
    while start is not None:
        found, start = store.list(places.output.bucket, places.output.prefix, start), None
        for stored in found:
            if stored.uri.key.startswith(hidden):
                start = (
                    hidden + LAST_CHARACTER
                )  # listed past, page by page there would be as many as outputs
                break
            yield stored


def read_receipts(store: ObjectStore, places: Places, key: str) -> Iterator[tuple[Made, Receipt]]:
    """Yield the receipts of a picture that count; more than one if a worker died between two
    writes.
    """
    for uri, made in named_receipts(store, places, key):
        found = receipts.read(store, uri, places.destination(key), places.marks.keys)
        if found and found.counting:
            yield made, found.counting


def named_receipts(
    store: ObjectStore, places: Places, key: str
) -> Iterator[tuple[ObjectUri, Made]]:
    """Yield the receipts of a picture by their names, with the key that it has in `places`."""
    for uri, made in receipts.named(store, places.route.destination, places.made_key(key)):
        yield uri, replace(made, key=key)


def find_receipt(store: ObjectStore, places: Places, made: Made) -> Found | None:
    """Return what is in the place of the receipt of an output that was `made`, its key that in
    `places`.
    """
    output = places.destination(made.key)
    named = replace(made, key=places.made_key(made.key))
    return receipts.find(store, places.route.destination, named, output, places.marks.keys)


def read_receipt(store: ObjectStore, places: Places, made: Made) -> Receipt | None:
    """Return the receipt of an output that was `made`, its key that in `places`; None if there is
    none that counts.
    """
    found = find_receipt(store, places, made)
    return found.counting if found else None


def receipt_uri(places: Places, made: Made) -> ObjectUri:
    """Where the receipt of an output that was `made` is, its key that in `places`."""
    return receipts.uri(places.route.destination, replace(made, key=places.made_key(made.key)))


def _held(
    store: ObjectStore, places: Places, recipe: str | None, key: str, source: StoredObject
) -> Receipt | None:
    """Return the receipt that says that this version of a picture is held back; None if there is
    none.

    The last receipt of the version counts: a picture may have been released since it was held.
    """
    last: Receipt | None = None
    for uri, made in named_receipts(store, places, key):
        if not _is_of_version(places, source, recipe, made):
            continue
        found = receipts.read(store, uri, places.destination(key), places.marks.keys)
        receipt = found.counting if found else None
        if receipt is None or receipt.source_etag != source.etag or receipt.recipe != made.recipe:
            continue
        if last is None or receipt.created > last.created:
            last = receipt
    return last if last is not None and last.status == "held" else None


def _is_of_version(places: Places, source: StoredObject, recipe: str | None, made: Made) -> bool:
    return places.marks.is_version(made.etag, source.uri, source.etag) and receipts.is_of(
        made.recipe, recipe
    )


def refusal(store: ObjectStore, uri: ObjectUri) -> str | None:
    """Return why no worker takes this address; asked for it, the store would answer for another
    one.
    """
    try:
        ObjectUri.parse(str(uri))
        store.check_name(uri)
    except InvalidRequest as error:
        return str(error)
    return None


def _may_have_more(key: str, following: str) -> bool:
    """Whether another receipt of `key` can come after one of the key `following`.

    Between ``a.0….json`` and ``a.f….json`` there is room for ``a.7.jpg.….json``.
    """
    return following.startswith(key + ".") and following[len(key) + 1 :][:1] <= "f"


def _receipts_place(places: Places) -> PrefixUri:
    """Where the receipts of `places` are, each named as its picture is there, and more."""
    destination = places.route.destination
    return PrefixUri(destination.bucket, destination.prefix + receipts.FOLDER + places.made_key(""))


def _receipts(store: ObjectStore, place: PrefixUri, after: str = "") -> Iterator[Made]:
    """The receipts, by their pictures' keys in the places."""
    for stored in store.list(place.bucket, place.prefix, after):
        if found := receipts.parse(place.relative(stored.uri)):
            yield found


class _Listing(Generic[Item]):
    """A listing with a look ahead at its next item."""

    def __init__(self, place: PrefixUri, key_of: Callable[[Item], str]) -> None:
        self.place = place
        self.head: Item | None = None
        self.key = ""
        self._key_of = key_of
        self._items: Iterator[Item] = iter(())

    def address(self, key: str) -> str:
        """Where `key` is in the bucket; empty if it is."""
        return self.place.prefix + key if key else ""

    def read(self, items: Iterator[Item]) -> None:
        self._items = items
        self.advance()

    def advance(self) -> None:
        self.head = next(self._items, None)
        if self.head is not None:
            self.key = self._key_of(self.head)

    def take(self, key: str) -> list[Item]:
        """The next items as long as they are of `key`."""
        taken: list[Item] = []
        while self.head is not None and self.key == key:
            taken.append(self.head)
            self.advance()
        return taken


class _Order:
    """In which order the keys of a listing come: by their bytes, or folder by folder."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._by_folder: bool | None = None

    def is_before(self, one: _Listing[Any], other: _Listing[Any]) -> bool:
        """Whether the next key of `one` comes before the next one of `other`."""
        if one.key == other.key:
            return False
        # Characters are in the order of their UTF-8 bytes.
        by_bytes = one.key < other.key
        if self._by_folder is False:
            return by_bytes
        by_folder = one.key.split("/") < other.key.split("/")
        if self._by_folder is None:
            if by_bytes == by_folder:
                return by_bytes
            self._by_folder = self._ask(one, other) if by_bytes else self._ask(other, one)
        return by_folder if self._by_folder else by_bytes

    def _ask(self, lesser: _Listing[Any], greater: _Listing[Any]) -> bool:
        """Whether the store goes by folder.

        The keys are like ``P-…`` and ``P/…``. By folder ``P-…`` is listed after all of ``P/``; else
        all that is listed there is greater.
        """
        at = next(
            i
            for i, (one, other) in enumerate(zip(lesser.key, greater.key, strict=False))
            if one != other
        )
        end = lesser.address(greater.key[: at + 1] + LAST_CHARACTER)
        after = next(self._store.list(lesser.place.bucket, lesser.place.prefix, end), None)
        return after is not None and after.uri.key < end
