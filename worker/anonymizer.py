"""The anonymizer of one picture's file: decode, detect, mask, encode, verify."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.errors import DetectorUnavailable, ImageTooLarge, InvalidRequest
from tasks.messages import (
    FACE,
    NO_FACE_FOUND,
    NO_FACE_HIDDEN,
    AnonymizeOptions,
    Areas,
    Reason,
    Rule,
    held_by_a_rule,
)
from worker import images
from worker.areas import bounds
from worker.detection.credible import placed
from worker.detection.detector import Detector
from worker.detection.faces import Detections, clip, outside
from worker.detection.labelled import bridge_by_label, merge_views
from worker.detection.presets import PassSettings
from worker.images import viewing
from worker.images.formats import CONTENT_TYPES
from worker.images.viewing import View
from worker.masking import hiding
from worker.masking.regions import MaskStyle, Part
from worker.metadata.kept import NOTHING, Kept
from worker.pixels import Array, Pixels
from worker.process.watch import Watch, unwatched
from worker.residual_check import (
    MAX_CHECKS,
    MIN_SCORE_SHARE,
    UNCHECKED,
    Checked,
    ResidualCheck,
)
from worker.treatments import AS_CONFIGURED, Treatments

# Part of every recipe. Count it up with each change of this package that changes output pixels.
PIXELS_VERSION = 14

# A call into a library cannot be interrupted. If one exceeds the time limit of decoding by this
# much, the watchdog ends the process. The picture is then tried again, and given up as Poison if it
# keeps ending workers.
STALL_MARGIN_SECONDS = 60

Output = TypeVar("Output")
"""A file as bytes, or an array of pixels."""

OnStage = Callable[[str], None]
"""A function that is called with the name of each stage as it begins."""


def ignore_stage(_stage: str) -> None:
    """Report the stage to nobody."""


@dataclass(frozen=True)
class Limits:
    """Limits of one picture: its bytes, pixels and frames, and the seconds of each stage.

    `detection_seconds` is the limit for the detection in all frames. All residual checks together
    may take as long again.
    """

    max_bytes: int
    max_pixels: int
    fetch_seconds: float
    max_frames: int = images.MOST_FRAMES
    detection_seconds: float = 600
    decode_seconds: float = images.DECODE_SECONDS


@dataclass(frozen=True)
class Anonymized:
    """An anonymized picture: its file and the objects of all frames, strongest first.

    `content` is None if the picture is held. `reason` says why it is held, or why it is published
    but should be reviewed. `notes` name faults of the source's file that changed no pixel.
    """

    content: bytes | None = field(repr=False)
    content_type: str
    format: str
    width: int
    height: int
    detections: Detections
    checked: Checked = field(default=UNCHECKED, repr=False)
    reason: Reason | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnonymizedArray:
    """An anonymized array: its pixels and its objects, strongest first.

    `pixels` is uint8 RGB [height, width, 3], or None if the picture is held. `reason` has the
    meaning that it has in Anonymized.
    """

    pixels: Pixels | None = field(repr=False)
    detections: Detections
    checked: Checked = field(default=UNCHECKED, repr=False)
    reason: Reason | None = None

    @property
    def image(self) -> Image.Image | None:
        """The pixels as a Pillow image, or None if the picture is held."""
        return None if self.pixels is None else Image.fromarray(self.pixels)


@dataclass(frozen=True)
class _Result(Generic[Output]):
    """The output of one picture, None if it is held, and its faces, strongest first."""

    output: Output | None
    detections: Detections
    checked: Checked = UNCHECKED
    reason: Reason | None = None


@dataclass(frozen=True)
class _Hidden:
    """A frame's pixels after masking, and which of them may have changed, bool [h, w]."""

    pixels: Array
    changed: NDArray[np.bool_] | None = None


@dataclass
class Stopwatch:
    """Measures the seconds of each stage for the report, and calls `on_stage` as each begins."""

    on_stage: OnStage = ignore_stage
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, activity: str) -> Iterator[None]:
        """Measure the block as the stage `name`; call `on_stage` with `activity` before it."""
        self.on_stage(activity)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 4)


class FileAnonymizer(Protocol):
    """An anonymizer of picture files, in this process or in others. Threads share it."""

    limits: Limits
    hold_without_faces: bool
    verify: Literal["off", "flag", "hold"]
    treatments: Treatments
    """The labels that the models find, and what is done about each."""
    recipe: str
    """The digest of everything that decides an output, 16 hex digits."""
    made_with: Mapping[str, str]
    """The model and the versions, for receipts."""

    def anonymize(
        self, content: bytes, stopwatch: Stopwatch, options: AnonymizeOptions = AS_CONFIGURED
    ) -> Anonymized:
        """Return the anonymized file of the picture file `content`.

        Raises a VeilError on any doubt, so that nothing is published.
        """

    def detect_file(self, content: bytes, options: AnonymizeOptions = AS_CONFIGURED) -> Anonymized:
        """Return the faces that `anonymize` would hide, without an output: `content` is None.

        Raises a VeilError, as `anonymize` does.
        """

    def view(self, content: bytes, view: View) -> Anonymized:
        """Return a JPEG of the picture file `content` for people, with nothing hidden.

        `width` and `height` are those of the upright picture. A note says that it is the first of
        several frames. Raises a VeilError, as `anonymize` does.
        """

    def without_weaker(self, options: AnonymizeOptions) -> AnonymizeOptions:
        """Return the part of `options` that hides at least as much as the configured style."""


class Anonymizer(FileAnonymizer):
    """A FileAnonymizer that does all the work in this process."""

    def __init__(
        self,
        *,
        detector: Detector,
        style: MaskStyle,
        limits: Limits,
        hold_without_faces: bool = False,
        verify: Literal["off", "flag", "hold"] = "off",
        keep: Kept = NOTHING,
        recipe: str = "",
        made_with: Mapping[str, str] | None = None,
        watch: Watch = unwatched,
        labels: tuple[str, ...] = (FACE,),
        rules: Mapping[str, Rule] | None = None,
        least_check_score: float = 0.0,
    ) -> None:
        """Decode and encode under `watch`, which ends the process for a call that does not return.

        `recipe` is the digest of the other arguments. `made_with` names the model and the versions,
        for receipts. `style` is that of faces, `labels` are those that the detector finds, and
        `rules` those of the settings, by label. The residual check counts faces from
        `least_check_score` on.
        """
        self._detector = detector
        self.treatments = Treatments(style, labels, rules or {})
        self._keep = keep
        self.limits = limits
        self.hold_without_faces = hold_without_faces
        self.verify = verify
        self.recipe = recipe
        self.made_with = dict(made_with or {})
        self._watch = watch
        self.least_check_score = least_check_score

    def anonymize(
        self, content: bytes, stopwatch: Stopwatch, options: AnonymizeOptions = AS_CONFIGURED
    ) -> Anonymized:
        """Return the anonymized file of the picture file `content`.

        Raises a VeilError on any doubt, so that nothing is published.
        """
        with stopwatch.stage("decode", "decoding"):
            picture = self._decode(content, self._keep)
        encode = partial(self._encode, picture)
        result = self._anonymize(picture, encode, self._decode, stopwatch, options)
        return Anonymized(
            result.output,
            picture.content_type,
            picture.format,
            picture.width,
            picture.height,
            result.detections,
            result.checked,
            result.reason,
            picture.notes,
        )

    def anonymize_array(
        self, pixels: Pixels, options: AnonymizeOptions = AS_CONFIGURED
    ) -> AnonymizedArray:
        """Return `pixels`, uint8 RGB [height, width, 3], with the faces in it hidden.

        Where nothing is hidden, the result shares its pixels with the argument. Raises a VeilError
        on any doubt.
        """
        picture = _of_array(pixels)
        result = self._anonymize(picture, _only_frame, _of_array, Stopwatch(), options)
        return AnonymizedArray(result.output, result.detections, result.checked, result.reason)

    def detect_file(self, content: bytes, options: AnonymizeOptions = AS_CONFIGURED) -> Anonymized:
        """Return the faces that `anonymize` would hide, without an output: `content` is None.

        Raises a VeilError, as `anonymize` does.
        """
        picture = self._decode(content)
        _, hidden = self._faces(picture, options)
        faces = _strongest_first(Detections.joined(hidden))
        return Anonymized(
            None,
            picture.content_type,
            picture.format,
            picture.width,
            picture.height,
            faces,
            notes=picture.notes,
        )

    def view(self, content: bytes, view: View) -> Anonymized:
        """Return a JPEG of the picture file `content` for people, with nothing hidden.

        Raises a VeilError, as `anonymize` does.
        """
        picture = self._decode(content)
        count = len(picture.frames)
        return Anonymized(
            viewing.jpeg(picture, view),
            CONTENT_TYPES[viewing.FORMAT],
            viewing.FORMAT,
            picture.width,
            picture.height,
            Detections.none(),
            notes=(f"the first of {count:,} frames",) if count > 1 else (),
        )

    def detect(self, pixels: Pixels) -> Detections:
        """Return the faces in `pixels`, uint8 RGB [height, width, 3], strongest first."""
        picture = _of_array(pixels)
        (faces,) = self.detect_frames(picture)
        return _strongest_first(clip(faces, picture.width, picture.height))

    def detect_frames(self, picture: images.Picture) -> list[Detections]:
        """Return the faces of each frame, in its pixels.

        Raises ImageTooLarge if the next frame is likely to exceed `limits.detection_seconds`: the
        worker would lose the message before it is done. Raises DetectorUnavailable if the next view
        of one frame is.
        """
        found: list[Detections] = []
        budget = _Budget(self.limits.detection_seconds)
        for frame in picture.frames:
            if budget.is_spent:
                done = f"{len(found)} of {len(picture.frames)} frames"
                raise ImageTooLarge(
                    f"detection in {done} took {budget.spent:.0f} s: lower VEIL_MAX_FRAMES"
                )
            with budget.step():
                found.append(self._detect(frame))
        return found

    def without_weaker(self, options: AnonymizeOptions) -> AnonymizeOptions:
        """Return the part of `options` that hides at least as much as the configured style."""
        return self.treatments.without_weaker(options)

    def _anonymize(
        self,
        picture: images.Picture,
        encode: Callable[[Sequence["_Hidden"]], Output],
        decode: Callable[[Output], images.Picture],
        stopwatch: Stopwatch,
        options: AnonymizeOptions,
    ) -> "_Result[Output]":
        """Return the output that `encode` writes of the frames of `picture` with faces hidden.

        The residual check reads it with `decode`.
        """
        with stopwatch.stage("detect", "detecting"):
            detected, faces = self._faces(picture, options)
        with stopwatch.stage("mask", "masking"):
            frames = self._hide(picture, faces, options)
        if not options.release and (reason := self._reason_to_hold(detected, faces, options)):
            return _Result(None, _strongest_first(Detections.joined(faces)), reason=reason)
        with stopwatch.stage("encode", "encoding"):
            output = encode(frames)
        if self.verify == "off":
            return _Result(output, _strongest_first(Detections.joined(faces)))
        del frames  # The residual check decodes the output, so memory must hold no third copy.
        with stopwatch.stage("verify", "verifying"):
            check = ResidualCheck(
                decode=decode,
                find=self.detect_frames,
                redo=lambda more: encode(self._hide(picture, more, options)),
                treatments=self.treatments,
                options=options,
                max_seconds=self.limits.detection_seconds,
                least_score=self.least_check_score,
            )
            output, checked = check.run(picture, faces, output)
        detections = _strongest_first(Detections.joined([*faces, checked.added]))
        reason = None if options.release else checked.reason
        is_held = reason is not None and self.verify == "hold"
        labels = self.treatments.to_hold(checked.added.labels, options)
        if labels and not options.release:
            reason, is_held = held_by_a_rule(labels), True
        return _Result(None if is_held else output, detections, checked, reason)

    def _reason_to_hold(
        self,
        detected: Sequence[Detections],
        faces: Sequence[Detections],
        options: AnonymizeOptions,
    ) -> Reason | None:
        """Return the reason not to publish a picture, of whose objects `faces` are hidden.

        A rule that holds also counts for an object that an exempt area leaves visible.
        """
        wanted = self.treatments.wanted(Detections.joined(detected), options)
        if labels := self.treatments.to_hold(wanted.labels, options):
            return held_by_a_rule(labels)
        sought = self.treatments.sought
        nothing_hidden = not any(count(found, sought) for found in faces) and not options.extra
        if not (nothing_hidden and self.hold_without_faces):
            return None
        is_left = any(count(found, sought) for found in detected)
        return NO_FACE_HIDDEN if is_left else NO_FACE_FOUND

    def _decode(self, content: bytes, keep: Kept | None = None) -> images.Picture:
        """Return the picture in `content`. Without `keep`, no output is written."""
        limits, keep = self.limits, keep or self._keep.without_metadata()
        with self._watch("decoding a picture", limits.decode_seconds + STALL_MARGIN_SECONDS):
            return images.decode(
                content, limits.max_pixels, limits.max_frames, keep, limits.decode_seconds
            )

    def _encode(self, picture: images.Picture, frames: Sequence["_Hidden"]) -> bytes:
        pixels, changed = [one.pixels for one in frames], [one.changed for one in frames]
        with self._watch("encoding a picture", self.limits.decode_seconds + STALL_MARGIN_SECONDS):
            return images.encode(picture, pixels, changed)

    def _faces(
        self, picture: images.Picture, options: AnonymizeOptions
    ) -> tuple[list[Detections], list[Detections]]:
        """Return the objects in each frame, and those to hide.

        The latter are those that no rule or exempt area leaves clear. Raises InvalidRequest for an
        area that is outside of the picture, and for a rule of an unknown label.
        """
        _check_areas(picture, options)
        self.treatments.check(options)
        detected = self.detect_frames(picture)
        found = [self.treatments.wanted(faces, options) for faces in detected]
        # The frames of a TIFF are pages, which are pictures of their own. Those of other formats
        # are an animation, in which a face that was missed in one frame, or was too small there,
        # shows in those around it.
        if picture.format != "TIFF":
            bridged = bridge_by_label(found)
            found = [clip(faces, picture.width, picture.height) for faces in bridged]
        return detected, [outside(faces, options.exempt) for faces in found]

    def _detect(self, frame: images.Frame) -> Detections:
        found: list[Detections] = []
        budget = _Budget(self.limits.detection_seconds)
        for view in frame.views():
            if budget.is_spent:
                raise DetectorUnavailable(
                    f"detection in {len(found)} of the views of a frame took {budget.spent:.0f} s: "
                    "lower VEIL_CONCURRENCY, or raise VEIL_DETECT_SECONDS"
                )
            with budget.step():
                found.append(placed(self._detector.detect(view)))
        return merge_views(found)

    def _hide(
        self, picture: images.Picture, found: Sequence[Detections], options: AnonymizeOptions
    ) -> list["_Hidden"]:
        """Return each frame with its objects and the extra areas hidden."""
        hidden = []
        for frame, faces in zip(picture.frames, found, strict=True):
            parts = self.treatments.parts(faces, options)
            hidden.append(_hidden(frame, parts, options.extra))
        return hidden


class _Budget:
    """A limit of `seconds` for steps of similar length."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._slowest = 0.0
        self.spent = 0.0

    @property
    def is_spent(self) -> bool:
        """True if another step is likely to exceed the limit."""
        return self.spent + self._slowest > self._seconds

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure the block as a step."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.spent += seconds
        self._slowest = max(self._slowest, seconds)


def whole_boxes(detections: Detections) -> list[list[int]]:
    """Return the boxes of the faces, x1 y1 x2 y2 in whole pixels, in the order of the faces."""
    boxes: list[list[int]] = detections.boxes_xyxy.round().astype(int).tolist()
    return boxes


def _of_array(pixels: Pixels) -> images.Picture:
    """Return a picture of one frame. Any format but TIFF stands for an array."""
    return images.Picture((images.Frame(pixels, "RGB"),), "PNG")


def _check_areas(picture: images.Picture, options: AnonymizeOptions) -> None:
    """Raise InvalidRequest for an area that is outside of every frame.

    It was meant for another picture, or mistyped: what it should hide or show is then unknown.
    """
    sizes = {(frame.width, frame.height) for frame in picture.frames}
    for name, areas in (("exempt", options.exempt), ("extra", options.extra)):
        for area in areas:
            left, top, _, _ = bounds(area)
            if all(left >= width or top >= height for width, height in sizes):
                raise InvalidRequest(
                    f"the {name} area {','.join(map(str, area))} is outside of the picture, which "
                    f"has {picture.width} × {picture.height} pixels: correct it"
                )


def _only_frame(frames: Sequence["_Hidden"]) -> Pixels:
    return frames[0].pixels


def _strongest_first(detections: Detections) -> Detections:
    return detections[np.argsort(-detections.scores, kind="stable")]


def count(found: Detections, label: str | None) -> int:
    """Return the number of objects of `found` with `label`, or of all for None."""
    return len(found) if label is None else int((found.labels == label).sum())


def _hidden(frame: images.Frame, parts: Sequence[Part], extra: Areas) -> "_Hidden":
    """Return a copy of the frame's pixels with the objects of `parts` and `extra` hidden.

    Without any it returns the array of the frame itself, by which the encoder recognises that
    nothing changed.
    """
    if not any(len(part.sightings) for part in parts) and not extra:
        return _Hidden(frame.pixels)
    return _Hidden(*hiding.hide_and_mark(frame.pixels, parts, frame.black, extra))


def recipe_digest(
    *,
    model: str,
    score_threshold: float,
    pass_settings: PassSettings,
    style: MaskStyle,
    keep: Kept = NOTHING,
    checked: bool = False,
    labels: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the digest of everything that decides an output, 16 hex digits of SHA-256.

    `checked` is true if outputs are checked for residual faces, because that hides more. Whether
    such outputs are flagged or held changes no pixel. `labels` has the searches of several, or of
    another one than FACE; it is empty if the other arguments say everything.
    """
    decisive: dict[str, Any] = {
        "pixels": PIXELS_VERSION,
        "model": model,
        "score_threshold": score_threshold,
        "look": asdict(pass_settings),
        "style": asdict(style),
        **keep.in_recipe(),
    }
    if checked:
        decisive["checked"] = [MAX_CHECKS, MIN_SCORE_SHARE]
    if labels:
        decisive["labels"] = list(labels)
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
