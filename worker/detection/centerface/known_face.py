"""The known-answer test: each model looks at a photograph with one known face before it is used."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from PIL import Image

from tasks.errors import DetectionFailed, ModelInvalid, VeilError
from worker.detection.centerface import SCORE_THRESHOLD
from worker.detection.detector import MULTIPLE, PADDING, Halves
from worker.detection.faces import Boxes, Detections, credible, overlap
from worker.detection.model import Model, in_a_line
from worker.pixels import Pixels

PHOTOGRAPH = Path(__file__).with_name("known_face.jpg")
ANSWERS = Path(__file__).with_name(
    "known_face.json"
)  # `python -m tools.benchmarks.known_face` writes it
# The default model scores the known face above 0.8 in each view, and nothing else above 0.1.
SURE = 0.5
SAME_FACE = 0.3  # least overlap of the known face with the box of another model
SAME_READING = 0.5  # least overlap with the box if its four numbers are read in another order,
CLEARLY_BETTER = 1.5  # and by how much it must be larger than as the contract reads them


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted difference of a score, and of an edge or a landmark as a share of the
    box's side.
    """

    score: float
    position: float


TOLERANCES = {
    "tensorflow": Tolerance(0.01, 0.02),
    "litert": Tolerance(0.03, 0.04),
}  # docs/detection.md


@dataclass(frozen=True)
class View:
    """The photograph resized by `factor`, then turned by so many quarters counter-clockwise."""

    name: str
    factor: float = 1.0
    turn: int = 0

    def canvas(self, fixed_size: tuple[int, int] | None = None) -> tuple[Pixels, float]:
        """Return the canvas, uint8 RGB, and the factor by which the photograph was resized.

        A model of a `fixed_size` (height, width) gets the largest photograph that fits.
        """
        turned = np.rot90(photograph(), self.turn)
        factor = self.factor
        if fixed_size:
            factor = min(fixed_size[0] / turned.shape[0], fixed_size[1] / turned.shape[1])
        view = Halves(turned).resized(factor)
        height, width = fixed_size or (-(-side // MULTIPLE) * MULTIPLE for side in view.shape[:2])
        canvas = np.full((height, width, 3), PADDING, np.uint8)
        canvas[: view.shape[0], : view.shape[1]] = view
        return canvas, factor


UPRIGHT = View("upright")
VIEWS = (UPRIGHT, View("enlarged", factor=1.5), View("turned", turn=1))

Columns = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
# What exporters put in the place of y1 x1 y2 x2: from the four numbers to x1 y1 x2 y2.
READINGS: dict[str, Callable[[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], Columns]] = {
    "x1 y1 x2 y2": lambda a, b, c, d: (a, b, c, d),
    "x y width height": lambda a, b, c, d: (a, b, a + c, b + d),
    "y x height width": lambda a, b, c, d: (b, a, b + d, a + c),
    "centre x, centre y, width, height": lambda a, b, c, d: (
        a - c / 2,
        b - d / 2,
        a + c / 2,
        b + d / 2,
    ),
    "centre y, centre x, height, width": lambda a, b, c, d: (
        b - d / 2,
        a - c / 2,
        b + d / 2,
        a + c / 2,
    ),
}


@cache
def photograph() -> Pixels:
    """Return the photograph, uint8 RGB; its sides are multiples of 64."""
    with Image.open(PHOTOGRAPH) as image:
        return np.asarray(image.convert("RGB"))


@cache
def answers() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the recorded answers of the default model, by engine and by the name of the view."""
    recorded: dict[str, dict[str, dict[str, Any]]] = json.loads(ANSWERS.read_text())
    return recorded


def answer(found: Detections) -> dict[str, Any]:
    """Return what is recorded of `found`, which has one face."""
    return {
        "score": round(float(found.scores[0]), 4),
        "box_xyxy": found.boxes_xyxy[0].astype(float).round(2).tolist(),
        "landmarks": found.seen.landmarks[0].astype(float).round(2).tolist(),
    }


def sure(model: Model, canvas: Pixels) -> Detections:
    """Return the faces of which `model` is sure in `canvas`; ModelInvalid if its answer can't be
    right.
    """
    return _credible(model, _predicted(model, canvas), canvas, SURE)


def check_default(model: Model) -> None:
    """Raise ModelInvalid if the default model does not answer on this machine as it was
    recorded.
    """
    blank = np.full_like(photograph(), PADDING)
    wrong = "a face in a blank picture" if len(sure(model, blank)) else None
    if model.score_threshold != SCORE_THRESHOLD:
        wrong = f"its score_threshold is {model.score_threshold:g}, not {SCORE_THRESHOLD:g}"
    for view in VIEWS:
        found = sure(model, view.canvas()[0])
        wrong = wrong or _difference(
            found, answers()[model.engine][view.name], TOLERANCES[model.engine]
        )
    if wrong:
        raise ModelInvalid(
            f"the default model fails its test on this machine ({model.engine} on {model.device}): {wrong}: remove "
            f"{model.folder} and run `veil model build`; if it fails again, use another VEIL_ENGINE or another machine"
        )


def _difference(found: Detections, recorded: dict[str, Any], tolerance: Tolerance) -> str | None:
    """Return how `found` differs from what was recorded by more than `tolerance`, in words; None if
    it does not.
    """
    if len(found) != 1:
        return f"{len(found)} faces in the known photograph, not 1"
    now = answer(found)
    if abs(now["score"] - recorded["score"]) > tolerance.score:
        return f"score {now['score']:.3f} for the known face, not {recorded['score']:.3f}"
    x1, y1, x2, y2 = recorded["box_xyxy"]
    limit = tolerance.position * np.sqrt((x2 - x1) * (y2 - y1))
    for name in ("box_xyxy", "landmarks"):
        off = float(np.abs(np.subtract(now[name], recorded[name])).max())
        if not off <= limit:
            return f"{name} of the known face off by {off:.1f} pixels, more than {limit:.1f}"
    return None


def try_own(model: Model, score_threshold: float) -> None:
    """Try a model of a user's own on the photograph; ModelInvalid if its answers are no detections.

    It may be made to find something else, so a photograph in which it finds nothing is no more than
    a warning.
    """
    views = VIEWS if model.fixed_size is None else tuple(view for view in VIEWS if view.factor == 1)
    blank = np.full((*(model.fixed_size or photograph().shape[:2]), 3), PADDING, np.uint8)
    found = [_shares(_credible(model, _predicted(model, blank), blank, score_threshold), blank)]
    is_known = False
    for view in views:
        canvas, factor = view.canvas(model.fixed_size)
        predicted = _predicted(model, canvas)
        if view == UPRIGHT:
            counted = predicted[predicted.scores >= score_threshold]
            counted = counted[np.argsort(-counted.scores, kind="stable")]
            is_known = _is_known_face(
                model,
                counted.boxes_xyxy / factor,
                canvas.shape[0] / factor,
                canvas.shape[1] / factor,
            )
        found.append(_shares(_credible(model, predicted, canvas, score_threshold), canvas))
    first = found[0]
    if len(first) and all(
        each.shape == first.shape and np.allclose(each, first, atol=1e-4) for each in found
    ):
        raise ModelInvalid(
            f"{model.folder} answers the same for a photograph and a blank picture: look at how it was exported"
        )
    if not is_known:
        structlog.get_logger("veil").warning(
            "the model does not find the known face",
            folder=str(model.folder),
            score_threshold=score_threshold,
            effect="faces may be published, unless it is made to find something else",
        )


def _shares(found: Detections, canvas: Pixels) -> NDArray[np.float32]:
    """Return the boxes as shares of the canvas, and the scores, float32 [n, 5]."""
    sides = np.array([canvas.shape[1], canvas.shape[0]] * 2, np.float32)
    return np.column_stack([found.boxes_xyxy / sides, found.scores])


def _is_known_face(model: Model, boxes: Boxes, height: float, width: float) -> bool:
    """Return whether one of `boxes`, in pixels of the photograph and the strongest first, is the
    known face.

    Raise ModelInvalid if the strongest is the known face only with its four numbers in another
    order than the contract's. Among many boxes one would fit by chance.
    """
    known = np.array(answers()["tensorflow"][UPRIGHT.name]["box_xyxy"], np.float32)
    fit = float(overlap(known, boxes).max(initial=0))
    # As the model returned them: y1 x1 y2 x2, as shares.
    sides = np.array([width, height] * 2, np.float32)
    returned = (boxes[:1] / sides)[:, [1, 0, 3, 2]]
    for order, reading in READINGS.items():
        read = (np.stack(reading(*returned.T), axis=1) * sides).astype(np.float32)
        if overlap(known, read).max(initial=0) >= max(SAME_READING, CLEARLY_BETTER * fit):
            raise ModelInvalid(
                f"{model.folder} returns detection_boxes as {order}: they must be y1 x1 y2 x2"
            )
    return fit >= SAME_FACE


def _predicted(model: Model, canvas: Pixels) -> Detections:
    try:
        (found,) = model.predict(canvas[None])
    except Exception as error:
        raise _unusable(model, error) from None
    return found


def _credible(model: Model, found: Detections, canvas: Pixels, least_score: float) -> Detections:
    try:
        return credible(found, canvas.shape[1], canvas.shape[0], least_score)
    except DetectionFailed as error:
        raise _unusable(model, error) from None


def _unusable(model: Model, error: Exception) -> Exception:
    """Return `error` as ModelInvalid, unless it says that somebody else must act."""
    if isinstance(error, MemoryError) or (
        isinstance(error, VeilError) and not isinstance(error, DetectionFailed)
    ):
        return error
    return ModelInvalid(f"{model.folder} fails its test: {in_a_line(error)}")
