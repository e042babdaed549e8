"""Whether outputs and sources are what their receipts say: digests computed anew, sizes and
metadata compared.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from tasks.addresses import ObjectUri, PrefixUri
from tasks.bulk.comparison import (
    find_receipt,
    list_outputs,
    named_receipts,
    receipt_uri,
    refusal,
    without_output,
)
from tasks.bulk.in_order import in_order
from tasks.bulk.places import Places
from tasks.errors import InvalidRequest, ObjectNotFound, Permanent, StorageRejected
from tasks.routes import RESERVED, Route
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.marks import Marks, is_keyed
from tasks.storage.receipts import Made, Receipt
from tasks.storage.s3 import ObjectStore, OpenObject, StoredObject

THREADS = 32  # that ask S3 at once

State = Literal[
    "ok",
    "held",
    "superseded",
    "source gone",
    "source unknown",
    "source deleted",
    "source due",
    "source kept",
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
    "ok", "held", "superseded", "unplaced",
    "source gone", "source unknown", "source deleted", "source due", "source kept",
)  # fmt: skip
BESIDE_OK: tuple[State, ...] = tuple(
    state for state in GOOD if state not in ("ok", "held", "superseded")
)
NO_ETAG = "0" * 32  # of no object

Look = Callable[[bytes, Receipt], bool]
"""The output and its receipt to whether all faces that are found in it were hidden."""

Compare = Callable[[bytes, bytes, Receipt], bool]
"""The output, its source and its receipt to whether both show the same outside of what was hidden.

It raises Permanent where one of them can't be decoded.
"""


@dataclass(frozen=True)
class Disposal:
    """Deletes the sources of outputs that are as their receipts say and look like the source.

    With `is_rehearsal` it only reports which it would delete.
    """

    older_than: timedelta
    is_rehearsal: bool
    compare: Compare

    def check(self, store: ObjectStore, sources: PrefixUri) -> None:
        """Raise StorageRejected where a delete would also hit a source that was replaced
        meanwhile.
        """
        # There is no such object: only a store that does not look at the condition says that it
        # deleted it.
        if not self.is_rehearsal and store.delete_version(sources.join(receipts.PROBE), NO_ETAG):
            raise StorageRejected(
                f"{sources} is in a store that ignores If-Match: have a lifecycle rule delete sources"
            )

    def keeps(self, source: StoredObject, receipt: Receipt) -> bool:
        """Return whether a `source` stays: somebody should look at the picture first, or it is too
        young.
        """
        young = source.modified is None or datetime.now(UTC) - source.modified < self.older_than
        return receipt.status != "anonymized" or receipt.reason is not None or young

    def allows(self, output: bytes, source: bytes, receipt: Receipt) -> bool:
        """Return whether an output shows what its source does; not so if one of them can't be
        decoded.
        """
        try:
            return self.compare(output, source, receipt)
        except Permanent:
            return False

    def of(self, store: ObjectStore, source: StoredObject) -> State:
        """Delete the `source`, which was just read and compared, and return what became of it."""
        if self.is_rehearsal:
            return "source due"
        if store.delete_version(source.uri, source.etag):
            return "source deleted"
        return "source gone" if store.head(source.uri) is None else "source changed"


@dataclass(frozen=True)
class Verdict:
    """What is true of an output: its `states`, at least one, and its `receipt`, None where there is
    none.

    ``held`` and ``output gone`` are of receipts without an output; ``superseded`` is a receipt
    whose output was made anew; ``source unknown`` an output that was not put where its route puts
    it by itself; ``unplaced`` a receipt by a version that did not sign of which output it is.
    """

    output: ObjectUri
    receipt: ObjectUri | None
    states: tuple[State, ...]

    @property
    def is_good(self) -> bool:
        return all(state in GOOD for state in self.states)


@dataclass(frozen=True)
class Subject:
    """What is looked at: the output `key` of `places`, or the receipt of what was `made` there."""

    places: Places
    key: str
    made: Made | None = None


class Audit:
    """Looks at outputs. It changes nothing, unless there is a `disposal`."""

    def __init__(
        self,
        store: ObjectStore,
        routes: Sequence[Route],
        read_seconds: float,
        keys: Sequence[Key] = (),
        look: Look | None = None,
        disposal: Disposal | None = None,
        threads: int = THREADS,
    ) -> None:
        """`read_seconds` is the limit for reading an object.

        With `keys`, receipts have to be signed with one of them. With `look`, outputs are looked at
        too.
        """
        self._store = store
        self._routes = routes
        self._read_seconds = read_seconds
        self._keys = keys
        self._look = look
        self._disposal = disposal
        self._threads = threads

    def verdicts(self, address: str, source: str | None = None) -> Iterator[Verdict]:
        """One for each output, or receipt without an output, at or below `address`, in the order of
        the store.

        `address` is that of an output, of a receipt, or of a place; `source` is where the sources
        of the outputs below it are, if they were not put where the route puts them by itself.
        Memory does not grow with their number. Raises ObjectNotFound where there is nothing,
        BucketNotAllowed and InvalidRequest for what can't be looked at, StorageRejected where a
        source can't be deleted safely.
        """
        found = False
        for verdict in in_order(
            self._judge, self._disposable(self._subjects(address, source)), self._threads
        ):
            if verdict is not None:
                found = True
                yield verdict
        if not found:
            raise ObjectNotFound(f"{address}: there is no output and no receipt")

    def _subjects(self, address: str, source: str | None) -> Iterator[Subject]:
        if source is not None:
            yield from self._below(Places.find(source, address, self._routes, self._keys))
            return
        place = PrefixUri.parse(address)
        route = next((route for route in self._routes if place.is_below(route.destination)), None)
        if route is None or address.endswith("/") or place == route.destination:
            yield from self._below(Places.of_outputs(place, self._routes, self._keys))
            return
        whole = Places(route, route.source, route.destination, Marks(self._keys))
        key = whole.output.relative(ObjectUri.parse(address))
        if key.startswith(RESERVED):
            yield _receipt_subject(whole, key)
        elif self._store.head(whole.output.join(key)):
            yield Subject(whole, key)
        elif of_one := [made for _, made in named_receipts(self._store, whole, key)]:
            yield from (Subject(whole, key, made) for made in of_one)
        else:
            yield from self._below(Places.of_outputs(place, self._routes, self._keys))

    def _disposable(self, subjects: Iterator[Subject]) -> Iterator[Subject]:
        """All of `subjects`, whose sources are in one place, once it is known that they can be
        deleted there.
        """
        for number, subject in enumerate(subjects):
            if self._disposal and number == 0:
                self._disposal.check(self._store, subject.places.source)
            yield subject

    def _below(self, places: Places) -> Iterator[Subject]:
        for stored in list_outputs(self._store, places):
            yield Subject(places, places.output.relative(stored.uri))
        for made in without_output(self._store, places):
            if self._store.head(places.destination(made.key)) is None:
                yield Subject(places, made.key, made)

    def _judge(self, subject: Subject) -> Verdict | None:
        """None for an output that went away meanwhile."""
        destination = subject.places.destination(subject.key)
        if refusal(self._store, destination):
            return self._verdict(subject, None, ["no receipt"])
        try:
            with self._store.open(destination) as opened:
                return self._of_output(subject, opened)
        except ObjectNotFound:
            return self._of_receipt(subject)

    def _of_output(self, subject: Subject, opened: OpenObject) -> Verdict:
        places = subject.places
        made = Made.said_by(subject.key, opened.stored)
        if subject.made not in (None, made):
            return self._verdict(subject, subject.made, ["superseded"])
        found = find_receipt(self._store, places, made)
        if found is None:
            return self._verdict(subject, None, ["no receipt"])
        receipt, flaw = found.receipt, found.flaw
        if receipt is None:
            return self._verdict(subject, made, ["bad receipt"])
        notes: list[State] = ["unplaced"] if flaw == "unplaced" else []
        problems: list[State] = [flaw] if flaw and not notes else []
        if places.marks.missing_key_of(opened.stored.metadata):
            problems += ["unknown key"] if flaw is None else []
            return self._verdict(subject, made, problems + self._of_content(opened, receipt))
        problems += self._of_content(opened, receipt) + self._of_version(
            subject, opened.stored, receipt
        )
        said_of_source = self._of_source(subject, opened.stored, receipt, not problems)
        return self._verdict(subject, made, problems + notes + said_of_source)

    def _of_receipt(self, subject: Subject) -> Verdict | None:
        if subject.made is None:
            return None
        found = find_receipt(self._store, subject.places, subject.made)
        if found is None:
            return None
        receipt, flaw = found.receipt, found.flaw
        if receipt is None:
            return self._verdict(subject, subject.made, ["bad receipt"])
        state: State = "held" if receipt.status == "held" else "output gone"
        return self._verdict(subject, subject.made, [flaw, state] if flaw else [state])

    def _of_content(self, opened: OpenObject, receipt: Receipt) -> list[State]:
        stored = opened.stored
        problems: list[State] = []
        if stored.size != receipt.output_bytes:
            problems.append("output differs")
        elif self._look:
            content = opened.read(stored.size, self._read_seconds)
            if hashlib.sha256(content).hexdigest() != receipt.output_sha256:
                problems.append("output differs")
            else:
                problems += self._of_pixels(self._look, content, receipt)
        elif opened.digest(self._read_seconds) != receipt.output_sha256:
            problems.append("output differs")
        said = {
            receipts.RECIPE: receipt.recipe,
            receipts.FACES: str(len(receipt.faces)),
            receipts.LEFT: str(len(receipt.left_xyxy)) if receipt.left_xyxy else None,
        }
        if receipt.source_mark is not None:
            said[receipts.SOURCE] = receipt.source_mark
        if any(stored.metadata.get(name) != value for name, value in said.items()):
            problems.append("metadata differs")
        return problems

    def _of_version(self, subject: Subject, output: StoredObject, receipt: Receipt) -> list[State]:
        """Compare the version; a keyed mark of an unknown address says nothing, but the receipt was
        found by it.
        """
        marks, mark = subject.places.marks, output.metadata.get(receipts.SOURCE_ETAG, "")
        source = subject.places.source.join(subject.key)
        if marks.is_version(mark, source, receipt.source_etag):
            return []
        return (
            []
            if is_keyed(mark) and not marks.is_source(output.metadata, source)
            else ["metadata differs"]
        )

    def _of_pixels(self, look: Look, content: bytes, receipt: Receipt) -> list[State]:
        try:
            return [] if look(content, receipt) else ["face exposed"]
        except Permanent:
            return ["unreadable"]

    def _of_source(
        self, subject: Subject, output: StoredObject, receipt: Receipt, is_good: bool
    ) -> list[State]:
        uri = subject.places.source.join(subject.key)
        if not subject.places.marks.is_source(output.metadata, uri):
            return ["source unknown"]
        try:
            with self._store.open(uri) as opened:
                return self._of_own_source(subject, opened, receipt, is_good)
        except ObjectNotFound:
            return ["source gone"]

    def _of_own_source(
        self, subject: Subject, opened: OpenObject, receipt: Receipt, is_good: bool
    ) -> list[State]:
        """Compare the source with its receipt, and delete it if that is asked for and its output
        `is_good`.
        """
        if opened.stored.size != receipt.source_bytes:
            return ["source changed"]
        disposal = self._disposal if is_good else None
        if disposal is None or disposal.keeps(opened.stored, receipt):
            if opened.digest(self._read_seconds) != receipt.source_sha256:
                return ["source changed"]
            return ["source kept"] if disposal else []
        source = opened.read(receipt.source_bytes, self._read_seconds)
        if hashlib.sha256(source).hexdigest() != receipt.source_sha256:
            return ["source changed"]
        output = self._output(subject, receipt)
        if output is None:
            return ["output differs"]
        if not disposal.allows(output, source, receipt):
            return ["output unlike source"]
        return [disposal.of(self._store, opened.stored)]

    def _output(self, subject: Subject, receipt: Receipt) -> bytes | None:
        """Return the content of the output as it is by now; None if it is not that of its receipt
        any more.
        """
        try:
            with self._store.open(subject.places.destination(subject.key)) as opened:
                content = opened.read(opened.stored.size, self._read_seconds)
        except ObjectNotFound:
            return None
        return content if hashlib.sha256(content).hexdigest() == receipt.output_sha256 else None

    def _verdict(self, subject: Subject, made: Made | None, states: Sequence[State]) -> Verdict:
        places = subject.places
        receipt = None if made is None else receipt_uri(places, made)
        is_fine = all(state in BESIDE_OK for state in states)
        return Verdict(
            places.destination(subject.key), receipt, ("ok", *states) if is_fine else tuple(states)
        )


def _receipt_subject(whole: Places, key: str) -> Subject:
    """The receipt at `key` of the route's destination; InvalidRequest if its name does not tell
    what it is of.
    """
    made = (
        receipts.parse(key.removeprefix(receipts.FOLDER))
        if key.startswith(receipts.FOLDER)
        else None
    )
    if made is None:
        raise InvalidRequest(
            f"{whole.output.join(key)} does not say of what it is the receipt: name the output"
        )
    return Subject(whole, made.key, made)
