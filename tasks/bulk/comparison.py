"""Compare the sources with the outputs and receipts of two places, from listings read in parallel.

A parallel reading needs listings in the same order. Amazon S3 lists by the bytes of the keys,
stores that keep objects as files list folder by folder. The store is asked which order it has, at
the first pair of keys that the two orders put differently.

If a listing changes while it is read, or receipts come in another order than their pictures, or two
pictures differ in their suffix alone and `VEIL_HEIF_SUFFIX` changes one, a finished picture can
look unfinished. `compare` therefore only suspects that a picture is not done,
and `settle` finds out. A picture that `compare` reports as current is current.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from ..addresses import ObjectUri, PrefixUri
from ..errors import InvalidRequest
from ..routes import Route, check_output, reserved_folder
from ..storage import receipts
from ..storage.marks import is_keyed
from ..storage.receipts import FoundReceipt, Receipt, ReceiptName
from ..storage.s3 import LAST_CHARACTER, ObjectStore, StoredObject
from . import disk
from .places import Places

UNPROVEN = "its receipt is gone or damaged, or not signed by a key of VEIL_RECEIPT_KEY"
HELD_BEFORE = "held by another recipe"

State = Literal["current", "missing", "stale", "held", "taken", "orphan", "refused", "unknown key"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Compared:
    """A source, or an output without a source, as the listings have it.

    `key` is that of the output. `source` is None for an output without a source. `is_current` is
    False if the picture may not be done. `receipts` are the names of its receipts. If
    `may_be_released` is true, one of them may be that of a current output, and another one is that
    of a hold: only their contents tell which came last.
    """

    key: str
    source: StoredObject | None
    is_current: bool
    receipts: tuple[ReceiptName, ...] = ()
    may_be_released: bool = False


@dataclass(frozen=True)
class Settled:
    """The state of a picture, found by reading its objects. `source` and `output` may be missing.

    `reason` says why the picture is held or refused, why its destination is taken, or why its state
    is unknown. The `output` of a held picture is an older one, which is still published. A picture
    without an output is stale if another recipe held it, by the receipt `hold`. The store is not
    asked for a picture whose address no worker accepts, such as ``a/../b``: its `source` is as it
    was listed.
    """

    key: str
    state: State
    source: StoredObject | None
    output: StoredObject | None
    reason: str | None = None
    hold: ReceiptName | None = None

    def source_uri(self, store: ObjectStore, places: Places) -> ObjectUri | None:
        """Return the address of the source, also if it is missing; None if no name tells it."""
        return source_uri(store, places, self.key, self.source, self.output)


def compare(
    store: ObjectStore,
    places: Places,
    recipe: str | None,
    after: str = "",
    with_orphans: bool = True,
) -> Iterator[Compared]:
    """Yield the sources after the key `after`, and the outputs without a source, in listing order.

    `after` is the key of a source, without the prefix of the sources. With hashed names, sources
    come in the order of their outputs, and outputs without a source at the end. These are left out
    without `with_orphans`, and if the outputs of other sources are among them.

    A picture is current if its output exists and its only receipt has the source's version, the
    output's size and `recipe`, if that is not None. With receipt keys the name of the receipt must
    also have a keyed mark. A key comes once as a source. If an output seemed to have no source
    because the listing had changed, its key comes twice. Memory does not grow with the number of
    keys.
    """
    compared = _compared(store, places, recipe, after)
    if not with_orphans or places.are_mixed:
        yield from (each for each in compared if each.source is not None)
    elif places.are_hashed:
        yield from _with_sure_orphans(store, places, compared)
    else:
        yield from compared


def _compared(
    store: ObjectStore, places: Places, recipe: str | None, after: str
) -> Iterator[Compared]:
    """Yield the sources, and what the listings have as outputs without a source."""
    listings = _Listings(store, places, after)
    sources, outputs = listings.sources, listings.outputs
    while (source := sources.head) is not None:
        yield from listings.outputs_before_source()
        key = sources.key
        listed_outputs, names = listings.take(key)
        has_current = len(listed_outputs) == 1 and any(
            _is_of_version(places, source, recipe, name)
            and name.may_be_of(source, listed_outputs[0])
            # Without a keyed mark only the signature can prove the receipt.
            and (is_keyed(name.etag) or not places.marks.are_keyed)
            for name in names
        )
        is_only = len(names) == 1 and not _may_have_more(key, listings.receipts.key)
        was_held = any(name.size == 0 for name in names)
        yield Compared(key, source, has_current and is_only, tuple(names), has_current and was_held)
        sources.advance()
    while outputs.head is not None:
        yield Compared(outputs.key, None, False)
        outputs.advance()


def _with_sure_orphans(
    store: ObjectStore, places: Places, compared: Iterator[Compared]
) -> Iterator[Compared]:
    """Yield the sources, and then the outputs whose source is not in a second listing either.

    A hashed name does not tell which source to ask the store about. The outputs were listed before
    the second listing of the sources begins, so it has the source of each that has one.
    """
    with closing(disk.Texts("the list of outputs without a source")) as unmatched:
        for each in compared:
            if each.source is None:
                unmatched.add(each.key)
            else:
                yield each
        if not unmatched.count:
            return
        sources = places.renewed_sources(store)
        for key in unmatched:
            if sources.find(key) is None:
                yield Compared(key, None, False)


def without_output(store: ObjectStore, places: Places) -> Iterator[ReceiptName]:
    """Yield the receipts without a listed output, except those of long keys.

    As in `compare`, this is a suspicion: the output may exist.
    """
    order = _Order(store)
    outputs, names = _output_listing(places), _receipt_listing(places)
    outputs.read(list_outputs(store, places))
    names.read(receipts.list_folder(store, names.place))
    while names.head is not None:
        while outputs.head is not None and order.is_before(outputs, names):
            outputs.advance()
        if outputs.head is None or outputs.key != names.key:
            yield names.head
        names.advance()


def settle(
    store: ObjectStore, places: Places, recipe: str | None, compared: Compared
) -> Settled | None:
    """Return the state of a picture that `compare` suspects; None if both its objects are gone."""
    key, destination = compared.key, places.destination(compared.key)
    listed = source_uri(store, places, key, compared.source, None)
    reason = (listed and refusal(store, listed)) or refusal(store, destination, places.route)
    if reason:
        state: State = "refused" if compared.source else "orphan"
        return Settled(key, state, compared.source, None, reason)
    if compared.source is None:
        output = store.head(destination)
        listed = source_uri(store, places, key, None, output)
        source = store.head(listed) if listed else None
    else:
        source = store.head(compared.source.uri)
        output = store.head(destination)
    if source is None or places.key(source.uri) != key:
        return None if output is None else Settled(key, "orphan", None, output)
    if output is not None and not places.marks.is_source(output.metadata, source.uri):
        return _settle_foreign(places, key, source, output)
    return _settle_own(store, places, recipe, compared, source, output)


def source_uri(
    store: ObjectStore,
    places: Places,
    key: str,
    source: StoredObject | None,
    output: StoredObject | None,
) -> ObjectUri | None:
    """Return the address of the source of a picture, of which either object may be missing.

    It is None if the key is hashed, and no source has it.
    """
    if source is not None:
        return source.uri
    marked = None if output is None else places.source_of(store, key, output.metadata)
    return marked or next(iter(places.possible_sources(store, key)), None)


def _settle_foreign(
    places: Places, key: str, source: StoredObject, output: StoredObject
) -> Settled:
    """Settle a picture with an object in its output's place that is not marked as its output.

    No worker replaces such an object.
    """
    if missing := places.marks.missing_key_of(output.metadata):
        return Settled(key, "unknown key", source, output, _advice_on_key(missing))
    if receipts.looks_like_copy(source, output):
        what, advice = "the original", "remove it, or choose another destination"
    else:
        what, advice = "an object that is not its output", receipts.advice_on_taken(output)
    reason = f"{what} is in its output's place: {advice}"
    return Settled(key, "taken", source, output, reason)


def _advice_on_key(missing: str) -> str:
    return f"add the key {missing} to VEIL_RECEIPT_KEY"


def _settle_own(
    store: ObjectStore,
    places: Places,
    recipe: str | None,
    compared: Compared,
    source: StoredObject,
    output: StoredObject | None,
) -> Settled:
    """Settle a picture with no object in its output's place, or with one that is marked as its own.

    When a picture is held, an older output stays, with its receipt. VEIL_VERIFY and rules may hold
    a picture whose output has the same recipe.
    """
    key = compared.key
    hold = None
    listed: list[tuple[ObjectUri, ReceiptName]] = []
    if output is None or len(compared.receipts) != 1:
        listed = list(list_receipts(store, places, key))
        hold = _hold(store, places, recipe, key, source, listed)
    if hold is not None and not receipts.is_of_recipe(hold[0].recipe, recipe):
        if output is None:
            return Settled(key, "stale", source, None, HELD_BEFORE, hold[0])
        hold = None  # The output is stale in any case.
    if output is None and hold is None:
        # Nobody can tell which version a receipt of an unknown key held.
        held = (name.etag for _, name in listed if name.size == 0)
        if missing := places.marks.missing_key(*held):
            return Settled(key, "unknown key", source, None, _advice_on_key(missing))
    if output is None:
        settled = Settled(key, "missing", source, None)
    elif _is_of_version(places, source, recipe, ReceiptName.of_output(key, output)):
        settled = _settle_current(store, places, key, source, output)
        if settled.state != "current":
            return settled
    else:
        settled = Settled(key, "stale", source, output)
    return settled if hold is None else Settled(key, "held", source, output, hold[1].reason)


def _settle_current(
    store: ObjectStore, places: Places, key: str, source: StoredObject, output: StoredObject
) -> Settled:
    """Settle a picture whose output has current metadata, which only its receipt can prove."""
    receipt = read_receipt(store, places, ReceiptName.of_output(key, output))
    if receipt is None:
        return Settled(key, "stale", source, output, UNPROVEN)
    state: State = "current" if receipt.is_of(source, output) else "missing"
    return Settled(key, state, source, output)


def list_outputs(store: ObjectStore, places: Places, after: str = "") -> Iterator[StoredObject]:
    """Yield the outputs of `places` after the key `after` of their bucket, without receipts.

    The receipts of destinations below that of the route are left out too.
    """
    destination = places.route.destination
    start: str | None = after
    while start is not None:
        found, start = store.listing(places.output.bucket, places.output.prefix, start), None
        for stored in found:
            if folder := reserved_folder(destination.relative(stored.uri)):
                # List after the receipts. There are as many of them as there are outputs.
                start = destination.prefix + folder + LAST_CHARACTER
                break
            yield stored


def read_receipts(
    store: ObjectStore, places: Places, key: str
) -> Iterator[tuple[ReceiptName, Receipt]]:
    """Yield the receipts of a picture that count, with their names.

    There is more than one if a worker died between writing a new one and deleting the old one.
    """
    return _read_all(store, places, key, list_receipts(store, places, key))


def _read_all(
    store: ObjectStore,
    places: Places,
    key: str,
    listed: Iterable[tuple[ObjectUri, ReceiptName]],
) -> Iterator[tuple[ReceiptName, Receipt]]:
    for uri, name in listed:
        found = receipts.read(store, uri, places.destination(key), places.marks.keys)
        if found and found.accepted:
            yield name, found.accepted


def list_receipts(
    store: ObjectStore, places: Places, key: str
) -> Iterator[tuple[ObjectUri, ReceiptName]]:
    """Yield the addresses and names of the receipts of a picture, whose key is that in `places`."""
    listed = receipts.list_names(store, places.route.destination, places.receipt_key(key))
    for uri, name in listed:
        yield uri, replace(name, key=key)


def find_receipt(store: ObjectStore, places: Places, name: ReceiptName) -> FoundReceipt | None:
    """Return the receipt `name`, whose key is that in `places`; None if there is none."""
    output = places.destination(name.key)
    in_route = replace(name, key=places.receipt_key(name.key))
    return receipts.find(store, places.route.destination, in_route, output, places.marks.keys)


def read_receipt(store: ObjectStore, places: Places, name: ReceiptName) -> Receipt | None:
    """Return the receipt `name`, whose key is that in `places`; None if it does not count."""
    found = find_receipt(store, places, name)
    return found.accepted if found else None


def receipt_uri(places: Places, name: ReceiptName) -> ObjectUri:
    """Return the address of the receipt `name`, whose key is that in `places`."""
    in_route = replace(name, key=places.receipt_key(name.key))
    return receipts.uri(places.route.destination, in_route)


def refusal(store: ObjectStore, uri: ObjectUri, route: Route | None = None) -> str | None:
    """Return why no worker accepts the address `uri`; None if workers do.

    If asked for such an address, the store may answer for another one. `route` is that of an
    output.
    """
    try:
        ObjectUri.parse(str(uri))
        store.check_name(uri)
        if route is not None:
            check_output(route, uri)
    except InvalidRequest as error:
        return str(error)
    return None


def _hold(
    store: ObjectStore,
    places: Places,
    recipe: str | None,
    key: str,
    source: StoredObject,
    listed: Iterable[tuple[ObjectUri, ReceiptName]],
) -> tuple[ReceiptName, Receipt] | None:
    """Return the receipt by which this version of a picture is held; None if it is not held.

    `listed` has the addresses and names of the picture's receipts. The last one of the version by
    `recipe` counts, because the picture may have been released since it was held. If there is none,
    the last one by any recipe counts.
    """
    of_version = [
        (name, receipt)
        for name, receipt in _read_all(store, places, key, listed)
        if places.marks.is_version(name.etag, source.uri, source.etag)
        and receipt.source_etag == source.etag
        and receipt.recipe == name.recipe
    ]
    of_recipe = [each for each in of_version if receipts.is_of_recipe(each[0].recipe, recipe)]
    last = max(of_recipe or of_version, key=lambda each: each[1].created, default=None)
    return last if last is not None and last[1].status == "held" else None


def _is_of_version(
    places: Places, source: StoredObject, recipe: str | None, name: ReceiptName
) -> bool:
    is_version = places.marks.is_version(name.etag, source.uri, source.etag)
    return is_version and receipts.is_of_recipe(name.recipe, recipe)


def _may_have_more(key: str, following: str) -> bool:
    """Return whether a receipt of `key` can come after a receipt of the key `following`.

    A listing has ``a.7.jpg.….json``, of another key, between ``a.0….json`` and ``a.f….json``.
    """
    return following.startswith(key + ".") and following[len(key) + 1 :][:1] <= "f"


class _Listing(Generic[Item]):
    """A listing of the objects below `place` with access to its next item, the `head`.

    `key` is that of the head, relative to `place`. It keeps its last value at the end.
    """

    def __init__(self, place: PrefixUri, key_of: Callable[[Item], str]) -> None:
        self.place = place
        self.head: Item | None = None
        self.key = ""
        self._key_of = key_of
        self._items: Iterator[Item] = iter(())

    def address(self, key: str) -> str:
        """Return the key in the bucket for a `key` in the place; empty for an empty one."""
        return self.place.prefix + key if key else ""

    def read(self, items: Iterator[Item]) -> None:
        """Read from `items` from now on."""
        self._items = items
        self.advance()

    def advance(self) -> None:
        self.head = next(self._items, None)
        if self.head is not None:
            self.key = self._key_of(self.head)

    def take(self, key: str) -> list[Item]:
        """Return the next items that have the key `key`, and advance past them."""
        taken: list[Item] = []
        while self.head is not None and self.key == key:
            taken.append(self.head)
            self.advance()
        return taken


class _Listings:
    """The listings of sources, outputs and receipts after the key `after`, read in parallel."""

    def __init__(self, store: ObjectStore, places: Places, after: str) -> None:
        self._order = _Order(store)
        self.sources = _Listing[StoredObject](places.source, lambda stored: places.key(stored.uri))
        self.outputs = _output_listing(places)
        self.receipts = _receipt_listing(places)
        self.sources.read(places.list_sources(store, after))
        if after and places.are_hashed:
            after = places.key(places.source.join(after))
        self.outputs.read(list_outputs(store, places, self.outputs.address(after)))
        place = self.receipts.place
        self.receipts.read(receipts.list_folder(store, place, self.receipts.address(after)))

    def outputs_before_source(self) -> Iterator[Compared]:
        """Yield the outputs that come before the next source, and skip such receipts."""
        while self.outputs.head is not None and self._order.is_before(self.outputs, self.sources):
            yield Compared(self.outputs.key, None, False)
            self.outputs.advance()
        while self.receipts.head is not None and self._order.is_before(self.receipts, self.sources):
            self.receipts.advance()

    def take(self, key: str) -> tuple[list[StoredObject], list[ReceiptName]]:
        """Return the outputs and the receipts that come next and have the key `key`."""
        return self.outputs.take(key), self.receipts.take(key)


def _output_listing(places: Places) -> _Listing[StoredObject]:
    return _Listing(places.output, lambda stored: places.output.relative(stored.uri))


def _receipt_listing(places: Places) -> _Listing[ReceiptName]:
    folder = receipts.folder(places.route.destination, places.output)
    return _Listing(folder, lambda name: name.key)


class _Order:
    """The order of a store's listings: by the bytes of the keys, or folder by folder."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._by_folder: bool | None = None

    def is_before(self, one: _Listing[Any], other: _Listing[Any]) -> bool:
        """Return whether the next key of `one` comes before the next key of `other`."""
        if one.key == other.key:
            return False
        # Python compares code points, which have the order of their UTF-8 bytes.
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
        """Return whether the store lists by folder. `lesser` has the smaller key by bytes.

        The keys are like ``P-…`` and ``P/…``. By folder, ``P-…`` is listed after all of ``P/``. By
        bytes, all that is listed after ``P/`` is greater.
        """
        pairs = enumerate(zip(lesser.key, greater.key, strict=False))
        at = next(i for i, (one, other) in pairs if one != other)
        end = lesser.address(greater.key[: at + 1] + LAST_CHARACTER)
        after = next(self._store.list(lesser.place.bucket, lesser.place.prefix, end), None)
        return after is not None and after.uri.key < end
