"""CenterFace's maps: their layout, and the decoder that turns arrays of them into faces.

worker.detection.centerface.network decodes the same maps in TensorFlow.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed
from worker.detection.faces import LANDMARKS, Detections, Sightings


@dataclass(frozen=True)
class Layout:
    """The channels of the maps.

    They are the logit of the score of each of `classes`, the size's logarithm (y x), the centre's
    offset (y x) and, unless `landmarks` is 0, that number of landmarks (y x).
    """

    classes: int = 1
    landmarks: int = LANDMARKS

    @property
    def channels(self) -> tuple[int, int, int, int]:
        return self.classes, 2, 2, 2 * self.landmarks


DEFAULT_LAYOUT = Layout()
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


def decode(
    maps: NDArray[np.float32], least_score: float = MIN_SCORE, layout: Layout = DEFAULT_LAYOUT
) -> Detections:
    """Return the faces of `maps`, float32 [height, width, channels], in pixels of the picture.

    With several classes a point may have a detection of each, and boxes of different classes do not
    suppress each other. Points below `least_score` are dropped before points are compared, which
    does not change the others. Raises DetectionFailed if a value is not finite.
    """
    _check_finite(maps)
    rows, columns, kinds = np.nonzero(maps[..., : layout.classes] >= logit(least_score))
    places = np.stack([rows, columns], axis=1)
    return decode_points(maps[rows, columns], places, kinds, layout)


# Sizes that are too large for a number become boxes that are not finite, which callers refuse.
@np.errstate(over="ignore", invalid="ignore")
def decode_points(
    points: NDArray[np.float32],
    places: NDArray[np.intp],
    kinds: NDArray[np.intp],
    layout: Layout = DEFAULT_LAYOUT,
) -> Detections:
    """Return the faces of the `points` of the maps, float32 [n, channels], in pixels.

    `places` [n, 2] are their rows and columns, and `kinds` [n] the classes, from 0 on, of which
    they are detections. Centre = index + offset + 0.5 and size = exp(scale), in strides, y first. A
    landmark is its box's first corner plus its share of the box's size.
    """
    logits = points[np.arange(len(points)), kinds]
    order = np.argsort(-logits, kind="stable")
    strongest, beyond = order[:CANDIDATES], order[CANDIDATES : CANDIDATES + 1]
    scores, kinds = _scores(logits[strongest]), kinds[strongest]
    _, scale, offset, shares = np.split(points[strongest], np.cumsum(layout.channels)[:-1], axis=1)
    size = np.exp(scale) * STRIDE
    corner = (places[strongest] + offset + 0.5) * STRIDE - size / 2
    kept = _kept(np.concatenate([corner, size], axis=1), scores, kinds)
    left_out = scores[kept[MAX_DETECTIONS : MAX_DETECTIONS + 1]].max(initial=0)
    left_out = max(left_out, _scores(logits[beyond]).max(initial=0))
    kept = kept[:MAX_DETECTIONS]
    corner, size = corner[kept].astype(np.float32), size[kept]
    boxes = np.concatenate([corner, corner + size], axis=1)[:, [1, 0, 3, 2]]
    landmarks = None
    if layout.landmarks:
        shares = shares[kept].reshape(-1, layout.landmarks, 2)
        landmarks = (corner[:, None] + shares * size[:, None])[..., ::-1]
    sightings = Sightings.of(boxes, landmarks)
    return Detections(boxes, scores[kept], sightings, float(left_out), kinds[kept] + 1)


def logit(score: float) -> float:
    """Return the value in the maps that a `score` between 0 and 1 has."""
    return float(np.log(score / (1 - score)))


def _scores(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return scores


def _check_finite(maps: NDArray[np.float32]) -> None:
    """Raise DetectionFailed if a value is not finite: NaN is below any threshold, so no face."""
    if not np.isfinite(maps).all():
        raise DetectionFailed(NOT_FINITE)


def _kept(
    boxes: NDArray[np.floating], scores: NDArray[np.float32], kinds: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return the rows of `boxes`, strongest first, that no stronger one of their class overlaps."""
    kept = []
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        kept.append(members[_non_maximum_suppression(boxes[members], scores[members])])
    return np.sort(np.concatenate([np.zeros(0, np.intp), *kept]))


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
