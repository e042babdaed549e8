"""From a picture to its faces: Detections, the Detector protocol, and detection at several scales."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]

MULTIPLE = 64  # sides of a canvas are padded to multiples of this: few shapes, so that batches form
PADDING = 114  # gray level of the padding
MERGE_IOU = 0.4  # two passes that agree to this degree saw the same face


@dataclass(frozen=True)
class Detections:
    """Faces in one picture.

    `boxes_xyxy` is float32 [n, 4]: x1 y1 x2 y2 in pixels of the picture, within it, strongest first.
    `scores` is float32 [n], between 0 and 1.
    """

    boxes_xyxy: Boxes
    scores: NDArray[np.float32]

    @classmethod
    def none(cls) -> "Detections":
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    @classmethod
    def joined(cls, found: Sequence["Detections"]) -> "Detections":
        """All of `found`, which is not empty, one after the other."""
        boxes = np.concatenate([detections.boxes_xyxy for detections in found])
        return cls(boxes, np.concatenate([detections.scores for detections in found]))

    def __len__(self) -> int:
        return len(self.scores)


class Detector(Protocol):
    """Finds faces. The one seam that tests may replace."""

    def detect(self, picture: Pixels) -> Detections:
        """The faces in `picture`, uint8 RGB [height, width, 3].

        Raises DetectorUnavailable past its deadline and DetectionFailed when the model fails on it.
        """


Infer = Callable[[Pixels], Detections]
"""One canvas, uint8 RGB [height, width, 3], to its detections in canvas pixels."""


@dataclass(frozen=True)
class ScaledDetector:
    """A Detector that looks at each picture at several sizes and merges what it finds.

    `scales` are the longer sides of the passes in pixels. CenterFace loses large faces in a large picture
    and small faces in a small one; neither pass alone will do.
    """

    infer: Infer
    scales: Sequence[int]
    max_enlargement: float
    score_threshold: float
    fixed_size: tuple[int, int] | None = None
    """(height, width) of a model that takes only this size."""

    def detect(self, picture: Pixels) -> Detections:
        found = Detections.joined([self._pass(picture, factor) for factor in self._factors(picture)])
        return merge(clip(found, picture.shape[1], picture.shape[0]))

    def _factors(self, picture: Pixels) -> list[float]:
        height, width = picture.shape[:2]
        if self.fixed_size:
            return [min(self.fixed_size[0] / height, self.fixed_size[1] / width)]
        factors: list[float] = []
        for side in sorted(self.scales):
            factor = min(side / max(height, width), self.max_enlargement)
            # Two passes at nearly one size see the same faces.
            if not factors or factor > 1.1 * factors[-1]:
                factors.append(factor)
        return factors

    def _pass(self, picture: Pixels, factor: float) -> Detections:
        height, width = picture.shape[:2]
        size = max(1, round(width * factor)), max(1, round(height * factor))
        interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(picture, size, interpolation=interpolation)
        canvas_size = self.fixed_size or (_padded(size[1]), _padded(size[0]))
        canvas = np.full((*canvas_size, 3), PADDING, np.uint8)
        canvas[: size[1], : size[0]] = resized
        found = self.infer(canvas)
        strong = ~(found.scores < self.score_threshold)  # NaN stays, and is refused below
        back = np.array([width / size[0], height / size[1]] * 2, np.float32)
        return placed(Detections(found.boxes_xyxy[strong] * back, found.scores[strong]))


def _padded(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE


def placed(detections: Detections) -> Detections:
    """`detections` as they are; DetectionFailed if one has no place in a picture or no score."""
    boxes = detections.boxes_xyxy
    if np.isnan(detections.scores).any() or not (boxes[:, :2] <= boxes[:, 2:]).all():  # not so for NaN either
        raise DetectionFailed("the detector returned a box that ends before it starts, or something that is no number")
    return detections


def clip(detections: Detections, width: int, height: int) -> Detections:
    """The part of each box that lies in the picture; boxes with no part in it are dropped."""
    boxes = detections.boxes_xyxy.clip(0, np.array([width, height] * 2, np.float32))
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Detections(boxes[inside], detections.scores[inside])


def merge(detections: Detections, iou: float = MERGE_IOU) -> Detections:
    """One detection for boxes that show the same face: those that overlap a stronger one by at least `iou`.

    The merged box covers all of them. Plain non-maximum suppression keeps the strongest alone, and where the
    passes disagree about the edges that leaves an eye out: docs/detection.md has the figures.
    """
    order = np.argsort(-detections.scores, kind="stable")
    boxes, scores = detections.boxes_xyxy[order], detections.scores[order]
    alive = np.ones(len(scores), bool)
    strongest: list[int] = []
    merged = boxes.copy()
    for i in range(len(scores)):
        if alive[i]:
            same = alive & (overlap(boxes[i], boxes) >= iou)
            same[i] = True
            merged[i, :2], merged[i, 2:] = boxes[same, :2].min(axis=0), boxes[same, 2:].max(axis=0)
            strongest.append(i)
            alive &= ~same
    return Detections(merged[strongest], scores[strongest])


def overlap(box: Boxes, boxes: Boxes) -> NDArray[np.float32]:
    """Intersection over union of `box` [4] with each of `boxes` [n, 4]."""
    corner = np.maximum(box[:2], boxes[:, :2])
    opposite = np.minimum(box[2:], boxes[:, 2:])
    shared = (opposite - corner).clip(0).prod(axis=1)
    union = _area(box[None]) + _area(boxes) - shared
    ratio: NDArray[np.float32] = shared / np.maximum(union, 1e-9)
    return ratio


def _area(boxes: Boxes) -> NDArray[np.float32]:
    area: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
