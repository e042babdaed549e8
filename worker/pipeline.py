"""One picture, start to end: fetch, decode, detect, mask, encode, store, report."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

from tasks.errors import DestinationTaken
from tasks.messages import AnonymizeOptions, AnonymizeReport, AnonymizeRequest
from tasks.s3 import ObjectStore, ObjectUri, StoredObject
from worker import images, masking, routes
from worker.detector import Detections, Detector, merge, outside, placed
from worker.masking import MaskStyle
from worker.routes import Route
from worker.settings import Look

PIXELS_VERSION = 2  # counts up with every change of this package that changes output pixels

SOURCE = "veil-source-sha256"
SOURCE_ETAG = "veil-source-etag"
RECIPE = "veil-recipe"
FACES = "veil-faces"

AS_CONFIGURED = AnonymizeOptions()

OnStage = Callable[[str], None]


def unheard(_stage: str) -> None:
    """Tell nobody which stage begins."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one picture: bytes, pixels and seconds of download."""

    max_bytes: int
    max_pixels: int
    fetch_seconds: float


@dataclass(frozen=True)
class Anonymized:
    """An anonymized picture: its file, None if it is held back, and what was found in it."""

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
        route_table: Sequence[Route] = (),
        recipe: str = "",
    ) -> None:
        """`store` and `route_table` are None and empty where only local files are anonymized."""
        self._store = store
        self._detector = detector
        self._style = style
        self._limits = limits
        self._hold_without_faces = hold_without_faces
        self._route_table = route_table
        self.recipe = recipe

    def run(self, request: AnonymizeRequest, on_stage: OnStage = unheard) -> AnonymizeReport:
        """Fetch, anonymize and store one object, and say what came of it.

        Raises a VeilError that says who must act; then no output was written.
        """
        assert self._store is not None
        watch = Stopwatch(on_stage)
        destination = routes.destination(request, self._route_table)
        options = request.options or AS_CONFIGURED
        recipe = options.recipe(self.recipe)
        with watch.stage("fetch", "fetching"), self._store.open(request.source) as opened:
            source = opened.stored
            if self._is_done(source, destination, recipe):
                return AnonymizeReport(
                    status="skipped",
                    source=str(request.source),
                    destination=str(destination),
                    recipe=recipe,
                    seconds=watch.seconds,
                )
            content = opened.read(self._limits.max_bytes, self._limits.fetch_seconds)
        result = self.anonymize(content, watch, options)
        if result.content is not None:
            with watch.stage("store", "storing"):
                metadata = self._metadata(source, recipe, result.detections)
                self._store.put(destination, result.content, result.content_type, metadata)
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
            boxes_xyxy=result.detections.boxes_xyxy.round().astype(int).tolist(),
        )

    def anonymize(self, content: bytes, watch: Stopwatch, options: AnonymizeOptions = AS_CONFIGURED) -> Anonymized:
        """The anonymized file for the picture file `content`. Nothing is returned on any doubt: it raises."""
        with watch.stage("decode", "decoding"):
            picture = images.decode(content, self._limits.max_pixels)
        with watch.stage("detect", "detecting"):
            detections = outside(self._detect(picture), options.exempt)
        with watch.stage("mask", "masking"):
            style = styled(self._style, options)
            pixels = masking.hide(picture.pixels, detections.seen, style, picture.black, options.extra)
        held = self._hold_without_faces and not len(detections) and not options.extra
        with watch.stage("encode", "encoding"):
            encoded = None if held else images.encode(picture, pixels)
        return Anonymized(encoded, picture.content_type, picture.format, picture.width, picture.height, detections)

    def _detect(self, picture: images.Picture) -> Detections:
        found = [placed(self._detector.detect(view)) for view in picture.views()]
        return found[0] if len(found) == 1 else merge(Detections.joined(found))

    def _is_done(self, source: StoredObject, destination: ObjectUri, recipe: str) -> bool:
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
        return known.get(SOURCE_ETAG) == source.etag and known.get(RECIPE) == recipe

    def _metadata(self, source: StoredObject, recipe: str, detections: Detections) -> dict[str, str]:
        return {
            SOURCE: _address_digest(source.uri),
            SOURCE_ETAG: source.etag,
            RECIPE: recipe,
            FACES: str(len(detections)),
        }


def _address_digest(uri: ObjectUri) -> str:
    """SHA-256 of an address: S3's 2 kB of metadata would not hold every one, and it tells nobody where sources are."""
    return hashlib.sha256(str(uri).encode()).hexdigest()


def styled(style: MaskStyle, options: AnonymizeOptions) -> MaskStyle:
    """`style` with what `options` ask for."""
    method, region = options.method or style.method, options.region or style.region
    return replace(style, method=method, region=region)


def recipe_digest(*, model: str, score_threshold: float, look: Look, style: MaskStyle) -> str:
    """A digest of everything that decides an output's pixels, 16 hex digits of SHA-256."""
    decisive = {
        "pixels": PIXELS_VERSION,
        "model": model,
        "score_threshold": score_threshold,
        "look": asdict(look),
        "style": asdict(style),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
