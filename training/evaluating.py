"""``veil train evaluate``: what a model finds of a split and what stays exposed, beside the bundled detector."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.storage.s3 import ObjectStore
from training import scoring
from training.dataset import Box, Dataset, Picture
from training.run import DESCRIPTION, Run
from training.scoring import Curve, Judged
from worker.bootstrap import load_model, mask_style
from worker.commands.progress import progress_bar
from worker.detection import own_model
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Boxes, Detections
from worker.detection.look import Look
from worker.detection.model import Model
from worker.masking import hiding
from worker.masking.regions import MaskStyle
from worker.pixels import Pixels
from worker.settings import WorkerSettings

FLOOR = 0.05  # the lowest threshold that is looked at
ALARM_RATES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)  # false ones a picture
# A face is exposed when half of the structure of its eye band survives: docs/detection.md.
BAND = (0.15, 0.2, 0.85, 0.6)  # x1 y1 x2 y2 of the eyes in a labelled box, shares of its sides
BAND_PIXELS = (64, 32)
DETAIL = 3.0  # sigma, pixels of the band: what is coarser is light and shade
EXPOSED = 0.5
CHANGED = 24  # levels that a pixel outside every face may differ before it counts as spill


@dataclass
class Remembering:
    """A model's answers to canvases, each asked for once."""

    model: Model
    known: dict[str, Detections] = field(default_factory=dict)

    def __call__(self, canvas: Pixels) -> Detections:
        digest = hashlib.sha256(repr(canvas.shape).encode() + canvas.tobytes()).hexdigest()
        if digest not in self.known:
            # A worker asks again where a model returned all that it can; here its first answer is judged.
            self.known[digest] = replace(self.model.predict(canvas[None])[0], left_out=0.0)
        return self.known[digest]


@dataclass(frozen=True)
class Figures:
    """What one model reaches. `shown` are the pictures at `threshold`."""

    name: str
    threshold: float
    precision: dict[str, float | None]
    curve: Curve
    exposed: int
    faces: int
    spill: float
    shown: tuple[Judged, ...]

    def summary(self) -> dict[str, Any]:
        recall, precision, alarms = self.at_threshold()
        return {
            "model": self.name,
            "threshold": round(self.threshold, 4),
            **self.precision,
            "recall": recall,
            "precision": precision,
            "false_alarms_a_picture": alarms,
            "recall_by_false_alarms": {str(rate): round(self.curve.recall_at(rate), 4) for rate in ALARM_RATES},
            "exposed": self.exposed,
            "faces": self.faces,
            "spill": round(self.spill, 5),
        }

    def at_threshold(self) -> tuple[float, float, float]:
        """Recall, precision and false alarms a picture at `threshold`."""
        hits = sum(int((picture.face_of >= 0).sum()) for picture in self.shown)
        alarms = sum(int((picture.face_of == -1).sum()) for picture in self.shown)
        return (
            round(hits / max(1, self.faces), 4),
            round(hits / max(1, hits + alarms), 4),
            round(alarms / len(self.shown), 3),
        )


def load(address: str, settings: WorkerSettings, folder: Path) -> Model:
    """The model of a finished run, or a SavedModel as VEIL_MODEL names it.

    A run is saved to `folder` first: what is measured is what would be served.
    """
    from worker.detection.saved_model import SavedModel

    path = Path(address).expanduser()
    if (path / DESCRIPTION).is_file():
        from training import exporting
        from training.fitting import finished_model

        exporting.save(finished_model(Run.load(path)), folder / "model", {})
        return SavedModel(folder / "model")
    return SavedModel(own_model.folder(address, lambda: ObjectStore.connect(settings)))


def evaluate(
    address: str, dataset: Dataset, split: str, settings: WorkerSettings, look: Look, alarms: float, compare: bool
) -> list[Figures]:
    """The figures of the model at `address`, and of the bundled one if `compare`; both look as `look` says.

    The threshold is the lowest with at most `alarms` false alarms a picture; the bundled model's is its own.
    """
    pictures = dataset.split(split)
    style = mask_style(settings)
    with tempfile.TemporaryDirectory(prefix="veil-evaluate-") as folder:
        model = load(address, settings, Path(folder))
        figures = [_measured(Path(address).name, model, dataset, pictures, look, style, alarms)]
    if compare:
        bundled = load_model(WorkerSettings(model=None, score_threshold=FLOOR))
        figures.append(_measured("bundled", bundled, dataset, pictures, look, style, None, bundled.score_threshold))
    return figures


def _measured(
    name: str,
    model: Model,
    dataset: Dataset,
    pictures: Sequence[Picture],
    look: Look,
    style: MaskStyle,
    alarms: float | None,
    threshold: float = FLOOR,
) -> Figures:
    answers = Remembering(model)
    with progress_bar(name, total=2 * len(pictures)) as bar:
        everything = []
        finder = ScaledDetector(answers, look, FLOOR, model.fixed_size)
        for picture in pictures:
            everything.append(_judged(picture, finder.detect(dataset.pixels(picture))))
            bar.advance()
        its_curve = scoring.curve(everything)
        if alarms is not None:
            threshold = min(max(its_curve.threshold_at(alarms), FLOOR), 0.95)
        finder = ScaledDetector(answers, look, threshold, model.fixed_size)
        exposed, spills, shown = 0, [], []
        for picture in pictures:
            pixels = dataset.pixels(picture)
            found = finder.detect(pixels)
            hidden = hiding.hide(pixels, found.seen, style)
            exposed += sum(survived(pixels, hidden, face) >= EXPOSED for face in picture.faces)
            spills.append(_spill(pixels, hidden, picture))
            shown.append(_judged(picture, found))
            bar.advance()
    faces = sum(len(picture.faces) for picture in pictures)
    precision = scoring.average_precision(everything)
    return Figures(name, threshold, precision, its_curve, exposed, faces, float(np.mean(spills)), tuple(shown))


def _judged(picture: Picture, found: Detections) -> Judged:
    """Each face by its surest sighting: what is hidden covers all of them, and is larger than any."""
    surest = np.unique(found.seen.face, return_index=True)[1]
    boxes = found.seen.boxes_xyxy[surest].clip(0, np.array([picture.width, picture.height] * 2, np.float32))
    return scoring.judged(_boxes(picture.faces), _boxes(picture.ignore), Detections(boxes, found.scores))


def survived(clear: Pixels, hidden: Pixels, face: Box) -> float:
    """The share of the eye band's fine structure that is the same in both pictures: 1 untouched, about 0 hidden."""
    first, second = (_band(pixels, face) for pixels in (clear, hidden))
    energy = max(float((first * first).sum()), float((second * second).sum()))
    return float((first * second).sum()) / energy if energy > 1e-3 else 0.0


def _band(pixels: Pixels, face: Box) -> NDArray[np.float32]:
    corner, size = np.array(face[:2]), np.array(face[2:]) - face[:2]
    left, top = np.floor(corner + size * BAND[:2]).astype(int)
    right, bottom = np.ceil(corner + size * BAND[2:]).astype(int)
    cut = pixels[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)]
    band = cv2.resize(cut, BAND_PIXELS, interpolation=cv2.INTER_AREA).astype(np.float32).mean(axis=2)
    detail: NDArray[np.float32] = band - cv2.GaussianBlur(band, (0, 0), DETAIL)
    return detail


def _spill(clear: Pixels, hidden: Pixels, picture: Picture) -> float:
    """The share of pixels away from every labelled face that changed visibly."""
    outside = np.ones(clear.shape[:2], bool)
    for x1, y1, x2, y2 in [*picture.faces, *picture.ignore]:
        x, y = (x2 - x1) / 2, (y2 - y1) / 2
        outside[max(int(y1 - y), 0) : int(y2 + y) + 1, max(int(x1 - x), 0) : int(x2 + x) + 1] = False
    changed = np.abs(clear.astype(np.int16) - hidden).max(axis=2) > CHANGED
    return float(changed[outside].mean()) if outside.any() else 0.0


def _boxes(boxes: Sequence[Box]) -> Boxes:
    return np.array(boxes, np.float32).reshape(-1, 4)
