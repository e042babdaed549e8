"""Boxes in another form than their format has are recognised, and others are not suspected."""

import numpy as np
import pytest

from training.data import misread

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
        ("yolo", taken_for_centres, "look like x1 y1 x2 y2; YOLO wants cx cy width height"),
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


def doubt(form, boxes, are_faces=True):
    return misread.doubt(form, boxes.tolist(), [(WIDTH, HEIGHT)] * len(boxes), are_faces=are_faces)


def faces(count=60):
    """Draw boxes of faces, 1.25 times as high as wide, all over a picture."""
    random = np.random.default_rng(1)
    width = random.uniform(20, 160, (count, 1))
    size = np.concatenate([width, 1.25 * width], axis=1)
    corner = random.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - size)
    return np.concatenate([corner, corner + size], axis=1)


def moved(boxes, by):
    """Move boxes right and down by a share of their sides."""
    return boxes + by * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


@pytest.mark.parametrize("form", misread.FORMS)
def test_right_boxes_are_not_doubted(form):
    assert doubt(form, faces()) is None
    assert doubt(form, np.zeros((0, 4))) is None
    reaching = drawn(100, smallest=0.5, largest=0.9) * 1.4 - 0.2 * WIDTH
    assert doubt(form, reaching, are_faces=False) is None


@pytest.mark.parametrize(
    ("form", "boxes", "said"),
    [
        ("coco", moved(faces(), 0.5), "look like cx cy width height, and COCO wants x y width"),
        ("wider", moved(faces(), 0.5), "look like cx cy width height, and WIDER FACE wants"),
        ("yolo", moved(faces(), -0.5), "look like x y width height, and YOLO wants cx cy width"),
        ("voc", 1.5 * faces(), "and 0 on the other sides: they look like boxes of larger pictures"),
        ("coco", 2.5 * faces(), "and 0 on the other sides: they look like boxes of larger"),
        ("voc", faces() / 2, "upper left 50% × 49% of their pictures: they look like boxes of sm"),
    ],
)
def test_boxes_that_are_shifted_or_scaled_as_a_whole_are_doubted(form, boxes, said):
    assert said in doubt(form, boxes)


def test_faces_that_are_wider_than_high_are_doubted_and_other_objects_are_not():
    wide = faces()
    wide[:, 2:] = wide[:, :2] + (wide[:, 2:] - wide[:, :2])[:, ::-1]

    said = "60 of 60 boxes are wider than high, and faces are not: they look like boxes with x and"
    assert doubt("coco", wide).startswith(said)
    assert doubt("coco", np.minimum(wide, [WIDTH, HEIGHT] * 2), are_faces=False) is None


@pytest.mark.parametrize("form", ["coco", "wider"])
def test_swapped_axes_are_recognised_where_boxes_leave_their_pictures(form):
    swapped = faces()[:, [1, 0, 3, 2]]

    assert f"look like y x height width; {misread.FORMS[form].name} wants" in fault(form, swapped)


def test_some_wrong_boxes_are_no_reason_to_refuse_a_source():
    boxes = drawn(100)
    boxes[:40] /= [WIDTH, HEIGHT, WIDTH, HEIGHT]

    assert fault("coco", boxes) is None
