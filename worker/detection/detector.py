"""From a picture to its faces: Detections, the Detector protocol, and detection at several scales."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed, DetectorUnavailable
from worker.detection.boxes import Rows, meeting
from worker.detection.tiles import quarters, tiles
from worker.detection.tracks import MISSED, follow
from worker.settings import Look

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]
Landmarks = NDArray[np.float32]
Points = NDArray[np.float32]
"""[n, 2] x y"""

MULTIPLE = 64  # sides of a canvas are padded to multiples of this: few shapes, so that batches form
PADDING = 114  # gray level of the padding
MERGE_IOU = 0.4  # two passes that agree to this degree saw the same face

# The figures below were chosen with `python -m tools.benchmarks.tuning`; docs/detection.md says
# what they cost and bring.
WEAK = 0.6  # of the threshold: what is not a face by itself, but says where one that was found may be too
SURE = 0.15  # of the way from the threshold to 1: counts in any pass, whatever its size
SURE_TURNED = 0.3  # the same for heads that lie or stand upside down, which are rare
SMALLEST_SEEN, LARGEST_SEEN = 14, 400  # sides, in pixels of a pass, that it sees well where another pass is there
SLACK = 4  # pixels of a pass by which an edge may be wrong: one step of CenterFace's heatmap;
SLACK_SHARE = 0.1  # but in all but the finest pass no more than this share of the box: its faces are larger
CERTAIN = 0.6  # the same again: nearly every picture with upright faces shows one so, hardly any that lies does
APART = 1.45  # passes at nearly one size see the same faces: they differ at least by this factor
CLEARLY = 1.2  # by how much a turned picture must show more than the upright one

MAX_CANVAS = 1920  # pixels: the longest side that a model of any size is given; longer views are cut into tiles
TILE_OVERLAP = 192  # pixels: a face that is larger is seen whole by the next coarser pass (MAX_STEP)
EDGE = 2  # pixels of a pass: a box that comes as near to a tile's edge may be part of a face
MAX_CANVASES = 1000  # of one picture: a wall of 10,000 faces in 24 megapixels takes about 100
ADVICE = "raise VEIL_SCORE_THRESHOLD, or export the model with more detections"
MIN_TILE = 32  # pixels: the smallest side of a tile that is cut again because the model found too many faces in it
# Side of a face, in pixels of a pass, of which CenterFace finds 7 to 9 in 10 (`make bench
# ONLY=face_sizes`): a pass of 1,920 shows one of 24 pixels so in a picture that is 4,000 wide.
READABLE = 11.52
LONGEST_ASPECT = 2  # of a picture whose passes are those of the preset; longer ones are screenshots and panoramas
WORTHWHILE = 1.16  # a pass that enlarges by less than this brings nothing
MAX_STEP = 3.01  # from one pass to the next finer one
# In a crowd CenterFace misses most faces of less than SMALL pixels of a pass: it found 3 in 20 of a wall of heads at
# 15 px, and all but a few at 20. MANY_SMALL sightings of that size, weak ones too, ask for a finer pass.
SMALL, MANY_SMALL = 18, 16
CROWD_TILE = 960  # pixels: small tiles keep to the crowd, which is often a part of the picture
PROBE_SHARE = 0.25  # of the finest pass: probes of the turned picture are made in the first pass that is as fine

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
    was seen once. `left_out` is the highest score that a face may have which a model saw and did not return, because
    it returns so many at most; 0 if there is none.
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
    crowd: Points | None = None
    """Where small faces are, in pixels of the picture: tiles that hold none of them are left out."""


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
    seconds: float = float("inf")
    """Limit for all passes over one picture."""

    def _sure(self, share: float) -> float:
        """The score from which on a detection counts whatever its size: so far from the threshold to 1."""
        return self.score_threshold + share * (1 - self.score_threshold)

    def detect(self, picture: Pixels) -> Detections:
        return self._until(time.monotonic() + self.seconds)._detect(Halves(picture))

    def _until(self, end: float) -> "ScaledDetector":
        """The same detector for one picture.

        It raises DetectorUnavailable for each canvas after `end` (time.monotonic), DetectionFailed beyond MAX_CANVASES.
        """
        canvases = count(1)

        def infer(canvas: Pixels) -> Detections:
            if next(canvases) > MAX_CANVASES:
                raise DetectionFailed(
                    f"the model returns as many faces as it can of each of {MAX_CANVASES:,} parts: {ADVICE}"
                )
            if time.monotonic() > end:
                raise DetectorUnavailable(f"the passes over one picture took more than {self.seconds:g} s")
            return self.infer(canvas)

        return replace(self, infer=infer)

    def _detect(self, picture: "Halves") -> Detections:
        passes = self._passes(picture)
        seen = [self._run(picture, each) for each in passes]
        finest = passes[-1]
        while len(seen[-1].crowd) and WORTHWHILE * finest.factor < 1:
            finest = replace(finest, factor=min(1, 2 * finest.factor), mirrored=False, crowd=seen[-1].crowd)
            seen.append(self._run(picture, finest))
        if self.look.turned == "always" or (self.look.turned == "doubt" and self._in_doubt(seen)):
            seen += self._turned(picture, passes, seen)
        strong = Detections.joined([each.strong for each in seen])
        cut = Detections.joined([each.cut for each in seen])
        merged = merge(strong, Sightings.joined([cut.seen, *(each.weak for each in seen)]))
        if len(alone := _unless_covered(cut, merged)):
            merged = Detections.joined([merged, merge(alone)])
        return clip(merged, picture.width, picture.height)

    def _passes(self, picture: "Halves") -> list[Pass]:
        """The passes over the upright picture, the smallest first."""
        longer = max(picture.height, picture.width)
        factors: list[float] = []
        # Enlarging brings out small faces up to a point; beyond it, only pixels that are there tell more.
        largest = min(self.look.max_enlargement, max(1, self.look.enlarge_to / longer))
        for side in sorted(self.look.scales):
            factor = min(side / longer, largest)
            if not factors or factor > APART * factors[-1]:
                factors.append(factor)
        if self.fixed_size:
            factors = [min(self.fixed_size[0] / picture.height, self.fixed_size[1] / picture.width)]
        least = min(1, READABLE / self.look.smallest_face)
        part = LONGEST_ASPECT * min(picture.height, picture.width)
        if (
            longer > max(part, MAX_CANVAS) and not self.fixed_size
        ):  # a long picture is looked at as its parts of two to one would be
            least = max(least, min(max(self.look.scales) / part, largest))
        factors = _refined(factors, least)
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

    def _turned(self, picture: "Halves", passes: Sequence[Pass], upright: Sequence["_Seen"]) -> list["_Seen"]:
        """What passes over the turned picture see, where they are sure: heads that lie or stand upside down.

        If one way round shows clearly more than upright, the picture as a whole lies: then all passes are made so.
        """
        plain = [each for each in passes if not each.mirrored]
        first = next(number for number, each in enumerate(plain) if each.factor >= PROBE_SHARE * plain[-1].factor)
        small = plain[first : first + 1] if self.look.turned == "doubt" else plain[: max(1, len(plain) - 1)]
        probes = {
            turn: [self._run(picture, replace(each, turn=turn, probe=True)) for each in small] for turn in (1, 2, 3)
        }
        place = min(first, len(small) - 1)
        shown = {turn: float(seen[place].strong.scores.sum()) for turn, seen in probes.items()}
        best = max(shown, key=lambda turn: shown[turn])
        if shown[best] > CLEARLY * float(upright[passes.index(small[place])].strong.scores.sum()):
            return [self._run(picture, replace(each, turn=best)) for each in plain]
        known = Detections.joined([each.strong for each in upright])
        return [
            replace(seen, strong=_unless_better(seen.strong, known)) for several in probes.values() for seen in several
        ]

    def _run(self, picture: "Halves", each: Pass) -> "_Seen":
        """One pass over `picture`, in pixels of the upright picture."""
        # Resized before it is turned: the whole picture may be large.
        view = np.rot90(picture.resized(each.factor), each.turn)
        width, height = (picture.width, picture.height)[:: -1 if each.turn % 2 else 1]
        if each.mirrored:
            view = view[:, ::-1]
        size = view.shape[1], view.shape[0]
        found, is_cut, is_full = self._found(view, each)
        counts = self._counts(found, each)
        small = is_full | (_sides(found.boxes_xyxy) < SMALL)
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
        faces = Detections(boxes, found.scores, sightings)
        crowd = _middles(boxes[small]) if is_full or small.sum() >= MANY_SMALL else _middles(boxes[:0])
        return _Seen(faces[counts & ~is_cut], faces[counts & is_cut], sightings[weak], crowd)

    def _found(self, view: Pixels, each: Pass) -> tuple[Detections, NDArray[np.bool_], bool]:
        """What the model finds in the `view` of a pass, in its pixels, tile by tile where it is larger than a canvas;
        which of that [n] a tile may have cut; and whether a tile held more than the model can return.

        A face that is cut is whole in another tile, or in a coarser pass.
        """
        height, width = view.shape[:2]
        size = self.fixed_size or (MAX_CANVAS, MAX_CANVAS)
        # No coarser pass sees whole what the tiles of the coarsest one cut.
        overlap = min(size) // 2 if each.coarsest else min(TILE_OVERLAP, min(size) // 3)
        if each.crowd is not None and not self.fixed_size:
            size = (CROWD_TILE, CROWD_TILE)
        parts = list(tiles(height, width, size, overlap))
        if each.crowd is not None:
            parts = [tile for tile in parts if _any_in(each.crowd * each.factor, *tile)]
        found = [part for tile in parts for part in self._found_in(view, *tile, each.finest)]
        is_cut = [_reaches_edge(detections, rows, columns, height, width) for detections, rows, columns in found]
        every = Detections.joined([Detections.none(), *(detections for detections, _, _ in found)])
        return every, np.concatenate([np.zeros(0, bool), *is_cut]), len(found) > len(parts)

    def _found_in(
        self, view: Pixels, rows: slice, columns: slice, is_finest: bool
    ) -> Iterator[tuple[Detections, slice, slice]]:
        """Yield what the model finds in a part of `view`, in pixels of `view`, and that part; then the same of its
        quarters, if it finds as many faces as it can return.

        Raises DetectionFailed if the model returns as many faces as it can even of a part of MIN_TILE in the finest
        pass. In another, a finer pass sees what is that small.
        """
        part = view[rows, columns]
        height, width = part.shape[:2]
        canvas = np.full((*(self.fixed_size or (_padded(height), _padded(width))), 3), PADDING, np.uint8)
        canvas[:height, :width] = part
        answer = self.infer(canvas)
        found = credible(answer, canvas.shape[1], canvas.shape[0], WEAK * self.score_threshold)
        yield _moved(found, np.tile([columns.start, rows.start], (len(found), 1))), rows, columns
        is_small = min(height, width) <= MIN_TILE
        if answer.left_out < self.score_threshold or (is_small and not is_finest):
            return
        if is_small:
            raise DetectionFailed(
                f"the model returned {len(answer)} faces of a part of {width} x {height} pixels, as many as it can: "
                f"{ADVICE}"
            )
        for down, across in quarters(height, width, TILE_OVERLAP):
            yield from self._found_in(view, _within(rows, down), _within(columns, across), is_finest)

    def _counts(self, found: Detections, each: Pass) -> NDArray[np.bool_]:
        """Which of `found`, in pixels of the canvas, are faces by themselves."""
        sides = _sides(found.boxes_xyxy)
        apt = ((sides >= SMALLEST_SEEN) | each.finest) & ((sides <= LARGEST_SEEN) | each.coarsest)
        least = np.where(apt, self.score_threshold, self._sure(SURE))
        counts: NDArray[np.bool_] = found.scores >= (self._sure(SURE_TURNED) if each.probe else least)
        return counts


@dataclass(frozen=True)
class _Seen:
    """What one pass saw: what counts by itself, and what only counts where something else that counts is too.

    What is `cut` by the edge of a tile counts by itself where no face covers it.
    """

    strong: Detections
    cut: Detections
    weak: Sightings
    crowd: Points
    """The middles of the small faces, if they are so many that a finer pass is worth making; else none."""


def _middles(boxes: Boxes) -> Points:
    middles: Points = boxes.reshape(-1, 2, 2).mean(axis=1, dtype=np.float32)
    return middles


def _any_in(points: Points, rows: slice, columns: slice) -> bool:
    """Return whether one of `points` lies in the part of a view at `rows` and `columns`."""
    first, last = (columns.start, rows.start), (columns.stop, rows.stop)
    return bool(((points >= first) & (points < last)).all(axis=1).any())


def _unless_better(found: Detections, known: Detections) -> Detections:
    """Those of `found` whose middle is in no stronger one of `known`.

    Upright faces are seen in turned passes too, but worse.
    """
    middle = _middles(found.boxes_xyxy)
    better = np.zeros(len(found), bool)
    for rows, around in meeting(np.concatenate([middle, middle], axis=1), known.boxes_xyxy):
        better[rows[known.scores[around] > found.scores[rows]]] = True
    return found[~better]


def _reaches_edge(found: Detections, rows: slice, columns: slice, height: int, width: int) -> NDArray[np.bool_]:
    """[n]: which of `found` reach the edge of the part at `rows` and `columns` of a view, where the view goes on."""
    boxes = found.boxes_xyxy
    reaches = np.zeros(len(found), bool)
    for axis, (span, length) in enumerate(((columns, width), (rows, height))):
        if span.start > 0:
            reaches |= boxes[:, axis] < span.start + EDGE
        if span.stop < length:
            reaches |= boxes[:, axis + 2] > span.stop - EDGE
    return reaches


def _unless_covered(cut: Detections, faces: Detections) -> Detections:
    """Those of `cut` of which no one of `faces` covers half."""
    covered = np.zeros(len(cut), bool)
    for rows, around in meeting(cut.boxes_xyxy, faces.boxes_xyxy):
        boxes, others = cut.boxes_xyxy[rows], faces.boxes_xyxy[around]
        shared = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
        covered[rows[2 * shared.clip(0).prod(axis=1) >= _area(boxes)]] = True
    return cut[~covered]


def _within(span: slice, part: slice) -> slice:
    """`part` of the pixels of `span`, as pixels of what `span` is part of."""
    return slice(span.start + part.start, span.start + part.stop)


def _refined(factors: list[float], least: float) -> list[float]:
    """Return the `factors` of passes, coarsest first, and what is added so that the finest is `least` or nearly so.

    None that is added is more than MAX_STEP times finer than the one before. The passes of the preset stay, so that a
    picture that gets more of them loses no face.
    """
    if WORTHWHILE * factors[-1] >= least:
        return factors
    added = [least]
    while added[0] > MAX_STEP * factors[-1]:
        added.insert(0, added[0] / MAX_STEP)
    return [*factors, *added]


def _upright(points: NDArray[np.float32], each: Pass, width: int, height: int) -> NDArray[np.float32]:
    """`points` [..., 2] x y in the view of a pass, `width` x `height`, as points of the upright picture."""
    x, y = points[..., 0], points[..., 1]
    if each.mirrored:
        x = width - x
    for _ in range(each.turn):
        x, y = height - y, x
        width, height = height, width
    return np.stack([x, y], axis=-1)


class Halves:
    """A picture, uint8 [height, width, 3], and its halves, each made once, that passes of any size are made from."""

    def __init__(self, picture: Pixels) -> None:
        self.height, self.width = picture.shape[:2]
        self._halves = [picture]

    def resized(self, factor: float) -> Pixels:
        """The picture with its sides `factor` times as long, to whole pixels, at least 1.

        Halved as long as it goes, which is exact and fast; what remains, by less than two, is interpolated, which
        skips nothing but an odd last row or column of each halving. Averaging takes eight times as long, and finds no
        more faces.
        """
        width, height = max(1, round(self.width * factor)), max(1, round(self.height * factor))
        number = 0
        while self._half(number).shape[1] >= 2 * width and self._half(number).shape[0] >= 2 * height:
            number += 1
        return np.asarray(cv2.resize(self._half(number), (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)

    def _half(self, number: int) -> Pixels:
        """The picture halved `number` times; an odd last row or column is left out."""
        if number == len(self._halves):
            last = self._halves[-1]
            height, width = last.shape[0] // 2, last.shape[1] // 2
            even = last[: 2 * height, : 2 * width]
            self._halves.append(np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), np.uint8))
        return self._halves[number]


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


def merge(detections: Detections, weak: Sightings | None = None) -> Detections:
    """One detection for boxes that show the same face: those that overlap a stronger one by at least MERGE_IOU.

    The merged box covers all of them, and each stays one of its sightings: their regions are hidden together, because
    passes disagree about the edges by more than the margin. What was seen `weak`ly joins the faces that it overlaps,
    and is no face by itself.
    """
    ordered = detections[np.argsort(-detections.scores, kind="stable")]
    boxes = ordered.boxes_xyxy
    everywhere = boxes if weak is None else np.concatenate([boxes, weak.boxes_xyxy])
    same_face = _same_face(boxes, everywhere)
    face = np.full(len(everywhere), -1)  # to which merged face each box belongs, and each weak sighting
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
    """The faces that lie less than half in every one of `areas`, x1 y1 x2 y2 in pixels of the picture."""
    boxes = detections.boxes_xyxy
    kept = np.ones(len(boxes), bool)
    for area in areas:
        first, last = np.array([*area[:2]] * 2, np.float32), np.array([*area[2:]] * 2, np.float32)
        kept &= 2 * _area(boxes.clip(first, last)) < _area(boxes)
    return detections[kept]


def bridged(frames: Sequence[Detections]) -> list[Detections]:
    """Return the faces of each frame of an animation, with those that it misses and the frames around it show.

    A face that was found in one frame is hidden in up to MISSED frames before and after it too, until it is found
    again: where it was found, and where its movement takes it, which may be beyond the edge of the picture.
    """
    everything = Detections.joined([Detections.none(), *frames])
    starts = np.cumsum([0, *map(len, frames)])
    frame_of = np.repeat(np.arange(len(frames)), np.diff(starts))
    tracks = follow(everything.boxes_xyxy, frame_of)
    result = list(frames)
    for frame, here in enumerate(frames):
        first, last = max(0, frame - MISSED), min(len(frames), frame + 1 + MISSED)
        earlier, later = np.arange(starts[first], starts[frame]), np.arange(starts[frame + 1], starts[last])
        earlier, later = earlier[tracks.until[earlier] > frame], later[tracks.since[later] < frame]
        rows = np.concatenate([earlier, later])
        speed = np.concatenate([tracks.speed_after[earlier], tracks.speed_before[later]])
        missed = ~_meets(everything[rows], here)
        if missed.any():
            shift = speed[missed] * (frame - frame_of[rows[missed]])[:, None]
            lost = everything[rows[missed]]
            result[frame] = merge(Detections.joined([here, lost, _moved(lost, shift)[shift.any(axis=1)]]))
    return result


def _moved(detections: Detections, shift: NDArray[Any]) -> Detections:
    """Return `detections`, each moved by its `shift` [n, 2], x y in pixels."""
    seen, by = detections.seen, shift.astype(np.float32)
    moved = replace(
        seen,
        boxes_xyxy=seen.boxes_xyxy + np.tile(by[seen.face], 2),
        landmarks=seen.landmarks + by[seen.face, None],
    )
    return replace(detections, boxes_xyxy=detections.boxes_xyxy + np.tile(by, 2), sightings=moved)


def _meets(some: Detections, others: Detections) -> NDArray[np.bool_]:
    """Which of `some` overlap one of `others` by at least MERGE_IOU."""
    same_face = _same_face(some.boxes_xyxy, others.boxes_xyxy)
    return np.array([len(same_face(row)) > 0 for row in range(len(some))], bool)


def _same_face(boxes: Boxes, others: Boxes) -> Callable[[int], Rows]:
    """Return a function from a row of `boxes` to the rows of `others` that overlap it by at least MERGE_IOU.

    Such boxes start close to each other, so that it compares only those that do along one axis.
    """
    lookups = []
    for axis in (0, 1):
        order = np.argsort(others[:, axis], kind="stable")
        start = boxes[:, axis].astype(np.float64)
        # What they share is at least MERGE_IOU of the longer one's side; a thousandth more is for rounding.
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
