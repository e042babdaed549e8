"""The average precision of detections: matches, faces that are left out, and the curve's area."""

import numpy as np
import pytest

from tools.benchmarks.average_precision import average_precision, compared, middle_boxes
from worker.detection.faces import Detections, merge

FAR_AWAY = [500.0, 500.0, 560.0, 560.0]


def boxes(*several):
    return np.array(several, np.float32).reshape(-1, 4)


def detections(*scored):
    return Detections(
        boxes(*(box for box, _ in scored)), np.array([score for _, score in scored], np.float32)
    )


def picture(annotated, heights, found):
    return compared(boxes(*annotated), np.array(heights, np.float64), found)


def square(x, side=60.0):
    return [x, 0.0, x + side, side]


def test_faces_that_are_all_found_before_any_false_alarm_have_full_precision():
    found = detections((square(0), 0.9), (square(100), 0.8), (FAR_AWAY, 0.1))

    assert average_precision([picture([square(0), square(100)], [60, 60], found)], 50) == 1.0


def test_a_false_alarm_and_a_miss_reduce_the_area():
    # The first of two faces is found at once, the second after a false alarm: 1/2 * 1 + 1/2 * 2/3.
    found = detections((square(0), 0.9), (FAR_AWAY, 0.5), (square(100), 0.2))
    annotated = [square(0), square(100)]

    assert average_precision([picture(annotated, [60, 60], found)], 50) == pytest.approx(5 / 6)
    # A picture without detections adds two faces that are missed.
    blank = picture(annotated, [60, 60], Detections.none())
    both = [picture(annotated, [60, 60], found), blank]
    assert average_precision(both, 50) == pytest.approx(5 / 12)


def test_a_second_detection_of_a_face_is_a_false_alarm():
    found = detections((square(0), 0.9), (square(4), 0.8), (square(100), 0.2))

    assert average_precision(
        [picture([square(0), square(100)], [60, 60], found)], 50
    ) == pytest.approx(5 / 6)


def test_faces_of_no_level_and_their_detections_do_not_count():
    small, ignored = square(200, side=20.0), square(300)
    found = detections((small, 0.95), (ignored, 0.93), (square(0), 0.9), (FAR_AWAY, 0.1))
    annotated = picture([square(0), small, ignored], [60, 20, 0], found)

    assert average_precision([annotated], 50) == 1.0
    assert average_precision([annotated], 10) == 1.0
    assert average_precision([picture([small], [20], found)], 50) == 0.0


def test_a_box_must_cover_half_of_the_union():
    found = detections((square(25), 0.9))

    assert average_precision([picture([square(0)], [60], found)], 50) == 0.0
    found = detections((square(15), 0.9))
    assert average_precision([picture([square(0)], [60], found)], 50) == 1.0


def test_the_middle_of_its_sightings_is_the_box_of_a_face():
    merged = merge(
        detections((square(10), 0.6), (square(0), 0.9), (square(20), 0.5), (FAR_AWAY, 0.7))
    )

    assert merged.boxes_xyxy[0].tolist() == [0.0, 0.0, 80.0, 60.0]
    assert middle_boxes(merged).tolist() == [square(10), FAR_AWAY]
