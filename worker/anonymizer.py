"""One picture's file: decode, detect, mask, encode, verify."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ImageTooLarge
from tasks.messages import AnonymizeOptions, Areas, Reason
from worker import images
from worker.detection.credible import placed
from worker.detection.detector import Detector
from worker.detection.faces import Detections, bridged, clip, merge, outside
from worker.detection.presets import PassSettings
from worker.masking import hiding
from worker.masking.filling import INDEPENDENT
from worker.masking.regions import MaskStyle
from worker.pixels import Pixels
from worker.process.watchdog import Watch, unwatched
from worker.residual_check import MAX_CHECKS, UNCHECKED, Checked, ResidualCheck

PIXELS_VERSION = 8  # counts up with every change of this package that changes output pixels

# A call into a library can't be ended. One that lasts so much longer than decoding may ends the
# process: the picture is then tried again, and given up as Poison when it keeps ending workers.
STALLED_SECONDS = 60

Output = TypeVar("Output")
"""A file as bytes, or an array of pixels."""

AS_CONFIGURED = AnonymizeOptions()

OnStage = Callable[[str], None]


def unheard(_stage: str) -> None:
    """Tell nobody which stage begins."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one picture: bytes, pixels, frames, and seconds of download, of decoding and of
    looking at all frames.

    All checks of its output together may take as long again.
    """

    max_bytes: int
    max_pixels: int
    fetch_seconds: float
    max_frames: int = images.MOST_FRAMES
    look_seconds: float = 600
    decode_seconds: float = images.DECODE_SECONDS


@dataclass(frozen=True)
class Anonymized:
    """An anonymized picture: its file, None if it is held back, and what was found in all its
    frames.

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


@dataclass(frozen=True)
class AnonymizedArray:
    """An anonymized array: its pixels, None if it is held back, and the faces found in it.

    `pixels` is uint8 RGB [height, width, 3]; `reason` as of Anonymized.
    """

    pixels: Pixels | None
    detections: Detections
    checked: Checked = UNCHECKED
    reason: Reason | None = None


@dataclass(frozen=True)
class _Made(Generic[Output]):
    """The output of one picture, None if it is held back, and its faces, strongest first."""

    output: Output | None
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


class Anonymizer:
    """What is done with a picture's file, wherever it lies. Threads share one."""

    def __init__(
        self,
        *,
        detector: Detector,
        style: MaskStyle,
        limits: Limits,
        hold_without_faces: bool = False,
        verify: Literal["off", "flag", "hold"] = "off",
        keep_exif: Sequence[str] = (),
        recipe: str = "",
        made_with: Mapping[str, str] | None = None,
        guard: Watch = unwatched,
    ) -> None:
        """`recipe` is the digest of all this; `made_with` names the model and the versions, for
        receipts.

        Decoding and encoding run under `guard`, which ends the process for a call that does not
        return.
        """
        self._detector = detector
        self._style = style
        self._keep_exif = keep_exif
        self.limits = limits
        self.hold_without_faces = hold_without_faces
        self.verify = verify
        self.recipe = recipe
        self.made_with = dict(made_with or {})
        self._guard = guard

    def hiding_more(self, options: AnonymizeOptions) -> AnonymizeOptions:
        """Return what of `options` hides no less than is configured."""
        return hiding_more(self._style, options)

    def anonymize(
        self, content: bytes, watch: Stopwatch, options: AnonymizeOptions = AS_CONFIGURED
    ) -> Anonymized:
        """Return the anonymized file of the picture file `content`. On any doubt it raises."""
        with watch.stage("decode", "decoding"):
            picture = self._decoded(content, self._keep_exif)
        write = partial(self._encoded, picture)
        made = self._make(picture, write, self._decoded, watch, options)
        return Anonymized(
            made.output,
            picture.content_type,
            picture.format,
            picture.width,
            picture.height,
            made.detections,
            made.checked,
            made.reason,
        )

    def anonymize_array(
        self, pixels: Pixels, options: AnonymizeOptions = AS_CONFIGURED
    ) -> AnonymizedArray:
        """Return `pixels`, uint8 RGB [height, width, 3], with faces hidden. On any doubt it raises.

        The pixels of the result are those of the argument itself where nothing is hidden.
        """
        picture = _of_array(pixels)
        made = self._make(picture, itemgetter(0), _of_array, Stopwatch(), options)
        return AnonymizedArray(made.output, made.detections, made.checked, made.reason)

    def detect(self, pixels: Pixels) -> Detections:
        """Return the faces in `pixels`, uint8 RGB [height, width, 3], strongest first."""
        picture = _of_array(pixels)
        (found,) = self.look(picture)
        return _strongest_first(clip(found, picture.width, picture.height))

    def _make(
        self,
        picture: images.Picture,
        write: Callable[[Sequence[NDArray[Any]]], Output],
        read: Callable[[Output], images.Picture],
        watch: Stopwatch,
        options: AnonymizeOptions,
    ) -> "_Made[Output]":
        """Return the output that `write` makes of the frames of `picture` with their faces hidden.

        The residual check `read`s it again.
        """
        with watch.stage("detect", "detecting"):
            looks = self.look(picture)
            if picture.format != "TIFF":  # its frames are pages, which are pictures of their own
                looks = [clip(faces, picture.width, picture.height) for faces in bridged(looks)]
            found = [outside(faces, options.exempt) for faces in looks]
        with watch.stage("mask", "masking"):
            hidden = self._hide(picture, found, options)
        if self.hold_without_faces and not (
            any(map(len, found)) or options.extra or options.release
        ):
            return _Made(None, Detections.none(), reason="no face found")
        with watch.stage("encode", "encoding"):
            output = write(hidden)
        if self.verify == "off":
            return _Made(output, _strongest_first(Detections.joined(found)))
        del hidden  # the output is decoded beside the picture
        with watch.stage("verify", "verifying"):
            check = ResidualCheck(
                decode=read,
                find=self.look,
                redo=lambda faces: write(self._hide(picture, faces, options)),
                style=styled(self._style, options),
                options=options,
                max_seconds=self.limits.look_seconds,
            )
            output, checked = check.run(picture, found, output)
        detections = _strongest_first(Detections.joined([*found, checked.added]))
        reason = None if options.release else checked.reason
        is_held = reason is not None and self.verify == "hold"
        return _Made(None if is_held else output, detections, checked, reason)

    def _decoded(self, content: bytes, keep_exif: Sequence[str] = ()) -> images.Picture:
        limits = self.limits
        with self._guard("decoding a picture", limits.decode_seconds + STALLED_SECONDS):
            return images.decode(
                content, limits.max_pixels, limits.max_frames, keep_exif, limits.decode_seconds
            )

    def _encoded(self, picture: images.Picture, frames: Sequence[NDArray[Any]]) -> bytes:
        with self._guard("encoding a picture", self.limits.decode_seconds + STALLED_SECONDS):
            return images.encode(picture, frames)

    def look(self, picture: images.Picture) -> list[Detections]:
        """The faces of each frame; ImageTooLarge where that takes so long that the message would
        come back.
        """
        found: list[Detections] = []
        looked = slowest = 0.0
        for frame in picture.frames:
            if looked + slowest > self.limits.look_seconds:
                done = f"{len(found)} of {len(picture.frames)}"
                raise ImageTooLarge(
                    f"looking at {done} frames took {looked:.0f} s: lower VEIL_MAX_FRAMES"
                )
            started = time.perf_counter()
            found.append(self._detect(frame))
            looked, slowest = (
                looked + time.perf_counter() - started,
                max(slowest, time.perf_counter() - started),
            )
        return found

    def _detect(self, frame: images.Frame) -> Detections:
        found = [placed(self._detector.detect(view)) for view in frame.views()]
        return found[0] if len(found) == 1 else merge(Detections.joined(found))

    def _hide(
        self, picture: images.Picture, found: Sequence[Detections], options: AnonymizeOptions
    ) -> list[NDArray[Any]]:
        style = styled(self._style, options)
        return [
            _hidden(frame, faces, style, options.extra)
            for frame, faces in zip(picture.frames, found, strict=True)
        ]


def whole_boxes(detections: Detections) -> list[list[int]]:
    """The faces' boxes, x1 y1 x2 y2 in whole pixels, in their order."""
    boxes: list[list[int]] = detections.boxes_xyxy.round().astype(int).tolist()
    return boxes


def _of_array(pixels: Pixels) -> images.Picture:
    """Return a picture of one frame, whose format says only that it is no TIFF."""
    return images.Picture((images.Frame(pixels, "RGB"),), "PNG")


def _strongest_first(detections: Detections) -> Detections:
    return detections[np.argsort(-detections.scores, kind="stable")]


def hiding_more(style: MaskStyle, options: AnonymizeOptions) -> AnonymizeOptions:
    """Return what of `options` hides no less than `style` does by itself."""
    is_safe = options.method in INDEPENDENT or style.method not in INDEPENDENT
    return AnonymizeOptions(
        method=options.method if is_safe else None,
        region=options.region if options.region and options.region > style.region else None,
        extra=options.extra,
    )


def styled(style: MaskStyle, options: AnonymizeOptions) -> MaskStyle:
    """`style` with what `options` ask for."""
    method, region = options.method or style.method, options.region or style.region
    return replace(style, method=method, region=region)


def _hidden(frame: images.Frame, faces: Detections, style: MaskStyle, extra: Areas) -> NDArray[Any]:
    """The frame's pixels with `faces` and `extra` hidden; its own where there are none, which tells
    the encoder so.
    """
    if not len(faces) and not extra:
        return frame.pixels
    return hiding.hide(frame.pixels, faces.sightings, style, frame.black, extra)


def recipe_digest(
    *,
    model: str,
    score_threshold: float,
    look: PassSettings,
    style: MaskStyle,
    keep_exif: Sequence[str] = (),
    checked: bool = False,
) -> str:
    """A digest of everything that decides an output, 16 hex digits of SHA-256.

    `checked` says that outputs are looked at again, which hides more. What then becomes of them,
    flagged or held back, changes no pixel.
    """
    decisive: dict[str, Any] = {
        "pixels": PIXELS_VERSION,
        "model": model,
        "score_threshold": score_threshold,
        "look": asdict(look),
        "style": asdict(style),
        "keep_exif": sorted(keep_exif),
        **({"checked": MAX_CHECKS} if checked else {}),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
