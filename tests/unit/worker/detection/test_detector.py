"""Detection at several scales: one box for each face, within the picture, in its pixels."""

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DetectionFailed
from tests.drawn import found
from worker.detection.canvas import PADDING_GRAY, SIDE_MULTIPLE
from worker.detection.detector import (
    CLOSER_SCORE_FACTOR,
    EDGE_SLACK,
    MAX_RELIABLE_SIDE,
    MAX_SMALL_SIDE,
    MAX_UNSURE_SIDE,
    MIN_LARGE_SIDE,
    MIN_RELIABLE_SIDE,
    MIN_TURNED_GAIN,
    SMALL_SCORE_FACTOR,
    WEAK_SCORE_FACTOR,
    ScaledDetector,
    _without_weaker,
)
from worker.detection.faces import Detections, Sightings, box_sides
from worker.detection.presets import PassSettings
from worker.detection.tiled import ModelInput, one_by_one

# --- scales

FACE = 255
GROUND = 30


class Model:
    """A model that finds the white rectangle, in pixels of the canvas, and keeps its canvases."""

    def __init__(self, score=0.9):
        self.canvases = []
        self._score = score

    def infer(self, canvas):
        self.canvases.append(canvas)
        rows, columns = np.nonzero(canvas[..., 0] > (FACE + PADDING_GRAY) // 2)
        if not len(rows):
            return Detections.none()
        return found(
            (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), scores=[self._score]
        )

    def contents(self):
        """Yield (height, width) of the picture in each canvas."""
        for canvas in self.canvases:
            inside = (canvas != PADDING_GRAY).any(axis=2)
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
    chosen = {
        "enlarge_to": 10_000,
        "mirrored": False,
        "turned": "never",
        "smallest_face": 100_000,
        **look,
    }
    return ScaledDetector(
        one_by_one(model.infer),
        PassSettings(tuple(scales), max_enlargement, **chosen),
        threshold,
        ModelInput(fixed_size),
    )


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


@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.none() | st.tuples(st.integers(32, 300), st.integers(32, 300)),
)
def test_a_face_as_large_as_the_picture_comes_back_as_the_whole_picture(width, height, fixed_size):
    seen = detector(Model(), fixed_size=fixed_size).detect(
        picture(width, height, (0, 0, width, height))
    )
    assert seen.boxes_xyxy == pytest.approx(np.array([[0, 0, width, height]]), abs=0.01)


@given(
    st.integers(1, 700), st.integers(1, 700), st.lists(st.integers(64, 512), min_size=1, max_size=3)
)
def test_canvases_have_few_shapes_and_sides_that_the_model_takes(width, height, scales):
    model = Model()
    detector(model, scales=scales, max_enlargement=3).detect(picture(width, height, (0, 0, 1, 1)))
    assert 1 <= len(model.canvases) <= len(scales)
    for canvas, (rows, columns) in zip(model.canvases, model.contents(), strict=True):
        assert canvas.dtype == np.uint8
        assert canvas.shape[0] % SIDE_MULTIPLE == canvas.shape[1] % SIDE_MULTIPLE == 0
        assert canvas.shape[0] - rows < SIDE_MULTIPLE
        assert canvas.shape[1] - columns < SIDE_MULTIPLE
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
    detector(model, scales=scales, max_enlargement=cap).detect(
        picture(longer, longer // 2, (0, 0, 5, 5))
    )
    assert len(model.canvases) == passes


@pytest.mark.parametrize(
    ("longer", "enlarge_to", "largest"),
    [(100, 150, 150), (100, 300, 200), (400, 300, 400), (1000, 300, 640), (600, 300, 600)],
)
def test_a_picture_is_enlarged_to_a_certain_side_and_beyond_it_only_its_own_pixels_are_looked_at(
    longer, enlarge_to, largest
):
    model = Model()
    detector(model, scales=(64, 640), enlarge_to=enlarge_to).detect(
        picture(longer, longer // 2, (0, 0, 1, 1))
    )
    assert max(max(size) for size in model.contents()) == largest


def test_a_model_of_fixed_size_gets_that_size_once():
    model = Model()
    detector(model, scales=(128, 256), fixed_size=(96, 160)).detect(
        picture(1000, 200, (0, 0, 100, 100))
    )
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


def test_a_face_that_only_one_pass_finds_is_kept():
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


def test_a_score_that_is_no_number_is_an_error_and_not_a_picture_without_that_face():
    def infer(canvas):
        return Detections(np.array([[1, 1, 9, 9]], np.float32), np.array([np.nan], np.float32))

    with pytest.raises(DetectionFailed):
        detector(Answers(infer), scales=(64,)).detect(np.zeros((64, 64, 3), np.uint8))


# --- which passes count


def two_passes(small_pass, large_pass, **options):
    """Return the boxes of a detector whose two passes answer as given, in pixels of the pass.

    The passes show a picture of 512 pixels at 128 and at 256.
    """

    def infer(canvas):
        return small_pass if max(canvas.shape) == 128 else large_pass

    seen = detector(Answers(infer), threshold=0.2, **options).detect(
        picture(512, 512, (0, 0, 1, 1))
    )
    return seen.boxes_xyxy.tolist()


def square(side, score, at=0):
    return found((at, at, at + side, at + side), scores=[score])


def test_the_coarsest_pass_counts_where_it_is_confident_of_a_large_face_or_certain_of_a_small_one():
    side = MIN_LARGE_SIDE
    assert two_passes(square(side, 0.3), Detections.none()) == []
    assert two_passes(square(side, 0.4), Detections.none()) == [[0, 0, 4 * side, 4 * side]]
    assert two_passes(square(side - 1, 0.6), Detections.none()) == []
    assert two_passes(square(20, 0.7), Detections.none()) == [[0, 0, 80, 80]]
    assert two_passes(Detections.none(), square(5, 0.3)) == [[0, 0, 10, 10]]


def test_a_small_face_counts_in_a_pass_between_only_if_that_is_sure():
    def seen(answer):
        def infer(canvas):
            return answer if max(canvas.shape) == 256 else Detections.none()

        looking = detector(Answers(infer), scales=(128, 256, 512), threshold=0.2)
        return looking.detect(picture(512, 512, (0, 0, 1, 1))).boxes_xyxy.tolist()

    side = MIN_RELIABLE_SIDE - 1
    assert seen(square(side, 0.3)) == []
    assert seen(square(side, 0.4)) == [[0, 0, 2 * side, 2 * side]]
    reliable = MIN_RELIABLE_SIDE
    assert seen(square(reliable, 0.3)) == [[0, 0, 2 * reliable, 2 * reliable]]


def test_a_giant_box_counts_only_if_a_pass_is_sure_of_it():
    def infer_of(small, large):
        return lambda canvas: small if max(canvas.shape) == 512 else large

    def seen(small, large):
        looking = detector(Answers(infer_of(small, large)), scales=(512, 1024), threshold=0.2)
        return looking.detect(picture(1024, 1024, (0, 0, 1, 1))).boxes_xyxy.tolist()

    giant = MAX_RELIABLE_SIDE + 1
    assert seen(Detections.none(), square(giant, 0.3)) == []
    assert seen(Detections.none(), square(giant, 0.4)) == [[0, 0, giant, giant]]
    assert seen(square(giant, 0.4), Detections.none()) == [[0, 0, 2 * giant, 2 * giant]]


def test_a_pass_alone_takes_any_size():
    def infer(canvas):
        return Detections.joined([square(3, 0.3), square(500, 0.3, at=4)])

    seen = detector(Answers(infer), scales=(512,), threshold=0.2).detect(
        picture(512, 512, (0, 0, 1, 1))
    )
    assert len(seen) == 2


def test_a_weak_sighting_of_the_finest_pass_at_a_face_is_hidden_with_it():
    face, weak = square(80, 0.9), WEAK_SCORE_FACTOR * 0.2
    assert two_passes(face, square(180, weak + 0.01)) == [[0, 0, 360, 360]]
    assert two_passes(face, square(180, weak - 0.01)) == [[0, 0, 320, 320]]
    assert two_passes(square(90, weak + 0.01), square(160, 0.5)) == [[0, 0, 320, 320]]


def test_a_small_face_needs_a_lower_score_than_a_large_one():
    small, large = MAX_SMALL_SIDE - 1, MAX_SMALL_SIDE
    least = SMALL_SCORE_FACTOR * 0.2
    assert two_passes(Detections.none(), square(small, least + 0.01)) == [
        [0, 0, 2 * small, 2 * small]
    ]
    assert two_passes(Detections.none(), square(small, least - 0.01)) == []
    assert two_passes(Detections.none(), square(large, least + 0.01)) == []


# --- closer passes


def closer(answer, closer_answer, **options):
    """Return the boxes of a detector with one pass at 256 pixels, and the shapes of its canvases.

    The pass sees `answer`. Tiles of the closer one, at 512 pixels and more, see `closer_answer`.
    """
    shapes = []

    def infer(canvas):
        shapes.append(canvas.shape[:2])
        return answer if len(shapes) == 1 else closer_answer

    options = {"enlarge_to": 256, "closer_to": 512, **options}
    looking = detector(Answers(infer), scales=(256,), threshold=0.2, **options)
    seen = looking.detect(np.full((256, 256, 3), GROUND, np.uint8))
    return seen.boxes_xyxy.tolist(), shapes


@pytest.mark.parametrize(
    ("side", "score", "passes"),
    [
        (MIN_RELIABLE_SIDE - 1, 0.9, 2),
        (MIN_RELIABLE_SIDE, 0.9, 1),
        (MAX_UNSURE_SIDE - 1, 0.13, 2),
        (MAX_UNSURE_SIDE, 0.13, 1),
        (MAX_UNSURE_SIDE - 1, 0.11, 1),
    ],
)
def test_a_closer_pass_follows_where_something_is_small_or_doubtful(side, score, passes):
    _, shapes = closer(square(side, score), Detections.none())
    assert len(shapes) == passes


def test_a_closer_pass_finds_what_the_whole_picture_only_suggests():
    suggested, clear = square(20, 0.13), square(40, CLOSER_SCORE_FACTOR * 0.2 + 0.01)
    assert closer(suggested, Detections.none())[0] == []
    assert closer(suggested, clear)[0] == [[0, 0, 20, 20]]
    assert closer(suggested, clear, closer_to=0)[0] == []


def test_an_edge_may_be_wrong_by_some_pixels_of_the_pass():
    def infer(canvas):
        return square(50, 0.9)

    seen = detector(Answers(infer), scales=(128,)).detect(picture(512, 256, (0, 0, 1, 1)))
    assert seen.sightings.slack.tolist() == [4 * EDGE_SLACK]


# --- mirrored and turned

OFF = (60, 20, 100, 90)  # a face that is not in the middle


@pytest.mark.parametrize("fixed_size", [None, (256, 192)])
def test_a_mirrored_pass_finds_the_face_where_it_is(fixed_size):
    model = Model()
    seen = detector(model, scales=(256,), mirrored=True).detect(picture(256, 192, OFF))
    assert len(model.canvases) == 2
    assert len(seen) == 1
    assert seen.sightings.boxes_xyxy == pytest.approx(np.array([OFF, OFF]), abs=1)


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("fixed_size", [None, (256, 192)])
def test_a_face_that_only_a_turned_pass_shows_is_found_where_it_is_with_its_top(turn, fixed_size):
    """The model detects faces by a bright corner at their upper left."""

    def infer(canvas):
        rows, columns = np.nonzero(canvas[..., 0] > 200)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        x, y = columns.mean(), rows.mean()
        if abs(canvas[int(box[1]) + 1, int(box[0]) + 1, 1]) < 250:
            return Detections.none()
        landmarks = np.array(
            [[[x, y - 10], [x, y - 10], [x, y], [x, y + 10], [x, y + 10]]], np.float32
        )
        return Detections(
            box[None], np.array([0.9], np.float32), Sightings.of(box[None], landmarks)
        )

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
    assert seen.sightings.up[0] / np.abs(seen.sightings.up[0]).max() == pytest.approx(
        expected, abs=0.1
    )


def directions(up):
    """Return a model that finds one face in each canvas, and the list of its canvases.

    `up` is the way from the mouth of the face to its eyes.
    """
    canvases = []

    def infer(canvas):
        canvases.append(canvas)
        box = np.array([[20, 20, 60, 60]], np.float32)
        landmarks = 40 + np.array([[up, up, (0, 0), (0, 0), (0, 0)]], np.float32)
        return Detections(box, np.array([0.9], np.float32), Sightings.of(box, landmarks))

    return infer, canvases


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
    infer, canvases = directions(up)
    detector(Answers(infer), turned=turned).detect(picture(256, 256, (0, 0, 1, 1)))
    assert len(canvases) == passes


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
    # Two upright passes, three probes at the small scale, and both scales in the best orientation.
    assert len(shapes) == 2 + 3 + 2


def test_a_face_that_only_another_turn_shows_is_hidden_in_a_picture_on_its_side_too():
    """The picture lies on its side, and one face of it on its other side."""
    seen = []

    def infer(canvas):
        seen.append(canvas)
        number = len(seen)  # upright, the three turns, and then the search in the best one
        if number in (2, 5):
            return found((0, 0, 40, 40), (50, 0, 90, 40), scores=[0.9, 0.9])
        return square(40, 0.9, at=70) if number == 4 else Detections.none()

    shown = detector(Answers(infer), scales=(128,), turned="doubt").detect(
        np.full((128, 128, 3), GROUND, np.uint8)
    )
    assert len(seen) == 5
    two, other = [[88, 0, 128, 40], [88, 50, 128, 90]], [70, 18, 110, 58]
    assert sorted(shown.boxes_xyxy.tolist()) == [other, *two]


def test_turned_passes_are_made_when_no_face_is_certain():
    for score, passes in ((0.85, 2), (0.75, 5)):
        model = Model(score)
        detector(model, turned="doubt").detect(picture(256, 256, (60, 60, 120, 120)))
        assert len(model.canvases) == passes


@pytest.mark.parametrize(("score", "sightings"), [(0.89, 1), (0.95, 4)])
def test_an_upright_face_that_turned_passes_see_worse_is_hidden_as_the_upright_pass_saw_it(
    score, sightings
):
    """The probes find the face in the middle, and not clearly more than the upright pass."""
    canvases = []

    def infer(canvas):
        canvases.append(canvas)
        if len(canvases) > 1:
            return found((40, 40, 88, 88), scores=[score])
        return found((40, 40, 88, 88), (0, 0, 20, 20), scores=[0.9, 0.9])

    shown = detector(Answers(infer), scales=(128,), turned="always").detect(
        np.full((128, 128, 3), GROUND, np.uint8)
    )
    assert len(canvases) == 4
    assert len(shown) == 2
    assert len(shown.sightings) == sightings + 1


def test_a_turned_pass_counts_only_where_it_is_sure():
    def infer(canvas):
        return square(50, 0.3) if canvas.shape[1] > canvas.shape[0] else Detections.none()

    seen = detector(Answers(infer), scales=(128,), threshold=0.2, turned="always")
    assert len(seen.detect(np.full((128, 64, 3), GROUND, np.uint8))) == 0


# --- many faces


def crowd(seed):
    """Return up to 300 boxes of several passes, and weak sightings.

    Some boxes agree; others touch, nest, repeat or stand alone.
    """
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 301))
    corners = random.uniform(-20, random.choice([60, 300, 3000]), (count, 2))
    sides = random.choice([6, 25, 100], (count, 1)) * random.uniform(0.5, 2, (count, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    again = random.integers(0, count, count // 3)
    boxes[: len(again)] = boxes[again] + random.choice([0, 1, 3]) * random.uniform(
        -1, 1, (len(again), 1)
    )
    if random.random() < 0.3:
        boxes = (boxes / 10).round() * 10  # touching, and without area
    scores = random.random(count).round(int(random.integers(1, 4)))  # some are equal
    weak = boxes[: count // 2] + random.uniform(-2, 2, (count // 2, 1))
    return found(*boxes, scores=scores), Sightings.of(weak.astype(np.float32))


@pytest.mark.parametrize("seed", range(20))
def test_a_box_is_dropped_if_its_middle_is_in_a_stronger_one_of_its_size_as_if_all_were_compared(
    seed,
):
    some, _ = crowd(seed)
    known, _ = crowd(seed + 1000)
    middles = (some.boxes_xyxy[:, :2] + some.boxes_xyxy[:, 2:]) / 2
    first, last = known.boxes_xyxy[:, :2], known.boxes_xyxy[:, 2:]
    inside = ((middles[:, None] > first) & (middles[:, None] < last)).all(axis=2)
    sides, known_sides = box_sides(some.boxes_xyxy)[:, None], box_sides(known.boxes_xyxy)
    inside &= np.maximum(sides, known_sides) <= 2 * np.minimum(sides, known_sides)
    is_weaker = (inside & (known.scores > some.scores[:, None])).any(axis=1)
    kept = _without_weaker(some, known)
    assert kept.boxes_xyxy.tolist() == some.boxes_xyxy[~is_weaker].tolist()


def test_a_turned_face_around_a_smaller_box_of_an_upright_pass_is_kept():
    known, turned = found((40, 40, 60, 60), scores=[0.9]), found((0, 0, 100, 100), scores=[0.8])
    assert _without_weaker(turned, known).boxes_xyxy.tolist() == [[0, 0, 100, 100]]


def test_turned_passes_over_thousands_of_faces_need_no_table_of_all_pairs():
    corners = 20 * np.stack(divmod(np.arange(6400), 80), axis=1)
    known = found(*np.concatenate([corners, corners + 20], axis=1))
    tracemalloc.start()
    try:
        assert len(_without_weaker(replace(known, scores=known.scores - 0.1), known)) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000


# --- canvases of several passes at once


class Counting(Model):
    """A model that keeps the number of canvases of each call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def infer_all(self, canvases):
        self.calls.append(len(canvases))
        return [self.infer(canvas) for canvas in canvases]


@pytest.mark.parametrize("turned", ["never", "always"])
def test_passes_that_are_made_together_find_the_same(turned):
    settings = PassSettings((128, 256), 2.0, 10_000, mirrored=True, turned=turned)
    pixels = picture(400, 300, (100, 60, 200, 180))
    alone, together = Counting(), Counting()

    expected = ScaledDetector(alone.infer_all, settings, 0.5).detect(pixels)
    found_together = ScaledDetector(
        together.infer_all, settings, 0.5, ModelInput(None, at_once=8)
    ).detect(pixels)

    assert np.array_equal(found_together.boxes_xyxy, expected.boxes_xyxy)
    assert np.array_equal(found_together.scores, expected.scores)
    assert set(alone.calls) == {1}
    assert together.calls == ([4] if turned == "never" else [4, 3])
    assert sum(together.calls) == sum(alone.calls)
