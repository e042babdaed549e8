"""From CenterFace's four maps to faces: the figures of the decoder, and the decoder for maps that
are arrays.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed
from worker.detection.faces import LANDMARKS, Detections, Sightings

MAPS = (
    1,
    2,
    2,
    2 * LANDMARKS,
)  # channels: logit of the score, logarithm of the size, offset, landmarks
STRIDE = 4  # pixels of the picture for one of the maps
NMS_IOU = 0.3  # of the authors' own decoder
CANDIDATES = 5000  # strongest points that are looked at: a few for each of MAX_DETECTIONS faces
MAX_DETECTIONS = 1000  # of a canvas; what is left out beyond it is told by Detections.left_out
MIN_SCORE = (
    0.02  # what the model reports at all; the setting `score_threshold` decides on top of it
)
NOT_FINITE = "the network returned numbers that are not finite: the model is damaged, or the processor is faulty"


def decode(maps: NDArray[np.float32], least_score: float = MIN_SCORE) -> Detections:
    """The faces, in pixels of the picture, of maps float32 [height, width, 15]; as
    worker.detection.centerface.network does.

    Centre = index + offset + 0.5 and size = exp(scale), in strides, y first; a landmark is its
    box's first corner plus its share of the box's size. What is below `least_score` is left out
    before points are compared, which changes nothing about the others.
    """
    _check_finite(maps)
    least = np.log(least_score / (1 - least_score))
    rows, columns = np.nonzero(maps[..., 0] >= least)
    points = maps[rows, columns]
    strongest = np.argsort(-points[:, 0], kind="stable")
    beyond = strongest[CANDIDATES : CANDIDATES + 1]
    left_out = _scores(points[beyond, 0]).max(initial=0)
    strongest = strongest[:CANDIDATES]
    points, places = points[strongest], np.stack([rows, columns], axis=1)[strongest]
    logits, scale, offset, shares = np.split(points, np.cumsum(MAPS)[:-1], axis=1)
    scores = _scores(logits[:, 0])
    size = np.exp(scale) * STRIDE
    corner = (places + offset + 0.5) * STRIDE - size / 2
    kept = _kept(np.concatenate([corner, size], axis=1), scores)
    left_out = max(left_out, scores[kept[MAX_DETECTIONS : MAX_DETECTIONS + 1]].max(initial=0))
    kept = kept[:MAX_DETECTIONS]
    corner, size = corner[kept].astype(np.float32), size[kept]
    boxes = np.concatenate([corner, corner + size], axis=1)[:, [1, 0, 3, 2]]
    landmarks = corner[:, None] + shares[kept].reshape(-1, LANDMARKS, 2) * size[:, None]
    return Detections(
        boxes, scores[kept], Sightings.of(boxes, landmarks[..., ::-1]), float(left_out)
    )


def _scores(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return scores


def _check_finite(maps: NDArray[np.float32]) -> None:
    """Raise DetectionFailed if a value is NaN or infinite: NaN is below any threshold and would
    count as no face.
    """
    if not np.isfinite(maps).all():
        raise DetectionFailed(NOT_FINITE)


def _kept(boxes: NDArray[np.floating], scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Which boxes (corner and size) no stronger one overlaps, strongest first."""
    if not len(boxes):
        return np.zeros(0, np.intp)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, NMS_IOU)
    return np.asarray(kept, np.intp)
