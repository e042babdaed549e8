"""Detection at several scales: boxes come back in pixels of the picture, once for each face, within it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DetectionFailed
from worker.detector import MERGE_IOU, MULTIPLE, PADDING, Detections, ScaledDetector, clip, merge, overlap

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


def picture(width, height, face):
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    x1, y1, x2, y2 = face
    pixels[y1:y2, x1:x2] = FACE
    return pixels


def detector(model, scales=(128, 256), max_enlargement=2.0, threshold=0.5, fixed_size=None):
    return ScaledDetector(model.infer, scales, max_enlargement, threshold, fixed_size)


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

    seen = ScaledDetector(infer, (128, 256), 2.0, 0.5).detect(picture(512, 256, (0, 0, 1, 1)))
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
        ScaledDetector(infer, (128,), 2.0, 0.5).detect(picture(64, 64, (0, 0, 1, 1)))


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
        ScaledDetector(infer, (128,), 2.0, 0.5).detect(picture(64, 64, (0, 0, 1, 1)))


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
        ScaledDetector(infer, [64], 2.0, 0.5).detect(np.zeros((64, 64, 3), np.uint8))
