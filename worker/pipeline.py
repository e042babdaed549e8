"""The pipeline: what happens to one picture from its source to its output and its report."""

from collections.abc import Callable, Mapping, Sequence

from tasks.delivery import work
from tasks.errors import AccessDenied, OptionsUnusable, UnsupportedImage
from tasks.messages import AnonymizeOptions, AnonymizeReport, AnonymizeRequest
from tasks.routes import Route, Routed, Routes
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.receipts import Receipt
from tasks.storage.s3 import ObjectStore, StoredObject
from tasks.storage.upload_headers import PLAIN_UPLOADS, Uploads
from worker.anonymizer import FileAnonymizer, OnStage, Stopwatch, ignore_stage
from worker.outputs import Existing, Fetched, Outputs
from worker.reports import receipt_of, report_of, skipped_report
from worker.treatments import AS_CONFIGURED

# The values of Content-Encoding of files that are stored as they are. Some stores keep boto3's own
# value for uploads in chunks.
PLAIN_ENCODINGS = ("", "identity", "aws-chunked")


def always_confirm() -> None:
    """Allow every output to be stored."""


class Pipeline(work.Pipeline):
    """Fetches, anonymizes and stores one picture at a time. All threads share one pipeline."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        anonymizer: FileAnonymizer,
        routes: Routes,
        keys: Sequence[Key] = (),
        uploads: Uploads = PLAIN_UPLOADS,
    ) -> None:
        """Sign receipts and mark outputs with the first of `keys`, and recognise all of them.

        `uploads` go with outputs and receipts.
        """
        self._store = store
        self._anonymizer = anonymizer
        self.routes = routes
        self._outputs = Outputs(store, keys, anonymizer.limits.fetch_seconds, uploads)
        self.recipe = anonymizer.recipe
        self.recipes = {route.name: self.recipe for route in routes if route.name is not None}
        self.labels = anonymizer.treatments.labels

    def resolve(self, request: AnonymizeRequest) -> Routed:
        """Return `request` with its route; raise BucketNotAllowed if it has none."""
        return self.routes.resolve(request)

    def run(
        self,
        routed: Routed,
        on_stage: OnStage = ignore_stage,
        confirm: Callable[[], None] = always_confirm,
    ) -> AnonymizeReport:
        """Fetch, anonymize and store one picture, and return the report.

        `on_stage` is called with the name of each stage. `confirm` is called before anything is
        stored, and raises an error if it must not be. Raises a VeilError that says who must act;
        then no output was written.
        """
        stopwatch = Stopwatch(on_stage)
        with stopwatch.stage("fetch", "fetching"):
            fetched = self._fetch(routed, stopwatch)
        if isinstance(fetched, AnonymizeReport):
            return fetched
        result = self._anonymizer.anonymize(fetched.content, stopwatch, fetched.options)
        with stopwatch.stage("store", "storing"):
            receipt = receipt_of(
                fetched,
                result,
                stopwatch.seconds,
                self._anonymizer.made_with,
                self._outputs.marks,
                self._outputs.signing_key,
            )
            warning = self._outputs.store(fetched, receipt, result, confirm)
        return report_of(
            fetched,
            result,
            stopwatch.seconds,
            is_checked=self._anonymizer.verify != "off",
            labels=self._anonymizer.treatments.labels,
            warning=warning,
        )

    def check_store(self, route: Route) -> None:
        """Raise the VeilError that every picture on `route` would meet now.

        Asks for an object that does not exist, then writes a small one beside the receipts and
        reads it.
        """
        probe = route.source.join(receipts.PROBE)
        try:
            self._store.head(probe)
        except AccessDenied:
            # Without the permission to list keys, S3 answers so for a missing object. The store
            # works then.
            pass
        else:
            self._outputs.check_tags(route)
        self._outputs.check(route)

    def _fetch(self, routed: Routed, stopwatch: Stopwatch) -> Fetched | AnonymizeReport:
        """Return the source with its options, or the report of an output that is done already."""
        limits = self._anonymizer.limits
        with self._store.open(routed.request.source) as opened:
            source = opened.stored
            self._store.check_name(routed.destination, known=source.uri)
            existing = self._outputs.find(routed, source)
            options = self._options(routed, source, existing)
            recipe = options.recipe(self.recipe)
            if existing and (receipt := self._proof(source, existing, recipe, options)):
                uri = existing.output.uri
                return skipped_report(source, uri, receipt, options, stopwatch.seconds)
            if routed.request.options is None:
                options = self._usable(options)
                recipe = options.recipe(self.recipe)
            _refuse_encoding(source)
            content = opened.read(limits.max_bytes, limits.fetch_seconds)
        replaces = existing.output if existing else None
        return Fetched(routed, source, content, replaces, options, recipe)

    def _options(
        self, routed: Routed, source: StoredObject, existing: Existing | None
    ) -> AnonymizeOptions:
        """Return the options of the request, or else those of the output, or of a held picture.

        A request that only hides more keeps the release of the output.
        """
        outputs = self._outputs
        options = routed.request.options or outputs.options_of(source, existing)
        if routed.request.options and existing and existing.receipt and outputs.marks.are_keyed:
            options = options.with_release_of(existing.receipt.asked, source.etag)
        is_new = existing is None or not outputs.is_of_version(source, existing.output)
        if routed.request.options is None and is_new and self._may_hold:
            options = outputs.held_options(routed, source) or options
        return options.for_version(source.etag)

    def _usable(self, taken_over: AnonymizeOptions) -> AnonymizeOptions:
        """Return options of a receipt as a request may have them; raise OptionsUnusable.

        Without a key, anybody who can write outputs can also write the receipt, so only what hides
        more counts.
        """
        if not self._outputs.marks.are_keyed:
            return self._anonymizer.without_weaker(taken_over)
        if defect := self._anonymizer.treatments.defect(taken_over):
            raise OptionsUnusable(
                f"the options of the existing output, or of its hold, have {defect}: "
                "give options in the request to replace them"
            )
        return taken_over

    @property
    def _may_hold(self) -> bool:
        """True if this worker holds pictures, so that there may be receipts of held ones."""
        anonymizer, treatments = self._anonymizer, self._anonymizer.treatments
        return (
            anonymizer.hold_without_faces
            or anonymizer.verify == "hold"
            or bool(treatments.to_hold(treatments.labels, AS_CONFIGURED))
        )

    def _proof(
        self, source: StoredObject, existing: Existing, recipe: str, options: AnonymizeOptions
    ) -> Receipt | None:
        """Return the receipt that proves that this worker would make the existing output.

        Without one the output is made again, and gets a receipt. Raises DestinationTaken if the
        output is of another source.
        """
        receipt = existing.receipt
        self._outputs.check_source(source.uri, existing.output)
        if receipt is None or receipt.recipe != recipe:
            return None
        if not options.release and self._would_hold(receipt, options):
            return None
        # Somebody may have put another object there, such as a copy of the source.
        return receipt if receipt.is_of(source, existing.output) else None

    def _would_hold(self, receipt: Receipt, options: AnonymizeOptions) -> bool:
        """Return whether this worker would hold a picture that an earlier one published.

        A receipt does not tell which objects an exempt area left visible: they may be of any label.
        """
        treatments, labels = self._anonymizer.treatments, receipt.labels
        if treatments.to_hold(treatments.labels if options.exempt else labels, options):
            return True
        faces = [label for label in labels if treatments.sought in (None, label)]
        nothing_hidden = not faces and not options.extra
        without_faces = self._anonymizer.hold_without_faces and nothing_hidden
        with_left = self._anonymizer.verify == "hold" and bool(receipt.left_xyxy)
        return without_faces or with_left


class RoutedPipeline(work.Pipeline):
    """Passes each picture to the pipeline of its route."""

    def __init__(self, default: Pipeline, by_route: Mapping[Route, Pipeline]) -> None:
        """Routes that `by_route` lacks have the `default`."""
        self._default = default
        self._by_route = by_route
        self.routes = default.routes
        self.recipe = default.recipe
        self.labels = default.labels
        own = {route.name: one.recipe for route, one in by_route.items() if route.name is not None}
        self.recipes = {**default.recipes, **own}

    def resolve(self, request: AnonymizeRequest) -> Routed:
        """Return `request` with its route; raise BucketNotAllowed if it has none."""
        return self._default.resolve(request)

    def run(
        self,
        routed: Routed,
        on_stage: OnStage = ignore_stage,
        confirm: Callable[[], None] = always_confirm,
    ) -> AnonymizeReport:
        """Fetch, anonymize and store one picture, as Pipeline.run does."""
        return self._of(routed.route).run(routed, on_stage, confirm)

    def check_store(self, route: Route) -> None:
        """Raise the VeilError that every picture on `route` would meet now."""
        self._of(route).check_store(route)

    def _of(self, route: Route) -> Pipeline:
        return self._by_route.get(route, self._default)


def _refuse_encoding(source: StoredObject) -> None:
    """Raise UnsupportedImage for a source that is stored compressed, as with gzip."""
    encodings = (source.content_encoding or "").lower().split(",")
    for encoding in (part.strip() for part in encodings):
        if encoding not in PLAIN_ENCODINGS:
            raise UnsupportedImage(
                f"{source.uri} is stored with Content-Encoding: {encoding:.50}: store it without"
            )
