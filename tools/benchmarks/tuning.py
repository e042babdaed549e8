"""Benefit and cost of the settings of detection and masking.

The benefit is the number of exposed faces; the costs are spill and the pixels of the passes.

``python -m tools.benchmarks.tuning 'preset=fast' 'score_threshold=0.15 feather=0' 'EDGE_SLACK=2'``
measures three variants. Names in lower case are worker settings, those in capitals are constants of
`worker.detection.detector` and `worker.detection.passes`. Without arguments it measures the
variants in docs/detection.md.

The detector and the masks are real and judged as in the benchmark `exposure`, but the outputs are
not encoded. The detections on each canvas are cached in FACES_CACHE (by default in the user's
cache), so that variants with the same passes take only seconds.
"""

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import platformdirs
from rich.console import Console
from rich.table import Table

from tools.benchmarks.exposure import SETS, sources
from worker.bootstrap import mask_style
from worker.detection import detector, passes
from worker.detection.centerface.default import SCORE_THRESHOLD
from worker.detection.centerface.maps import MIN_SCORE
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections, Sightings
from worker.detection.tiled import one_by_one
from worker.masking import hiding
from worker.models import load_model
from worker.pixels import Pixels
from worker.settings import WorkerSettings

# Limits of the judge.
EXPOSED = 0.5  # surviving share of the eye band's structure from which a face is exposed
CHANGED = 24  # levels; a pixel outside of all faces that changed more counts as spill
VARIANTS = (
    "",
    "preset=fast",
    "preset=thorough",
    "score_threshold=0.12",
    "score_threshold=0.25",
    "score_threshold=0.35",
    "scales=960",
    "scales=480,1280",
    "max_enlargement=1",
    "mirrored=true",
    "turned=never",
    "EDGE_SLACK=0",
    "WEAK_SCORE_FACTOR=1",
    "MIN_RELIABLE_SIDE=0 MAX_RELIABLE_SIDE=100000",
    "MIN_RELIABLE_SIDE=40",
    "shape=ellipse",
    "region=full margin=0.2",
)


@dataclass
class Remembering:
    """A model whose detections are kept in `folder`."""

    infer: Callable[[Pixels], Detections]
    folder: Path
    megapixels: float = 0.0
    known: dict[str, Detections] = field(default_factory=dict)

    def __call__(self, canvas: Pixels) -> Detections:
        self.megapixels += canvas.shape[0] * canvas.shape[1] / 1e6
        digest = hashlib.sha1(
            repr(canvas.shape).encode() + canvas.tobytes(), usedforsecurity=False
        ).hexdigest()
        if digest not in self.known:
            path = self.folder / f"{digest}.npz"
            if not path.exists():
                found = self.infer(canvas)
                np.savez(
                    path,
                    boxes=found.boxes_xyxy,
                    scores=found.scores,
                    landmarks=found.sightings.landmarks,
                )
            with np.load(path) as kept:
                seen = Sightings.of(kept["boxes"], kept["landmarks"])
                self.known[digest] = Detections(kept["boxes"], kept["scores"], seen)
        return self.known[digest]


@dataclass(frozen=True)
class Labelled:
    """An annotated picture: its pixels, BGR, and the boxes of its faces.

    `outside` is true for the pixels that are not near any face.
    """

    pixels: Pixels
    faces: list[list[float]]
    outside: np.ndarray[Any, np.dtype[np.bool_]]


def labelled(folder: Path) -> Iterator[Labelled]:
    for item in json.loads((folder / "annotations.json").read_text())["images"]:
        pixels = cv2.imread(str(folder / item["file"]), cv2.IMREAD_COLOR)
        assert pixels is not None
        outside = np.ones(pixels.shape[:2], bool)
        for x1, y1, x2, y2 in item["faces"] + item.get("ignore", []):
            w, h = x2 - x1, y2 - y1
            rows = slice(max(int(y1 - h / 2), 0), int(y2 + h / 2) + 1)
            outside[rows, max(int(x1 - w / 2), 0) : int(x2 + w / 2) + 1] = False
        yield Labelled(pixels.astype(np.uint8), item["faces"], outside)


def measure(
    variant: str, sets: dict[str, list[Labelled]], model: Remembering, judge: Any
) -> dict[str, Any]:
    """Return the exposed faces, the spill and the megapixels per picture, by set."""
    given: dict[str, Any] = dict(part.split("=", 1) for part in variant.split())
    settings = WorkerSettings(**{name: value for name, value in given.items() if name.islower()})
    constants: dict[str, Any] = {
        name: float(value) for name, value in given.items() if name.isupper()
    }
    threshold = settings.score_threshold or SCORE_THRESHOLD
    finder = ScaledDetector(one_by_one(model), settings.pass_settings(), threshold)
    style = mask_style(settings)
    result: dict[str, Any] = {"bench": "tuning", "variant": variant or "as configured"}

    def one(picture: Labelled) -> tuple[int, float]:
        found = finder.detect(np.ascontiguousarray(picture.pixels[..., ::-1]))
        hidden = hiding.hide(picture.pixels, found.sightings, style)
        survived = [judge.survived(picture.pixels, hidden, box) for box in picture.faces]
        changed = np.abs(picture.pixels.astype(np.int16) - hidden).max(axis=2) > CHANGED
        spill = float(changed[picture.outside].mean()) if picture.outside.any() else 0.0
        return sum(share is not None and share >= EXPOSED for share in survived), spill

    with (
        patch.dict(vars(detector), constants),
        patch.dict(vars(passes), constants),
        ThreadPoolExecutor(2) as pool,
    ):
        for name, pictures in sets.items():
            model.megapixels = 0.0
            measured = list(pool.map(one, pictures))
            faces = sum(len(picture.faces) for picture in pictures)
            exposed = sum(count for count, _ in measured)
            result[name] = {
                "exposed": exposed,
                "exposed_rate": round(exposed / faces, 4),
                "spill": round(float(np.mean([spill for _, spill in measured])), 5),
                "megapixels": round(model.megapixels / len(pictures), 3),
            }
    return result


def main(variants: list[str]) -> int:
    data, judge_path = sources()
    missing = [
        str(path) for path in (judge_path, *(data / name for name in SETS)) if not path.exists()
    ]
    if missing:
        print(f"bench: tuning needs {', '.join(missing)}", file=sys.stderr)
        return 1
    spec = importlib.util.spec_from_file_location("judge", judge_path)
    assert spec is not None
    assert spec.loader is not None
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    saved_model = load_model(WorkerSettings(score_threshold=MIN_SCORE))
    kept = Path(os.environ.get("FACES_CACHE") or platformdirs.user_cache_path("veil") / "tuning")
    folder = kept / saved_model.digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    model = Remembering(lambda canvas: saved_model.predict(canvas[None])[0], folder)
    sets = {name: list(labelled(data / name)) for name in SETS}
    table = Table("variant", *(f"{name}: exposed, spill, megapixels" for name in SETS))
    for variant in variants or VARIANTS:
        result = measure(variant, sets, model, judge)
        print(json.dumps(result), flush=True)
        cells = (result[name] for name in SETS)
        table.add_row(
            result["variant"],
            *(
                f"{c['exposed']} ({c['exposed_rate']:.2%})  {c['spill']:.2%}  {c['megapixels']:.2f}"
                for c in cells
            ),
        )
    Console(stderr=True, width=160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
