"""The average precision of the detector on annotated faces, by the protocol of WIDER FACE.

A detection is right if its IoU with an annotated face is at least 0.5. Precision and recall are
taken at 1,000 thresholds of the scores, and the area below their curve is that of PASCAL VOC. Faces
that do not belong to a level of difficulty count neither as found nor as missed, and neither do
the detections of them: see https://shuoyang1213.me/WIDERFACE and the paper of Yang et al. (CVPR
2016). The levels are not the official ones, whose lists the sets lack: see LEVELS.

The sets are those of `tools.benchmarks.exposure`; SETS is by default wider. DETECTORS are presets,
`settings` for those of the environment, and `network`: one run of the default model over the
picture at its own size, with nothing else of Veil.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tools.benchmarks.exposure import sources
from worker.detection.canvas import padded
from worker.detection.centerface.default import SCORE_THRESHOLD
from worker.detection.centerface.maps import MIN_SCORE
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Boxes, Detections
from worker.detection.tiled import one_by_one
from worker.models import load_model
from worker.pixels import Pixels
from worker.settings import WorkerSettings

SETS, DETECTORS = "wider", "network,fast,balanced,thorough"
PRESETS = ("fast", "balanced", "thorough")
# The least height of the faces of each level, in pixels. The official lists follow from how well
# another detector found the faces of each of 61 events, which is mostly a matter of their height.
LEVELS = {"easy": 50, "medium": 30, "hard": 10}
MIN_IOU = 0.5
THRESHOLDS = 1000

Detect = Callable[[Pixels], Detections]


@dataclass(frozen=True)
class Compared:
    """The detections in a picture, compared with its annotated faces.

    `heights` are those of the faces, 0 for an area that is to be ignored. `scores` are those of the
    detections, highest first, and `face` the row of the face that each is on, or -1.
    """

    heights: NDArray[np.float64]
    scores: NDArray[np.float64]
    face: NDArray[np.intp]

    def outcomes(self, least_height: float) -> Iterator[tuple[float, bool]]:
        """Yield the score of each detection that counts, and whether it finds another face."""
        found: set[int] = set()
        for score, face in zip(self.scores.tolist(), self.face.tolist(), strict=True):
            if face >= 0 and self.heights[face] < least_height:
                continue
            yield score, face >= 0 and face not in found
            found.add(face)


def compared(annotated: Boxes, heights: NDArray[np.float64], found: Detections) -> Compared:
    """Compare the faces `found` with the boxes `annotated`, of `heights` [n]."""
    order = np.argsort(-found.scores, kind="stable")
    boxes = middle_boxes(found)[order]
    overlaps = _ious(boxes, annotated)
    face = np.full(len(boxes), -1)
    if len(annotated):
        is_match = overlaps.max(axis=1, initial=0) >= MIN_IOU
        face[is_match] = overlaps[is_match].argmax(axis=1)
    return Compared(heights, found.scores[order].astype(np.float64), face)


def middle_boxes(found: Detections) -> Boxes:
    """Return the medians of the edges of each face's sightings, [n, 4].

    The boxes of `found` cover all sightings of a face, because all of them are hidden.
    """
    sightings = found.sightings
    boxes = [
        np.median(sightings.boxes_xyxy[sightings.face == face], axis=0)
        for face in range(len(found))
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)


def average_precision(pictures: Iterable[Compared], least_height: float) -> float:
    """Return the average precision for the faces with at least the height `least_height`."""
    pictures = list(pictures)
    faces = sum(int((picture.heights >= least_height).sum()) for picture in pictures)
    outcomes = [one for picture in pictures for one in picture.outcomes(least_height)]
    scores, finds = np.array(outcomes, np.float64).reshape(-1, 2).T
    if not faces or not len(scores):
        return 0.0
    lowest, highest = scores.min(), scores.max()
    scores = (scores - lowest) / max(highest - lowest, np.finfo(np.float64).tiny)
    order = np.argsort(-scores, kind="stable")
    thresholds = 1 - np.arange(1, THRESHOLDS + 1) / THRESHOLDS
    counts = np.searchsorted(-scores[order], -thresholds, side="right")
    hits = np.concatenate([[0], np.cumsum(finds[order])])[counts]
    precision = np.concatenate([hits / np.maximum(counts, 1), [0]])
    recall = np.concatenate([[0], hits / faces])
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * best[:-1]).sum())


def run() -> None:
    """Print a line for each set and detector: average precision by level, and CPU seconds."""
    data, _ = sources()
    names = (os.environ.get("SETS") or SETS).split(",")
    if missing := [str(data / name) for name in names if not (data / name).exists()]:
        print(f"bench: average_precision needs {', '.join(missing)}", file=sys.stderr)
        return
    table = Table("set", "detector", "pictures", "faces", *LEVELS, "CPU seconds")
    for name in names:
        for detector in (os.environ.get("DETECTORS") or DETECTORS).split(","):
            figures = measured(data / name, _detect(detector))
            line = {"bench": "average_precision", "set": name, "detector": detector, **figures}
            print(json.dumps(line), flush=True)
            table.add_row(name, detector, *(str(value) for value in figures.values()))
    Console(stderr=True).print(table)


def measured(folder: Path, detect: Detect) -> dict[str, Any]:
    """Return the average precision of `detect` on the annotated set in `folder`, in percent."""
    pictures = []
    used = 0.0
    for item in json.loads((folder / "annotations.json").read_text())["images"]:
        pixels = cv2.imread(str(folder / item["file"]), cv2.IMREAD_COLOR)
        assert pixels is not None
        started = time.process_time()
        found = detect(np.ascontiguousarray(pixels[..., ::-1].astype(np.uint8)))
        used += time.process_time() - started
        faces, ignored = item["faces"], item.get("ignore", [])
        annotated = np.array([*faces, *ignored], np.float32).reshape(-1, 4)
        heights = (annotated[:, 3] - annotated[:, 1]).astype(np.float64)
        heights[len(faces) :] = 0
        pictures.append(compared(annotated, heights, found))
    least = min(LEVELS.values())
    return {
        "pictures": len(pictures),
        "faces": sum(int((picture.heights >= least).sum()) for picture in pictures),
        **{
            level: round(100 * average_precision(pictures, height), 1)
            for level, height in LEVELS.items()
        },
        "cpu_seconds": round(used, 1),
    }


def _detect(name: str) -> Detect:
    """Return the detector that DETECTORS calls `name`."""
    if name == "network":
        network = load_model(WorkerSettings(score_threshold=MIN_SCORE))
        return lambda picture: network.predict(padded(picture)[None])[0]
    settings = WorkerSettings(preset=name) if name in PRESETS else WorkerSettings.load()
    model = load_model(settings)
    return ScaledDetector(
        one_by_one(lambda canvas: model.predict(canvas[None])[0]),
        settings.pass_settings(),
        settings.score_threshold or SCORE_THRESHOLD,
    ).detect


def _ious(boxes: Boxes, others: Boxes) -> NDArray[np.float64]:
    """Return the IoU of each of `boxes` with each of `others`, [n, m].

    Corners are pixels that belong to the box, as in the evaluation of WIDER FACE.
    """
    ours, theirs = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    shared = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    intersection = (shared + 1).clip(0).prod(axis=-1)
    areas = (ours[..., 2:] - ours[..., :2] + 1).prod(axis=-1)
    other_areas = (theirs[..., 2:] - theirs[..., :2] + 1).prod(axis=-1)
    ious: NDArray[np.float64] = intersection / (areas + other_areas - intersection)
    return ious
