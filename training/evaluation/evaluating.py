"""``veil train evaluate``: measure detections and exposed faces of a model, by label."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.errors import ModelInvalid
from tasks.storage.s3 import ObjectStore
from training.data.dataset import FACE, Box, Dataset, Picture, first_view
from training.evaluation import scoring
from training.evaluation.scoring import Curve, Judged
from training.run import DESCRIPTION, Run
from worker.bootstrap import mask_style
from worker.commands.progress import Bar, progress_bar
from worker.detection import own_model, plates
from worker.detection.faces import Boxes, Detections
from worker.detection.labelled import merge_views, with_label
from worker.detection.model import DEFAULT_THRESHOLD, Model, stated_labels
from worker.detection.objects import detector_of
from worker.detection.presets import PassSettings
from worker.detection.tiled import Infer, ModelInput, one_by_one
from worker.images import Frame
from worker.masking import hiding
from worker.masking.regions import MaskStyle, covered_pixels, regions
from worker.model_settings import DEFAULT, PLATES, ModelAddress
from worker.models import LITERT_MODULE, load_folder, load_model
from worker.pixels import Pixels
from worker.searches import (
    LoadedModel,
    labels_to_hide,
    passes_of,
    rules_of_treatment,
    threshold_of,
)
from worker.settings import WorkerSettings
from worker.treatments import AS_CONFIGURED, Treatments

BUNDLED = {DEFAULT: FACE, PLATES: plates.LABEL}  # the models that come with Veil; their labels
FLOOR = 0.05  # the lowest threshold that is evaluated
MAX_THRESHOLD = 0.99  # the highest threshold that is proposed, and that `export` accepts
PLACES = 4  # decimals of a proposed threshold, as it is written
ALARM_RATES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)  # false alarms per picture
# A face is exposed when half of the structure of its eye band survives: docs/detection.md.
# The eye band is x1 y1 x2 y2, in shares of the sides of the face's box.
BAND = (0.15, 0.2, 0.85, 0.6)
BAND_PIXELS = (64, 32)
DETAIL = 3.0  # sigma in pixels of the band; coarser structure is light and shade
EXPOSED = 0.5
HIDDEN = 0.9  # an object of another label is exposed if a smaller share of its box is hidden
CHANGED = 24  # levels; a pixel outside of all faces that changed more counts as spill


@dataclass
class Remembering:
    """A model whose answers are cached, because both thresholds need the same passes."""

    model: Model
    known: dict[str, Detections] = field(default_factory=dict)

    def of_class(self, number: int | None) -> Infer:
        """Return the Infer that returns detections of class `number` alone, or all for None."""

        def infer(canvas: Pixels) -> Detections:
            found = self(canvas)
            if number is None or found.classes is None:
                return found
            return found[found.classes == number]

        return one_by_one(infer)

    def __call__(self, canvas: Pixels) -> Detections:
        digest = hashlib.sha256(repr(canvas.shape).encode() + canvas.tobytes()).hexdigest()
        if digest not in self.known:
            # A worker repeats the pass in parts when a model returns as many faces as it can. Here
            # the first answer of the model is evaluated.
            self.known[digest] = replace(self.model.predict(canvas[None])[0], left_out=0.0)
        return self.known[digest]


@dataclass(frozen=True)
class Hidden:
    """The results of hiding all that is found from `threshold` on, in the pictures `shown`."""

    threshold: float
    exposed: int
    faces: int
    spill: float
    shown: tuple[Judged, ...]

    def summary(self) -> dict[str, Any]:
        recall, precision, alarms = self.at_threshold()
        return {
            "threshold": round(self.threshold, PLACES),
            "recall": recall,
            "precision": precision,
            "false_alarms_a_picture": alarms,
            "exposed": self.exposed,
            "faces": self.faces,
            "spill": round(self.spill, 5),
        }

    def at_threshold(self) -> tuple[float, float | None, float]:
        """Return recall, precision and false alarms per picture at `threshold`.

        The precision is None if nothing was found.
        """
        hits, alarms = scoring.counts(self.shown)
        return (
            round(hits / max(1, self.faces), 4),
            round(hits / (hits + alarms), 4) if hits + alarms else None,
            round(alarms / len(self.shown), 3),
        )


@dataclass(frozen=True)
class Figures:
    """The results of one model for one label, `hidden` at the threshold that is judged.

    `proposed` is the threshold that suits the label alone; None if no threshold has as few false
    alarms as were asked for, and for the bundled model, which keeps its own. `everything` has all
    detections from FLOOR on, by which `precision` and `curve` are computed. `as_served` has the
    results at the threshold with which a worker would use the model, with what its rules leave
    visible; None if it has none yet, or for the bundled model, which is judged there.
    """

    name: str
    label: str
    proposed: float | None
    precision: dict[str, float | None]
    curve: Curve
    everything: tuple[Judged, ...]
    hidden: Hidden
    as_served: Hidden | None = None

    @property
    def threshold(self) -> float:
        return self.hidden.threshold

    def summary(self) -> dict[str, Any]:
        rates = {str(rate): round(self.curve.recall_at(rate), 4) for rate in ALARM_RATES}
        return {
            "model": self.name,
            "label": self.label,
            "proposed_threshold": None if self.proposed is None else round(self.proposed, PLACES),
            **self.precision,
            "recall_by_false_alarms": rates,
            **self.hidden.summary(),
            "as_served": self.as_served.summary() if self.as_served else None,
        }


def load(address: str, settings: WorkerSettings) -> Model:
    """Return the model at `address`: a finished run, or a SavedModel as in VEIL_MODEL.

    A run is saved first, so that the evaluation measures the model that would be served, with the
    engine that a worker would choose on this machine. ``default`` and ``plates`` are the models
    that come with Veil, unless a run has this name.
    """
    path = Path(address).expanduser()
    if is_run(path):
        from training import exporting

        return load_folder(_with_floor(settings), exporting.saved_model(Run.load(path)))
    if address in BUNDLED:
        return bundled_model(address, settings)
    folder = own_model.folder(address, lambda: ObjectStore.connect(settings))
    return load_folder(_with_floor(settings), folder, name=address)


def is_run(path: Path) -> bool:
    return (path / DESCRIPTION).is_file()


def bundled_model(name: str, settings: WorkerSettings) -> Model:
    """Return the model that comes with Veil as `name`, tested. Raises ModelInvalid without it."""
    try:
        named = ModelAddress.parse(name)
    except ValueError as error:
        raise ModelInvalid(str(error)) from None
    changes = {"model": named.address, "model_sha256": None, "models": (), "plates": False}
    return load_model(_with_floor(settings).model_copy(update=changes))


def _with_floor(settings: WorkerSettings) -> WorkerSettings:
    """Return `settings` for a model that also reports the weakest detections of a curve."""
    return settings.model_copy(update={"score_threshold": FLOOR, "rules": {}})


def evaluate(
    address: str,
    dataset: Dataset,
    split: str,
    settings: WorkerSettings,
    look: PassSettings | None,
    alarms: float,
    compare: bool,
    threshold: float | None = None,
) -> list[Figures]:
    """Return the results of the model at `address` for each label of `dataset`.

    Those of a model that comes with Veil are for the labels that it finds. After those for each
    label follow, with `compare`, those of another model that comes with Veil and finds the label.
    Detection runs in the passes `look` over the first view of each picture, or else in the passes
    and views of a worker for the label.
    The threshold is `threshold`, or else the lowest one that finds objects of a label with at most
    `alarms` false alarms per picture, or else DEFAULT_THRESHOLD. It is that of all labels, as it is
    in an export. The model to compare with keeps its own. Raise SettingsInvalid for rules with
    which a worker of this model would not start.
    """
    treatments = Treatments(mask_style(settings), dataset.labels, rules_of_treatment(settings))
    model, name = load(address, settings), Path(address).name
    of_run = is_run(Path(address).expanduser())
    is_bundled = address in BUNDLED and not of_run
    labels = _labels_of(address, dataset) if is_bundled else dataset.labels
    numbers = class_numbers(model.folder, labels)
    labels_to_hide(settings, [LoadedModel(model, stated_labels(model.folder), settings)])
    answers, takes = Remembering(model), ModelInput(model.fixed_size)
    swept = []
    for label in labels:
        about = dataset, split, label, look or passes_of(settings, label), look is None
        infer = answers.of_class(numbers[label])
        swept.append(_Measured(name, infer, takes, *about, treatments).swept())
    proposals = [threshold or one.proposed(alarms) for one in swept]
    lowest = min((one for one in proposals if one), default=DEFAULT_THRESHOLD)
    figures = []
    for one, proposed in zip(swept, proposals, strict=True):
        label = one.measured.label
        # A run has no threshold of its own before it is exported.
        served = threshold_of(settings, label, 0 if of_run else model.score_threshold) or None
        figures.append(one.figures(lowest, proposed, served))
        other = _to_compare(label, settings) if compare else None
        if other and not _is_same(other, model):
            infer = Remembering(other).of_class(class_numbers(other.folder, [label])[label])
            its = replace(
                one.measured, name="bundled", infer=infer, takes=ModelInput(other.fixed_size)
            )
            figures.append(its.swept().figures(other.score_threshold))
    return figures


def _labels_of(name: str, dataset: Dataset) -> tuple[str, ...]:
    """Return the labels of `dataset` that the model finds which comes with Veil as `name`."""
    label = BUNDLED[name]
    if label not in dataset.labels:
        raise ModelInvalid(
            f"{name} finds {label}, and the data set has {', '.join(dataset.labels)}: import its "
            f"labels with `veil train import … --classes {label}`"
        )
    return (label,)


def _to_compare(label: str, settings: WorkerSettings) -> Model | None:
    """Return the model that comes with Veil and finds `label`; None if this machine has none."""
    if label == FACE:
        return bundled_model(DEFAULT, settings)
    has_plates = plates.is_installed() and find_spec(LITERT_MODULE)
    return bundled_model(PLATES, settings) if label == plates.LABEL and has_plates else None


def _is_same(one: Model, other: Model) -> bool:
    return one.folder.resolve() == other.folder.resolve() or one.digest == other.digest


def class_numbers(folder: Path, labels: Sequence[str]) -> dict[str, int | None]:
    """Return the class of the model in `folder` for each of `labels`.

    It is None, for all classes, if there is one label and the model states none. Raises
    ModelInvalid if the model does not state a class for each label.
    """
    stated = {label: number for number, label in stated_labels(folder).items()}
    if not stated and len(labels) == 1:
        return {labels[0]: None}
    if missing := [label for label in labels if label not in stated]:
        raise ModelInvalid(
            f"{folder} states no class for the label {missing[0]}: it has "
            f"{', '.join(stated) or 'no labels in its veil.json'}"
        )
    return {label: stated[label] for label in labels}


@dataclass(frozen=True)
class _Measured:
    """A measurement of one label in one split, `in_all_views` of a picture or in its first.

    `infer` returns the detections of the label by the model `name`, whose input is `takes`.
    """

    name: str
    infer: Infer
    takes: ModelInput
    dataset: Dataset
    split: str
    label: str
    look: PassSettings
    in_all_views: bool
    treatments: Treatments

    @property
    def style(self) -> MaskStyle:
        return self.treatments.of(self.label).style

    def swept(self) -> "_Swept":
        """Return all detections from FLOOR on, and their curve."""
        with self.bar(1) as bar:
            everything = self.judged(FLOOR, bar)
        return _Swept(self, everything, scoring.curve(everything))

    def judged(self, threshold: float, bar: Bar) -> tuple[Judged, ...]:
        """Return what is found from `threshold` on, matched with the labelled objects."""
        found = self._searched(threshold, bar)
        return tuple(_judged(picture, self._boxes(picture), its) for picture, _, its in found)

    def hidden(self, threshold: float, bar: Bar, *, as_served: bool = False) -> Hidden:
        """Return the results of hiding what is found from `threshold` on.

        What the rules leave visible stays so `as_served`. Otherwise the model alone is judged.
        """
        exposed, faces, spills, shown = 0, 0, [], []
        for picture, frame, everything in self._searched(threshold, bar):
            found = everything
            if as_served:
                labelled = with_label(everything, self.label)
                found = self.treatments.wanted(labelled, AS_CONFIGURED)
            pixels = first_view(frame)
            hidden = hiding.hide(pixels, found.sightings, self.style)
            exposed += self._exposed(picture, pixels, hidden, found)
            faces += len(self._boxes(picture))
            spills.append(_spill(pixels, hidden, picture))
            shown.append(_judged(picture, self._boxes(picture), found))
        return Hidden(threshold, exposed, faces, float(np.mean(spills)), tuple(shown))

    def bar(self, passes: int) -> AbstractContextManager[Bar]:
        """Show a bar for `passes` over the pictures."""
        total = passes * len(self.dataset.split(self.split))
        return progress_bar(f"{self.name}, {self.label}", total)

    def _searched(self, threshold: float, bar: Bar) -> Iterator[tuple[Picture, Frame, Detections]]:
        """Yield each picture with its frame and what is found there from `threshold` on."""
        detector = detector_of(self.label, self.infer, self.look, threshold, self.takes)
        for picture in self.dataset.split(self.split):
            frame = self.dataset.frame(picture)
            views = frame.views() if self.in_all_views else [first_view(frame)]
            yield picture, frame, merge_views([detector.detect(view) for view in views])
            bar.advance()

    def _boxes(self, picture: Picture) -> tuple[Box, ...]:
        return picture.boxes_of(self.dataset.labels.index(self.label))

    def _exposed(self, picture: Picture, clear: Pixels, hidden: Pixels, found: Detections) -> int:
        """Return the number of exposed objects of the label: see EXPOSED and HIDDEN."""
        boxes = self._boxes(picture)
        if self.label == FACE:
            return sum(survived(clear, hidden, face) >= EXPOSED for face in boxes)
        height, width = clear.shape[:2]
        everything = regions(found.sightings, self.style, width, height)
        covered = covered_pixels(everything, (0, 0, width, height))
        return sum(_share(covered, box) < HIDDEN for box in boxes)


@dataclass(frozen=True)
class _Swept:
    """The detections of a measurement from FLOOR on, and their curve."""

    measured: _Measured
    everything: tuple[Judged, ...]
    curve: Curve

    def proposed(self, alarms: float) -> float | None:
        """Return the lowest score with at most `alarms` per picture as a threshold.

        Passes are merged differently at each threshold, so thresholds are measured: first the one
        that the curve suggests, then others around it, ever farther away, until bisection has found
        the lowest. None if there is none, or if it finds no object.
        """
        thresholds = to_propose(self.curve)
        suggested = self.curve.thresholds_within(alarms).min(initial=MAX_THRESHOLD)
        middle = max(0, int(np.searchsorted(thresholds, suggested, side="right")) - 1)
        low, high, reach, hits = 0, len(thresholds), 1, 0
        with self.measured.bar(1) as bar:
            while low < high:
                bar.expect(bar.count + len(self.everything))
                shown = self.measured.judged(thresholds[middle], bar)
                its_hits, its_alarms = scoring.counts(shown)
                if its_alarms <= alarms * len(shown):
                    high, hits = middle, its_hits
                    middle = max((low + high) // 2, high - reach)
                else:
                    low = middle + 1
                    middle = min((low + high) // 2, low - 1 + reach)
                reach *= 2
        return thresholds[high] if hits else None

    def figures(
        self, threshold: float, proposed: float | None = None, served: float | None = None
    ) -> Figures:
        """Return the results at `threshold`, and at `served` too, if it is one."""
        with self.measured.bar(1 if served is None else 2) as bar:
            hidden = self.measured.hidden(threshold, bar)
            as_served = (
                None if served is None else self.measured.hidden(served, bar, as_served=True)
            )
        return Figures(
            self.measured.name,
            self.measured.label,
            proposed,
            scoring.average_precision(self.everything),
            self.curve,
            self.everything,
            hidden,
            as_served,
        )


def _share(covered: NDArray[np.bool_], box: Box) -> float:
    """Return the share of the pixels of `box` that are `covered`."""
    x1, y1, x2, y2 = (round(side) for side in box)
    part = covered[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
    return float(part.mean()) if part.size else 1.0


def to_propose(curve: Curve) -> list[float]:
    """Return the thresholds of `curve`, rising, in PLACES decimals, from FLOOR to MAX_THRESHOLD."""
    unit = 10**PLACES
    # Rounded down, so that the detection at the threshold counts.
    written = np.unique((np.floor(curve.thresholds * unit) / unit).clip(FLOOR))
    return [float(threshold) for threshold in written if threshold <= MAX_THRESHOLD]


def _judged(picture: Picture, objects: Sequence[Box], found: Detections) -> Judged:
    """Match the surest box of each face with the labelled `objects`.

    A mask covers all boxes of a face, and would overlap its label less than any of them.
    """
    surest = np.unique(found.sightings.face, return_index=True)[1]
    boxes = found.sightings.boxes_xyxy[surest].clip(
        0, np.array([picture.width, picture.height] * 2, np.float32)
    )
    return scoring.judged(_boxes(objects), _boxes(picture.ignore), Detections(boxes, found.scores))


def survived(clear: Pixels, hidden: Pixels, face: Box) -> float:
    """Return the correlation of the fine structure of the eye band in both pictures.

    It is 1 for a face that is unchanged, and about 0 for one that is hidden.
    """
    first, second = (_band(pixels, face) for pixels in (clear, hidden))
    energy = max(float((first * first).sum()), float((second * second).sum()))
    return float((first * second).sum()) / energy if energy > 1e-3 else 0.0


def _band(pixels: Pixels, face: Box) -> NDArray[np.float32]:
    corner, size = np.array(face[:2]), np.array(face[2:]) - face[:2]
    left, top = np.floor(corner + size * BAND[:2]).astype(int)
    right, bottom = np.ceil(corner + size * BAND[2:]).astype(int)
    cut = pixels[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)]
    band = (
        cv2.resize(cut, BAND_PIXELS, interpolation=cv2.INTER_AREA).astype(np.float32).mean(axis=2)
    )
    detail: NDArray[np.float32] = band - cv2.GaussianBlur(band, (0, 0), DETAIL)
    return detail


def _spill(clear: Pixels, hidden: Pixels, picture: Picture) -> float:
    """Return the share of pixels that changed visibly, of those outside of all labelled faces."""
    outside = np.ones(clear.shape[:2], bool)
    for x1, y1, x2, y2 in [*picture.faces, *picture.ignore]:
        x, y = (x2 - x1) / 2, (y2 - y1) / 2
        outside[max(int(y1 - y), 0) : int(y2 + y) + 1, max(int(x1 - x), 0) : int(x2 + x) + 1] = (
            False
        )
    changed = np.abs(clear.astype(np.int16) - hidden).max(axis=2) > CHANGED
    return float(changed[outside].mean()) if outside.any() else 0.0


def _boxes(boxes: Sequence[Box]) -> Boxes:
    return np.array(boxes, np.float32).reshape(-1, 4)
