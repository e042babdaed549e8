"""Canvases: resized pictures keep their proportions, and every pixel has a part in them."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.detection.canvas import (
    GPU_SIDES,
    MAX_CANVAS_SIDE,
    PADDING_GRAY,
    SIDE_MULTIPLE,
    Pyramid,
    canvas_size,
    padded,
)


@settings(max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), factor=st.floats(0.02, 2.5))
def test_a_resized_picture_has_the_size_that_it_should(width, height, factor):
    picture = np.full((height, width, 3), 77, np.uint8)

    smaller = Pyramid(picture).resized(factor)

    assert smaller.shape == (max(1, round(height * factor)), max(1, round(width * factor)), 3)
    assert (smaller == 77).all()


@pytest.mark.parametrize("factor", [0.08, 0.24, 0.5, 0.53, 0.7])
def test_a_picture_becomes_smaller_without_leaving_pixels_out(factor):
    """A dot anywhere in the picture stays visible, and stays where it is."""
    random = np.random.default_rng(1)
    for row, column in zip(random.integers(0, 798, 40), random.integers(0, 1200, 40), strict=True):
        dot = np.zeros((801, 1203, 3), np.uint8)
        dot[row : row + 3, column : column + 3] = 255
        visible = np.argwhere(Pyramid(dot).resized(factor)[..., 0])
        assert len(visible)
        offset = np.abs((visible + 0.5) / factor - (row + 1.5, column + 1.5))
        assert (offset < 2 / factor + 2).all()

    picture = random.integers(0, 256, (801, 1203, 3), np.uint8)
    picture[401:, 601:] //= 4
    smaller = Pyramid(picture).resized(factor)
    averaged = cv2.resize(picture, smaller.shape[1::-1], interpolation=cv2.INTER_AREA)
    # Interpolation without halving has 8 times the deviation of averaging at 0.08.
    assert smaller.std() < 1.65 * averaged.std()
    middle = tuple(side // 2 for side in smaller.shape[:2])
    for rows in (slice(0, middle[0] - 2), slice(middle[0] + 2, None)):
        for columns in (slice(0, middle[1] - 2), slice(middle[1] + 2, None)):
            assert smaller[rows, columns].mean() == pytest.approx(
                averaged[rows, columns].mean(), abs=2
            )


def test_a_picture_is_halved_once_for_all_passes():
    pyramid = Pyramid(np.zeros((800, 1200, 3), np.uint8))
    for factor in (0.1, 0.2, 0.45, 0.1):
        pyramid.resized(factor)
    assert [level.shape[:2] for level in pyramid._levels] == [
        (800, 1200),
        (400, 600),
        (200, 300),
        (100, 150),
    ]


def test_sides_are_padded_to_the_next_multiple_and_not_further():
    shapes = []
    for side in (1, SIDE_MULTIPLE - 1, SIDE_MULTIPLE, SIDE_MULTIPLE + 1):
        canvas = padded(np.zeros((side, 10, 3), np.uint8))
        assert (canvas[:side, :10] == 0).all()
        assert (canvas[side:] == PADDING_GRAY).all()
        assert (canvas[:, 10:] == PADDING_GRAY).all()
        shapes.append(canvas.shape[0])
    assert shapes == [SIDE_MULTIPLE, SIDE_MULTIPLE, SIDE_MULTIPLE, 2 * SIDE_MULTIPLE]
    assert math.gcd(*shapes) == SIDE_MULTIPLE


def test_a_canvas_of_a_fixed_size_has_that_size():
    canvas = padded(np.zeros((50, 70, 3), np.uint8), (96, 160))
    assert canvas.shape == (96, 160, 3)
    assert canvas[49, 69].tolist() == [0, 0, 0]
    assert canvas[50, 70].tolist() == [PADDING_GRAY] * 3


def test_canvases_for_a_gpu_have_few_sides_and_little_padding():
    sides = {canvas_size(side, 1, has_few_shapes=True)[0] for side in range(1, MAX_CANVAS_SIDE + 1)}

    assert sorted(sides) == list(GPU_SIDES)
    assert not [side for side in sides if side % SIDE_MULTIPLE]
    for side in range(150, MAX_CANVAS_SIDE + 1):
        assert side <= canvas_size(1, side, has_few_shapes=True)[1] < 1.34 * (side + 1)


def test_a_canvas_of_few_shapes_shows_the_same_part():
    part = np.full((70, 390, 3), 9, np.uint8)

    canvas = padded(part, canvas_size(70, 390, has_few_shapes=True))

    assert canvas.shape == (128, 512, 3)
    assert (canvas[:70, :390] == 9).all()
    assert (canvas[70:] == PADDING_GRAY).all()
    assert (canvas[:, 390:] == PADDING_GRAY).all()
