"""The trial: each drawn picture is anonymized in memory with each variant of the settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tasks.errors import VeilError, without_data
from tasks.messages import FACE
from worker.anonymizer import Anonymized, FileAnonymizer, Stopwatch, whole_boxes
from worker.bootstrap import build_file_anonymizer
from worker.images.viewing import View
from worker.preview.sources import SourcePicture
from worker.preview.variants import Variant

VIEW_SIDE = 1280  # pixels of the pictures on the sheet

Status = Literal["anonymized", "held", "failed"]


@dataclass(frozen=True)
class Attempt:
    """One picture with one variant: what was found, how long it took, and what it looks like.

    Boxes are x1 y1 x2 y2 in pixels of the upright picture; each has a score and a label. `seconds`
    has the duration of each stage of the work on the file. `after` is a JPEG of the output; None if
    there is none, or if it can't be shown.
    """

    status: Status
    width: int = 0
    height: int = 0
    boxes_xyxy: list[list[int]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    found_by_check: int = 0
    reason: str | None = None
    error: str | None = None
    message: str | None = None
    output_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    after: bytes | None = field(default=None, repr=False)

    @property
    def face_boxes(self) -> list[list[int]]:
        """The boxes of the faces, without those of other objects."""
        boxes = zip(self.boxes_xyxy, self.labels, strict=True)
        return [box for box, label in boxes if label == FACE]

    @property
    def face_scores(self) -> list[float]:
        """The scores of the faces, without those of other objects."""
        scores = zip(self.scores, self.labels, strict=True)
        return [score for score, label in scores if label == FACE]

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


@dataclass
class TriedPicture:
    """A drawn picture, its `attempts` in the order of the variants, and a JPEG of its source.

    `before` is None if the source can't be decoded, or must not be on the sheet.
    """

    picture: SourcePicture
    attempts: list[Attempt] = field(default_factory=list)
    before: bytes | None = field(default=None, repr=False)


def run(
    variants: Sequence[Variant],
    pictures: Sequence[SourcePicture],
    shows_originals: bool,
    on_done: Callable[[], None],
) -> list[TriedPicture]:
    """Return all `pictures`, tried with all `variants`; `on_done` is called after each attempt.

    One picture is worked on at a time, so that the seconds of its stages are processor seconds.
    Nothing is written anywhere. Raises the errors of build_file_anonymizer.
    """
    tried = [TriedPicture(picture) for picture in pictures]
    for number, variant in enumerate(variants):
        anonymizer = build_file_anonymizer(variant.settings, pictures=1)
        for one in tried:
            one.attempts.append(_attempt(anonymizer, one, shows_originals and number == 0))
            on_done()
    return tried


def _attempt(anonymizer: FileAnonymizer, tried: TriedPicture, shows_original: bool) -> Attempt:
    """Return the outcome of one picture; every error is one, as a dead letter would be."""
    try:
        content = tried.picture.read()
        if shows_original:
            tried.before = anonymizer.view(content, View(VIEW_SIDE)).content
        stopwatch = Stopwatch()
        result = anonymizer.anonymize(content, stopwatch)
        after = None
        if result.content is not None:
            after = anonymizer.view(result.content, View(VIEW_SIDE)).content
    except VeilError as error:
        return Attempt("failed", error=type(error).__name__, message=str(error))
    except Exception as error:  # a bug, or a file that can't be read; its text may quote pixels
        message = " ".join(str(without_data(error)).split())
        return Attempt("failed", error=type(error).__name__, message=message)
    return _success(result, stopwatch.seconds, after)


def _success(result: Anonymized, seconds: dict[str, float], after: bytes | None) -> Attempt:
    return Attempt(
        status="held" if result.content is None else "anonymized",
        width=result.width,
        height=result.height,
        boxes_xyxy=whole_boxes(result.detections),
        scores=[round(float(score), 4) for score in result.detections.scores],
        labels=result.detections.labels.tolist(),
        found_by_check=len(result.checked.added),
        reason=result.reason,
        output_bytes=len(result.content or b""),
        seconds=seconds,
        after=after,
    )
