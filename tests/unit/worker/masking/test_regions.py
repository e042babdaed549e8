"""Regions: the part of a face that is hidden, and whether its eyes are."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from tests.drawn import SIDES, STYLES, boxes
from worker.detection.faces import Detections, Sightings
from worker.masking import regions
from worker.masking.regions import MaskStyle


def rectangles_of(boxes_xyxy, style, width, height, **options):
    return regions.regions(Sightings.of(boxes_xyxy), style, width, height, **options).rectangles


def box(*sides):
    return np.array([sides], np.float32)


@given(boxes(), STYLES, SIDES, SIDES)
def test_regions_are_whole_pixels_within_the_picture(some, style, width, height):
    found = rectangles_of(some, style, width, height)
    assert np.issubdtype(found.dtype, np.integer)
    x1, y1, x2, y2 = found.T
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all()


@pytest.mark.parametrize(
    ("region", "margin", "expected"),
    [
        (1.0, 0.0, (20, 10, 40, 50)),
        (0.5, 0.0, (20, 10, 40, 30)),
        (0.75, 0.0, (20, 10, 40, 40)),
        (0.5, 0.25, (15, 0, 45, 30)),
        (1.0, 0.25, (15, 0, 45, 60)),
        (1.0, 0.1, (18, 6, 42, 54)),
        (0.95, 0.25, (15, 0, 45, 48)),
    ],
)
def test_a_region_is_the_top_of_the_box_and_only_a_full_one_is_widened_below(
    region, margin, expected
):
    found = rectangles_of(box(20, 10, 40, 50), MaskStyle("fill", region, margin), 100, 100)
    assert found.tolist() == [list(expected)]


def test_a_fraction_of_a_pixel_is_hidden_as_a_whole_one():
    found = rectangles_of(box(10.9, 10.9, 11.1, 11.1), MaskStyle("fill", 1.0, 0.0), 100, 100)
    assert found.tolist() == [[10, 10, 12, 12]]


def looking(*ups, box_xyxy=(20, 20, 60, 60)):
    """Return a face in `box_xyxy` for each of `ups`, the way from mouth to eyes in pixels."""
    x1, y1, x2, y2 = box_xyxy
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    landmarks = [
        [middle + np.array(up) / 2] * 2 + [middle] + [middle - np.array(up) / 2] * 2 for up in ups
    ]
    return Sightings.of(
        np.array([box_xyxy] * len(ups), np.float32), np.array(landmarks, np.float32)
    )


@pytest.mark.parametrize(
    ("up", "expected"),
    [
        ((0, -16), (20, 20, 60, 48)),
        ((5, -16), (20, 20, 60, 48)),
        ((16, 0), (32, 20, 60, 60)),
        ((-16, 3), (20, 20, 48, 60)),
        ((0, 16), (20, 32, 60, 60)),
        ((12, -12), (20, 20, 60, 60)),
        ((0, -2), (20, 20, 60, 60)),
        ((math.nan, math.nan), (20, 20, 60, 48)),
    ],
    ids=[
        "upright",
        "a little tilted",
        "the top to the right",
        "the top to the left",
        "upside down",
        "askew",
        "no face",
        "unknown",
    ],
)
def test_a_face_is_hidden_from_its_own_top(up, expected):
    found = regions.regions(looking(up), MaskStyle("fill", 0.7, 0.0), 100, 100).rectangles
    assert (*found[:, :2].min(axis=0), *found[:, 2:].max(axis=0)) == expected


@pytest.mark.parametrize("up", [(0, -16), (16, 0), (0, 2), (math.nan, math.nan)])
def test_a_full_region_is_full_whichever_way_the_face_is(up):
    found = regions.regions(looking(up), MaskStyle("fill", 1.0, 0.1), 100, 100).rectangles
    assert found.tolist() == [[16, 16, 64, 64]]


def test_an_edge_that_may_be_wrong_is_hidden_as_far_as_it_may_be():
    seen = replace(Sightings.of(box(20, 20, 40, 40)), slack=np.array([6], np.float32))
    top = regions.regions(seen, MaskStyle("fill", 0.5, 0.1), 100, 100).rectangles
    full = regions.regions(seen, MaskStyle("fill", 1.0, 0.1), 100, 100).rectangles
    wide = regions.regions(seen, MaskStyle("fill", 1.0, 0.5), 100, 100).rectangles
    assert (top.tolist(), full.tolist(), wide.tolist()) == (
        [[14, 14, 46, 36]],
        [[14, 14, 46, 46]],
        [[10, 10, 50, 50]],
    )


def test_of_a_face_cut_by_the_edge_the_top_of_what_shows_is_hidden_too():
    below = rectangles_of(box(10, 80, 30, 120), MaskStyle("fill", 0.5, 0.0), 100, 100)
    above = rectangles_of(box(10, -20, 30, 20), MaskStyle("fill", 0.5, 0.0), 100, 100)
    assert below.tolist() == [[10, 80, 30, 100]]
    assert above.tolist() == [[10, 0, 30, 10]]


def with_eyes(left, right, mouth, box_xyxy):
    """Return a face in `box_xyxy` with its eyes and the middle of its mouth at these points."""
    nose = (np.add(left, right) / 2 + mouth) / 2
    landmarks = np.array([[left, right, nose, mouth, mouth]], np.float32)
    return Detections(
        box(*box_xyxy), np.ones(1, np.float32), Sightings.of(box(*box_xyxy), landmarks)
    )


def whole(*boxes_xyxy):
    """Return regions that are exactly these boxes."""
    seen = Sightings.of(np.array(boxes_xyxy, np.float32).reshape(-1, 4))
    return regions.regions(seen, MaskStyle("fill", 1.0, 0.0), 100, 100)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (with_eyes((30, 40), (50, 40), (40, 60), (20, 20, 60, 60)).sightings, (24, 34, 56, 46)),
        (with_eyes((40, 30), (40, 50), (60, 40), (20, 20, 60, 60)).sightings, (34, 24, 46, 56)),
        (Sightings.of(box(20, 20, 60, 120)), (26, 45, 54, 75)),
        (looking((0, -2)), (26, 26, 54, 54)),
    ],
    ids=["upright", "on its side", "without landmarks", "landmarks that make no face"],
)
def test_the_eyes_are_where_the_landmarks_say_or_where_they_usually_are(seen, expected):
    assert regions.eye_bands(seen).round(4).tolist() == [list(expected)]


@pytest.mark.parametrize(
    "up", [(0, -16), (5, -16), (16, 0), (0, 16), (12, -12), (0, -2), (math.nan, math.nan)]
)
@pytest.mark.parametrize("region", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
def test_what_a_face_is_hidden_with_hides_its_eyes(up, region, shape):
    seen = looking(up)
    hidden = regions.regions(seen, MaskStyle("fill", region, 0.1, shape), 100, 100)
    assert regions.eyes_hidden(
        Detections(seen.boxes_xyxy, np.ones(1, np.float32), seen), hidden, 100, 100
    ).all()


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ([], False),
        ([(70, 20, 90, 60)], False),
        ([(20, 50, 60, 60)], False),
        ([(20, 20, 40, 60)], False),
        ([(20, 20, 40, 60), (40, 20, 60, 60)], True),
        ([(0, 0, 100, 100)], True),
    ],
    ids=["nothing", "another place", "the mouth", "one eye", "each eye by its own", "everything"],
)
def test_eyes_are_hidden_where_most_of_their_band_is(hidden, expected):
    found = with_eyes((30, 40), (50, 40), (40, 56), (20, 20, 60, 60))
    assert regions.eyes_hidden(found, whole(*hidden), 100, 100).tolist() == [expected]


def test_eyes_beyond_the_edge_of_the_picture_are_not_to_be_seen():
    found = with_eyes((30, -20), (50, -20), (40, 5), (20, -30, 60, 10))
    assert regions.eyes_hidden(found, whole((0, 0, 0, 0)), 100, 100).all()


def test_a_face_is_hidden_if_its_eyes_are_in_every_sighting():
    seen = with_eyes((30, 40), (50, 40), (40, 56), (20, 20, 60, 60)).sightings
    lower = with_eyes((30, 60), (50, 60), (40, 76), (20, 40, 60, 80)).sightings
    sightings = replace(Sightings.joined([seen, lower]), face=np.array([0, 0]))
    found = Detections(box(20, 20, 60, 80), np.ones(1, np.float32), sightings)
    assert not regions.eyes_hidden(found, whole((20, 20, 60, 50)), 100, 100).any()
    assert regions.eyes_hidden(found, whole((20, 20, 60, 70)), 100, 100).all()
