"""Detection at several scales: boxes come back in pixels of the picture, once for each face, within it."""

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DetectionFailed
from worker.detection import faces
from worker.detection.detector import (
    EDGE_SLACK,
    MAX_RELIABLE_SIDE,
    MIN_RELIABLE_SIDE,
    MIN_TURNED_GAIN,
    MULTIPLE,
    PADDING,
    WEAK_SCORE_FACTOR,
    Halves,
    ScaledDetector,
    _unless_better,
)
from worker.detection.faces import MERGE_IOU, Detections, Sightings, _meets, bridged, clip, merge, outside, overlap
from worker.detection.look import Look
from worker.detection.tracks import MAX_MISSED_FRAMES

SIDES = st.floats(-50, 150, width=32)
SIZES = st.floats(0, 80, width=32)


@st.composite
def detections(draw, most=8):
    corners = draw(st.lists(st.tuples(SIDES, SIDES, SIZES, SIZES), max_size=most))
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], np.float32).reshape(-1, 4)
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=len(boxes), max_size=len(boxes)))
    return Detections(boxes, np.array(scores, np.float32))


def found(*boxes, scores=None):
    given = scores if scores is not None else [0.9] * len(boxes)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(given, np.float32))


# --- overlap, clip, merge -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 10, 10), 1),
        ((0, 0, 10, 5), 0.5),
        ((5, 0, 15, 10), 1 / 3),
        ((2, 2, 4, 4), 0.04),
        ((10, 0, 20, 10), 0),
        ((30, 30, 40, 40), 0),
        ((5, 5, 5, 5), 0),
    ],
)
def test_overlap_is_intersection_over_union(other, expected):
    box = np.array([0, 0, 10, 10], np.float32)
    assert overlap(box, np.array([other], np.float32)) == pytest.approx([expected])


@given(detections())
def test_overlap_is_symmetric_and_between_0_and_1(some):
    boxes = some.boxes_xyxy
    table = np.array([overlap(box, boxes) for box in boxes]).reshape(len(boxes), len(boxes))
    assert np.allclose(table, table.T, atol=1e-5)
    assert ((table >= 0) & (table <= 1.001)).all()


@given(detections(), st.integers(1, 100), st.integers(1, 100))
def test_clipped_boxes_are_the_part_within_the_picture(some, width, height):
    inside = clip(some, width, height)
    x1, y1, x2, y2 = inside.boxes_xyxy.T
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all()
    assert len(inside.scores) == len(inside.boxes_xyxy)
    again = clip(inside, width, height)
    assert np.array_equal(again.boxes_xyxy, inside.boxes_xyxy)


def test_a_box_with_no_part_in_the_picture_is_dropped_and_one_within_it_unchanged():
    some = found((-20, 5, -1, 9), (10, 0, 20, 10), (2, 3, 5, 7), (0, 30, 5, 40), scores=[0.9, 0.8, 0.7, 0.6])
    inside = clip(some, 10, 30)
    assert inside.boxes_xyxy.tolist() == [[2, 3, 5, 7]]
    assert inside.scores == pytest.approx([0.7])


@given(detections())
def test_every_box_is_wholly_within_a_merged_one_that_is_at_least_as_strong(some):
    merged = merge(some)
    assert len(merged) <= len(some)
    for box, score in zip(some.boxes_xyxy, some.scores, strict=True):
        around = (merged.boxes_xyxy[:, :2] <= box[:2]).all(axis=1) & (merged.boxes_xyxy[:, 2:] >= box[2:]).all(axis=1)
        assert (merged.scores[around] >= score).any()


@given(detections())
def test_merged_boxes_are_strongest_first_and_reach_no_further_than_what_was_found(some):
    merged = merge(some)
    assert (np.diff(merged.scores) <= 0).all()
    assert set(merged.scores.tolist()) <= set(some.scores.tolist())
    assert merged.boxes_xyxy.dtype == np.float32
    for side in range(4):
        assert set(merged.boxes_xyxy[:, side].tolist()) <= set(some.boxes_xyxy[:, side].tolist())


@given(detections())
def test_boxes_that_show_different_faces_stay_as_they_are(some):
    apart = Detections(some.boxes_xyxy * [0.01, 1, 0.01, 1] + np.arange(len(some))[:, None] * [9, 0, 9, 0], some.scores)
    merged = merge(apart)
    order = np.argsort(-apart.scores, kind="stable")
    assert np.array_equal(merged.boxes_xyxy, apart.boxes_xyxy[order])
    assert np.array_equal(merged.scores, apart.scores[order])


def test_two_views_of_one_face_become_the_box_around_both_with_the_stronger_score():
    merged = merge(found((0, 0, 10, 10), (1, 0, 11, 12), (50, 50, 60, 60), scores=[0.5, 0.75, 0.25]))
    assert merged.boxes_xyxy.tolist() == [[0, 0, 11, 12], [50, 50, 60, 60]]
    assert merged.scores.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(("iou", "count"), [(MERGE_IOU - 0.01, 2), (MERGE_IOU + 0.01, 1)])
def test_boxes_are_one_face_from_a_certain_overlap_on(iou, count):
    assert len(merge(found((0, 0, 10, 10), (0, 0, 10, 10 * iou)))) == count


def test_nothing_found_merges_and_clips_to_nothing():
    none = clip(merge(Detections.none()), 10, 10)
    assert len(none) == 0
    assert none.boxes_xyxy.shape == (0, 4)


# --- scales ---------------------------------------------------------------------------------------------------

FACE = 255
GROUND = 30


class Model:
    """Finds the white rectangle, as a model does: in pixels of the canvas. Keeps the canvases that it saw."""

    def __init__(self, score=0.9):
        self.canvases = []
        self._score = score

    def infer(self, canvas):
        self.canvases.append(canvas)
        rows, columns = np.nonzero(canvas[..., 0] > (FACE + PADDING) // 2)
        if not len(rows):
            return Detections.none()
        return found((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), scores=[self._score])

    def contents(self):
        """(height, width) of the picture in each canvas, and its longer side."""
        for canvas in self.canvases:
            inside = (canvas != PADDING).any(axis=2)
            yield int(inside.any(axis=1).sum()), int(inside.any(axis=0).sum())


@dataclass
class Answers:
    infer: Callable


def picture(width, height, face):
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    x1, y1, x2, y2 = face
    pixels[y1:y2, x1:x2] = FACE
    return pixels


def detector(model, scales=(128, 256), max_enlargement=2.0, threshold=0.5, fixed_size=None, **look):
    chosen = {"enlarge_to": 10_000, "mirrored": False, "turned": "never", "smallest_face": 100_000, **look}
    return ScaledDetector(model.infer, Look(tuple(scales), max_enlargement, **chosen), threshold, fixed_size)


PICTURES = [
    pytest.param(400, 300, (100, 60, 200, 180), id="landscape"),
    pytest.param(300, 400, (60, 100, 180, 200), id="portrait"),
    pytest.param(256, 256, (0, 0, 256, 256), id="square, all face"),
    pytest.param(20, 12, (4, 2, 12, 9), id="tiny"),
    pytest.param(1, 1, (0, 0, 1, 1), id="one pixel"),
    pytest.param(3000, 1500, (1800, 600, 2400, 1200), id="huge"),
    pytest.param(3000, 20, (1000, 0, 2000, 20), id="strip"),
    pytest.param(20, 3000, (0, 1000, 20, 2000), id="upright strip"),
    pytest.param(401, 299, (301, 199, 401, 299), id="odd, in the corner"),
]


@pytest.mark.parametrize("fixed_size", [None, (256, 256), (320, 192), (64, 64)])
@pytest.mark.parametrize(("width", "height", "face"), PICTURES)
def test_boxes_come_back_in_pixels_of_the_picture(width, height, face, fixed_size):
    model = Model()
    seen = detector(model, fixed_size=fixed_size).detect(picture(width, height, face))
    assert len(seen) == 1
    # Within two pixels of the coarsest canvas, and never outside the picture.
    coarsest = 2 * max(1, *(max(height / h, width / w) for h, w in model.contents()))
    assert np.abs(seen.boxes_xyxy[0] - face).max() <= coarsest
    assert seen.scores == pytest.approx([0.9])
    x1, y1, x2, y2 = seen.boxes_xyxy[0]
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height


@given(st.integers(1, 700), st.integers(1, 700), st.none() | st.tuples(st.integers(32, 300), st.integers(32, 300)))
def test_a_face_as_large_as_the_picture_comes_back_as_the_whole_picture(width, height, fixed_size):
    seen = detector(Model(), fixed_size=fixed_size).detect(picture(width, height, (0, 0, width, height)))
    assert seen.boxes_xyxy == pytest.approx(np.array([[0, 0, width, height]]), abs=0.01)


@given(st.integers(1, 700), st.integers(1, 700), st.lists(st.integers(64, 512), min_size=1, max_size=3))
def test_canvases_have_few_shapes_and_sides_that_the_model_takes(width, height, scales):
    model = Model()
    detector(model, scales=scales, max_enlargement=3).detect(picture(width, height, (0, 0, 1, 1)))
    assert 1 <= len(model.canvases) <= len(scales)
    for canvas, (rows, columns) in zip(model.canvases, model.contents(), strict=True):
        assert canvas.dtype == np.uint8
        assert canvas.shape[0] % MULTIPLE == canvas.shape[1] % MULTIPLE == 0
        assert canvas.shape[0] - rows < MULTIPLE
        assert canvas.shape[1] - columns < MULTIPLE
        # The picture keeps its proportions, to a pixel.
        factor = max(rows, columns) / max(height, width)
        assert rows == pytest.approx(max(1, height * factor), abs=1)
        assert columns == pytest.approx(max(1, width * factor), abs=1)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([1, 1.5, 2, 4]))
def test_a_small_picture_is_enlarged_up_to_the_cap_only(width, height, cap):
    model = Model()
    detector(model, scales=(256,), max_enlargement=cap).detect(picture(width, height, (0, 0, 1, 1)))
    (size,) = model.contents()
    longer = max(width, height)
    assert max(size) == round(min(256, cap * longer))


@pytest.mark.parametrize(
    ("longer", "scales", "cap", "passes"),
    [
        (1000, (128, 190, 256), 2, 2),
        (1000, (128, 194, 300), 2, 3),
        (1000, (128, 256), 2, 2),
        (1000, (256, 128), 2, 2),
        (1000, (128, 135, 256), 2, 2),
        (1000, (256, 256), 2, 1),
        (64, (128, 256), 2, 1),
        (100, (128, 512), 2, 2),
        (10, (64, 128, 256, 512), 2, 1),
        (1000, (128, 256, 512), 2, 3),
    ],
)
def test_passes_at_nearly_one_size_are_one_pass(longer, scales, cap, passes):
    model = Model()
    detector(model, scales=scales, max_enlargement=cap).detect(picture(longer, longer // 2, (0, 0, 5, 5)))
    assert len(model.canvases) == passes


@pytest.mark.parametrize(
    ("longer", "enlarge_to", "largest"),
    [(100, 150, 150), (100, 300, 200), (400, 300, 400), (1000, 300, 640), (600, 300, 600)],
)
def test_a_picture_is_enlarged_to_a_certain_side_and_beyond_it_only_its_own_pixels_are_looked_at(
    longer, enlarge_to, largest
):
    model = Model()
    detector(model, scales=(64, 640), enlarge_to=enlarge_to).detect(picture(longer, longer // 2, (0, 0, 1, 1)))
    assert max(max(size) for size in model.contents()) == largest


def test_a_model_of_fixed_size_gets_that_size_once():
    model = Model()
    detector(model, scales=(128, 256), fixed_size=(96, 160)).detect(picture(1000, 200, (0, 0, 100, 100)))
    assert [canvas.shape for canvas in model.canvases] == [(96, 160, 3)]


@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 400), st.integers(32, 400))
def test_any_picture_fits_into_a_fixed_size(width, height, rows, columns):
    model = Model()
    detector(model, fixed_size=(rows, columns)).detect(picture(width, height, (0, 0, 1, 1)))
    assert model.canvases[0].shape == (rows, columns, 3)


def test_detections_below_the_threshold_are_dropped_and_at_it_kept():
    face = (100, 60, 200, 180)
    below, at = (detector(Model(score), threshold=0.5) for score in (0.4999, 0.5))
    assert len(below.detect(picture(400, 300, face))) == 0
    assert len(at.detect(picture(400, 300, face))) == 1


def test_what_only_one_pass_finds_is_kept():
    def infer(canvas):
        side = canvas.shape[1]
        return found((10, 10, 30, 30)) if side < 200 else found((100, 100, 110, 110))

    seen = detector(Answers(infer)).detect(picture(512, 256, (0, 0, 1, 1)))
    assert sorted(seen.boxes_xyxy.tolist()) == [[40, 40, 120, 120], [200, 200, 220, 220]]


def test_the_picture_is_not_modified():
    pixels = picture(400, 300, (100, 60, 200, 180))
    before = pixels.copy()
    pixels.flags.writeable = False
    detector(Model()).detect(pixels)
    assert np.array_equal(pixels, before)


def test_an_error_of_the_model_is_not_a_picture_without_faces():
    def infer(canvas):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        detector(Answers(infer), scales=(128,)).detect(picture(64, 64, (0, 0, 1, 1)))


@pytest.mark.parametrize(
    "box",
    [
        (math.nan, 0, 10, 10),
        (0, math.nan, 10, 10),
        (0, 0, math.nan, 10),
        (0, 0, 10, math.nan),
        (10, 0, 5, 10),
        (0, 10, 10, 5),
    ],
)
def test_a_box_that_cannot_be_hidden_is_an_error_and_not_a_picture_without_that_face(box):
    def infer(canvas):
        return found((1, 1, 9, 9), box)

    with pytest.raises(DetectionFailed, match="box"):
        detector(Answers(infer), scales=(128,)).detect(picture(64, 64, (0, 0, 1, 1)))


def test_sides_are_padded_to_the_next_multiple_and_not_further():
    model = Model()
    for side in (MULTIPLE - 1, MULTIPLE, MULTIPLE + 1):
        detector(model, scales=(10_000,), max_enlargement=1).detect(picture(side, side, (0, 0, 1, 1)))
    assert [c.shape[0] for c in model.canvases] == [MULTIPLE, MULTIPLE, 2 * MULTIPLE]
    assert math.gcd(*(c.shape[0] for c in model.canvases)) == MULTIPLE


def test_a_score_that_is_no_number_is_an_error_and_not_a_picture_without_that_face():
    def infer(canvas):
        return Detections(np.array([[1, 1, 9, 9]], np.float32), np.array([np.nan], np.float32))

    with pytest.raises(DetectionFailed):
        detector(Answers(infer), scales=(64,)).detect(np.zeros((64, 64, 3), np.uint8))


# --- sightings ------------------------------------------------------------------------------------------------


@given(detections())
def test_every_box_that_was_found_is_a_sighting_of_the_face_that_covers_it(some):
    merged = merge(some)
    seen = merged.seen
    assert sorted(seen.boxes_xyxy.tolist()) == sorted(some.boxes_xyxy.tolist())
    around = merged.boxes_xyxy[seen.face]
    assert (around[:, :2] <= seen.boxes_xyxy[:, :2]).all()
    assert (around[:, 2:] >= seen.boxes_xyxy[:, 2:]).all()
    assert set(seen.face.tolist()) == set(range(len(merged)))


@given(detections(), st.data())
def test_chosen_faces_keep_their_own_sightings(some, data):
    merged = merge(some)
    chosen = data.draw(st.permutations(range(len(merged))))[: data.draw(st.integers(0, len(merged)))]
    picked = merged[np.array(chosen, int)]
    assert picked.scores.tolist() == merged.scores[chosen].tolist()
    for row, original in enumerate(chosen):
        before, after = merged.seen.face == original, picked.seen.face == row
        assert picked.seen.boxes_xyxy[after].tolist() == merged.seen.boxes_xyxy[before].tolist()


@given(detections())
def test_a_clipped_face_keeps_its_sightings_whole(some):
    clipped = clip(some, 40, 40)
    kept = {tuple(box) for box in clipped.seen.boxes_xyxy.tolist()}
    assert kept <= {tuple(box) for box in some.boxes_xyxy.tolist()}
    assert len(clipped.seen) == len(clipped)


def test_joining_merged_detections_keeps_every_sighting():
    one = merge(found((0, 0, 10, 10), (1, 0, 10, 11)))
    other = merge(found((50, 50, 60, 60), (50, 51, 60, 61), (80, 80, 90, 90)))
    joined = Detections.joined([one, other])
    assert joined.seen.face.tolist() == [0, 0, 1, 1, 2]
    assert merge(Detections.joined([joined, one])).seen.face.tolist().count(0) == 4


def test_what_was_seen_weakly_widens_a_face_and_is_none_by_itself():
    weak = Sightings.of(np.array([(0, 0, 10, 14), (50, 50, 60, 60)], np.float32))
    merged = merge(found((0, 0, 10, 10)), weak)
    assert merged.boxes_xyxy.tolist() == [[0, 0, 10, 14]]
    assert merged.seen.boxes_xyxy.tolist() == [[0, 0, 10, 10], [0, 0, 10, 14]]
    assert merged.seen.face.tolist() == [0, 0]
    assert len(merge(Detections.none(), weak)) == 0


@pytest.mark.parametrize(
    ("area", "left"),
    [
        ((0, 0, 10, 10), 1),
        ((0, 0, 10, 5), 1),
        ((0, 0, 10, 4), 2),
        ((0, 0, 100, 100), 0),
        ((4, 4, 6, 6), 2),
        ((60, 60, 70, 70), 2),
    ],
)
def test_a_face_is_left_out_if_half_of_it_lies_in_an_area(area, left):
    assert len(outside(found((0, 0, 10, 10), (50, 50, 60, 60)), [area])) == left


# --- which passes count ---------------------------------------------------------------------------------------


def two_passes(small_pass, large_pass, **options):
    """A detector whose two passes, at 128 and 256 of 512 pixels, answer with boxes in pixels of the pass."""

    def infer(canvas):
        return small_pass if max(canvas.shape) == 128 else large_pass

    seen = detector(Answers(infer), threshold=0.2, **options).detect(picture(512, 512, (0, 0, 1, 1)))
    return seen.boxes_xyxy.tolist()


def square(side, score, at=0):
    return found((at, at, at + side, at + side), scores=[score])


def test_a_small_face_counts_in_the_largest_pass_and_elsewhere_only_if_that_is_sure():
    side = MIN_RELIABLE_SIDE - 1
    assert two_passes(square(side, 0.3), Detections.none()) == []
    assert two_passes(Detections.none(), square(side, 0.3)) == [[0, 0, 2 * side, 2 * side]]
    assert two_passes(square(side, 0.4), Detections.none()) == [[0, 0, 4 * side, 4 * side]]
    assert two_passes(square(MIN_RELIABLE_SIDE, 0.3), Detections.none()) == [
        [0, 0, 4 * MIN_RELIABLE_SIDE, 4 * MIN_RELIABLE_SIDE]
    ]


def test_a_giant_box_counts_in_the_smallest_pass_and_elsewhere_only_if_that_is_sure_or_both_agree():
    def infer_of(small, large):
        return lambda canvas: small if max(canvas.shape) == 512 else large

    def seen(small, large):
        looking = detector(Answers(infer_of(small, large)), scales=(512, 1024), threshold=0.2)
        return looking.detect(picture(1024, 1024, (0, 0, 1, 1))).boxes_xyxy.tolist()

    giant = MAX_RELIABLE_SIDE + 1
    assert seen(Detections.none(), square(giant, 0.3)) == []
    assert seen(Detections.none(), square(giant, 0.4)) == [[0, 0, giant, giant]]
    assert seen(square(giant, 0.3), Detections.none()) == [[0, 0, 2 * giant, 2 * giant]]
    assert seen(square(giant / 2, 0.3), square(giant + 20, 0.3)) == [[0, 0, giant + 20, giant + 20]]


def test_a_pass_alone_takes_any_size():
    def infer(canvas):
        return Detections.joined([square(3, 0.3), square(500, 0.3, at=4)])

    seen = detector(Answers(infer), scales=(512,), threshold=0.2).detect(picture(512, 512, (0, 0, 1, 1)))
    assert len(seen) == 2


def test_what_is_seen_weakly_where_a_face_is_seen_is_hidden_with_it():
    assert two_passes(square(45, WEAK_SCORE_FACTOR * 0.2 + 0.01), square(80, 0.5)) == [[0, 0, 180, 180]]
    assert two_passes(square(45, WEAK_SCORE_FACTOR * 0.2 - 0.01), square(80, 0.5)) == [[0, 0, 160, 160]]


def test_an_edge_may_be_wrong_by_some_pixels_of_the_pass():
    def infer(canvas):
        return square(50, 0.9)

    seen = detector(Answers(infer), scales=(128,)).detect(picture(512, 256, (0, 0, 1, 1)))
    assert seen.seen.slack.tolist() == [4 * EDGE_SLACK]


# --- mirrored and turned --------------------------------------------------------------------------------------

OFF = (60, 20, 100, 90)  # a face that is not in the middle


@pytest.mark.parametrize("fixed_size", [None, (256, 192)])
def test_a_mirrored_pass_finds_the_face_where_it_is(fixed_size):
    model = Model()
    seen = detector(model, scales=(256,), mirrored=True).detect(picture(256, 192, OFF))
    assert len(model.canvases) == 2
    assert len(seen) == 1
    assert seen.seen.boxes_xyxy == pytest.approx(np.array([OFF, OFF]), abs=1)


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("fixed_size", [None, (256, 192)])
def test_a_face_that_only_a_turned_pass_shows_is_found_where_it_is_with_its_top(turn, fixed_size):
    """The model knows faces by a bright corner at their upper left, and tells a landmark there."""

    def infer(canvas):
        rows, columns = np.nonzero(canvas[..., 0] > 200)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        x, y = columns.mean(), rows.mean()
        if abs(canvas[int(box[1]) + 1, int(box[0]) + 1, 1]) < 250:
            return Detections.none()
        landmarks = np.array([[[x, y - 10], [x, y - 10], [x, y], [x, y + 10], [x, y + 10]]], np.float32)
        return Detections(box[None], np.array([0.9], np.float32), Sightings.of(box[None], landmarks))

    standing = np.full((192, 256, 3), GROUND, np.uint8)
    standing[80:120, 60:100] = (FACE, 0, 0)
    standing[80:90, 60:70] = FACE
    lying = np.ascontiguousarray(np.rot90(standing, -turn))
    looking = detector(Answers(infer), scales=(256,), fixed_size=fixed_size, turned="doubt")
    seen = looking.detect(lying)
    assert len(seen) == 1
    x1, y1, x2, y2 = seen.boxes_xyxy[0].round().astype(int)
    assert (lying[y1:y2, x1:x2, 0] > 200).mean() > 0.9
    assert (lying[..., 0] > 200).sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.1)
    expected = {1: (1, 0), 2: (0, 1), 3: (-1, 0)}[turn]
    assert seen.seen.up[0] / np.abs(seen.seen.up[0]).max() == pytest.approx(expected, abs=0.1)


def directions(up):
    """A model that sees one face in each canvas, whose eyes are `up` of its mouth, and keeps the canvases."""
    seen = []

    def infer(canvas):
        seen.append(canvas)
        box = np.array([[20, 20, 60, 60]], np.float32)
        landmarks = 40 + np.array([[up, up, (0, 0), (0, 0), (0, 0)]], np.float32)
        return Detections(box, np.array([0.9], np.float32), Sightings.of(box, landmarks))

    return infer, seen


@pytest.mark.parametrize(
    ("turned", "up", "passes"),
    [
        ("never", (16, 0), 2),
        ("doubt", (0, -16), 2),
        ("doubt", (8, -16), 2),
        ("doubt", (math.nan, math.nan), 2),
        ("doubt", (16, 0), 5),
        ("doubt", (0, 16), 5),
        ("doubt", (0, -2), 5),
        ("always", (0, -16), 5),
    ],
)
def test_turned_passes_are_made_when_a_face_does_not_stand_upright(turned, up, passes):
    infer, seen = directions(up)
    detector(Answers(infer), turned=turned).detect(picture(256, 256, (0, 0, 1, 1)))
    assert len(seen) == passes


def test_turned_passes_are_made_when_nothing_is_found_and_not_when_they_are_not_wanted():
    for turned, passes in (("never", 2), ("doubt", 5), ("always", 5)):
        model = Model()
        detector(model, turned=turned).detect(np.full((256, 256, 3), GROUND, np.uint8))
        assert len(model.canvases) == passes


def test_a_picture_that_shows_clearly_more_when_turned_is_looked_at_so_at_every_scale():
    shapes = []

    def infer(canvas):
        shapes.append(canvas.shape)
        upright = canvas.shape[1] > canvas.shape[0]
        return square(60, 0.9) if upright else square(50, 0.9 / MIN_TURNED_GAIN - 0.01, at=50)

    detector(Answers(infer), turned="always").detect(np.full((256, 128, 3), GROUND, np.uint8))
    # Two upright; at the small scale on both sides and upside down; and both scales on the better side.
    assert len(shapes) == 2 + 3 + 2


def test_turned_passes_are_made_when_no_face_is_certain():
    for score, passes in ((0.85, 2), (0.75, 5)):
        model = Model(score)
        detector(model, turned="doubt").detect(picture(256, 256, (60, 60, 120, 120)))
        assert len(model.canvases) == passes


@pytest.mark.parametrize(("score", "sightings"), [(0.89, 1), (0.95, 4)])
def test_an_upright_face_that_turned_passes_see_worse_is_hidden_as_the_upright_pass_saw_it(score, sightings):
    """The turned passes see the same place, the middle, but at their best no better, and not clearly more."""
    seen = []

    def infer(canvas):
        seen.append(canvas)
        one = found((40, 40, 88, 88), scores=[0.9 if len(seen) == 1 else score])
        return one if len(seen) > 1 else Detections.joined([one, square(20, 0.9)])

    shown = detector(Answers(infer), scales=(128,), turned="always").detect(np.full((128, 128, 3), GROUND, np.uint8))
    assert len(seen) == 4
    assert len(shown) == 2
    assert len(shown.seen) == sightings + 1


def test_a_turned_pass_counts_only_where_it_is_sure():
    def infer(canvas):
        return square(50, 0.3) if canvas.shape[1] > canvas.shape[0] else Detections.none()

    seen = detector(Answers(infer), scales=(128,), threshold=0.2, turned="always")
    assert len(seen.detect(np.full((128, 64, 3), GROUND, np.uint8))) == 0


@settings(max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), factor=st.floats(0.02, 2.5))
def test_a_resized_picture_has_the_size_that_it_should(width, height, factor):
    picture = np.full((height, width, 3), 77, np.uint8)

    smaller = Halves(picture).resized(factor)

    assert smaller.shape == (max(1, round(height * factor)), max(1, round(width * factor)), 3)
    assert (smaller == 77).all()


@pytest.mark.parametrize("factor", [0.08, 0.24, 0.5, 0.53, 0.7])
def test_a_picture_becomes_smaller_without_leaving_pixels_out(factor):
    """What is somewhere is seen, and stays where it is."""
    random = np.random.default_rng(1)
    for row, column in zip(random.integers(0, 798, 40), random.integers(0, 1200, 40), strict=True):
        dot = np.zeros((801, 1203, 3), np.uint8)
        dot[row : row + 3, column : column + 3] = 255
        seen = np.argwhere(Halves(dot).resized(factor)[..., 0])
        assert len(seen)
        assert (np.abs((seen + 0.5) / factor - (row + 1.5, column + 1.5)) < 2 / factor + 2).all()

    picture = random.integers(0, 256, (801, 1203, 3), np.uint8)
    picture[401:, 601:] //= 4
    smaller = Halves(picture).resized(factor)
    whole = cv2.resize(picture, smaller.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert smaller.std() < 1.65 * whole.std()  # of every pixel by itself; interpolation alone has 8 times at 0.08
    middle = tuple(side // 2 for side in smaller.shape[:2])
    for rows in (slice(0, middle[0] - 2), slice(middle[0] + 2, None)):
        for columns in (slice(0, middle[1] - 2), slice(middle[1] + 2, None)):
            assert smaller[rows, columns].mean() == pytest.approx(whole[rows, columns].mean(), abs=2)


# --- animations -----------------------------------------------------------------------------------------------

NONE = Detections.none()
FACES_BOX = (10, 10, 40, 40)


def covering(detections, box):
    """Whether one of `detections`, or one of their sightings, covers `box` to a pixel."""
    seen = np.concatenate([detections.boxes_xyxy, detections.seen.boxes_xyxy])
    return bool(((seen[:, :2] <= np.add(box[:2], 1)) & (seen[:, 2:] >= np.subtract(box[2:], 1))).all(axis=1).any())


def test_a_face_that_flickers_is_hidden_in_the_frame_that_lacks_it_too():
    face, moved, other = found(FACES_BOX), found((14, 10, 44, 40)), found((80, 10, 110, 40))
    before, here, after = bridged([Detections.joined([face, other]), other, Detections.joined([moved, other])])
    assert (len(before), len(after)) == (2, 2)
    assert sorted(here.boxes_xyxy.tolist()) == [[10, 10, 44, 40], [80, 10, 110, 40]]
    assert {FACES_BOX, (14, 10, 44, 40)} <= {tuple(box) for box in here.seen.boxes_xyxy.tolist()}


@pytest.mark.parametrize("gap", [1, 2, 3, MAX_MISSED_FRAMES, 2 * MAX_MISSED_FRAMES])
def test_a_face_is_hidden_in_all_frames_that_miss_it_between_two_that_show_it(gap):
    shown = bridged([found(FACES_BOX), *[NONE] * gap, found(FACES_BOX)])
    assert [each.boxes_xyxy.tolist() for each in shown] == [[list(FACES_BOX)]] * (gap + 2)


@pytest.mark.parametrize("missed", [1, 2, MAX_MISSED_FRAMES])
@pytest.mark.parametrize("sightings", [1, 3])
def test_a_face_is_hidden_in_the_frames_before_it_is_first_found_and_after_it_is_last_found(missed, sightings):
    face = found(FACES_BOX)
    for frames in ([NONE] * missed + [face] * sightings, [face] * sightings + [NONE] * missed):
        assert [len(each) for each in bridged(frames)] == [1] * (missed + sightings)


def test_a_face_is_not_hidden_for_ever():
    face = found(FACES_BOX)
    shown = bridged([NONE] * 50 + [face] * 3 + [NONE] * 50)
    clear = [0] * (50 - MAX_MISSED_FRAMES)
    assert [len(each) for each in shown] == [*clear, *[1] * (3 + 2 * MAX_MISSED_FRAMES), *clear]


@pytest.mark.parametrize("step", [(3, 0), (-7, 5), (20, 0), (0, 25)])
@pytest.mark.parametrize("gap", [2, 5, MAX_MISSED_FRAMES])
def test_a_face_that_moves_is_hidden_where_it_is_while_it_is_missed(step, gap):
    """Between two sightings; and before and after them, as it went on moving."""

    def place(frame):
        return tuple(np.add((300, 300, 330, 330), np.tile(np.multiply(step, frame), 2)).tolist())

    frames = [found(place(number)) for number in range(4 + gap + 4)]
    for number in (0, 1, *range(4, 4 + gap), len(frames) - 1):
        frames[number] = NONE
    for number, shown in enumerate(bridged(frames)):
        assert covering(shown, place(number))


def test_a_face_that_moves_between_two_single_sightings_is_hidden_on_its_way():
    frames = [found(FACES_BOX), NONE, NONE, found((70, 10, 100, 40))]
    for number, shown in enumerate(bridged(frames)):
        assert covering(shown, (10 + 20 * number, 10, 40 + 20 * number, 40))
        assert covering(shown, FACES_BOX)


def test_a_newcomer_beside_a_face_that_is_missed_does_not_expose_it():
    face, beside = found(FACES_BOX), found((42, 10, 72, 40))
    for shown in bridged([face, beside, beside, Detections.joined([face, beside])]):
        assert covering(shown, FACES_BOX)


def test_a_missed_face_keeps_its_top_its_slack_and_its_landmarks_where_it_moves():
    landmarks = np.array([[(30, 15), (30, 35), (25, 25), (15, 15), (15, 35)]], np.float32)
    frames = [
        Detections(box, np.ones(1, np.float32), replace(Sightings.of(box, landmarks + by), slack=np.full(1, 3.0)))
        for by in (0, 4)
        for box in [np.array([FACES_BOX], np.float32) + by]
    ]
    shown = bridged([*frames, NONE])[2]
    assert shown.seen.boxes_xyxy.tolist() == [[14, 14, 44, 44], [18, 18, 48, 48]]
    assert np.array_equal(shown.seen.landmarks, np.concatenate([landmarks + 4, landmarks + 8]))
    assert shown.seen.slack.tolist() == [3, 3]


@given(st.lists(detections(most=4), max_size=6))
def test_no_frame_loses_what_it_shows(frames):
    shown = bridged(frames)
    assert len(shown) == len(frames)
    for before, after in zip(frames, shown, strict=True):
        kept = {tuple(box) for box in after.seen.boxes_xyxy.tolist()}
        assert {tuple(box) for box in before.seen.boxes_xyxy.tolist()} <= kept
        assert after is before or len(after.seen) > len(before.seen)


def test_frames_that_miss_nothing_are_as_they_were():
    frames = [found((10 + number, 10, 40 + number, 40)) for number in range(30)]
    assert all(one is other for one, other in zip(bridged(frames), frames, strict=True))


# --- many faces -----------------------------------------------------------------------------------------------


def merged_one_by_one(some, weak):
    """`merge` as it reads: the strongest box takes all that overlap it, each compared with each."""
    order = np.argsort(-some.scores, kind="stable")
    boxes = np.concatenate([some.boxes_xyxy[order], weak.boxes_xyxy])
    face = np.full(len(boxes), -1)
    for row in range(len(some)):
        if face[row] < 0:
            same = (face < 0) & (overlap(boxes[row], boxes) >= MERGE_IOU)
            same[row] = True
            face[same] = face.max(initial=-1) + 1
    numbers = range(face.max(initial=-1) + 1)
    around = [(*boxes[face == number, :2].min(axis=0), *boxes[face == number, 2:].max(axis=0)) for number in numbers]
    firsts = [int(np.flatnonzero(face == number)[0]) for number in numbers]
    face[order] = face[: len(order)].copy()  # sightings stay in their order
    return np.array(around, np.float32).reshape(-1, 4), some.scores[order][firsts], face


def crowd(seed):
    """Up to 300 boxes of several passes: some agree, others touch, nest, repeat or stand alone; and weak sightings."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 301))
    corners = random.uniform(-20, random.choice([60, 300, 3000]), (count, 2))
    sides = random.choice([6, 25, 100], (count, 1)) * random.uniform(0.5, 2, (count, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    again = random.integers(0, count, count // 3)
    boxes[: len(again)] = boxes[again] + random.choice([0, 1, 3]) * random.uniform(-1, 1, (len(again), 1))
    if random.random() < 0.3:
        boxes = (boxes / 10).round() * 10  # touching, and without area
    scores = random.random(count).round(int(random.integers(1, 4)))  # some are equal
    weak = boxes[: count // 2] + random.uniform(-2, 2, (count // 2, 1))
    return found(*boxes, scores=scores), Sightings.of(weak.astype(np.float32))


@pytest.mark.parametrize("seed", range(40))
def test_boxes_are_merged_as_if_each_was_compared_with_each(seed):
    some, weak = crowd(seed)
    boxes, scores, face = merged_one_by_one(some, weak)

    merged = merge(some, weak)

    assert np.array_equal(merged.boxes_xyxy, boxes)
    assert np.array_equal(merged.scores, scores)
    assert merged.seen.face.tolist() == face[face >= 0].tolist()
    expected = [bool((overlap(box, merged.boxes_xyxy) >= MERGE_IOU).any()) for box in some.boxes_xyxy]
    assert _meets(some, merged).tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_box_is_dropped_if_its_middle_is_in_a_stronger_one_as_if_each_was_compared_with_each(seed):
    some, _ = crowd(seed)
    known, _ = crowd(seed + 1000)
    middles = (some.boxes_xyxy[:, :2] + some.boxes_xyxy[:, 2:]) / 2
    expected = [
        not any(
            (middle > box[:2]).all() and (middle < box[2:]).all() and theirs > score
            for box, theirs in zip(known.boxes_xyxy, known.scores, strict=True)
        )
        for middle, score in zip(middles, some.scores, strict=True)
    ]
    assert _unless_better(some, known).boxes_xyxy.tolist() == some.boxes_xyxy[expected].tolist()


@pytest.mark.parametrize("columns", [1, 60, 3600])
def test_thousands_of_faces_are_merged_by_comparing_each_with_those_near_it(columns, monkeypatch):
    places = np.arange(3600)
    corners = 20 * np.stack([places % columns, places // columns], axis=1)
    one = np.concatenate([corners, corners + 20], axis=1)
    several = found(*one, *one + 1, *one + 2, scores=np.linspace(1, 0.2, 3 * len(one)))
    compared = []
    kept = faces.overlap
    monkeypatch.setattr(faces, "overlap", lambda box, boxes: compared.append(len(boxes)) or kept(box, boxes))

    merged = merge(several)

    assert np.array_equal(merged.boxes_xyxy, np.add(one, (0, 0, 2, 2)))
    assert sum(compared) <= 1000 * len(one)
    assert _meets(several, merged).all()
    assert sum(compared) <= 3000 * len(one)


def test_turned_passes_over_thousands_of_faces_need_no_table_of_all_pairs():
    corners = 20 * np.stack(divmod(np.arange(6400), 80), axis=1)
    known = found(*np.concatenate([corners, corners + 20], axis=1))
    tracemalloc.start()
    try:
        assert len(_unless_better(replace(known, scores=known.scores - 0.1), known)) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000
