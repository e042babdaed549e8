"""One picture, start to end: fetch, decode, detect, mask, encode, store, report."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from numpy.typing import NDArray

from tasks.errors import DestinationTaken, ImageTooLarge
from tasks.messages import AnonymizeReport, AnonymizeRequest
from tasks.s3 import ObjectStore, ObjectUri, StoredObject
from worker import images, masking, routes
from worker.detector import Detections, Detector, merge, placed
from worker.masking import MaskStyle
from worker.routes import Route

PIXELS_VERSION = 2  # counts up with every change of this package that changes output pixels

SOURCE = "veil-source-sha256"
SOURCE_ETAG = "veil-source-etag"
RECIPE = "veil-recipe"
FACES = "veil-faces"

OnStage = Callable[[str], None]


def unheard(_stage: str) -> None:
    """Tell nobody which stage begins."""


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
    ) -> None:
        """`store` and `route_table` are None and empty where only local files are anonymized."""
        self._store = store
        self._detector = detector
        self._style = style
        self._limits = limits
        self._hold_without_faces = hold_without_faces
        self._keep_exif = keep_exif
        self._route_table = route_table
        self.recipe = recipe

    def run(self, request: AnonymizeRequest, on_stage: OnStage = unheard) -> AnonymizeReport:
        """Fetch, anonymize and store one object, and say what came of it.

        Raises a VeilError that says who must act; then no output was written.
        """
        assert self._store is not None
        watch = Stopwatch(on_stage)
        destination = routes.destination(request, self._route_table)
        with watch.stage("fetch", "fetching"), self._store.open(request.source) as opened:
            source = opened.stored
            if self._is_done(source, destination):
                return AnonymizeReport(
                    status="skipped",
                    source=str(request.source),
                    destination=str(destination),
                    recipe=self.recipe,
                    seconds=watch.seconds,
                )
            content = opened.read(self._limits.max_bytes, self._limits.fetch_seconds)
        result = self.anonymize(content, watch)
        if result.content is not None:
            with watch.stage("store", "storing"):
                self._store.put(
                    destination, result.content, result.content_type, self._metadata(source, result.detections)
                )
        scores = result.detections.scores
        return AnonymizeReport(
            status="held" if result.content is None else "anonymized",
            faces=len(scores),
            lowest_score=round(float(scores.min()), 4) if len(scores) else None,
            source=str(request.source),
            destination=None if result.content is None else str(destination),
            recipe=self.recipe,
            format=result.format,
            width=result.width,
            height=result.height,
            bytes_in=len(content),
            bytes_out=None if result.content is None else len(result.content),
            seconds=watch.seconds,
            boxes_xyxy=result.detections.boxes_xyxy.round().astype(int).tolist(),
        )

    def anonymize(self, content: bytes, watch: Stopwatch) -> Anonymized:
        """The anonymized file for the picture file `content`. Nothing is returned on any doubt: it raises."""
        with watch.stage("decode", "decoding"):
            picture = images.decode(content, self._limits.max_pixels, self._limits.max_frames, self._keep_exif)
        with watch.stage("detect", "detecting"):
            found = self._look(picture)
        with watch.stage("mask", "masking"):
            hidden = [self._hidden(frame, faces) for frame, faces in zip(picture.frames, found, strict=True)]
        detections = Detections.joined(found)
        held = self._hold_without_faces and not len(detections)
        with watch.stage("encode", "encoding"):
            encoded = None if held else images.encode(picture, hidden)
        return Anonymized(encoded, picture.content_type, picture.format, picture.width, picture.height, detections)

    def _look(self, picture: images.Picture) -> list[Detections]:
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

    def _hidden(self, frame: images.Frame, faces: Detections) -> NDArray[Any]:
        """The frame's pixels with `faces` hidden; its own where there are none, which tells the encoder so."""
        return masking.hide(frame.pixels, faces.boxes_xyxy, self._style, frame.black) if len(faces) else frame.pixels

    def _is_done(self, source: StoredObject, destination: ObjectUri) -> bool:
        """Whether the stored output is already the one that would be made. DestinationTaken if it is another's."""
        assert self._store is not None
        stored = self._store.head(destination)
        if stored is None:
            return False
        known = stored.metadata
        if known.get(SOURCE) != _address_digest(source.uri):
            raise DestinationTaken(
                f"{destination} is not an output of {source.uri}: choose another destination, or remove it"
            )
        if self._hold_without_faces and known.get(FACES) == "0":
            return False  # published when such pictures were not held
        return known.get(SOURCE_ETAG) == source.etag and known.get(RECIPE) == self.recipe

    def _metadata(self, source: StoredObject, detections: Detections) -> dict[str, str]:
        return {
            SOURCE: _address_digest(source.uri),
            SOURCE_ETAG: source.etag,
            RECIPE: self.recipe,
            FACES: str(len(detections)),
        }


def _address_digest(uri: ObjectUri) -> str:
    """SHA-256 of an address: S3's 2 kB of metadata would not hold every one, and it tells nobody where sources are."""
    return hashlib.sha256(str(uri).encode()).hexdigest()


def recipe_digest(
    *,
    model: str,
    score_threshold: float,
    scales: Sequence[int],
    max_enlargement: float,
    style: MaskStyle,
    keep_exif: Sequence[str] = (),
) -> str:
    """A digest of everything that decides an output, 16 hex digits of SHA-256."""
    decisive = {
        "pixels": PIXELS_VERSION,
        "model": model,
        "score_threshold": score_threshold,
        "scales": list(scales),
        "max_enlargement": max_enlargement,
        "style": asdict(style),
        "keep_exif": sorted(keep_exif),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
