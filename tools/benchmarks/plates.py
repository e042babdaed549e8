"""The share of annotated licence plates that are hidden, by height and by origin of the picture.

The set is in FACES_DATA, as for `tools.benchmarks.exposure`, and has an origin for each picture;
SETS is by default plates_dev. The plate detector that comes with Veil finds the plates, unless
VEIL_MODELS names another model. All other settings are those of the environment. The last line has
the time that the plate detector of the package takes beside faces.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tasks.settings import PREFIX
from tools.benchmarks.exposure import sources
from tools.benchmarks.harness.rates import Rate
from worker.bootstrap import build_anonymizer
from worker.detection.faces import Boxes, Detections, overlap
from worker.masking.regions import covered_pixels, regions
from worker.settings import WorkerSettings
from worker.treatments import AS_CONFIGURED, Treatments

SETS = "plates_dev"
# The set whose pictures show what plates cost beside faces; every third of them is measured.
CROWD, EVERY = "crowd", 3
MODELS = {"faces": "default", "both": "default,plates", "plates": "plates"}
PLATE = "plate"
HIDDEN = 0.9  # the share of a plate's box that is covered if it is hidden
FALSE = 0.1  # a found object that overlaps every plate by less (intersection over union) is false
HEIGHTS = (0, 16, 32, 64, 10**6)  # limits of the classes of heights, in pixels
READABLE = 16  # the height in pixels from which on characters can be read


@dataclass(frozen=True)
class Plate:
    """An annotated plate: its height in pixels, the origin of its picture, and the verdict."""

    height: float
    origin: str
    is_hidden: bool

    @property
    def size(self) -> str:
        low, high = next(pair for pair in pairwise(HEIGHTS) if self.height < pair[1])
        return f"{low}-{high} px" if high < HEIGHTS[-1] else f"{low} px and more"


@dataclass(frozen=True)
class Judged:
    """The verdict on a picture: its plates, and the found objects that are no annotated plate."""

    plates: tuple[Plate, ...]
    false: int
    spill: float


def run() -> None:
    """Print a line for each group of plates, and one with false areas a picture and spill."""
    data, _ = sources()
    for name in (os.environ.get("SETS") or SETS).split(","):
        folder = data / name
        if not folder.exists():
            print(f"bench: plates needs {folder}", file=sys.stderr)
            return
        started = time.perf_counter()
        pictures = list(judged(folder))
        seconds = time.perf_counter() - started
        table = Table("by", "value", "plates", "hidden", "95 %", title=name)
        for by, value, rate in groups([plate for one in pictures for plate in one.plates]):
            low, high = rate.interval
            line = {
                "bench": "plates",
                "set": name,
                "by": by,
                "value": value,
                "plates": rate.cases,
                "hidden": rate.hits,
                "share": round(rate.share, 4),
                "interval": [round(low, 4), round(high, 4)],
            }
            print(json.dumps(line), flush=True)
            share = f"{rate.hits:,} ({rate.share:.1%})"
            table.add_row(by, value, f"{rate.cases:,}", share, f"{low:.1%} to {high:.1%}")
        summary = {
            "pictures": len(pictures),
            "false_areas_a_picture": round(sum(one.false for one in pictures) / len(pictures), 3),
            "spill": round(float(np.mean([one.spill for one in pictures])), 5),
            "seconds": round(seconds, 1),
        }
        print(json.dumps({"bench": "plates", "set": name, **summary}), flush=True)
        table.caption = (
            f"{summary['false_areas_a_picture']} false areas a picture, "
            f"{summary['spill']:.2%} of the pixels away from plates hidden, {seconds:.0f} s"
        )
        Console(stderr=True).print(table)
    if (data / CROWD).exists():
        print(json.dumps({"bench": "plates", "set": CROWD, **cost(data / CROWD)}), flush=True)


def cost(folder: Path) -> dict[str, float]:
    """Return the processor time of detection in pictures of `folder`, as shares of that of faces.

    They are ``both``, faces and plates, and ``plates`` alone.
    """
    contents = [(folder / picture["file"]).read_bytes() for picture in _listed(folder, EVERY)]
    detectors = {
        name: build_anonymizer(WorkerSettings(models=models)) for name, models in MODELS.items()
    }
    seconds = dict.fromkeys(detectors, 0.0)
    for detector in detectors.values():
        detector.detect_file(contents[0])
    for content in contents:
        for name, detector in detectors.items():
            started = time.process_time()
            detector.detect_file(content)
            seconds[name] += time.process_time() - started
    shares = {name: round(seconds[name] / seconds["faces"], 2) for name in ("both", "plates")}
    return {"pictures": len(contents), **shares}


def judged(folder: Path, every: int = 1) -> Iterator[Judged]:
    """Yield the verdict on each picture of the annotated set in `folder`, or on one of `every`."""
    names_models = PREFIX + "MODELS" in os.environ or PREFIX + "MODEL" in os.environ
    chosen = {} if names_models else {"models": "plates"}
    anonymizer = build_anonymizer(WorkerSettings.load(**chosen))
    for picture in _listed(folder, every):
        boxes = [one["box"] for one in picture["objects"] if one["label"] == PLATE]
        found = anonymizer.detect_file((folder / picture["file"]).read_bytes()).detections
        size = picture["width"], picture["height"]
        covered = hidden_pixels(found, anonymizer.treatments, size)
        plates = tuple(
            Plate(box[3] - box[1], picture.get("origin", "unknown"), is_hidden(covered, box))
            for box in boxes
        )
        annotated = np.array(boxes, np.float32).reshape(-1, 4)
        yield Judged(plates, false_areas(found, annotated), _spill(covered, annotated))


def _listed(folder: Path, every: int) -> list[dict[str, Any]]:
    """Return the entries of an annotated set, one of `every`."""
    images: list[dict[str, Any]] = json.loads((folder / "annotations.json").read_text())["images"]
    return images[::every]


def hidden_pixels(
    found: Detections, treatments: Treatments, size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return which pixels of a picture of `size`, width and height, are hidden: bool [h, w]."""
    width, height = size
    covered = np.zeros((height, width), bool)
    for part in treatments.parts(found, AS_CONFIGURED):
        hidden = regions(part.sightings, part.style, width, height)
        covered |= covered_pixels(hidden, (0, 0, width, height))
    return covered


def is_hidden(covered: NDArray[np.bool_], box: list[float]) -> bool:
    x1, y1, x2, y2 = (round(side) for side in box)
    part = covered[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
    return bool(part.mean() >= HIDDEN) if part.size else True


def false_areas(found: Detections, annotated: Boxes) -> int:
    """Return the number of `found` objects that overlap no box of `annotated` enough."""
    if not len(annotated):
        return len(found)
    return sum(float(overlap(box, annotated).max()) < FALSE for box in found.boxes_xyxy)


def _spill(covered: NDArray[np.bool_], annotated: Boxes) -> float:
    """Return the share of hidden pixels, of those outside of twice each annotated box."""
    outside = np.ones(covered.shape, bool)
    for x1, y1, x2, y2 in annotated.tolist():
        x, y = (x2 - x1) / 2, (y2 - y1) / 2
        top, left = max(int(y1 - y), 0), max(int(x1 - x), 0)
        outside[top : int(y2 + y) + 1, left : int(x2 + x) + 1] = False
    return float(covered[outside].mean()) if outside.any() else 0.0


def groups(plates: list[Plate]) -> Iterator[tuple[str, str, Rate]]:
    """Yield the groups of `plates`: all, the readable ones, by height and by origin."""
    yield "all", "", _rate(plates)
    readable = [plate for plate in plates if plate.height >= READABLE]
    yield "all", f"{READABLE} px and more", _rate(readable)
    by_height = sorted(plates, key=lambda plate: plate.height)
    for size in dict.fromkeys(plate.size for plate in by_height):
        yield "height", size, _rate([plate for plate in plates if plate.size == size])
    for origin in sorted({plate.origin for plate in plates}):
        yield "origin", origin, _rate([plate for plate in plates if plate.origin == origin])


def _rate(plates: list[Plate]) -> Rate:
    return Rate(sum(plate.is_hidden for plate in plates), len(plates))
