"""Detection in a picture: passes at several sizes, whose detections are merged into faces."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worker.detection.boxes import overlapping_pairs
from worker.detection.canvas import Pyramid
from worker.detection.faces import (
    Boxes,
    Detections,
    Points,
    Sightings,
    box_areas,
    box_sides,
    clip,
    merge,
)
from worker.detection.lenses import View, plain_views
from worker.detection.model import DEFAULT_THRESHOLD
from worker.detection.passes import (
    Pass,
    PassImage,
    closer_factors,
    closer_passes,
    crowd_pass,
    planned_probes,
    upright_passes,
)
from worker.detection.presets import PassSettings
from worker.detection.tiled import (
    ANY_SIZE,
    TOO_MANY_FACES,
    Infer,
    ModelInput,
    TiledDetections,
    TiledModel,
    TooMany,
    limited,
)
from worker.pixels import Pixels

# These figures were chosen with `python -m tools.benchmarks.tuning`. docs/detection.md says what
# they bring and cost.

# Detections below the threshold but above this share of it extend a face that another pass found.
WEAK_SCORE_FACTOR = 0.6
# A detection of a pass coarser than the finest one over the whole picture counts from this many
# times the threshold on: most of its false alarms are weaker.
COARSER_SCORE_FACTOR = 1.1
# Less than the threshold is enough for a small face, because a false alarm costs its area: this
# share, below this side in pixels of the pass. So it is in a closer pass, because another one has
# seen something there.
SMALL_SCORE_FACTOR, MAX_SMALL_SIDE = 0.85, 32
CLOSER_SCORE_FACTOR = 0.75
# The next three are scores, as shares of the way from the threshold to 1. From the first one on, a
# detection counts in any pass but the coarsest, at any size.
CONFIDENT_SCORE_SHARE = 0.15
# From this score on, a detection of a probe counts. It is higher because turned heads are rare.
PROBE_SCORE_SHARE = 0.3
# Nearly every picture with upright faces has a detection with at least this score. Pictures that
# lie on their side have hardly any.
CERTAIN_SCORE_SHARE = 0.6
# The sides, in pixels of a pass, of faces that the pass detects reliably. A coarser or finer pass,
# if there is one, detects the others better.
MIN_RELIABLE_SIDE, MAX_RELIABLE_SIDE = 14, 400
# The coarsest of several passes is there for faces of at least this many of its pixels, which are
# too large for the next one, and counts if it is confident. Smaller ones must be certain.
MIN_LARGE_SIDE = 64
# A closer pass follows at sightings, weak ones included, with a side that the pass does not detect
# reliably, or with a side of less than this many pixels if they are not confident.
MAX_UNSURE_SIDE = 64
# The pixels of a pass by which an edge of a box may be wrong: one step of CenterFace's heatmap. In
# all but the finest pass it is at most this share of the box's side. The finest pass has the
# smallest faces, which need all of it.
EDGE_SLACK, MAX_SLACK_SHARE = 4, 0.1
# A picture is taken to lie on its side if a probe's scores add up to this many times those of the
# upright pass.
MIN_TURNED_GAIN = 1.2
# The sides of the boxes of a face in upright and in turned passes differ by at most this factor.
MAX_TURNED_GROWTH = 2
# A finer pass follows if the finest one has this many detections, weak ones included, with a side
# of less than this many of its pixels. CenterFace misses most faces of that size in a crowd: of a
# wall of heads it found 3 in 20 at 15 pixels, and nearly all at 20.
MIN_CROWD_FACES, MAX_CROWD_FACE_SIDE = 16, 18


class Detector(Protocol):
    """A detector of faces. Tests may replace it, and nothing else of the pipeline."""

    def detect(self, picture: Pixels) -> Detections:
        """Return the faces in `picture`, uint8 RGB [height, width, 3].

        Raises DetectorUnavailable past its deadline, and DetectionFailed if the model fails.
        """


@dataclass(frozen=True)
class PassResult:
    """The detections of one pass, in pixels of the upright picture.

    `strong` detections are faces. So are those that the edge of a tile `cut`, unless another face
    covers them. `weak` sightings only extend faces that they overlap. `unclear` are the centres of
    small and doubtful sightings. `crowd` are the centres of small faces if there are many of them,
    else it is empty.
    """

    plan: Pass
    strong: Detections
    cut: Detections
    weak: Sightings
    unclear: Points
    crowd: Points


@dataclass(frozen=True)
class ScaledDetector:
    """A Detector that makes several passes over each picture and merges their detections.

    CenterFace misses large faces in a large picture and small faces in a small one, so one pass is
    not enough. A face of a size that a pass detects unreliably counts only if its score is high,
    because another pass detects that size better.
    """

    infer: Infer
    settings: PassSettings
    score_threshold: float
    takes: ModelInput = ANY_SIZE
    seconds: float = float("inf")
    """Time limit of all passes over one picture."""
    too_many: TooMany = TOO_MANY_FACES
    """The errors of a picture with more faces than the model can return part by part."""

    def detect(self, picture: Pixels) -> Detections:
        """Return the faces in `picture`, as Detector says.

        Raises DetectorUnavailable after `seconds`, and DetectionFailed if an answer of the model is
        not credible or the picture has more faces than the model can return part by part.
        """
        within_limits = replace(self, infer=limited(self.infer, self.seconds, self.too_many))
        results = within_limits.results(Pyramid(picture))
        for view in plain_views(picture):
            found = within_limits.results(Pyramid(view.pixels))
            results += [_in_bent_picture(result, view) for result in found]
        height, width = picture.shape[:2]
        return clip(_merged(results), width, height)

    def results(self, picture: Pyramid) -> list[PassResult]:
        """Return the results of all passes over `picture`."""
        width, height = picture.width, picture.height
        planned = upright_passes(width, height, self.settings, self.takes.fixed_size)
        results = self._search(picture, planned)
        if self.settings.turned == "always" or (
            self.settings.turned == "doubt" and self._is_doubtful(results)
        ):
            results = self._with_turned(picture, planned, results)
        return results

    def _search(self, picture: Pyramid, whole: Sequence[Pass]) -> list[PassResult]:
        """Return the results of the passes `whole` over the picture, and of closer ones.

        Closer passes follow at places that the finest of `whole` leaves unclear, and then where
        there is a crowd.
        """
        results = self._run(picture, whole)
        finest = whole[-1]
        latest = [one for one in results if one.plan.factor == finest.factor]
        longer = max(picture.width, picture.height)
        is_crowd = any(len(one.crowd) for one in latest)
        factors = (
            []
            if finest.is_finest
            else closer_factors(finest.factor, longer, self.settings, is_crowd=is_crowd)
        )
        for factor in factors:
            places = np.concatenate([one.unclear for one in latest])
            if not len(places):
                break
            is_last = factor == factors[-1]
            closer = closer_passes(whole, factor, places, is_last)
            latest = self._run(picture, closer)
            results += latest
        while finer := crowd_pass(results[-1].plan, results[-1].crowd):
            results += self._run(picture, [finer])
        return results

    def _run(self, picture: Pyramid, plans: Sequence[Pass]) -> list[PassResult]:
        """Make passes over `picture`, as many together as the model takes canvases at once."""
        least_score = WEAK_SCORE_FACTOR * self.score_threshold
        model = TiledModel(self.infer, least_score, self.score_threshold, self.takes, self.too_many)
        results = []
        for first in range(0, len(plans), self.takes.at_once):
            together = plans[first : first + self.takes.at_once]
            images = [plan.image_of(picture) for plan in together]
            for image, tiled in zip(images, model.detect(images), strict=True):
                results.append(self._result(image, tiled))
        return results

    def _result(self, image: PassImage, tiled: TiledDetections) -> PassResult:
        """Return the result of the pass that shows `image`."""
        plan = image.plan
        counts = self._counts(tiled.found, plan)
        is_weak = ~counts & self._widens(plan)
        detections = _in_picture(tiled.found, image)
        return PassResult(
            plan,
            strong=detections[counts & ~tiled.is_cut],
            cut=detections[counts & tiled.is_cut],
            weak=detections.sightings[is_weak],
            unclear=_centres(detections.boxes_xyxy[self._is_unclear(tiled)]),
            crowd=_crowd(tiled, detections.boxes_xyxy),
        )

    def _widens(self, plan: Pass) -> bool:
        """Return whether weak sightings of the pass extend the faces that they overlap.

        The boxes of coarser passes are not exact enough.
        """
        return not (plan.is_probe or plan.is_coarser)

    def _counts(self, found: Detections, plan: Pass) -> NDArray[np.bool_]:
        """Return which of `found`, in pixels of the pass, count as faces, [n]."""
        if plan.is_probe:
            return np.asarray(found.scores >= self._score_at(PROBE_SCORE_SHARE), bool)
        sides = box_sides(found.boxes_xyxy)
        confident = self._score_at(CONFIDENT_SCORE_SHARE)
        if plan.is_for_large:
            certain = self._score_at(CERTAIN_SCORE_SHARE)
            return np.asarray(
                found.scores >= np.where(sides >= MIN_LARGE_SIDE, confident, certain), bool
            )
        is_reliable = (sides >= MIN_RELIABLE_SIDE) | plan.is_finest
        is_reliable &= (sides <= MAX_RELIABLE_SIDE) | plan.is_coarsest
        least = self._least_scores(sides, plan)
        return np.asarray(found.scores >= np.where(is_reliable, least, confident), bool)

    def _least_scores(self, sides: NDArray[np.float32], plan: Pass) -> NDArray[np.float64]:
        """Return the score from which a detection of a reliable size counts, [n]."""
        if plan.is_coarser:
            return np.full(len(sides), COARSER_SCORE_FACTOR * self.score_threshold)
        factor = np.where(sides < MAX_SMALL_SIDE, SMALL_SCORE_FACTOR, 1)
        if plan.places is not None:
            factor = factor * CLOSER_SCORE_FACTOR
        return np.asarray(factor * self.score_threshold, np.float64)

    def _is_unclear(self, tiled: TiledDetections) -> NDArray[np.bool_]:
        """Return which of the detections deserve a closer pass, [n].

        Where the model found as many faces in a tile as it can return, all of them do.
        """
        sides = box_sides(tiled.found.boxes_xyxy)
        is_unsure = tiled.found.scores < self._score_at(CONFIDENT_SCORE_SHARE)
        is_unsure &= sides < MAX_UNSURE_SIDE
        return tiled.is_full | (sides < MIN_RELIABLE_SIDE) | is_unsure

    def _score_at(self, share: float) -> float:
        """Return the score at `share` of the way from the threshold to 1."""
        return self.score_threshold + share * (1 - self.score_threshold)

    def _is_doubtful(self, results: Sequence[PassResult]) -> bool:
        """Return whether the picture, or a head in it, may not be upright.

        That is so if no face is certain, if a face is not upright to within 45°, or if the
        landmarks of one do not form a face.
        """
        strong = Detections.joined([result.strong for result in results])
        is_certain = strong.scores >= self._score_at(CERTAIN_SCORE_SHARE)
        up = strong.sightings.up
        is_upright = -up[:, 1] > np.sqrt(0.5) * np.hypot(*up.T)
        is_unknown = np.isnan(up[:, 1])
        return not is_certain.any() or not (is_upright | is_unknown).all()

    def _with_turned(
        self, picture: Pyramid, whole: Sequence[Pass], upright: Sequence[PassResult]
    ) -> list[PassResult]:
        """Return the results `upright` and those of passes over the turned picture.

        `whole` are the upright passes over the whole picture. If one of the three orientations
        clearly shows more than the upright one, the whole picture lies on its side: the search is
        repeated so, and of the upright passes only confident detections count. Of the probes only
        what the other passes found less well, or not at all, is kept.
        """
        longer = max(picture.width, picture.height)
        probes = planned_probes(whole, longer, self.settings.turned)
        repeated = (one for one in upright if one.plan == replace(whole[-1], mirrored=False))
        compared = next((one for one in repeated if one.plan.factor == probes[-1].factor), None)
        if compared is None:
            (compared,) = self._run(picture, [probes[-1]])
        turned = [
            replace(probe, quarter_turns=turns, is_probe=True)
            for turns in (1, 2, 3)
            for probe in probes
        ]
        results = self._run(picture, turned)
        totals = {
            one.plan.quarter_turns: _total_score(one)
            for one in results
            if one.plan.factor == probes[-1].factor
        }
        best = max(totals, key=lambda turns: totals[turns])
        if totals[best] > MIN_TURNED_GAIN * _total_score(compared):
            plain = [plan for plan in whole if not plan.mirrored]
            turned_passes = [replace(plan, quarter_turns=best) for plan in plain]
            confident = [self._confident(one) for one in upright]
            upright = confident + self._search(picture, turned_passes)
        known = Detections.joined([result.strong for result in upright])
        kept = [replace(result, strong=_without_weaker(result.strong, known)) for result in results]
        return [*upright, *kept]

    def _confident(self, result: PassResult) -> PassResult:
        """Return `result` with its confident detections alone."""
        least = self._score_at(CONFIDENT_SCORE_SHARE)
        strong, cut = result.strong, result.cut
        return replace(result, strong=strong[strong.scores >= least], cut=cut[cut.scores >= least])


def canvases_of(
    picture: Pixels, settings: PassSettings, takes: ModelInput = ANY_SIZE
) -> list[Pixels]:
    """Return the canvases that a model gets for `picture` if it finds nothing in it."""
    canvases: list[Pixels] = []

    def record(given: Sequence[Pixels]) -> list[Detections]:
        canvases.extend(given)
        return [Detections.none() for _ in given]

    ScaledDetector(record, settings, DEFAULT_THRESHOLD, takes).detect(picture)
    return canvases


def _in_bent_picture(result: PassResult, view: View) -> PassResult:
    """Return the `result` of a pass over `view` in pixels of the picture."""
    return replace(
        result,
        strong=view.detections(result.strong),
        cut=view.detections(result.cut),
        weak=view.sightings(result.weak),
    )


def _total_score(result: PassResult) -> float:
    return float(result.strong.scores.sum())


def _in_picture(found: Detections, image: PassImage) -> Detections:
    """Return the detections `found` in `image` in pixels of the upright picture, with slack."""
    sightings = found.sightings
    corners = image.to_picture(sightings.boxes_xyxy.reshape(-1, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    slack = np.full(len(found), EDGE_SLACK, np.float32)
    if not image.plan.is_finest:
        slack = np.minimum(slack, MAX_SLACK_SHARE * box_sides(found.boxes_xyxy))
    slack = (slack * image.pixel_size.max()).astype(np.float32)
    landmarks = image.to_picture(sightings.landmarks)
    return Detections(
        boxes, found.scores, Sightings(boxes, landmarks, slack, np.arange(len(found)))
    )


def _crowd(tiled: TiledDetections, boxes: Boxes) -> Points:
    """Return the centres of the small faces of a crowd; none if there is no crowd.

    `boxes` [n, 4] are those of `tiled` in pixels of the picture. Where the model found as many
    faces in a tile as it can return, all of them count as small.
    """
    is_small = tiled.is_full | (box_sides(tiled.found.boxes_xyxy) < MAX_CROWD_FACE_SIDE)
    if tiled.is_full or is_small.sum() >= MIN_CROWD_FACES:
        return _centres(boxes[is_small])
    return _centres(boxes[:0])


def _merged(results: Sequence[PassResult]) -> Detections:
    """Return the faces that the `results` of all passes show."""
    strong = Detections.joined([result.strong for result in results])
    cut = Detections.joined([result.cut for result in results])
    weak = Sightings.joined([cut.sightings, *(result.weak for result in results)])
    faces = merge(strong, weak)
    uncovered = _without_covered(cut, faces)
    if not len(uncovered):
        return faces
    return Detections.joined([faces, merge(uncovered)])


def _without_covered(cut: Detections, faces: Detections) -> Detections:
    """Return those of `cut` of which none of `faces` covers half or more."""
    is_covered = np.zeros(len(cut), bool)
    for rows, face_rows in overlapping_pairs(cut.boxes_xyxy, faces.boxes_xyxy):
        boxes, others = cut.boxes_xyxy[rows], faces.boxes_xyxy[face_rows]
        shared = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
        is_covered[rows[2 * shared.clip(0).prod(axis=1) >= box_areas(boxes)]] = True
    return cut[~is_covered]


def _without_weaker(found: Detections, known: Detections) -> Detections:
    """Return those of `found` whose centre is in none of `known` of its size with a higher score.

    Turned passes detect upright faces too, but less well. A box of another size shows another face.
    """
    centres = _centres(found.boxes_xyxy)
    sides, known_sides = box_sides(found.boxes_xyxy), box_sides(known.boxes_xyxy)
    is_weaker = np.zeros(len(found), bool)
    points = np.concatenate([centres, centres], axis=1)
    for rows, known_rows in overlapping_pairs(points, known.boxes_xyxy):
        side, known_side = sides[rows], known_sides[known_rows]
        has_size = np.maximum(side, known_side) <= MAX_TURNED_GROWTH * np.minimum(side, known_side)
        is_weaker[rows[has_size & (known.scores[known_rows] > found.scores[rows])]] = True
    return found[~is_weaker]


def _centres(boxes: Boxes) -> Points:
    centres: Points = boxes.reshape(-1, 2, 2).mean(axis=1, dtype=np.float32)
    return centres
