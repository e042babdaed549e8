"""Verify outputs and sources against their receipts: their digests, sizes and metadata."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Literal

from ..addresses import ObjectUri, PrefixUri
from ..errors import (
    InvalidRequest,
    NothingFound,
    ObjectNotFound,
    Permanent,
    StorageRejected,
)
from ..messages import AnonymizeOptions
from ..routes import RESERVED, Routes
from ..signatures import Key
from ..storage import receipts
from ..storage.marks import Marks, is_keyed
from ..storage.receipts import Face, Receipt, ReceiptName
from ..storage.s3 import ObjectStore, OpenObject, StoredObject
from .comparison import (
    find_receipt,
    list_outputs,
    list_receipts,
    read_receipts,
    receipt_uri,
    refusal,
    without_output,
)
from .in_order import in_order
from .places import Places

THREADS = 32  # concurrent calls to S3

State = Literal[
    "ok",
    "held",
    "superseded",
    "source gone",
    "source unknown",
    "source deleted",
    "source due",
    "source kept: too young",
    "source kept: needs a review",
    "source kept: later receipt",
    "objects visible",
    "other recipe",
    "original",
    "no receipt",
    "output gone",
    "output differs",
    "metadata differs",
    "output unlike source",
    "face exposed",
    "unreadable",
    "unsigned",
    "unknown key",
    "bad signature",
    "bad receipt",
    "misplaced",
    "unplaced",
    "source changed",
]
GOOD: tuple[State, ...] = (
    "ok", "held", "superseded", "unplaced", "objects visible", "other recipe",
    "source gone", "source unknown", "source deleted", "source due",
    "source kept: too young", "source kept: needs a review", "source kept: later receipt",
)  # fmt: skip
# States that an output may have in addition to "ok".
BESIDE_OK: tuple[State, ...] = tuple(
    state for state in GOOD if state not in ("ok", "held", "superseded")
)
NO_ETAG = "0" * 32  # an ETag that no object has

FaceCheck = Callable[[bytes, bytes | None, Receipt], Sequence[Face]]
"""A function of an output, its source and its receipt: returns the faces that the output shows.

The source is None if it is gone or has changed. It raises Permanent if the output can't be decoded.
"""

LeavesVisible = Callable[[AnonymizeOptions], bool]
"""A function of options: returns whether objects can be visible in an output made with them."""

Compare = Callable[[bytes, bytes, Receipt], bool]
"""A function of an output, its source and its receipt: returns whether both are the same picture.

It ignores the hidden regions. It raises Permanent if one of them can't be decoded.
"""


@dataclass(frozen=True)
class Disposal:
    """Deletes sources whose outputs match their receipts and, by `compare`, the source.

    Sources younger than `older_than` stay. With `is_rehearsal` it deletes nothing, and only reports
    the sources that it would delete. `recipe` is that of the settings of `compare`, None if any
    will do.
    """

    older_than: timedelta
    is_rehearsal: bool
    compare: Compare
    recipe: str | None = None

    def check(self, store: ObjectStore, sources: PrefixUri) -> None:
        """Raise StorageRejected if the store would also delete a source that was just replaced."""
        # There is no such object, so a store that checks the condition does not report it as
        # deleted.
        if not self.is_rehearsal and store.delete_version(sources.join(receipts.PROBE), NO_ETAG):
            raise StorageRejected(
                f"{sources} is in a store that ignores If-Match: "
                "have a lifecycle rule delete sources"
            )

    def kept(self, source: StoredObject, receipt: Receipt) -> State | None:
        """Return the state of a `source` that stays whatever its output shows; None for others."""
        if receipt.status != "anonymized" or receipt.reason is not None:
            return "source kept: needs a review"
        if source.modified is None or datetime.now(UTC) - source.modified < self.older_than:
            return "source kept: too young"
        return None

    def allows(self, output: bytes, source: bytes, receipt: Receipt) -> bool:
        """Return whether `output` and `source` are the same picture, as far as they decode."""
        try:
            return self.compare(output, source, receipt)
        except Permanent:
            return False

    def dispose(self, store: ObjectStore, source: StoredObject) -> State:
        """Delete `source`, which was just read and compared, and return its state."""
        if self.is_rehearsal:
            return "source due"
        if store.delete_version(source.uri, source.etag):
            return "source deleted"
        return "source gone" if store.head(source.uri) is None else "source changed"


@dataclass(frozen=True)
class Verdict:
    """The states of an output, at least one, and its `receipt`, None if there is none.

    ``held`` and ``output gone`` are states of receipts without an output. ``superseded`` is a
    receipt whose output was made again. ``original`` is a clear source in the place of its output.
    ``source unknown`` is an output that is not at the default address of its route, or whose hashed
    name no source has. ``unplaced`` is a receipt by a version that did not sign the address of the
    output. ``objects visible`` is an output in which a rule or an exempt area can leave faces or
    other objects visible. ``other recipe`` is an output, whose source may be deleted, of another
    recipe than that of the settings. `exposed` has the faces of the state ``face exposed``, and
    `exempt` the areas that were to stay clear. `created` is the time of the receipt of a held
    picture.
    """

    output: ObjectUri
    receipt: ObjectUri | None
    states: tuple[State, ...]
    exposed: tuple[Face, ...] = ()
    exempt: tuple[tuple[int, ...], ...] = ()
    created: str = ""

    @property
    def is_good(self) -> bool:
        return all(state in GOOD for state in self.states)


@dataclass(frozen=True)
class Subject:
    """An output, or the `receipt` of one, to be verified. `key` is the output's in `places`."""

    places: Places
    key: str
    receipt: ReceiptName | None = None


class Audit:
    """Verifies outputs. It changes nothing, unless there is a `disposal`."""

    def __init__(
        self,
        store: ObjectStore,
        routes: Routes,
        read_seconds: float,
        keys: Sequence[Key] = (),
        face_check: FaceCheck | None = None,
        disposal: Disposal | None = None,
        threads: int = THREADS,
        leaves_visible: LeavesVisible = lambda _: False,
    ) -> None:
        """Prepare an audit. Nothing is read before `verdicts`.

        `read_seconds` limits the time for reading an object. With `keys`, receipts must be signed
        with one of them. With `face_check`, faces are detected in the outputs again.
        `leaves_visible` decides on the state ``objects visible``.
        """
        self._store = store
        self._routes = routes
        self._read_seconds = read_seconds
        self._keys = keys
        self._face_check = face_check
        self._disposal = disposal
        self._threads = threads
        self._leaves_visible = leaves_visible

    def verdicts(self, address: str, source: str | None = None) -> Iterator[Verdict]:
        """Yield a verdict for each output, or receipt without an output, at or below `address`.

        They come in listing order. A picture that several recipes held has one verdict, by its last
        receipt. `address` is that of an output, a receipt or a prefix. `source`
        is the prefix of the sources, if the outputs are not at the default addresses of the route.
        Memory does not grow with the number of outputs.

        Raises NothingFound if there is no output and no receipt, BucketNotAllowed and
        InvalidRequest for addresses that can't be verified, StorageRejected if sources can't be
        deleted safely.
        """
        is_empty = True
        subjects = self._disposable(self._subjects(address, source))
        for verdict in _once_held(in_order(self._verify, subjects, self._threads)):
            is_empty = False
            yield verdict
        if is_empty:
            raise NothingFound(f"no output and no receipt at {address}: correct the address")

    def _subjects(self, address: str, source: str | None) -> Iterator[Subject]:
        if source is not None:
            yield from self._below(Places.find(source, address, self._routes, self._keys))
            return
        place = PrefixUri.parse(address)
        route = self._routes.of_destination(place)
        if route is not None and not address.endswith("/") and place != route.destination:
            whole = Places(route, route.source, route.destination, Marks(self._keys))
            single = list(self._single(whole, whole.output.relative(ObjectUri.parse(address))))
            if single:
                yield from single
                return
        yield from self._below(Places.of_outputs(place, self._routes, self._keys))

    def _single(self, whole: Places, key: str) -> Iterator[Subject]:
        """Yield the receipt `key`, or the output `key`, or the receipts of the missing output."""
        if key.startswith(RESERVED):
            yield _receipt_subject(whole, key)
        elif self._store.head(whole.output.join(key)):
            yield Subject(whole, key)
        else:
            for _, name in list_receipts(self._store, whole, key):
                yield Subject(whole, key, name)

    def _disposable(self, subjects: Iterator[Subject]) -> Iterator[Subject]:
        """Yield `subjects`, which share a place, after a check that deletes there are safe."""
        for number, subject in enumerate(subjects):
            if self._disposal and number == 0:
                self._disposal.check(self._store, subject.places.source)
            yield subject

    def _below(self, places: Places) -> Iterator[Subject]:
        for stored in list_outputs(self._store, places):
            yield Subject(places, places.output.relative(stored.uri))
        for name in without_output(self._store, places):
            if self._store.head(places.destination(name.key)) is None:
                yield Subject(places, name.key, name)

    def _verify(self, subject: Subject) -> Verdict | None:
        """Return the verdict on `subject`; None for an output that was deleted meanwhile."""
        destination = subject.places.destination(subject.key)
        if refusal(self._store, destination):
            return self._verdict(subject, None, ["no receipt"])
        try:
            with self._store.open(destination) as opened:
                return self._verify_output(subject, opened)
        except ObjectNotFound:
            return self._verify_receipt(subject)

    def _verify_output(self, subject: Subject, opened: OpenObject) -> Verdict:
        name = ReceiptName.of_output(subject.key, opened.stored)
        if subject.receipt not in (None, name):
            return self._verdict(subject, subject.receipt, ["superseded"])
        found = find_receipt(self._store, subject.places, name)
        if found is None:
            is_original = self._is_original(subject, opened.stored)
            return self._verdict(subject, None, ["original" if is_original else "no receipt"])
        receipt, flaw = found.receipt, found.flaw
        if receipt is None:
            return self._verdict(subject, name, ["bad receipt"])
        notes: list[State] = ["unplaced"] if flaw == "unplaced" else []
        states: list[State] = [flaw] if flaw and not notes else []
        if self._leaves_visible(receipt.asked):
            notes.append("objects visible")
        if self._disposal and not receipts.is_of_recipe(receipt.recipe, self._disposal.recipe):
            notes.append("other recipe")
        content_problems, exposed = self._content_problems(subject, opened, receipt)
        if "output differs" in content_problems and self._is_original(subject, opened.stored):
            return self._verdict(subject, name, ["original"])
        if subject.places.marks.missing_key_of(opened.stored.metadata):
            states += ["unknown key"] if flaw is None else []
            states += content_problems
        else:
            states += content_problems
            states += self._version_problems(subject, opened.stored, receipt)
            states += self._source_states(subject, opened.stored, receipt, not states)
            states += notes
        verdict = self._verdict(subject, name, states)
        return replace(verdict, exposed=tuple(exposed), exempt=receipt.asked.exempt)

    def _verify_receipt(self, subject: Subject) -> Verdict | None:
        if subject.receipt is None:
            return None
        found = find_receipt(self._store, subject.places, subject.receipt)
        if found is None:
            return None
        receipt, flaw = found.receipt, found.flaw
        if receipt is None:
            return self._verdict(subject, subject.receipt, ["bad receipt"])
        states: list[State] = [flaw] if flaw else []
        states.append("held" if receipt.status == "held" else "output gone")
        if found.accepted is not None and receipt.status == "held":
            states += self._held_source_states(subject, receipt)
        return replace(self._verdict(subject, subject.receipt, states), created=receipt.created)

    def _held_source_states(self, subject: Subject, receipt: Receipt) -> list[State]:
        """Return the state of the source of a held picture, empty if the source is there.

        Only a keyed receipt is marked with its source. Otherwise the name of the output tells it.
        """
        places = subject.places
        sources = places.possible_sources(self._store, subject.key)
        if receipt.source_mark is not None:
            marked = places.source_of(
                self._store, subject.key, {receipts.SOURCE: receipt.source_mark}
            )
            sources = [marked] if marked else []
        if not sources:
            return ["source unknown"]
        is_there = any(self._store.head(source) is not None for source in sources)
        return [] if is_there else ["source gone"]

    def _is_original(self, subject: Subject, output: StoredObject) -> bool:
        """Return whether `output` has the content of a source that it may have by its name."""
        for uri in subject.places.possible_sources(self._store, subject.key):
            source = self._store.head(uri)
            if source is not None and source.size == output.size:
                digests = {self._digest(uri), self._digest(output.uri)}
                if len(digests) == 1 and None not in digests:
                    return True
        return False

    def _digest(self, uri: ObjectUri) -> str | None:
        """Return the digest of the object at `uri`; None if there is none any more."""
        try:
            with self._store.open(uri) as opened:
                return opened.digest(self._read_seconds)
        except ObjectNotFound:
            return None

    def _content_problems(
        self, subject: Subject, opened: OpenObject, receipt: Receipt
    ) -> tuple[list[State], Sequence[Face]]:
        """Compare the output with its receipt. Return the problems and the exposed faces."""
        stored = opened.stored
        problems: list[State] = []
        exposed: Sequence[Face] = ()
        if stored.size != receipt.output_bytes:
            problems.append("output differs")
        elif self._face_check:
            content = opened.read(stored.size, self._read_seconds)
            if hashlib.sha256(content).hexdigest() != receipt.output_sha256:
                problems.append("output differs")
            else:
                source = self._source(subject, stored, receipt)
                try:
                    exposed = self._face_check(content, source, receipt)
                except Permanent:
                    problems.append("unreadable")
        elif opened.digest(self._read_seconds) != receipt.output_sha256:
            problems.append("output differs")
        if exposed:
            problems.append("face exposed")
        if not _has_metadata_of(receipt, stored):
            problems.append("metadata differs")
        return problems, exposed

    def _version_problems(
        self, subject: Subject, output: StoredObject, receipt: Receipt
    ) -> list[State]:
        """Compare the version in the output's metadata with that in the receipt.

        A keyed mark of an unknown address can't be compared, but the receipt was found by it.
        """
        marks, mark = subject.places.marks, output.metadata.get(receipts.SOURCE_ETAG, "")
        source = subject.places.source_of(self._store, subject.key, output.metadata)
        if source is None and is_keyed(mark):
            return []
        # A mark without a key is the ETag, whatever the address.
        address = source or output.uri
        is_version = marks.is_version(mark, address, receipt.source_etag)
        return [] if is_version else ["metadata differs"]

    def _source(self, subject: Subject, output: StoredObject, receipt: Receipt) -> bytes | None:
        """Return the content of the source; None if it is gone or not that of the receipt."""
        uri = subject.places.source_of(self._store, subject.key, output.metadata)
        if uri is None:
            return None
        return self._content(uri, receipt.source_bytes, receipt.source_sha256)

    def _content(self, uri: ObjectUri, size: int | None, sha256: str | None) -> bytes | None:
        """Return the content of the object at `uri`; None if it is not of that size and digest."""
        try:
            with self._store.open(uri) as opened:
                if opened.stored.size != size:
                    return None
                content = opened.read(size, self._read_seconds)
        except ObjectNotFound:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def _source_states(
        self, subject: Subject, output: StoredObject, receipt: Receipt, is_good: bool
    ) -> list[State]:
        uri = subject.places.source_of(self._store, subject.key, output.metadata)
        if uri is None:
            return ["source unknown"]
        try:
            with self._store.open(uri) as opened:
                return self._own_source_states(subject, opened, receipt, is_good)
        except ObjectNotFound:
            return ["source gone"]

    def _own_source_states(
        self, subject: Subject, opened: OpenObject, receipt: Receipt, is_good: bool
    ) -> list[State]:
        """Compare the source with its receipt, and delete it if that is asked for.

        It is only deleted if its output `is_good`.
        """
        if opened.stored.size != receipt.source_bytes:
            return ["source changed"]
        disposal = self._disposal if is_good else None
        kept = disposal.kept(opened.stored, receipt) if disposal else None
        if disposal is None or kept:
            if opened.digest(self._read_seconds) != receipt.source_sha256:
                return ["source changed"]
            return [kept] if kept else []
        source = opened.read(receipt.source_bytes, self._read_seconds)
        if hashlib.sha256(source).hexdigest() != receipt.source_sha256:
            return ["source changed"]
        destination = subject.places.destination(subject.key)
        output = self._content(destination, receipt.output_bytes, receipt.output_sha256)
        if output is None:
            return ["output differs"]
        if not disposal.allows(output, source, receipt):
            return ["output unlike source"]
        if self._has_later_receipt(subject, opened.stored, receipt):
            return ["source kept: later receipt"]
        return [disposal.dispose(self._store, opened.stored)]

    def _has_later_receipt(self, subject: Subject, source: StoredObject, receipt: Receipt) -> bool:
        """Return whether this version has a later receipt than that of its output.

        The picture was held since then, or a worker is just making it again.
        """
        marks = subject.places.marks
        return any(
            other.created > receipt.created and marks.is_version(name.etag, source.uri, source.etag)
            for name, other in read_receipts(self._store, subject.places, subject.key)
        )

    def _verdict(
        self, subject: Subject, name: ReceiptName | None, states: Sequence[State]
    ) -> Verdict:
        places = subject.places
        receipt = None if name is None else receipt_uri(places, name)
        is_ok = all(state in BESIDE_OK for state in states)
        output = places.destination(subject.key)
        return Verdict(output, receipt, ("ok", *states) if is_ok else tuple(states))


def _once_held(verdicts: Iterable[Verdict | None]) -> Iterator[Verdict]:
    """Yield `verdicts`, of those of one held picture in a row only the one on the last receipt.

    A receipt in another state has a verdict of its own.
    """
    by_picture = groupby(filter(None, verdicts), lambda verdict: (verdict.output, verdict.states))
    for (_, states), of_picture in by_picture:
        if "held" in states:
            yield max(of_picture, key=lambda verdict: verdict.created)
        else:
            yield from of_picture


def _has_metadata_of(receipt: Receipt, output: StoredObject) -> bool:
    expected = {
        receipts.RECIPE: receipt.recipe,
        receipts.FACES: str(len(receipt.faces)),
        receipts.LEFT: str(len(receipt.left_xyxy)) if receipt.left_xyxy else None,
    }
    if receipt.source_mark is not None:
        expected[receipts.SOURCE] = receipt.source_mark
    return all(output.metadata.get(name) == value for name, value in expected.items())


def _receipt_subject(whole: Places, key: str) -> Subject:
    """Return the receipt at `key` of the route's destination as a subject.

    Raises InvalidRequest if its name does not tell the output that it is of.
    """
    name = None
    if key.startswith(receipts.FOLDER):
        name = receipts.parse(key.removeprefix(receipts.FOLDER))
    if name is None:
        raise InvalidRequest(
            f"{whole.output.join(key)} does not tell by its name which output it belongs to: "
            "name the output"
        )
    return Subject(whole, name.key, name)
