"""One picture, start to end: fetch, decode, detect, mask, encode, verify, store, report."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
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
    Permanent,
    UnreadableImage,
)
from tasks.messages import AnonymizeOptions, AnonymizeReport, AnonymizeRequest, Areas, Reason
from tasks.routes import Route
from tasks.s3 import ObjectStore, StoredObject
from tasks.signatures import Key
from worker import images, masking
from worker.detector import Detections, Detector, bridged, merge, outside, placed
from worker.masking import MaskStyle
from worker.settings import Look

PIXELS_VERSION = 5  # counts up with every change of this package that changes output pixels

MOST_CHECKS = 6  # of one output, each hiding what it finds; hardly any picture needs five

AS_CONFIGURED = AnonymizeOptions()

OnStage = Callable[[str], None]


def unheard(_stage: str) -> None:
    """Tell nobody which stage begins."""


def undisputed() -> None:
    """Nobody else writes to the destination."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one picture: bytes, pixels, frames, and seconds of download and of looking at all its frames.

    All checks of its output together may take as long again.
    """

    max_bytes: int
    max_pixels: int
    fetch_seconds: float
    max_frames: int = images.MOST_FRAMES
    look_seconds: float = 600


@dataclass(frozen=True)
class Checked:
    """What came of looking at an output again: `verdict` as receipts have it, faces `added` by it, and still `left`."""

    verdict: receipts.Check
    added: Detections
    left: Detections

    @property
    def reason(self) -> Reason | None:
        return "faces still found in the output" if len(self.left) else None


UNCHECKED = Checked("off", Detections.none(), Detections.none())


@dataclass(frozen=True)
class Anonymized:
    """An anonymized picture: its file, None if it is held back, and what was found in all its frames.

    `reason` says why it is held back, or published for somebody to look at.
    """

    content: bytes | None
    content_type: str
    format: str
    width: int
    height: int
    detections: Detections
    checked: Checked = UNCHECKED
    reason: Reason | None = None


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
        verify: Literal["off", "flag", "hold"] = "off",
        keep_exif: Sequence[str] = (),
        route_table: Sequence[Route] = (),
        recipe: str = "",
        made_with: Mapping[str, str] | None = None,
        receipt_key: Key | None = None,
    ) -> None:
        """`store` and `route_table` are None and empty where only local files are anonymized.

        `made_with` names the model and the versions for the receipts, which `receipt_key` signs.
        """
        self._store = store
        self._detector = detector
        self._style = style
        self._limits = limits
        self._hold_without_faces = hold_without_faces
        self._verify = verify
        self._keep_exif = keep_exif
        self._route_table = route_table
        self._made_with = dict(made_with or {})
        self._receipt_key = receipt_key
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
                options = (request.options or self._options_of(source, route, replaced)).for_version(source.etag)
            recipe = options.recipe(self.recipe)
            if replaced is not None and self._is_done(source, replaced, recipe, options):
                return self._skipped(source, route, replaced, recipe, options, watch.seconds)
            content = opened.read(self._limits.max_bytes, self._limits.fetch_seconds)
        result = self.anonymize(content, watch, options)
        with watch.stage("store", "storing"), _of_the_destination():
            confirm()
            made = receipts.Made.of(route.destination.relative(destination), recipe, source.etag)
            receipt = self._receipt(source, content, result, recipe, options, watch.seconds)
            self._store.put(
                receipts.uri(route.destination, made), receipt.to_bytes(self._receipt_key), "application/json", {}
            )
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
            boxes_xyxy=whole_boxes(result.detections),
            reason=result.reason,
            found_by_check=None if self._verify == "off" else len(result.checked.added),
            left_xyxy=whole_boxes(result.checked.left) if result.reason else None,
            source_etag=source.etag,
            options=options.to_json() or None,
        )

    def check_store(self, request: AnonymizeRequest) -> None:
        """Raise what now keeps every picture from going the way of `request`; nothing if only that one can't.

        Asks for an object that is not there, and writes an empty one among the receipts.
        """
        assert self._store is not None
        route, _ = routes.find(request, self._route_table)
        with suppress(AccessDenied):  # an answer; where keys may not be listed, S3 gives no other for a missing one
            self._store.head(route.source.join(receipts.PROBE))
        with _of_the_destination():
            self._store.put(route.destination.join(receipts.PROBE), b"", "application/octet-stream", {})

    def anonymize(self, content: bytes, watch: Stopwatch, options: AnonymizeOptions = AS_CONFIGURED) -> Anonymized:
        """The anonymized file for the picture file `content`. Nothing is returned on any doubt: it raises."""
        with watch.stage("decode", "decoding"):
            picture = images.decode(content, self._limits.max_pixels, self._limits.max_frames, self._keep_exif)
        with watch.stage("detect", "detecting"):
            looks = self.look(picture)
            if picture.format != "TIFF":  # its frames are pages, which have nothing to do with each other
                looks = bridged(looks)
            found = [outside(faces, options.exempt) for faces in looks]
        with watch.stage("mask", "masking"):
            hidden = self._hide(picture, found, options)
        if self._hold_without_faces and not (any(map(len, found)) or options.extra or options.release):
            return _anonymized(picture, None, Detections.none(), reason="no face found")
        with watch.stage("encode", "encoding"):
            encoded = images.encode(picture, hidden)
        if self._verify == "off":
            return _anonymized(picture, encoded, Detections.joined(found))
        del hidden  # the output is decoded beside the picture
        with watch.stage("verify", "verifying"):
            encoded, checked = self._checked(picture, found, encoded, options)
        detections = Detections.joined([*found, checked.added])
        reason = None if options.release else checked.reason
        is_held = reason is not None and self._verify == "hold"
        return _anonymized(picture, None if is_held else encoded, detections, checked, reason)

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

    def _hide(
        self, picture: images.Picture, found: Sequence[Detections], options: AnonymizeOptions
    ) -> list[NDArray[Any]]:
        style = styled(self._style, options)
        return [_hidden(frame, faces, style, options.extra) for frame, faces in zip(picture.frames, found, strict=True)]

    def _checked(
        self, picture: images.Picture, found: Sequence[Detections], encoded: bytes, options: AnonymizeOptions
    ) -> tuple[bytes, Checked]:
        """The output `encoded` after it was looked at again, with what was found hidden too, and what came of it."""
        started = time.perf_counter()
        added: list[Detections] = []
        left: list[Detections] | None = []
        for number in range(1, MOST_CHECKS + 1):
            left = self._left(picture, found, encoded, options)
            if not left:
                break
            added += left
            found = [Detections.joined(pair) for pair in zip(found, left, strict=True)]
            encoded = images.encode(picture, self._hide(picture, found, options))
            if (number + 1) / number * (time.perf_counter() - started) > self._limits.look_seconds:
                break
        verdict: receipts.Check = "left" if left else "same" if left is None else "clear"
        return encoded, Checked(verdict, _joined(added), _joined(left or []))

    def _left(
        self, picture: images.Picture, found: Sequence[Detections], encoded: bytes, options: AnonymizeOptions
    ) -> list[Detections] | None:
        """The faces that are found in the output, for each frame of `picture`; empty if there is none.

        None if its pixels are those of `picture`, in which there is nothing else to find. A face counts unless its
        eyes are in one that was `found` before: what shows of that one stays a face to the detector, lower down.
        """
        try:
            output = images.decode(encoded, self._limits.max_pixels, self._limits.max_frames)
        except Permanent as error:
            raise UnreadableImage(f"the output can't be read back: {error}") from None
        aligned = len(output.frames) == len(picture.frames)  # else some that look alike were joined into one
        places = [[number] if aligned else range(len(picture.frames)) for number in range(len(output.frames))]
        pairs = list(zip(output.frames, places, strict=True))
        changed = [
            (frame, where)
            for frame, where in pairs
            if not aligned or not np.array_equal(frame.pixels, picture.frames[where[0]].pixels)
        ]
        if not changed:
            return None
        style = replace(styled(self._style, options), region=masking.WHOLE)
        hidden = [
            masking.regions(faces.seen, style, frame.width, frame.height, options.extra)
            for frame, faces in zip(picture.frames, found, strict=True)
        ]
        left = [Detections.none() for _ in picture.frames]
        looks = self.look(replace(output, frames=tuple(frame for frame, _ in changed)))
        for (frame, where), seen in zip(changed, looks, strict=True):
            faces = outside(seen, options.exempt)
            covered = [masking.eyes_hidden(faces, hidden[each], frame.width, frame.height) for each in where]
            for each in where:
                left[each] = Detections.joined([left[each], faces[~np.all(covered, axis=0)]])
        return left if any(map(len, left)) else []

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

    def _is_done(self, source: StoredObject, output: StoredObject, recipe: str, options: AnonymizeOptions) -> bool:
        """Whether `output` is already the one that would be made. DestinationTaken if it is another source's."""
        if output.metadata.get(receipts.SOURCE) != receipts.source_digest(source.uri):
            raise DestinationTaken(
                f"{output.uri} is not an output of {source.uri}: choose another destination, or remove it"
            )
        without_faces = self._hold_without_faces and output.metadata.get(receipts.FACES) == "0"
        with_left = self._verify == "hold" and receipts.LEFT in output.metadata
        if (without_faces or with_left) and not options.release:
            return False  # published when such pictures were not held
        return output.metadata.get(receipts.RECIPE) == recipe and receipts.is_current(
            output.metadata, source.etag, None
        )

    def _skipped(
        self,
        source: StoredObject,
        route: Route,
        output: StoredObject,
        recipe: str,
        options: AnonymizeOptions,
        seconds: dict[str, float],
    ) -> AnonymizeReport:
        """The report of an `output` that is done. Why somebody should look at it is in its receipt: a worker may have
        died before it could say so.
        """
        receipt = None
        if receipts.LEFT in output.metadata and not options.release:
            assert self._store is not None
            made = receipts.Made.of(route.destination.relative(output.uri), recipe, source.etag)
            receipt = receipts.read(self._store, receipts.uri(route.destination, made))
        return AnonymizeReport(
            status="skipped",
            source=str(source.uri),
            destination=str(output.uri),
            recipe=recipe,
            reason=receipt.reason if receipt else None,
            boxes_xyxy=[face["box_xyxy"] for face in receipt.faces] if receipt else None,
            left_xyxy=receipt.left_xyxy if receipt else None,
            seconds=seconds,
            source_etag=source.etag,
            options=options.to_json() or None,
        )

    def _metadata(self, source: StoredObject, receipt: receipts.Receipt) -> dict[str, str]:
        return {
            receipts.SOURCE: receipts.source_digest(source.uri),
            receipts.SOURCE_ETAG: source.etag,
            receipts.RECIPE: receipt.recipe,
            receipts.FACES: str(len(receipt.faces)),
            **({receipts.LEFT: str(len(receipt.left_xyxy))} if receipt.left_xyxy else {}),
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
                for box, score in zip(whole_boxes(result.detections), result.detections.scores, strict=True)
            ],
            check=result.checked.verdict,
            found_by_check=whole_boxes(result.checked.added),
            left_xyxy=whole_boxes(result.checked.left),
            reason=result.reason,
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


def whole_boxes(detections: Detections) -> list[list[int]]:
    """The faces' boxes, x1 y1 x2 y2 in whole pixels, in their order."""
    boxes: list[list[int]] = detections.boxes_xyxy.round().astype(int).tolist()
    return boxes


def _joined(found: Sequence[Detections]) -> Detections:
    return Detections.joined(found) if found else Detections.none()


def _anonymized(
    picture: images.Picture,
    encoded: bytes | None,
    detections: Detections,
    checked: Checked = UNCHECKED,
    reason: Reason | None = None,
) -> Anonymized:
    """What came of `picture`; its faces strongest first."""
    ordered = detections[np.argsort(-detections.scores, kind="stable")]
    return Anonymized(
        encoded, picture.content_type, picture.format, picture.width, picture.height, ordered, checked, reason
    )


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
    *,
    model: str,
    score_threshold: float,
    look: Look,
    style: MaskStyle,
    keep_exif: Sequence[str] = (),
    checked: bool = False,
) -> str:
    """A digest of everything that decides an output, 16 hex digits of SHA-256.

    `checked` says that outputs are looked at again, which hides more. What then becomes of them, flagged or held back,
    changes no pixel.
    """
    decisive: dict[str, Any] = {
        "pixels": PIXELS_VERSION,
        "model": model,
        "score_threshold": score_threshold,
        "look": asdict(look),
        "style": asdict(style),
        "keep_exif": sorted(keep_exif),
        **({"checked": MOST_CHECKS} if checked else {}),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
