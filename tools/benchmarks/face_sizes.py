"""The share of annotated faces that one detection pass finds, by the side of the face in the pass.

The pictures are reduced in steps, so that each face has several sizes. SETS are the names of the
sets; EVERY=3 uses each third picture.
"""

import json
import os
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from tools.benchmarks.exposure import sources
from worker.detection.canvas import Pyramid
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections, box_sides, overlap
from worker.detection.presets import PassSettings
from worker.detection.tiled import one_by_one
from worker.models import load_model
from worker.settings import WorkerSettings

SETS = "crowd,masks,wider"
MEDIANS = (7, 9, 11, 13, 16, 20)  # sides of the median face in the reduced pictures, in pixels
BOUNDS = (6, 7, 8, 9, 10, 11, 12, 13, 15, 18, 24)  # limits of the classes of sides, in pixels
SAME_FACE = 0.3  # intersection over union


def run() -> None:
    """Print a line for each set: faces and found faces, by their side in the pass."""
    names, every = (os.environ.get("SETS") or SETS).split(","), int(os.environ.get("EVERY") or 1)
    missing = [name for name in names if not (sources()[0] / name / "annotations.json").is_file()]
    if missing:
        print(f"bench: face_sizes needs the annotated sets {', '.join(missing)}", file=sys.stderr)
        return
    settings = WorkerSettings()
    model = load_model(settings)
    threshold = settings.score_threshold or model.score_threshold
    classes = [f"{low}-{high}" for low, high in pairwise(BOUNDS)]
    table = Table("set", *classes, title="share of faces found, by side in pixels of the pass")
    for name in names:
        faces: Counter[str] = Counter()
        found: Counter[str] = Counter()
        folder = sources()[0] / name
        for item in json.loads((folder / "annotations.json").read_text())["images"][::every]:
            _count(
                folder, item, lambda canvas: model.predict(canvas[None])[0], threshold, faces, found
            )
        shares = {
            each: round(found[each] / faces[each], 3) if faces[each] else None for each in classes
        }
        print(
            json.dumps({"bench": "face_sizes", "set": name, "faces": dict(faces), "found": shares}),
            flush=True,
        )
        table.add_row(name, *(str(share) for share in shares.values()))
    Console(stderr=True).print(table)


def _count(
    folder: Path,
    item: dict[str, Any],
    infer: Any,
    threshold: float,
    faces: Counter[str],
    found: Counter[str],
) -> None:
    """Count faces and found faces of one picture in each of its sizes."""
    boxes = np.array(_plain(item), np.float32).reshape(-1, 4)
    pixels = cv2.imread(str(folder / item["file"]))
    if not len(boxes) or pixels is None:
        return
    picture = Pyramid(np.ascontiguousarray(pixels[..., ::-1]).astype(np.uint8))
    sides = box_sides(boxes)
    for median in MEDIANS:
        factor = median / float(np.median(sides))
        if factor > 1:
            continue
        view = picture.resized(factor)
        one_pass = PassSettings((max(view.shape),), 1, 1, mirrored=False, turned="never")
        detected: Detections = ScaledDetector(one_by_one(infer), one_pass, threshold).detect(view)
        for box, side in zip(boxes * factor, sides * factor, strict=True):
            for low, high in pairwise(BOUNDS):
                if low <= side < high:
                    faces[f"{low}-{high}"] += 1
                    found[f"{low}-{high}"] += bool(
                        overlap(box, detected.boxes_xyxy).max(initial=0) >= SAME_FACE
                    )


def _plain(item: dict[str, Any]) -> list[list[float]]:
    """Return the faces that the annotations mark neither as blurred nor as covered."""
    every = item.get("attrs") or [{}] * len(item["faces"])
    found = []
    for box, attributes in zip(item["faces"], every, strict=True):
        known = attributes or {}
        if known.get("blur", 0) < 2 and known.get("occlusion", 0) < 2:
            found.append(box)
    return found
