import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections, Sightings
from worker.detection.lenses import (
    FISHEYE_ANGLE,
    MAX_VIEW_SIDE,
    fisheye_image,
    is_panorama,
    plain_views,
)
from worker.detection.presets import PassSettings

ONE_PASS = PassSettings((4096,), 1.0, 640, mirrored=False, turned="never")


def gradient(width, height):
    """A picture whose levels say where a pixel is: red across, green down."""
    across, down = np.meshgrid(np.linspace(40, 240, width), np.linspace(40, 240, height))
    return np.stack([across, down, np.full_like(across, 128)], axis=2).astype(np.uint8)


def fisheye(width=400, height=400, radius=180, centre=None):
    """A gradient in a circle, on black."""
    circle = np.zeros((height, width), np.uint8)
    cv2.circle(circle, centre or (width // 2, height // 2), radius, 1, -1)
    return gradient(width, height) * circle[..., None]


def panorama(width=800, height=400):
    """A picture of all directions, whose levels are continuous across the seam."""
    longitude, latitude = np.meshgrid(
        np.linspace(-np.pi, np.pi, width, endpoint=False), np.linspace(40, 240, height)
    )
    waves = [128 + 100 * np.sin(longitude), latitude, 128 + 100 * np.cos(longitude)]
    return np.stack(waves, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({}, (200, 200, 180)),
        ({"centre": (190, 210), "radius": 150}, (190, 210, 150)),
        ({"width": 640}, (320, 200, 180)),
        ({"width": 1000, "radius": 230}, (500, 200, 230)),  # cut above and below
        ({"width": 4000, "height": 4000, "radius": 1900}, (2000, 2000, 1900)),
    ],
)
def test_the_image_of_a_fisheye_lens_is_found(made, expected):
    picture = fisheye(**made)

    found = fisheye_image(picture)

    assert found is not None
    scale = max(picture.shape) / 256  # It is searched in a reduced picture.
    assert (found.x, found.y, found.radius) == pytest.approx(expected, abs=2 * scale)


def letterboxed(picture):
    return cv2.copyMakeBorder(picture, 80, 80, 0, 0, cv2.BORDER_CONSTANT)


def framed(picture):
    return cv2.copyMakeBorder(picture, 60, 60, 60, 60, cv2.BORDER_CONSTANT)


def two_lamps():
    picture = np.zeros((400, 400, 3), np.uint8)
    for x in (100, 300):
        cv2.circle(picture, (x, 200), 40, (255, 255, 255), -1)
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        gradient(400, 300),
        letterboxed(gradient(400, 300)),
        framed(gradient(400, 300)),
        np.zeros((300, 400, 3), np.uint8),
        two_lamps(),
        np.full((1, 1, 3), 200, np.uint8),
    ],
    ids=["plain", "letterboxed", "framed", "black", "two lamps", "one pixel"],
)
def test_other_pictures_are_of_no_fisheye_lens(picture):
    assert fisheye_image(picture) is None
    assert list(plain_views(picture)) == []


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (panorama(), True),
        (panorama(1000, 500), True),
        (panorama(810, 400), False),  # another shape
        (gradient(800, 400), False),  # the edges do not meet
        (np.full((1, 2, 3), 9, np.uint8), False),
        (cv2.copyMakeBorder(gradient(600, 400), 0, 0, 100, 100, 0, value=(255,) * 3), False),
    ],
)
def test_a_panorama_is_twice_as_wide_as_high_and_wraps_around(picture, expected):
    assert is_panorama(picture) is expected


@pytest.mark.parametrize("picture", [fisheye(), panorama()], ids=["fisheye", "panorama"])
@given(across=st.floats(0.1, 0.9), down=st.floats(0.1, 0.9))
def test_a_view_shows_at_a_point_what_the_picture_shows_there(picture, across, down):
    for view in plain_views(picture):
        height, width = view.pixels.shape[:2]
        point = np.array([across * width, down * height], np.float32)
        x, y = (view.to_picture(point) % (view.period or 10_000)).astype(int)
        shown = view.pixels[int(point[1]), int(point[0])].astype(int)
        around = picture[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].astype(int)
        if around.size and around.any(axis=2).all():  # not at the edge of a lens's image
            assert (around.min(axis=(0, 1)) - 2 <= shown).all()
            assert (shown <= around.max(axis=(0, 1)) + 2).all()


def test_the_edge_of_the_image_is_the_edge_of_the_view():
    (view,) = plain_views(fisheye())
    side = view.pixels.shape[0]

    left, middle = view.to_picture(np.array([[0, side / 2], [side / 2, side / 2]], np.float32))

    assert left == pytest.approx((20, 200), abs=4)
    assert middle == pytest.approx((200, 200), abs=4)
    inner = view.to_picture(np.array([side * 0.75, side / 2], np.float32))
    angle = math.atan(math.tan(FISHEYE_ANGLE) / 2)
    assert inner[0] == pytest.approx(200 + 180 * angle / FISHEYE_ANGLE, abs=4)


def test_views_of_large_pictures_are_bounded():
    picture = cv2.resize(fisheye(), (6000, 6000), interpolation=cv2.INTER_NEAREST)

    (view,) = plain_views(picture)

    assert view.pixels.shape == (MAX_VIEW_SIDE, MAX_VIEW_SIDE, 3)


def test_a_box_at_the_edge_of_a_view_is_narrow_in_the_picture():
    (view,) = plain_views(fisheye())
    side = view.pixels.shape[0]
    box = np.array([[0.02 * side, 0.45 * side, 0.12 * side, 0.55 * side]], np.float32)
    landmarks = np.full((1, 5, 2), 0.5 * side, np.float32)
    found = Detections(
        box,
        np.array([0.9], np.float32),
        Sightings(box, landmarks, np.array([4], np.float32), np.array([0])),
    )

    moved = view.detections(found)

    (x1, y1, x2, y2) = moved.boxes_xyxy[0]
    assert x2 - x1 < (y2 - y1) / 2
    assert moved.scores == found.scores
    assert moved.sightings.boxes_xyxy == pytest.approx(moved.boxes_xyxy)
    assert moved.sightings.landmarks == pytest.approx(np.full((1, 5, 2), 200), abs=4)
    assert 0 < moved.sightings.slack[0] < 4
    assert len(view.sightings(found.sightings)) == 1


def test_nothing_found_in_a_view_is_nothing_in_the_picture():
    for picture in (fisheye(), panorama()):
        for view in plain_views(picture):
            assert len(view.detections(Detections.none())) == 0


class SeesWhite:
    """A model that detects the box around white pixels."""

    def __call__(self, canvases):
        return [self._found(canvas) for canvas in canvases]

    def _found(self, canvas):
        rows, columns = np.nonzero((canvas > 250).all(axis=2))
        if len(rows) < 9:
            return Detections.none()
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return Detections(np.array([box], np.float32), np.array([0.9], np.float32))


def test_a_face_across_the_seam_is_hidden_on_both_sides():
    picture = panorama(1600, 800)
    picture[380:420, :30] = picture[380:420, -30:] = 255

    found = ScaledDetector(SeesWhite(), ONE_PASS, 0.2).detect(picture)

    def covers(x, y):
        boxes = found.boxes_xyxy
        inside = (boxes[:, :2] <= (x, y)).all(axis=1) & (boxes[:, 2:] >= (x, y)).all(axis=1)
        # A box over the whole width would cover both by chance.
        return (inside & (boxes[:, 2] - boxes[:, 0] < 200)).any()

    assert covers(15, 400)
    assert covers(1585, 400)


def test_a_face_at_the_edge_of_a_fisheye_picture_is_found_where_it_is():
    picture = fisheye(1000, 1000, radius=490)
    picture[480:520, 40:52] = 255

    found = ScaledDetector(SeesWhite(), ONE_PASS, 0.2).detect(picture)

    assert len(found) == 1  # The view's face and the picture's are one.
    assert found.boxes_xyxy[0] == pytest.approx((40, 480, 52, 520), abs=12)
