"""Scoring: found faces, false alarms, ignored areas, and the proposed threshold."""

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pip install 'veil[worker,training]'")

from training.evaluation import scoring
from training.evaluation.evaluating import FLOOR, survived, to_propose
from worker.detection.faces import Detections

NONE = np.zeros((0, 4), np.float32)
FACE, OTHER = [10, 10, 50, 60], [100, 100, 108, 110]


def found(*scored):
    boxes = np.array([box for box, _ in scored], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([score for _, score in scored], np.float32))


def picture(faces, *scored, ignore=NONE):
    return scoring.judged(
        np.array(faces, np.float32).reshape(-1, 4), np.array(ignore, np.float32), found(*scored)
    )


def test_a_face_is_found_once_and_by_the_surest():
    judged = picture([FACE, OTHER], ([12, 12, 52, 62], 0.6), (FACE, 0.9), ([200, 0, 240, 40], 0.3))

    assert judged.face_of.tolist() == [-1, 0, -1]
    assert judged.found_at.tolist() == pytest.approx([0.9, 0])


def test_a_detection_in_an_ignored_area_is_no_false_alarm():
    judged = picture([FACE], (FACE, 0.9), ([200, 0, 240, 40], 0.8), ignore=[[190, 0, 300, 100]])

    assert judged.face_of.tolist() == [0, -2]
    curve = scoring.curve([judged])
    assert curve.precision.tolist() == [1.0]
    assert curve.alarms.tolist() == [0.0]


def test_the_threshold_is_the_lowest_with_so_few_false_alarms():
    pictures = [
        picture([FACE], (FACE, 0.9)),
        picture([FACE], (FACE, 0.6), ([200, 0, 240, 40], 0.7)),
        picture([FACE], (FACE, 0.2), ([200, 0, 240, 40], 0.3)),
        picture([FACE]),
    ]

    curve = scoring.curve(pictures)

    np.testing.assert_allclose(curve.thresholds, [0.9, 0.7, 0.6, 0.3, 0.2], rtol=1e-6)
    assert curve.recall.tolist() == [0.25, 0.25, 0.5, 0.5, 0.75]
    assert curve.alarms.tolist() == [0, 0.25, 0.25, 0.5, 0.5]
    assert curve.thresholds_within(0.25).min() == pytest.approx(0.6)
    assert curve.recall_at(0.25) == 0.5
    assert curve.thresholds_within(0.5).min() == pytest.approx(0.2)
    assert curve.recall_at(0) == 0.25


def test_average_precision_by_size_is_that_of_coco():
    exact = picture([FACE, OTHER], (FACE, 0.9), (OTHER, 0.8))
    half = picture([FACE, OTHER], (FACE, 0.9))

    assert scoring.average_precision([exact])["AP50"] == 1
    figures = scoring.average_precision([half])
    assert figures["32–64 px"] == 1
    assert figures["0–16 px"] == 0
    assert figures["AP50"] == pytest.approx(0.5, abs=0.01)
    assert figures["from 128 px"] is None
    assert scoring.average_precision([picture([FACE])])["AP50"] == 0


def test_a_model_that_finds_nothing_has_a_curve_too():
    curve = scoring.curve([picture([FACE])])

    assert curve.recall_at(1) == 0
    assert len(curve.thresholds_within(1)) == 0


def test_the_thresholds_to_propose_are_scores_that_an_export_accepts():
    far = [200, 0, 240, 40]
    late = scoring.curve([picture([FACE], (far, 0.95), (FACE, 0.9))])
    sure = scoring.curve([picture([FACE], (FACE, 0.995), (far, 0.994))])

    assert to_propose(late) == [0.8999, 0.9499]  # the scores in 32 bits are below 0.9 and 0.95
    assert to_propose(sure) == []
    assert to_propose(scoring.curve([picture([FACE], (FACE, 0.01))])) == [FLOOR]


def test_a_face_survives_as_it_is_and_not_as_a_smooth_patch():
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    face = (10.0, 10.0, 60.0, 70.0)
    smooth = np.full_like(pixels, 128)

    assert survived(pixels, pixels, face) == pytest.approx(1)
    assert survived(pixels, smooth, face) < 0.05
    assert survived(smooth, smooth, face) == 0
    brighter = (pixels // 2 + 100).astype(np.uint8)
    assert survived(pixels, brighter, face) >= 0.45
