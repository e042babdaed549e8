"""Credible answers of a model: any other answer fails the picture instead of hiding nothing."""

import numpy as np
import pytest

from tasks.errors import DetectionFailed
from worker.detection.centerface.maps import decode
from worker.detection.credible import credible, placed
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections, Sightings
from worker.detection.presets import PassSettings
from worker.detection.tiled import one_by_one

WIDTH, HEIGHT = 256, 128
LEAST = 0.3
FACE = (100, 40, 140, 90)


def answer(box=FACE, score=0.9, landmarks=None):
    boxes = np.array([FACE, box], np.float32)
    if landmarks is not None:
        landmarks = np.array([np.full((5, 2), 60), landmarks], np.float32)
    return Detections(boxes, np.array([0.8, score], np.float32), Sightings.of(boxes, landmarks))


@pytest.mark.parametrize(
    "box",
    [
        (-40, -30, 60, 50),  # cut by a corner
        (200, 30, 300, 130),
        (-300, -400, 500, 500),  # a face that is larger than the canvas
        (100, 122, 140, 172),  # nearly all of it is cut
        (255, 0, 256, 1),
    ],
)
def test_a_face_that_the_edge_cuts_is_a_face(box):
    assert np.array_equal(credible(answer(box), WIDTH, HEIGHT, LEAST).boxes_xyxy[1], box)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (
            (100 * 256, 40 * 128, 140 * 256, 90 * 128),
            "shares of the picture, 0 to 1",
        ),  # pixels taken for shares
        ((0, 0, 256 * 256, 128 * 128), "shares of the picture"),
        ((-140 * 256, 40, -100 * 256, 90), "shares of the picture"),
        ((300, 40, 340, 90), "shares of the picture"),
        ((100, 127, 140, 177), "shares of the picture"),
        ((-3000, 0, 3000, 128), "shares of the picture"),
        ((140, 40, 100, 90), "ends before it starts"),
        ((100, 90, 140, 40), "ends before it starts"),
        ((100, 40, 100, 90), "empty"),
        ((0, 0, 0, 0), "empty"),
        ((np.nan, 40, 140, 90), "not finite"),
        ((100, 40, np.inf, 90), "not finite"),
        ((-np.inf, 40, 140, 90), "not finite"),
    ],
)
def test_a_box_that_is_no_face_of_this_picture_fails_it_if_it_counts(box, said):
    for score in (LEAST, 0.9, 1.0):
        with pytest.raises(DetectionFailed, match=said) as raised:
            credible(answer(box, score), WIDTH, HEIGHT, LEAST)
        assert len(str(raised.value).splitlines()) == 1

    assert len(credible(answer(box, LEAST / 2), WIDTH, HEIGHT, LEAST)) == 1


@pytest.mark.parametrize("score", [-0.1, -5.0, 1.01, 95.0, np.nan, np.inf, -np.inf])
def test_a_score_that_is_none_fails_the_picture_however_low_it_is(score):
    for check in (lambda found: credible(found, WIDTH, HEIGHT, LEAST), placed):
        with pytest.raises(DetectionFailed, match="from 0 to 1"):
            check(answer(score=score))


@pytest.mark.parametrize("value", [np.inf, -np.inf, 60_000.0, -60_000.0])
def test_landmarks_far_from_their_face_fail_the_picture(value):
    for place in ((0, 0), (4, 1)):
        landmarks = np.full((5, 2), 70.0)
        landmarks[place] = value
        with pytest.raises(DetectionFailed, match="landmark"):
            credible(answer(landmarks=landmarks), WIDTH, HEIGHT, LEAST)


def test_a_model_may_tell_no_landmarks():
    assert len(credible(answer(), WIDTH, HEIGHT, LEAST)) == 2
    assert len(credible(answer(landmarks=np.full((5, 2), np.nan)), WIDTH, HEIGHT, LEAST)) == 2


def test_one_such_box_in_one_pass_fails_the_whole_picture():
    def infer(canvas):
        side = canvas.shape[0]
        boxes = np.array(
            [[10, 10, 40, 40] if side < 200 else [10 * side, 10 * side, 40 * side, 40 * side]],
            np.float32,
        )
        return Detections(boxes, np.array([0.9], np.float32))

    look = PassSettings((128, 256), 1.0, 1024, mirrored=False, turned="never")
    with pytest.raises(DetectionFailed, match="shares of the picture"):
        ScaledDetector(one_by_one(infer), look, 0.5).detect(np.zeros((256, 256, 3), np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 1, 4, 14])
def test_maps_that_are_not_finite_are_no_picture_without_faces(value, channel):
    maps = np.full((16, 16, 15), -12, np.float32)
    assert len(decode(maps)) == 0

    maps[3, 5, channel] = value
    with pytest.raises(DetectionFailed, match="not finite"):
        decode(maps)
