"""The outputs at the destinations: which source and request they are of, and how they are stored.

Another program, or a worker whose lease has ended, may write to a destination at any time. So each
step compares what it finds there, and an object that is not an output of the same source stays.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from email.header import Header

import structlog

from tasks.addresses import ObjectUri
from tasks.errors import (
    AccessDenied,
    CredentialsRefused,
    DestinationTaken,
    DestinationUnavailable,
    ObjectNotFound,
    OptionsUnusable,
    Permanent,
    SettingsInvalid,
    SourceChanged,
    StorageRejected,
    StorageUnavailable,
    VeilError,
    log_fields,
)
from tasks.messages import AnonymizeOptions
from tasks.routes import Route, Routed
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.aws_errors import code, status
from tasks.storage.marks import Marks
from tasks.storage.receipts import Receipt, ReceiptName
from tasks.storage.refusals import OF_ONE_OBJECT, likely_cause
from tasks.storage.s3 import ObjectStore, StoredObject
from tasks.storage.upload_headers import PLAIN_UPLOADS, UploadHeaders, Uploads
from worker.anonymizer import Anonymized
from worker.treatments import AS_CONFIGURED

PROBE_CONTENT = b"Written by veil to test the store.\n"
OLDER_OUTPUT = (
    "the older output is still published: release the picture, or delete that output and its "
    "receipt"
)
STORE_TRIES = 2  # of one output, if another object appears at its destination meanwhile
# Errors of a store that refuses to delete a receipt: the credentials lack s3:DeleteObject or
# s3:ListBucket, or the bucket has a retention period (Object Lock).
DELETE_REFUSED = (AccessDenied, ObjectNotFound, StorageRejected)

log = structlog.get_logger("veil")


@dataclass(frozen=True)
class Existing:
    """The output at a destination before the work.

    `receipt` is its receipt, if the output was made from the present version of the source and the
    receipt can be trusted; else None.
    """

    output: StoredObject
    receipt: Receipt | None


@dataclass(frozen=True)
class Fetched:
    """A source to be anonymized: its content, the output that it replaces, and the options."""

    routed: Routed
    source: StoredObject
    content: bytes = field(repr=False)
    replaces: StoredObject | None
    options: AnonymizeOptions
    recipe: str


class Outputs:
    """Reads and stores the outputs of one worker, marked and signed with its keys."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Sequence[Key],
        fetch_seconds: float,
        uploads: Uploads = PLAIN_UPLOADS,
    ) -> None:
        """Sign with the first of `keys`, and recognise marks and signatures of all of them.

        `fetch_seconds` is the time limit for reading one output. `uploads` go with outputs and
        receipts.
        """
        self._uploads = uploads
        self._store = store
        self._fetch_seconds = fetch_seconds
        self.marks = Marks(keys)
        self.signing_key = next(iter(keys), None)

    def check(self, route: Route) -> None:
        """Write a small object beside the receipts of `route` as outputs are written, and read it.

        Raises the VeilError that every output of the route would meet now. An upload that the store
        refuses names the likely cause. A store may keep names apart from contents, so only a
        content shows that it keeps contents too: SeaweedFS stores an empty object while none of its
        volumes is there.
        """
        written = route.destination.join(receipts.PROBE)
        for headers in dict.fromkeys((self._uploads.receipt, self._uploads.output)):
            with destination_errors(headers, self._store.owner_of(written)):
                self._store.put(written, PROBE_CONTENT, "text/plain", {}, headers)
        with destination_errors(), self._store.open(written) as opened:
            opened.read(len(PROBE_CONTENT), self._fetch_seconds)

    def check_tags(self, route: Route) -> None:
        """Raise CredentialsRefused if outputs keep tags, and those of sources can't be read."""
        if not self._uploads.kept.tags:
            return
        with suppress(ObjectNotFound):
            self._tags(route.source.join(receipts.PROBE))

    def find(self, routed: Routed, source: StoredObject) -> Existing | None:
        """Return the object at the destination of `routed`; None if there is none."""
        with destination_errors():
            output = self._store.head(routed.destination)
            if output is None:
                return None
            return Existing(output, self._receipt_of(source, routed.route, output))

    def options_of(self, source: StoredObject, existing: Existing | None) -> AnonymizeOptions:
        """Return the options for a request without any: those that `existing` was made with.

        A picture that is made again stays hidden where somebody asked for it. Raises
        OptionsUnusable if the receipt, which holds the options, is gone.
        """
        if existing is None:
            return AS_CONFIGURED
        output = existing.output
        was_made_with_options = "-" in output.metadata.get(receipts.RECIPE, "")
        if not was_made_with_options or not self.is_of_version(source, output):
            return AS_CONFIGURED
        if existing.receipt is None:
            unsigned = " or not signed by a known key" if self.marks.are_keyed else ""
            raise OptionsUnusable(
                f"{output.uri} was made with options, and its receipt is gone{unsigned}: "
                "send the options again"
            )
        return existing.receipt.asked

    def held_options(self, routed: Routed, source: StoredObject) -> AnonymizeOptions | None:
        """Return the options with which this version was held; None if it was not held last.

        What a reviewer had hidden in it must stay hidden, also in a request without options.
        """
        destination = routed.route.destination
        key = destination.relative(routed.destination)

        def is_version(mark: str) -> bool:
            return self.marks.is_version(mark, source.uri, source.etag)

        with destination_errors():
            receipt = receipts.last(self._store, destination, key, self.marks.keys, is_version)
        if receipt is None or receipt.status != "held" or receipt.source_etag != source.etag:
            return None
        return receipt.asked

    def is_of_version(self, source: StoredObject, output: StoredObject) -> bool:
        """Return whether `output` is marked as made from this version of `source`."""
        mark = output.metadata.get(receipts.SOURCE_ETAG, "")
        return self.marks.is_version(mark, source.uri, source.etag)

    def check_source(self, source: ObjectUri, output: StoredObject) -> None:
        """Raise DestinationTaken unless `output` is marked as an output of `source`.

        Raises SettingsInvalid if the mark was made with a key that this worker does not have.
        """
        if self.marks.is_source(output.metadata, source):
            return
        if key := self.marks.missing_key_of(output.metadata):
            raise SettingsInvalid(
                f"{output.uri} was made with the key {key}: add it to VEIL_RECEIPT_KEY"
            )
        raise DestinationTaken(
            f"{output.uri} is not an output of {source}: {receipts.advice_on_taken(output)}"
        )

    def store(
        self,
        fetched: Fetched,
        receipt: Receipt,
        result: Anonymized,
        confirm: Callable[[], None],
    ) -> str | None:
        """Store the receipt and then the output, or neither; return a warning for the report.

        The output replaces the one that the worker found at first. If another object is there now,
        it may be this very output, because S3's answer was lost or another worker was faster.
        A held picture has a receipt and no output.

        `confirm` is called before each try. Raises DestinationTaken if the other object is not an
        output of the source, ObjectNotFound or SourceChanged if the source was deleted or replaced.
        The warning says that older receipts of the output could not be deleted, or that an older
        output of a held picture stays.
        """
        route, destination = fetched.routed.route, fetched.routed.destination
        made, present = self._made(fetched, receipt), fetched.replaces
        headers = self._headers(fetched.source)
        older: Sequence[ObjectUri] | None = None
        warning: str | None = None
        for _ in range(STORE_TRIES):
            if present is not None and older is None and result.content is not None:
                # Listed before the output is stored: right after that, another worker may store a
                # newer one with its receipt, which must stay.
                older, warning = self._older_receipts(route, made)
            confirm()
            self._put_receipt(route, made, receipt)
            try:
                self._check_unchanged(fetched.source)
                if result.content is None:
                    # An older output stays, and so does its receipt.
                    return None if present is None else OLDER_OUTPUT
                present, is_stored = self._put_output(
                    fetched, receipt, result.content, result.content_type, present, headers
                )
                if is_stored:
                    break
                if present is not None:
                    self.check_source(fetched.source.uri, present)
            except (Permanent, SourceChanged):
                self._withdraw_receipt(route, made)
                raise
        else:
            self._withdraw_receipt(route, made)
            raise StorageUnavailable(f"{destination} changed again while it was stored")
        return self._remove(older or (), made, route) or warning

    def _receipt_of(
        self, source: StoredObject, route: Route, output: StoredObject
    ) -> Receipt | None:
        """Return the receipt of `output`, if both are of this version of `source`."""
        if not self.is_of_version(source, output):
            return None
        made = ReceiptName.of_output(route.destination.relative(output.uri), output)
        found = receipts.find(self._store, route.destination, made, output.uri, self.marks.keys)
        receipt = found.accepted if found else None
        if receipt is None or receipt.status == "held":
            return None
        if (receipt.source_etag, receipt.recipe) != (source.etag, made.recipe):
            return None
        mark = receipt.source_mark
        if mark is not None and not self.marks.is_source({receipts.SOURCE: mark}, source.uri):
            return None
        return receipt

    def _made(self, fetched: Fetched, receipt: Receipt) -> ReceiptName:
        """Return the facts that the name of the receipt states."""
        source, routed = fetched.source, fetched.routed
        return ReceiptName.of(
            routed.route.destination.relative(routed.destination),
            receipt.recipe,
            self.marks.version(source.uri, source.etag),
            receipt.output_bytes or 0,
            receipt.output_sha256 == receipt.source_sha256,
        )

    def _put_receipt(self, route: Route, made: ReceiptName, receipt: Receipt) -> None:
        uri, headers = receipts.uri(route.destination, made), self._uploads.receipt
        content = receipt.to_bytes(self.signing_key)
        with destination_errors(headers, self._store.owner_of(uri)):
            self._store.put(uri, content, "application/json", {}, headers)

    def _put_output(
        self,
        fetched: Fetched,
        receipt: Receipt,
        content: bytes,
        content_type: str,
        present: StoredObject | None,
        headers: UploadHeaders,
    ) -> tuple[StoredObject | None, bool]:
        """Store the output in place of `present`.

        Returns the object that was at the destination before, or the other one that is there now,
        and whether the output is stored.
        """
        destination = fetched.routed.destination
        metadata = self._metadata(fetched.source, receipt)
        with destination_errors(headers, self._store.owner_of(destination)):
            if self._store.put_in_place_of(
                present, destination, content, content_type, metadata, headers
            ):
                return present, True
            found = self._store.head(destination)
            return found, self._is_same(found, content, metadata)

    def _metadata(self, source: StoredObject, receipt: Receipt) -> dict[str, str]:
        """Return the marks of an output, and the metadata that it keeps of its source."""
        metadata = {
            **self._kept_metadata(source),
            receipts.SOURCE: self.marks.source(source.uri),
            receipts.SOURCE_ETAG: self.marks.version(source.uri, source.etag),
            receipts.RECIPE: receipt.recipe,
            receipts.FACES: str(len(receipt.faces)),
        }
        if receipt.left_xyxy:
            metadata[receipts.LEFT] = str(len(receipt.left_xyxy))
        return metadata

    def _kept_metadata(self, source: StoredObject) -> dict[str, str]:
        """Return the metadata that outputs keep. S3 takes ASCII only, so other text is encoded."""
        kept = {}
        for name in self._uploads.kept.metadata:
            text = source.metadata.get(name)
            if text is not None:
                kept[name] = text if text.isascii() else Header(text, "utf-8", 10_000).encode()
        return kept

    def _headers(self, source: StoredObject) -> UploadHeaders:
        """Return the headers of the output of `source`. Raises CredentialsRefused."""
        headers, kept = self._uploads.output, self._uploads.kept
        if kept.cache_control and source.cache_control:
            headers = replace(headers, cache_control=source.cache_control)
        return headers.with_tags(self._tags(source.uri)) if kept.tags else headers

    def _tags(self, source: ObjectUri) -> dict[str, str]:
        """Return the tags of a source.

        A refusal affects every picture, so the message is retried instead of given up.
        """
        try:
            return self._store.tags(source)
        except AccessDenied as error:
            raise CredentialsRefused(
                f"{error}; VEIL_KEEP_TAGS needs s3:GetObjectTagging on sources"
            ) from None

    def _check_unchanged(self, source: StoredObject) -> None:
        """Raise ObjectNotFound if the source was deleted, SourceChanged if it was replaced."""
        present = self._store.head(source.uri)
        if present is None:
            raise ObjectNotFound(f"{source.uri} was deleted while it was in work")
        if present.etag != source.etag:
            raise SourceChanged(f"{source.uri} was replaced while it was in work")

    def _is_same(
        self, present: StoredObject | None, content: bytes, metadata: dict[str, str]
    ) -> bool:
        """Return whether the object at the destination is the output that was to be stored."""
        if present is None or present.size != len(content) or dict(present.metadata) != metadata:
            return False
        try:
            with self._store.open(present.uri) as opened:
                digest = opened.digest(self._fetch_seconds)
        except ObjectNotFound:
            return False
        return digest == hashlib.sha256(content).hexdigest()

    def _withdraw_receipt(self, route: Route, made: ReceiptName) -> None:
        """Delete the receipt of an output that was not stored.

        The receipt stays if it is also that of the output at the destination, which another worker
        may have stored meanwhile. If the store refuses to delete it, it stays too: no output has
        its recipe and version, so it proves nothing.
        """
        with destination_errors():
            present = self._store.head(route.destination.join(made.key))
        if present is not None:
            stated = ReceiptName.of_output(made.key, present)
            if (stated, stated.size) == (made, made.size):
                return
        uri = receipts.uri(route.destination, made)
        try:
            self._store.delete(uri)
        except DELETE_REFUSED as error:
            # The caller raises the reason why the output was not stored.
            log.warning("receipt without an output stays", receipt=str(uri), **log_fields(error))

    def _older_receipts(
        self, route: Route, made: ReceiptName
    ) -> tuple[Sequence[ObjectUri], str | None]:
        """Return all receipts of the output but that of `made`, and a warning if that fails."""
        own = receipts.uri(route.destination, made)
        try:
            found = receipts.list_names(self._store, route.destination, made.key)
            return [uri for uri, _ in found if uri != own], None
        except DELETE_REFUSED as error:
            return (), _warn_of_older(route, made, error)

    def _remove(self, older: Sequence[ObjectUri], made: ReceiptName, route: Route) -> str | None:
        """Delete `older` receipts of the output; return a warning if that fails.

        The output and its own receipt are stored by then. A receipt that the store refuses to
        delete is therefore no failure of the picture: commands tell the receipts of an output apart
        by the metadata of the output.
        """
        try:
            for uri in older:
                self._store.delete(uri)
        except DELETE_REFUSED as error:
            return _warn_of_older(route, made, error)
        return None


def _warn_of_older(route: Route, made: ReceiptName, error: VeilError) -> str:
    """Log and return the warning that older receipts of an output stay."""
    log.warning(
        "older receipts stay", output=str(route.destination.join(made.key)), **log_fields(error)
    )
    return f"older receipts stay: {error}"


@contextmanager
def destination_errors(
    headers: UploadHeaders | None = None, owner: str | None = None
) -> Iterator[None]:
    """Raise DestinationUnavailable for a refusal of the destination.

    A refused destination affects every picture, so the message is retried instead of given up. The
    same holds for refused `headers` of an upload: then the message has the likely cause, and also
    if a store answers them as if it were unavailable. `owner` is the account to which the bucket
    must belong, if that is configured.
    """
    try:
        yield
    except (AccessDenied, ObjectNotFound) as error:
        raise DestinationUnavailable(_with_cause(error, headers, owner)) from None
    except StorageRejected as error:
        has_answer = status(error.__cause__) != 0
        if not has_answer or code(error.__cause__) in OF_ONE_OBJECT:
            raise
        raise DestinationUnavailable(_with_cause(error, headers, owner)) from None
    except StorageUnavailable as error:
        # It keeps its answer and the pause that the store asks for.
        error.args = (_with_cause(error, headers, owner),)
        raise


def _with_cause(error: VeilError, headers: UploadHeaders | None, owner: str | None) -> str:
    """Return the message of `error` with the likely cause of a refused upload."""
    cause = headers and likely_cause(error, headers, owner)
    return f"{error}; likely cause: {cause}" if cause else str(error)
