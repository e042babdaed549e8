"""One pass over an image of any size: detections in pixels of the image, within limits."""

import time

import numpy as np
import pytest

from tasks.errors import DetectionFailed, DetectorUnavailable
from worker.detection.canvas import MAX_CANVAS_SIDE, Pyramid
from worker.detection.faces import Detections
from worker.detection.passes import Pass
from worker.detection.tiled import (
    CLOSER_TILE_SIDE,
    MAX_CANVASES,
    MAX_CLOSER_TILES,
    MIN_DIVISIBLE_SIDE,
    TILE_OVERLAP,
    ModelInput,
    TiledModel,
    limited,
    one_by_one,
)


def found(*boxes, score=0.9, left_out=0.0):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes, np.full(len(boxes), score, np.float32), left_out=left_out)


def image(width, height, plan=None):
    return (plan or Pass(1.0)).image_of(Pyramid(np.zeros((height, width, 3), np.uint8)))


class Model:
    """A model that finds the same boxes in each canvas, and keeps the shapes of its canvases."""

    def __init__(self, answer):
        self._answer = answer
        self.shapes = []

    def infer(self, canvas):
        self.shapes.append(canvas.shape[:2])
        return self._answer

    def detect(self, image, **options):
        model = TiledModel(one_by_one(self.infer), 0.3, 0.5, ModelInput(**options))
        return model.detect([image])[0]


def test_detections_of_a_tile_are_in_pixels_of_the_image():
    model = Model(found((100, 100, 140, 150)))
    tiled = model.detect(image(3000, 1000, Pass(1.0, is_coarsest=False)))
    assert tiled.found.boxes_xyxy.tolist() == [[100, 100, 140, 150], [1504, 100, 1544, 150]]
    assert tiled.is_cut.tolist() == [False, False]
    assert not tiled.is_full


def test_a_box_is_cut_at_an_edge_of_a_tile_and_not_at_one_of_the_image():
    model = Model(found((0, 0, 40, 40)))
    tiled = model.detect(image(3000, 1000, Pass(1.0, is_coarsest=False)))
    assert tiled.found.boxes_xyxy[:, 0].tolist() == [0, 1404]
    assert tiled.is_cut.tolist() == [False, True]


def test_detections_below_the_least_score_are_dropped():
    assert len(Model(found((1, 1, 9, 9), score=0.29)).detect(image(64, 64)).found) == 0
    assert len(Model(found((1, 1, 9, 9), score=0.31)).detect(image(64, 64)).found) == 1


def test_the_tiles_of_the_coarsest_pass_share_half_of_their_side():
    for is_coarsest, tiles in ((False, 2), (True, 3)):
        model = Model(found())
        model.detect(
            image(MAX_CANVAS_SIDE * 2 - TILE_OVERLAP, 64, Pass(1.0, 0, False, True, is_coarsest))
        )
        assert len(model.shapes) == tiles


@pytest.mark.parametrize("is_coarsest", [False, True])
def test_the_places_of_a_closer_pass_are_covered_by_small_tiles_and_the_rest_is_left_out(
    is_coarsest,
):
    places = np.array([[20, 20], [60, 30]], np.float32)
    model = Model(found())
    model.detect(image(3000, 2000, Pass(1.0, places=places, is_coarsest=is_coarsest)))
    assert len(model.shapes) == 1
    assert max(model.shapes[0]) <= CLOSER_TILE_SIDE


def test_the_places_of_a_crowd_are_covered_by_fewer_and_larger_tiles():
    across, down = np.meshgrid(np.arange(50, 4000, 100), np.arange(50, 3000, 100))
    places = np.stack([across.ravel(), down.ravel()], axis=1).astype(np.float32)
    model = Model(found((10, 10, 20, 20)))
    tiled = model.detect(image(4000, 3000, Pass(1.0, places=places)))
    assert len(model.shapes) <= MAX_CLOSER_TILES
    corners = tiled.found.boxes_xyxy[:, :2] - 10
    is_covered = np.zeros(len(places), bool)
    for corner, shape in zip(corners, model.shapes, strict=True):
        is_covered |= ((places >= corner) & (places < corner + shape[::-1])).all(axis=1)
    assert is_covered.all()


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_tile_with_the_place_is_searched_however_the_picture_is_turned(quarter_turns, mirrored):
    pixels = np.zeros((2000, 3000, 3), np.uint8)
    pixels[300:310, 2500:2510] = 255
    plan = Pass(0.5, quarter_turns, mirrored, places=np.array([[2505, 305]], np.float32))
    brightest = []

    def infer(canvas):
        brightest.append(canvas.max())
        return found()

    TiledModel(one_by_one(infer), 0.3, 0.5).detect([plan.image_of(Pyramid(pixels))])
    assert 255 in brightest
    assert len(brightest) <= 2


def test_a_full_tile_is_divided_until_it_can_not_be():
    model = Model(found(left_out=0.9))
    with pytest.raises(DetectionFailed, match="as many as it can"):
        model.detect(image(256, 256))
    coarse = Model(found(left_out=0.9)).detect(image(256, 256, Pass(1.0, is_finest=False)))
    assert coarse.is_full
    assert not Model(found(left_out=0.4)).detect(image(256, 256)).is_full
    small = MIN_DIVISIBLE_SIDE
    assert (
        not Model(found(left_out=0.9))
        .detect(image(small, small, Pass(1.0, is_finest=False)))
        .is_full
    )


def test_a_model_of_fixed_size_gets_only_that_size():
    model = Model(found(left_out=0.9))
    model.detect(image(500, 300, Pass(1.0, is_finest=False)), fixed_size=(96, 160))
    assert set(model.shapes) == {(96, 160)}


def test_a_picture_has_so_much_time_and_so_many_canvases():
    canvas = np.zeros((64, 64, 3), np.uint8)
    late = limited(one_by_one(Model(found()).infer), 0)
    time.sleep(0.01)
    with pytest.raises(DetectorUnavailable, match="more than 0 s"):
        late([canvas])
    infer = limited(one_by_one(Model(found()).infer), 60)
    for _ in range(MAX_CANVASES):
        infer([canvas])
    with pytest.raises(DetectionFailed, match="as many faces as it can"):
        infer([canvas])


class Together:
    """A model that finds a box by the brightness of a canvas, and keeps the sizes of its calls."""

    def __init__(self, full=0):
        self.calls = []
        self._full = full

    def infer(self, canvases):
        self.calls.append(len(canvases))
        return [self._answer(canvas) for canvas in canvases]

    def _answer(self, canvas):
        side = 10 + int(canvas[0, 0, 0]) % 20
        left_out = 0.9 if canvas.shape[0] >= self._full > 0 else 0.0
        return found((5, 5, 5 + side, 5 + side), left_out=left_out)


def images(count):
    """Return images of passes over different pictures of several tiles each."""
    random = np.random.default_rng(count)
    for number in range(count):
        pixels = random.integers(0, 256, (900 + 64 * number, 2500, 3), np.uint8)
        yield Pass(1.0, is_finest=False, is_coarsest=False).image_of(Pyramid(pixels))


@pytest.mark.parametrize("full", [0, 500])
@pytest.mark.parametrize("at_once", [2, 5, 8])
def test_the_tiles_of_several_passes_are_given_together_and_found_as_one_by_one(at_once, full):
    passes = list(images(3))
    alone, together = Together(full), Together(full)
    expected = TiledModel(alone.infer, 0.3, 0.5).detect(passes)

    found_together = TiledModel(together.infer, 0.3, 0.5, ModelInput(at_once=at_once)).detect(
        passes
    )

    assert sum(together.calls) == sum(alone.calls) >= 6
    assert max(together.calls) == min(at_once, sum(alone.calls))
    assert len(together.calls) < len(alone.calls)
    for one, other in zip(expected, found_together, strict=True):
        assert sorted(one.found.boxes_xyxy.tolist()) == sorted(other.found.boxes_xyxy.tolist())
        assert one.is_cut.sum() == other.is_cut.sum()
        assert one.is_full == other.is_full == bool(full)


@pytest.mark.parametrize(("fixed_size", "largest"), [(None, 2), ((320, 640), 3)])
def test_canvases_given_together_have_no_more_pixels_than_so_many_of_the_largest_size(
    fixed_size, largest
):
    takes = ModelInput(fixed_size, at_once=8, largest_at_once=largest)
    calls = []

    def infer(canvases):
        calls.append([canvas.shape[0] * canvas.shape[1] for canvas in canvases])
        return [found() for _ in canvases]

    passes = [*images(3), image(100, 100, Pass(1.0, is_finest=False))]
    TiledModel(infer, 0.3, 0.5, takes).detect(passes)

    assert max(sum(areas) for areas in calls) <= takes.pixels_at_once
    assert max(len(areas) for areas in calls) == (largest if fixed_size else largest + 3)
    areas = [area for call in calls for area in call]
    assert areas == sorted(areas, reverse=True)


def test_a_model_of_few_shapes_gets_few_shapes():
    model = Model(found())
    for width in range(70, 2000, 90):
        model.detect(image(width, 300), has_few_shapes=True)
    assert {height for height, _ in model.shapes} == {320}
    assert len({width for _, width in model.shapes}) < 13
