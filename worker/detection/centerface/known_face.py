"""The known-answer test: each model is tried on a photograph of a known face before it is used."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from PIL import Image

from tasks.errors import DetectionFailed, ModelInvalid, VeilError
from tasks.messages import FACE
from worker.detection.canvas import PADDING_GRAY, Pyramid, padded
from worker.detection.centerface.default import SCORE_THRESHOLD
from worker.detection.credible import credible
from worker.detection.faces import Boxes, Detections, overlap
from worker.detection.model import Model, in_a_line
from worker.pixels import Pixels

PHOTOGRAPH = Path(__file__).with_name("known_face.jpg")
# The recorded answers of the default model; `python -m tools.benchmarks.known_face` writes them.
ANSWERS = Path(__file__).with_name("known_face.json")
# Detections of the default model below this score are ignored. It scores the known face above 0.8
# in each view, and nothing else above 0.1.
MIN_CONFIDENT_SCORE = 0.5
# A box of a user's model is the known face if their intersection over union is at least this.
MIN_SAME_FACE_IOU = 0.3
# A model returns the numbers of its boxes in another order than the contract's if that order gives
# at least this intersection over union, and at least this many times that of the contract's order.
MIN_REORDERED_IOU, MIN_REORDERED_GAIN = 0.5, 1.5
# A user's model whose boxes cover more than this share of the photograph is refused. The known face
# covers 22 % of it, and the whole woman about half.
MAX_COVERED_SHARE = 0.8
# Answers are the same if no box, as shares of the canvas, and no score differs by more than this.
SAME_ANSWER_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted differences of an answer from the recorded one.

    `score` is that of the score; `position` that of an edge or a landmark, as a share of the box's
    side.
    """

    score: float
    position: float


# By engine; docs/detection.md says how they were measured.
TOLERANCES = {"tensorflow": Tolerance(0.01, 0.02), "litert": Tolerance(0.03, 0.04)}


@dataclass(frozen=True)
class View:
    """The photograph turned by `quarter_turns` counter-clockwise and resized by `factor`."""

    name: str
    factor: float = 1.0
    quarter_turns: int = 0

    def canvas(self, fixed_size: tuple[int, int] | None = None) -> tuple[Pixels, float]:
        """Return the canvas, uint8 RGB, and the factor by which the photograph was resized.

        A model of a `fixed_size` (height, width) gets the largest photograph that fits.
        """
        turned = np.rot90(photograph(), self.quarter_turns)
        factor = self.factor
        if fixed_size:
            factor = min(fixed_size[0] / turned.shape[0], fixed_size[1] / turned.shape[1])
        return padded(Pyramid(turned).resized(factor), fixed_size), factor


UPRIGHT = View("upright")
VIEWS = (UPRIGHT, View("enlarged", factor=1.5), View("turned", quarter_turns=1))

Columns = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def _around(x: NDArray[Any], y: NDArray[Any], width: NDArray[Any], height: NDArray[Any]) -> Columns:
    """Return x1 y1 x2 y2 of boxes with the centres `x` and `y`."""
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


# The orders that exporters use in place of y1 x1 y2 x2, each with a function from the four numbers
# to x1 y1 x2 y2.
READINGS: dict[str, Callable[[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], Columns]] = {
    "x1 y1 x2 y2": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "x y width height": lambda x, y, w, h: (x, y, x + w, y + h),
    "y x height width": lambda y, x, h, w: (x, y, x + w, y + h),
    "centre x, centre y, width, height": _around,
    "centre y, centre x, height, width": lambda y, x, h, w: _around(x, y, w, h),
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
    """Return `found`, which has one face, as answers are recorded."""
    return {
        "score": round(float(found.scores[0]), 4),
        "box_xyxy": found.boxes_xyxy[0].astype(float).round(2).tolist(),
        "landmarks": found.sightings.landmarks[0].astype(float).round(2).tolist(),
    }


def confident_detections(model: Model, canvas: Pixels) -> Detections:
    """Return the detections of `model` in `canvas` from MIN_CONFIDENT_SCORE on.

    Raises ModelInvalid if its answer is not credible.
    """
    return _credible(model, _predicted(model, canvas), canvas, MIN_CONFIDENT_SCORE)


def check_default(model: Model) -> None:
    """Raise ModelInvalid if the default model does not answer on this machine as recorded."""
    blank = np.full_like(photograph(), PADDING_GRAY)
    wrong = "a face in a blank picture" if len(confident_detections(model, blank)) else None
    if model.score_threshold != SCORE_THRESHOLD:
        wrong = f"its score_threshold is {model.score_threshold:g}, not {SCORE_THRESHOLD:g}"
    recorded, tolerance = answers()[model.engine], TOLERANCES[model.engine]
    for view in VIEWS:
        found = confident_detections(model, view.canvas()[0])
        wrong = wrong or _difference(found, recorded[view.name], tolerance)
    if wrong:
        raise ModelInvalid(
            "the default model fails its test on this machine "
            f"({model.engine} on {model.device}): {wrong}: "
            f"remove {model.folder} and run `veil model build`; "
            "if it fails again, use another VEIL_ENGINE or another machine"
        )


def _difference(found: Detections, recorded: dict[str, Any], tolerance: Tolerance) -> str | None:
    """Return the difference of `found` from `recorded` as an error says it; None if tolerable."""
    if len(found) != 1:
        return f"{len(found)} faces in the known photograph, not 1"
    actual = answer(found)
    if abs(actual["score"] - recorded["score"]) > tolerance.score:
        return f"score {actual['score']:.3f} for the known face, not {recorded['score']:.3f}"
    x1, y1, x2, y2 = recorded["box_xyxy"]
    limit = tolerance.position * np.sqrt((x2 - x1) * (y2 - y1))
    for name in ("box_xyxy", "landmarks"):
        off = float(np.abs(np.subtract(actual[name], recorded[name])).max())
        if not off <= limit:  # also if it is NaN
            return f"{name} of the known face off by {off:.1f} pixels, more than {limit:.1f}"
    return None


def try_own(
    model: Model, score_threshold: float, labels: Mapping[int, str] = MappingProxyType({})
) -> None:
    """Try a user's model on the photograph; ModelInvalid if its answers can't be detections.

    That includes boxes that cover more than MAX_COVERED_SHARE of the photograph, and classes that
    `labels`, those that the model states, do not have.

    The model may be meant to find something else, so if it finds nothing in the photograph, that
    is no more than a warning, and no news if its labels say that it does not find faces. What such
    a model finds in the photograph is wrong, and tells nothing about the order of its numbers.
    """
    finds_faces = not labels or FACE in labels.values()
    views = VIEWS if model.fixed_size is None else tuple(view for view in VIEWS if view.factor == 1)
    blank = np.full((*(model.fixed_size or photograph().shape[:2]), 3), PADDING_GRAY, np.uint8)
    found = [_shares(_credible(model, _predicted(model, blank), blank, score_threshold), blank)]
    finds_known_face = False
    for view in views:
        canvas, factor = view.canvas(model.fixed_size)
        predicted = _predicted(model, canvas)
        if view == UPRIGHT and finds_faces:
            finds_known_face = _finds_known_face(model, predicted, canvas, factor, score_threshold)
        believed = _credible(model, predicted, canvas, score_threshold)
        _check_classes(model, predicted, score_threshold, labels)
        if view == UPRIGHT:
            _check_covered_share(model, believed.boxes_xyxy / factor, score_threshold)
        found.append(_shares(believed, canvas))
    if len(found[0]) and _are_same(found):
        raise ModelInvalid(
            f"{model.name} answers the same for a photograph and a blank picture: "
            "check how it was exported"
        )
    if finds_faces and not finds_known_face:
        structlog.get_logger("veil").warning(
            "the model does not find the known face",
            model=model.name,
            score_threshold=score_threshold,
            effect="faces may be published, unless it is meant to find something else",
        )


def _check_classes(
    model: Model, found: Detections, score_threshold: float, labels: Mapping[int, str]
) -> None:
    """Raise ModelInvalid if `labels` lack the class of a detection that counts."""
    if not labels or found.classes is None:
        return
    for number in found.classes[found.scores >= score_threshold].tolist():
        if number not in labels:
            raise ModelInvalid(
                f"{model.name} returns the class {number}, which its veil.json does not label: "
                "add it"
            )


def _check_covered_share(model: Model, boxes: Boxes, score_threshold: float) -> None:
    """Raise ModelInvalid if `boxes`, in pixels of the photograph, cover nearly all of it."""
    covered = np.zeros(photograph().shape[:2], bool)
    for x1, y1, x2, y2 in boxes.round().clip(0).astype(int).tolist():
        covered[y1:y2, x1:x2] = True
    share = float(covered.mean())
    if share > MAX_COVERED_SHARE:
        raise ModelInvalid(
            f"{model.name} covers {share:.0%} of a photograph with one face with what it finds, "
            f"more than {MAX_COVERED_SHARE:.0%}: train it longer, or raise its score threshold, "
            f"which is {score_threshold:g}"
        )


def _shares(found: Detections, canvas: Pixels) -> NDArray[np.float32]:
    """Return the boxes as shares of the canvas, and the scores, float32 [n, 5]."""
    sides = np.array([canvas.shape[1], canvas.shape[0]] * 2, np.float32)
    return np.column_stack([found.boxes_xyxy / sides, found.scores])


def _are_same(found: Sequence[NDArray[np.float32]]) -> bool:
    """Return whether all answers `found`, [n, 5] each, are the same."""
    first = found[0]
    for other in found:
        if other.shape != first.shape or not np.allclose(other, first, atol=SAME_ANSWER_TOLERANCE):
            return False
    return True


def _finds_known_face(
    model: Model, predicted: Detections, canvas: Pixels, factor: float, score_threshold: float
) -> bool:
    """Return whether one of the detections `predicted` in the upright `canvas` is the known face.

    Raises ModelInvalid if the numbers of boxes come in another order: see _check_order.
    """
    counted = predicted[predicted.scores >= score_threshold]
    counted = counted[np.argsort(-counted.scores, kind="stable")]
    boxes = counted.boxes_xyxy / factor  # in pixels of the photograph
    known = np.array(answers()["tensorflow"][UPRIGHT.name]["box_xyxy"], np.float32)
    iou = float(overlap(known, boxes).max(initial=0))
    _check_order(model, boxes[:1], known, iou, canvas.shape[0] / factor, canvas.shape[1] / factor)
    return iou >= MIN_SAME_FACE_IOU


def _check_order(
    model: Model, strongest: Boxes, known: Boxes, iou: float, height: float, width: float
) -> None:
    """Raise ModelInvalid if the strongest box is the `known` face only in another order of numbers.

    Only the strongest box is tried, because one of many would fit by chance. `iou` is the best
    overlap as the contract reads them; `height` and `width` are those of the canvas, in pixels of
    the photograph.
    """
    sides = np.array([width, height] * 2, np.float32)
    returned = (strongest / sides)[:, [1, 0, 3, 2]]  # y1 x1 y2 x2, as the model returned them
    for order, reading in READINGS.items():
        boxes = (np.stack(reading(*returned.T), axis=1) * sides).astype(np.float32)
        reordered_iou = overlap(known, boxes).max(initial=0)
        if reordered_iou >= max(MIN_REORDERED_IOU, MIN_REORDERED_GAIN * iou):
            raise ModelInvalid(
                f"{model.name} returns detection_boxes as {order}: they must be y1 x1 y2 x2"
            )


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
    """Return `error` as ModelInvalid, unless its class says that something else is to blame."""
    is_foreign = isinstance(error, VeilError) and not isinstance(error, DetectionFailed)
    if is_foreign or isinstance(error, MemoryError):
        return error
    return ModelInvalid(f"{model.name} fails its test: {in_a_line(error)}")
