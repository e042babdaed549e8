"""Print the extremes of the boxes and landmarks that the default model returns.

``python -m tools.benchmarks.answers [SET…]`` prints one JSON object to compare with the limits of
worker.detection.credible. It uses one picture in EVERY of each annotated set. FACES_DATA is the
folder of the sets.
"""

import json
import sys

import cv2
import numpy as np
from numpy.typing import NDArray

from tools.benchmarks.exposure import sources
from worker.detection import detector
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections
from worker.detection.presets import PRESETS
from worker.detection.tiled import one_by_one
from worker.models import load_model
from worker.pixels import Pixels
from worker.settings import WorkerSettings

SETS = ("crowd", "masks", "small", "people", "wider")
EVERY = 6


def distances(found: Detections, width: int, height: int) -> NDArray[np.float32]:
    """Return three distances for each detection, float32 [n, 3].

    They are the smallest share of a side inside of the canvas, the part of the box outside of the
    canvas in longer sides of the canvas, and the distance of the farthest landmark from the box in
    sides of the box.
    """
    first, last = found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:]
    canvas = np.array([width, height], np.float32)
    inside = (np.minimum(last, canvas) - np.maximum(first, 0)) / np.minimum(last - first, canvas)
    beyond = np.maximum(-first, last - canvas) / max(width, height)
    points, sides = found.sightings.landmarks, (last - first)[:, None]
    outside = np.maximum(first[:, None] - points, points - last[:, None]) / sides
    return np.stack(
        [inside.min(axis=1), beyond.max(axis=1), outside.max(axis=(1, 2))], axis=1
    ).astype(np.float32)


def main(names: list[str]) -> int:
    data, _ = sources()
    settings = WorkerSettings.load()
    model = load_model(settings)
    measured: list[NDArray[np.float32]] = []
    least = detector.WEAK_SCORE_FACTOR * model.score_threshold

    def infer(canvas: Pixels) -> Detections:
        (found,) = model.predict(canvas[None])
        measured.append(distances(found[found.scores >= least], canvas.shape[1], canvas.shape[0]))
        return found

    scaled = ScaledDetector(one_by_one(infer), PRESETS["thorough"], model.score_threshold)
    pictures = 0
    for name in names or SETS:
        for path in sorted((data / name / "images").iterdir())[::EVERY]:
            pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
            assert pixels is not None
            scaled.detect(np.ascontiguousarray(pixels[..., ::-1].astype(np.uint8)))
            pictures += 1
    every = np.concatenate(measured)
    report = {
        "pictures": pictures,
        "detections": len(every),
        "least_inside": round(float(every[:, 0].min()), 3),
        "most_beyond": round(float(every[:, 1].max()), 3),
        "farthest_landmark": round(float(every[:, 2].max()), 3),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
