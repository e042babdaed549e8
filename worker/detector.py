"""From a picture to its faces: Detections, the Detector protocol, and detection at several scales."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed
from worker.settings import Look

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]
Landmarks = NDArray[np.float32]

MULTIPLE = 64  # sides of a canvas are padded to multiples of this: few shapes, so that batches form
PADDING = 114  # gray level of the padding
MERGE_IOU = 0.4  # two passes that agree to this degree saw the same face

# The figures below were chosen with `python -m benchmarks.tuning`; docs/detection.md says what they cost and bring.
WEAK = 0.6  # of the threshold: what is not a face by itself, but says where one that was found may be too
SURE = 0.15  # of the way from the threshold to 1: counts in any pass, whatever its size
SURE_TURNED = 0.3  # the same for heads that lie or stand upside down, which are rare
SMALLEST_SEEN, LARGEST_SEEN = 14, 400  # sides, in pixels of a pass, that it sees well where another pass is there
SLACK = 4  # pixels of a pass by which an edge may be wrong: one step of CenterFace's heatmap;
SLACK_SHARE = 0.1  # but in all but the finest pass no more than this share of the box: its faces are larger
CERTAIN = 0.6  # the same again: nearly every picture with upright faces shows one so, hardly any that lies does
APART = 1.45  # passes at nearly one size see the same faces: they differ at least by this factor
CLEARLY = 1.2  # by how much a turned picture must show more than the upright one

LANDMARKS = 5  # a face: the eyes, the nose, the corners of the mouth
# Eyes and mouth are 0.35 to 0.45 of the box's side apart (99 % of the upright faces of three annotated sets); where
# they are closer, the model did not make out which way up the face is.
SHORTEST_FACE = 0.3

# What no working model returns for a face: see credible() and docs/detection.md.
MIN_PART_INSIDE = 0.1  # of a box's side, or of the canvas's where that is shorter
MAX_BEYOND = 4.0  # longer sides of the canvas by which a box may reach beyond it
MAX_LANDMARK_DISTANCE = 2.0  # sides of its box by which a landmark may lie outside it


@dataclass(frozen=True)
class Sightings:
    """What single passes saw of faces: one face may have several, which do not agree to the pixel.

    `boxes_xyxy` is float32 [m, 4] in pixels of the picture, and may reach beyond it. `landmarks` is float32
    [m, 5, 2], x y of the eyes, the nose and the corners of the mouth; NaN where the model tells none. `slack` is
    float32 [m], by how many pixels an edge may be wrong. `face` [m] is the row of Detections that each belongs to.
    """

    boxes_xyxy: Boxes
    landmarks: Landmarks
    slack: NDArray[np.float32]
    face: NDArray[np.intp]

    @classmethod
    def of(cls, boxes_xyxy: Boxes, landmarks: Landmarks | None = None) -> "Sightings":
        """Each face seen once, its box exact."""
        count = len(boxes_xyxy)
        if landmarks is None:
            landmarks = np.full((count, LANDMARKS, 2), np.nan, np.float32)
        return cls(boxes_xyxy, landmarks, np.zeros(count, np.float32), np.arange(count))

    @classmethod
    def joined(cls, several: Sequence["Sightings"]) -> "Sightings":
        """All of `several`, which is not empty, one after the other, their `face` as it is."""
        return cls(
            np.concatenate([each.boxes_xyxy for each in several]),
            np.concatenate([each.landmarks for each in several]),
            np.concatenate([each.slack for each in several]),
            np.concatenate([each.face for each in several]),
        )

    @property
    def up(self) -> NDArray[np.float32]:
        """[m, 2] x y: the way from each mouth to its eyes; 0 0 where they make no face, NaN where they are unknown."""
        up: NDArray[np.float32] = self.landmarks[:, :2].mean(axis=1) - self.landmarks[:, 3:].mean(axis=1)
        sides = np.sqrt((self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]).prod(axis=1))
        up[np.hypot(*up.T) < SHORTEST_FACE * sides] = 0
        return up

    def __len__(self) -> int:
        return len(self.face)

    def __getitem__(self, chosen: NDArray[Any]) -> "Sightings":
        return Sightings(self.boxes_xyxy[chosen], self.landmarks[chosen], self.slack[chosen], self.face[chosen])


@dataclass(frozen=True)
class Detections:
    """Faces in one picture.

    `boxes_xyxy` is float32 [n, 4]: x1 y1 x2 y2 in pixels of the picture, within it, strongest first.
    `scores` is float32 [n], between 0 and 1. `sightings` are what they were put together from; None if each box
    was seen once.
    """

    boxes_xyxy: Boxes
    scores: NDArray[np.float32]
    sightings: Sightings | None = None

    @classmethod
    def none(cls) -> "Detections":
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    @classmethod
    def joined(cls, found: Sequence["Detections"]) -> "Detections":
        """All of `found`, which is not empty, one after the other."""
        starts = np.cumsum([0, *(len(detections) for detections in found)])
        seen = [replace(each.seen, face=each.seen.face + start) for each, start in zip(found, starts, strict=False)]
        boxes = np.concatenate([detections.boxes_xyxy for detections in found])
        return cls(boxes, np.concatenate([detections.scores for detections in found]), Sightings.joined(seen))

    @property
    def seen(self) -> Sightings:
        """The sightings of these faces, at least one of each."""
        return self.sightings if self.sightings is not None else Sightings.of(self.boxes_xyxy)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Any) -> "Detections":
        """The chosen faces (indices or a mask), in that order, and their sightings."""
        rows = np.arange(len(self))[chosen]
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))
        seen = self.seen
        sightings = replace(seen, face=place[seen.face])[place[seen.face] >= 0]
        return Detections(self.boxes_xyxy[rows], self.scores[rows], sightings)


class Detector(Protocol):
    """Finds faces. The one seam that tests may replace."""

    def detect(self, picture: Pixels) -> Detections:
        """The faces in `picture`, uint8 RGB [height, width, 3].

        Raises DetectorUnavailable past its deadline and DetectionFailed when the model fails on it.
        """


Infer = Callable[[Pixels], Detections]
"""One canvas, uint8 RGB [height, width, 3], to its detections in canvas pixels."""


@dataclass(frozen=True)
class Pass:
    """One pass: the picture turned by so many quarters counter-clockwise, mirrored, then resized by `factor`."""

    factor: float
    turn: int = 0
    mirrored: bool = False
    finest: bool = True
    coarsest: bool = True
    probe: bool = False
    """Only what it is sure of counts."""


@dataclass(frozen=True)
class ScaledDetector:
    """A Detector that looks at each picture several times and merges what it finds.

    CenterFace loses large faces in a large picture and small faces in a small one; neither pass alone will do. A face
    of a size that a pass sees badly counts only if that pass is sure of it: the others see it better.
    """

    infer: Infer
    look: Look
    score_threshold: float
    fixed_size: tuple[int, int] | None = None
    """(height, width) of a model that takes only this size."""

    def _sure(self, share: float) -> float:
        """The score from which on a detection counts whatever its size: so far from the threshold to 1."""
        return self.score_threshold + share * (1 - self.score_threshold)

    def detect(self, picture: Pixels) -> Detections:
        passes = self._passes(picture)
        seen = [self._run(picture, each) for each in passes]
        if self.look.turned == "always" or (self.look.turned == "doubt" and self._in_doubt(seen)):
            seen += self._turned(picture, passes, seen)
        strong = Detections.joined([each.strong for each in seen])
        merged = merge(strong, Sightings.joined([each.weak for each in seen]))
        return clip(merged, picture.shape[1], picture.shape[0])

    def _passes(self, picture: Pixels) -> list[Pass]:
        """The passes over the upright picture, the smallest first."""
        height, width = picture.shape[:2]
        if self.fixed_size:
            return [Pass(min(self.fixed_size[0] / height, self.fixed_size[1] / width))]
        factors: list[float] = []
        longer = max(height, width)
        # Enlarging brings out small faces up to a point; beyond it, only pixels that are there tell more.
        largest = min(self.look.max_enlargement, max(1, self.look.enlarge_to / longer))
        for side in sorted(self.look.scales):
            factor = min(side / longer, largest)
            if not factors or factor > APART * factors[-1]:
                factors.append(factor)
        return [
            Pass(factor, mirrored=mirrored, finest=factor == factors[-1], coarsest=factor == factors[0])
            for factor in factors
            for mirrored in ((False, True) if self.look.mirrored else (False,))
        ]

    def _in_doubt(self, seen: Sequence["_Seen"]) -> bool:
        """Whether no face was found for certain, or one that does not stand upright or whose landmarks make none."""
        strong = Detections.joined([each.strong for each in seen])
        up = strong.seen.up
        upright = -up[:, 1] > np.sqrt(0.5) * np.hypot(*up.T)  # to 45°
        certain = strong.scores >= self._sure(CERTAIN)
        return not certain.any() or not (upright | np.isnan(up[:, 1])).all()

    def _turned(self, picture: Pixels, passes: Sequence[Pass], upright: Sequence["_Seen"]) -> list["_Seen"]:
        """What passes over the turned picture see, where they are sure: heads that lie or stand upside down.

        If one way round shows clearly more than upright, the picture as a whole lies: then all passes are made so.
        """
        plain = [each for each in passes if not each.mirrored]
        small = plain[:1] if self.look.turned == "doubt" else plain[: max(1, len(plain) - 1)]
        probes = {
            turn: [self._run(picture, replace(each, turn=turn, probe=True)) for each in small] for turn in (1, 2, 3)
        }
        shown = {turn: float(seen[0].strong.scores.sum()) for turn, seen in probes.items()}
        best = max(shown, key=lambda turn: shown[turn])
        if shown[best] > CLEARLY * float(upright[0].strong.scores.sum()):
            return [self._run(picture, replace(each, turn=best)) for each in plain]
        known = Detections.joined([each.strong for each in upright])
        return [_Seen(_unless_better(seen.strong, known), seen.weak) for several in probes.values() for seen in several]

    def _run(self, picture: Pixels, each: Pass) -> "_Seen":
        """One pass over `picture`, in pixels of the upright picture."""
        height, width = np.rot90(picture, each.turn).shape[:2]
        factor = each.factor
        if self.fixed_size:
            factor = min(self.fixed_size[0] / height, self.fixed_size[1] / width)
        # Resized before it is turned: the whole picture may be large.
        view = np.rot90(resized(picture, factor), each.turn)
        if each.mirrored:
            view = view[:, ::-1]
        size = view.shape[1], view.shape[0]
        canvas_size = self.fixed_size or (_padded(size[1]), _padded(size[0]))
        canvas = np.full((*canvas_size, 3), PADDING, np.uint8)
        canvas[: size[1], : size[0]] = view
        found = credible(self.infer(canvas), canvas_size[1], canvas_size[0], WEAK * self.score_threshold)
        counts = self._counts(found, each)
        back = np.array([width / size[0], height / size[1]], np.float32)
        seen = found.seen
        boxes, landmarks = seen.boxes_xyxy.reshape(-1, 2, 2) * back, seen.landmarks * back
        corners = _upright(boxes, each, width, height)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        slack = np.full(len(found), SLACK, np.float32)
        if not each.finest:
            slack = np.minimum(slack, SLACK_SHARE * _sides(found.boxes_xyxy))
        slack = (slack * back.max()).astype(np.float32)
        sightings = Sightings(boxes, _upright(landmarks, each, width, height), slack, np.arange(len(found)))
        weak = np.zeros(len(found), bool) if each.probe else ~counts
        return _Seen(Detections(boxes, found.scores, sightings)[counts], sightings[weak])

    def _counts(self, found: Detections, each: Pass) -> NDArray[np.bool_]:
        """Which of `found`, in pixels of the canvas, are faces by themselves."""
        sides = _sides(found.boxes_xyxy)
        apt = ((sides >= SMALLEST_SEEN) | each.finest) & ((sides <= LARGEST_SEEN) | each.coarsest)
        least = np.where(apt, self.score_threshold, self._sure(SURE))
        counts: NDArray[np.bool_] = found.scores >= (self._sure(SURE_TURNED) if each.probe else least)
        return counts


@dataclass(frozen=True)
class _Seen:
    """What one pass saw: what counts by itself, and what only counts where something else that counts is too."""

    strong: Detections
    weak: Sightings


def _unless_better(found: Detections, known: Detections) -> Detections:
    """Those of `found` whose middle is in no stronger one of `known`.

    Upright faces are seen in turned passes too, but worse.
    """
    middle = (found.boxes_xyxy[:, None, :2] + found.boxes_xyxy[:, None, 2:]) / 2
    within = ((middle > known.boxes_xyxy[:, :2]) & (middle < known.boxes_xyxy[:, 2:])).all(axis=2)
    better = within & (known.scores > found.scores[:, None])
    return found[~better.any(axis=1)]


def _upright(points: NDArray[np.float32], each: Pass, width: int, height: int) -> NDArray[np.float32]:
    """`points` [..., 2] x y in the view of a pass, `width` x `height`, as points of the upright picture."""
    x, y = points[..., 0], points[..., 1]
    if each.mirrored:
        x = width - x
    for _ in range(each.turn):
        x, y = height - y, x
        width, height = height, width
    return np.stack([x, y], axis=-1)


def resized(picture: Pixels, factor: float) -> Pixels:
    """`picture`, uint8 [height, width, 3], with its sides `factor` times as long, to whole pixels, at least 1.

    Halved as long as it goes, which is exact and fast; what remains, by less than two, is interpolated, which skips
    nothing but an odd last row or column of each halving. Averaging takes eight times as long, and finds no more faces.
    """
    height, width = picture.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    while width >= 2 * size[0] and height >= 2 * size[1]:
        width, height = width // 2, height // 2
        even = picture[: 2 * height, : 2 * width]
        picture = np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _padded(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE


def placed(detections: Detections) -> Detections:
    """Return `detections` as they are; raise DetectionFailed if one has no place in a picture or no score."""
    boxes = detections.boxes_xyxy
    _check_scores(detections)
    if not np.isfinite(boxes).all():
        raise DetectionFailed("the model returned a box that is not finite: look at detection_boxes")
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        raise DetectionFailed(
            "the model returned a box that is empty or ends before it starts: detection_boxes must be y1 x1 y2 x2"
        )
    if np.isinf(detections.seen.landmarks).any():  # NaN says that the model tells none
        raise DetectionFailed("the model returned a landmark that is not finite: look at detection_keypoints")
    return detections


def credible(detections: Detections, width: int, height: int, least_score: float) -> Detections:
    """Return the detections that score `least_score` or more in a canvas of `width` x `height`.

    Raise DetectionFailed if a score, a box or a landmark can't be that of a face in this canvas. A face that the edge
    cuts has a box that reaches beyond it, so only boxes with hardly any part inside, or far larger, are refused.
    """
    _check_scores(detections)  # of all: a score that is NaN or negative would count as no face
    found = placed(detections[detections.scores >= least_score])
    first, last = found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:]
    canvas = np.array([width, height], np.float32)
    inside = np.minimum(last, canvas) - np.maximum(first, 0)
    beyond = np.maximum(-first, last - canvas)
    if (inside < MIN_PART_INSIDE * np.minimum(last - first, canvas)).any() or (beyond > MAX_BEYOND * max(canvas)).any():
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
        raise DetectionFailed("the model returned a score that is not from 0 to 1: look at detection_scores")


def clip(detections: Detections, width: int, height: int) -> Detections:
    """The part of each box that lies in the picture; boxes with no part in it are dropped. Sightings stay whole."""
    boxes = detections.boxes_xyxy.clip(0, np.array([width, height] * 2, np.float32))
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return replace(detections, boxes_xyxy=boxes, sightings=detections.seen)[inside]


def merge(detections: Detections, weak: Sightings | None = None, iou: float = MERGE_IOU) -> Detections:
    """One detection for boxes that show the same face: those that overlap a stronger one by at least `iou`.

    The merged box covers all of them, and each stays one of its sightings: their regions are hidden together, because
    passes disagree about the edges by more than the margin. What was seen `weak`ly joins the faces that it overlaps,
    and is no face by itself.
    """
    ordered = detections[np.argsort(-detections.scores, kind="stable")]
    boxes = ordered.boxes_xyxy
    seen = [ordered.seen] if weak is None else [ordered.seen, weak]
    # To which merged face each box belongs, and each weak sighting.
    face, weak_face = np.full(len(ordered), -1), np.full(0 if weak is None else len(weak), -1)
    merged = boxes.copy()
    strongest: list[int] = []
    for i in range(len(ordered)):
        if face[i] >= 0:
            continue
        same = (face < 0) & (overlap(boxes[i], boxes) >= iou)
        same[i] = True
        face[same] = len(strongest)
        parts = boxes[same]
        if weak is not None:
            joins = (weak_face < 0) & (overlap(boxes[i], weak.boxes_xyxy) >= iou)
            weak_face[joins] = len(strongest)
            parts = np.concatenate([parts, weak.boxes_xyxy[joins]])
        merged[i] = *parts[:, :2].min(axis=0), *parts[:, 2:].max(axis=0)
        strongest.append(i)
    everything = Sightings.joined(seen)
    belongs = np.concatenate([face[ordered.seen.face], weak_face])
    sightings = replace(everything, face=belongs)[belongs >= 0]
    return Detections(merged[strongest], ordered.scores[strongest], sightings)


def outside(detections: Detections, areas: Sequence[Sequence[float]]) -> Detections:
    """The faces that lie less than half in every one of `areas`, x1 y1 x2 y2 in pixels of the picture."""
    boxes = detections.boxes_xyxy
    kept = np.ones(len(boxes), bool)
    for area in areas:
        first, last = np.array([*area[:2]] * 2, np.float32), np.array([*area[2:]] * 2, np.float32)
        kept &= 2 * _area(boxes.clip(first, last)) < _area(boxes)
    return detections[kept]


def bridged(frames: Sequence[Detections], iou: float = MERGE_IOU) -> list[Detections]:
    """The faces of each frame of an animation, with those that both its neighbours show at one place and it does not.

    Detectors flicker: a face that is missed in one frame of many is as exposed as one that is missed in all.
    """
    result = list(frames)
    for number in range(1, len(frames) - 1):
        before, here, after = frames[number - 1 : number + 2]
        missed = [
            _meets(side, other, iou) & ~_meets(side, here, iou) for side, other in ((before, after), (after, before))
        ]
        if any(map(np.any, missed)):
            result[number] = merge(Detections.joined([here, before[missed[0]], after[missed[1]]]))
    return result


def _meets(some: Detections, others: Detections, iou: float) -> NDArray[np.bool_]:
    """Which of `some` overlap one of `others` by at least `iou`."""
    if not len(others):
        return np.zeros(len(some), bool)
    return np.array([overlap(box, others.boxes_xyxy).max() >= iou for box in some.boxes_xyxy], bool)


def overlap(box: Boxes, boxes: Boxes) -> NDArray[np.float32]:
    """Intersection over union of `box` [4] with each of `boxes` [n, 4]."""
    corner = np.maximum(box[:2], boxes[:, :2])
    opposite = np.minimum(box[2:], boxes[:, 2:])
    shared = (opposite - corner).clip(0).prod(axis=1)
    union = _area(box[None]) + _area(boxes) - shared
    ratio: NDArray[np.float32] = shared / np.maximum(union, 1e-9)
    return ratio


def _sides(boxes: Boxes) -> NDArray[np.float32]:
    """The side of a square as large as each box."""
    return np.sqrt(_area(boxes))


def _area(boxes: Boxes) -> NDArray[np.float32]:
    area: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
