"""Faces in pictures: boxes, landmarks and scores, and what is computed from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.messages import FACE
from worker.areas import bounds, is_polygon, share_inside
from worker.detection.boxes import Rows
from worker.detection.tracks import MAX_MISSED_FRAMES, Tracks, follow

Boxes = NDArray[np.float32]
Landmarks = NDArray[np.float32]
Points = NDArray[np.float32]
"""[n, 2] x y"""

LANDMARKS = 5  # of each face: the eyes, the nose, the corners of the mouth
# Boxes of two passes whose intersection over union is at least this show the same face.
MERGE_IOU = 0.4
# The shortest distance between eyes and mouth, as a share of the box's side, at which landmarks
# form a face. It is 0.35 to 0.45 for 99 % of the upright faces of three annotated sets. If it is
# shorter, the model does not know which side of the face is up.
MIN_EYES_TO_MOUTH = 0.3


@dataclass(frozen=True)
class Sightings:
    """Detections of single passes. One face may have several, which do not agree to the pixel.

    `boxes_xyxy` is float32 [m, 4] in pixels of the picture, and may reach beyond it. `landmarks` is
    float32 [m, 5, 2], x y of the eyes, the nose and the corners of the mouth; NaN if the model
    reports none. `slack` is float32 [m], the pixels by which an edge may be wrong. `face` [m] is
    the row of Detections that each sighting belongs to.
    """

    boxes_xyxy: Boxes
    landmarks: Landmarks
    slack: NDArray[np.float32]
    face: NDArray[np.intp]

    @classmethod
    def of(cls, boxes_xyxy: Boxes, landmarks: Landmarks | None = None) -> "Sightings":
        """Return one sighting for each box, without slack."""
        count = len(boxes_xyxy)
        if landmarks is None:
            landmarks = np.full((count, LANDMARKS, 2), np.nan, np.float32)
        return cls(boxes_xyxy, landmarks, np.zeros(count, np.float32), np.arange(count))

    @classmethod
    def joined(cls, several: Sequence["Sightings"]) -> "Sightings":
        """Return all of `several`, which is not empty, one after the other, with their `face`."""
        return cls(
            np.concatenate([sightings.boxes_xyxy for sightings in several]),
            np.concatenate([sightings.landmarks for sightings in several]),
            np.concatenate([sightings.slack for sightings in several]),
            np.concatenate([sightings.face for sightings in several]),
        )

    @property
    def up(self) -> NDArray[np.float32]:
        """The vector from the middle of the mouth to the middle of the eyes, [m, 2] x y.

        It is 0 0 if the landmarks do not form a face, and NaN if they are unknown.
        """
        eyes, mouth = self.landmarks[:, :2].mean(axis=1), self.landmarks[:, 3:].mean(axis=1)
        up: NDArray[np.float32] = eyes - mouth
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
    first. `scores` is float32 [n], from 0 to 1. `merged_from` are the sightings that the faces were
    merged from, of each face the surest first; None if each box is its only sighting. A model that
    returns a limited number of faces may leave some out: `left_out` is the highest score that one
    of these may have, else 0. `classes` [n] are the classes that a model returned, from 1 on; None
    where they are not known. `labelled` [n] are the labels of objects that may be something else
    than faces; None if all are faces.
    """

    boxes_xyxy: Boxes
    scores: NDArray[np.float32]
    merged_from: Sightings | None = field(default=None, repr=False)
    left_out: float = field(default=0.0, repr=False)
    classes: NDArray[np.intp] | None = field(default=None, repr=False)
    labelled: NDArray[np.str_] | None = field(default=None, repr=False)

    @classmethod
    def none(cls) -> "Detections":
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    @classmethod
    def joined(cls, several: Sequence["Detections"]) -> "Detections":
        """Return all of `several`, which is not empty, one after the other."""
        sightings = []
        count = 0
        for detections in several:
            own = detections.sightings
            sightings.append(replace(own, face=own.face + count))
            count += len(detections)
        are_faces = all(detections.labelled is None for detections in several)
        return cls(
            np.concatenate([detections.boxes_xyxy for detections in several]),
            np.concatenate([detections.scores for detections in several]),
            Sightings.joined(sightings),
            labelled=None
            if are_faces
            else np.concatenate([detections.labels for detections in several]),
        )

    @property
    def labels(self) -> NDArray[np.str_]:
        """The label of each object, str [n]: ``FACE``, or the one that its model states."""
        return np.full(len(self), FACE) if self.labelled is None else self.labelled

    @property
    def sightings(self) -> Sightings:
        """The sightings of these faces, at least one for each."""
        if self.merged_from is None:
            return Sightings.of(self.boxes_xyxy)
        return self.merged_from

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Any) -> "Detections":
        """Return the chosen faces (indices or a mask), with their sightings, both in that order."""
        rows = np.arange(len(self))[chosen]
        new_row = np.full(len(self), -1)
        new_row[rows] = np.arange(len(rows))
        sightings = self.sightings
        face = new_row[sightings.face]
        # So those of the strongest face come first when faces are merged.
        order = np.argsort(face, kind="stable")
        return Detections(
            self.boxes_xyxy[rows],
            self.scores[rows],
            replace(sightings, face=face)[order[face[order] >= 0]],
            classes=None if self.classes is None else self.classes[rows],
            labelled=None if self.labelled is None else self.labelled[rows],
        )


def clip(detections: Detections, width: int, height: int) -> Detections:
    """Return the part of each box that lies in the picture, of `width` x `height` pixels.

    Boxes with no part in it are dropped. Sightings stay whole.
    """
    boxes = detections.boxes_xyxy.clip(0, np.array([width, height] * 2, np.float32))
    is_inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    clipped = replace(detections, boxes_xyxy=boxes, merged_from=detections.sightings)
    return clipped[is_inside]


def merge(detections: Detections, weak: Sightings | None = None) -> Detections:
    """Return one detection for all boxes that overlap a stronger one by at least MERGE_IOU.

    The merged box covers all of them, and each stays one of its sightings: their regions are hidden
    together, because passes disagree about the edges by more than the margin. `weak` sightings join
    the faces that they overlap, and are no faces by themselves.
    """
    ordered = detections[np.argsort(-detections.scores, kind="stable")]
    boxes, sightings = ordered.boxes_xyxy, ordered.sightings
    if weak is not None:
        boxes = np.concatenate([boxes, weak.boxes_xyxy])
        sightings = Sightings.joined([sightings, weak])
    strongest, face = _grouped(ordered.boxes_xyxy, boxes)
    merged = ordered.boxes_xyxy[strongest]
    is_member = face >= 0
    np.minimum.at(merged[:, :2], face[is_member], boxes[is_member, :2])
    np.maximum.at(merged[:, 2:], face[is_member], boxes[is_member, 2:])
    # Weak sightings follow those of the detections, as their boxes do.
    face_of_sighting = np.concatenate([face[ordered.sightings.face], face[len(ordered) :]])
    kept = replace(sightings, face=face_of_sighting)[face_of_sighting >= 0]
    return Detections(merged, ordered.scores[strongest], kept)


def _grouped(strong: Boxes, boxes: Boxes) -> tuple[list[int], Rows]:
    """Return the row of the strongest box of each face, and the face of each of `boxes`, or -1.

    `boxes` are those of `strong`, strongest first, and those of weak sightings after them.
    """
    same_face = _same_face(strong, boxes)
    face = np.full(len(boxes), -1)
    strongest: list[int] = []
    for row in range(len(strong)):
        if face[row] >= 0:
            continue
        same = same_face(row)
        face[same[face[same] < 0]] = face[row] = len(strongest)
        strongest.append(row)
    return strongest, face


def outside(detections: Detections, areas: Sequence[Sequence[float]]) -> Detections:
    """Return the faces of which less than half lies in each of `areas`: boxes and polygons."""
    boxes = detections.boxes_xyxy
    is_kept = np.ones(len(boxes), bool)
    for area in areas:
        x1, y1, x2, y2 = bounds(area)
        first, last = np.array([x1, y1] * 2, np.float32), np.array([x2, y2] * 2, np.float32)
        is_inside = 2 * box_areas(boxes.clip(first, last)) >= box_areas(boxes)
        if is_polygon(area):
            for row in np.flatnonzero(is_inside & is_kept):
                left, top, right, bottom = boxes[row].tolist()
                is_inside[row] = 2 * share_inside((left, top, right, bottom), area) >= 1
        is_kept &= ~is_inside
    return detections[is_kept]


def bridged(frames: Sequence[Detections]) -> list[Detections]:
    """Return the faces of each frame of an animation, with those that only nearby frames show.

    A face that was found in one frame is also hidden in up to MAX_MISSED_FRAMES frames before and
    after it, until it is found again: at its place, and at the place where its movement takes it,
    which may be beyond the edge of the picture.
    """
    everything = Detections.joined([Detections.none(), *frames])
    starts = np.cumsum([0, *map(len, frames)])
    frame_of = np.repeat(np.arange(len(frames)), np.diff(starts))
    tracks = follow(everything.boxes_xyxy, frame_of)
    result = list(frames)
    for frame, own in enumerate(frames):
        rows, speed = _nearby(tracks, starts, frame)
        is_missed = ~has_same_face(everything[rows], own)
        if is_missed.any():
            shift = speed[is_missed] * (frame - frame_of[rows[is_missed]])[:, None]
            missed = everything[rows[is_missed]]
            has_moved = shift.any(axis=1)
            result[frame] = merge(Detections.joined([own, missed, moved(missed, shift)[has_moved]]))
    return result


def _nearby(tracks: Tracks, starts: Rows, frame: int) -> tuple[Rows, NDArray[np.float64]]:
    """Return the faces of other frames that may be missed in `frame`.

    They come as rows of the faces of all frames, [n], with the speed of each towards this frame,
    [n, 2]. `starts` are the rows at which frames start, and the end of the last one.
    """
    frames = len(starts) - 1
    first = max(0, frame - MAX_MISSED_FRAMES)
    last = min(frames, frame + 1 + MAX_MISSED_FRAMES)
    earlier = np.arange(starts[first], starts[frame])
    later = np.arange(starts[frame + 1], starts[last])
    earlier, later = earlier[tracks.until[earlier] > frame], later[tracks.since[later] < frame]
    rows = np.concatenate([earlier, later])
    return rows, np.concatenate([tracks.speed_after[earlier], tracks.speed_before[later]])


def moved(detections: Detections, shift: NDArray[Any]) -> Detections:
    """Return `detections`, each moved by its `shift` [n, 2], x y in pixels."""
    sightings, by = detections.sightings, shift.astype(np.float32)
    shifted = replace(
        sightings,
        boxes_xyxy=sightings.boxes_xyxy + np.tile(by[sightings.face], 2),
        landmarks=sightings.landmarks + by[sightings.face, None],
    )
    boxes = detections.boxes_xyxy + np.tile(by, 2)
    return replace(detections, boxes_xyxy=boxes, merged_from=shifted)


def has_same_face(detections: Detections, others: Detections) -> NDArray[np.bool_]:
    """Return which of `detections` overlap one of `others` by at least MERGE_IOU, [n]."""
    same_face = _same_face(detections.boxes_xyxy, others.boxes_xyxy)
    return np.array([len(same_face(row)) > 0 for row in range(len(detections))], bool)


def _same_face(boxes: Boxes, others: Boxes) -> Callable[[int], Rows]:
    """Return a function from a row of `boxes` to the rows of `others` that show the same face.

    Such boxes start close to each other, so the function compares only those that do along the axis
    on which fewer of them do.
    """
    candidates = []
    for axis in (0, 1):
        order = np.argsort(others[:, axis], kind="stable")
        start = boxes[:, axis].astype(np.float64)
        # They share at least MERGE_IOU of the longer side; a thousandth more allows for rounding.
        reach = (1 / MERGE_IOU - 1 + 1e-3) * (boxes[:, axis + 2] - start)
        starts = others[order, axis].astype(np.float64)
        first = np.searchsorted(starts, start - reach, side="left")
        last = np.searchsorted(starts, start + reach, side="right")
        candidates.append((int((last - first).sum()), order, first, last))
    _, order, first, last = min(candidates, key=lambda candidate: candidate[0])

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
    """Return the side of a square with the area of each box."""
    return np.sqrt(box_areas(boxes))


def box_areas(boxes: Boxes) -> NDArray[np.float32]:
    area: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
