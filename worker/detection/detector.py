"""Detection at several scales: the passes over a picture, and the Detector protocol."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed, DetectorUnavailable
from worker.detection.boxes import meeting
from worker.detection.faces import (
    Boxes,
    Detections,
    Points,
    Sightings,
    box_areas,
    box_sides,
    clip,
    credible,
    merge,
    moved,
)
from worker.detection.look import Look
from worker.detection.tiles import quarters, tiles
from worker.pixels import Pixels

# The sides of a canvas are padded to multiples of this, so that few shapes occur and batches form.
MULTIPLE = 64
PADDING = 114  # gray level of the padding

# The figures below were chosen with `python -m tools.benchmarks.tuning`; docs/detection.md says
# what they cost and bring.

# Detections below the threshold but above this share of it extend a face that another pass found.
WEAK_SCORE_FACTOR = 0.6
# The next three lie between the threshold (0) and the score 1 (1).
SURE_SCORE_SHARE = 0.15  # A detection from here on counts in any pass, whatever its size.
TURNED_SCORE_SHARE = 0.3  # The same in turned passes: turned heads are rare.
# Nearly every picture with upright faces has a detection from here on; pictures that lie on their
# side have hardly any.
CERTAIN_SCORE_SHARE = 0.6
# Pixels of a pass: another pass sees smaller and larger faces better, if there is one.
MIN_RELIABLE_SIDE, MAX_RELIABLE_SIDE = 14, 400
# Pixels of a pass by which an edge may be wrong: one step of CenterFace's heatmap. In all but the
# finest pass, whose faces are the smallest, it is no more than this share of the box.
EDGE_SLACK, MAX_SLACK_SHARE = 4, 0.1
# Passes whose sizes differ by less than this factor see the same faces.
MIN_SEPARATION_FACTOR = 1.45
# A picture is taken to lie on its side if a turned pass scores this many times as much in total.
MIN_TURNED_GAIN = 1.2

# Pixels: the longest side of a canvas for a model of any size. Longer views are cut into tiles.
MAX_CANVAS = 1920
# Pixels: the next coarser pass shows faces that are larger than this whole (see MAX_STEP).
TILE_OVERLAP = 192
TILE_EDGE = 2  # Pixels of a pass: a tile may have cut a face whose box comes this near to its edge.
# Canvases of one picture. A wall of 10,000 faces in 24 megapixels takes about 100.
MAX_CANVASES = 1000
ADVICE = "raise VEIL_SCORE_THRESHOLD, or export the model with more detections"
# Pixels: smaller tiles are not cut again when the model finds too many faces in one.
MIN_TILE = 32
# Pixels of a pass: CenterFace finds 7 to 9 in 10 faces of this side (`make bench ONLY=face_sizes`).
# A pass of 1,920 shows a face of 24 pixels at this size if the picture is 4,000 pixels wide.
READABLE_SIDE = 11.52
# Longer side by shorter side: screenshots and panoramas beyond it get finer passes than the
# preset's.
MAX_PRESET_ASPECT = 2
MIN_GAIN_FACTOR = 1.16  # A pass that is finer than the last one by less than this brings nothing.
MAX_STEP = 3.01  # times as fine as the pass before
# In a crowd CenterFace misses most faces with a side of less than 18 pixels of a pass: it found 3
# in 20 of a wall of heads at 15 px, and all but a few at 20. This many sightings of smaller faces,
# weak ones included, ask for a finer pass.
CROWD_FACE_SIDE, MIN_CROWD_FACES = 18, 16
CROWD_TILE = 960  # Pixels: small tiles cover little beside a crowd that fills part of the picture.
# Turned probes use the coarsest pass that is at least this share as fine as the finest one.
MIN_PROBE_SHARE = 0.25


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
    """One pass: the picture turned by so many quarters counter-clockwise, mirrored, then resized by
    `factor`.
    """

    factor: float
    turn: int = 0
    mirrored: bool = False
    finest: bool = True
    coarsest: bool = True
    probe: bool = False
    """Only what it is sure of counts."""
    crowd: Points | None = None
    """Where small faces are, in pixels of the picture: tiles that hold none of them are left
    out.
    """


@dataclass(frozen=True)
class ScaledDetector:
    """A Detector that looks at each picture several times and merges what it finds.

    CenterFace loses large faces in a large picture and small faces in a small one; neither pass
    alone will do. A face of a size that a pass sees badly counts only if that pass is sure of it:
    the others see it better.
    """

    infer: Infer
    look: Look
    score_threshold: float
    fixed_size: tuple[int, int] | None = None
    """(height, width) of a model that takes only this size."""
    seconds: float = float("inf")
    """Limit for all passes over one picture."""

    def _sure(self, share: float) -> float:
        """The score from which on a detection counts whatever its size: so far from the threshold
        to 1.
        """
        return self.score_threshold + share * (1 - self.score_threshold)

    def detect(self, picture: Pixels) -> Detections:
        return self._until(time.monotonic() + self.seconds)._detect(Halves(picture))

    def _until(self, end: float) -> "ScaledDetector":
        """The same detector for one picture.

        It raises DetectorUnavailable for each canvas after `end` (time.monotonic), DetectionFailed
        beyond MAX_CANVASES.
        """
        canvases = count(1)

        def infer(canvas: Pixels) -> Detections:
            if next(canvases) > MAX_CANVASES:
                raise DetectionFailed(
                    f"the model returns as many faces as it can of each of {MAX_CANVASES:,} parts: {ADVICE}"
                )
            if time.monotonic() > end:
                raise DetectorUnavailable(
                    f"the passes over one picture took more than {self.seconds:g} s"
                )
            return self.infer(canvas)

        return replace(self, infer=infer)

    def _detect(self, picture: "Halves") -> Detections:
        passes = self._passes(picture)
        seen = [self._run(picture, each) for each in passes]
        finest = passes[-1]
        while len(seen[-1].crowd) and MIN_GAIN_FACTOR * finest.factor < 1:
            finest = replace(
                finest, factor=min(1, 2 * finest.factor), mirrored=False, crowd=seen[-1].crowd
            )
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
        # Enlarging brings out small faces up to a point; beyond it, only pixels that are there tell
        # more.
        largest = min(self.look.max_enlargement, max(1, self.look.enlarge_to / longer))
        for side in sorted(self.look.scales):
            factor = min(side / longer, largest)
            if not factors or factor > MIN_SEPARATION_FACTOR * factors[-1]:
                factors.append(factor)
        if self.fixed_size:
            factors = [min(self.fixed_size[0] / picture.height, self.fixed_size[1] / picture.width)]
        least = min(1, READABLE_SIDE / self.look.smallest_face)
        part = MAX_PRESET_ASPECT * min(picture.height, picture.width)
        if (
            longer > max(part, MAX_CANVAS) and not self.fixed_size
        ):  # a long picture is looked at as its parts of two to one would be
            least = max(least, min(max(self.look.scales) / part, largest))
        factors = _refined(factors, least)
        return [
            Pass(
                factor,
                mirrored=mirrored,
                finest=factor == factors[-1],
                coarsest=factor == factors[0],
            )
            for factor in factors
            for mirrored in ((False, True) if self.look.mirrored else (False,))
        ]

    def _in_doubt(self, seen: Sequence["_Seen"]) -> bool:
        """Whether no face was found for certain, or one that does not stand upright or whose
        landmarks make none.
        """
        strong = Detections.joined([each.strong for each in seen])
        up = strong.seen.up
        upright = -up[:, 1] > np.sqrt(0.5) * np.hypot(*up.T)  # to 45°
        certain = strong.scores >= self._sure(CERTAIN_SCORE_SHARE)
        return not certain.any() or not (upright | np.isnan(up[:, 1])).all()

    def _turned(
        self, picture: "Halves", passes: Sequence[Pass], upright: Sequence["_Seen"]
    ) -> list["_Seen"]:
        """What passes over the turned picture see, where they are sure: heads that lie or stand
        upside down.

        If one way round shows clearly more than upright, the picture as a whole lies: then all
        passes are made so.
        """
        plain = [each for each in passes if not each.mirrored]
        first = next(
            number
            for number, each in enumerate(plain)
            if each.factor >= MIN_PROBE_SHARE * plain[-1].factor
        )
        small = (
            plain[first : first + 1]
            if self.look.turned == "doubt"
            else plain[: max(1, len(plain) - 1)]
        )
        probes = {
            turn: [self._run(picture, replace(each, turn=turn, probe=True)) for each in small]
            for turn in (1, 2, 3)
        }
        place = min(first, len(small) - 1)
        shown = {turn: float(seen[place].strong.scores.sum()) for turn, seen in probes.items()}
        best = max(shown, key=lambda turn: shown[turn])
        if shown[best] > MIN_TURNED_GAIN * float(
            upright[passes.index(small[place])].strong.scores.sum()
        ):
            return [self._run(picture, replace(each, turn=best)) for each in plain]
        known = Detections.joined([each.strong for each in upright])
        return [
            replace(seen, strong=_unless_better(seen.strong, known))
            for several in probes.values()
            for seen in several
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
        small = is_full | (box_sides(found.boxes_xyxy) < CROWD_FACE_SIDE)
        back = np.array([width / size[0], height / size[1]], np.float32)
        seen = found.seen
        boxes, landmarks = seen.boxes_xyxy.reshape(-1, 2, 2) * back, seen.landmarks * back
        corners = _upright(boxes, each, width, height)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        slack = np.full(len(found), EDGE_SLACK, np.float32)
        if not each.finest:
            slack = np.minimum(slack, MAX_SLACK_SHARE * box_sides(found.boxes_xyxy))
        slack = (slack * back.max()).astype(np.float32)
        sightings = Sightings(
            boxes, _upright(landmarks, each, width, height), slack, np.arange(len(found))
        )
        weak = np.zeros(len(found), bool) if each.probe else ~counts
        faces = Detections(boxes, found.scores, sightings)
        crowd = (
            _middles(boxes[small])
            if is_full or small.sum() >= MIN_CROWD_FACES
            else _middles(boxes[:0])
        )
        return _Seen(faces[counts & ~is_cut], faces[counts & is_cut], sightings[weak], crowd)

    def _found(self, view: Pixels, each: Pass) -> tuple[Detections, NDArray[np.bool_], bool]:
        """What the model finds in the `view` of a pass, in its pixels, tile by tile where it is
        larger than a canvas; which of that [n] a tile may have cut; and whether a tile held more
        than the model can return.

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
        is_cut = [
            _reaches_edge(detections, rows, columns, height, width)
            for detections, rows, columns in found
        ]
        every = Detections.joined([Detections.none(), *(detections for detections, _, _ in found)])
        return every, np.concatenate([np.zeros(0, bool), *is_cut]), len(found) > len(parts)

    def _found_in(
        self, view: Pixels, rows: slice, columns: slice, is_finest: bool
    ) -> Iterator[tuple[Detections, slice, slice]]:
        """Yield what the model finds in a part of `view`, in pixels of `view`, and that part; then
        the same of its quarters, if it finds as many faces as it can return.

        Raises DetectionFailed if the model returns as many faces as it can even of a part of
        MIN_TILE in the finest pass. In another, a finer pass sees what is that small.
        """
        part = view[rows, columns]
        height, width = part.shape[:2]
        canvas = np.full(
            (*(self.fixed_size or (_padded(height), _padded(width))), 3), PADDING, np.uint8
        )
        canvas[:height, :width] = part
        answer = self.infer(canvas)
        found = credible(
            answer, canvas.shape[1], canvas.shape[0], WEAK_SCORE_FACTOR * self.score_threshold
        )
        yield moved(found, np.tile([columns.start, rows.start], (len(found), 1))), rows, columns
        is_small = min(height, width) <= MIN_TILE
        if answer.left_out < self.score_threshold or (is_small and not is_finest):
            return
        if is_small:
            raise DetectionFailed(
                f"the model returned {len(answer)} faces of a part of {width} x {height} pixels, as many as it can: "
                f"{ADVICE}"
            )
        for down, across in quarters(height, width, TILE_OVERLAP):
            yield from self._found_in(
                view, _within(rows, down), _within(columns, across), is_finest
            )

    def _counts(self, found: Detections, each: Pass) -> NDArray[np.bool_]:
        """Which of `found`, in pixels of the canvas, are faces by themselves."""
        sides = box_sides(found.boxes_xyxy)
        apt = ((sides >= MIN_RELIABLE_SIDE) | each.finest) & (
            (sides <= MAX_RELIABLE_SIDE) | each.coarsest
        )
        least = np.where(apt, self.score_threshold, self._sure(SURE_SCORE_SHARE))
        counts: NDArray[np.bool_] = found.scores >= (
            self._sure(TURNED_SCORE_SHARE) if each.probe else least
        )
        return counts


@dataclass(frozen=True)
class _Seen:
    """What one pass saw: what counts by itself, and what only counts where something else that
    counts is too.

    What is `cut` by the edge of a tile counts by itself where no face covers it.
    """

    strong: Detections
    cut: Detections
    weak: Sightings
    crowd: Points
    """The middles of the small faces, if they are so many that a finer pass is worth making; else
    none.
    """


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


def _reaches_edge(
    found: Detections, rows: slice, columns: slice, height: int, width: int
) -> NDArray[np.bool_]:
    """[n]: which of `found` reach the edge of the part at `rows` and `columns` of a view, where the
    view goes on.
    """
    boxes = found.boxes_xyxy
    reaches = np.zeros(len(found), bool)
    for axis, (span, length) in enumerate(((columns, width), (rows, height))):
        if span.start > 0:
            reaches |= boxes[:, axis] < span.start + TILE_EDGE
        if span.stop < length:
            reaches |= boxes[:, axis + 2] > span.stop - TILE_EDGE
    return reaches


def _unless_covered(cut: Detections, faces: Detections) -> Detections:
    """Those of `cut` of which no one of `faces` covers half."""
    covered = np.zeros(len(cut), bool)
    for rows, around in meeting(cut.boxes_xyxy, faces.boxes_xyxy):
        boxes, others = cut.boxes_xyxy[rows], faces.boxes_xyxy[around]
        shared = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
        covered[rows[2 * shared.clip(0).prod(axis=1) >= box_areas(boxes)]] = True
    return cut[~covered]


def _within(span: slice, part: slice) -> slice:
    """`part` of the pixels of `span`, as pixels of what `span` is part of."""
    return slice(span.start + part.start, span.start + part.stop)


def _refined(factors: list[float], least: float) -> list[float]:
    """Return the `factors` of passes, coarsest first, and what is added so that the finest is
    `least` or nearly so.

    None that is added is more than MAX_STEP times finer than the one before. The passes of the
    preset stay, so that a picture that gets more of them loses no face.
    """
    if MIN_GAIN_FACTOR * factors[-1] >= least:
        return factors
    added = [least]
    while added[0] > MAX_STEP * factors[-1]:
        added.insert(0, added[0] / MAX_STEP)
    return [*factors, *added]


def _upright(
    points: NDArray[np.float32], each: Pass, width: int, height: int
) -> NDArray[np.float32]:
    """`points` [..., 2] x y in the view of a pass, `width` x `height`, as points of the upright
    picture.
    """
    x, y = points[..., 0], points[..., 1]
    if each.mirrored:
        x = width - x
    for _ in range(each.turn):
        x, y = height - y, x
        width, height = height, width
    return np.stack([x, y], axis=-1)


class Halves:
    """A picture, uint8 [height, width, 3], and its halves, each made once, that passes of any size
    are made from.
    """

    def __init__(self, picture: Pixels) -> None:
        self.height, self.width = picture.shape[:2]
        self._halves = [picture]

    def resized(self, factor: float) -> Pixels:
        """The picture with its sides `factor` times as long, to whole pixels, at least 1.

        Halved as long as it goes, which is exact and fast; what remains, by less than two, is
        interpolated, which skips nothing but an odd last row or column of each halving. Averaging
        takes eight times as long, and finds no more faces.
        """
        width, height = max(1, round(self.width * factor)), max(1, round(self.height * factor))
        number = 0
        while (
            self._half(number).shape[1] >= 2 * width and self._half(number).shape[0] >= 2 * height
        ):
            number += 1
        return np.asarray(
            cv2.resize(self._half(number), (width, height), interpolation=cv2.INTER_LINEAR),
            np.uint8,
        )

    def _half(self, number: int) -> Pixels:
        """The picture halved `number` times; an odd last row or column is left out."""
        if number == len(self._halves):
            last = self._halves[-1]
            height, width = last.shape[0] // 2, last.shape[1] // 2
            even = last[: 2 * height, : 2 * width]
            self._halves.append(
                np.asarray(
                    cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), np.uint8
                )
            )
        return self._halves[number]


def _padded(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE
