"""Faces in pictures: boxes, landmarks and scores, and what is computed of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed
from worker.detection.boxes import Rows
from worker.detection.tracks import MAX_MISSED_FRAMES, follow

Boxes = NDArray[np.float32]
Landmarks = NDArray[np.float32]
Points = NDArray[np.float32]
"""[n, 2] x y"""

LANDMARKS = 5  # of each face: the eyes, the nose, the corners of the mouth
# Boxes of two passes whose intersection over union is at least this show the same face.
MERGE_IOU = 0.4
# A share of the box's side. Eyes and mouth are 0.35 to 0.45 of it apart in 99 % of the upright
# faces of three annotated sets. Where they are closer than this, the model does not know where up
# is.
MIN_EYES_TO_MOUTH = 0.3

# No working model returns a face beyond these bounds: see credible() and docs/detection.md.
# The part of a box within the canvas, as a share of the side of whichever is smaller.
MIN_PART_INSIDE = 0.1
# The part of a box beyond the canvas, as a multiple of the canvas's longer side.
MAX_BEYOND = 4.0
# The distance of a landmark from its box, as a multiple of the box's side.
MAX_LANDMARK_DISTANCE = 2.0


@dataclass(frozen=True)
class Sightings:
    """Detections of single passes: one face may have several, which do not agree to the pixel.

    `boxes_xyxy` is float32 [m, 4] in pixels of the picture, and may reach beyond it. `landmarks` is
    float32 [m, 5, 2], x y of the eyes, the nose and the corners of the mouth; NaN if the model
    reports none. `slack` is float32 [m], the pixels by which an edge may be wrong. `face` [m] is
    the row of Detections that each belongs to.
    """

    boxes_xyxy: Boxes
    landmarks: Landmarks
    slack: NDArray[np.float32]
    face: NDArray[np.intp]

    @classmethod
    def of(cls, boxes_xyxy: Boxes, landmarks: Landmarks | None = None) -> "Sightings":
        """Return one sighting for each box, which is exact."""
        count = len(boxes_xyxy)
        if landmarks is None:
            landmarks = np.full((count, LANDMARKS, 2), np.nan, np.float32)
        return cls(boxes_xyxy, landmarks, np.zeros(count, np.float32), np.arange(count))

    @classmethod
    def joined(cls, several: Sequence["Sightings"]) -> "Sightings":
        """Return all of `several`, which is not empty, one after the other, with their `face`."""
        return cls(
            np.concatenate([each.boxes_xyxy for each in several]),
            np.concatenate([each.landmarks for each in several]),
            np.concatenate([each.slack for each in several]),
            np.concatenate([each.face for each in several]),
        )

    @property
    def up(self) -> NDArray[np.float32]:
        """The vector from each mouth to its eyes, [m, 2] x y.

        It is 0 0 if the landmarks do not form a face, and NaN if they are unknown.
        """
        up: NDArray[np.float32] = self.landmarks[:, :2].mean(axis=1) - self.landmarks[:, 3:].mean(
            axis=1
        )
        sides = np.sqrt((self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]).prod(axis=1))
        up[np.hypot(*up.T) < MIN_EYES_TO_MOUTH * sides] = 0
        return up

    def __len__(self) -> int:
        return len(self.face)

    def __getitem__(self, chosen: NDArray[Any]) -> "Sightings":
        return Sightings(
            self.boxes_xyxy[chosen], self.landmarks[chosen], self.slack[chosen], self.face[chosen]
        )


@dataclass(frozen=True)
class Detections:
    """Faces in one picture.

    `boxes_xyxy` is float32 [n, 4]: x1 y1 x2 y2 in pixels of the picture, within it, strongest
    first. `scores` is float32 [n], between 0 and 1. `sightings` are the detections of single passes
    that they were merged from; None if each box has one. A model that returns a limited number of
    faces may leave some out: `left_out` is the highest score that one of them may have, else 0.
    """

    boxes_xyxy: Boxes
    scores: NDArray[np.float32]
    sightings: Sightings | None = None
    left_out: float = 0.0

    @classmethod
    def none(cls) -> "Detections":
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    @classmethod
    def joined(cls, found: Sequence["Detections"]) -> "Detections":
        """Return all of `found`, which is not empty, one after the other."""
        starts = np.cumsum([0, *(len(detections) for detections in found)])
        seen = [
            replace(each.seen, face=each.seen.face + start)
            for each, start in zip(found, starts, strict=False)
        ]
        boxes = np.concatenate([detections.boxes_xyxy for detections in found])
        return cls(
            boxes,
            np.concatenate([detections.scores for detections in found]),
            Sightings.joined(seen),
        )

    @property
    def seen(self) -> Sightings:
        """The sightings of these faces, at least one for each."""
        return self.sightings if self.sightings is not None else Sightings.of(self.boxes_xyxy)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Any) -> "Detections":
        """Return the chosen faces (indices or a mask), in that order, with their sightings."""
        rows = np.arange(len(self))[chosen]
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))
        seen = self.seen
        sightings = replace(seen, face=place[seen.face])[place[seen.face] >= 0]
        return Detections(self.boxes_xyxy[rows], self.scores[rows], sightings)


def placed(detections: Detections) -> Detections:
    """Return `detections` as they are.

    Raise DetectionFailed if one has no score or no place in a picture.
    """
    boxes = detections.boxes_xyxy
    _check_scores(detections)
    if not np.isfinite(boxes).all():
        raise DetectionFailed(
            "the model returned a box that is not finite: look at detection_boxes"
        )
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        raise DetectionFailed(
            "the model returned a box that is empty or ends before it starts: detection_boxes must be y1 x1 y2 x2"
        )
    if np.isinf(detections.seen.landmarks).any():  # NaN says that the model tells none
        raise DetectionFailed(
            "the model returned a landmark that is not finite: look at detection_keypoints"
        )
    return detections


def credible(detections: Detections, width: int, height: int, least_score: float) -> Detections:
    """Return the detections that score `least_score` or more in a canvas of `width` x `height`.

    Raise DetectionFailed if a score, a box or a landmark can't be that of a face in this canvas.
    The box of a face that the edge cuts reaches beyond it, so only boxes with hardly any part
    inside, or far larger ones, are refused.
    """
    _check_scores(detections)  # of all: a score that is NaN or negative would count as no face
    found = placed(detections[detections.scores >= least_score])
    first, last = found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:]
    canvas = np.array([width, height], np.float32)
    inside = np.minimum(last, canvas) - np.maximum(first, 0)
    beyond = np.maximum(-first, last - canvas)
    if (inside < MIN_PART_INSIDE * np.minimum(last - first, canvas)).any() or (
        beyond > MAX_BEYOND * max(canvas)
    ).any():
        raise DetectionFailed(
            "the model returned a box outside its picture: "
            "detection_boxes must be shares of the picture, 0 to 1, as y1 x1 y2 x2"
        )
    seen = found.seen
    first, last = seen.boxes_xyxy[:, None, :2], seen.boxes_xyxy[:, None, 2:]
    distance = np.maximum(first - seen.landmarks, seen.landmarks - last)
    if (distance > MAX_LANDMARK_DISTANCE * (last - first)).any():
        raise DetectionFailed(
            "the model returned a landmark far from its face: "
            "detection_keypoints must be shares of the picture, 0 to 1, as y x"
        )
    return found


def _check_scores(detections: Detections) -> None:
    if not ((detections.scores >= 0) & (detections.scores <= 1)).all():  # not so for NaN either
        raise DetectionFailed(
            "the model returned a score that is not from 0 to 1: look at detection_scores"
        )


def clip(detections: Detections, width: int, height: int) -> Detections:
    """Return the part of each box that lies in the picture.

    Boxes with no part in it are dropped. Sightings stay whole.
    """
    boxes = detections.boxes_xyxy.clip(0, np.array([width, height] * 2, np.float32))
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return replace(detections, boxes_xyxy=boxes, sightings=detections.seen)[inside]


def merge(detections: Detections, weak: Sightings | None = None) -> Detections:
    """Return one detection for all boxes that overlap a stronger one by at least MERGE_IOU.

    The merged box covers all of them, and each stays one of its sightings: their regions are hidden
    together, because passes disagree about the edges by more than the margin. `weak` sightings join
    the faces that they overlap, and are no faces by themselves.
    """
    ordered = detections[np.argsort(-detections.scores, kind="stable")]
    boxes = ordered.boxes_xyxy
    everywhere = boxes if weak is None else np.concatenate([boxes, weak.boxes_xyxy])
    same_face = _same_face(boxes, everywhere)
    # The merged face to which each box and each weak sighting belongs.
    face = np.full(len(everywhere), -1)
    strongest: list[int] = []
    for i in range(len(ordered)):
        if face[i] >= 0:
            continue
        same = same_face(i)
        face[same[face[same] < 0]] = face[i] = len(strongest)
        strongest.append(i)
    merged = boxes[strongest]
    np.minimum.at(merged[:, :2], face[face >= 0], everywhere[face >= 0, :2])
    np.maximum.at(merged[:, 2:], face[face >= 0], everywhere[face >= 0, 2:])
    seen = ordered.seen if weak is None else Sightings.joined([ordered.seen, weak])
    belongs = np.concatenate([face[ordered.seen.face], face[len(boxes) :]])
    sightings = replace(seen, face=belongs)[belongs >= 0]
    return Detections(merged, ordered.scores[strongest], sightings)


def outside(detections: Detections, areas: Sequence[Sequence[float]]) -> Detections:
    """Return the faces of which less than half lies in each of `areas`, x1 y1 x2 y2 in pixels."""
    boxes = detections.boxes_xyxy
    kept = np.ones(len(boxes), bool)
    for area in areas:
        first, last = np.array([*area[:2]] * 2, np.float32), np.array([*area[2:]] * 2, np.float32)
        kept &= 2 * box_areas(boxes.clip(first, last)) < box_areas(boxes)
    return detections[kept]


def bridged(frames: Sequence[Detections]) -> list[Detections]:
    """Return the faces of each frame of an animation, and those that only frames around it show.

    A face that was found in one frame is hidden in up to MAX_MISSED_FRAMES frames before and after
    it too, until it is found again: where it was found, and where its movement takes it, which may
    be beyond the edge of the picture.
    """
    everything = Detections.joined([Detections.none(), *frames])
    starts = np.cumsum([0, *map(len, frames)])
    frame_of = np.repeat(np.arange(len(frames)), np.diff(starts))
    tracks = follow(everything.boxes_xyxy, frame_of)
    result = list(frames)
    for frame, here in enumerate(frames):
        first, last = (
            max(0, frame - MAX_MISSED_FRAMES),
            min(len(frames), frame + 1 + MAX_MISSED_FRAMES),
        )
        earlier, later = (
            np.arange(starts[first], starts[frame]),
            np.arange(starts[frame + 1], starts[last]),
        )
        earlier, later = earlier[tracks.until[earlier] > frame], later[tracks.since[later] < frame]
        rows = np.concatenate([earlier, later])
        speed = np.concatenate([tracks.speed_after[earlier], tracks.speed_before[later]])
        missed = ~_meets(everything[rows], here)
        if missed.any():
            shift = speed[missed] * (frame - frame_of[rows[missed]])[:, None]
            lost = everything[rows[missed]]
            result[frame] = merge(
                Detections.joined([here, lost, moved(lost, shift)[shift.any(axis=1)]])
            )
    return result


def moved(detections: Detections, shift: NDArray[Any]) -> Detections:
    """Return `detections`, each moved by its `shift` [n, 2], x y in pixels."""
    seen, by = detections.seen, shift.astype(np.float32)
    shifted = replace(
        seen,
        boxes_xyxy=seen.boxes_xyxy + np.tile(by[seen.face], 2),
        landmarks=seen.landmarks + by[seen.face, None],
    )
    return replace(detections, boxes_xyxy=detections.boxes_xyxy + np.tile(by, 2), sightings=shifted)


def _meets(some: Detections, others: Detections) -> NDArray[np.bool_]:
    """Return which of `some` overlap one of `others` by at least MERGE_IOU."""
    same_face = _same_face(some.boxes_xyxy, others.boxes_xyxy)
    return np.array([len(same_face(row)) > 0 for row in range(len(some))], bool)


def _same_face(boxes: Boxes, others: Boxes) -> Callable[[int], Rows]:
    """Return a function from a row of `boxes` to the rows of `others` that show the same face.

    Such boxes start close to each other, so that it compares only those that do along one axis.
    """
    lookups = []
    for axis in (0, 1):
        order = np.argsort(others[:, axis], kind="stable")
        start = boxes[:, axis].astype(np.float64)
        # They share at least MERGE_IOU of the longer side; a thousandth more allows for rounding.
        reach = (1 / MERGE_IOU - 1 + 1e-3) * (boxes[:, axis + 2] - start)
        starts = others[order, axis].astype(np.float64)
        first = np.searchsorted(starts, start - reach, side="left")
        last = np.searchsorted(starts, start + reach, side="right")
        lookups.append((int((last - first).sum()), order, first, last))
    _, order, first, last = min(lookups, key=lambda each: each[0])

    def same_face(row: int) -> Rows:
        near = order[first[row] : last[row]]
        return near[overlap(boxes[row], others[near]) >= MERGE_IOU]

    return same_face


def overlap(box: Boxes, boxes: Boxes) -> NDArray[np.float32]:
    """Return the intersection over union of `box` [4] with each of `boxes` [n, 4]."""
    corner = np.maximum(box[:2], boxes[:, :2])
    opposite = np.minimum(box[2:], boxes[:, 2:])
    shared = (opposite - corner).clip(0).prod(axis=1)
    union = box_areas(box[None]) + box_areas(boxes) - shared
    ratio: NDArray[np.float32] = shared / np.maximum(union, 1e-9)
    return ratio


def box_sides(boxes: Boxes) -> NDArray[np.float32]:
    """Return the side of a square as large as each box."""
    return np.sqrt(box_areas(boxes))


def box_areas(boxes: Boxes) -> NDArray[np.float32]:
    area: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
