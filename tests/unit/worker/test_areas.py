"""Boxes and polygons: what covers them, and how much of a face lies in them."""

from itertools import pairwise

import numpy as np
import pytest

from tasks.errors import InvalidRequest
from tasks.messages import AnonymizeOptions
from worker.areas import MAX_STRIPS, bounds, covering, share_inside
from worker.detection.faces import Detections, Sightings, outside
from worker.masking.hiding import hide
from worker.masking.regions import MaskStyle, regions

TRIANGLE = (10, 10, 90, 10, 10, 90)


def test_a_box_covers_itself():
    assert covering((1, 2, 30, 40)) == [(1, 2, 30, 40)]
    assert bounds((5, 9, 1, 2, 7, 3)) == (1, 2, 7, 9)


@pytest.mark.parametrize("height", [3, 80, 4000])
def test_strips_cover_every_pixel_of_a_polygon_and_few_others(height):
    polygon = (0, 0, 100, 0, 0, height)
    strips = covering(polygon)
    assert len(strips) <= MAX_STRIPS
    covered = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in strips)
    assert 50 * height <= covered <= 50 * height * 1.7
    assert (strips[0][1], strips[-1][3]) == (0, height)
    for (_, _, _, bottom), (_, top, _, _) in pairwise(strips):
        assert bottom == top


def test_the_share_of_a_box_in_a_polygon():
    assert share_inside((10, 10, 50, 50), TRIANGLE) == pytest.approx(1)
    assert share_inside((10, 10, 90, 90), TRIANGLE) == pytest.approx(0.5)
    assert share_inside((60, 60, 90, 90), TRIANGLE) == pytest.approx(0)
    assert share_inside((0, 0, 20, 20), (0, 0, 10, 20)) == pytest.approx(0.5)
    assert share_inside((5, 5, 5, 9), TRIANGLE) == 0
    notched = (0, 0, 40, 0, 40, 40, 20, 0, 0, 40)
    assert share_inside((0, 0, 40, 40), notched) == pytest.approx(0.5)


def test_a_face_of_which_half_is_in_an_exempt_polygon_stays_visible():
    boxes = np.array([[12, 12, 40, 40], [60, 60, 95, 95]], np.float32)
    faces = Detections(boxes, np.array([0.9, 0.8], np.float32))
    assert outside(faces, [TRIANGLE]).boxes_xyxy.tolist() == [[60, 60, 95, 95]]
    assert len(outside(faces, [])) == 2


def test_an_extra_polygon_is_hidden_as_one_region():
    none = Sightings.of(np.zeros((0, 4), np.float32))
    found = regions(none, MaskStyle(), 100, 100, [(0, 0, 9, 9), TRIANGLE])
    assert len(set(found.faces.tolist())) == 2
    assert found.sides.tolist()[1:] == [80] * (len(found) - 1)
    picture = np.full((100, 100, 3), 200, np.uint8)
    hidden = hide(picture, none, MaskStyle(method="fill"), extra=[TRIANGLE])
    assert hidden[12:60, 12:25].max() == 0
    assert hidden[70:, 70:].min() == 200
    assert hidden[95:].min() == 200


@pytest.mark.parametrize(
    "area",
    [(1, 1, 2, 2, 3), (1, 1, 2, 2, 3, 3, 4), (5, 5, 5, 6, 5, 7), (1, 1, 2, 2, 3, -3), (0,) * 402],
)
def test_what_is_no_polygon_is_refused(area):
    with pytest.raises(InvalidRequest):
        AnonymizeOptions.parse(extra=[area])


def test_a_polygon_is_part_of_the_recipe_and_survives_json():
    options = AnonymizeOptions.parse(extra=[TRIANGLE], exempt=[list(TRIANGLE)])
    assert AnonymizeOptions.of(options.to_json()) == options
    assert options.recipe("r") != AnonymizeOptions.parse(extra=[(10, 10, 90, 90)]).recipe("r")
