"""Corrected boxes become areas that hide or show what the file says, and nothing else."""

import pytest

from tasks.bulk.annotations import AnnotatedPicture, Shape
from tasks.bulk.boxes import _differences, _impossible, _misread, _other_axes
from tests.made_receipts import anonymized

LARGE, INSIDE, BESIDE = (0, 0, 100, 100), (20, 20, 50, 50), (95, 20, 125, 50)


BOX = (100, 100, 192, 224)


def differences(hidden, corrected, **options):
    receipt = anonymized(640, 480, hidden, **options)
    shapes = [box if isinstance(box, Shape) else Shape(box) for box in corrected]
    return _differences(AnnotatedPicture("s3://clean/a.jpg", 640, 480, shapes), receipt)


def moved(left=0, top=0, right=0, bottom=0):
    """Return BOX with its sides moved."""
    return tuple(map(sum, zip(BOX, (left, top, right, bottom), strict=True)))


def test_a_face_in_the_box_of_a_removed_one_stays_hidden():
    assert differences([LARGE, INSIDE, BESIDE], [INSIDE, BESIDE]) == ((INSIDE,), (LARGE,))


def test_a_corrected_box_of_a_face_in_a_removed_box_stays_hidden_too():
    corrected = (22, 20, 52, 50)
    assert differences([LARGE, INSIDE], [corrected]) == ((corrected, INSIDE), (LARGE,))


@pytest.mark.parametrize(
    "corrected",
    [
        *(moved(-by, -by, by, by) for by in (2, 10, 15, 20, 30, 60)),
        *(moved(bottom=by) for by in (2, 40, 60, 100)),
        *(moved(by, 0, by, 0) for by in (2, 10, 25, 40, 80, 92, 150, -150, 215)),
        *(moved(0, by, 0, by) for by in (130, 247, -90)),
        *(moved(by, by, -by, -by) for by in (2, 10, 40)),
        (110, 110, 180, 110, 150, 200),
    ],
)
def test_all_of_a_corrected_box_is_hidden_and_no_part_of_the_old_one_becomes_clear(corrected):
    assert differences([BOX], [corrected]) == ((corrected,), ())


@pytest.mark.parametrize(
    "rounded",
    [
        BOX,
        moved(-1, -1, 1, 1),
        moved(1, 1, 1, 1),
        moved(0, 0, -1, -1),
        (100, 100, 192, 100, 192, 224, 100, 224),  # the box as a polygon
        (100, 224, 100, 100, 192, 100, 192, 224, 100, 224),
    ],
)
def test_a_box_that_a_tool_rounded_is_unchanged(rounded):
    assert differences([BOX], [rounded]) == ((), ())
    extra = {"options": {"extra": [list(BOX)]}}
    assert differences([], [Shape(rounded, "extra")], **extra) == ((), ())


def test_a_tiny_box_that_moved_is_unlike_an_unchanged_one():
    assert differences([(5, 5, 6, 6)], [(6, 6, 7, 7)]) == (((6, 6, 7, 7),), ())


def test_a_changed_extra_area_is_hidden_too():
    extra = {"options": {"extra": [list(BOX)]}}
    larger = Shape(moved(-9, -9, 9, 9), "extra")
    assert differences([], [larger], **extra) == ((larger.area,), ())


def test_an_unchanged_extra_area_keeps_no_removed_face_hidden():
    extra = {"options": {"extra": [[90, 90, 140, 140]]}}
    assert differences([BOX], [Shape((90, 90, 140, 140), "extra")], **extra) == ((), (BOX,))


def test_a_box_with_another_label_is_hidden_as_a_whole():
    """Another rule may hide another part of it."""
    assert differences([BOX], [Shape(BOX, "plate")]) == ((BOX,), ())
    assert differences([BOX], [Shape(BOX, "Face")]) == ((), ())


@pytest.mark.parametrize("by", [217, 300])
def test_a_box_farther_away_than_the_longer_side_of_a_removed_one_is_new(by):
    away = moved(by, 0, by, 0)
    assert differences([BOX], [away]) == ((away,), (BOX,))


def test_a_new_box_near_two_removed_ones_is_the_nearer_one_that_moved():
    farther, beside = moved(-95, 0, -95, 0), moved(95, 0, 95, 0)
    assert differences([farther, BOX], [beside]) == ((beside,), (farther,))


def test_of_two_missing_boxes_the_one_that_was_corrected_stays_hidden():
    other, larger = moved(60, 0, 60, 0), moved(-10, -10, 10, 10)
    assert differences([BOX, other], [larger]) == ((larger, BOX), (other,))


def test_a_picture_whose_areas_are_asked_for_already_does_not_differ():
    options = {"options": {"extra": [list(INSIDE)], "exempt": [list(LARGE)]}}
    assert differences([BESIDE], [INSIDE, BESIDE], **options) == ((), ())


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (5, 5, 5, 5)])
def test_an_empty_box_is_compared_too(box):
    assert differences([box, INSIDE], [INSIDE]) == ((), (box,))


FACES = [BOX, (300, 200, 380, 300), (20, 300, 80, 380)]


def written(form, box):
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    return {
        "x1 y1 x2 y2": box,
        "cx cy width height": (x1 + width // 2, y1 + height // 2, width, height),
        "y x height width": (y1, x1, height, width),
        "y1 x1 y2 x2": (y1, x1, y2, x2),
    }[form]


def misread(faces, shown):
    receipt, shapes = anonymized(640, 480, faces), [Shape(box) for box in shown]
    picture = AnnotatedPicture("s3://clean/a.jpg", 640, 480, shapes, form="coco")
    return _misread(picture, receipt, _differences(picture, receipt)[0])


@pytest.mark.parametrize(
    "form", ["x1 y1 x2 y2", "cx cy width height", "y x height width", "y1 x1 y2 x2"]
)
@pytest.mark.parametrize("faces", [FACES, FACES[1:2], [(10, 20, 30, 50)]])
def test_hidden_boxes_in_another_form_are_recognised(form, faces):
    """Most of these boxes lie in their picture, where they would leave faces clear."""
    shown = []
    for face in faces:
        x, y, width, height = written(form, face)
        shown.append((x, y, x + width, y + height))
    assert misread(faces, shown) == f"boxes look like {form}; COCO wants x y width height"


def test_edited_boxes_are_not_taken_for_another_form():
    assert misread(FACES, []) is None
    assert misread(FACES, [moved(-9, -9, 9, 9), (400, 10, 500, 90)]) is None


def test_no_face_becomes_clear_for_a_box_that_leaves_its_picture():
    receipt, leaves = anonymized(640, 480, [BOX]), (500, 100, 900, 300)
    assert _impossible(receipt, [leaves], []) is None
    assert "leaves the picture, which has 640 × 480 pixels" in _impossible(receipt, [leaves], [BOX])
    assert _impossible(receipt, [(600, 100, 645, 300)], [BOX]) is None
    assert "is outside of the picture" in _impossible(receipt, [(640, 100, 700, 300)], [])


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        (lambda x, y: (x / 6.4, y / 4.8), "those of a picture of about"),
        (lambda x, y: (x / 2, y / 2), "about 320 × 240 pixels: this one has 640 × 480"),
        (lambda x, y: (x, 480 - y), "counted from the lower edge"),
        (lambda x, y: (640 - x, y), "counted from the right edge"),
    ],
)
@pytest.mark.parametrize("faces", [FACES, FACES[1:2]])
def test_hidden_boxes_on_other_axes_are_recognised(written, cause, faces):
    shown = []
    for x1, y1, x2, y2 in faces:
        corners = written(x1, y1), written(x2, y2)
        xs, ys = zip(*corners, strict=True)
        shown.append(tuple(map(round, (min(xs), min(ys), max(xs), max(ys)))))
    assert cause in _other_axes(anonymized(640, 480, faces), shown, faces)


def test_new_boxes_are_not_taken_for_ones_on_other_axes():
    receipt = anonymized(640, 480, FACES)
    assert _other_axes(receipt, [], FACES) is None
    assert _other_axes(receipt, [(400, 10, 500, 90), (200, 30, 250, 99)], FACES) is None
