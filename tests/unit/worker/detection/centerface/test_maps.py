"""Decoding of CenterFace's maps: places, sizes, landmarks, and one face for overlapping points."""

import numpy as np
import pytest

from tasks.errors import DetectionFailed
from worker.detection.centerface.maps import CANDIDATES, MAX_DETECTIONS, Layout, decode
from worker.detection.credible import credible

ABSENT = -12.0


def maps(*points, height=40, width=60):
    """Return maps that show the faces `points`: (row, column, logit, height, width in pixels)."""
    result = np.zeros((height, width, 15), np.float32)
    result[..., 0] = ABSENT
    for row, column, logit, tall, wide in points:
        result[row, column, :3] = logit, np.log(tall / 4), np.log(wide / 4)
        result[row, column, 3:5] = 0.25, -0.5
        result[row, column, 5:] = np.tile([0.5, 0.25], 5)
    return result


def test_a_point_of_the_maps_is_a_face_of_the_picture():
    found = decode(maps((20, 30, 2.0, 60, 40)))

    middle = (20 + 0.25 + 0.5) * 4, (30 - 0.5 + 0.5) * 4
    assert found.boxes_xyxy == pytest.approx(
        np.array([[middle[1] - 20, middle[0] - 30, middle[1] + 20, middle[0] + 30]]), abs=1e-3
    )
    assert found.scores == pytest.approx([1 / (1 + np.exp(-2.0))])
    assert found.sightings.landmarks == pytest.approx(
        np.full((1, 5, 2), (middle[1] - 10, middle[0])), abs=1e-3
    )


def test_the_stronger_of_two_that_overlap_is_the_face():
    found = decode(maps((20, 30, 0.0, 80, 60), (21, 30, 3.0, 80, 60), (5, 5, 1.0, 12, 12)))

    assert len(found) == 2
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert found.boxes_xyxy[0, 1] == pytest.approx((21.75 * 4) - 40)


@pytest.mark.parametrize("least_score", [0.1, 0.4, 0.9])
def test_leaving_out_the_weakest_changes_nothing_about_the_others(least_score):
    rng = np.random.default_rng(1)
    points = zip(
        rng.integers(0, 40, 400), rng.integers(0, 60, 400), rng.normal(-1, 2, 400), strict=True
    )
    crowd = maps(*((row, column, logit, 30, 24) for row, column, logit in points))
    everything, some = decode(crowd), decode(crowd, least_score)

    assert 0 < len(some) < len(everything)
    assert np.array_equal(some.boxes_xyxy, everything.boxes_xyxy[everything.scores >= least_score])
    assert np.array_equal(some.scores, everything.scores[everything.scores >= least_score])


def test_nothing_is_found_where_nothing_is():
    found = decode(maps())

    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.sightings.landmarks.shape == (0, 5, 2)


def test_a_picture_full_of_faces_gives_as_many_as_the_model_promises_and_says_what_it_left_out():
    crowd = [
        (row, column, 1.0 + row / 100, 8, 8)
        for row in range(0, 100, 2)
        for column in range(0, 120, 2)
    ]

    found = decode(maps(*crowd, height=100, width=120))
    fewer = decode(maps(*crowd[-900:], height=100, width=120))

    assert len(found) == MAX_DETECTIONS
    assert 0 < found.left_out <= found.scores.min()
    assert len(fewer) == 900
    assert fewer.left_out == 0


def test_points_that_are_not_looked_at_are_left_out_too():
    """The points of one face are so many that a weaker face is not among the candidates."""
    one = [(row, column, 3.0, 90, 90) for row in range(80) for column in range(80)]

    found = decode(maps(*one, (90, 110, 1.0, 8, 8), height=100, width=120))

    assert len(one) > CANDIDATES
    assert len(found) < MAX_DETECTIONS
    assert found.left_out == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_several_classes_have_scores_of_their_own_and_no_landmarks():
    two = np.full((40, 60, 6), ABSENT, np.float32)
    two[20, 30, :2] = 2.0, 1.0
    two[21, 30, 1] = 3.0
    two[..., 2:4], two[..., 4:] = np.log(10), 0

    found = decode(two, layout=Layout(2, landmarks=0))

    assert found.classes.tolist() == [2, 1]
    assert found.scores == pytest.approx(1 / (1 + np.exp([-3.0, -2.0])))
    assert found.boxes_xyxy[:, 1].tolist() == [21.5 * 4 - 20, 20.5 * 4 - 20]
    assert np.isnan(found.sightings.landmarks).all()


@pytest.mark.filterwarnings("error")
def test_a_size_that_overflows_gives_a_box_that_callers_refuse():
    ruined = np.full((40, 60, 5), ABSENT, np.float32)
    ruined[20, 30, 0] = 2.0
    ruined[..., 1:3], ruined[..., 3:] = 200, 0

    found = decode(ruined, layout=Layout(1, landmarks=0))

    with pytest.raises(DetectionFailed, match="not finite"):
        credible(found, 240, 160, 0.1)
