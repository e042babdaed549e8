"""The residual check: compare an output with its picture, and detect faces in it again.

Faces that are found are hidden too. What should be hidden already and is shown is an error.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.errors import Permanent, UnreadableImage
from tasks.messages import FACE, AnonymizeOptions, Check, Reason
from worker import images
from worker.detection.boxes import overlapping_pairs
from worker.detection.faces import Detections, has_same_face, outside
from worker.masking import comparing, regions
from worker.treatments import Treatments

if TYPE_CHECKING:
    from worker.detection.labelled import Search

Output = TypeVar("Output")
"""A file as bytes, or an array of pixels."""

MAX_CHECKS = 6  # The most checks of one output. Few pictures need two.
# A face that is found in an output counts from this share of the way from the threshold to 1 on.
# Weaker ones are nearly all echoes of the masks: hair, ears and hands beside them.
MIN_SCORE_SHARE = 0.5


@dataclass(frozen=True)
class Checked:
    """The outcome of a residual check.

    `verdict` is written to the receipt; `added` are the faces that the check found and hid;
    `remaining` are those that its last detection still found, and those that the output shows
    although they should be hidden.
    """

    verdict: Check
    added: Detections
    remaining: Detections

    @property
    def reason(self) -> Reason | None:
        """The reason for a review of the picture, if it needs one."""
        if not len(self.remaining):
            return None
        if (self.remaining.labels == FACE).all():
            return "faces still found in the output"
        return "objects still found in the output"


UNCHECKED = Checked("off", Detections.none(), Detections.none())


def least_score(searches: "Sequence[Search]") -> float:
    """Return the score from which a face counts that `searches` find in an output."""
    thresholds = [search.score_threshold for search in searches if search.label == FACE]
    lowest = min(thresholds, default=0.0)
    return lowest + MIN_SCORE_SHARE * (1 - lowest)


def counted(
    detections: Detections, treatments: Treatments, options: AnonymizeOptions, least_score: float
) -> Detections:
    """Return those of `detections` in an output that count if they are not hidden.

    Faces count from `least_score` on. What the request or a rule leaves clear does not count.
    """
    found = outside(treatments.wanted(detections, options), options.exempt)
    return found[(found.scores >= least_score) | (found.labels != FACE)]


def shown_rows(
    frame: images.Frame,
    output: images.Frame,
    faces: Detections,
    treatments: Treatments,
    options: AnonymizeOptions,
) -> NDArray[np.intp]:
    """Return the rows of those of `faces`, hidden in `frame`, that `output` shows."""
    size = frame.width, frame.height
    if (output.width, output.height) != size:
        return np.arange(len(faces))
    rows = [np.zeros(0, np.intp)]
    for part in treatments.parts(faces, options):
        hidden = regions.regions(part.sightings, part.style, *size)
        rows.append(hidden.faces[comparing.shown(frame.colours, output.colours, hidden)])
    return np.unique(np.concatenate(rows))


def exposed(
    output: images.Picture,
    source: images.Picture | None,
    listed: Detections,
    find: Callable[[images.Picture], list[Detections]],
    treatments: Treatments,
    options: AnonymizeOptions,
    least_score: float,
) -> list[Detections]:
    """Return the objects that `output` shows, by the objects `listed` in its receipt.

    They are those that `find` detects in one of its frames and that are not hidden, and those of
    `listed` that look as in the `source`, if there is one. A receipt does not tell in which frame
    an object was hidden, so one counts as shown if it is in every frame. An object at a mask that
    the source does not have is an echo of the mask.
    """
    parts = treatments.parts(listed, options)
    shown, at_masks = [], []
    for frame, detections in zip(output.frames, find(output), strict=True):
        size = frame.width, frame.height
        hidden = regions.whole_regions(parts, *size, options.extra)
        faces = counted(detections, treatments, options, least_score)
        faces = faces[~regions.eyes_hidden(faces, hidden, *size)]
        is_at_mask = np.zeros(len(faces), bool)
        for rows, _ in overlapping_pairs(faces.boxes_xyxy, hidden.rectangles):
            is_at_mask[rows] = True
        shown.append(faces[~is_at_mask])
        at_masks.append(faces[is_at_mask])
    doubtful = Detections.joined(at_masks)
    if source is None:
        return [*shown, doubtful]
    if len(doubtful):
        doubtful = doubtful[has_same_face(doubtful, Detections.joined(find(source)))]
    if len(source.frames) == len(output.frames):
        pairs = zip(source.frames, output.frames, strict=True)
        shown_of = [set(shown_rows(*pair, listed, treatments, options).tolist()) for pair in pairs]
        shown.append(listed[np.array(sorted(set.intersection(*shown_of)), np.intp)])
    return [*shown, doubtful]


@dataclass(frozen=True)
class _ChangedFrame:
    """A frame of the output that differs from the frames `numbers` of the picture.

    There are several if the encoder joined frames, so that nobody knows which of them it shows.
    """

    frame: images.Frame
    numbers: Sequence[int]


@dataclass(frozen=True)
class ResidualCheck(Generic[Output]):
    """The check of one picture's output, repeated until no face is found, up to MAX_CHECKS times.

    `decode` reads an output, `find` detects the faces of each frame, and `redo` makes the output
    anew with the given faces of each frame hidden, as `treatments` say. No check starts
    that is likely to end later than `max_seconds` after the start of the first one. Faces that are
    found in the output count from `least_score` on.
    """

    decode: Callable[[Output], images.Picture]
    find: Callable[[images.Picture], list[Detections]]
    redo: Callable[[Sequence[Detections]], Output]
    treatments: Treatments
    options: AnonymizeOptions
    max_seconds: float
    least_score: float = 0.0

    def run(
        self, picture: images.Picture, found: Sequence[Detections], output: Output
    ) -> tuple[Output, Checked]:
        """Return the `output` of `picture`, made anew if faces were found in it.

        `found` are the faces of each frame that are hidden already. Raises UnreadableImage if the
        output can't be read back, and what detection raises.
        """
        started = time.perf_counter()
        added: list[Detections] = []
        remaining: list[Detections] | None = []
        shown: list[Detections] = []
        for number in range(1, MAX_CHECKS + 1):
            decoded = self._decoded(output)
            remaining = self._remaining(picture, found, decoded)
            if not remaining:
                shown = self._shown(picture, found, decoded)
                break
            added += remaining
            found = [Detections.joined(pair) for pair in zip(found, remaining, strict=True)]
            output = self.redo(found)
            elapsed = time.perf_counter() - started
            if (number + 1) / number * elapsed > self.max_seconds:
                break
        left = _joined([*(remaining or []), *shown])
        verdict: Check = "clear"
        if len(left):
            verdict = "left"
        elif remaining is None:
            verdict = "same"
        return output, Checked(verdict, _joined(added), left)

    def _decoded(self, output: Output) -> images.Picture:
        try:
            return self.decode(output)
        except Permanent as error:
            raise UnreadableImage(f"the output can't be read back: {error}") from None

    def _shown(
        self, picture: images.Picture, found: Sequence[Detections], decoded: images.Picture
    ) -> list[Detections]:
        """Return those of `found` that the output shows: a mask, or the output, is a wrong one.

        Detection does not notice it, because it may find a hidden face by its visible part. An
        animation whose encoder joined frames is not compared.
        """
        if len(decoded.frames) != len(picture.frames):
            return []
        frames = zip(picture.frames, decoded.frames, found, strict=True)
        return [
            faces[shown_rows(frame, output, faces, self.treatments, self.options)]
            for frame, output, faces in frames
        ]

    def _remaining(
        self, picture: images.Picture, found: Sequence[Detections], decoded: images.Picture
    ) -> list[Detections] | None:
        """Return the faces that the output still shows, for each frame of `picture`.

        The list is empty if there are none. None means that the output has the same pixels as
        `picture`, in which detection finds nothing else. A face counts unless its eyes are within a
        face that was `found` before: the visible lower part of a hidden face is still a face to the
        detector.
        """
        changed = _changed_frames(picture, decoded)
        if not changed:
            return None
        hidden = self._hidden_faces(picture, found)
        remaining = [Detections.none() for _ in picture.frames]
        detected = self.find(replace(decoded, frames=tuple(one.frame for one in changed)))
        for one, detections in zip(changed, detected, strict=True):
            faces = counted(detections, self.treatments, self.options, self.least_score)
            size = one.frame.width, one.frame.height
            is_hidden = np.ones(len(faces), bool)
            for number in one.numbers:
                is_hidden &= regions.eyes_hidden(faces, hidden[number], *size)
            for number in one.numbers:
                remaining[number] = Detections.joined([remaining[number], faces[~is_hidden]])
        return remaining if any(map(len, remaining)) else []

    def _hidden_faces(
        self, picture: images.Picture, found: Sequence[Detections]
    ) -> list[regions.Regions]:
        """Return the whole faces, and the extra areas, that are hidden in each frame."""
        hidden = []
        for frame, faces in zip(picture.frames, found, strict=True):
            parts = self.treatments.parts(faces, self.options)
            size = frame.width, frame.height
            hidden.append(regions.whole_regions(parts, *size, self.options.extra))
        return hidden


def _changed_frames(picture: images.Picture, output: images.Picture) -> list[_ChangedFrame]:
    """Return the frames of `output` that differ from those of `picture`."""
    if len(output.frames) != len(picture.frames):
        # Encoders join frames that look alike, so each frame of the output may show any of them.
        everything = range(len(picture.frames))
        return [_ChangedFrame(frame, everything) for frame in output.frames]
    changed = []
    for number, (frame, original) in enumerate(zip(output.frames, picture.frames, strict=True)):
        if not np.array_equal(frame.pixels, original.pixels):
            changed.append(_ChangedFrame(frame, [number]))
    return changed


def _joined(found: Sequence[Detections]) -> Detections:
    return Detections.joined(found) if found else Detections.none()
