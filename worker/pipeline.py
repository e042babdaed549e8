"""One picture, start to end: fetch, decode, detect, mask, encode, store, report."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from numpy.typing import NDArray

from tasks import receipts, routes
from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import (
    AccessDenied,
    DestinationTaken,
    DestinationUnavailable,
    ImageTooLarge,
    InvalidRequest,
    ObjectNotFound,
)
from tasks.messages import AnonymizeOptions, AnonymizeReport, AnonymizeRequest, Areas
from tasks.routes import Route
from tasks.s3 import ObjectStore, StoredObject
from worker import images, masking
from worker.detector import Detections, Detector, merge, outside, placed
from worker.masking import MaskStyle
from worker.settings import Look

PIXELS_VERSION = 4  # counts up with every change of this package that changes output pixels

PROBE = receipts.RESERVED + "probe"  # an object that is written to see whether the destination can be

AS_CONFIGURED = AnonymizeOptions()

OnStage = Callable[[str], None]


def unheard(_stage: str) -> None:
    """Tell nobody which stage begins."""


def undisputed() -> None:
    """Nobody else writes to the destination."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one picture: bytes, pixels, frames, and seconds of download and of looking at all its frames."""

    max_bytes: int
    max_pixels: int
    fetch_seconds: float
    max_frames: int = images.MOST_FRAMES
    look_seconds: float = 600


@dataclass(frozen=True)
class Anonymized:
    """An anonymized picture: its file, None if it is held back, and what was found in all its frames."""

    content: bytes | None
    content_type: str
    format: str
    width: int
    height: int
    detections: Detections

    def whole_boxes(self) -> list[list[int]]:
        """The faces' boxes, x1 y1 x2 y2 in whole pixels, strongest first."""
        boxes: list[list[int]] = self.detections.boxes_xyxy.round().astype(int).tolist()
        return boxes


@dataclass
class Stopwatch:
    """Seconds by stage, for the report; tells `on_stage` what begins."""

    on_stage: OnStage = unheard
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[None]:
        self.on_stage(doing)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 4)


class Pipeline:
    """What a worker does with a picture. Threads share one."""

    def __init__(
        self,
        *,
        store: ObjectStore | None,
        detector: Detector,
        style: MaskStyle,
        limits: Limits,
        hold_without_faces: bool = False,
        keep_exif: Sequence[str] = (),
        route_table: Sequence[Route] = (),
        recipe: str = "",
        made_with: Mapping[str, str] | None = None,
    ) -> None:
        """`store` and `route_table` are None and empty where only local files are anonymized.

        `made_with` names the model and the versions for the receipts.
        """
        self._store = store
        self._detector = detector
        self._style = style
        self._limits = limits
        self._hold_without_faces = hold_without_faces
        self._keep_exif = keep_exif
        self._route_table = route_table
        self._made_with = dict(made_with or {})
        self.recipe = recipe

    def output(self, request: AnonymizeRequest) -> ObjectUri:
        """Where the output of `request` goes; BucketNotAllowed if it may not."""
        return routes.find(request, self._route_table)[1]

    def run(
        self, request: AnonymizeRequest, on_stage: OnStage = unheard, confirm: Callable[[], None] = undisputed
    ) -> AnonymizeReport:
        """Fetch, anonymize and store one object, and say what came of it.

        `confirm` is asked before anything is stored, and raises when it may not be. Raises a VeilError that says who
        must act; then no output was written.
        """
        assert self._store is not None
        watch = Stopwatch(on_stage)
        route, destination = routes.find(request, self._route_table)
        with watch.stage("fetch", "fetching"), self._store.open(request.source) as opened:
            source = opened.stored
            with _of_the_destination():
                replaced = self._store.head(destination)
                options = request.options or self._options_of(source, route, replaced)
            recipe = options.recipe(self.recipe)
            if replaced is not None and self._is_done(source, replaced, recipe):
                return AnonymizeReport(
                    status="skipped",
                    source=str(request.source),
                    destination=str(destination),
                    recipe=recipe,
                    seconds=watch.seconds,
                )
            content = opened.read(self._limits.max_bytes, self._limits.fetch_seconds)
        result = self.anonymize(content, watch, options)
        with watch.stage("store", "storing"), _of_the_destination():
            confirm()
            made = receipts.Made.of(route.destination.relative(destination), recipe, source.etag)
            receipt = self._receipt(source, content, result, recipe, options, watch.seconds)
            self._store.put(receipts.uri(route.destination, made), receipt.to_bytes(), "application/json", {})
            if result.content is not None:
                self._store.put(destination, result.content, result.content_type, self._metadata(source, receipt))
            if replaced is not None and result.content is not None:  # else it stays, and so does its receipt
                self._remove_other_receipts(route.destination, made)
        scores = result.detections.scores
        return AnonymizeReport(
            status="held" if result.content is None else "anonymized",
            faces=len(scores),
            lowest_score=round(float(scores.min()), 4) if len(scores) else None,
            source=str(request.source),
            destination=None if result.content is None else str(destination),
            recipe=recipe,
            format=result.format,
            width=result.width,
            height=result.height,
            bytes_in=len(content),
            bytes_out=None if result.content is None else len(result.content),
            seconds=watch.seconds,
            boxes_xyxy=result.whole_boxes(),
        )

    def check_store(self, request: AnonymizeRequest) -> None:
        """Raise what now keeps every picture from going the way of `request`; nothing if only that one can't.

        Asks for an object that is not there, and writes an empty one among the receipts.
        """
        assert self._store is not None
        route, _ = routes.find(request, self._route_table)
        with suppress(AccessDenied):  # an answer; where keys may not be listed, S3 gives no other for a missing one
            self._store.head(route.source.join(PROBE))
        with _of_the_destination():
            self._store.put(route.destination.join(PROBE), b"", "application/octet-stream", {})

    def anonymize(self, content: bytes, watch: Stopwatch, options: AnonymizeOptions = AS_CONFIGURED) -> Anonymized:
        """The anonymized file for the picture file `content`. Nothing is returned on any doubt: it raises."""
        with watch.stage("decode", "decoding"):
            picture = images.decode(content, self._limits.max_pixels, self._limits.max_frames, self._keep_exif)
        with watch.stage("detect", "detecting"):
            found = [outside(faces, options.exempt) for faces in self.look(picture)]
        with watch.stage("mask", "masking"):
            style = styled(self._style, options)
            hidden = [
                _hidden(frame, faces, style, options.extra) for frame, faces in zip(picture.frames, found, strict=True)
            ]
        detections = Detections.joined(found)
        held = self._hold_without_faces and not len(detections) and not options.extra
        with watch.stage("encode", "encoding"):
            encoded = None if held else images.encode(picture, hidden)
        return Anonymized(encoded, picture.content_type, picture.format, picture.width, picture.height, detections)

    def look(self, picture: images.Picture) -> list[Detections]:
        """The faces of each frame; ImageTooLarge where that takes so long that the message would come back."""
        found: list[Detections] = []
        looked = slowest = 0.0
        for frame in picture.frames:
            if looked + slowest > self._limits.look_seconds:
                done = f"{len(found)} of {len(picture.frames)}"
                raise ImageTooLarge(f"looking at {done} frames took {looked:.0f} s: lower VEIL_MAX_FRAMES")
            started = time.perf_counter()
            found.append(self._detect(frame))
            looked, slowest = looked + time.perf_counter() - started, max(slowest, time.perf_counter() - started)
        return found

    def _detect(self, frame: images.Frame) -> Detections:
        found = [placed(self._detector.detect(view)) for view in frame.views()]
        return found[0] if len(found) == 1 else merge(Detections.joined(found))

    def _options_of(self, source: StoredObject, route: Route, output: StoredObject | None) -> AnonymizeOptions:
        """The options that a request without any has: those with which `output` was made, of the same `source`.

        What somebody asked to be hidden stays hidden when the picture is made anew. InvalidRequest if its receipt,
        which has the options, is gone.
        """
        made_by = "" if output is None else output.metadata.get(receipts.RECIPE, "")
        if output is None or "-" not in made_by or output.metadata.get(receipts.SOURCE_ETAG) != source.etag:
            return AS_CONFIGURED
        assert self._store is not None
        made = receipts.Made.of(route.destination.relative(output.uri), made_by, source.etag)
        receipt = receipts.read(self._store, receipts.uri(route.destination, made))
        if receipt is None:
            raise InvalidRequest(f"{output.uri} was made with options, and its receipt is gone: ask with options anew")
        return AnonymizeOptions.of(receipt.options)

    def _is_done(self, source: StoredObject, output: StoredObject, recipe: str) -> bool:
        """Whether `output` is already the one that would be made. DestinationTaken if it is another source's."""
        if output.metadata.get(receipts.SOURCE) != receipts.source_digest(source.uri):
            raise DestinationTaken(
                f"{output.uri} is not an output of {source.uri}: choose another destination, or remove it"
            )
        if self._hold_without_faces and output.metadata.get(receipts.FACES) == "0":
            return False  # published when such pictures were not held
        return output.metadata.get(receipts.RECIPE) == recipe and receipts.is_current(
            output.metadata, source.etag, None
        )

    def _metadata(self, source: StoredObject, receipt: receipts.Receipt) -> dict[str, str]:
        return {
            receipts.SOURCE: receipts.source_digest(source.uri),
            receipts.SOURCE_ETAG: source.etag,
            receipts.RECIPE: receipt.recipe,
            receipts.FACES: str(len(receipt.faces)),
        }

    def _receipt(
        self,
        source: StoredObject,
        content: bytes,
        result: Anonymized,
        recipe: str,
        options: AnonymizeOptions,
        seconds: Mapping[str, float],
    ) -> receipts.Receipt:
        held = result.content is None
        return receipts.Receipt(
            status="held" if held else "anonymized",
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            source_etag=source.etag,
            source_sha256=hashlib.sha256(content).hexdigest(),
            source_bytes=len(content),
            output_sha256=None if result.content is None else hashlib.sha256(result.content).hexdigest(),
            output_bytes=None if result.content is None else len(result.content),
            format=result.format,
            width=result.width,
            height=result.height,
            recipe=recipe,
            options=options.to_json(),
            faces=[
                {"box_xyxy": box, "score": round(float(score), 4)}
                for box, score in zip(result.whole_boxes(), result.detections.scores, strict=True)
            ],
            seconds=dict(seconds),
            made_with=self._made_with,
        )

    def _remove_other_receipts(self, destination: PrefixUri, made: receipts.Made) -> None:
        """Of a picture that was made anew, only `made` still holds."""
        assert self._store is not None
        kept = receipts.uri(destination, made)
        stem = kept.key.removesuffix(f".{made.recipe}.{made.etag}.json")
        for stored in self._store.list(destination.bucket, receipts.prefix(destination, made.key)):
            named = receipts.parse(stored.uri.key)
            if named and named.key == stem and stored.uri != kept:
                self._store.delete(stored.uri)


@contextmanager
def _of_the_destination() -> Iterator[None]:
    """What is refused there is refused to every picture: it waits, and is no reason to give one up."""
    try:
        yield
    except (AccessDenied, ObjectNotFound) as error:
        raise DestinationUnavailable(str(error)) from None


def styled(style: MaskStyle, options: AnonymizeOptions) -> MaskStyle:
    """`style` with what `options` ask for."""
    method, region = options.method or style.method, options.region or style.region
    return replace(style, method=method, region=region)


def _hidden(frame: images.Frame, faces: Detections, style: MaskStyle, extra: Areas) -> NDArray[Any]:
    """The frame's pixels with `faces` and `extra` hidden; its own where there are none, which tells the encoder so."""
    if not len(faces) and not extra:
        return frame.pixels
    return masking.hide(frame.pixels, faces.seen, style, frame.black, extra)


def recipe_digest(
    *, model: str, score_threshold: float, look: Look, style: MaskStyle, keep_exif: Sequence[str] = ()
) -> str:
    """A digest of everything that decides an output, 16 hex digits of SHA-256."""
    decisive = {
        "pixels": PIXELS_VERSION,
        "model": model,
        "score_threshold": score_threshold,
        "look": asdict(look),
        "style": asdict(style),
        "keep_exif": sorted(keep_exif),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
