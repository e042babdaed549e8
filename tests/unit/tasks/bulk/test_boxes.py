"""Corrected boxes become areas that hide or show what the file says, and nothing else."""

import pytest

from tasks.bulk.annotations import AnnotatedPicture, Shape
from tasks.bulk.boxes import _differences
from tests.made_receipts import anonymized

LARGE, INSIDE, BESIDE = (0, 0, 100, 100), (20, 20, 50, 50), (95, 20, 125, 50)


def differences(hidden, corrected, **options):
    receipt = anonymized(200, 100, hidden, **options)
    shapes = [Shape(box) for box in corrected]
    return _differences(AnnotatedPicture("s3://clean/a.jpg", 200, 100, shapes), receipt)


def test_a_face_in_the_box_of_a_removed_one_stays_hidden():
    assert differences([LARGE, INSIDE, BESIDE], [INSIDE, BESIDE]) == ((INSIDE,), (LARGE,))


def test_a_corrected_box_of_a_face_in_a_removed_box_stays_hidden_too():
    moved = (22, 20, 52, 50)
    assert differences([LARGE, INSIDE], [moved]) == ((moved,), (LARGE,))


def test_a_picture_whose_areas_are_asked_for_already_does_not_differ():
    options = {"options": {"extra": [list(INSIDE)], "exempt": [list(LARGE)]}}
    assert differences([BESIDE], [INSIDE, BESIDE], **options) == ((), ())


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (5, 5, 5, 5)])
def test_an_empty_box_is_compared_too(box):
    assert differences([box, INSIDE], [INSIDE]) == ((), (box,))
