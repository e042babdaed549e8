"""Detections compared with labels: precision, recall and false alarms by threshold, and AP."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training.data.dataset import FACE
from worker.detection.faces import Boxes, Detections, overlap

FOUND_IOU = 0.5
IGNORED_SHARE = 0.5  # a detection with this share of its area in an ignored area does not count
# Ranges of the side, in pixels, of a square with the area of the face.
SIZES = ((0, 16), (16, 32), (32, 64), (64, 128), (128, 100_000))
MOST = 1000  # detections per picture that count


@dataclass(frozen=True)
class Judged:
    """The labels and detections of one picture, matched with each other.

    `faces` [n, 4] and `ignore` [m, 4] are x1 y1 x2 y2. `face_of` contains for each detection the
    index of its face, -1 for a false alarm, or -2 for a detection in an ignored area. `found_at`
    contains for each face the highest threshold that still finds it, or 0.
    """

    faces: Boxes
    ignore: Boxes
    found: Detections
    face_of: NDArray[np.intp]
    found_at: NDArray[np.float32]


def judged(faces: Boxes, ignore: Boxes, found: Detections) -> Judged:
    """Match detections with faces, in the order of their scores.

    A detection gets the unmatched face that it overlaps most, by at least FOUND_IOU.
    """
    face_of = np.full(len(found), -1)
    found_at = np.zeros(len(faces), np.float32)
    for i in np.argsort(-found.scores, kind="stable"):
        box = found.boxes_xyxy[i]
        shared = (
            np.where(found_at > 0, 0, overlap(box, faces))
            if len(faces)
            else np.zeros(0, np.float32)
        )
        if len(shared) and shared.max() >= FOUND_IOU:
            best = int(shared.argmax())
            face_of[i], found_at[best] = best, found.scores[i]
        elif len(ignore) and _share_within(box, ignore).max() >= IGNORED_SHARE:
            face_of[i] = -2
    return Judged(faces, ignore, found, face_of, found_at)


def _share_within(box: Boxes, areas: Boxes) -> NDArray[np.float32]:
    sides = (np.minimum(box[2:], areas[:, 2:]) - np.maximum(box[:2], areas[:, :2])).clip(0)
    share: NDArray[np.float32] = sides.prod(axis=1) / max(float((box[2:] - box[:2]).prod()), 1e-9)
    return share


def counts(pictures: Sequence[Judged]) -> tuple[int, int]:
    """Return the numbers of found faces and of false alarms."""
    face_of = np.concatenate([picture.face_of for picture in pictures])
    return int((face_of >= 0).sum()), int((face_of == -1).sum())


@dataclass(frozen=True)
class Curve:
    """Recall, precision and false alarms per picture at each of the thresholds, which decrease."""

    thresholds: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    alarms: NDArray[np.float64]

    def recall_at(self, alarms: float) -> float:
        """Return the recall at the lowest threshold with at most `alarms` per picture."""
        return float(self.recall[self.alarms <= alarms].max(initial=0.0))

    def thresholds_within(self, alarms: float) -> NDArray[np.float64]:
        """Return the thresholds that find a face with at most `alarms` per picture."""
        return self.thresholds[(self.alarms <= alarms) & (self.recall > 0)]


def curve(pictures: Sequence[Judged]) -> Curve:
    counts = np.concatenate([picture.face_of for picture in pictures])
    scores = np.concatenate([picture.found.scores for picture in pictures])[counts > -2]
    hit = counts[counts > -2] >= 0
    order = np.argsort(-scores, kind="stable")
    scores, hit = scores[order], hit[order]
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # one point per score
    hits, alarms = np.cumsum(hit)[last], np.cumsum(~hit)[last]
    faces = max(1, sum(len(picture.faces) for picture in pictures))
    return Curve(
        scores[last].astype(np.float64),
        hits / faces,
        hits / np.maximum(hits + alarms, 1),
        alarms / len(pictures),
    )


def average_precision(pictures: Sequence[Judged]) -> dict[str, float | None]:
    """Return the mAP of COCO (IoU 0.5 to 0.95), AP50, and AP50 by face size.

    The value is None for a size without faces.
    """
    truth, results = as_coco(pictures, FACE)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        labels = COCO()
        labels.dataset = truth
        labels.createIndex()
        evaluation = COCOeval(labels, labels.loadRes(results) if results else COCO(), "bbox")
        evaluation.params.imgIds = [image["id"] for image in truth["images"]]
        evaluation.params.catIds = [1]
        evaluation.params.areaRng = [(0, 1e10), *((low**2, high**2) for low, high in SIZES)]
        evaluation.params.areaRngLbl = ["all", *map(str, range(len(SIZES)))]
        evaluation.params.maxDets = [MOST]
        if not results:
            return {"mAP": 0.0, "AP50": 0.0, **{size_name(size): None for size in SIZES}}
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, :, 0]  # by IoU, recall, size
    return {
        "mAP": _mean(precision[:, :, 0]),
        "AP50": _mean(precision[0, :, 0]),
        **{size_name(size): _mean(precision[0, :, i + 1]) for i, size in enumerate(SIZES)},
    }


def size_name(size: tuple[int, int]) -> str:
    low, high = size
    return f"{low}–{high} px" if high < SIZES[-1][1] else f"from {low} px"


def as_coco(pictures: Sequence[Judged], label: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the labels of `pictures` as a data set of COCO, and the detections as its results."""
    labels: list[dict[str, Any]] = []
    results = []
    for number, picture in enumerate(pictures, 1):
        for boxes, crowd in ((picture.faces, 0), (picture.ignore, 1)):
            for box in boxes:
                x, y, width, height = _xywh(box)
                labels.append({
                    "id": len(labels) + 1, "image_id": number, "category_id": 1,
                    "bbox": [x, y, width, height], "area": width * height, "iscrowd": crowd,
                })  # fmt: skip
        for box, score in zip(picture.found.boxes_xyxy, picture.found.scores, strict=True):
            result = {
                "image_id": number,
                "category_id": 1,
                "bbox": _xywh(box),
                "score": float(score),
            }
            results.append(result)
    images = [{"id": number} for number in range(1, len(pictures) + 1)]
    return {
        "images": images,
        "annotations": labels,
        "categories": [{"id": 1, "name": label}],
    }, results


def _xywh(box: Boxes) -> list[float]:
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[values > -1]
    return round(float(known.mean()), 4) if len(known) else None
