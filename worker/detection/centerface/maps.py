"""CenterFace's maps: their layout, and the decoder that turns arrays of them into faces.

worker.detection.centerface.network decodes the same maps in TensorFlow.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed
from worker.detection.faces import LANDMARKS, Detections, Sightings

# The channels of the maps: the score's logit, the size's logarithm (y x), the centre's offset (y x)
# and the landmarks (y x).
MAPS = (1, 2, 2, 2 * LANDMARKS)
STRIDE = 4  # Pixels of the picture for one point of a map, along each side.
NMS_IOU = 0.3  # From the decoder of CenterFace's authors.
# The points with the highest scores that are decoded: a few for each of MAX_DETECTIONS faces.
CANDIDATES = 5000
# The most faces of one canvas. Detections.left_out reports what is left out beyond them.
MAX_DETECTIONS = 1000
# Detections below this score are not returned. The setting `score_threshold` applies on top of it.
MIN_SCORE = 0.02
NOT_FINITE = (
    "the network returned numbers that are not finite: "
    "the model is damaged, or the processor is faulty"
)


def decode(maps: NDArray[np.float32], least_score: float = MIN_SCORE) -> Detections:
    """Return the faces of `maps`, float32 [height, width, 15], in pixels of the picture.

    Centre = index + offset + 0.5 and size = exp(scale), in strides, y first. A landmark is its
    box's first corner plus its share of the box's size. Points below `least_score` are dropped
    before points are compared, which does not change the others. Raises DetectionFailed if a value
    is not finite.
    """
    _check_finite(maps)
    points, places, beyond = _strongest_points(maps, least_score)
    logits, scale, offset, shares = np.split(points, np.cumsum(MAPS)[:-1], axis=1)
    scores = _scores(logits[:, 0])
    size = np.exp(scale) * STRIDE
    corner = (places + offset + 0.5) * STRIDE - size / 2
    kept = _non_maximum_suppression(np.concatenate([corner, size], axis=1), scores)
    next_score = scores[kept[MAX_DETECTIONS : MAX_DETECTIONS + 1]].max(initial=0)
    kept = kept[:MAX_DETECTIONS]
    corner, size = corner[kept].astype(np.float32), size[kept]
    boxes = np.concatenate([corner, corner + size], axis=1)[:, [1, 0, 3, 2]]
    landmarks = corner[:, None] + shares[kept].reshape(-1, LANDMARKS, 2) * size[:, None]
    sightings = Sightings.of(boxes, landmarks[..., ::-1])
    return Detections(boxes, scores[kept], sightings, float(max(beyond, next_score)))


def _strongest_points(
    maps: NDArray[np.float32], least_score: float
) -> tuple[NDArray[np.float32], NDArray[np.intp], np.float32]:
    """Return the CANDIDATES points with the highest scores, strongest first.

    They come as rows of the maps [n, 15], with their places [n, 2] y x, and the highest score of a
    point that is left out.
    """
    least_logit = np.log(least_score / (1 - least_score))
    rows, columns = np.nonzero(maps[..., 0] >= least_logit)
    points = maps[rows, columns]
    order = np.argsort(-points[:, 0], kind="stable")
    beyond = order[CANDIDATES : CANDIDATES + 1]
    strongest = order[:CANDIDATES]
    places = np.stack([rows, columns], axis=1)[strongest]
    return points[strongest], places, _scores(points[beyond, 0]).max(initial=0)


def _scores(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return scores


def _check_finite(maps: NDArray[np.float32]) -> None:
    """Raise DetectionFailed if a value is not finite: NaN is below any threshold, so no face."""
    if not np.isfinite(maps).all():
        raise DetectionFailed(NOT_FINITE)


def _non_maximum_suppression(
    boxes: NDArray[np.floating], scores: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Return the rows of `boxes` that no stronger one overlaps by NMS_IOU, strongest first.

    `boxes` [n, 4] are corner and size.
    """
    if not len(boxes):
        return np.zeros(0, np.intp)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, NMS_IOU)
    return np.asarray(kept, np.intp)
