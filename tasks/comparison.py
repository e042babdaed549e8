"""What is done and what is not: sources against outputs and receipts, from three listings that are read side by side.

Listings come in an order, and reading them side by side needs it. Amazon's is that of the keys' bytes; stores that
keep files go folder by folder. The first pair of keys that contradicts the one shows the other. Until then, and where
a listing changes while it is read, a picture can be taken for one that is not done: that is a suspicion, which
`settle` turns into a fact. One that is taken for done is done.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Self, TypeVar

from tasks import receipts
from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed, ObjectNotFound
from tasks.receipts import Made, Receipt
from tasks.routes import Route
from tasks.s3 import ObjectStore, StoredObject

LAST_CHARACTER = "\U0010ffff"  # of Unicode: what begins with a prefix sorts before the prefix and this

State = Literal["current", "missing", "stale", "held", "orphan"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Places:
    """Sources below `source` and their outputs below `output`, both within `route`."""

    route: Route
    source: PrefixUri
    output: PrefixUri

    @classmethod
    def find(cls, source: str, output: str | None, routes: Sequence[Route]) -> Self:
        """The places at two addresses; without `output`, where the route puts it.

        Raises BucketNotAllowed if no route leads from the one to the other.
        """
        read = PrefixUri.parse(source)
        for route in routes:
            if read.is_below(route.source):
                own = PrefixUri(route.destination.bucket, route.destination.prefix + route.source.rest(read))
                written = PrefixUri.parse(output) if output else own
                if written.is_below(route.destination):
                    return cls(route, read, written)
        raise BucketNotAllowed(f"no route of VEIL_ROUTES leads from {source} to {output or 'anywhere'}: add one")

    def key(self, source: ObjectUri) -> str:
        """What names a picture in both places: its key below them."""
        return self.source.relative(source)

    def destination(self, key: str) -> ObjectUri:
        return self.output.join(key)

    def made_key(self, key: str) -> str:
        """The key by which receipts know a picture: below the route's destination."""
        return self.route.destination.rest(self.output) + key


@dataclass(frozen=True)
class Compared:
    """A picture by its key, and whether it is done as the listings have it: a source, or an output without one."""

    key: str
    source: StoredObject | None
    is_current: bool
    made: tuple[Made, ...] = ()


@dataclass(frozen=True)
class Settled:
    """What is true of a picture. `output` is None where there is none."""

    key: str
    state: State
    source: StoredObject | None
    output: StoredObject | None


def compare(store: ObjectStore, places: Places, recipe: str | None, after: str = "") -> Iterator[Compared]:
    """Every source of `places` after the key `after`, and every output without a source, in the order of the store.

    A picture is done if its output is there and its only receipt is of the source's version and, unless None, of
    `recipe`. Memory does not grow with the number of keys.
    """
    order = _Order()
    outputs = _Listing(_outputs(store, places, after), lambda stored: places.output.relative(stored.uri), order)
    made = _Listing(_receipts(store, places, after), lambda found: found.key, None)
    before, start = "", places.source.prefix + after if after else ""
    for source in store.list(places.source.bucket, places.source.prefix, start):
        key = places.key(source.uri)
        order.learn(before, key)
        before = key
        while outputs.head is not None and order.is_before(outputs.key, key):
            yield Compared(outputs.key, None, False)
            outputs.advance()
        while made.head is not None and order.is_before(made.key, key):
            made.advance()
        there = outputs.take(key)
        mine = made.take(key)
        wanted = Made.of(key, recipe or "", source.etag)
        is_current = bool(there) and len(mine) == 1 and mine[0].etag == wanted.etag and recipe in (None, mine[0].recipe)
        yield Compared(key, source, is_current, tuple(mine))
    while outputs.head is not None:
        yield Compared(outputs.key, None, False)
        outputs.advance()


def settle(store: ObjectStore, places: Places, recipe: str | None, compared: Compared) -> Settled | None:
    """What is true of a picture that the listings do not show as done; None if it is gone on both sides."""
    destination = places.destination(compared.key)
    source = store.head(places.source.join(compared.key))
    output = store.head(destination)
    if source is None:
        return None if output is None else Settled(compared.key, "orphan", None, output)
    if output is None:
        held = _is_held(store, places, recipe, compared.key, source)
        return Settled(compared.key, "held" if held else "missing", source, None)
    if output.metadata.get(receipts.SOURCE) != receipts.source_digest(source.uri):
        return Settled(compared.key, "missing", source, output)  # something else is in its place
    current = receipts.is_current(output.metadata, source.etag, recipe)
    return Settled(compared.key, "current" if current else "stale", source, output)


def read_receipts(store: ObjectStore, places: Places, key: str) -> Iterator[tuple[Made, Receipt]]:
    """The receipts of a picture, as they are in the store; more than one if a worker died between two writes."""
    destination = places.route.destination
    made_key = places.made_key(key)
    stem = receipts.prefix(destination, made_key)[:-1]
    for stored in store.list(destination.bucket, stem + "."):
        named = receipts.parse(stored.uri.key)
        if named is None or named.key != stem:
            continue
        try:
            with store.open(stored.uri) as opened:
                receipt = Receipt.from_bytes(opened.read(receipts.MAX_BYTES, receipts.FETCH_SECONDS))
        except (ObjectNotFound, ValueError, TypeError):
            continue  # replaced meanwhile, or not ours
        yield Made(made_key, named.recipe, named.etag), receipt


def _is_held(store: ObjectStore, places: Places, recipe: str | None, key: str, source: StoredObject) -> bool:
    wanted = Made.of(key, recipe or "", source.etag)
    return any(
        receipt.status == "held" and made.etag == wanted.etag and recipe in (None, made.recipe)
        for made, receipt in read_receipts(store, places, key)
    )


def _outputs(store: ObjectStore, places: Places, after: str) -> Iterator[StoredObject]:
    """The outputs, without what is kept for receipts."""
    hidden = places.route.destination.prefix + receipts.RESERVED
    start: str | None = places.output.prefix + after if after else ""
    while start is not None:
        found, start = store.list(places.output.bucket, places.output.prefix, start), None
        for stored in found:
            if stored.uri.key.startswith(hidden):
                start = hidden + LAST_CHARACTER  # listed past, page by page there would be as many as outputs
                break
            yield stored


def _receipts(store: ObjectStore, places: Places, after: str) -> Iterator[Made]:
    """The receipts, by their pictures' keys in `places`."""
    prefix = places.route.destination.prefix + receipts.FOLDER + places.made_key("")
    for stored in store.list(places.output.bucket, prefix, prefix + after if after else ""):
        if found := receipts.parse(stored.uri.key.removeprefix(prefix)):
            yield found


class _Order:
    """In which order the keys of a listing come: by their bytes, until two of them come otherwise."""

    def __init__(self) -> None:
        self._by_folder = False

    def learn(self, before: str, after: str) -> None:
        """Learn from two neighbours of a listing."""
        self._by_folder = self._by_folder or after.encode() < before.encode()

    def is_before(self, key: str, other: str) -> bool:
        if self._by_folder:
            return key.encode().split(b"/") < other.encode().split(b"/")
        return key.encode() < other.encode()


class _Listing(Generic[Item]):
    """A listing with a look ahead at its next item."""

    head: Item | None
    key: str

    def __init__(self, items: Iterator[Item], key_of: Callable[[Item], str], order: _Order | None) -> None:
        self._items = items
        self._key_of = key_of
        self._order = order
        self.key = ""
        self.advance()

    def advance(self) -> None:
        before = self.key
        self.head = next(self._items, None)
        if self.head is not None:
            self.key = self._key_of(self.head)
            if self._order:
                self._order.learn(before, self.key)

    def take(self, key: str) -> list[Item]:
        """The next items as long as they are of `key`."""
        taken: list[Item] = []
        while self.head is not None and self.key == key:
            taken.append(self.head)
            self.advance()
        return taken
