"""Boxes in another form than their format has are recognised, and others are not suspected."""

import numpy as np
import pytest

from training import misread

WIDTH, HEIGHT = 640, 480


def drawn(count, seed=0, smallest=0.02, largest=0.4):
    """Draw boxes x1 y1 x2 y2 within a picture, of all sizes between shares of its sides."""
    random = np.random.default_rng(seed)
    sides = random.uniform(smallest, largest, (count, 2))
    corner = random.uniform(0, 1 - sides)
    return np.concatenate([corner, corner + sides], axis=1) * [WIDTH, HEIGHT, WIDTH, HEIGHT]


def fault(form, boxes):
    return misread.fault(form, boxes.tolist(), [(WIDTH, HEIGHT)] * len(boxes))


def taken_for_sides(corners):
    """Return the boxes that a reader of x y width height makes of `corners`."""
    return np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)


def taken_for_corners(corners):
    """Return the boxes that a reader of x1 y1 x2 y2 makes of `corners` written as sides."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def taken_for_centres(corners):
    """Return the boxes that a reader of centre and sides makes of `corners`."""
    half = corners[:, 2:] / 2
    return np.concatenate([corners[:, :2] - half, corners[:, :2] + half], axis=1)


@pytest.mark.parametrize("form", misread.FORMS)
def test_right_boxes_are_not_suspected(form):
    assert fault(form, drawn(200)) is None
    assert fault(form, drawn(50, smallest=0.5, largest=0.9)) is None
    assert fault(form, np.zeros((0, 4))) is None


@pytest.mark.parametrize("form", misread.FORMS)
def test_boxes_of_close_faces_that_reach_outside_are_not_suspected(form):
    reaching = drawn(100, smallest=0.5, largest=0.9) * 1.1 - 0.05 * WIDTH

    assert fault(form, reaching) is None


@pytest.mark.parametrize(
    ("form", "misread_boxes", "said"),
    [
        ("coco", taken_for_sides, "look like x1 y1 x2 y2; COCO wants x y width height"),
        ("wider", taken_for_sides, "look like x1 y1 x2 y2; WIDER FACE wants x y width height"),
        ("voc", taken_for_corners, "look like x y width height; Pascal VOC wants x1 y1 x2 y2"),
        ("veil", taken_for_corners, "look like x y width height; annotations.json wants x1 y1"),
        ("yolo", taken_for_centres, "look like x1 y1 x2 y2; YOLO wants centre and sides"),
    ],
)
def test_another_form_is_recognised_also_if_some_boxes_are_damaged(form, misread_boxes, said):
    boxes = misread_boxes(drawn(200))
    boxes[:2] = 0

    assert said in fault(form, boxes)


def test_fractions_are_recognised_but_in_yolo_whose_boxes_are_fractions():
    fractions = drawn(20) / [WIDTH, HEIGHT, WIDTH, HEIGHT]

    said = "boxes look like fractions of the picture; Pascal VOC wants pixels"
    assert fault("voc", fractions) == said
    assert fault("yolo", fractions).startswith("20 of 20 boxes have no area, or lie wholly outside")


def test_some_wrong_boxes_are_no_reason_to_refuse_a_source():
    boxes = drawn(100)
    boxes[:40] /= [WIDTH, HEIGHT, WIDTH, HEIGHT]

    assert fault("coco", boxes) is None
