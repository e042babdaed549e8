"""One object, start to end: fetch, anonymize, store, report."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import (
    AccessDenied,
    DestinationTaken,
    DestinationUnavailable,
    InvalidRequest,
    ObjectNotFound,
    Permanent,
    SettingsInvalid,
    SourceChanged,
    StorageUnavailable,
)
from tasks.messages import MAX_BOXES, AnonymizeOptions, AnonymizeReport, AnonymizeRequest
from tasks.routes import Route, Routed, Routes
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.marks import Marks
from tasks.storage.s3 import ObjectStore, StoredObject
from worker.anonymizer import (
    AS_CONFIGURED,
    Anonymized,
    Anonymizer,
    OnStage,
    Stopwatch,
    unheard,
    whole_boxes,
)

STORE_TRIES = 2  # of one output whose place changes while it is written


def always_confirm() -> None:
    """Let every output be stored."""


@dataclass(frozen=True)
class Fetched:
    """A source that is to be anonymized: its content, the output that is replaced, and how."""

    source: StoredObject
    content: bytes = field(repr=False)
    replaced: StoredObject | None
    options: AnonymizeOptions
    recipe: str


class Pipeline:
    """The work on one picture at a time. All threads of a worker share one pipeline."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        anonymizer: Anonymizer,
        routes: Routes,
        receipt_key: Key | None = None,
        older_keys: Sequence[Key] = (),
    ) -> None:
        """Receipts are signed, and outputs marked, with `receipt_key`; marks of `older_keys` are
        recognised too.
        """
        self._store = store
        self._anonymizer = anonymizer
        self._routes = routes
        self._receipt_key = receipt_key
        self._marks = Marks([*([receipt_key] if receipt_key else []), *older_keys])
        self.recipe = anonymizer.recipe

    def resolve(self, request: AnonymizeRequest) -> Routed:
        """Return `request` with its route; raise BucketNotAllowed if it has none."""
        return self._routes.resolve(request)

    def run(
        self,
        routed: Routed,
        on_stage: OnStage = unheard,
        confirm: Callable[[], None] = always_confirm,
    ) -> AnonymizeReport:
        """Fetch, anonymize and store one object, and report the outcome.

        `confirm` is called before anything is stored, and raises when it may not be. Raises a
        VeilError that says who must act; then no output was written.
        """
        watch = Stopwatch(on_stage)
        with watch.stage("fetch", "fetching"):
            fetched = self._fetch(routed, watch)
        if isinstance(fetched, AnonymizeReport):
            return fetched
        result = self._anonymizer.anonymize(fetched.content, watch, fetched.options)
        with watch.stage("store", "storing"):
            receipt = self._receipt(routed, fetched, result, watch.seconds)
            self._put(routed, fetched, receipt, result, confirm)
        return self._report(routed, fetched, result, watch.seconds)

    def _fetch(self, routed: Routed, watch: Stopwatch) -> Fetched | AnonymizeReport:
        """Return the source with its options, or the report of an output that is done already."""
        limits = self._anonymizer.limits
        with self._store.open(routed.request.source) as opened:
            source = opened.stored
            self._store.check_name(routed.destination, known=source.uri)
            with _of_the_destination():
                replaced = self._store.head(routed.destination)
                earlier = self._receipt_of(source, routed.route, replaced)
                options = routed.request.options or self._options_of(source, replaced, earlier)
            options = options.for_version(source.etag)
            recipe = options.recipe(self.recipe)
            if replaced is not None and self._is_done(source, replaced, earlier, recipe, options):
                return self._skipped(source, replaced, earlier, recipe, options, watch.seconds)
            if routed.request.options is None and not self._marks.are_keyed:
                # Without a key anybody who can write outputs could have asked for what the receipt
                # says.
                options = self._anonymizer.hiding_more(options)
                recipe = options.recipe(self.recipe)
            content = opened.read(limits.max_bytes, limits.fetch_seconds)
        return Fetched(source, content, replaced, options, recipe)

    def _report(
        self, routed: Routed, fetched: Fetched, result: Anonymized, seconds: dict[str, float]
    ) -> AnonymizeReport:
        scores = result.detections.scores
        return AnonymizeReport(
            status="held" if result.content is None else "anonymized",
            faces=len(scores),
            lowest_score=round(float(scores.min()), 4) if len(scores) else None,
            source=str(routed.request.source),
            destination=None if result.content is None else str(routed.destination),
            recipe=fetched.recipe,
            format=result.format,
            width=result.width,
            height=result.height,
            bytes_in=len(fetched.content),
            bytes_out=None if result.content is None else len(result.content),
            seconds=seconds,
            boxes_xyxy=whole_boxes(result.detections)[:MAX_BOXES],
            reason=result.reason,
            found_by_check=None if self._anonymizer.verify == "off" else len(result.checked.added),
            left=len(result.checked.remaining) if result.reason else None,
            left_xyxy=whole_boxes(result.checked.remaining)[:MAX_BOXES] if result.reason else None,
            source_etag=fetched.source.etag,
            options=fetched.options.to_json() or None,
        )

    def _put(
        self,
        routed: Routed,
        fetched: Fetched,
        receipt: receipts.Receipt,
        result: Anonymized,
        confirm: Callable[[], None],
    ) -> None:
        """Store the receipt and the output in place of what it replaces, or neither.

        What is there and was not replaced is looked at once more: it may be this very output, after
        an answer that was lost, or another worker's. Of an output that is not stored no receipt
        stays. Raises DestinationTaken if something else was put there meanwhile, ObjectNotFound or
        SourceChanged if the source is no longer what it was.
        """
        route, destination = routed.route, routed.destination
        source, there = fetched.source, fetched.replaced
        key = route.destination.relative(destination)
        made = receipts.ReceiptName.of(
            key,
            receipt.recipe,
            self._marks.version(source.uri, source.etag),
            receipt.output_bytes or 0,
            receipt.output_sha256 == receipt.source_sha256,
        )
        receipt_uri = receipts.uri(route.destination, made)
        metadata = self._metadata(source, receipt)
        for _ in range(STORE_TRIES):
            with _of_the_destination():
                confirm()
                self._store.put(
                    receipt_uri, receipt.to_bytes(self._receipt_key), "application/json", {}
                )
            try:
                self._check_unchanged(source)
                if result.content is None:
                    return  # an older output stays, and so does its receipt
                with _of_the_destination():
                    stored = self._store.put_in_place_of(
                        there, destination, result.content, result.content_type, metadata
                    )
                    if not stored:
                        there = self._store.head(destination)
                        stored = self._is_same(there, result.content, metadata)
                    if not stored and there is not None:
                        self._check_is_of(source.uri, there)
            except (Permanent, SourceChanged):
                self._withdraw(route.destination, made, there)
                raise
            if stored:
                break
        else:
            self._withdraw(route.destination, made, there)
            raise StorageUnavailable(f"{destination} changed again while it was stored")
        if there is not None:
            with _of_the_destination():
                self._remove_other_receipts(route.destination, made)

    def _withdraw(
        self, destination: PrefixUri, made: receipts.ReceiptName, there: StoredObject | None
    ) -> None:
        """Remove the receipt of an output that was not stored, unless the output that is `there`
        has the same.
        """
        if there is not None:
            its_own = receipts.ReceiptName.of_output(made.key, there)
            if (its_own, its_own.size) == (made, made.size):
                return
        with _of_the_destination():
            self._store.delete(receipts.uri(destination, made))

    def _check_unchanged(self, source: StoredObject) -> None:
        """Raise ObjectNotFound if the source was deleted, SourceChanged if it was replaced."""
        now = self._store.head(source.uri)
        if now is None:
            raise ObjectNotFound(f"{source.uri} was deleted while it was in work")
        if now.etag != source.etag:
            raise SourceChanged(f"{source.uri} was replaced while it was in work")

    def _is_same(
        self, there: StoredObject | None, content: bytes, metadata: Mapping[str, str]
    ) -> bool:
        """Return whether `there` is what was to be stored: S3's answer was lost, or another worker
        was faster.
        """
        if there is None or there.size != len(content) or dict(there.metadata) != dict(metadata):
            return False
        try:
            with self._store.open(there.uri) as opened:
                return (
                    opened.digest(self._anonymizer.limits.fetch_seconds)
                    == hashlib.sha256(content).hexdigest()
                )
        except ObjectNotFound:
            return False

    def check_store(self, route: Route) -> None:
        """Raise the VeilError that at present meets every picture on `route`.

        Asks for an object that is not there, and writes an empty one among the receipts.
        """
        with suppress(
            AccessDenied
        ):  # an answer; where keys may not be listed, S3 gives no other for a missing one
            self._store.head(route.source.join(receipts.PROBE))
        with _of_the_destination():
            self._store.put(
                route.destination.join(receipts.PROBE), b"", "application/octet-stream", {}
            )

    def _receipt_of(
        self, source: StoredObject, route: Route, output: StoredObject | None
    ) -> receipts.Receipt | None:
        """Return the receipt of an `output` of this version of `source`; None if there is none that
        counts.
        """
        if output is None or not self._is_of_version(source, output):
            return None
        made = receipts.ReceiptName.of_output(route.destination.relative(output.uri), output)
        found = receipts.find(self._store, route.destination, made, output.uri, self._marks.keys)
        receipt = found.accepted if found else None
        if receipt is None or receipt.status == "held":
            return None
        if receipt.source_mark is not None and not self._marks.is_source(
            {receipts.SOURCE: receipt.source_mark}, source.uri
        ):
            return None
        return (
            receipt if (receipt.source_etag, receipt.recipe) == (source.etag, made.recipe) else None
        )

    def _options_of(
        self, source: StoredObject, output: StoredObject | None, receipt: receipts.Receipt | None
    ) -> AnonymizeOptions:
        """Return the options of a request without any: those with which `output` was made, of the
        same `source`.

        What somebody asked to be hidden stays hidden when the picture is made anew. Raises
        InvalidRequest if there is no `receipt`, which has the options.
        """
        made_by = "" if output is None else output.metadata.get(receipts.RECIPE, "")
        if output is None or "-" not in made_by or not self._is_of_version(source, output):
            return AS_CONFIGURED
        if receipt is None:
            reason = "its receipt is gone" + (
                " or not signed by a known key" if self._marks.are_keyed else ""
            )
            raise InvalidRequest(
                f"{output.uri} was made with options, and {reason}: ask with options anew"
            )
        return receipt.asked

    def _is_done(
        self,
        source: StoredObject,
        output: StoredObject,
        receipt: receipts.Receipt | None,
        recipe: str,
        options: AnonymizeOptions,
    ) -> bool:
        """Return whether `output` is already the one that would be made. DestinationTaken if it is
        another source's.

        With a key only its `receipt` says so.
        """
        self._check_is_of(source.uri, output)
        if receipt is None and self._marks.are_keyed:
            return False
        faces, left = _counts(output, receipt)
        without_faces = self._anonymizer.hold_without_faces and faces == 0
        with_left = self._anonymizer.verify == "hold" and left > 0
        if (without_faces or with_left) and not options.release:
            return False  # published when such pictures were not held
        if not (
            receipt.is_of(source, output)
            if receipt
            else not receipts.looks_like_copy(source, output)
        ):
            return False  # something else was put in its place
        return output.metadata.get(receipts.RECIPE) == recipe and self._is_of_version(
            source, output
        )

    def _is_of_version(self, source: StoredObject, output: StoredObject) -> bool:
        return self._marks.is_version(
            output.metadata.get(receipts.SOURCE_ETAG, ""), source.uri, source.etag
        )

    def _check_is_of(self, source: ObjectUri, output: StoredObject) -> None:
        """Raise DestinationTaken if `output` is not one of `source`, SettingsInvalid if a key is
        needed to tell.
        """
        if self._marks.is_source(output.metadata, source):
            return
        if key := self._marks.missing_key_of(output.metadata):
            raise SettingsInvalid(
                f"{output.uri} was made with the key {key}: add it to VEIL_RECEIPT_KEY"
            )
        raise DestinationTaken(
            f"{output.uri} is not an output of {source}: choose another destination, or remove it"
        )

    def _skipped(
        self,
        source: StoredObject,
        output: StoredObject,
        receipt: receipts.Receipt | None,
        recipe: str,
        options: AnonymizeOptions,
        seconds: dict[str, float],
    ) -> AnonymizeReport:
        """The report of an `output` that is done. Why somebody should look at it is in its receipt:
        a worker may have died before it could say so.
        """
        if options.release or not (receipt and receipt.reason):
            receipt = None
        return AnonymizeReport(
            status="skipped",
            faces=len(receipt.faces) if receipt else None,
            source=str(source.uri),
            destination=str(output.uri),
            recipe=recipe,
            reason=receipt.reason if receipt else None,
            boxes_xyxy=[face["box_xyxy"] for face in receipt.faces[:MAX_BOXES]]
            if receipt
            else None,
            left=len(receipt.left_xyxy) if receipt else None,
            left_xyxy=receipt.left_xyxy[:MAX_BOXES] if receipt else None,
            seconds=seconds,
            source_etag=source.etag,
            options=options.to_json() or None,
        )

    def _metadata(self, source: StoredObject, receipt: receipts.Receipt) -> dict[str, str]:
        return {
            receipts.SOURCE: self._marks.source(source.uri),
            receipts.SOURCE_ETAG: self._marks.version(source.uri, source.etag),
            receipts.RECIPE: receipt.recipe,
            receipts.FACES: str(len(receipt.faces)),
            **({receipts.LEFT: str(len(receipt.left_xyxy))} if receipt.left_xyxy else {}),
        }

    def _receipt(
        self, routed: Routed, fetched: Fetched, result: Anonymized, seconds: Mapping[str, float]
    ) -> receipts.Receipt:
        source, content = fetched.source, fetched.content
        held, key = result.content is None, self._receipt_key
        return receipts.Receipt(
            status="held" if held else "anonymized",
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            source_etag=source.etag,
            source_sha256=hashlib.sha256(content).hexdigest(),
            source_bytes=len(content),
            output_sha256=None
            if result.content is None
            else hashlib.sha256(result.content).hexdigest(),
            output_bytes=None if result.content is None else len(result.content),
            format=result.format,
            width=result.width,
            height=result.height,
            recipe=fetched.recipe,
            options=fetched.options.to_json(),
            faces=[
                {"box_xyxy": box, "score": round(float(score), 4)}
                for box, score in zip(
                    whole_boxes(result.detections), result.detections.scores, strict=True
                )
            ],
            check=result.checked.verdict,
            found_by_check=whole_boxes(result.checked.added),
            left_xyxy=whole_boxes(result.checked.remaining),
            reason=result.reason,
            seconds=dict(seconds),
            made_with=self._anonymizer.made_with,
            output_mark=receipts.place_mark(routed.destination, key) if key else None,
            source_mark=self._marks.source(source.uri) if key else None,
        )

    def _remove_other_receipts(self, destination: PrefixUri, made: receipts.ReceiptName) -> None:
        """Of a picture that was made anew, only `made` still holds."""
        kept = receipts.uri(destination, made)
        for uri, _ in receipts.list_names(self._store, destination, made.key):
            if uri != kept:
                self._store.delete(uri)


def _counts(output: StoredObject, receipt: receipts.Receipt | None) -> tuple[int | None, int]:
    """Return how many faces were found for an output, None if nobody knows, and how many were
    left.
    """
    if receipt is not None:
        return len(receipt.faces), len(receipt.left_xyxy)
    faces = output.metadata.get(receipts.FACES, "")
    return 0 if faces == "0" else None, int(receipts.LEFT in output.metadata)


@contextmanager
def _of_the_destination() -> Iterator[None]:
    """Raise DestinationUnavailable for a refusal: it affects every picture, so none is given up for
    it.
    """
    try:
        yield
    except (AccessDenied, ObjectNotFound) as error:
        raise DestinationUnavailable(str(error)) from None
