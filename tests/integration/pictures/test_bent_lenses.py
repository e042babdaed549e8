"""The default detector finds faces of fisheye and 360° pictures that need a plain view."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from worker import Anonymizer
from worker.detection import detector

SIDE = 1024
NOSE = 222 / 512, 117 / 512  # of the astronaut, as shares of the photograph
# The angle at the edge of the image differs from the one that views assume.
EDGE = math.radians(75)


@pytest.fixture(scope="module")
def anonymizer():
    return Anonymizer.from_settings()


@pytest.fixture(scope="module")
def astronaut(samples):
    with Image.open(samples["astronaut.png"]) as image:
        return np.asarray(image.convert("RGB").resize((320, 320)))


def covered(found, x, y):
    boxes = found.boxes_xyxy
    return bool(((boxes[:, :2] <= (x, y)) & (boxes[:, 2:] >= (x, y))).all(axis=1).any())


def bent(points):
    """Return the points of a fisheye picture of SIDE pixels that show `points` of a plain one."""
    plain = (points / (SIDE / 2) - 1) * math.tan(EDGE)
    distance = np.maximum(np.linalg.norm(plain, axis=-1, keepdims=True), 1e-9)
    return SIDE / 2 * (1 + plain / distance * np.arctan(distance) / EDGE)


def fisheye(plain):
    """Return the equidistant fisheye picture of a `plain` one, whose sides have SIDE pixels."""
    places = np.stack(np.meshgrid(*[np.arange(SIDE) + 0.5] * 2), axis=-1) / (SIDE / 2) - 1
    radius = np.maximum(np.linalg.norm(places, axis=-1, keepdims=True), 1e-9)
    ahead = np.tan(np.minimum(radius, 1) * EDGE) / math.tan(EDGE)
    source = ((1 + places / radius * ahead) * SIDE / 2).astype(np.float32) - 0.5
    drawn = cv2.remap(plain, source[..., 0], source[..., 1], cv2.INTER_AREA)
    return np.where(radius < 1, drawn, 0).astype(np.uint8)


def test_faces_at_the_edge_of_a_fisheye_picture(anonymizer, astronaut, monkeypatch):
    plain = np.full((SIDE, SIDE, 3), 128, np.uint8)
    corners = [(20, 352), (684, 352), (352, 20)]
    for left, top in corners:
        plain[top : top + 320, left : left + 320] = astronaut
    picture = fisheye(plain)
    noses = [bent(np.array(corner) + np.array(NOSE) * 320) for corner in corners]

    found = anonymizer.anonymize_array(picture).detections
    assert all(covered(found, *nose) for nose in noses)

    monkeypatch.setattr(detector, "plain_views", lambda picture: [])
    without = anonymizer.anonymize_array(picture).detections
    assert not all(covered(without, *nose) for nose in noses)


def test_a_face_across_the_seam_of_a_360_degree_picture(anonymizer, astronaut):
    height, width = 1024, 2048
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[350:670, 800:1120] = astronaut
    nose_x, nose_y = 800 + NOSE[0] * 320, 350 + NOSE[1] * 320
    picture = np.roll(picture, -round(nose_x), axis=1)

    found = anonymizer.anonymize_array(picture).detections

    assert covered(found, 5, nose_y)
    assert covered(found, width - 5, nose_y)
