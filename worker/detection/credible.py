"""Checks of a model's answer: a box, a score or a landmark that can't be a face's is an error.

A wrong answer that counts as no face would publish the faces of the picture.
"""

import numpy as np

from tasks.errors import DetectionFailed
from worker.detection.faces import Boxes, Detections, Sightings

# No working model returns a face beyond these bounds: see docs/detection.md.
# The least part of a box within the canvas, as a share of the side of whichever is smaller.
MIN_PART_INSIDE = 0.1
# The largest part of a box beyond the canvas, as a multiple of the canvas's longer side.
MAX_PART_BEYOND = 4.0
# The largest distance of a landmark from its box, as a multiple of the box's side.
MAX_LANDMARK_DISTANCE = 2.0


def placed(detections: Detections) -> Detections:
    """Return `detections` unchanged.

    Raises DetectionFailed if a score is not from 0 to 1, or if a box or a landmark has no place in
    a picture.
    """
    boxes = detections.boxes_xyxy
    _check_scores(detections)
    if not np.isfinite(boxes).all():
        raise DetectionFailed("the model returned a box that is not finite: check detection_boxes")
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        raise DetectionFailed(
            "the model returned a box that is empty or ends before it starts: "
            "detection_boxes must be y1 x1 y2 x2"
        )
    # NaN is allowed: it says that the model reports no landmarks.
    if np.isinf(detections.sightings.landmarks).any():
        raise DetectionFailed(
            "the model returned a landmark that is not finite: check detection_keypoints"
        )
    return detections


def credible(detections: Detections, width: int, height: int, least_score: float) -> Detections:
    """Return the detections that score `least_score` or more in a canvas of `width` x `height`.

    Raises DetectionFailed if a score, a box or a landmark can't be that of a face in this canvas.
    The box of a face that the edge cuts reaches beyond it, so only boxes with hardly any part
    inside, or far larger than the canvas, are refused.
    """
    # All scores are checked first: one that is NaN or negative would be dropped as no face.
    _check_scores(detections)
    found = placed(detections[detections.scores >= least_score])
    _check_boxes(found.boxes_xyxy, width, height)
    _check_landmarks(found.sightings)
    return found


def _check_scores(detections: Detections) -> None:
    # NaN fails this comparison too.
    if not ((detections.scores >= 0) & (detections.scores <= 1)).all():
        raise DetectionFailed(
            "the model returned a score that is not from 0 to 1: check detection_scores"
        )


def _check_boxes(boxes: Boxes, width: int, height: int) -> None:
    first, last = boxes[:, :2], boxes[:, 2:]
    canvas = np.array([width, height], np.float32)
    inside = np.minimum(last, canvas) - np.maximum(first, 0)
    beyond = np.maximum(-first, last - canvas)
    is_outside = (inside < MIN_PART_INSIDE * np.minimum(last - first, canvas)).any()
    if is_outside or (beyond > MAX_PART_BEYOND * max(canvas)).any():
        raise DetectionFailed(
            "the model returned a box outside its picture: "
            "detection_boxes must be shares of the picture, 0 to 1, as y1 x1 y2 x2"
        )


def _check_landmarks(sightings: Sightings) -> None:
    first, last = sightings.boxes_xyxy[:, None, :2], sightings.boxes_xyxy[:, None, 2:]
    distance = np.maximum(first - sightings.landmarks, sightings.landmarks - last)
    if (distance > MAX_LANDMARK_DISTANCE * (last - first)).any():
        raise DetectionFailed(
            "the model returned a landmark far from its face: "
            "detection_keypoints must be shares of the picture, 0 to 1, as y x"
        )
