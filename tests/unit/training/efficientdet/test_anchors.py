"""Anchors and targets: every face has an anchor, and ignored areas have none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.efficientdet import anchors
from training.efficientdet.anchors import IGNORED, NEGATIVE, POSITIVE

NONE = np.zeros((0, 4), np.float32)
GRID = anchors.anchors(256, 128)


def targets(faces, ignored=NONE):
    return anchors.targets(GRID, faces, ignored, np.zeros(len(faces), int), 1)


@st.composite
def faces(draw):
    """y1 x1 y2 x2 within 256 x 128, sides from 6 to 120 pixels."""
    height, width = draw(st.floats(6, 200)), draw(st.floats(6, 120))
    top, left = draw(st.floats(0, 256 - height)), draw(st.floats(0, 128 - width))
    return np.array([[top, left, top + height, left + width]], np.float32)


def test_anchors_cover_every_level_and_suit_faces():
    assert (
        len(GRID) == sum(256 * 128 // stride**2 for stride in anchors.STRIDES) * anchors.PER_POINT
    )
    sides = np.sqrt((GRID[:, 2:] - GRID[:, :2]).prod(axis=1))
    assert sides.min() == pytest.approx(16)
    shape = (GRID[:, 2] - GRID[:, 0]) / (GRID[:, 3] - GRID[:, 1])
    assert sorted(set(shape.round(2).tolist())) == pytest.approx([1.0, 1.3, 1.7], abs=0.01)


@given(faces())
def test_every_face_has_an_anchor_whose_offsets_lead_back_to_it(face):
    said = targets(face)

    stands = said.faces[:, 0] == POSITIVE
    assert stands.any()
    np.testing.assert_array_equal(stands, said.boxes[:, 4] == 1)
    boxes = anchors.decoded(said.boxes[stands, :4], GRID[stands], np)
    np.testing.assert_allclose(boxes, np.repeat(face, stands.sum(), axis=0), atol=0.01)


def test_of_two_faces_at_one_place_each_keeps_an_anchor():
    both = np.array([[40, 40, 90, 80], [44, 44, 96, 84]], np.float32)

    said = targets(both)

    stands = said.faces[:, 0] == POSITIVE
    boxes = anchors.decoded(said.boxes[stands, :4], GRID[stands], np)
    for face in both:
        assert np.abs(boxes - face).max(axis=1).min() < 0.01


def test_anchors_near_a_face_or_in_an_ignored_area_say_nothing():
    face, area = (
        np.array([[20, 20, 60, 52]], np.float32),
        np.array([[150, 20, 250, 100]], np.float32),
    )

    said = targets(face, area)

    shared = anchors.overlaps(GRID, face)[:, 0]
    middle = (GRID[:, :2] + GRID[:, 2:]) / 2
    inside = ((middle > area[0, :2]) & (middle < area[0, 2:])).all(axis=1)
    state = said.faces[:, 0]
    assert (state[(shared >= 0.4) & (shared < 0.5)] == IGNORED).all()
    assert (state[inside] == IGNORED).all()
    assert (state[(shared < 0.4) & ~inside & (shared < shared.max())] == NEGATIVE).all()


def test_a_picture_without_faces_is_all_negative():
    said = targets(NONE)

    assert (said.faces == NEGATIVE).all()
    assert (said.boxes == 0).all()


def test_bounded_boxes_are_never_outside_their_picture_nor_empty():
    boxes = np.array(
        [[-900, -900, -800, -800], [50, 40, 50, 40], [-1e6, 0, 1e6, 20], [10, 20, 30, 60]],
        np.float32,
    )

    bounded = anchors.bounded(boxes, np.array([128, 256], np.float32), np)

    middle = (bounded[:, :2] + bounded[:, 2:]) / 2
    assert (middle >= 0).all()
    assert (middle <= [128, 256]).all()
    assert (bounded[:, 2:] - bounded[:, :2] >= 1).all()
    assert np.abs(bounded).max() <= 2 * 256
    assert np.array_equal(bounded[3], boxes[3])


def test_an_anchor_of_one_class_is_none_of_the_others():
    both = np.array([[20, 20, 60, 52], [150, 20, 190, 60]], np.float32)

    said = anchors.targets(GRID, both, NONE, np.array([0, 1]), 2)

    stands = said.faces == POSITIVE
    assert stands.any(axis=0).all()
    assert not stands.all(axis=1).any()
    assert (said.faces[stands[:, 0], 1] == NEGATIVE).all()
    assert (anchors.decoded(said.boxes[stands[:, 1], :4], GRID[stands[:, 1]], np)[:, 0] > 100).all()
